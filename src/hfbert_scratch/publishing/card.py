"""A finished run as a repository for the Hub: the model's files, a card from the run's own records, plots, figures.

What a card says of data, procedure, figures and hardware is read from record.json and results.json; a person adds the
licence and what no record can know.
"""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, HfApi, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..model.configuration_hfbert import HEADS
from ..tasks import get_task
from ..training.throughput import clock
from ..utils.arguments import argument
from ..utils.errors import InputError, OutputError, one_line
from ..utils.files import read_json, write_text, writing


# The Hub's names of what a head does, https://huggingface.co/tasks.
PIPELINES = {
    "HFBertModel": "feature-extraction",
    "HFBertForPreTraining": "fill-mask",
    "HFBertForMaskedLM": "fill-mask",
    "HFBertForNextSentencePrediction": "text-classification",
    "HFBertForSequenceClassification": "text-classification",
    "HFBertForTokenClassification": "token-classification",
    "HFBertForQuestionAnswering": "question-answering",
    "HFBertForMultipleChoice": "multiple-choice",
}
PLOTS = ("curves.png", "confusion.png", "threshold.png")
RESULTS_FILE = Path(".eval_results") / "hfbert.yaml"
# World average of 2023 in g CO2e/kWh: Ember, Global Electricity Review 2024.
WORLD_GRID = 480.0

# What a stranger does: open the folder without this package, look for weights that are missing, compute something.
_OPEN = """
import json, sys
sys.modules["hfbert_scratch"] = None
import torch, transformers
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
directory, auto_class = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
model, report = getattr(transformers, auto_class).from_pretrained(
    directory, trust_remote_code=True, output_loading_info=True
)
inputs = tokenizer("one sentence", "and another", return_tensors="pt")
if auto_class == "AutoModelForMultipleChoice":
    inputs = {name: tensor[None] for name, tensor in inputs.items()}
with torch.no_grad():
    outputs = model.eval()(**inputs)
problems = [f"{kind}: {sorted(names)[:3]}" for kind, names in report.items() if names]
if not all(tensor.isfinite().all() for tensor in outputs.values() if tensor.is_floating_point()):
    problems.append("its outputs are not finite")
print(json.dumps(problems))
"""


