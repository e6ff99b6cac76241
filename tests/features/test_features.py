"""Features: equal to a plain forward pass of each text alone, in order, in files, and after a kill."""

import gzip
import importlib
import json
import os
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from corpus_helpers import documents, small_tokenizer
from helpers import TINY, make, pair, save_wrapped
from torch.nn.utils import prune
from training_helpers import RECIPES, environment

from hfbert_scratch.features.encoder import EncoderInput, encode, encode_inputs, load_encoder, weights_hash
from hfbert_scratch.features.files import FORMATS, TextFile
from hfbert_scratch.model.inference import inference_copy
from hfbert_scratch.model.onednn import PackedLinear, has_onednn
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.utils.errors import InputError, OutputError


LIMIT = TINY["max_position_embeddings"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = small_tokenizer()
    tokenizer.model_max_length = LIMIT
    return tokenizer


@pytest.fixture(scope="module")
def texts() -> list:
    """Of mixed length, from nothing to longer than the model takes, and some pairs."""
    prose = [text.replace("\n", " ") for text in documents(70, seed=3)]
    cut = [text[: 3 * number] for number, text in enumerate(prose)]
    return [
        (text, other) if number % 5 == 4 else text for number, (text, other) in enumerate(zip(cut, prose, strict=True))
    ]


@pytest.fixture(scope="module")
def models(tokenizer):
    """Ours and stock's with the same weights."""
    return pair("base", vocab_size=len(tokenizer))


def plain(stock, tokenizer, text) -> transformers.utils.ModelOutput:
    """The forward pass a user would write for one text."""
    inputs = tokenizer(*([text] if isinstance(text, str) else text), truncation=True, return_tensors="pt")
    with torch.no_grad():
        return stock(**inputs, output_hidden_states=True)


# -------------------------------------------------------------------------------------------------------- encode


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_token_vectors_equal_the_plain_forward_pass_of_each_text_in_the_given_order(
    models, tokenizer, texts, batch_tokens
):
    ours, stock = models
    layers = (0, 1, -1)
    features = list(encode(ours, tokenizer, iter(texts), layers=layers, batch_tokens=batch_tokens))
    assert len(features) == len(texts)
    for text, got in zip(texts, features, strict=True):
        states = plain(stock, tokenizer, text).hidden_states
        expected = torch.stack([states[layer][0] for layer in layers]).numpy()
        assert got.vectors.shape == expected.shape and got.vectors.dtype == np.float32
        assert got.input_ids.shape == expected.shape[1:2]
        assert np.abs(got.vectors - expected).max() <= TOLERANCE


def test_poolings_leave_padding_out(models, tokenizer, texts):
    ours, stock = models
    for pooling, reduce in {
        "mean": lambda output: output.last_hidden_state[0].mean(0),
        "max": lambda output: output.last_hidden_state[0].amax(0),
        "cls": lambda output: output.last_hidden_state[0, 0],
        "pooler": lambda output: output.pooler_output[0],
    }.items():
        for text, got in zip(texts, encode(ours, tokenizer, texts, pooling=pooling, batch_tokens=500), strict=True):
            assert got.vectors.shape == (1, TINY["hidden_size"])
            assert np.abs(got.vectors[0] - reduce(plain(stock, tokenizer, text)).numpy()).max() <= TOLERANCE


def test_rows_with_positions_give_those_tokens_alone(models):
    ours, _ = models
    rng = np.random.default_rng(0)
    rows = []
    for length in (4, 30, 9):
        ids = rng.integers(5, 99, length).astype(np.int32)
        rows.append(EncoderInput(ids, np.zeros_like(ids), positions=np.array([2, 0])))
    for row, (same, vectors) in zip(rows, encode_inputs(ours, rows, layers=(0, -1)), strict=True):
        assert same is row
        ((_, everything),) = encode_inputs(ours, [EncoderInput(row.input_ids, row.token_type_ids)], layers=(0, -1))
        assert np.abs(vectors - everything[:, [2, 0]]).max() <= TOLERANCE


def test_batches_keep_to_the_token_budget_and_hold_little_padding(models, tokenizer, texts):
    ours, _ = models
    shapes, real = [], []

    def watch(module, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        real.append(int(kwargs["attention_mask"].sum()))

    hook = ours.register_forward_pre_hook(watch, with_kwargs=True)
    list(encode(ours, tokenizer, texts, batch_tokens=200))
    hook.remove()
    assert all(rows * width <= 200 or rows == 1 for rows, width in shapes) and len(shapes) > 5
    assert sum(real) >= 0.9 * sum(rows * width for rows, width in shapes)


def test_texts_are_taken_as_they_are_needed(models, tokenizer):
    ours, _ = models
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield "bada keko"

    features = encode(ours, tokenizer, endless(), batch_tokens=16)
    assert not taken
    next(features)
    assert len(taken) <= 1024


def test_truncation_is_counted_and_gives_what_the_tokenizer_keeps(models, tokenizer):
    ours, _ = models
    long, short = "bada keko " * 50, "bada"
    whole = len(tokenizer(long, verbose=False)["input_ids"])
    got = list(encode(ours, tokenizer, [short, long, (long, short)], max_seq_length=12))
    assert [features.num_truncated for features in got] == [
        0,
        whole - 12,
        len(tokenizer(long, short, verbose=False)["input_ids"]) - 12,
    ]
    expected = tokenizer(long, short, truncation=True, max_length=12)["input_ids"]
    assert got[2].input_ids.tolist() == expected


def test_the_model_is_left_as_it_was_and_dropout_is_off(tokenizer):
    model = make("base", vocab_size=len(tokenizer), hidden_dropout_prob=0.5)
    model.train()
    model.encoder.layer[0].eval()  # a mode of its own
    modes = [module.training for module in model.modules()]
    first, second = ([f.vectors for f in encode(model, tokenizer, ["bada keko"] * 3)] for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_bfloat16_is_close_and_leaves_the_float32_model_alone(models, tokenizer, texts):
    ours, _ = models
    exact = np.stack([f.vectors for f in encode(ours, tokenizer, texts, pooling="mean")])
    lower = np.stack([f.vectors for f in encode(ours, tokenizer, texts, pooling="mean", dtype=torch.bfloat16)])
    assert lower.dtype == np.float32 and 0 < np.abs(exact - lower).max() < 0.1
    assert ours.dtype == torch.float32
    once = np.stack(
        [f.vectors for f in encode(inference_copy(ours, torch.bfloat16), tokenizer, texts, pooling="mean")]
    )
    assert (once == lower).all()


@pytest.mark.parametrize("side", [0, 1])
def test_an_inference_copy_has_packed_layers_shared_embeddings_and_the_same_vectors(models, tokenizer, texts, side):
    model = models[side]
    copied = inference_copy(model)
    expected = [f.vectors for f in encode(model, tokenizer, texts, layers=(0, 1, -1))]
    actual = [f.vectors for f in encode(copied, tokenizer, texts, layers=(0, 1, -1))]
    for mine, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=0)
    assert copied.get_input_embeddings().weight is model.get_input_embeddings().weight
    packed = [module for module in copied.modules() if isinstance(module, PackedLinear)]
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    if has_onednn(model.device, torch.float32):
        assert len(packed) == len(linear) and sum(module.activation == "gelu" for module in packed) == 2
    assert all(type(module) is torch.nn.Linear for module in linear)


class Adapted(torch.nn.Module):
    """As PEFT wraps a layer: it reads the type of its adapter's weight."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.adapter = layer, torch.nn.Linear(layer.in_features, layer.out_features)

    def forward(self, values):
        return self.base_layer(values) + self.adapter(values.to(self.adapter.weight.dtype))


def replace_forward(layer):
    plain = layer.forward
    layer.forward = lambda values: 2 * plain(values)


# What a user may have done to a layer that a packed copy would leave out.
CHANGES = {
    "a hook": lambda layer, parent: layer.register_forward_hook(lambda module, inputs, output: 2 * output),
    "a hook before": lambda layer, parent: layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)),
    "another forward": lambda layer, parent: replace_forward(layer),
    "a hook on the activation": lambda layer, parent: parent.intermediate_act_fn.register_forward_hook(
        lambda module, inputs, output: 2 * output
    ),
    "an adapter": lambda layer, parent: setattr(parent, "dense", Adapted(layer)),
    "pruning": lambda layer, parent: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_inference_copy_keeps_what_was_done_to_a_layer(tokenizer, change):
    model = make("base", vocab_size=len(tokenizer))
    ids = torch.tensor([[5, 6, 7]])
    unchanged = model(ids).last_hidden_state
    for layer in model.encoder.layer:
        CHANGES[change](layer.intermediate.dense, layer.intermediate)
    expected = model(ids).last_hidden_state
    assert (expected - unchanged).abs().max() > 0.01
    torch.testing.assert_close(inference_copy(model)(ids).last_hidden_state, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["DistilBert", "Roberta", "Electra"])
def test_other_encoders_and_models_with_a_head_work_the_same(tokenizer, texts, name):
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, max_position_embeddings=64, pad_token_id=0)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForMaskedLM")(config).eval()
    inputs = tokenizer(texts[33], return_tensors="pt", truncation=True)
    if name == "DistilBert":
        del inputs["token_type_ids"]
    if name != "Roberta":  # which has one segment
        with torch.no_grad():
            expected = model.base_model(**inputs).last_hidden_state[0].numpy()
        *_, got = encode(model, tokenizer, texts[:34], batch_tokens=128)
        assert np.abs(got.vectors[0] - expected).max() <= TOLERANCE
    else:
        inputs["token_type_ids"].zero_()
        with torch.no_grad():
            expected = model.base_model(**inputs).last_hidden_state[0].numpy()
        singles = [text for text in texts if isinstance(text, str)]
        got = list(encode(model, tokenizer, singles, batch_tokens=128))[singles.index(texts[33])]
        assert np.abs(got.vectors[0] - expected).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": (3,)}, "layer 3 does not exist: this model has 0 .* to 2"),
        ({"layers": (-4,)}, "layer -4 does not exist"),
        ({"layers": ()}, "layers is empty"),
        ({"pooling": "sum"}, "pooling is 'sum'; it must be mean"),
        ({"pooling": "pooler", "layers": (0,)}, "last layer"),
        ({"max_seq_length": LIMIT + 1}, f"max_seq_length is {LIMIT + 1}; .* take 4 to {LIMIT}"),
        ({"max_seq_length": 2}, "max_seq_length is 2"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(models, tokenizer, arguments, message):
    with pytest.raises(InputError, match=message):
        encode(models[0], tokenizer, [], **arguments)


@pytest.mark.parametrize("bad", [None, 3, ("a", "b", "c"), ("a", None), b"bytes"])
def test_a_text_that_is_none_is_named(models, tokenizer, bad):
    with pytest.raises(InputError, match="text 1 is .* a string or a pair"):
        list(encode(models[0], tokenizer, ["bada", bad]))


def test_models_that_do_not_fit_are_refused(models, tokenizer, tmp_path):
    with pytest.raises(InputError, match="the tokenizer has .* tokens, the model embeds 99"):
        encode(make("base"), tokenizer, [])
    with pytest.raises(InputError, match="is not a checkpoint: it has no config.json"):
        load_encoder(str(tmp_path))
    config = transformers.T5Config(vocab_size=500, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="T5Model is not a text encoder"):
        encode(transformers.T5Model(config), tokenizer, [])


def test_a_checkpoint_without_pooler_has_none_instead_of_a_random_one(tokenizer, tmp_path):
    model = make("masked_lm", vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    loaded = load_encoder(str(tmp_path))
    assert next(encode(loaded, tokenizer, ["bada"])).vectors.shape[0] == 1
    with pytest.raises(InputError, match="has no pooler"):
        encode(loaded, tokenizer, [], pooling="pooler")
    again = load_encoder(str(tmp_path))
    assert weights_hash(loaded) == weights_hash(again)
    with torch.no_grad():
        again.embeddings.LayerNorm.bias[0] += 1e-6
    assert weights_hash(loaded) != weights_hash(again)


# -------------------------------------------------------------------------------------------------------- text files


def test_text_files_give_their_lines_and_pairs(tmp_path):
    content = "\ufeffone \r\n\ntwo ||| three ||| four\nfive|||six\u2028seven\n ||| \n"
    (tmp_path / "a.txt").write_text(content, encoding="utf-8", newline="")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8", newline="") as file:
        file.write(content)
    # The original strips the line and splits at the last separator.
    expected = ["one", "", ("two ||| three", "four"), "five|||six\u2028seven", "|||"]
    assert list(TextFile(tmp_path / "a.txt")) == list(TextFile(tmp_path / "a.txt.gz")) == expected
    rows = [{"text": "x ||| y", "b": "z"}, {"text": "", "b": "w"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert list(TextFile(tmp_path / name)) == ["x ||| y", ""]
        assert list(TextFile(tmp_path / name, "text", "b")) == [("x ||| y", "z"), ("", "w")]
        assert TextFile(tmp_path / name).check()[0] == 2
    assert TextFile(tmp_path / "a.jsonl").check() == TextFile(tmp_path / "a.parquet").check()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no texts"),
        ("a.txt", b"good\nb\xffd\n", "line 2, byte 6, is not valid UTF-8"),
        ("a.txt.gz", b"not gzip", "is not packed with gzip; take .gz from its name"),
        ("a.txt.gz", gzip.compress(b"good\n" * 50, mtime=0)[:-6], "truncated or damaged"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1 is a list"),
        ("a.jsonl", b'{"txt": "a"}\n', "line 1 has no column 'text', only 'txt'"),
        ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', "line 2: 'text' is None, not text"),
        ("a.parquet", b"PAR1", "not a readable Parquet file"),
    ],
)
def test_a_bad_text_file_is_refused_by_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        TextFile(tmp_path / name).check()


def test_a_parquet_file_without_the_column_is_refused(tmp_path):
    pq.write_table(pa.table({"title": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column 'text', only 'title'"):
        TextFile(tmp_path / "a.parquet").check()
    with pytest.raises(InputError, match="no such file"):
        TextFile(tmp_path / "b.parquet")


# -------------------------------------------------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, models, tokenizer, texts):
    directory = tmp_path_factory.mktemp("features")
    models[0].save_pretrained(directory / "model")
    save_tokenizer(tokenizer, directory / "model")
    lines = [text if isinstance(text, str) else " ||| ".join(text) for text in texts]
    (directory / "texts.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return directory


def command(inputs, output, **changes) -> list[str]:
    settings = {"model": inputs / "model", "text": inputs / "texts.txt", "output_dir": output, "part_texts": 16}
    words = []
    for name, value in (settings | {"layers": (-1, 0)} | changes).items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def call(monkeypatch, options: list[str]) -> int:
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr(sys, "argv", ["extract_features.py", *options])
    try:
        importlib.import_module("extract_features").main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name.startswith("features-")}


def test_the_three_formats_hold_the_same_vectors(monkeypatch, capsys, inputs, models, tokenizer, tmp_path):
    expected = list(encode(models[0], tokenizer, TextFile(inputs / "texts.txt"), layers=(-1, 0)))
    for format in FORMATS:
        assert call(monkeypatch, command(inputs, tmp_path / format, format=format)) == 0
        assert len(contents(tmp_path / format)) == 5
    printed = capsys.readouterr().out
    cut = sum(features.num_truncated > 0 for features in expected)
    assert cut and f"{cut} of 70 texts were longer" in printed and "texts/s" in printed
    record = json.loads((tmp_path / "npz" / "record.json").read_text())
    assert record["status"] == "done" and record["texts"] == 70 and record["cut_texts"] == cut
    assert record["tokens"] == sum(len(features.input_ids) for features in expected)

    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "jsonl").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "parquet" / "*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    for number, features in enumerate(expected):
        tokens = tokenizer.convert_ids_to_tokens(features.input_ids.tolist())
        assert lines[number]["linex_index"] == number and lines[number].keys() == {"linex_index", "features"}
        assert [token["token"] for token in lines[number]["features"]] == tokens
        assert [layer["index"] for layer in lines[number]["features"][0]["layers"]] == [-1, 0]
        values = [[layer["values"] for layer in token["layers"]] for token in lines[number]["features"]]
        assert np.abs(np.array(values).swapaxes(0, 1) - features.vectors).max() <= TOLERANCE
        row = table[number]
        assert row["tokens"] == tokens and row["cut_tokens"] == features.num_truncated and row["linex_index"] == number
        assert np.abs(np.array([row["layer_-1"], row["layer_0"]]) - features.vectors).max() <= TOLERANCE
        with np.load(tmp_path / "npz" / f"features-{number // 16:05d}.npz") as part:
            assert np.abs(part[f"vectors_{number}"] - features.vectors).max() <= TOLERANCE
            assert part["layers"].tolist() == [-1, 0] and part[f"cut_tokens_{number}"] == features.num_truncated


def test_pooled_vectors_in_the_three_formats(monkeypatch, inputs, models, tokenizer, tmp_path):
    expected = np.stack(
        [
            f.vectors
            for f in encode(models[0], tokenizer, TextFile(inputs / "texts.txt"), layers=(-1, 0), pooling="mean")
        ]
    )
    for format in FORMATS:
        options = command(inputs, tmp_path / format, format=format, pooling="mean", part_texts=100)
        assert call(monkeypatch, options) == 0
    with np.load(tmp_path / "npz" / "features-00000.npz") as part:
        assert np.abs(part["vectors"] - expected).max() <= TOLERANCE and part["linex_index"][-1] == 69
    lines = (tmp_path / "jsonl" / "features-00000.jsonl").read_text().splitlines()
    values = [[layer["values"] for layer in json.loads(line)["layers"]] for line in lines]
    assert np.abs(np.array(values) - expected).max() <= TOLERANCE
    table = pq.read_table(tmp_path / "parquet" / "features-00000.parquet")
    assert np.abs(np.array(table["layer_0"].to_pylist()) - expected[:, 1]).max() <= TOLERANCE


@pytest.mark.parametrize("format", FORMATS)
def test_a_part_that_failed_leaves_the_earlier_ones_and_continuing_gives_the_same_bytes(
    monkeypatch, capsys, inputs, tmp_path, format
):
    from hfbert_scratch.features import files as feature_files

    assert call(monkeypatch, command(inputs, tmp_path / "whole", format=format)) == 0
    writer = feature_files.WRITERS[format]
    write = writer.write

    def fail(self, index, features):
        if index == 40:
            raise OSError(28, "No space left on device")
        write(self, index, features)

    monkeypatch.setattr(writer, "write", fail)
    assert call(monkeypatch, command(inputs, tmp_path / "cut", format=format)) == OutputError.exit_code
    assert "No space left" in capsys.readouterr().err
    assert len(contents(tmp_path / "cut")) == 2
    monkeypatch.setattr(writer, "write", write)
    assert call(monkeypatch, command(inputs, tmp_path / "cut", format=format)) == 0
    assert "continuing after 2 finished parts, 32 texts" in capsys.readouterr().out
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob(".writing*"))


def test_a_killed_run_continues_to_the_same_files(monkeypatch, capsys, inputs, tmp_path):
    # Long enough to be killed in the middle.
    lines = (inputs / "texts.txt").read_text(encoding="utf-8") * 40
    (tmp_path / "texts.txt").write_text(lines, encoding="utf-8")
    changes = {"text": tmp_path / "texts.txt", "part_texts": 100, "format": "npz"}
    recipe = [sys.executable, str(RECIPES / "extract_features.py")]
    process = subprocess.Popen([*recipe, *command(inputs, tmp_path / "killed", **changes)], env=environment())
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "features-00001.npz").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert json.loads((tmp_path / "killed" / "record.json").read_text())["status"] == "running"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the killed process had: sums are then added in the same order
    for name in ("killed", "whole"):
        assert call(monkeypatch, command(inputs, tmp_path / name, **changes)) == 0
        assert ("continuing after" in capsys.readouterr().out) == (name == "killed")
    torch.set_num_threads(threads)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") and len(contents(tmp_path / "whole")) == 28


def test_an_output_directory_of_something_else_is_refused(monkeypatch, capsys, inputs, tmp_path):
    assert call(monkeypatch, command(inputs, tmp_path / "out", pooling="cls")) == 0
    assert call(monkeypatch, command(inputs, tmp_path / "out", pooling="mean")) == 2
    assert "pooling: 'cls' there, 'mean' now" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    assert call(monkeypatch, command(inputs, tmp_path / "full")) == 2
    assert "is not empty" in capsys.readouterr().err
    (tmp_path / "out" / "features-00001.jsonl").unlink()
    assert call(monkeypatch, command(inputs, tmp_path / "out", pooling="cls")) == 0
    assert "continuing after 1 finished parts" in capsys.readouterr().out
    assert len(contents(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "csv"}, "format is 'csv'"),
        ({"pooling": "sum"}, "pooling is 'sum'"),
        ({"precision": "float8"}, "precision is 'float8'"),
        ({"layers": (7,)}, "layer 7 does not exist"),
        ({"layers": (-1, -1)}, "names a layer twice"),
        ({"part_texts": 0}, "part_texts is 0"),
        ({"max_seq_length": 4000}, "max_seq_length is 4000"),
        ({"text": "missing.txt"}, "no such file"),
        ({"model": "./missing"}, "no checkpoint directory ./missing"),
    ],
)
def test_bad_options_end_in_one_sentence_and_leave_nothing(monkeypatch, capsys, inputs, tmp_path, changes, message):
    assert call(monkeypatch, command(inputs, tmp_path / "out", **changes)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------- other encoders


@pytest.mark.parametrize("attention", ["sdpa", "hfbert_unpadded"])
@pytest.mark.parametrize("layers", [(-1,), (0, -1)])
def test_cls_of_a_left_to_right_model_is_the_vector_of_the_last_token(tokenizer, texts, attention, layers):
    ours, stock = pair("base", vocab_size=len(tokenizer), left_to_right=True)
    ours.set_attn_implementation(attention)
    for model in (ours, stock):
        actual = encode(model, tokenizer, texts[:20], layers=layers, pooling="cls", batch_tokens=300)
        for text, got in zip(texts, actual, strict=False):
            states = plain(stock, tokenizer, text).hidden_states
            expected = torch.stack([states[layer][0, -1] for layer in layers]).numpy()
            assert np.abs(got.vectors - expected).max() <= TOLERANCE


def test_an_encoder_that_counts_positions_from_the_padding_is_cut_where_its_table_ends(tokenizer):
    config = transformers.RobertaConfig(
        **(TINY | {"vocab_size": len(tokenizer)}), pad_token_id=tokenizer.pad_token_id, type_vocab_size=2
    )
    model = transformers.RobertaModel(config).eval()
    (got,) = encode(model, tokenizer, ["word " * 100])
    assert len(got.input_ids) == LIMIT - tokenizer.pad_token_id - 1 and got.num_truncated > 0


def test_weights_named_by_a_wrapper_are_explained(tmp_path):
    for model in pair("base"):
        directory = tmp_path / type(model).__name__
        save_wrapped(model, directory)
        with pytest.raises(InputError, match=r"a wrapper of the model named .*\(module\.embeddings"):
            load_encoder(str(directory))
