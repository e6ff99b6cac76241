"""Two LSTM language models, left-to-right and right-to-left, that share word embeddings (Peters et al. 2018, ELMo).

Unlike ELMo's they read the WordPiece tokens that BERT reads, by a table of embeddings that is their softmax as well.
PyTorch's LSTM runs each of them over a batch padded on the right; the right-to-left one reads every sequence reversed
within its own length.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from ..model.configuration_hfbert import IGNORED_LABEL
from ..model.kernels_hfbert import cross_entropy
from ..model.layout_hfbert import states_at


class LSTMPairConfig(PreTrainedConfig):
    """Configuration of a pair of LSTM language models.

    Args:
        vocab_size: number of tokens.
        lstm_size: units of each direction, and size of a word embedding.
        num_hidden_layers: layers of each direction.
        hidden_dropout_prob: on the input of every layer.
        classifier_dropout: on the features a classifier reads.
        pad_token_id: token of the padding.
        initializer_range: standard deviation of the embeddings.
    """

    model_type = "hfbert_lstm_pair"

    vocab_size: int = 30522
    lstm_size: int = 512
    num_hidden_layers: int = 2
    hidden_dropout_prob: float | int = 0.1
    classifier_dropout: float | int = 0.5
    pad_token_id: int | None = 0
    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = True

    @property
    def hidden_size(self) -> int:
        """Return the size of a token's vector: both directions'."""
        return 2 * self.lstm_size


class LSTMPairPreTrainedModel(PreTrainedModel):
    """Base of the models: initialisation and loading."""

    config: LSTMPairConfig
    config_class = LSTMPairConfig
    base_model_prefix = "lstm_pair"
    _supports_sdpa = True  # nothing here attends, so that any implementation fits

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        """Keep PyTorch's initialisation of LSTMs."""
        if isinstance(module, nn.Embedding):
            initialization.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear):
            initialization.xavier_uniform_(module.weight)
            initialization.zeros_(module.bias)
        elif isinstance(module, LSTMPairMix):
            initialization.zeros_(module.scores)
            initialization.ones_(module.scale)
        elif isinstance(module, LSTMPairSoftmax):
            initialization.zeros_(module.bias)

    def flops_per_token(self) -> float:
        """Return the FLOPs of a token, forward and backward: two for each weight, the backward pass twice the forward.

        The table of embeddings counts as the softmax of both directions.
        """
        embeddings: Any = self.get_input_embeddings()
        table = embeddings.weight.numel()
        return 6.0 * (sum(parameter.numel() for parameter in self.parameters()) - table + 2 * table)


class LSTMPairModel(LSTMPairPreTrainedModel):
    """The states of both language models."""

    def __init__(self, config: LSTMPairConfig):
        super().__init__(config)
        size, layers = config.lstm_size, config.num_hidden_layers
        self.word_embeddings: Any = nn.Embedding(config.vocab_size, size)
        # One module a layer, whose states are features.
        self.left_to_right = nn.ModuleList(nn.LSTM(size, size, batch_first=True) for _ in range(layers))
        self.right_to_left = nn.ModuleList(nn.LSTM(size, size, batch_first=True) for _ in range(layers))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        read_positions: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> BaseModelOutput:
        """Encode a batch.

        Args:
            input_ids: (batch_size, sequence_length), padded on the right.
            attention_mask: (batch_size, sequence_length), 1 for tokens and 0 for padding; None without padding.
            token_type_ids: not used.
            read_positions: (count,) positions in the flattened batch to return.
            output_hidden_states: also return the embeddings, twice side by side, and every layer's states.
            return_dict: not used.

        Returns:
            last_hidden_state (batch_size, sequence_length, hidden_size), or (count, hidden_size) at read_positions:
            left-to-right states, then right-to-left ones.
        """
        reverse = _reversed_order(input_ids, attention_mask)[..., None]
        left = right = self.word_embeddings(input_ids)
        right = right.gather(1, reverse.expand_as(right))
        states = [torch.cat([left, left], dim=-1)]
        for forward_layer, backward_layer in zip(self.left_to_right, self.right_to_left, strict=True):
            left = forward_layer(self.dropout(left))[0]
            right = backward_layer(self.dropout(right))[0]
            states.append(torch.cat([left, right.gather(1, reverse.expand_as(right))], dim=-1))
        last = states[-1] if read_positions is None else states_at(states[-1], read_positions)
        return BaseModelOutput(last_hidden_state=last, hidden_states=tuple(states) if output_hidden_states else None)