@dataclass(kw_only=True)
class Publication:
    """What a person says about a run; the rest is in its records."""

    run: str = argument(help="directory of a finished run of pretrain.py or finetune.py")
    output_dir: str = argument(help="the repository folder to write, new or empty")
    license: str = argument(help="the Hub's identifier of the model's licence: apache-2.0, mit, cc-by-4.0, other…")
    repo_id: str | None = argument(None, help="OWNER/NAME on the Hub; the card loads the model by it")
    title: str | None = argument(None, help="the card's heading; default: the repository's name")
    summary: str = argument("", help="a sentence or two on what the model is for")
    language: list[str] = argument(["en"], help="of the texts")
    datasets: list[str] = argument([], help="data sets of the Hub it was trained on; a known task's is added")
    data: str = argument("", help="where the training texts come from, and their licence")
    limits: str = argument("", help="what it should not be used for, beside what the record shows")
    base_model: str | None = argument(None, help="OWNER/NAME it started from, where the record has a path")
    power_watts: float | None = argument(None, help="of all the hardware while training; without it, no estimate")
    grid_intensity: float = argument(WORLD_GRID, help="g CO2e per kWh; default: world average of 2023 (Ember)")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", self.license):
            raise InputError(f"license is {self.license!r}; it must be an identifier of the Hub such as apache-2.0")
        for name in ("repo_id", "base_model"):
            value = getattr(self, name)
            if value is not None:
                try:
                    validate_repo_id(value)
                except HFValidationError as error:
                    raise InputError(f"{name} is no name of the Hub: {one_line(error)}") from None
        for name in ("power_watts", "grid_intensity"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be above 0 and finite")

    @property
    def name(self) -> str:
        """What from_pretrained takes in the card."""
        return self.repo_id or self.output_dir


@dataclass(frozen=True)
class Figure:
    """One measured number: of which task and metric, on what, and what token counts or the commonest answer reach."""

    metric: str
    title: str
    split: str
    value: float
    baseline: float | None = None

    @property
    def is_share(self) -> bool:
        """Whether it is shown in per cent."""
        return self.metric in ("accuracy", "f1", "exact_match", "precision", "recall")


@dataclass(frozen=True)
class FinishedRun:
    """A run's records. `results` is results.json of a fine-tuning run, None of a pretraining run."""

    directory: Path
    record: dict[str, Any]
    results: dict[str, Any] | None
    config: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.directory / "model"

    @property
    def head(self) -> str:
        return self.config["architectures"][0]

    @property
    def auto_class(self) -> str:
        return next(auto_class for auto_class, head in HEADS.items() if head == self.head)

    @property
    def start(self) -> str | None:
        """The model it began with, None for random weights."""
        return self.record["arguments"].get("model")

    @property
    def hub_dataset(self) -> tuple[str, str | None] | None:
        """The Hub's data set and configuration behind a known task, None for pretraining and the user's own data."""
        if self.results is None or self.record["arguments"].get("dataset"):
            return None
        return get_task(self.results["task"]).hub

    @property
    def date(self) -> str:
        return self.record["written"][:10]

    def figures(self) -> list[Figure]:
        """All held-out figures, the main one first."""
        if self.results is None:
            return _pretraining_figures(self.record)
        main, task = self.results["main_metric"], self.results["task"]
        figures = [
            Figure(metric, f"{task} {metric}", split, value, self.results["majority_baseline"][split].get(metric))
            for split, scores in self.results["scores"].items()
            for metric, value in scores.items()
            if metric != "loss"
        ]
        return sorted(figures, key=lambda figure: (figure.metric, figure.split) != (main["name"], main["split"]))


def _pretraining_figures(record: dict[str, Any]) -> list[Figure]:
    results, baseline = record["results"], record["baseline"]
    loss = results["eval_masked_lm_loss"]
    accuracy = results["eval_masked_lm_accuracy"]
    figures = [
        Figure("accuracy", "masked LM accuracy", "held out", accuracy, baseline["accuracy"]),
        Figure("loss", "masked LM loss (nats)", "held out", loss, baseline["loss"]),
        Figure("perplexity", "masked LM perplexity", "held out", math.exp(loss), math.exp(baseline["loss"])),
    ]
    if "eval_next_sentence_accuracy" in results:
        value = results["eval_next_sentence_accuracy"]
        figures.append(Figure("accuracy", "next sentence accuracy", "held out", value, 0.5))
    return figures


def open_run(directory: str | Path) -> FinishedRun:
    """The records of a finished pretraining or fine-tuning run.

    Raises InputError if `directory` is no such run, if it has not come to its end, or holds no model of ours.
    """
    path = Path(directory)
    if not (path / "record.json").is_file():
        raise InputError(f"{path} is not the directory of a run: it has no record.json")
    record = read_json(path / "record.json", "the run's record")
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict) or "settings" not in record:
        raise InputError(f"{path / 'record.json'} is not the record of a training run")
    if record.get("status") != "done":
        raise InputError(f"the run in {path} is not finished; start it again with the same command to continue it")
    if not (path / "model" / "config.json").is_file():
        raise InputError(f"{path} has no model/ to publish; this kind of run leaves none")
    config = read_json(path / "model" / "config.json", "the model's configuration")
    heads = config.get("architectures") if isinstance(config, dict) else None
    if not heads or heads[0] not in PIPELINES:
        raise InputError(f"{path / 'model' / 'config.json'} names no model of this package (architectures: {heads})")
    results = None
    if "baseline" not in record:
        results = read_json(path / "results.json", "the results of a fine-tuning run")
    elif "eval_masked_lm_loss" not in record.get("results", {}):
        raise InputError(f"{path / 'record.json'} holds no evaluation; a run without one has no figures to publish")
    return FinishedRun(path, record, results, config)


# ---------------------------------------------------------------------------------------------------------- the card


