"""A checkpoint saved here, opened by other releases of transformers, each in an environment of its own.

    python tests/versions/check_versions.py

The lowest transformers 5 that pyproject.toml allows and the newest: with the package and by remote code. 4.57, which
other libraries still pin: the `bert` export; remote code is refused with one sentence. PyTorch and what else is
independent of transformers is shared with the environment that runs this; the others lie in .venv-versions/.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from hfbert_scratch import HFBertConfig, HFBertForPreTraining
from hfbert_scratch.conversion import to_stock
from hfbert_scratch.tokenization import SPECIAL_TOKENS, bert_tokenizer, save_tokenizer


ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-versions"
CHECKPOINTS = ROOT / "build" / "versions"
TEXT = ("the bank of a river is green", "people walk")
# float32, the same PyTorch everywhere: what another order of the same operations may change.
TOLERANCE = 1e-6
OUTPUTS = {
    "AutoModelForPreTraining": ["prediction_logits", "seq_relationship_logits"],
    "AutoModel": ["last_hidden_state", "pooler_output"],
}


def main() -> None:
    """Save, install, open, compare; exit code 1 if anything is not as said above."""
    lowest = lowest_allowed()
    ids = save_checkpoints()
    newest = install("newest", "transformers>=5,<6")
    lowest_python = install(lowest, f"transformers=={lowest}.*")
    old = install("4.57", "transformers>=4.57,<4.58")
    failed = False
    for python, way, directory in (
        (lowest_python, "package", "ours"),
        (lowest_python, "remote", "ours"),
        (newest, "package", "ours"),
        (newest, "remote", "ours"),
        (old, "stock", "stock"),
        (old, "remote", "ours"),
    ):
        result = read(python, way, CHECKPOINTS / directory)
        if python is old and way == "remote":
            good = "needs transformers 5.17 or newer" in result.get("error", "")
        else:
            good = result.get("difference", 1.0) <= TOLERANCE and result["ids"] == ids
            good = good and all(result[auto_class] == names for auto_class, names in OUTPUTS.items())
        failed |= not good
        told = result.get("error") or f"largest difference {result.get('difference')}"
        print(f"{'ok  ' if good else 'FAIL'} transformers {result.get('transformers')}, {way}: {told}", flush=True)
    sys.exit(failed)


def lowest_allowed() -> str:
    """The version behind transformers>= in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirement = next(line for line in project["dependencies"] if line.startswith("transformers>="))
    return requirement.removeprefix("transformers>=").split(",")[0]


def save_checkpoints() -> list[int]:
    """A small model with noise on every parameter, its stock export and its outputs; returns the text's ids."""
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)
    torch.manual_seed(0)
    words = sorted({word for text in TEXT for word in text.split()})
    tokenizer = bert_tokenizer({word: n for n, word in enumerate((*SPECIAL_TOKENS, *words))}, True, 64)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = HFBertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    model = HFBertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        inputs = tokenizer(*TEXT, return_tensors="pt")
        outputs = {**model(**inputs), **model.bert(**inputs)}
    model.save_pretrained(CHECKPOINTS / "ours")
    save_tokenizer(tokenizer, CHECKPOINTS / "ours")
    to_stock(CHECKPOINTS / "ours", CHECKPOINTS / "stock")
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, CHECKPOINTS / "reference.safetensors")
    (CHECKPOINTS / "text.txt").write_text("\n".join(TEXT), encoding="utf-8")
    return inputs["input_ids"][0].tolist()


def install(name: str, requirement: str) -> Path:
    """The interpreter of an environment with that transformers and, behind it, all that this one has."""
    directory = ENVIRONMENTS / name
    python = directory / "bin" / "python"
    if not python.is_file():
        venv.create(directory, with_pip=False)
    site = next((directory / "lib").glob("python*")) / "site-packages"
    (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", requirement]
    # pip warns of packages here that want another transformers; none of them is imported there.
    done = subprocess.run([*command, "--upgrade"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {requirement} could not be installed: {done.stderr.strip()[-500:]}")
    return python


def read(python: Path, way: str, directory: Path) -> dict:
    """What read.py says there."""
    home = CHECKPOINTS / "hf_home"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "PYTHONPATH": str(ROOT / "src")}
    command = [str(python), str(Path(__file__).with_name("read.py")), way, str(directory)]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": f"{' '.join(done.stderr.split())[-300:]}"}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
