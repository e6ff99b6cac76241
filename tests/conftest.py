"""Fixtures that many tests share."""

import signal

import pytest
from corpus_helpers import small_tokenizer
from training_helpers import make_inputs


@pytest.fixture(scope="session")
def tokenizer():
    """A small WordPiece tokenizer."""
    return small_tokenizer()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """The tokenizer and the corpus of a small pretraining run."""
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def restore_signals():
    """Take back the handlers a run has set; they would outlive it in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
