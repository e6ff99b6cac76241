"""BERT from raw text to a published checkpoint, as a Hugging Face plugin.

Importing this package registers HFBert with every Auto class, so that `AutoModelForMaskedLM.from_pretrained(dir)` and
its siblings open our checkpoints.
"""

import sys

import transformers

from . import lstm  # noqa: F401 - registers the LSTM language models
from .model import modeling_hfbert
from .model.configuration_hfbert import HEADS, SIZES, HFBertConfig
from .model.modeling_hfbert import *  # noqa: F403
from .model.peft import register_peft


__version__ = "0.1.0"

transformers.AutoConfig.register(HFBertConfig.model_type, HFBertConfig)
transformers.AutoTokenizer.register(HFBertConfig, transformers.BertTokenizer)
for _auto_class, _name in HEADS.items():
    getattr(transformers, _auto_class).register(HFBertConfig, getattr(modeling_hfbert, _name), exist_ok=True)
# PEFT takes seconds to import and few need it; those who import it after this package call register_peft() themselves.
if "peft.utils.constants" in sys.modules:
    register_peft()

__all__ = ["HEADS", "SIZES", "HFBertConfig", "register_peft"]
__all__ += modeling_hfbert.__all__
