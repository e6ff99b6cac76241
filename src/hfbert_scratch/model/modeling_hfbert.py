# Copyright 2026 The hfbert-scratch authors. Licensed under the Apache License, Version 2.0.
"""BERT (Devlin et al. 2018) in the order of the forward pass: embeddings, layers, pooler, heads.

One file with all heads, as in transformers. Parameters are named as in the original and stock `bert`: checkpoints load
both ways. Beside it: checks of inputs and checkpoints (checks_hfbert.py), packed rows, batches without padding,
attention masks (layout_hfbert.py), kernels (kernels_hfbert.py). The five travel together and import nothing else here.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.pytorch_utils import apply_chunking_to_forward
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checks_hfbert import (
    check_choices,
    check_inputs,
    check_length,
    check_not_packed,
    check_problem_type,
    check_projection,
    check_span,
    check_tensors,
    check_weight_names,
    fit_labels,
    index_error_message,
    take_stock_output_bias,
)
from .configuration_hfbert import HEADS, HFBertConfig, autocast_dtype
from .kernels_hfbert import (
    HFBertBiLSTM,
    HFBertDropout,
    HFBertOutputProjection,
    classification_loss,
    cross_entropy,
    predicted_positions,
    problem_type_of,
    recompute_gelu,
    span_loss,
)
from .layout_hfbert import QuerySubset, select_queries, states_at, token_layout


class HFBertEmbeddings(nn.Module):
    """Sum of word, position and segment embeddings, then LayerNorm and dropout (paper, section 3.2 and figure 2).

    All inputs are (batch_size, sequence_length), inputs_embeds (batch_size, sequence_length, hidden_size).
    """

    def __init__(self, config: HFBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = HFBertDropout(config.hidden_dropout_prob)
        # Not saved; a buffer so that old checkpoints that hold it load without a warning.
        self.register_buffer("position_ids", torch.arange(config.max_position_embeddings)[None], persistent=False)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if position_ids is None:
            position_ids = self.default_positions(inputs_embeds.shape[1], inputs_embeds.device)
        if token_type_ids is None:  # every token in segment A
            token_type_ids = torch.zeros(inputs_embeds.shape[:-1], dtype=torch.long, device=inputs_embeds.device)
        segments = self.token_type_embeddings(token_type_ids)
        embeddings = inputs_embeds + segments + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings))

    def default_positions(self, sequence_length: int, device: torch.device) -> torch.Tensor:
        """Return 0, 1, 2 …, (1, sequence_length)."""
        check_length(sequence_length, self.position_ids.shape[1])
        if self.position_ids.is_meta:  # weights assigned to a model of the meta device leave its buffers there
            return torch.arange(sequence_length, device=device)[None]
        return self.position_ids[:, :sequence_length]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute softmax(QKᵀ·scaling + mask)·V; the one implementation that also returns the probabilities.

    Args:
        query, key, value: (batch, heads, length, head size).
        attention_mask: added to the scores; broadcasts to (batch, heads, length, length).
    """
    # (batch, heads, queries, keys)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1)
    probabilities = module.dropout(probabilities) if dropout else probabilities
    output = torch.matmul(probabilities, value)
    # (batch, length, heads, head size)
    return output.transpose(1, 2).contiguous(), probabilities


