"""Open a checkpoint from anyone, with checks before and after transformers reads it.

Nothing in the directory is trusted: no code of it runs, no pickle is read, no file outside it is opened, and no memory
is allocated before config.json is known to ask for a possible size.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..utils.environment import note_commit
from ..utils.errors import InputError, one_line
from ..utils.files import read_json, split_revision
from .checks_hfbert import WRAPPED
from .configuration_hfbert import MAX_SIZES, HFBertConfig


# Limits of configuration fields without a limit of their own. Layers are built one by one, even without memory.
_LARGEST_LAYERS, _LARGEST_NUMBER = 1_000, 10**9
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"


def open_model(
    model_class: Any, name: str | Path, overrides: dict[str, Any] | None = None, *, new_head: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """Open a checkpoint in float32. No code of the checkpoint runs, and no pickle is read.

    Args:
        model_class: a model class of this package, or an Auto class of transformers.
        name: a checkpoint directory, or a name on the Hub, with @REVISION behind it if it is not the newest.
        overrides: configuration fields that replace the checkpoint's own.
        new_head: accept weights outside the encoder whose shapes differ from the configuration; like missing ones
            they are drawn at random.

    Returns:
        The model, and the names of the weights that were drawn at random.

    Raises:
        InputError: if the checkpoint cannot be opened, if weights of its encoder other than the pooler's are missing,
            or if a weight is not finite.
    """
    config = open_config(model_class, name, overrides)
    source, revision = split_revision(name)
    try:
        with _quiet_transformers():  # new weights are returned, not logged
            model, info = model_class.from_pretrained(
                source,
                revision=revision or "main",
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=new_head,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (ValueError, OSError, RuntimeError, KeyError, StrictDataclassError, SafetensorError) as error:
        raise InputError(refusal(name, error)) from error
    note_commit(source, cached_commit(source, revision))
    new = sorted(info["missing_keys"]) + sorted(entry[0] for entry in info["mismatched_keys"])
    # A base model's own keys have no prefix.
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    heads = (f"{prefix}pooler.", f"{prefix}bilstm.")
    missing = [key for key in new if key.startswith(prefix) and not key.startswith(heads)]
    if missing:
        raise InputError(
            f"the checkpoint {name} lacks {len(missing)} weights of its own encoder, the first {missing[0]}; "
            "config.json and the weights do not belong together" + wrapper_note(info["unexpected_keys"])
        )
    check_finite(model, name)
    return model, new


def open_config(model_class: Any, name: str | Path, overrides: dict[str, Any] | None = None) -> PreTrainedConfig:
    """Open the configuration of a checkpoint for a model class. No code of the checkpoint runs.

    Args:
        model_class, name, overrides: as for `open_model`.

    Raises:
        InputError: if the checkpoint cannot be opened, or holds another architecture.
    """
    check_directory(name)
    source, revision = split_revision(name)
    config_class = getattr(model_class, "config_class", None) or AutoConfig
    try:
        with _quiet_transformers():
            # Code of the checkpoint never runs, so transformers must not ask for permission on the terminal.
            if config_class is HFBertConfig:
                _check_is_bert(config_class.get_config_dict(source, revision=revision or "main")[0], name)
            return config_class.from_pretrained(
                source, trust_remote_code=False, revision=revision or "main", **(overrides or {})
            )
    except InputError:
        raise
    except (ValueError, OSError, RuntimeError, KeyError, StrictDataclassError) as error:
        raise InputError(refusal(name, error)) from error


def _check_is_bert(config: dict[str, Any], name: str | Path) -> None:
    """Refuse another architecture, whose weights would all be missing."""
    model_type = config.get("model_type", "bert")
    if model_type not in ("bert", HFBertConfig.model_type):
        raise InputError(f"{name} is a {model_type} model; this needs a bert or a checkpoint of this package")


def cached_commit(source: str, revision: str | None) -> str | None:
    """Return the commit of a name on the Hub that has just been opened.

    The Hub's cache keeps every file in a directory named by its commit.

    Args:
        source: the name without its revision, or a directory.
        revision: branch, tag or commit. None: the main branch.

    Returns:
        The commit; None for a directory, and for a model that is not in the cache.
    """
    file = None if Path(source).is_dir() else try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else None


def refusal(name: str | Path, error: Exception) -> str:
    """Return the sentence for a checkpoint that transformers cannot open."""
    place = "" if Path(name).is_dir() else " (no directory here, so a name on the Hub)"
    return f"the checkpoint {name}{place} cannot be opened: {one_line(error)}"


def drop_random_pooler(model: nn.Module, new: list[str]) -> list[str]:
    """Replace a base model's pooler by None if it was drawn at random: it must not pass for trained.

    Args:
        model: a base model from `open_model`.
        new: the names of its weights that were drawn at random.

    Returns:
        The names in `new` outside the pooler.
    """
    others = [key for key in new if not key.startswith("pooler.")]
    if len(others) < len(new):
        model.pooler = None  # type: ignore[assignment]  # nn.Module declares tensors and modules; None is neither
    return others


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Turn off transformers' warnings and progress bars, and restore both."""
    logging = transformers.utils.logging
    verbosity, progress_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress_bar:
            logging.enable_progress_bar()


