"""What is installed: the package without its heavy companions, and the wheel in an environment of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import transformers
from corpus_helpers import documents, small_tokenizer, write_text
from training_helpers import RECIPES

from hfbert_scratch import HFBertConfig, HFBertForMaskedLM
from hfbert_scratch.text.tokenizer import save_tokenizer


ROOT = Path(__file__).parents[1]
# All that is installed by default beyond torch, transformers, tokenizers, safetensors and numpy.
COMPANIONS = "accelerate datasets evaluate matplotlib pandas psutil pyarrow sklearn seqeval tensorboard zstandard"
WITHOUT_COMPANIONS = f"""
import sys
for name in "{COMPANIONS} peft".split():
    sys.modules[name] = None  # neither found nor importable
import torch, transformers
import hfbert_scratch
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
batch = tokenizer(["one two", "three"], padding=True, return_tensors="pt")
for name in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"):
    model = getattr(transformers, name).from_pretrained(sys.argv[1])
    assert type(model).__module__.startswith("hfbert_scratch."), type(model)
    assert torch.isfinite(model.eval()(**batch)[0]).all()
loss = hfbert_scratch.HFBertForMaskedLM.from_pretrained(sys.argv[1])(**batch, labels=batch["input_ids"]).loss
loss.backward()
"""


def run(words: list, **options) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=400, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_model_needs_torch_transformers_tokenizers_safetensors_and_numpy_alone(tmp_path):
    tokenizer = small_tokenizer()
    save_tokenizer(tokenizer, tmp_path)
    HFBertForMaskedLM(HFBertConfig.from_size("tiny", vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    run([sys.executable, "-c", WITHOUT_COMPANIONS, tmp_path], env=os.environ | {"HF_HUB_OFFLINE": "1"})


def test_a_missing_companion_is_named_with_the_remedy():
    code = (
        "import sys; sys.modules['matplotlib'] = None; from pathlib import Path;"
        "from hfbert_scratch.utils.plots import draw_finetuning_curves as draw;"
        "draw([], 'f1', 0.0, Path(sys.argv[1]))"
    )
    printed = run([sys.executable, "-c", code, "nowhere/curves.png"])
    assert printed == "note: no curves.png, as matplotlib is not installed: pip install matplotlib\n"


# -------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source distribution of this tree."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    assert setuptools
    here = tmp_path_factory.mktemp("build")
    run(["git", "clone", "--quiet", ROOT, here / "tree"])
    for name in run(["git", "ls-files", "--modified", "--others", "--exclude-standard"], cwd=ROOT).split("\n"):
        if name and (ROOT / name).is_file():  # what is not committed yet
            (here / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (here / "tree" / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    run([sys.executable, "-c", build, "build_sdist", here / "source"], cwd=here / "tree")
    run(["tar", "xzf", *(here / "source").iterdir()], cwd=here)
    (unpacked,) = here.glob("hfbert_scratch-*")
    run([sys.executable, "-c", build, "build_wheel", here / "from_source"], cwd=unpacked)
    run([sys.executable, "-c", build, "build_wheel", here / "from_tree"], cwd=here / "tree")
    (from_source,), (from_tree,) = (here / "from_source").iterdir(), (here / "from_tree").iterdir()
    assert contents(from_source) == contents(from_tree)
    return from_source


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin directory of an environment with the wheel, and this interpreter's packages below it."""
    here = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", here / "venv"])
    pip = [sys.executable, "-m", "pip", "--python", here / "venv/bin/python", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel])
    (packages,) = (here / "venv/lib").glob("python*/site-packages")
    # A line of a .pth file adds a directory but reads none of its .pth files: an editable install stays out.
    (packages / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return here / "venv/bin"


@pytest.mark.slow
def test_the_wheel_holds_the_recipes_and_all_of_the_package(wheel):
    names = set(contents(wheel))
    for path in [*(ROOT / "src/hfbert_scratch").rglob("*"), *RECIPES.rglob("*")]:
        if path.is_file() and "__pycache__" not in path.parts:
            base = ROOT / "src" if path.is_relative_to(ROOT / "src") else ROOT
            name = path.relative_to(base).as_posix()
            assert (name if base != ROOT else f"hfbert_scratch/{name}") in names
    assert "hfbert_cli.py" in names and not any(name.startswith(("tests", "benchmarks")) for name in names)


@pytest.mark.slow
def test_the_chain_runs_from_the_wheel_in_an_empty_directory(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def hfbert(*words: object) -> str:
        return run([installed / "hfbert", *words], cwd=tmp_path, env=environment)

    where = "import hfbert_scratch, hfbert_cli; print(hfbert_scratch.__file__, hfbert_cli.recipes_directory())"
    places = run([installed / "python", "-c", where], cwd=tmp_path, env=environment).split()
    assert all(place.startswith(str(installed.parent)) for place in places), places

    write_text(tmp_path / "text.txt", documents(200))
    hfbert("tokenizer", "--text", "text.txt", "--vocab_size", 300, "--output_dir", "tokenizer")
    common = ("--tokenizer", "tokenizer", "--max_seq_length", 64)
    hfbert("corpus", "--text", "text.txt", *common, "--validation_share", 0.1, "--output_dir", "corpus")
    size = ("--config", "tiny", "--long_max_seq_length", 0, "--precision", "float32")
    steps = ("--max_steps", 20, "--warmup_steps", 2, "--batch_size", 16, "--micro_batch_size", 8, "--eval_rows", 32)
    hfbert("pretrain", "--num_processes", 2, *size, *steps, *common, "--corpus", "corpus", "--output_dir", "run")
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert record["status"] == "done" and (tmp_path / "run/curves.png").is_file()

    (tmp_path / "data").mkdir()
    for split, count in (("train", 32), ("validation", 16)):
        rows = [{"sentence1": "one two", "sentence2": "two three", "label": row % 2} for row in range(count)]
        (tmp_path / f"data/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ("--task", "mrpc", "--data_dir", "data", "--epochs", 1, "--batch_size", 8, "--max_seq_length", 32)
    hfbert("finetune", *task, "--model", "run/model", "--output_dir", "mrpc", "--cache_dir", "cache")
    assert "validation" in json.loads((tmp_path / "mrpc/results.json").read_text())["scores"]
    hfbert("evaluate", "--model", "mrpc/model", "--data_dir", "data", "--output_dir", "scores", "--cache_dir", "cache")
    hfbert("export", "--format", "stock", "--model", "mrpc/model", "--output_dir", "stock")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "stock").model_type == "bert"
    assert "hfbert-scratch" in hfbert("env")
