"""Packed rows: the sequences of a batch one behind the other in one row, in place of a padded batch."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from .kernels_hfbert import IGNORED_LABEL


# What the model is told of a packed row beside its tokens, under transformers' names.
PACKED_ARGUMENTS = ("cu_seq_lens_q", "max_length_q")


def pack(batch: Mapping[str, torch.Tensor], pad_token_id: int, multiple_of: int = 1) -> dict[str, Any]:
    """`batch` as a packed row, as HFBertModel.forward takes it.

    batch: `attention_mask` (rows, length), 1 for tokens and 0 for padding; tensors of that shape, which become
    (1, tokens) without the padding; `masked_positions` (rows, predictions) become (1, rows · predictions); anything
    else has an entry per row. Added are `cu_seq_lens_q` (sequences + 1,) int32 and `max_length_q`, the length.

    multiple_of: the number of tokens is rounded up to a multiple of it, so that few shapes occur: padding follows, as
    sequences of its own, always as many, some of them empty, whose labels are -100.

    Raises ValueError where such a sequence would need a label that is no integer.
    """
    real = batch["attention_mask"] != 0
    rows, length = real.shape
    places = real.flatten().nonzero().squeeze(1)
    tokens = len(places)
    total = -(-tokens // multiple_of) * multiple_of
    spare = -(-(multiple_of - 1) // length)
    ends = real.sum(1).cumsum(0)
    boundaries = torch.cat([ends.new_zeros(1), ends, (tokens + length * torch.arange(1, spare + 1)).clamp(max=total)])
    fills = {"input_ids": pad_token_id, "labels": IGNORED_LABEL}
    packed: dict[str, Any] = {}
    for name, values in batch.items():
        if name == "attention_mask":
            continue
        if name == "masked_positions":
            in_row = real.flatten().cumsum(0) - 1
            packed[name] = in_row[values + length * torch.arange(rows)[:, None]].view(1, -1)
        elif values.shape == real.shape:
            packed[name] = F.pad(values.flatten()[places], (0, total - tokens), value=fills.get(name, 0))[None]
        elif spare and values.is_floating_point():
            raise ValueError(f"{name} is of {values.dtype}: there is no such label for sequences of padding")
        else:
            packed[name] = torch.cat([values, values.new_full((spare, *values.shape[1:]), IGNORED_LABEL)])
    return packed | dict(zip(PACKED_ARGUMENTS, (boundaries.to(torch.int32), length), strict=True))
