"""Several corpora in one run: exact shares in every stretch, the same after a stop, and losses of each."""

import json
import shutil

import numpy as np
import pytest
from corpus_helpers import build, documents
from training_helpers import arguments, pretrain_here, read_losses

from hfbert_scratch.corpus.arguments import PretrainingDataArguments
from hfbert_scratch.corpus.mixture import MixedCursor, MixedSampler, Mixture, next_counts, source_of
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.utils.errors import InputError


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, tokenizer):
    """Three corpora of other sizes, and their tokenizer."""
    directory = tmp_path_factory.mktemp("mixture")
    for name, count in (("large", 160), ("middle", 60), ("small", 20)):
        options = {"max_seq_length": 64, "validation_share": 0.2}
        build(directory, documents(count, seed=count), tokenizer, name, **options)
    save_tokenizer(tokenizer, directory / "tokenizer")
    return directory


def open_mixture(mixed, tokenizer, *words, **options) -> Mixture:
    return Mixture.open([str(mixed / word) for word in words], tokenizer, 64, **options)


def sampler(mixture: Mixture, length: int = 32) -> MixedSampler:
    return PretrainingDataArguments(seed=1).mixed_sampler(mixture.split("train"), length)


@pytest.mark.parametrize("weights", [(3, 1), (1, 1, 1), (100, 1), (0.61, 0.29, 0.1), (5, 3, 2, 1, 1)])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_shares_are_exact_within_rounding_in_every_stretch(weights, batch_size):
    shares = np.array(weights) / sum(weights)
    drawn = [np.zeros(len(shares), dtype=np.int64)]
    for _ in range(400):
        counts = next_counts(shares, drawn[-1], batch_size)
        assert counts.sum() == batch_size and counts.min() >= 0
        drawn.append(drawn[-1] + counts)
    table = np.array(drawn)
    off = table - np.arange(401)[:, None] * batch_size * shares
    # A stretch is the difference of two places.
    assert np.ptp(off, axis=0).max() < 2
    assert np.abs(off).max() < 1


def test_batches_hold_the_instances_of_each_corpus_in_its_own_order(mixed, tokenizer):
    mixture = open_mixture(mixed, tokenizer, "large:3", "small:1")
    both = sampler(mixture)
    stream = both.batches(16)
    batches = [next(stream) for _ in range(60)]
    for number, alone in enumerate(both.samplers):
        own = [batch[source_of(batch) == number] for batch, _ in batches]
        assert {len(part) for part in own} == {(12, 4)[number]}
        expected = alone.batches(len(own[0]))
        for part in own:
            want, _ = next(expected)
            for name in ("a_start", "a_length", "b_start", "b_length", "next_sentence_label", "epoch"):
                assert np.array_equal(getattr(part, name), getattr(want, name))
            rows, reference = both.to_batch(part), alone.to_batch(want)
            assert all(np.array_equal(rows[name], reference[name]) for name in reference)
    # Every half of a batch has about its part, for the processes that share it.
    assert all(4 <= (source_of(batch)[:8] == 0).sum() <= 8 for batch, _ in batches)
    # From any cursor on, through JSON, the same batches.
    saved = json.loads(json.dumps(batches[20][1]))
    again = both.batches(16, MixedCursor.restore(saved))
    for batch, cursor in batches[21:40]:
        other, place = next(again)
        assert place == cursor and np.array_equal(other.index, batch.index)
        assert np.array_equal(other.a_start, batch.a_start)
    with pytest.raises(InputError, match="at least 1, not 0"):
        next(both.batches(0))


def test_weights_by_size_and_temperature(mixed, tokenizer):
    names = ("large", "middle", "small")
    sizes = np.array(
        [open_mixture(mixed, tokenizer, name).corpora[0].manifest["splits"]["train"]["tokens"] for name in names]
    )
    assert open_mixture(mixed, tokenizer, *names).shares == pytest.approx(sizes / sizes.sum())
    warm = sizes ** (1 / 3)
    assert open_mixture(mixed, tokenizer, *names, temperature=3.0).shares == pytest.approx(warm / warm.sum())
    assert open_mixture(mixed, tokenizer, "large:3", "small:1e0").shares == [0.75, 0.25]
    mixture = open_mixture(mixed, tokenizer, *names)
    assert mixture.epochs(2 * int(sizes.sum())) == dict.fromkeys(names, 2.0)
    for words, message in {
        ("large:2", "small"): "give every corpus a weight, as DIRECTORY:WEIGHT, or none",
        ("large:0", "small:1"): r"large:0: the weight must be a number above 0",
        ("large:1e", "small:1"): r"large:1e: the weight must be a number above 0",
        ("large:1", "large:2"): "names a directory more than once",
        ("large:1", "none:2"): "no corpus directory .*none;",
    }.items():
        with pytest.raises(InputError, match=message):
            open_mixture(mixed, tokenizer, *words)


def test_a_run_on_a_mixture_stops_and_goes_on_and_tells_the_loss_of_each(mixed, monkeypatch, tmp_path, capsys):
    inputs = {"tokenizer": mixed / "tokenizer", "corpus": "x"}
    words = ["--corpus", f"{mixed / 'large'}:3", "--corpus", f"{mixed / 'small'}:1"]

    def run(name, *more, corpora=words):
        line = arguments(inputs, tmp_path / name, max_steps=12, warmup_steps=2, eval_every=6, save_every=4)
        place = line.index("--corpus")
        return pretrain_here(monkeypatch, [*line[:place], *line[place + 2 :], *corpora, *more])

    assert run("whole") == 0
    printed = capsys.readouterr().out
    assert "epochs large " in printed and "; MLM loss on large " in printed and "epochs so far: large " in printed
    record = json.loads((tmp_path / "whole" / "record.json").read_text())
    assert [entry["share"] for entry in record["corpus"]["mixture"]] == [0.75, 0.25]
    assert set(record["derived"]["epochs"]) == {"large", "small"}
    results = record["results"]
    separate = [results[f"eval_masked_lm_loss_{name}"] for name in ("large", "small")]
    assert min(separate) <= results["eval_masked_lm_loss"] <= max(separate)
    # Killed after step 8: the checkpoint of step 8 is the newest.
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for path in (tmp_path / "again" / "checkpoints").glob("step-*12"):
        shutil.rmtree(path)
    assert run("again") == 0
    assert read_losses(tmp_path / "again") == read_losses(tmp_path / "whole")
    other = ["--corpus", f"{mixed / 'large'}:2", f"{mixed / 'small'}:1"]
    shutil.rmtree(next(iter((tmp_path / "again" / "checkpoints").glob("step-*12"))))
    assert run("again", corpora=other) == 6
    assert "corpus" in capsys.readouterr().err
