"""Fixtures of the tests of the model."""

import flash_on_cpu  # noqa: F401 - registers kernels
import pytest

from hfbert_scratch.model import layout_hfbert


@pytest.fixture
def kernel_everywhere(monkeypatch):
    """Sequences of any length are attended by GPUs' operator, which flash_on_cpu computes here."""
    monkeypatch.setattr(layout_hfbert, "has_varlen_kernel", lambda *_: True)
