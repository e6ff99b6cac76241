"""Pseudo-log-likelihood of sentences: score_sentences() against the loops that are usually written.

    python benchmarks/sentence_scoring.py --size mini --sentences 60

One loop masks a token, runs stock BertForMaskedLM on the sentence and goes on to the next token. The other makes a
batch of a sentence's masked copies and takes the diagonal of the logits. All sides have the same weights, in float32,
and tokenize. Sentences have as many tokens as BLiMP's, 4 to 20.

A sentence of n tokens costs n² tokens of encoder either way; what can be saved is the vocabulary, which only n of them
need, most of the last layer, and batches too small for the device. So a small model or a GPU gains most.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from harness import compare, record
from transformers import BertConfig, BertForMaskedLM

from hfbert_scratch import HFBertConfig, HFBertForMaskedLM
from hfbert_scratch.model.inference import inference_copy
from hfbert_scratch.scoring import score_sentences
from hfbert_scratch.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


VOCAB_SIZE = 30522


@dataclass(kw_only=True)
class BenchmarkArguments:
    """The command line."""

    size: str = argument("mini", help="tiny, mini, small, medium, base, large")
    sentences: int = argument(60, help="how many", at_least=1)
    pairs: int = argument(5, help="timed runs of each side", at_least=1)


@command_line
def main() -> None:
    """Compare and record."""
    arguments = parse_arguments(BenchmarkArguments, description=__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    words = [f"w{number}" for number in range(len(SPECIAL_TOKENS), VOCAB_SIZE)]
    tokenizer = bert_tokenizer({token: i for i, token in enumerate((*SPECIAL_TOKENS, *words))}, lowercase=True)
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 21, arguments.sentences)
    sentences = [" ".join(rng.choice(words, length)) for length in lengths]
    torch.manual_seed(0)
    ours = HFBertForMaskedLM(HFBertConfig.from_size(arguments.size)).eval().to(device)
    known = BertConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    stock = BertForMaskedLM(BertConfig(**{k: v for k, v in ours.config.to_dict().items() if k in known})).eval()
    stock.load_state_dict(ours.state_dict(), strict=False)
    stock.tie_weights()
    stock.to(device)
    model = inference_copy(ours)

    def batched() -> np.ndarray:
        return np.array([score.total for score in score_sentences(model, tokenizer, sentences)])

    def loop(copies_at_a_time: int) -> np.ndarray:
        totals = []
        for sentence in sentences:
            ids = tokenizer(sentence, return_tensors="pt")["input_ids"][0].to(device)
            total = 0.0
            for places in torch.arange(1, len(ids) - 1, device=device).split(copies_at_a_time):
                rows = torch.arange(len(places), device=device)
                copies = ids.repeat(len(places), 1)
                copies[rows, places] = tokenizer.mask_token_id
                with torch.inference_mode():
                    logits = stock(copies).logits[rows, places]
                total += logits.log_softmax(-1).gather(1, ids[places][:, None]).sum().item()
            totals.append(total)
        return np.array(totals)

    for name, copies in (("token by token", 1), ("sentence by sentence", 10**6)):
        difference = float(np.abs(batched() - loop(copies)).max())
        result = compare(batched, partial(loop, copies), arguments.pairs, warmup=1)
        result |= {"sentences_per_second": arguments.sentences / result["ours_seconds"]}
        result |= {"largest_difference": difference}
        record(f"sentence scoring, {arguments.size}, {arguments.sentences} sentences, float32, against {name}", result)


if __name__ == "__main__":
    main()
