# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""The whole chain on one machine in minutes: text → tokenizer → corpus → pretraining → AutoModel in a new process
→ a repository for the Hub with its model card.

    hfbert demo [--output_dir runs/demo] [--text my_text.txt]

By default the text is the English that every Python installation carries. Each stage is the recipe of a large run,
reads a directory and leaves one. Started again, the demo keeps finished stages and continues an interrupted
pretraining.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from demo_text import write_documents

from hfbert_cli import COMMANDS
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.directories import own_directory
from hfbert_scratch.utils.errors import InputError, command_line
from hfbert_scratch.utils.files import read_json
from hfbert_scratch.utils.isolation import run_without_package
from hfbert_scratch.utils.quantities import count_text


RECIPES = Path(__file__).parent
CONFIG = RECIPES / "configs" / "demo.yaml"
SENTENCES = (
    "Return the number of [MASK] in the list.",
    "If the file does not [MASK], an error is raised.",
    "The default [MASK] is used when no argument is given.",
    "This function returns a new [MASK] with the same shape.",
    "Returns [MASK] if the two objects are equal.",
    "This is the same [MASK] the previous one.",
)
# Statements of the model card that no record of the run holds.
CARD = {
    "title": "The demo's BERT",
    "license": "apache-2.0",
    "language": ["en"],
    "summary": "A small model, trained in minutes on the English that a Python installation carries: it shows that "
    "the chain works, and is not meant for downstream use.",
    "data": "They are the language reference's help topics and docstrings of the standard library and of installed "
    "packages, collected by `recipes/demo_text.py`; the results depend a little on the installed packages. Their "
    "authors' licences apply to that text, and none of it is distributed here.",
    "limits": "Technical prose only: it knows which words occur together in documentation, little syntax and no "
    "facts.",
}
# Runs in a process without the package, like that of someone who has only the checkpoint directory.
OPEN_AND_FILL = """
import json, sys
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline, utils
utils.logging.set_verbosity_error()
utils.logging.disable_progress_bar()
directory, sentences = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForMaskedLM.from_pretrained(directory, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
print(json.dumps([[(answer["token_str"], answer["score"]) for answer in fill(text, top_k=5)] for text in sentences]))
"""


@dataclass(kw_only=True)
class DemoArguments:
    """The command line."""

    output_dir: str = argument("runs/demo", help="where everything goes")
    text: str | None = argument(None, help="file or directory of your own text; default: Python's own documentation")
    megabytes: float = argument(5.0, help="how much of Python's documentation to use")
    vocab_size: int = argument(4000, help="WordPiece tokens; few, so that each is seen often in a short run")
    max_steps: int | None = argument(None, help="optimizer steps; default: those of configs/demo.yaml", at_least=1)


@command_line
def main() -> None:
    """Run the chain and print its result."""
    arguments = parse_arguments(DemoArguments, description=__doc__)
    output = Path(arguments.output_dir)
    with own_directory(output):
        run_chain(arguments, output)


def run_chain(arguments: DemoArguments, output: Path) -> None:
    """Run every stage that is not finished."""
    start = time.monotonic()
    tokenizer, corpus, pretraining = (str(output / name) for name in ("tokenizer", "corpus", "pretraining"))

    text = arguments.text
    if text is None:
        text = str(output / "text.jsonl")
        if not Path(text).is_file():
            stage("Collecting English from the Python installation")
            documents, characters = write_documents(Path(text), int(arguments.megabytes * 1e6))
            print(f"{text}: {documents} documents, {characters / 1e6:.1f} MB")
    if not (Path(tokenizer) / "tokenizer.json").is_file():
        stage("Training a WordPiece tokenizer")
        size = str(arguments.vocab_size)
        recipe("train_tokenizer", "--text", text, "--vocab_size", size, "--output_dir", tokenizer)
    stage("Building the corpus")
    share = ("--validation_share", "0.03", "--max_seq_length", "128")
    recipe("build_corpus", "--text", text, "--tokenizer", tokenizer, "--output_dir", corpus, *share)
    stage("Two instances as the model will see them: [before→after] is a token to predict")
    recipe("inspect_data", "batch", corpus, "--rows", "2")
    stage("Pretraining: masked LM and next sentence prediction")
    steps: tuple[str, ...] = ()
    if arguments.max_steps is not None:
        # A shorter run warms up for half of its steps.
        warmup = min(arguments.max_steps // 2, yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["warmup_steps"])
        steps = ("--max_steps", str(arguments.max_steps), "--warmup_steps", str(warmup))
    inputs = ("--corpus", corpus, "--tokenizer", tokenizer, "--output_dir", pretraining)
    recipe("pretrain", "--config", "demo", *inputs, *steps)
    stage("Opening the checkpoint with AutoModelForMaskedLM in a process without this package")
    show_predictions(f"{pretraining}/model")
    stage("Writing a repository for the Hub, with its model card")
    repository = output / "repository"
    shutil.rmtree(repository, ignore_errors=True)  # of an earlier demo
    card = CARD if arguments.text is None else {"license": "unknown"}
    words = []
    for name, value in card.items():
        words += [f"--{name}", *([value] if isinstance(value, str) else value)]
    recipe("publish", "--run", pretraining, "--output_dir", str(repository), *words)
    stage("Result")
    show_result(Path(pretraining), time.monotonic() - start)


def stage(title: str) -> None:
    """Print a heading."""
    print(f"\n== {title}", flush=True)


def recipe(name: str, *options: str) -> None:
    """Run a recipe of this directory as a user would. Raises InputError with its exit code when it fails."""
    command = [sys.executable, str(RECIPES / f"{name}.py"), *options]
    name = next(row.name for row in COMMANDS.values() if row.recipe == name)
    print("$ " + shlex.join(["hfbert", name, *options]), flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise InputError(f"hfbert {name} ended with exit code {code}; what it printed above says why")


def show_predictions(model: str) -> None:
    """Print the five likeliest words for each blank."""
    process = run_without_package(OPEN_AND_FILL, str(Path(model).resolve()), json.dumps(SENTENCES))
    if process.returncode:
        raise InputError(f"the checkpoint {model} could not be opened:\n{process.stderr}")
    for sentence, answers in zip(SENTENCES, json.loads(process.stdout.splitlines()[-1]), strict=True):
        words = ", ".join(f"{word} {100 * score:.0f} %" for word, score in answers)
        print(f"{sentence}\n    {words}")


def show_result(pretraining: Path, seconds: float) -> None:
    """Print the held-out results beside the unigram baseline."""
    record = read_json(pretraining / "record.json", "pretraining")
    results, baseline = record["results"], record["baseline"]
    accuracy, unigram = results["eval_masked_lm_accuracy"], baseline["accuracy"]
    past = results["plateau_left_at_step"]
    print(
        f"held-out masked LM: loss {results['eval_masked_lm_loss']:.3f}, token counts {baseline['loss']:.3f}; "
        f"accuracy {100 * accuracy:.1f} % = {accuracy / unigram:.1f} × their {100 * unigram:.1f} %\n"
        f"held-out next sentence: accuracy {100 * results['eval_next_sentence_accuracy']:.1f} %\n"
        + (f"the unigram plateau was left by step {past}" if past else "the unigram plateau was NOT left")
        + f"\ncurve: {pretraining / 'curves.png'}   checkpoint: {pretraining / 'model'}\n"
        f"{record['steps']} steps, {count_text(record['tokens'])} tokens, {record['seconds'] / 60:.1f} minutes of "
        f"training, {seconds / 60:.1f} minutes in all on {record['hardware']}"
    )


if __name__ == "__main__":
    main()