def build_card(run: FinishedRun, publication: Publication, pictures: bool = True) -> ModelCard:
    """The model card: metadata for the Hub and text for people; `pictures` are those that lie beside it."""
    data = card_data(run, publication)
    sections = [
        f"# {_title(publication)}",
        " ".join(part for part in (_introduction(run), publication.summary) if part),
        "## Use\n\n" + _use(run, publication),
        "## Model\n\n" + _architecture(run),
        "## Training data\n\n" + _training_data(run, publication),
        "## Training procedure\n\n" + _procedure(run),
        "## Held-out figures\n\n" + _figures(run) + (_pictures(run) if pictures else ""),
        "## Hardware and carbon\n\n" + _carbon_text(run, publication),
        "## Limits\n\n" + _limits(run, publication),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def card_data(run: FinishedRun, publication: Publication) -> ModelCardData:
    """The card's metadata, model-index included."""
    hub, start, emissions = run.hub_dataset, run.start, carbon(run, publication)
    datasets = list(dict.fromkeys([*publication.datasets, *([hub[0]] if hub else [])]))
    is_name = start is not None and re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", start) and not Path(start).exists()
    figures = run.figures()
    more: dict[str, Any] = {} if emissions is None else {"co2_eq_emissions": emissions}
    return ModelCardData(
        license=publication.license,
        language=publication.language,
        library_name="transformers",
        pipeline_tag=PIPELINES[run.head],
        tags=["bert", "hfbert-scratch", "custom_code", *([run.results["task"]] if run.results else ["pretraining"])],
        datasets=datasets or None,
        metrics=list(dict.fromkeys(figure.metric for figure in figures)),
        base_model=publication.base_model or (start if is_name else None),
        model_name=_title(publication),
        eval_results=[
            EvalResult(
                task_type=PIPELINES[run.head],
                dataset_type=hub[0] if hub else "custom",
                dataset_name=_dataset_name(run),
                dataset_config=hub[1] if hub else None,
                dataset_split=figure.split,
                metric_type=figure.metric,
                metric_name=figure.title,
                metric_value=round(figure.value, 6),
            )
            for figure in figures
        ],
        **more,
    )


def eval_results(run: FinishedRun) -> list[dict[str, Any]]:
    """The main figure in the format of `.eval_results/*.yaml`; empty where no data set of the Hub stands behind it."""
    if run.results is None or run.hub_dataset is None:
        return []
    dataset, configuration = run.hub_dataset
    main = run.results["main_metric"]
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=configuration or run.results["task"],
        value=round(main["value"], 6),
        date=run.date,
        notes=f"{main['name']} on {main['split']}, {run.results['examples'][main['split']]} examples",
    )
    return eval_result_entries_to_yaml([entry])


def carbon(run: FinishedRun, publication: Publication) -> dict[str, Any] | None:
    """The Hub's co2_eq_emissions, in grams: hours of training × kW × g/kWh; None without a power to go by."""
    if publication.power_watts is None:
        return None
    energy = run.record["seconds"] / 3600 * publication.power_watts / 1000
    return {
        "emissions": round(energy * publication.grid_intensity, 3),
        "source": "hours of training × power in kW × grid intensity in g CO2e/kWh",
        "training_type": "pre-training" if run.results is None else "fine-tuning",
        "hardware_used": run.record["hardware"],
    }


def _title(publication: Publication) -> str:
    return publication.title or Path(publication.name).name


def _dataset_name(run: FinishedRun) -> str:
    return "held-out documents of its corpus" if run.results is None else run.results["task"]


def _introduction(run: FinishedRun) -> str:
    if run.results is None:
        how = "pretrained from scratch" if run.start is None else f"pretrained further from {_named(run.start)}"
    else:
        how = f"fine-tuned on {run.results['task']} from {_named(run.start)}"
    return f"BERT (Devlin et al. 2018), {how} with hfbert-scratch."


def _named(start: str | None) -> str:
    """A model's name, and of a path its last part alone: the rest is nobody's business."""
    if start is None:
        return "random weights"
    path = Path(start)
    if not path.exists() and start.count("/") <= 1:
        return start
    return "/".join(path.parts[-2:]) if path.name == "model" else path.name