def _reversed_order(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the column each column of a reversed sequence is from, and the other way round; padding stays."""
    columns = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    if attention_mask is None:
        return columns.flip(1)
    last = attention_mask.to(input_ids.device, torch.long).sum(1, keepdim=True) - 1
    return torch.where(columns <= last, last - columns, columns)


class LSTMPairSoftmax(nn.Module):
    """Logits of the next token from a left-to-right state, and of the one before from a right-to-left state."""

    def __init__(self, config: LSTMPairConfig, embeddings: nn.Embedding):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self._embeddings = (embeddings,)  # a tuple, so that they are not registered twice

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits (…, vocab_size) for states (…, lstm_size)."""
        return nn.functional.linear(states, self._embeddings[0].weight.to(states.dtype), self.bias.to(states.dtype))

    def predictions(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token for the states of both directions, (…, hidden_size)."""
        return self(states[..., : states.shape[-1] // 2])


@dataclass
class LSTMPairOutput(ModelOutput):
    """Output of LSTMPairForPreTraining: the sum of the two losses."""

    loss: torch.Tensor | None = None


class LSTMPairForPreTraining(LSTMPairPreTrainedModel):
    """Both language models with their shared, tied softmax. The two losses are added; no state sees the other's."""

    def __init__(self, config: LSTMPairConfig):
        super().__init__(config)
        self.lstm_pair = LSTMPairModel(config)
        self.cls = LSTMPairSoftmax(config, self.lstm_pair.word_embeddings)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool = True,
    ) -> LSTMPairOutput:
        """Compute the loss of both directions.

        Args:
            input_ids, attention_mask, token_type_ids: see `LSTMPairModel.forward`.
            labels: (batch_size, sequence_length) next tokens, -100 where there is none. The right-to-left model
                predicts the same tokens' left neighbours: as many.
            num_items_in_batch: divisor of each summed loss; None for the number of labels.
            skip_logits: there are no logits in the output.
        """
        states = self.lstm_pair(input_ids, attention_mask).last_hidden_state
        if labels is None:
            return LSTMPairOutput()
        left, right = states.chunk(2, dim=-1)
        known = labels != IGNORED_LABEL
        # A column with a next token is that token's left neighbour.
        after = nn.functional.pad(known[:, :-1], (1, 0))
        forward_loss = cross_entropy(self.cls(left[known]), labels[known], num_items_in_batch)
        backward_loss = cross_entropy(self.cls(right[after]), input_ids[known], num_items_in_batch)
        return LSTMPairOutput(loss=forward_loss + backward_loss)


class LSTMPairMix(nn.Module):
    """γ · Σ softmax(s)ⱼ · layerⱼ: ELMo's learned scalars over embeddings and layers (its equation 1).

    Each layer is normalised before, as ELMo does where layers differ in scale: embeddings do after little training.
    """

    def __init__(self, layers: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        layers = torch.stack([nn.functional.layer_norm(state, state.shape[-1:]) for state in states])
        return self.scale * torch.einsum("lbsh,l->bsh", layers, self.scores.softmax(0))


class LSTMPairForSequenceClassification(LSTMPairPreTrainedModel):
    """Classify a sentence or a pair by pooled features of the frozen language models.

    Features are the scalar mix of all layers, averaged over the tokens of each segment; a classifier reads both means,
    their distance and their product. labels (batch_size,), class ids or, with num_labels 1, numbers.
    """

    def __init__(self, config: LSTMPairConfig):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 2)
        self.lstm_pair = LSTMPairModel(config)
        self.lstm_pair.requires_grad_(False)
        self.mix = LSTMPairMix(config.num_hidden_layers + 1)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.dense = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Return logits (batch_size, num_labels), and the loss for given labels."""
        self.lstm_pair.eval()  # frozen: features without dropout
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        second = torch.zeros_like(mask) if token_type_ids is None else token_type_ids * mask
        with torch.no_grad():
            states = self.lstm_pair(input_ids, mask, output_hidden_states=True).hidden_states
        mixed = self.mix(states)
        first, other = (_mean(mixed, part) for part in (mask - second, second))
        pooled = torch.cat([first, other, (first - other).abs(), first * other], dim=-1)
        hidden = torch.relu(self.dense(self.dropout(pooled)))
        logits = self.classifier(self.dropout(hidden))
        loss = None
        if labels is not None:
            is_number = self.num_labels == 1
            loss = nn.functional.mse_loss(logits[:, 0].float(), labels.float()) if is_number else None
            loss = cross_entropy(logits, labels, None) if loss is None else loss
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average (batch_size, sequence_length, size) over the tokens of a mask; 0 where it has none."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
