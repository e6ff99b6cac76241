# Copyright 2026 The hfbert-scratch authors. Licensed under the Apache License, Version 2.0.
"""Checks of all that enters a model: inputs, masks, positions, labels and the weights of checkpoints.

Each refuses with one sentence that names the argument and the remedy. Values are read on the CPU only, where it costs
nothing. This file travels with every checkpoint: it imports nothing of this package but configuration_hfbert.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.attention.flex_attention import BlockMask
from transformers.utils import logging

from .configuration_hfbert import HFBertConfig, is_transformed


logger = logging.get_logger(__name__)

# Prefixes that wrappers put before the names of weights: DistributedDataParallel, torch.compile, FSDP1, a Lightning
# module's attribute, PEFT.
WRAPPED = re.compile(
    r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module|model|base_model\.model)\.)+|_orig_mod\.|_fsdp_wrapped_module\."
)


def check_tensors(**arguments: Any) -> None:
    """Refuse lists, NumPy arrays and the like by the argument's name; flex attention's BlockMask passes."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor | BlockMask | None):
            raise TypeError(f"{name} is a {type(value).__name__}; it must be a torch.Tensor: torch.as_tensor({name})")


def check_cu_seqlens(
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    shape: torch.Size,
    device: torch.device,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Return a packed row's cu_seq_lens_q on `device`; check its numbers on the CPU only, where reading is free."""
    check_tensors(cu_seq_lens_q=cu_seqlens)
    if shape[0] != 1:
        raise ValueError(
            f"cu_seq_lens_q divides one packed row, and the input has shape {tuple(shape)}; concatenate "
            "its sequences to shape (1, tokens)"
        )
    if attention_mask is not None:
        raise ValueError("a packed row has no padding: leave out attention_mask beside cu_seq_lens_q")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.long, torch.int32):
        raise ValueError(
            f"cu_seq_lens_q is of {cu_seqlens.dtype} and shape {tuple(cu_seqlens.shape)}; it must be of "
            "torch.int32 and shape (sequences + 1,)"
        )
    cu_seqlens = cu_seqlens.to(device)
    if device.type == "cpu" and not is_transformed():
        lengths = cu_seqlens.diff()
        if cu_seqlens[0] != 0 or cu_seqlens[-1] != shape[1] or lengths.min() < 0 or lengths.max() > max_seqlen:
            raise ValueError(
                f"cu_seq_lens_q is {cu_seqlens.tolist()}; it must rise from 0 to the row's {shape[1]} tokens in "
                f"steps of at most {max_seqlen} (max_length_q, or else max_position_embeddings)"
            )
    return cu_seqlens


def check_read_positions(
    read_positions: Any, pooled: torch.Tensor | None, shape: torch.Size, device: torch.device
) -> torch.Tensor:
    """Return positions in the flattened batch, (count,) on `device`, from a tensor or ()."""
    if isinstance(read_positions, tuple) and not read_positions:
        return torch.empty(0, dtype=torch.long, device=device)
    check_tensors(read_positions=read_positions)
    if read_positions.dim() != 1 or read_positions.dtype not in (torch.long, torch.int32):
        raise ValueError(
            f"read_positions is of {read_positions.dtype} and shape {tuple(read_positions.shape)}; it must be of "
            "torch.long and shape (count,): positions in the flattened batch, row · sequence_length + column"
        )
    read_positions = read_positions.to(device, torch.long)
    if device.type == "cpu" and not is_transformed():
        pooled = torch.arange(shape[0], device=device) * shape[1] if pooled is None else pooled
        lowest, highest = (int(bound) for bound in torch.cat([pooled, read_positions]).aminmax())
        if lowest < 0 or highest >= shape.numel():
            raise ValueError(
                f"read_positions go from {lowest} to {highest}; the batch of shape {tuple(shape)} has positions "
                f"0 … {shape.numel() - 1}"
            )
    return read_positions


