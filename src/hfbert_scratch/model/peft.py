"""PEFT's default target modules for HFBert: stock `bert`'s, because the module names are the same."""

from .configuration_hfbert import HFBertConfig


def register_peft() -> None:
    """Let PEFT choose the target modules of HFBert models by itself, as it does for stock `bert`.

    Adds HFBert to each of PEFT's tables that has an entry for `bert`. `import hfbert_scratch` does so if PEFT was
    imported before; otherwise call this once. It imports PEFT, which takes seconds.

    Raises:
        ImportError: if PEFT is not installed.
    """
    from peft.utils import constants

    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and "bert" in table:
            table.setdefault(HFBertConfig.model_type, table["bert"])