def _use(run: FinishedRun, publication: Publication) -> str:
    auto, name = run.auto_class, publication.name
    return (
        "```python\n"
        f"from transformers import {auto}, AutoTokenizer\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'model = {auto}.from_pretrained("{name}", trust_remote_code=True)\n'
        "```\n\n"
        "With `import hfbert_scratch` before it, `trust_remote_code` is not needed; every other `AutoModelFor…` opens "
        "it too. Parameter names are stock BERT's: `recipes/convert.py --to stock` makes it a `bert` checkpoint."
    )


def _architecture(run: FinishedRun) -> str:
    config = run.config
    text = (
        f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, {config['num_attention_heads']} heads, "
        f"{config['vocab_size']:,} WordPiece tokens, at most {config['max_position_embeddings']} positions; "
        f"class `{run.head}`."
    )
    parameters = run.record.get("derived", {}).get("parameters")
    return text + (f" {parameters / 1e6:.2f} M parameters." if parameters else "")


def _training_data(run: FinishedRun, publication: Publication) -> str:
    if run.results is None:
        splits = run.record["corpus"]["splits"]
        parts = [
            f"{splits['train']['documents']:,} documents, {splits['train']['tokens'] / 1e6:.1f} M tokens; "
            f"{splits['validation']['documents']:,} documents were held out."
        ]
    else:
        counts = ", ".join(f"{count:,} in {split}" for split, count in run.results["examples"].items())
        parts = [f"Task {run.results['task']}: {counts}."]
    if publication.datasets:
        parts.append(f"Data sets: {', '.join(publication.datasets)}.")
    return " ".join([*parts, publication.data]).strip()


def _procedure(run: FinishedRun) -> str:
    settings = run.record["arguments"] | ((run.results or {}).get("hyperparameters") or {})
    names = {
        "optimizer": "optimizer",
        "learning_rate": "peak learning rate",
        "warmup_steps": "steps of linear warm-up",
        "max_steps": "steps, linear decay to 0 at the last",
        "batch_size": "sequences a step",
        "max_seq_length": "tokens a sequence, at most",
        "weight_decay": "weight decay",
        "adam_beta2": "β₂",
        "dropout": "dropout",
        "masked_lm_prob": "share of tokens predicted",
        "seed": "seed",
    }
    rows = [f"| {label} | {settings[name]} |" for name, label in names.items() if settings.get(name) is not None]
    made_with = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items())
    return (
        "| setting | value |\n| --- | --- |\n"
        + "\n".join(rows)
        + f"\n\n{run.record['tokens'] / 1e6:.1f} M tokens in {run.record['steps']:,} steps. {made_with}."
    )


def _figures(run: FinishedRun) -> str:
    def shown(figure: Figure, value: float | None) -> str:
        if value is None:
            return ""
        return f"{100 * value:.1f} %" if figure.is_share else f"{value:.3f}"

    rows = [
        f"| {figure.title} | {figure.split} | {shown(figure, figure.value)} | {shown(figure, figure.baseline)} |"
        for figure in run.figures()
    ]
    if run.results is None:
        baseline = run.record["baseline"]
        head = f"On {baseline['rows']:,} held-out sequences"
        what = "token counts alone; chance for next sentence"
    else:
        head, what = f"Of step {run.results['best_step']}, the best on validation", "the most frequent answer"
    seed = run.record["arguments"]["seed"]
    return (
        f"{head}, one run, seed {seed}, {run.date}:\n\n| | split | model | {what} |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
    )


def _pictures(run: FinishedRun) -> str:
    return "".join(f"\n\n![{Path(plot).stem}]({plot})" for plot in _plots(run))


def _plots(run: FinishedRun) -> list[str]:
    return [plot for plot in PLOTS if (run.directory / plot).is_file()]


def _carbon_text(run: FinishedRun, publication: Publication) -> str:
    record = run.record
    text = f"{record['hardware']}, {record['processes']} process(es), {clock(record['seconds'])} of training."
    emissions = carbon(run, publication)
    if emissions is None:
        return text + " No estimate of carbon: the power drawn was not stated."
    energy = record["seconds"] / 3600 * publication.power_watts / 1000  # type: ignore[operator]
    return (
        f"{text} Estimate: {record['seconds'] / 3600:.3f} h × {publication.power_watts:g} W = {energy:.4f} kWh; "
        f"× {publication.grid_intensity:g} g CO2e/kWh = {emissions['emissions']:.1f} g CO2e. The power is as stated "
        "by the publisher, not measured; making the hardware and failed runs are not counted."
    )


