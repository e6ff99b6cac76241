"""Fixtures that many tests share."""

import pytest
from corpus_helpers import small_tokenizer
from training_helpers import handlers_restored, make_inputs


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
    """Take back the handlers that a test's run has set."""
    with handlers_restored():
        yield