def wrapper_note(names: Iterable[str]) -> str:
    """Return the end of a sentence about missing weights if a wrapper's prefix on `names` is the cause."""
    wrapped = sorted(filter(WRAPPED.search, names))
    if not wrapped:
        return ""
    return f"; a wrapper of the model named its weights ({wrapped[0]}): hfbert convert writes them without"


def check_directory(name: str | Path) -> None:
    """Check that the directory `name` can be opened as a model; names on the Hub pass.

    Raises:
        InputError: naming the file and the remedy.
    """
    if not is_local(name):
        return
    directory = Path(name)
    config = read_config(directory)
    path = directory / "config.json"
    model_type = config.get("model_type", "bert")  # absent from configurations of 2018 and 2019
    if not isinstance(model_type, str):
        raise InputError(f"{path}: model_type is {model_type!r}; it must be a name, such as bert")
    if "auto_map" in config and model_type not in CONFIG_MAPPING:
        raise InputError(
            f"{path} names code of its own (auto_map) for model_type {model_type!r}, and none of it is run; "
            "convert the model to bert first"
        )
    for field, value in config.items():
        most = MAX_SIZES.get(field, _LARGEST_LAYERS if field.endswith("layers") else _LARGEST_NUMBER)
        if isinstance(value, int | float) and value > most:
            raise InputError(f"{path}: {field} is {value}; it must be at most {most}")
    index = directory / f"{SAFETENSORS}.index.json"
    if (directory / SAFETENSORS).is_file():
        check_weights(directory / SAFETENSORS)
    elif index.is_file():
        for shard in shard_names(index):
            check_weights(directory / shard)
    elif (directory / PICKLE).is_file() or (directory / f"{PICKLE}.index.json").is_file():
        raise InputError(
            f"{directory} holds its weights as a pickle ({PICKLE}), which is not read here; "
            "hfbert convert --to hfbert makes safetensors of it"
        )
    else:
        raise InputError(f"{directory} is not a checkpoint: it has no {SAFETENSORS}")
    check_size(config, model_type, path)


def is_local(name: str | Path) -> bool:
    """Tell a checkpoint directory from a name on the Hub.

    Args:
        name: a directory or a name. A Path, and a string that begins with ".", "/" or "~" or has two slashes, is never
            a name.

    Returns:
        True for a directory, False for a possible name on the Hub.

    Raises:
        InputError: for a file, and for a path that does not exist.
    """
    path, text = Path(name), str(name)
    if path.is_dir():
        return True
    if path.exists():
        raise InputError(f"{name} is a file; name the directory of the checkpoint")
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise InputError(f"no checkpoint directory {name}")
    return False


