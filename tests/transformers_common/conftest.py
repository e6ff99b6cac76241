"""Makes the library's own `tests` package importable, with stand-ins for what its source distribution leaves out.

The distribution holds the common mixins, but none of the packages below `tests`: the checks of single pipelines, the
tests of generation and of export, and the list of configuration fields are ours here, where the library's are missing.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import transformers
from fetch import LIBRARY
from transformers.models.auto import modeling_auto

from hfbert_scratch import HEADS


sys.path.insert(0, str(Path(__file__).parents[1]))  # for the helpers of the other tests

# Without the library's tests (`make test-transformers` fetches them) there is nothing to collect here.
collect_ignore = [] if LIBRARY.is_dir() else ["test_common.py"]

# Values other than the defaults; the test builds a configuration from them and reads them back.
CONFIG_FIELDS = {
    "architectures": ["HFBertModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "no", 1: "yes", 2: "perhaps"},
    "label2id": {"no": 0, "yes": 1, "perhaps": 2},
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}


def _stand_in(name: str, **contents: object) -> None:
    parent = name.rpartition(".")[0]
    if parent not in sys.modules and importlib.util.find_spec(parent) is None:
        _stand_in(parent, __path__=[])
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__dict__.update(contents)


def _install() -> None:
    package = ModuleType("tests")
    package.__path__ = [str(LIBRARY / "tests")]
    package.__spec__ = importlib.util.spec_from_loader("tests", loader=None, is_package=True)
    sys.modules["tests"] = package
    _stand_in("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    _stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    _stand_in("tests.utils.test_configuration_utils", config_common_kwargs=CONFIG_FIELDS)
    import pipeline_checks

    for task, check in pipeline_checks.CHECKS.items():
        _stand_in(f"tests.pipelines.test_pipelines_{task}", **{check.__name__: check})

    # The mixins know from these tables, by the name of a class, which labels its forward takes.
    for auto_class, head in HEADS.items():
        table = {"AutoModel": "MODEL_MAPPING", "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING"}.get(
            auto_class
        ) or f"MODEL_FOR_{_snake_case(auto_class.removeprefix('AutoModelFor'))}_MAPPING"
        getattr(modeling_auto, f"{table}_NAMES")["hfbert"] = head

    # Where the pipeline tests look for models instead of the Hub; test_common.py fills it.
    directory = tempfile.TemporaryDirectory(prefix="tiny-models-")
    _install.directory = directory  # kept until the process ends
    pipeline_checks.write_tiny_models(Path(directory.name))
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = directory.name
    # Importing the mixins executes transformers/__init__.py once more under its own name.
    importlib.import_module("tests.test_pipeline_mixin")
    importlib.import_module("tests.test_configuration_common")
    sys.modules["transformers"] = transformers


def _snake_case(name: str) -> str:
    name = name.replace("LM", "Lm")
    return "".join(f"_{letter}" if letter.isupper() and place else letter for place, letter in enumerate(name)).upper()


if LIBRARY.is_dir():
    _install()
