"""A checkpoint saved here, opened by other releases of transformers, and the whole suite on the lowest versions.

    python tests/versions/check_versions.py

The lowest transformers 5 that pyproject.toml allows and the newest: with the package and by remote code. 4.57, which
other libraries still pin: the `bert` export; remote code is refused with one sentence. PyTorch and what else is
independent of transformers is shared with the environment that runs this; the others lie in .venv-versions/.
Then the tests of `make test` with the lowest PyTorch and transformers that pyproject.toml allows, on $SUITE_PYTHON, or
Python 3.12 if it is there (PyPI's PyTorch for Linux is the CUDA build: 5 GB; no GPU is needed).
"""

import json
import os
import re
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
from hfbert_scratch.conversion.stock import to_stock
from hfbert_scratch.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer, save_tokenizer


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
    """Save, install, open, compare, test; exit code 1 if anything is not as said above."""
    lowest = lowest_allowed("transformers")
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
    sys.exit(not suite_passes(lowest, lowest_allowed("torch")) or failed)


def suite_passes(transformers_version: str, torch_version: str) -> bool:
    """Run the tests of `make test` in an environment with these versions and nothing of this one."""
    python = ENVIRONMENTS / "lowest-suite" / "bin" / "python"
    if not python.is_file():
        interpreter = os.environ.get("SUITE_PYTHON") or shutil.which("python3.12") or sys.executable
        subprocess.run([interpreter, "-m", "venv", str(python.parents[1])], check=True)
    # Triton's interpreter, in which the suite runs our kernels, needs a NumPy before 2.4.
    versions = [f"torch=={torch_version}.*", f"transformers=={transformers_version}.*", "numpy<2.4"]
    install = [str(python), "-m", "pip", "install", "--quiet", *versions, "--editable", f"{ROOT}[test]"]
    subprocess.run(install, check=True)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    markers = re.search(r'^DEFAULT := "(.*)"$', makefile, re.MULTILINE).group(1)  # type: ignore[union-attr]
    options = ["-q", "-m", markers, "--ignore", "tests/clients", "-n", "2", "--dist", "loadscope"]
    print(f"the suite on torch {torch_version}, transformers {transformers_version}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return not subprocess.run([str(python), "-m", "pytest", *options], cwd=ROOT, env=environment).returncode


def lowest_allowed(package: str) -> str:
    """The version behind `package`>= in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirement = next(line for line in project["dependencies"] if line.startswith(f"{package}>="))
    return requirement.removeprefix(f"{package}>=").split(",")[0]


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
