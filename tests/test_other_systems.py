"""Systems other than Linux, as far as one can pretend them here: what the package takes from Linux may be missing."""

import pytest
import torch
from finetuning_helpers import make_data, make_model, options, read
from training_helpers import RECIPES, start_python

from hfbert_scratch.training import accelerator
from hfbert_scratch.utils.files import lock


# What Python lacks on Windows: modules, signals and calls. Locks then are files that exist.
WITHOUT = """
import os, runpy, signal, sys
import psutil  # whose Linux part needs resource
sys.modules["fcntl"] = sys.modules["resource"] = None
del signal.SIGUSR1
del os.getuid, os.geteuid
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_fine_tuning_needs_nothing_that_windows_lacks(tmp_path):
    line = options("cola", make_data(tmp_path / "data", "cola"), make_model(tmp_path / "model"), tmp_path / "run")
    script = tmp_path / "without.py"
    script.write_text(WITHOUT)
    process = start_python(script, RECIPES / "finetune.py", *line, "--max_steps", "2")
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert read(tmp_path / "run" / "results.json")["steps"] == 2 and not (tmp_path / "run" / ".lock").exists()


def test_a_lock_is_held_once_and_free_again(tmp_path):
    path = tmp_path / "new" / ".lock"
    with lock(path, wait=False) as first:
        assert first
        with lock(path, wait=False) as second:
            assert not second
        path.unlink()
    with lock(path, wait=True) as again:
        assert again and path.exists()


def test_a_lock_goes_with_its_process(tmp_path):
    code = "import os, sys; from pathlib import Path; from hfbert_scratch.utils.files import lock\n"
    code += "with lock(Path(sys.argv[1]), wait=False) as held: print(held, flush=True); os._exit(9)"
    process = start_python("-c", code, tmp_path / ".lock")
    assert process.communicate(timeout=100)[0].strip() == "True" and process.returncode == 9
    with lock(tmp_path / ".lock", wait=False) as held:
        assert held


@pytest.mark.parametrize(("kind", "sums"), [("mps", torch.float32), ("xpu", torch.float64), ("cuda", torch.float64)])
def test_the_device_is_the_one_torch_finds(kind, sums, monkeypatch):
    device = torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
    assert accelerator.best_device() == device and accelerator.sum_dtype(device) == sums
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert accelerator.best_device() == torch.device("cpu")


def test_apples_gpus_compute_in_float32():
    assert not accelerator.has_bfloat16(torch.device("mps"))
    assert accelerator.fastest_precision(torch.device("mps")) == "float32"
