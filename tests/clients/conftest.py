"""Checkpoints for other programs to open, the sentences they read, and the table of what they gave."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_helpers import documents
from helpers import make

from hfbert_scratch.conversion.export import export
from hfbert_scratch.features.encoder import encode
from hfbert_scratch.text.tokenizer import save_tokenizer, train_wordpiece


# Where `make test-clients` puts the environments.
CLIENTS = Path(__file__).parents[2] / ".venv-clients"
ACCENTS = "Naïve café, Élan vital; ÅNGSTRÖM — (3.14 % of 1,000)! 中文 déjà-vu."
SENTENCES = [
    "Kala mose fidu.",
    "bako rale, tisu? Nobo!",
    f"{ACCENTS} lofe",
    "unknown ☃ characters and a longer text of words that fall into many pieces: bafelimo rusokane",
]
LIMIT = 64
_rows: list[tuple[str, str, str]] = []


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.clients)


def pytest_terminal_summary(terminalreporter):
    for row in _rows:
        terminalreporter.write_line("| " + " | ".join(row) + " |")


@pytest.fixture(scope="session")
def sentences():
    return SENTENCES


@pytest.fixture(scope="session")
def tokenizer():
    return train_wordpiece([*documents(200), *[ACCENTS] * 50], vocab_size=500, model_max_length=LIMIT)


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory):
    """case → (directory of our checkpoint with its tokenizer, the model in eval mode)."""
    checkpoints = {}

    def get(case="pretraining"):
        if case not in checkpoints:
            directory = tmp_path_factory.mktemp("clients") / case
            model = make(case, vocab_size=len(tokenizer), max_position_embeddings=LIMIT)
            model.save_pretrained(directory)
            save_tokenizer(tokenizer, directory)
            checkpoints[case] = directory, model
        return checkpoints[case]

    return get


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory):
    """(format, case) → the export of `checkpoint(case)`."""
    exports = {}

    def get(format, case="pretraining", **options):
        key = format, case, *options.items()
        if key not in exports:
            target = tmp_path_factory.mktemp("exports") / f"{format}-{case}"
            exports[key] = export(checkpoint(case)[0], target, format, **options)
        return exports[key]

    return get


@pytest.fixture(scope="session")
def features(checkpoint, tokenizer):
    """Our own vectors of the sentences: one per token, or pooled and perhaps of length 1; a list."""

    def get(pooling=None, case="pretraining", normalize=False):
        rows = encode(checkpoint(case)[1], tokenizer, SENTENCES, pooling=pooling)
        vectors = [row.vectors[0] for row in rows]
        return [vector / np.linalg.norm(vector) for vector in vectors] if normalize else vectors

    return get


@pytest.fixture
def agrees():
    """Checks arrays against ours and notes the largest difference for the table."""

    def check(client, ran, pairs, tolerance):
        differences = []
        for theirs, ours in pairs:
            theirs, ours = (np.asarray(torch.as_tensor(array).detach()) for array in (theirs, ours))
            assert theirs.shape == ours.shape, (client, theirs.shape, ours.shape)
            differences.append(float(np.abs(theirs.astype(np.float64) - ours).max()))
        _rows.append((client, ran, f"{max(differences):.1e} (tolerance {tolerance:.0e})"))
        assert max(differences) <= tolerance, (client, differences)

    return check


@pytest.fixture
def passed():
    """Notes a result that is no number for the table."""

    def note(client, ran, result):
        _rows.append((client, ran, result))

    return note


@pytest.fixture(scope="session")
def run_node():
    """Run a script of this directory in Node with the client packages; returns the JSON it prints last."""

    def run(script, *arguments):
        directory = CLIENTS / "node"
        if not (directory / "node_modules").is_dir():
            pytest.skip("no Node packages; make test-clients installs them")
        # A module finds packages beside its own file only.
        copied = shutil.copy(Path(__file__).parent / script, directory)
        command = ["node", copied, *map(str, arguments)]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def run_transformers4():
    """Run a script of this directory with transformers 4, without our package; returns the JSON it prints last."""

    def run(script, *arguments):
        python = CLIENTS / "transformers4" / "bin" / "python"
        if not python.exists():
            pytest.skip("no environment with transformers 4; make test-clients makes it")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [str(python), str(Path(__file__).parent / script), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
