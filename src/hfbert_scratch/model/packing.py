"""Sequence packing: concatenate a padded batch into one row without padding."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from .kernels_hfbert import IGNORED_LABEL


# Arguments of the model for a packed row beside its tokens, under transformers' names.
PACKED_ARGUMENTS = ("cu_seq_lens_q", "max_length_q")


def pack(batch: Mapping[str, torch.Tensor], pad_token_id: int, multiple_of: int = 1) -> dict[str, Any]:
    """Pack a padded batch into one row for HFBertModel.forward.

    Args:
        batch: `attention_mask` (rows, length), 1 for tokens and 0 for padding; tensors of that shape;
            `masked_positions` (rows, predictions); anything else has an entry per row.
        pad_token_id: token of the padding at the end.
        multiple_of: round the number of tokens up to a multiple of it, so that few shapes occur. The padding forms
            sequences of its own with labels of -100; their number depends on the shapes only, so some are empty.

    Returns:
        The batch without attention_mask: tensors of its shape become (1, tokens), `masked_positions` (1, rows ·
        predictions), anything else (sequences, …). Added: `cu_seq_lens_q` (sequences + 1,) int32 and `max_length_q`,
        the length.

    Raises:
        ValueError: if a sequence of padding would need a floating-point label.
    """
    real = batch["attention_mask"] != 0
    rows, length = real.shape
    indices = real.flatten().nonzero().squeeze(1)  # (tokens,)
    tokens = len(indices)
    total = -(-tokens // multiple_of) * multiple_of
    # The most sequences of padding any batch of this shape can need.
    spare = -(-(multiple_of - 1) // length)
    ends = real.sum(1).cumsum(0)
    spare_ends = (tokens + length * torch.arange(1, spare + 1)).clamp(max=total)
    cu_seqlens = torch.cat([ends.new_zeros(1), ends, spare_ends])
    fills = {"input_ids": pad_token_id, "labels": IGNORED_LABEL}
    packed: dict[str, Any] = {}
    for name, values in batch.items():
        if name == "attention_mask":
            continue
        if name == "masked_positions":
            packed_index = real.flatten().cumsum(0) - 1  # (rows · length,)
            packed[name] = packed_index[values + length * torch.arange(rows)[:, None]].view(1, -1)
        elif values.shape == real.shape:
            packed[name] = F.pad(values.flatten()[indices], (0, total - tokens), value=fills.get(name, 0))[None]
        elif spare and values.is_floating_point():
            raise ValueError(f"{name} is of {values.dtype}: there is no such label for sequences of padding")
        else:
            packed[name] = torch.cat([values, values.new_full((spare, *values.shape[1:]), IGNORED_LABEL)])
    return packed | dict(zip(PACKED_ARGUMENTS, (cu_seqlens.to(torch.int32), length), strict=True))