def short_name(name: str | Path) -> str:
    """Return the name for people, so that nothing published shows directories.

    Args:
        name: a directory, or a name on the Hub.

    Returns:
        A name on the Hub as it is; the last part of a path, or the last two parts if it ends in "model".
    """
    path, text = Path(name), str(name)
    if not path.exists() and text.count("/") <= 1:
        return text  # a name on the Hub
    path = path.resolve() if path.exists() else path
    return "/".join(path.parts[-2:]) if path.name == "model" else path.name


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.json as it stands.

    Args:
        directory: of the checkpoint.

    Returns:
        The fields, not validated.

    Raises:
        InputError: if the file is missing, or not a JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory} is not a checkpoint: it has no config.json")
    config = read_json(path, "the model's configuration")
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(config).__name__}")
    return config


def shard_names(index: Path) -> list[str]:
    """List the weight files of an index.

    Args:
        index: model.safetensors.index.json, or the index of a pickle.

    Returns:
        File names in the index's directory, sorted, each once.

    Raises:
        InputError: if the index is damaged, or names a file that is outside its directory or missing.
    """
    content = read_json(index, "the list of weight files")
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise InputError(f"{index} has no weight_map of parameter and file names")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{index} points outside its directory: {name!r}")
        if not (index.parent / name).is_file():
            raise InputError(f"the weight file {index.parent / name} is missing, which {index.name} names")
    return names


def check_weights(path: Path) -> None:
    """Raise InputError unless the header of a safetensors file fits the file. Reads no weight."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); copy or download it again") from None


def check_size(config: dict[str, Any], model_type: str, path: Path) -> None:
    """Check that the encoder of a configuration fits into this machine's memory. No memory is allocated for it.

    Args:
        config: the fields of config.json.
        model_type: the architecture, as transformers names it.
        path: the file of the configuration, for errors.

    Raises:
        InputError: if the encoder is too large in float32, the type is unknown, or the fields describe no model.
    """
    if model_type not in CONFIG_MAPPING:
        raise InputError(f"{path}: model_type {model_type!r} is not known to transformers or this package")
    try:
        with _quiet_transformers(), torch.device("meta"):
            model = AutoModel.from_config(CONFIG_MAPPING[model_type].from_dict(config), trust_remote_code=False)
    # Invalid fields raise errors of many types; @strict's and KeyError have no common base.
    except Exception as error:
        raise InputError(f"{path} describes no model: {one_line(error)}") from None
    check_memory(model, str(path))


def check_memory(model: nn.Module, name: str) -> None:
    """Check that a model fits into this machine's memory in float32.

    Args:
        model: a model, on the meta device or any other.
        name: the model's name, for the error.

    Raises:
        InputError: if its parameters take more than all memory of the machine.
    """
    count, available = sum(parameter.numel() for parameter in model.parameters()), psutil.virtual_memory().total
    if 4 * count > available:
        raise InputError(
            f"{name} asks for {count / 1e9:,.1f} billion parameters, {4 * count / 2**30:,.0f} GiB in float32; this "
            f"machine has {available / 2**30:,.0f} GiB: make the model smaller"
        )


def check_finite(model: nn.Module, name: str | Path) -> None:
    """Raise InputError with the name of the first weight that holds NaN or infinity."""
    for key, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{name}: {key} holds values that are not finite; its training diverged, use another")


def check_fits(model: PreTrainedModel, tokenizer: Any, max_seq_length: int) -> None:
    """Check that a model and a tokenizer belong together, and that the model takes sequences of a length.

    Args:
        model: any model of transformers.
        tokenizer: the tokenizer to use with it.
        max_seq_length: tokens of the longest sequence, special ones included.

    Raises:
        InputError: if the model has fewer positions than `max_seq_length` or fewer embeddings than the tokenizer has
            tokens, or if the two pad with different ids.
    """
    positions = getattr(model.config, "max_position_embeddings", max_seq_length)
    if max_seq_length > positions:
        raise InputError(f"max_seq_length {max_seq_length} exceeds the model's max_position_embeddings {positions}")
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {model.config.vocab_size}; use the one it "
            "was trained with"
        )
    padding = model.config.pad_token_id
    if padding not in (None, tokenizer.pad_token_id):
        raise InputError(
            f"the tokenizer pads with id {tokenizer.pad_token_id}, the model has pad_token_id {padding}; "
            "use the one it was trained with"
        )