class HFBertSelfAttention(nn.Module):
    """Multi-head self-attention through transformers' attention interface (eager, sdpa, flex, flash, user's own)."""

    def __init__(self, config: HFBertConfig):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.all_head_size = config.hidden_size
        self.scaling = self.attention_head_size**-0.5
        self.is_causal = config.left_to_right
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = HFBertDropout(config.attention_probs_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        dtype = autocast_dtype(hidden_states.device)
        if dtype is not None:  # cast once; autocast would cast for each of the three projections
            hidden_states = hidden_states.to(dtype)
        # (batch, length, hidden size), and (batch, heads, length, head size) after the projections
        query_states = select_queries(hidden_states, kwargs)
        query, key, value = map(self.split_heads, self.project(query_states, hidden_states))
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout.p if self.training else 0.0
        output, probabilities = attention_interface(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return output.reshape(query_states.shape), probabilities

    def project(
        self, query_states: torch.Tensor, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Project to query, key and value, each (batch, length, hidden size)."""
        return self.query(query_states), self.key(hidden_states), self.value(hidden_states)

    def split_heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden size) → (batch, heads, length, head size)."""
        # Not unflatten: the older ONNX exporter takes its other sizes for constants.
        heads = (self.config.num_attention_heads, self.attention_head_size)
        return projected.view(*projected.shape[:-1], *heads).transpose(1, 2)


class HFBertResidual(nn.Module):
    """dense → dropout → add the input → LayerNorm: the end of both halves of a layer (post-LayerNorm)."""

    def __init__(self, config: HFBertConfig, input_size: int):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = HFBertDropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + input_tensor)


class HFBertAttention(nn.Module):
    """Self-attention and the residual around it."""

    def __init__(self, config: HFBertConfig):
        super().__init__()
        self.self = HFBertSelfAttention(config)
        self.output = HFBertResidual(config, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, probabilities = self.self(hidden_states, attention_mask=attention_mask, **kwargs)
        return self.output(attended, select_queries(hidden_states, kwargs)), probabilities


class HFBertIntermediate(nn.Module):
    """The feed-forward expansion, 4·hidden_size in the paper, and its activation."""

    def __init__(self, config: HFBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(hidden_states))


class HFBertLayer(GradientCheckpointingLayer):
    """One transformer block: attention, then feed-forward, each closed by residual and LayerNorm."""

    def __init__(self, config: HFBertConfig):
        super().__init__()
        self.chunk_size_feed_forward = config.chunk_size_feed_forward
        self.seq_len_dim = 1
        self.attention = HFBertAttention(config)
        self.intermediate = HFBertIntermediate(config)
        self.output = HFBertResidual(config, config.intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.attention(hidden_states, attention_mask, **kwargs)
        return apply_chunking_to_forward(
            self.feed_forward_chunk, self.chunk_size_feed_forward, self.seq_len_dim, attended
        )

    def feed_forward_chunk(self, attention_output: torch.Tensor) -> torch.Tensor:
        activated = self.intermediate(attention_output)
        # Gradient checkpointing saves nothing here that could be recomputed.
        with nullcontext() if self.gradient_checkpointing else recompute_gelu(activated):
            return self.output(activated, attention_output)


class HFBertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: HFBertConfig):
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList([HFBertLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        query_subset: QuerySubset | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        for number, layer in enumerate(self.layer, start=1):
            if query_subset is not None and number == len(self.layer):
                kwargs["query_subset"] = query_subset
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class HFBertPooler(nn.Module):
    """dense + tanh on the vector of [CLS], the first of each row: C in the paper.

    HFBertModel gives a left-to-right model's last token instead, the only one that has seen the whole sequence.
    """

    def __init__(self, config: HFBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states[:, 0]))


class HFBertPredictionHeadTransform(nn.Module):
    """dense → activation → LayerNorm before the vocabulary projection (the original code's `cls/predictions`)."""

    def __init__(self, config: HFBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.transform_act_fn(self.dense(hidden_states)))


class HFBertLMPredictionHead(nn.Module):
    """Vocabulary logits for any (…, hidden_size) vectors.

    There is exactly one output bias. Stock ties a second name, decoder.bias, to it, which FSDP2 refuses.
    """

    def __init__(self, config: HFBertConfig):
        super().__init__()
        self.transform = HFBertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder = HFBertOutputProjection(config, self)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden_states))

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        """Accept stock's second name for the bias, which stock computes with."""
        if isinstance(self.decoder, HFBertOutputProjection) and f"{prefix}decoder.bias" in state_dict:
            state_dict[f"{prefix}bias"] = state_dict.pop(f"{prefix}decoder.bias")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def loss_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits for a cross-entropy: as `forward`, possibly followed by columns with an exponential of 0."""
        return self(hidden_states)


class HFBertPreTrainingHeads(nn.Module):
    """The two pretraining heads under the original's names; either may be absent."""

    def __init__(self, config: HFBertConfig, masked_lm: bool = True, next_sentence: bool = True):
        super().__init__()
        if masked_lm:
            self.predictions = HFBertLMPredictionHead(config)
        if next_sentence:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(
        self, sequence_output: torch.Tensor | None = None, pooled_output: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of both heads for their inputs, or of the present head for the one input given."""
        if not hasattr(self, "seq_relationship"):
            return self.predictions(sequence_output)
        if not hasattr(self, "predictions"):
            return self.seq_relationship(sequence_output if pooled_output is None else pooled_output)
        return self.predictions(sequence_output), self.seq_relationship(pooled_output)


@dataclass
class HFBertForPreTrainingOutput(ModelOutput):
    """Output of HFBertForPreTraining: stock's five fields in stock's order, then the two parts of the loss.

    Attributes:
        loss: masked_lm_loss + next_sentence_loss, or the one with labels.
        prediction_logits: (batch_size, sequence_length, vocab_size), or (predicted positions, vocab_size) in training
            with `sparse_prediction`.
        seq_relationship_logits: (batch_size, 2), column 0 for "B follows A".
    """

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    masked_lm_loss: torch.Tensor | None = None
    next_sentence_loss: torch.Tensor | None = None


class HFBertPreTrainedModel(PreTrainedModel):
    """Base of all HFBert models: initialisation, capabilities, loading."""

    config: HFBertConfig
    config_class = HFBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HFBertEmbeddings", "HFBertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": HFBertLayer, "attentions": HFBertSelfAttention}
    _keys_to_ignore_on_load_unexpected = [r"position_ids"]  # old checkpoints hold this buffer
    # Trainer takes any forward with **kwargs for one that divides the loss by `num_items_in_batch`. Heads that do so
    # set this to True; for the others Trainer divides by the accumulation steps.
    accepts_loss_kwargs = False

    @staticmethod
    def _load_pretrained_model(model: Any, *args: Any, **kwargs: Any) -> Any:
        """Load, but refuse weights with other names: transformers would initialise the encoder at random."""
        loaded = PreTrainedModel._load_pretrained_model(model, *args, **kwargs)
        encoder = [name for name, _ in model.base_model.named_parameters() if not name.startswith("pooler.")]
        check_weight_names(encoder, loaded[0].missing_keys, loaded[0].unexpected_keys)
        return loaded

    def _encode(self, input_ids: Any, *inputs: torch.Tensor | None, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return the base model's output by name, also where the user asked for tuples. Hooks see stock's call."""
        named = dict(zip(("attention_mask", "token_type_ids", "position_ids", "inputs_embeds"), inputs, strict=True))
        return self.base_model(input_ids, **named, return_dict=True, **kwargs)

    def _pool(self, *inputs: torch.Tensor | None, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return the base model's output to a head that reads pooler_output alone, which may save all else."""
        pooler, hooks = self.base_model.pooler, self.base_model._forward_hooks
        is_read = hooks or type(pooler) is not HFBertPooler or pooler._forward_hooks or pooler._forward_pre_hooks
        return self._encode(*inputs, read_positions=None if is_read else (), **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal(0, initializer_range) cut at two standard deviations, biases 0, LayerNorm 1 (the original's code)."""
        if isinstance(module, nn.Linear | nn.Embedding):
            std = self.config.initializer_range
            initialization.trunc_normal_(module.weight, mean=0.0, std=std, a=-2 * std, b=2 * std)
            if getattr(module, "bias", None) is not None:
                initialization.zeros_(module.bias)
            # A slice loses the flag of weights that came from a file.
            padding = getattr(module, "padding_idx", None)
            if padding is not None and not getattr(module.weight, "_is_hf_initialized", False):
                initialization.zeros_(module.weight[padding])
        elif isinstance(module, HFBertLMPredictionHead):
            initialization.zeros_(module.bias)
        elif isinstance(module, HFBertEmbeddings):
            initialization.copy_(module.position_ids, torch.arange(module.position_ids.shape[1])[None])
        else:
            super()._init_weights(module)


class HFBertModel(HFBertPreTrainedModel):
    """Encoder without a head; `add_pooling_layer=False` leaves the pooler out, as stock does for some heads."""

    def __init__(self, config: HFBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.gradient_checkpointing = False
        self.embeddings = HFBertEmbeddings(config)
        self.encoder = HFBertEncoder(config)
        self.bilstm = HFBertBiLSTM(config) if config.bilstm else None
        self.pooler = HFBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)  # last_hidden_state may hold read_positions only
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | BaseModelOutputWithPooling:
        """Encode a batch.

        Args:
            input_ids: (batch_size, sequence_length), or (1, tokens) for a packed row: several sequences one after the
                other that do not see each other.
            attention_mask: (batch_size, sequence_length), 1 for tokens and 0 for padding; or per pair of tokens,
                (batch_size, [1 or heads,] sequence_length, sequence_length), booleans or integers with 1 where a token
                sees another, or floats to add to the scores. None for a packed row.
            token_type_ids: as input_ids; None for segment A everywhere.
            position_ids: as input_ids; None for 0, 1, 2 … in each sequence.
            inputs_embeds: (batch_size, sequence_length, hidden_size) in place of input_ids.
            kwargs: read_positions, (count,) positions in the flattened batch to return; () for the pooler's alone,
                None for all. For a packed row cu_seq_lens_q (sequences + 1,), 0 … tokens, the start of each sequence
                and the end of the last, and optionally max_length_q: validated on the CPU only; a GPU would wait.

        Returns:
            last_hidden_state (batch_size, sequence_length, hidden_size), or (count, hidden_size) at read_positions;
            pooler_output (sequences, hidden_size). With attn_implementation="hfbert_unpadded" the layers see no
            padding, last_hidden_state is 0 there, and the last layer computes the queries to read only.

        Raises:
            ValueError: if shapes disagree, ids have no embedding, or a sequence exceeds the position table.
        """
        # Not a named argument: stock has none, and the older ONNX exporter passes every name by its place.
        read_positions = kwargs.pop("read_positions", None)
        ids = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
        shape, device = check_inputs(self.config, ids, inputs_embeds, attention_mask, kwargs)
        layout = token_layout(self, shape, device, attention_mask, read_positions, kwargs)
        attention_kwargs = kwargs | layout.attention_kwargs()
        if position_ids is None:
            ids["position_ids"] = layout.default_positions(self.embeddings, device)
        else:  # flash attention finds packed rows by them, as for stock
            ids["position_ids"] = attention_kwargs["position_ids"] = position_ids.view(-1, shape[1])
        unpadded = {name: layout.unpad(values) for name, values in ids.items()}
        try:
            hidden_states = self.embeddings(**unpadded, inputs_embeds=layout.unpad(inputs_embeds))
        except IndexError as error:
            raise ValueError(index_error_message(self.config, ids, self.embeddings)) from error
        mask = layout.attention_mask(self.config, hidden_states, attention_mask, self.training)
        hidden_states = self.encoder(hidden_states, attention_mask=mask, **attention_kwargs).last_hidden_state
        last_hidden_state, pooled_states = layout.restore(hidden_states)
        if self.bilstm is not None:
            last_hidden_state, pooled_states = self.bilstm(hidden_states, attention_mask, layout)
        pooler_output = self.pooler(pooled_states) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=last_hidden_state, pooler_output=pooler_output)


class HFBertMaskedPrediction(HFBertPreTrainedModel):
    """Base of the two models with an MLM head: tied projection, logits at predicted positions only."""

    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}
    _keys_to_ignore_on_load_unexpected = [r"position_ids", r"cls\.predictions\.decoder\.bias"]

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        """Load, taking the output bias that stock computes with where a file holds two."""
        loaded = HFBertPreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)
        if take_stock_output_bias(model.cls.predictions, state_dict, checkpoint_files):
            loaded[0].missing_keys.discard("cls.predictions.bias")
        return loaded

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Take over weight and bias, if any (else ours is fitted), of an nn.Linear; another module replaces ours."""
        predictions, bias = self.cls.predictions, getattr(new_embeddings, "bias", None)
        is_plain = type(new_embeddings) in (nn.Linear, HFBertOutputProjection)
        if is_plain and isinstance(predictions.decoder, HFBertOutputProjection):
            predictions.decoder.weight = new_embeddings.weight
        else:
            predictions.decoder = new_embeddings
        if isinstance(bias, nn.Parameter):
            predictions.bias = bias
        self._fit_bias()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the projection to the word embeddings and fit the bias to their number."""
        super().tie_weights(*args, **kwargs)
        self._fit_bias()

    def _fit_bias(self) -> None:
        predictions = self.cls.predictions
        if not isinstance(predictions.decoder, HFBertOutputProjection):  # it has a bias of its own
            return
        old, size = predictions.bias, predictions.decoder.weight.shape[0]
        predictions.decoder.out_features = size
        if old is not None and old.shape[0] != size:
            bias = F.pad(old.detach(), (0, size - old.shape[0]))
            predictions.bias = nn.Parameter(bias, requires_grad=old.requires_grad)

    def _predict(
        self,
        inputs: tuple[torch.Tensor | None, ...],
        labels: torch.Tensor | None,
        masked_positions: torch.Tensor | None,
        num_items: torch.Tensor | int | None,
        skip_logits: bool,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[BaseModelOutputWithPooling, tuple[torch.Tensor, ...] | None, torch.Tensor | None]:
        """Return the base model's output, the logits of all heads (MLM first) and the MLM loss.

        The loss is at predicted positions; with skip_logits or config.sparse_prediction only they meet the vocabulary.
        """
        decoder = getattr(getattr(self.cls, "predictions", None), "decoder", None)
        if isinstance(decoder, HFBertOutputProjection):
            check_projection(decoder)
        if labels is None:
            outputs = self._encode(*inputs, **kwargs)
            return outputs, self._logits(outputs), None
        input_ids, *_, inputs_embeds = inputs
        check_tensors(
            labels=labels, masked_positions=masked_positions, input_ids=input_ids, inputs_embeds=inputs_embeds
        )
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if tokens is not None:  # else HFBertModel raises
            labels = fit_labels(labels, tokens).to(tokens.device, torch.long)
        positions, targets = predicted_positions(labels, masked_positions)
        sparse = positions is not None and (skip_logits or (self.training and self.config.sparse_prediction))
        outputs = self._encode(*inputs, read_positions=positions if sparse else None, **kwargs)
        if skip_logits:
            return outputs, None, self._prediction_loss(outputs.last_hidden_state, targets, num_items)
        logits = self._logits(outputs)
        predicted = logits[0] if sparse or positions is None else states_at(logits[0], positions)
        return outputs, logits, cross_entropy(predicted, targets, num_items)

    def _logits(self, outputs: BaseModelOutputWithPooling) -> tuple[torch.Tensor, ...]:
        """Return the logits of every head by one call of `cls`, so that hooks on it act as on stock's."""
        raise NotImplementedError

    def _prediction_loss(
        self, states: torch.Tensor, targets: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Compute the MLM loss of (…, hidden_size) vectors; compiled as one graph it stores no float32 logits."""
        return cross_entropy(self.cls.predictions.loss_logits(states), targets, num_items)


class HFBertForPreTraining(HFBertMaskedPrediction):
    """The two tasks of the paper's section 3.1 at once: masked LM and next sentence prediction."""

    def __init__(self, config: HFBertConfig):
        super().__init__(config)
        self.bert = HFBertModel(config)
        self.cls = HFBertPreTrainingHeads(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_sequences_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | HFBertForPreTrainingOutput:
        """Predict masked tokens and whether segment B follows A; the loss is the sum of both tasks' losses.

        Args:
            labels: (batch_size, sequence_length), -100 where nothing is predicted.
            next_sentence_label: (batch_size,), 0 if B follows A, else 1.
            masked_positions: (batch_size, max_predictions) columns of the labels, padded with one without a label.
                With it no shape depends on the data, so that nothing synchronises a GPU.
            num_items_in_batch, num_sequences_in_batch: divisors of the two summed losses, for gradients accumulated
                over micro-batches and processes; None for the number of labels in this batch.
            skip_logits: compute the loss only; prediction_logits are None.
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, kwargs: see `HFBertModel.forward`.

        Returns:
            See `HFBertForPreTrainingOutput`; masked_lm_loss and next_sentence_loss are None without their labels.

        Raises:
            ValueError: if the labels do not fit the inputs, or as `HFBertModel.forward`.
        """
        check_tensors(next_sentence_label=next_sentence_label)
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs, logits, masked_lm_loss = self._predict(
            inputs, labels, masked_positions, num_items_in_batch, skip_logits, **kwargs
        )
        if logits is None:
            logits = (None, self.cls.seq_relationship(outputs.pooler_output))
        prediction_logits, seq_relationship_logits = logits
        next_sentence_loss = None
        if next_sentence_label is not None:
            next_sentence_loss = cross_entropy(seq_relationship_logits, next_sentence_label, num_sequences_in_batch)
        losses = [loss for loss in (masked_lm_loss, next_sentence_loss) if loss is not None]
        return HFBertForPreTrainingOutput(
            loss=sum(losses) if losses else None,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            masked_lm_loss=masked_lm_loss,
            next_sentence_loss=next_sentence_loss,
        )

    def _logits(self, outputs: BaseModelOutputWithPooling) -> tuple[torch.Tensor, ...]:
        return self.cls(outputs.last_hidden_state, outputs.pooler_output)


class HFBertForMaskedLM(HFBertMaskedPrediction):
    """MLM head without pooler. With `left_to_right` and next-token labels it is the paper's LTR model."""

    accepts_loss_kwargs = True

    def __init__(self, config: HFBertConfig):
        super().__init__(config)
        self.bert = HFBertModel(config, add_pooling_layer=False)
        self.cls = HFBertPreTrainingHeads(config, next_sentence=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | MaskedLMOutput:
        """Predict masked tokens.

        Args and Raises: as `HFBertForPreTraining.forward`, without the next-sentence task.

        Returns:
            loss, logits as that class's prediction_logits, hidden_states, attentions.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs, logits, loss = self._predict(
            inputs, labels, masked_positions, num_items_in_batch, skip_logits, **kwargs
        )
        return MaskedLMOutput(
            loss=loss,
            logits=None if logits is None else logits[0],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _logits(self, outputs: BaseModelOutputWithPooling) -> tuple[torch.Tensor, ...]:
        return (self.cls(outputs.last_hidden_state),)


# The base model's output and a head's logits.
Prediction: TypeAlias = tuple[BaseModelOutputWithPooling, torch.Tensor]


class HFBertLabelHead(HFBertPreTrainedModel):
    """Base of the heads with one kind of labels. A subclass says how logits are computed and compared with labels."""

    accepts_loss_kwargs = True
    output_class: type[ModelOutput] = SequenceClassifierOutput

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | ModelOutput:
        """Compute logits and, for given labels, the loss.

        Args:
            labels: of the shape and type that the class states.
            num_items_in_batch: divisor of the summed loss; None for the number of labels in this batch.
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, kwargs: see `HFBertModel.forward`.

        Returns:
            loss (None without labels), logits of the shape that the class states, hidden_states, attentions.

        Raises:
            ValueError: if labels and logits do not fit together, or as `HFBertModel.forward`.
        """
        check_tensors(labels=labels)
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs, logits = self._predict(*inputs, **kwargs)
        loss = self._loss(logits, labels, num_items_in_batch) if labels is not None else None
        return self.output_class(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _predict(self, *inputs: torch.Tensor | None, **kwargs: Any) -> Prediction:
        """Return the base model's output on its five inputs, and the logits."""
        raise NotImplementedError

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
        return cross_entropy(logits, labels, num_items)


class HFBertForNextSentencePrediction(HFBertLabelHead):
    """Predict whether segment B follows segment A.

    labels (batch_size,): 0 if B follows A, else 1. logits (batch_size, 2).
    """

    output_class = NextSentencePredictorOutput

    def __init__(self, config: HFBertConfig):
        super().__init__(config)
        self.bert = HFBertModel(config)
        self.cls = HFBertPreTrainingHeads(config, masked_lm=False)
        self.post_init()

    def _predict(self, *inputs: torch.Tensor | None, **kwargs: Any) -> Prediction:
        outputs = self._pool(*inputs, **kwargs)
        return outputs, self.cls(outputs.pooler_output)


class HFBertClassifier(HFBertLabelHead):
    """Base of the heads with dropout and a linear layer, by default on the pooled vector.

    The dropout probability is classifier_dropout or, if None, hidden_dropout_prob.
    """

    def __init__(self, config: HFBertConfig, num_outputs: int, add_pooling_layer: bool = True):
        super().__init__(config)
        self.bert = HFBertModel(config, add_pooling_layer=add_pooling_layer)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = HFBertDropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, num_outputs)
        self.post_init()

    def _predict(self, *inputs: torch.Tensor | None, **kwargs: Any) -> Prediction:
        outputs = self._pool(*inputs, **kwargs)
        return outputs, self.classifier(self.dropout(outputs.pooler_output))


class HFBertForSequenceClassification(HFBertClassifier):
    """Predict a class, several classes or a number for a sentence or a pair of sentences.

    config.problem_type says which; when it is None, the first labels seen settle it (num_labels 1: regression;
    integers: single label). labels by problem type:

    - single_label_classification: (batch_size,) class ids.
    - multi_label_classification: (batch_size, num_labels) of 0 and 1.
    - regression: (batch_size,) or (batch_size, num_labels) numbers.

    logits (batch_size, num_labels).
    """

    def __init__(self, config: HFBertConfig):
        super().__init__(config, config.num_labels)
        self.num_labels = config.num_labels

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
        problem_type = self.config.problem_type or problem_type_of(labels, self.num_labels)
        check_problem_type(problem_type, logits, labels)
        if self.config.problem_type is None:
            self.config.problem_type = problem_type
        return classification_loss(problem_type, logits, labels, num_items)


class HFBertForTokenClassification(HFBertClassifier):
    """Predict a class for every token, as for named entities; no pooler.

    labels (batch_size, sequence_length), -100 for tokens without one. logits (…, sequence_length, num_labels).
    """

    output_class = TokenClassifierOutput

    def __init__(self, config: HFBertConfig):
        super().__init__(config, config.num_labels, add_pooling_layer=False)
        self.num_labels = config.num_labels

    def _predict(self, *inputs: torch.Tensor | None, **kwargs: Any) -> Prediction:
        outputs = self._encode(*inputs, **kwargs)
        return outputs, self.classifier(self.dropout(outputs.last_hidden_state))

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
        return cross_entropy(logits, fit_labels(labels, logits), num_items)


class HFBertForMultipleChoice(HFBertClassifier):
    """Choose one of several texts by a score for each (SWAG, paper section 4.4).

    The inputs have a dimension more, (batch_size, num_choices, sequence_length). labels (batch_size,): the right
    choice. logits (batch_size, num_choices).
    """

    output_class = MultipleChoiceModelOutput

    def __init__(self, config: HFBertConfig):
        super().__init__(config, 1)

    def _predict(self, *inputs: torch.Tensor | None, **kwargs: Any) -> Prediction:
        batch_size, num_choices = check_choices(input_ids=inputs[0], inputs_embeds=inputs[-1])
        check_not_packed("multiple choice", kwargs)
        flat = (value.flatten(0, 1) if isinstance(value, torch.Tensor) else value for value in inputs)
        outputs, logits = super()._predict(*flat, **kwargs)
        return outputs, logits.view(batch_size, num_choices)


class HFBertForQuestionAnswering(HFBertPreTrainedModel):
    """Predict start and end of the answer span (SQuAD, paper section 4.2); no pooler, no dropout."""

    def __init__(self, config: HFBertConfig):
        super().__init__(config)
        self.bert = HFBertModel(config, add_pooling_layer=False)
        # Two outputs, start and end, whatever num_labels a classifier's configuration may carry.
        self.num_labels = 2
        self.qa_outputs = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, ...] | QuestionAnsweringModelOutput:
        """Score every token as start and as end of the answer; the loss is the mean of the two cross-entropies.

        Args:
            start_positions, end_positions: (batch_size,) token indices; those beyond the sequence do not count.
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, kwargs: see `HFBertModel.forward`.

        Returns:
            loss, start_logits and end_logits (batch_size, sequence_length), hidden_states, attentions.

        Raises:
            ValueError: for one of the two labels without the other, packed rows, or as `HFBertModel.forward`.
        """
        check_span(start_positions, end_positions)
        check_not_packed("question answering", kwargs)
        outputs = self._encode(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.qa_outputs(outputs.last_hidden_state)
        start_logits, end_logits = (part.squeeze(-1).contiguous() for part in logits.split(1, dim=-1))
        loss = None
        if start_positions is not None:
            loss = (span_loss(start_logits, start_positions) + span_loss(end_logits, end_positions)) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# save_pretrained copies the code of registered classes; config.json's auto_map names them all.
for _auto_class, _name in HEADS.items():
    globals()[_name].register_for_auto_class(_auto_class)

__all__ = [  # written out: type checkers read no expressions here
    "HFBertForMaskedLM",
    "HFBertForMultipleChoice",
    "HFBertForNextSentencePrediction",
    "HFBertForPreTraining",
    "HFBertForPreTrainingOutput",
    "HFBertForQuestionAnswering",
    "HFBertForSequenceClassification",
    "HFBertForTokenClassification",
    "HFBertModel",
    "HFBertPreTrainedModel",
]
