"""The metrics of the tasks, as `evaluate` modules that need no network.

Each `<name>/<name>.py` can also be loaded by its path: `evaluate.load(".../metrics/glue", "mrpc")`.
"""

import importlib
import os
import tempfile
from pathlib import Path

import evaluate

from ..utils.errors import InputError


METRICS = {"glue": "Glue", "squad": "Squad", "squad_v2": "SquadV2", "ner": "Ner"}


def load_metric(name: str, config: str | None = None) -> evaluate.Metric:
    """The metric `name`, in the configuration `config` where it has several (glue: the task).

    What is added to it stays in memory: no file, no lock, no network, and it can be used again after an error.
    Raises InputError for an unknown name or configuration.
    """
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    metric = getattr(importlib.import_module(f"{__name__}.{name}.{name}"), METRICS[name])
    # evaluate makes a cache directory even when it writes nothing there, by default in HOME, which may be read-only.
    cache = Path(tempfile.gettempdir()) / f"hfbert-metrics-{os.getuid()}"
    return metric(config_name=config, keep_in_memory=True, cache_dir=str(cache))
