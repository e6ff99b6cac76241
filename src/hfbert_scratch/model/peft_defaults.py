"""PEFT's default target modules for our model type: those of stock `bert`, whose module names are ours.

PEFT takes seconds to import and few need it, so its tables are completed when the user imports it, not before.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


_TABLES = "peft.utils.constants"


def register_peft_defaults(model_type: str) -> None:
    """Give `model_type` an entry in each of PEFT's tables that has one for `bert`: now, or once PEFT is imported."""
    if _TABLES in sys.modules:
        _complete(sys.modules[_TABLES], model_type)
    else:
        sys.meta_path.insert(0, _AfterImport(model_type))


def _complete(tables: ModuleType, model_type: str) -> None:
    for name, table in vars(tables).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and "bert" in table:
            table.setdefault(model_type, table["bert"])


class _AfterImport(MetaPathFinder):
    """Finds nothing but PEFT's tables, once, and completes them when they have been executed."""

    def __init__(self, model_type: str):
        self.model_type = model_type

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TABLES:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_complete(module: ModuleType) -> None:
                execute(module)
                _complete(module, self.model_type)

            spec.loader.exec_module = execute_and_complete  # type: ignore[method-assign]
        return spec
