"""The tasks' metrics, as `evaluate` modules that need no network.

Each `<name>/<name>.py` can also be loaded by its path: `evaluate.load(".../metrics/glue", "mrpc")`.
"""

import getpass
import importlib
import os
import tempfile
from pathlib import Path

import evaluate

from ..utils.errors import InputError


METRICS = {"glue": "Glue", "squad": "Squad", "squad_v2": "SquadV2", "ner": "Ner"}


def load_metric(name: str, config: str | None = None) -> evaluate.Metric:
    """Load a metric. It keeps its inputs in memory, without files, locks or network, and works again after an error.

    Args:
        name: "glue", "squad", "squad_v2" or "ner".
        config: for glue the task; the other metrics have one configuration and ignore the name.

    Returns:
        An `evaluate.Metric`; its docstring describes the arguments of `compute`.

    Raises:
        InputError: for an unknown metric, or an unknown task of glue.
    """
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    metric = getattr(importlib.import_module(f"{__name__}.{name}.{name}"), METRICS[name])
    # evaluate creates a cache directory even if it writes nothing there; the default, HOME, may be read-only.
    cache = Path(tempfile.gettempdir()) / f"hfbert-metrics-{getattr(os, 'getuid', getpass.getuser)()}"
    return metric(config_name=config, keep_in_memory=True, cache_dir=str(cache))
