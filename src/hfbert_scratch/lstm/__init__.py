"""A pair of LSTM language models, one for each direction, and its states as features: the systems ELMo stands for."""

import transformers

from .models import LSTMPairConfig, LSTMPairForPreTraining, LSTMPairForSequenceClassification, LSTMPairModel


transformers.AutoConfig.register(LSTMPairConfig.model_type, LSTMPairConfig, exist_ok=True)
transformers.AutoTokenizer.register(LSTMPairConfig, transformers.BertTokenizer, exist_ok=True)
for _auto_class, _model in (
    (transformers.AutoModel, LSTMPairModel),
    (transformers.AutoModelForPreTraining, LSTMPairForPreTraining),
    (transformers.AutoModelForSequenceClassification, LSTMPairForSequenceClassification),
):
    _auto_class.register(LSTMPairConfig, _model, exist_ok=True)

__all__ = ["LSTMPairConfig", "LSTMPairForPreTraining", "LSTMPairForSequenceClassification", "LSTMPairModel"]