def check_masked_positions(masked_positions: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse columns of the wrong type or shape or, on the CPU, outside the labels."""
    is_integer = masked_positions.dtype in (torch.long, torch.int32)
    if not is_integer or masked_positions.dim() != 2 or len(masked_positions) != len(labels):
        raise ValueError(
            f"masked_positions is of {masked_positions.dtype} and shape {tuple(masked_positions.shape)}; it must be "
            f"of torch.long and shape ({len(labels)}, predictions): columns of the labels"
        )
    if masked_positions.device.type == "cpu" and masked_positions.numel() and not is_transformed():
        lowest, highest = (int(bound) for bound in masked_positions.aminmax())
        if lowest < 0 or highest >= labels.shape[1]:
            raise ValueError(
                f"masked_positions go from {lowest} to {highest}; the labels have columns 0 … {labels.shape[1] - 1}"
            )


def check_packable(batch: Mapping[str, torch.Tensor], per_row: Collection[str], has_padding: bool) -> None:
    """Raise ValueError if a batch does not fit into a packed row.

    Args:
        batch, per_row: as for `pack`.
        has_padding: the row ends in sequences of padding.
    """
    shape = batch["attention_mask"].shape
    for name, values in batch.items():
        if name in per_row:
            if has_padding and values.is_floating_point():
                raise ValueError(f"{name} is of {values.dtype}: there is no such label for sequences of padding")
        elif name != "masked_positions" and values.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, not {tuple(shape)} as attention_mask; if it has an entry "
                "per row, name it in per_row"
            )


def check_attention_mask(mask: torch.Tensor | BlockMask | None, shape: torch.Size, config: HFBertConfig) -> None:
    """Refuse a mask of the wrong shape or, where values can be read, with wrong numbers."""
    if isinstance(mask, BlockMask) and (
        config._attn_implementation != "flex_attention" or config.left_to_right or config.bilstm
    ):
        raise ValueError(
            "attention_mask is a BlockMask, for flex_attention in models without left_to_right and bilstm; pass a "
            "tensor, or model.set_attn_implementation('flex_attention')"
        )
    if not isinstance(mask, torch.Tensor):
        return
    (batch_size, length), sizes, num_heads = shape, tuple(mask.shape), config.num_attention_heads
    pairs = (sizes[0], 1, *sizes[1:]) if len(sizes) == 3 else sizes
    allowed = ((1, batch_size), (1, num_heads), (1, length), (length,))
    fits = len(pairs) == 4 and all(size in choices for size, choices in zip(pairs, allowed, strict=True))
    if sizes != (batch_size, length) and not fits:
        raise ValueError(
            f"attention_mask has shape {sizes}, the input {tuple(shape)}; a mask is (batch_size, sequence_length) or "
            f"(batch_size, sequence_length, sequence_length), with a dimension for the {num_heads} heads or without"
        )
    if mask.dtype == torch.bool or is_transformed() or mask.device.type not in ("cpu", "cuda"):
        return
    if mask.is_floating_point() and len(sizes) != 2:
        if bool(((mask == 0) | (mask == 1)).all() & (mask == 1).any()):
            raise ValueError(
                f"attention_mask of {mask.dtype} and shape {sizes} holds 0 and 1, and would be added to the scores; "
                "pass attention_mask.bool(), True where a token sees another"
            )
    elif mask.device.type == "cpu" and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"attention_mask of {mask.dtype} and shape {sizes} holds other numbers than 1 for tokens and 0 for padding"
        )


def wrapper_mapping(names: Collection[str]) -> dict[str, str]:
    """Return from_pretrained's `key_mapping` that takes a wrapper's prefix off the names of weights; {} without one.

    Of an unknown wrapper the prefix is what stands before the name of the word embeddings.
    """
    matches = [match for name in sorted(names) for match in WRAPPED.finditer(name)]
    mapping = {("" if match.start() else "^") + re.escape(match[0]): "" for match in matches}
    known = [WRAPPED.sub("", name) for name in names]
    anchor = "embeddings.word_embeddings.weight"
    prefixes = {name.removesuffix(anchor) for name in known if name.endswith(anchor)}
    prefix = re.sub(r"(^|\.)bert\.$", r"\1", prefixes.pop()) if len(prefixes) == 1 else ""
    if prefix:
        has_heads = any(name.startswith(f"{prefix}bert.") for name in known)
        mapping[f"^{re.escape(prefix)}"] = "" if has_heads else "bert."
    return mapping


def check_weight_names(encoder: Collection[str], missing: Collection[str], unexpected: Collection[str]) -> None:
    """Refuse `unexpected` names if most of the `encoder`'s weights are `missing`, which would only be warned about.

    `encoder` names them without "bert." and without the pooler's.
    """
    lost = {name.removeprefix("bert.") for name in missing} & set(encoder)
    wrapped = sorted(filter(WRAPPED.search, unexpected))
    if not unexpected or not (2 * len(lost) > len(encoder) or (missing and wrapped)):
        return
    first, mapping = min(wrapped or unexpected), wrapper_mapping(unexpected)
    lack = f"{len(missing)} weights would be random, {len(lost)} of the encoder's {len(encoder)}"
    if mapping:
        fault = f"a wrapper of the model named the checkpoint's weights ({first}), and {lack}; open it with "
        raise ValueError(f"{fault}from_pretrained(..., key_mapping={mapping})")
    raise ValueError(f"the checkpoint's weights ({first}) do not belong to its config.json: {lack}")


def stock_output_bias(
    state_dict: dict[str, torch.Tensor] | None, checkpoint_files: list[str] | None
) -> torch.Tensor | None:
    """Return the output bias under stock's second name, cls.predictions.decoder.bias; None if there is none."""
    name = "cls.predictions.decoder.bias"
    if state_dict is not None:
        return state_dict.get(name)
    for file in checkpoint_files or ():
        if file.endswith(".safetensors"):
            with safe_open(file, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118, it is no dictionary
                    return tensors.get_tensor(name)
        elif file.endswith(".bin"):
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            if name in tensors:
                return tensors[name]
    return None


def take_stock_output_bias(
    predictions: Any, state_dict: dict[str, torch.Tensor] | None, checkpoint_files: list[str] | None
) -> bool:
    """Give an MLM head the output bias of `stock_output_bias`; return whether there is one.

    Raises:
        ValueError: if it cannot take the head's own bias's place.
    """
    bias = stock_output_bias(state_dict, checkpoint_files)
    if bias is None:
        return False
    own, device = predictions.bias, predictions.transform.dense.bias.device
    if len(bias) != len(own) or device.type == "meta":
        raise ValueError(
            f"the checkpoint holds a second output bias, cls.predictions.decoder.bias, of {len(bias)} numbers, "
            f"which does not fit one of {len(own)} on {device}; convert it first (hfbert convert)"
        )
    predictions.bias = torch.nn.Parameter(bias.to(device, own.dtype))
    predictions.bias._is_hf_initialized = True
    return True


def check_projection(decoder: Any) -> None:
    """Refuse an MLM projection whose vocabulary was not resized together with its bias, or that holds no numbers."""
    weight, bias = decoder.weight, decoder.bias
    if bias is None:
        return
    if weight.is_meta and not bias.is_meta:  # PyTorch computes with whatever memory it finds
        raise ValueError(
            "cls.predictions.decoder.weight is on the meta device, which holds no numbers, and its bias is not: call "
            "model.tie_weights() behind model.to('meta')"
        )
    if weight.dim() == 2 and weight.shape[0] != bias.shape[0]:
        raise ValueError(
            f"the word embeddings hold {weight.shape[0]} tokens and the output bias {bias.shape[0]}; resize the "
            "model with its head, model.resize_token_embeddings(number of tokens), not its encoder alone"
        )


def check_length(sequence_length: int, limit: int) -> None:
    """Refuse a sequence that has more tokens than there are positions."""
    if sequence_length > limit:
        raise ValueError(
            f"a sequence of {sequence_length} tokens does not fit max_position_embeddings={limit}: "
            f"truncate it (tokenizer(..., truncation=True, max_length={limit}))"
        )


def check_choices(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Size:
    """Return (batch_size, num_choices); refuse inputs without a dimension for the choices."""
    check_tensors(input_ids=input_ids, inputs_embeds=inputs_embeds)
    tokens = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
    if tokens is None or tokens.dim() != 3:
        shape = None if tokens is None else tuple(tokens.shape)
        raise ValueError(f"multiple choice takes (batch_size, num_choices, sequence_length), got {shape}")
    return tokens.shape[:2]


def check_inputs(
    config: HFBertConfig,
    ids: dict[str, torch.Tensor | None],
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Size, torch.device]:
    """Return shape (batch_size, sequence_length) and device; refuse inputs that are not 2-D, disagree or do not exist.

    Args:
        ids: input_ids, token_type_ids and position_ids by name.
        inputs_embeds, attention_mask, kwargs: see `HFBertModel.forward`.
    """
    check_no_decoder_inputs(config, kwargs)
    check_tensors(**ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    input_ids = ids["input_ids"]
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    tokens: Any = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
    if tokens.dim() != 2:
        name, shape = "input_ids", "(batch_size, sequence_length)"
        if inputs_embeds is not None:
            tokens, name, shape = inputs_embeds, "inputs_embeds", "(batch_size, sequence_length, hidden_size)"
        raise ValueError(
            f"{name} must have shape {shape}, got {tuple(tokens.shape)}; add the batch dimension with {name}[None]"
        )
    if tokens.numel() == 0:
        raise ValueError(f"the input holds no tokens: its shape is {tuple(tokens.shape)}")
    if inputs_embeds is not None and inputs_embeds.shape[2] != config.hidden_size:
        raise ValueError(
            f"inputs_embeds hold vectors of {inputs_embeds.shape[2]} numbers, and hidden_size is {config.hidden_size}"
        )
    # One row of positions or segments serves every sequence; a mask must be given per sequence.
    shapes = (tokens.shape, (1, tokens.shape[1]), (tokens.shape[1],))
    for name, tensor in ids.items():
        if tensor is not None and tensor.shape not in shapes:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the input {tuple(tokens.shape)}")
        if tensor is not None and tensor.dtype not in (torch.long, torch.int32):
            raise ValueError(f"{name} is of {tensor.dtype}; it must be of torch.long or torch.int32")
    for name, tensor in (*ids.items(), ("attention_mask", attention_mask)):
        # PyTorch reads any memory for it, where it does not fail.
        if isinstance(tensor, torch.Tensor) and tensor.is_meta and not tokens.is_meta:
            raise ValueError(f"{name} is on the meta device, which holds no numbers, the input on {tokens.device}")
    check_attention_mask(attention_mask, tokens.shape, config)
    return tokens.shape, tokens.device


def index_error_message(config: HFBertConfig, ids: dict[str, torch.Tensor | None], embeddings: torch.nn.Module) -> str:
    """Build the message for an id without an embedding. Called only after the lookup failed, on the CPU."""
    fields = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
    if ids["position_ids"] is None:
        ids = ids | {"position_ids": getattr(embeddings, "position_ids", None)}
    for name, tensor in ids.items():
        field = fields.get(name, "max_position_embeddings")
        size = getattr(config, field)
        table = getattr(getattr(embeddings, "word_embeddings", None), "weight", None)
        if name == "input_ids" and table is not None and table.shape[0] != size:
            return (
                f"the word embeddings hold {table.shape[0]} tokens and vocab_size is {size}; resize both with "
                "model.resize_token_embeddings(number of tokens)"
            )
        if tensor is None:
            continue
        bad = (tensor < 0) | (tensor >= size)
        if bad.any():
            place = bad.nonzero()[0].tolist()
            return f"{name}{place} is {int(tensor[bad][0])}; it must be 0 … {size - 1} ({field} {size})"
    return "an id has no embedding"


def check_no_decoder_inputs(config: HFBertConfig, kwargs: dict[str, Any]) -> None:
    """Refuse the arguments of decoders, which an encoder would ignore silently."""
    if kwargs.get("is_causal") not in (None, config.left_to_right):
        raise ValueError(
            f"is_causal={kwargs['is_causal']} contradicts left_to_right={config.left_to_right}, and some attention "
            "implementations would ignore it: set config.left_to_right before the model is made"
        )
    for name in ("encoder_hidden_states", "encoder_attention_mask", "cache", "past_key_values"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} is for decoders, and HFBert is an encoder: leave it out, or use stock bert")


def check_not_packed(task: str, kwargs: dict[str, Any]) -> None:
    """Refuse packed rows in heads whose softmax is over several vectors of a row."""
    if kwargs.get("cu_seq_lens_q") is not None:
        raise ValueError(f"{task} takes padded batches, not packed rows: leave out cu_seq_lens_q")


def check_label_count(labels: torch.Tensor, logits: torch.Tensor, expected: int) -> None:
    """Refuse any other number of labels."""
    if labels.numel() != expected:
        raise ValueError(
            f"{labels.numel()} labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}"
        )


def check_class_ids(labels: torch.Tensor) -> None:
    """Refuse fractions, which would be cut to integers."""
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"the labels are of {labels.dtype}; they must be integers, as of torch.long")


def check_span(start_positions: torch.Tensor | None, end_positions: torch.Tensor | None) -> None:
    """Refuse one end of an answer without the other."""
    if (start_positions is None) != (end_positions is None):
        raise ValueError("give both start_positions and end_positions, or neither")
    check_tensors(start_positions=start_positions, end_positions=end_positions)


def fit_labels(labels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return labels in the shape of the tokens; refuse fractions and shapes that are not theirs.

    Flat labels and dimensions of 1 are theirs, as for stock. Transposed labels would train the wrong tokens.
    """
    shape, sizes = tokens.shape[:2], [size for size in labels.shape if size != 1]
    is_flat = sizes == [math.prod(shape)]
    if labels.shape != shape and not (is_flat or sizes == [size for size in shape if size != 1]):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, the input {tuple(shape)}")
    check_class_ids(labels)
    return labels.reshape(shape)


def check_problem_type(problem_type: str, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse labels of another problem than the configuration's, which a checkpoint remembers."""
    num_labels = logits.shape[-1]
    wanted, expected, fault = f"{num_labels} numbers for each example", logits.numel(), None
    if problem_type == "single_label_classification":
        wanted, expected = "one class id for each example, as of torch.long", logits.shape[0]
        if labels.is_floating_point():
            fault = "fractions would be cut"
        elif num_labels == 1 and not torch.compiler.is_compiling():  # stock computes it too
            logger.warning_once("one class alone: the loss is always 0; set config.problem_type to 'regression'")
    elif problem_type == "multi_label_classification":
        wanted = f"{num_labels} numbers from 0 to 1 for each example"
        if labels.device.type == "cpu" and not is_transformed() and ((labels < 0) | (labels > 1)).any():
            fault = f"they go from {labels.min()} to {labels.max()}"
    elif problem_type != "regression":
        fault, wanted = "there is no such problem", "nothing"
    if labels.numel() != expected:
        fault = f"{labels.numel()} labels of shape {tuple(labels.shape)} do not fit logits of shape "
        fault += f"{tuple(logits.shape)}"
    if fault is not None:
        raise ValueError(
            f"labels of {labels.dtype} and shape {tuple(labels.shape)} are not config.problem_type="
            f"{problem_type!r}, which takes {wanted}: {fault}; set config.problem_type to 'regression', "
            "'single_label_classification' or 'multi_label_classification', as the labels are"
        )
