"""A full pretraining step (forward, backward, clipping, AdamW, dropout 0.1): HFBert against stock BertForPreTraining.

    python benchmarks/pretraining_step.py --size base --batch_size 16 --sequence_length 128 --precision bfloat16

Both sides get the same batch, a tenth of its rows short. Stock is what a user would write: BertForPreTraining with
sdpa attention, autocast and torch.optim.AdamW. Useful FLOP/s count real tokens and predicted positions alone.

On a GPU our side gets what recipes/pretrain.py gives it there: the places of the predictions, and with --packing one
row of tokens, rounded up as there. On an H200 `share_of_h200_goal` says how far it is to H200_GOALS:

    python benchmarks/pretraining_step.py --size base --batch_size 256 --packing true --compile true
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import compare, memory_as_usual, peak_memory_above, record
from torch import nn
from transformers import BertConfig, BertForPreTraining, PreTrainedModel

from hfbert_scratch import HFBertConfig, HFBertForPreTraining
from hfbert_scratch.model.attention import fastest_attention
from hfbert_scratch.model.gpu import compile_layers, train_on_gpu
from hfbert_scratch.model.layout_hfbert import pack
from hfbert_scratch.model.onednn import onednn_is_faster, train_with_onednn
from hfbert_scratch.pretraining import packed_multiple
from hfbert_scratch.training.batches import on_device
from hfbert_scratch.training.hardware.throughput import model_flops_per_token, peak_flops
from hfbert_scratch.training.optimizers import create_optimizer
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import disable_malloc_trim
from hfbert_scratch.utils.errors import command_line


# Real tokens/s in bfloat16 that one H200 should make, by size and length: 41 to 45 % of its 989 TFLOP/s. On an H100
# nanochat's 12×768 decoder reaches 41 % (dev/LOG.md); MLPerf's BERT (large, 512, packed) 50 % on an H200, with FP8.
H200_GOALS = {("base", 128): 740e3, ("base", 512): 690e3, ("large", 128): 235e3, ("large", 512): 220e3}


@dataclass(kw_only=True)
class BenchmarkArguments:
    """The command line."""

    size: str = argument("base", help="tiny, mini, small, medium, base, large")
    batch_size: int = argument(16, help="sequences per step")
    sequence_length: int = argument(128, help="tokens a row is padded to")
    real_share: float = argument(0.0, help="share of real tokens; 0: full rows but for a tenth of short ones")
    precision: str = argument("bfloat16", help="bfloat16 (autocast) or float32")
    vocab_size: int = argument(30522, help="tokens")
    dropout: float = argument(0.1, help="of hidden states and attention")
    attention: str = argument("auto", help="of our side: eager, sdpa, hfbert_unpadded, or auto as in training")
    onednn: str = argument(
        "auto", help="of our side: float32 linear layers by oneDNN: true, false, or auto as in training"
    )
    packing: bool = argument(False, help="of our side: one row of tokens in place of a padded batch")
    compile: str = argument("false", help="of our side: layers, true (the whole model) or false")
    backend: str = argument("inductor", help="of torch.compile")
    pairs: int = argument(5, help="timed steps of each side")


def make_batch(arguments: BenchmarkArguments, device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A batch as the collator makes it, and the rows' lengths."""
    torch.manual_seed(0)
    rows, width = arguments.batch_size, arguments.sequence_length
    if arguments.real_share:
        lengths = torch.randint(4, max(5, int(2 * arguments.real_share * width)), (rows,)).clamp(max=width)
    else:
        lengths = torch.where(torch.arange(rows) % 10 == 0, width // 2, width)
    real = torch.arange(width) < lengths[:, None]
    input_ids = torch.where(real, torch.randint(5, arguments.vocab_size, (rows, width)), 0)
    labels = torch.full((rows, width), -100)
    for row, length in enumerate(lengths.tolist()):
        chosen = 1 + torch.randperm(length - 2)[: max(1, round(0.15 * length))]
        labels[row, chosen] = input_ids[row, chosen]
    batch = {
        "input_ids": input_ids,
        "attention_mask": real.long(),
        "token_type_ids": (torch.arange(width) > lengths[:, None] // 2).long() * real,
        "labels": labels,
        "next_sentence_label": torch.arange(rows) % 2,
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}, lengths


def our_inputs(arguments: BenchmarkArguments, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The batch as training gives it to our model."""
    static = batch["input_ids"].device.type != "cpu" or arguments.compile != "false"
    inputs: dict[str, Any] = {name: tensor.cpu() for name, tensor in batch.items()}
    if static:
        predicted = inputs["labels"] != -100
        places = predicted.int().argsort(dim=1, descending=True, stable=True)[:, : int(predicted.sum(1).max())]
        inputs["masked_positions"] = torch.where(predicted.gather(1, places), places, 0)
    if arguments.packing:
        rows, width = batch["input_ids"].shape
        inputs = pack(inputs, 0, packed_multiple(rows, width) if static else 1)
    return on_device(inputs, batch["input_ids"].device) | {"skip_logits": True}


def step_function(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Any], precision: str
) -> Callable[[], None]:
    """One optimizer step of `model` on `batch`."""
    device = next(model.parameters()).device
    model.train()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def uses_onednn(arguments: BenchmarkArguments) -> bool:
    """Return whether our side's linear layers are oneDNN's."""
    return onednn_is_faster() if arguments.onednn == "auto" else arguments.onednn == "true"


def build(
    arguments: BenchmarkArguments, side: str, device: torch.device
) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """The model and optimizer of "ours" or of "stock"."""
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), arguments.dropout)
    config = HFBertConfig.from_size(arguments.size, vocab_size=arguments.vocab_size, **dropout)
    if side == "stock":
        names = BertConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
        stock_config = BertConfig(**{name: value for name, value in config.to_dict().items() if name in names})
        stock: Any = BertForPreTraining(stock_config)  # its `to` is decorated, which hides the signature
        stock.to(device)
        return stock, torch.optim.AdamW(stock.parameters(), lr=1e-4)
    ours: Any = HFBertForPreTraining(config)
    ours.to(device)
    if device.type == "cuda" and arguments.precision == "bfloat16":
        train_on_gpu(ours)
    if arguments.compile == "layers":
        compile_layers(ours, backend=arguments.backend)
    elif arguments.compile == "true":
        ours.compile(backend=arguments.backend)
    elif arguments.precision == "float32" and uses_onednn(arguments):
        train_with_onednn(ours)
    attention = arguments.attention
    if attention == "auto":
        attention = fastest_attention(
            ours, device, getattr(torch, arguments.precision), arguments.dropout, arguments.packing
        )
    ours.set_attn_implementation(attention)
    return ours, create_optimizer("adamw", ours, learning_rate=1e-4)


def small_and_whole_step(arguments: BenchmarkArguments, side: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """For `peak_memory_above`, on the CPU."""
    if side == "ours":
        disable_malloc_trim()
    device = torch.device("cpu")
    model, optimizer = build(arguments, side, device)
    batch, _ = make_batch(arguments, device)
    steps = []
    for rows in (1, arguments.batch_size):
        inputs: dict[str, Any] = {name: tensor[:rows] for name, tensor in batch.items()}
        inputs = our_inputs(arguments, inputs) if side == "ours" else inputs
        steps.append(step_function(model, optimizer, inputs, arguments.precision))
    return steps[0], steps[1]


@command_line
def main() -> None:
    """Compare and record."""
    arguments = parse_arguments(BenchmarkArguments, description=__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch, lengths = make_batch(arguments, device)
    (ours, optimizer), (stock, stock_optimizer) = (build(arguments, side, device) for side in ("ours", "stock"))
    result = compare(
        step_function(ours, optimizer, our_inputs(arguments, batch), arguments.precision),
        step_function(stock, stock_optimizer, batch, arguments.precision),
        arguments.pairs,
        before=(disable_malloc_trim, memory_as_usual),
    )
    tokens, squared = int(lengths.sum()), int((lengths**2).sum())
    predicted = int((batch["labels"] != -100).sum())
    flops = tokens * model_flops_per_token(ours.config, squared / tokens, predicted / tokens)
    peak, _ = peak_flops(device, torch.bfloat16 if arguments.precision == "bfloat16" else torch.float32)
    result |= {
        "tokens_per_second": tokens / result["ours_seconds"],
        "useful_gflops": flops / result["ours_seconds"] / 1e9,
        "theirs_useful_gflops": flops / result["theirs_seconds"] / 1e9,
        "share_of_peak": flops / result["ours_seconds"] / peak,
    }
    if device.type == "cpu":
        memory = [peak_memory_above(small_and_whole_step, arguments, side) for side in ("ours", "stock")]
        result |= {"peak_mib": memory[0], "theirs_peak_mib": memory[1], "memory_ratio": memory[0] / memory[1]}
    elif "H200" in torch.cuda.get_device_name(device) and arguments.precision == "bfloat16":
        goal = H200_GOALS.get((arguments.size, arguments.sequence_length))
        if goal:
            result["share_of_h200_goal"] = result["tokens_per_second"] / goal
    shape = f"{arguments.size} {arguments.batch_size}x{arguments.sequence_length}"
    lengths_name = f", {arguments.real_share:.0%} real tokens" if arguments.real_share else ""
    ways = ", packing" if arguments.packing else ""
    ways += {"false": "", "true": ", compile"}.get(arguments.compile, f", compile {arguments.compile}")
    ways += {"true": ", oneDNN", "false": ", without oneDNN"}.get(arguments.onednn, "")
    record(f"pretraining step, {shape}, {arguments.precision}{lengths_name}{ways}", result)


if __name__ == "__main__":
    main()
