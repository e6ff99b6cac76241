"""Sentence vectors of texts of mixed length: encode() against what a user would write or pick instead.

    python benchmarks/inference.py --size minilm --texts 600 --precision float32

Against stock BertModel with the texts in the given order, 32 at a time, padded to the longest; and, where they are
installed, against sentence-transformers with its defaults (it sorts, too) and, in float32, against ONNX Runtime on our
export with the texts sorted. All with the same weights, the same dtype,
mean pooling, tokenization included. Useful FLOP/s count real tokens alone.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import compare, record
from transformers import BertConfig, BertModel

from hfbert_scratch import HFBertConfig, HFBertModel
from hfbert_scratch.conversion.export import export
from hfbert_scratch.conversion.source import INPUTS
from hfbert_scratch.features.encoder import encode
from hfbert_scratch.model.inference import inference_copy
from hfbert_scratch.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer, save_tokenizer
from hfbert_scratch.training.hardware.throughput import model_flops_per_token, peak_flops
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


BATCH_SIZE = 32
VOCAB_SIZE = 30522


@dataclass(kw_only=True)
class BenchmarkArguments:
    """The command line."""

    size: str = argument("minilm", help="minilm (6 layers of 384), tiny, mini, small, medium, base, large")
    texts: int = argument(600, help="how many")
    mean_tokens: int = argument(40, help="mean length of a text; the lengths are log-normal")
    precision: str = argument("float32", help="float32 or bfloat16")
    batch_tokens: int | None = argument(None, help="of encode(); default: its own")
    pairs: int = argument(5, help="timed runs of each side")


def make_texts(count: int, mean_tokens: int) -> list[str]:
    """Texts of words that are tokens, at most 510."""
    rng = np.random.default_rng(0)
    sigma = 0.7
    lengths = rng.lognormal(np.log(mean_tokens) - sigma**2 / 2, sigma, count).round().clip(1, 510).astype(int)
    return [" ".join(f"w{word}" for word in rng.integers(len(SPECIAL_TOKENS), VOCAB_SIZE, n)) for n in lengths]


def make_models(size: str) -> tuple[HFBertModel, BertModel]:
    """Ours and stock's with the same random weights."""
    if size == "minilm":
        config = HFBertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    else:
        config = HFBertConfig.from_size(size)
    torch.manual_seed(0)
    ours = HFBertModel(config).eval()
    known = BertConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    stock = BertModel(BertConfig(**{name: value for name, value in config.to_dict().items() if name in known})).eval()
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def padded_in_order(model: BertModel, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """What is usually written: (texts, hidden_size)."""
    found = []
    with torch.no_grad():
        for begin in range(0, len(texts), BATCH_SIZE):
            inputs = tokenizer(texts[begin : begin + BATCH_SIZE], padding=True, truncation=True, return_tensors="pt")
            inputs = inputs.to(model.device)
            states = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None]
            found.append(((states * mask).sum(1) / mask.sum(1)).cpu())
    return torch.cat(found).numpy()


def sentence_transformer(
    model: BertModel, tokenizer: Any, directory: Path, dtype: torch.dtype
) -> Callable[[list[str]], np.ndarray] | None:
    """sentence-transformers with the same weights, or None where it is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer
    except ImportError as error:
        print(f"sentence-transformers is not installed ({error}); that comparison is left out")
        return None
    model.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    transformer = Transformer(str(directory), max_seq_length=512)
    pooling = Pooling(model.config.hidden_size, pooling_mode="mean")
    theirs = SentenceTransformer(modules=[transformer, pooling], device=str(model.device)).to(dtype)

    def run(texts: list[str]) -> np.ndarray:
        vectors = theirs.encode(texts, batch_size=BATCH_SIZE, convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().cpu().numpy()

    return run


def onnx_runtime(ours: HFBertModel, tokenizer: Any, directory: Path) -> Callable[[list[str]], np.ndarray] | None:
    """ONNX Runtime on our export, texts sorted by length, or None where its packages are not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        print(f"onnxruntime is not installed ({error}); that comparison is left out")
        return None
    ours.save_pretrained(directory / "ours")
    save_tokenizer(tokenizer, directory / "ours")
    export(directory / "ours", directory / "onnx", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = str(directory / "onnx" / "onnx" / "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        found = np.empty((len(texts), ours.config.hidden_size), dtype=np.float32)
        for begin in range(0, len(order), BATCH_SIZE):
            chosen = order[begin : begin + BATCH_SIZE]
            batch = [texts[number] for number in chosen]
            inputs = dict(tokenizer(batch, padding=True, truncation=True, return_tensors="np"))
            (states,) = session.run(["last_hidden_state"], {name: inputs[name].astype(np.int64) for name in INPUTS})
            mask = inputs["attention_mask"][..., None]
            found[chosen] = (states * mask).sum(1) / mask.sum(1)
        return found

    return run


@command_line
def main() -> None:
    """Compare and record."""
    arguments = parse_arguments(BenchmarkArguments, description=__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, arguments.precision)
    texts = make_texts(arguments.texts, arguments.mean_tokens)
    words = [f"w{number}" for number in range(len(SPECIAL_TOKENS), VOCAB_SIZE)]
    tokenizer = bert_tokenizer({token: i for i, token in enumerate((*SPECIAL_TOKENS, *words))}, lowercase=True)
    models: Any = make_models(arguments.size)  # their `to` is decorated, which hides the signature
    ours, stock = (model.to(device) for model in models)
    model = inference_copy(ours, dtype)

    def encoded() -> np.ndarray:
        vectors = encode(model, tokenizer, texts, pooling="mean", batch_tokens=arguments.batch_tokens)
        return np.concatenate([features.vectors for features in vectors])

    lengths = np.array([len(text.split()) + 2 for text in texts])
    tokens, squared = int(lengths.sum()), int((lengths**2).sum())
    # Forward alone is a third of forward and backward.
    flops = tokens * model_flops_per_token(ours.config, squared / tokens, 0.0) / 3
    peak, _ = peak_flops(device, dtype)
    workload = f"{arguments.size}, {arguments.texts} texts of {arguments.mean_tokens} tokens, {arguments.precision}"
    with tempfile.TemporaryDirectory() as directory:
        others: dict[str, Callable[[list[str]], np.ndarray] | None] = {
            "padded BertModel": partial(padded_in_order, stock, tokenizer),
            "sentence-transformers": sentence_transformer(stock, tokenizer, Path(directory), dtype),
        }
        if dtype == torch.float32 and device.type == "cpu":
            others["ONNX Runtime"] = onnx_runtime(ours, tokenizer, Path(directory))
        stock.to(dtype)
        for other, theirs in others.items():
            if theirs is None:
                continue
            difference = float(np.abs(encoded() - theirs(texts)).max())
            result = compare(encoded, partial(theirs, texts), arguments.pairs, warmup=1)
            result |= {
                "texts_per_second": len(texts) / result["ours_seconds"],
                "useful_gflops": flops / result["ours_seconds"] / 1e9,
                "theirs_useful_gflops": flops / result["theirs_seconds"] / 1e9,
                "share_of_peak": flops / result["ours_seconds"] / peak,
                "largest_difference": difference,
            }
            record(f"inference, {workload}, against {other}", result)


if __name__ == "__main__":
    main()