def _limits(run: FinishedRun, publication: Publication) -> str:
    parts = [publication.limits] if publication.limits else []
    if run.results is None and run.record["results"].get("plateau_left_at_step") is None:
        parts.append("It predicts no better than token counts do: it has not learnt to use context.")
    if run.results is not None and run.results["degenerate"]:
        parts.append("It is no better than giving the most frequent answer every time.")
    tokens = run.record["tokens"]
    parts.append(
        f"It has seen {tokens / 1e6:.1f} M tokens{'' if run.start is None else ' in this run'} and repeats whatever "
        f"biases they have. More than {run.config['max_position_embeddings']} tokens at once are refused."
    )
    return " ".join(parts)


# ----------------------------------------------------------------------------------------------------- the repository


def build_repository(run: FinishedRun, publication: Publication) -> list[Path]:
    """Write the repository folder: model, card, plots, figures; returns its files. Nothing is left after an error.

    Raises InputError if the folder is not empty, OutputError if it cannot be written.
    """
    target = Path(publication.output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"the output directory {target} is not an empty directory; name a new one")
    existed = target.is_dir()
    try:
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            for source in sorted(path for path in run.model.iterdir() if path.is_file()):
                shutil.copyfile(source, target / source.name)
            for plot in _plots(run):
                shutil.copyfile(run.directory / plot, target / plot)
            card = build_card(run, publication)
            write_text(target / "README.md", str(card))
            entries = eval_results(run)
            if entries:
                (target / RESULTS_FILE).parent.mkdir()
                write_text(target / RESULTS_FILE, yaml.safe_dump(entries, sort_keys=False))
        check_card(target / "README.md", card_data(run, publication))
        check_loads(target, run.auto_class)
    except BaseException:
        _clear(target, existed)
        raise
    return sorted(path for path in target.rglob("*") if path.is_file())


def _clear(target: Path, existed: bool) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if existed:
        target.mkdir(exist_ok=True)


def check_card(path: Path, expected: ModelCardData) -> None:
    """Read the card back as the Hub's client does. Raises RuntimeError if its metadata are not what was meant."""
    loaded = ModelCard.load(path).data
    if loaded.to_dict() != yaml.safe_load(expected.to_yaml()):
        raise RuntimeError(f"{path}: the metadata are not those that were written")
    written = [dataclasses.replace(result, verified=None) for result in expected.eval_results or []]
    if [dataclasses.replace(result, verified=None) for result in loaded.eval_results or []] != written:
        raise RuntimeError(f"{path}: the model-index does not hold the figures that were written")


def check_loads(directory: Path, auto_class: str) -> None:
    """Open the folder in a new process that can import neither this package nor the network, and compute something.

    Raises InputError with the reason if that fails.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": home, "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.run(
            [sys.executable, "-c", _OPEN, str(directory.resolve()), auto_class],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode:
        reason = next((line for line in reversed(process.stderr.splitlines()) if line.strip()), "no reason given")
        raise InputError(f"the model does not open by itself with trust_remote_code: {reason}")
    problems = json.loads(process.stdout.splitlines()[-1])
    if problems:
        raise InputError(f"the model opens, but {'; '.join(problems)}")


def push(directory: Path, repo_id: str, private: bool = False) -> str:
    """Create the repository on the Hub if need be and upload the folder; returns the commit's address.

    Raises OutputError when the Hub refuses or cannot be reached.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=directory, repo_id=repo_id, commit_message="Model, card and figures by hfbert-scratch"
        )
    except LocalTokenNotFoundError:
        raise OutputError(f"cannot push to {repo_id}: log in first, with `hf auth login`") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise OutputError(f"cannot push to {repo_id}: {one_line(error)}") from None
    return commit.commit_url
