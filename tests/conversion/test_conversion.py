"""Ours ⇄ stock `bert`: the same tensors both ways, old files, and what is refused."""

import json
import re
import runpy
import shutil
import stat
import sys

import numpy as np
import pytest
import torch
import transformers
from helpers import CASES, TINY, TRAVELLING, batch, make
from safetensors.torch import load_file, save_file
from training_helpers import RECIPES

import hfbert_scratch
from hfbert_scratch.conversion import stock as conversion
from hfbert_scratch.conversion import tensorflow as tensorflow_checkpoint
from hfbert_scratch.conversion.checkpoint import read_checkpoint
from hfbert_scratch.conversion.stock import from_stock, to_stock
from hfbert_scratch.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer, save_tokenizer
from hfbert_scratch.utils.errors import InputError, OutputError


RECIPE = RECIPES / "convert.py"


def tokenizer():
    words = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(TINY["vocab_size"] - len(SPECIAL_TOKENS)))]
    return bert_tokenizer({word: i for i, word in enumerate(words)}, lowercase=True, model_max_length=40)


def ours(directory, case="pretraining", **options):
    model = make(case, **options)
    model.save_pretrained(directory)
    return model


def stock(directory, name="BertForPreTraining", **options):
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.BertConfig(**(TINY | options))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return model


def edit_config(directory, *, remove=(), **fields):
    path = directory / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in remove}))


def edit_weights(directory, change):
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def assert_same_weights(left, right):
    one, other = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


# ---------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_for_every_head(case, tmp_path):
    options = {"num_labels": 3} if case == "question_answering" else {}
    model = ours(tmp_path / "ours", case, **options)
    save_tokenizer(tokenizer(), tmp_path / "ours")
    result = to_stock(tmp_path / "ours", tmp_path / "stock")
    assert (result.architecture, result.largest_difference, result.notes) == (CASES[case][1], 0.0, [])
    files = {path.name for path in (tmp_path / "stock").iterdir()}
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"}
    assert files == {"config.json", "model.safetensors"} | tokenizer_files
    assert stat.S_IMODE((tmp_path / "stock").stat().st_mode) == stat.S_IMODE((tmp_path / "ours").stat().st_mode)
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert config["model_type"] == "bert" and config["architectures"] == [CASES[case][1]]
    assert config["position_embedding_type"] == "absolute"
    assert not config.keys() & {"auto_map", "sparse_prediction", "left_to_right", "_name_or_path"}
    assert str(tmp_path) not in (tmp_path / "stock" / "config.json").read_text()
    assert_same_weights(tmp_path / "ours", tmp_path / "stock")

    theirs, info = getattr(transformers, CASES[case][1]).from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not any(info.values()), info
    inputs = batch(case, labels=False)
    assert torch.equal(theirs(**inputs)[0], model(**inputs)[0])

    result = from_stock(tmp_path / "stock", tmp_path / "again")
    assert (result.architecture, result.largest_difference, result.notes) == (CASES[case][0], 0.0, [])
    assert_same_weights(tmp_path / "ours", tmp_path / "again")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "again"))
    labels = {"id2label", "label2id"} if options else set()
    assert {key: after.get(key) for key in before.keys() - labels} == {
        key: before[key] for key in before.keys() - labels
    }
    assert {path.name for path in (tmp_path / "again").iterdir()} == files | TRAVELLING


def test_a_left_to_right_model_is_a_decoder_and_comes_back(tmp_path):
    model = ours(tmp_path / "ours", "masked_lm", left_to_right=True)
    result = to_stock(tmp_path / "ours", tmp_path / "stock")
    assert result.architecture == "BertLMHeadModel"
    assert any("is_decoder=True" in note for note in result.notes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert torch.equal(theirs(**batch()).logits, model(**batch()).logits)
    result = from_stock(tmp_path / "stock", tmp_path / "again")
    assert hfbert_scratch.HFBertConfig.from_pretrained(tmp_path / "again").left_to_right
    assert_same_weights(tmp_path / "ours", tmp_path / "again")


def test_a_left_to_right_model_with_a_pooler_is_refused(tmp_path):
    ours(tmp_path / "ours", "single_label", left_to_right=True)
    stock(tmp_path / "stock", "BertForSequenceClassification", is_decoder=True)
    for convert, source in ((to_stock, "ours"), (from_stock, "stock")):
        with pytest.raises(InputError, match="left-to-right HFBertForSequenceClassification pools the last token"):
            convert(tmp_path / source, tmp_path / "converted")


@pytest.mark.parametrize("names", [["bias"], ["decoder.bias"], ["bias", "decoder.bias"]], ids=str)
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_stock_checkpoint_opened_directly_computes_with_the_output_bias_of_stock(tmp_path, tied, pickled, names):
    if names == ["bias"] and not tied:
        pytest.skip("stock has no bias in such a file")
    stock(source := tmp_path / "stock", tie_word_embeddings=tied)
    file = source / "model.safetensors"
    tensors = load_file(file)
    for name in ("bias", "decoder.bias"):
        tensors.pop(f"cls.predictions.{name}", None)
    for name in names:
        tensors[f"cls.predictions.{name}"] = torch.randn(TINY["vocab_size"])
    save_file(tensors, file, metadata={"format": "pt"})
    if pickled:
        torch.save(tensors, source / "pytorch_model.bin")
        file.unlink()
    for ours in (hfbert_scratch.HFBertForPreTraining, hfbert_scratch.HFBertForMaskedLM):
        theirs = getattr(transformers, ours.__name__.removeprefix("HF"))
        left, right = (cls.from_pretrained(source).eval()(**batch(labels=False))[0] for cls in (ours, theirs))
        assert torch.equal(left, right)


def test_an_untied_projection_keeps_matrix_and_bias(tmp_path):
    ours(tmp_path / "ours", "masked_lm", tie_word_embeddings=False)
    assert to_stock(tmp_path / "ours", tmp_path / "stock").largest_difference == 0.0
    assert from_stock(tmp_path / "stock", tmp_path / "again").largest_difference == 0.0
    assert_same_weights(tmp_path / "ours", tmp_path / "again")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_it_is(dtype, tmp_path):
    make("pretraining").to(dtype).save_pretrained(tmp_path / "ours")
    to_stock(tmp_path / "ours", tmp_path / "stock")
    assert_same_weights(tmp_path / "ours", tmp_path / "stock")
    assert transformers.AutoModel.from_pretrained(tmp_path / "stock").dtype == dtype


def test_a_fraction_that_is_whole_is_a_float_for_stock(tmp_path):
    ours(tmp_path / "ours", initializer_range=1, hidden_dropout_prob=0)
    to_stock(tmp_path / "ours", tmp_path / "stock")


def test_weights_in_shards(tmp_path):
    model = make("pretraining")
    model.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    assert not (tmp_path / "ours" / "model.safetensors").exists()
    to_stock(tmp_path / "ours", tmp_path / "stock")
    model.save_pretrained(tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", tmp_path / "stock")


# ---------------------------------------------------------------------------------------------------- old checkpoints


def old_names(tensors):
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors.items()}
    return {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in renamed.items()}


def test_a_checkpoint_as_of_2019(tmp_path):
    model = stock(tmp_path / "stock")
    (tmp_path / "stock" / "model.safetensors").unlink()
    tensors = old_names(model.state_dict())
    assert "bert.embeddings.LayerNorm.gamma" in tensors and "cls.predictions.decoder.bias" in tensors
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(tensors, tmp_path / "stock" / "pytorch_model.bin")
    edit_config(tmp_path / "stock", remove=("model_type", "architectures"), gradient_checkpointing=False)
    vocabulary = tokenizer().get_vocab()
    lines = [f"{word}\n" for word in sorted(vocabulary, key=vocabulary.get)]
    (tmp_path / "stock" / "vocab.txt").write_text("".join(lines))

    result = from_stock(tmp_path / "stock", tmp_path / "ours")
    assert result.architecture == "HFBertForPreTraining" and result.largest_difference == 0.0
    assert len(result.notes) == 2 and "taken for HFBertForPreTraining" in result.notes[0]
    assert result.notes[1] == "do_lower_case=True: the vocabulary has no upper-case letters"
    stock(tmp_path / "today")
    assert_same_weights(tmp_path / "today", tmp_path / "ours")
    again = hfbert_scratch.HFBertForPreTraining.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(**batch())[0], model(**batch())[0])
    stated = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert (stated["tokenizer_class"], stated["model_max_length"]) == ("BertTokenizer", 40)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert loaded("w3 w4")["input_ids"] == [2, 8, 9, 3]


def test_an_old_bias_name_alone_is_enough(tmp_path):
    stock(tmp_path / "stock")

    def rename(tensors):
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
        return tensors

    edit_weights(tmp_path / "stock", rename)
    assert from_stock(tmp_path / "stock", tmp_path / "ours").largest_difference == 0.0
    assert "cls.predictions.bias" in load_file(tmp_path / "ours" / "model.safetensors")


def test_a_projection_unlike_the_embeddings_is_kept(tmp_path):
    stock(tmp_path / "stock")
    edit_weights(tmp_path / "stock", lambda tensors: tensors | {"cls.predictions.decoder.weight": torch.randn(99, 32)})
    result = from_stock(tmp_path / "stock", tmp_path / "ours")
    assert result.largest_difference == 0.0
    assert result.notes[0].startswith("the output projection differs from the word embeddings")
    assert not hfbert_scratch.HFBertConfig.from_pretrained(tmp_path / "ours").tie_word_embeddings


def test_a_base_model_without_prefix_and_without_pooler(tmp_path):
    stock(tmp_path / "stock", "BertModel")
    edit_weights(tmp_path / "stock", lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    result = from_stock(tmp_path / "stock", tmp_path / "ours")
    assert result.architecture == "HFBertModel" and result.largest_difference == 0.0
    assert result.notes[0] == (
        "not in the weights, so HFBertModel starts with random ones: pooler.dense.weight, pooler.dense.bias"
    )
    assert "no tokenizer" in result.notes[1]


def test_a_missing_head_is_named_and_a_spare_one_kept(tmp_path):
    stock(tmp_path / "stock")
    spare = load_file(tmp_path / "stock" / "model.safetensors")
    edit_weights(tmp_path / "stock", lambda tensors: {k: v for k, v in tensors.items() if "seq_relation" not in k})
    result = from_stock(tmp_path / "stock", tmp_path / "ours")
    assert "random ones: cls.seq_relationship.weight, cls.seq_relationship.bias" in result.notes[0]
    assert result.largest_difference == 0.0

    # As in bert-base-uncased: the weights of pretraining, under the name of the masked LM.
    edit_weights(tmp_path / "stock", lambda _: spare)
    edit_config(tmp_path / "stock", architectures=["BertForMaskedLM"])
    result = from_stock(tmp_path / "stock", tmp_path / "full")
    assert result.architecture == "HFBertForMaskedLM"
    assert "kept in the weights, but not used by HFBertForMaskedLM: cls.seq_relationship.bias" in result.notes[0]
    assert_same_weights(tmp_path / "stock", tmp_path / "full")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "hfbert.", "net.a."])
@pytest.mark.parametrize("write", [ours, stock])
def test_weights_named_by_a_wrapper_get_their_own_names(prefix, write, tmp_path):
    write(tmp_path / "source")
    plain = load_file(tmp_path / "source" / "model.safetensors")
    edit_weights(tmp_path / "source", lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    convert = to_stock if write is ours else from_stock
    result = convert(tmp_path / "source", tmp_path / "target")
    assert result.largest_difference == 0.0
    assert "without the prefixes of a wrapper" in result.notes[0]
    assert load_file(tmp_path / "target" / "model.safetensors").keys() == plain.keys()


def test_layers_that_were_compiled_alone_get_their_own_names(tmp_path):
    stock(tmp_path / "source")
    edit_weights(
        tmp_path / "source",
        lambda tensors: {k.replace("layer.0.", "layer.0._orig_mod."): v for k, v in tensors.items()},
    )
    assert from_stock(tmp_path / "source", tmp_path / "target").largest_difference == 0.0


# ---------------------------------------------------------------------------------------------------- the original's

# What google-research/bert calls the heads; their matrices are (outputs, hidden) there too.
ORIGINAL_HEADS = {
    "cls.predictions.bias": "cls/predictions/output_bias",
    "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
    "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    "classifier.weight": "output_weights",
    "classifier.bias": "output_bias",
    "qa_outputs.weight": "cls/squad/output_weights",
    "qa_outputs.bias": "cls/squad/output_bias",
}


def original_variables(model):
    """The model's parameters under the original's names and layouts, and what training leaves beside them."""
    variables = {"global_step": np.array(7, dtype=np.int64)}
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        if name in ORIGINAL_HEADS:
            variable = ORIGINAL_HEADS[name]
        elif "LayerNorm" in name:
            variable = name.replace(".", "/").replace("weight", "gamma").replace("bias", "beta")
        elif "_embeddings" in name:
            variable = name.removesuffix(".weight").replace(".", "/")
        else:
            variable = name.replace(".", "/").replace("weight", "kernel")
            value = value.T if value.ndim == 2 else value
        variable = re.sub("layer/([0-9]+)", r"layer_\1", variable)
        variables[variable] = np.ascontiguousarray(value)
        variables |= {f"{variable}/adam_{moment}": np.zeros_like(value) for moment in "mv"}
    return variables


def original(directory, model, words, reader, monkeypatch):
    """A directory as google-research/bert released them, to be read by TensorFlow or, without it, in its stead."""
    directory.mkdir(parents=True)
    (directory / "bert_config.json").write_text(json.dumps(TINY | {"hidden_act": "gelu", "type_vocab_size": 2}))
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    variables = original_variables(model)
    if reader == "tensorflow":
        tensorflow = pytest.importorskip("tensorflow")
        tensorflow.raw_ops.SaveV2(
            prefix=str(directory / "bert_model.ckpt"),
            tensor_names=list(variables),
            shape_and_slices=[""] * len(variables),
            tensors=list(variables.values()),
        )
    else:
        for ending in ("index", "data-00000-of-00001"):
            (directory / f"bert_model.ckpt.{ending}").touch()
        monkeypatch.setattr(tensorflow_checkpoint, "read_variables", lambda prefix: variables)


READERS = ["in its stead", pytest.param("tensorflow", marks=pytest.mark.tensorflow)]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", ["pretraining", "masked_lm", "next_sentence", "single_label", "question_answering"])
def test_an_original_checkpoint(case, reader, tmp_path, monkeypatch):
    model = stock(tmp_path / "stock", CASES[case][1], **CASES[case][2])
    cased = case == "masked_lm"
    words = [*SPECIAL_TOKENS, "Berlin" if cased else "berlin", *(f"w{i}" for i in range(93))]
    original(tmp_path / "original", model, words, reader, monkeypatch)

    result = from_stock(tmp_path / "original", tmp_path / "ours")
    assert (result.architecture, result.largest_difference) == (CASES[case][0], 0.0)
    assert result.notes == [
        f"do_lower_case={not cased}: the vocabulary has {'' if cased else 'no '}upper-case letters"
    ]
    ours = getattr(hfbert_scratch, CASES[case][0]).from_pretrained(tmp_path / "ours")
    inputs = batch(case, labels=False)
    assert torch.equal(ours(**inputs)[0], model(**inputs)[0])
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert loaded("Berlin")["input_ids"] == [2, 5, 3]
    assert loaded("berlin")["input_ids"] == ([2, 1, 3] if cased else [2, 5, 3])


def test_what_the_original_says_of_lower_case_wins(tmp_path, monkeypatch):
    words = [*SPECIAL_TOKENS, *(f"W{i}" for i in range(94))]
    original(tmp_path / "original", stock(tmp_path / "stock"), words, "in its stead", monkeypatch)
    (tmp_path / "original" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert from_stock(tmp_path / "original", tmp_path / "ours").notes == []
    assert json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())["do_lower_case"] is True


def test_originals_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    source = tmp_path / "original"
    original(source, stock(tmp_path / "stock"), SPECIAL_TOKENS, "in its stead", monkeypatch)

    def refused(message):
        with pytest.raises(InputError, match=message) as caught:
            from_stock(source, tmp_path / "ours")
        assert "\n" not in str(caught.value) and not (tmp_path / "ours").exists()

    config = json.loads((source / "bert_config.json").read_text())
    (source / "bert_config.json").write_text(json.dumps(config | {"hidden_act": "nosuch"}))
    refused("original/bert_config.json: .*hidden_act is 'nosuch'")
    (source / "bert_config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refused("original: the weights lack 16 parameters of the encoder")
    (source / "bert_config.json").write_text(json.dumps(config))
    monkeypatch.setattr(tensorflow_checkpoint, "read_variables", lambda prefix: {"model/w": np.ones(3)})
    refused("holds no variables of the original BERT")
    (source / "bert_model.ckpt-9.index").touch()
    refused(r"holds several checkpoints \(bert_model.ckpt-9, bert_model.ckpt\); leave one")
    (source / "bert_model.ckpt-9.index").unlink()
    (source / "bert_model.ckpt.data-00000-of-00001").unlink()
    refused("has bert_model.ckpt.index but no bert_model.ckpt.data-")


def test_without_tensorflow_it_is_said_what_to_install(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        original(tmp_path / "original", stock(tmp_path / "stock"), SPECIAL_TOKENS, "in its stead", patched)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match=r'takes TensorFlow: pip install "hfbert-scratch\[tensorflow\]"'):
        from_stock(tmp_path / "original", tmp_path / "ours")


@pytest.mark.tensorflow
@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001"])
def test_damaged_originals(ending, tmp_path, monkeypatch):
    original(tmp_path / "original", stock(tmp_path / "stock"), SPECIAL_TOKENS, "tensorflow", monkeypatch)
    path = tmp_path / "original" / f"bert_model.ckpt.{ending}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="bert_model.ckpt is truncated or damaged"):
        from_stock(tmp_path / "original", tmp_path / "ours")


# ---------------------------------------------------------------------------------------------------- refusals


def no_config(directory):
    (directory / "config.json").unlink()


def no_weights(directory):
    (directory / "model.safetensors").unlink()


def truncated(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def empty(directory):
    (directory / "model.safetensors").write_bytes(b"")


class Code:
    def __reduce__(self):
        return print, ("code in the file was run",)


def pickled(value):
    def change(directory):
        no_weights(directory)
        torch.save(value, directory / "pytorch_model.bin")

    return change


def truncated_pickle(directory):
    pickled({"a": torch.ones(9)})(directory)
    path = directory / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:200])


def index(content):
    def change(directory):
        no_weights(directory)
        (directory / "model.safetensors.index.json").write_text(json.dumps(content))

    return change


def config(**fields):
    return lambda directory: edit_config(directory, **fields)


def weights(change):
    return lambda directory: edit_weights(directory, change)


BAD_STOCK = {
    "no config": (no_config, "is not a checkpoint: it has no config.json"),
    "no weights": (no_weights, "is not a checkpoint: it has neither model.safetensors nor pytorch_model.bin"),
    "config not JSON": (lambda path: (path / "config.json").write_text("{"), "config.json is not readable JSON"),
    "config a list": (lambda path: (path / "config.json").write_text("[]"), "must hold a JSON object, not a list"),
    "other model": (config(model_type="gpt2"), "config.json: model_type is 'gpt2'; only 'bert' can be converted"),
    "already ours": (config(model_type="hfbert"), "model_type is 'hfbert'; it need not be converted"),
    "no model": (config(remove=("model_type", "num_hidden_layers")), "model_type is None; only 'bert'"),
    "own code": (config(auto_map={"AutoModel": "m.M"}), "names code of its own"),
    "cross-attention": (
        config(is_decoder=True, add_cross_attention=True),
        "config.json: add_cross_attention is True; only False can be converted",
    ),
    "relative positions": (
        config(position_embedding_type="relative_key"),
        "position_embedding_type is 'relative_key'; only 'absolute'",
    ),
    "bad field": (config(hidden_act="nosuch"), "config.json: .*hidden_act is 'nosuch'"),
    "wider": (
        config(hidden_size=64),
        r"word_embeddings.weight has shape \(99, 32\) in the weights, but \(99, 64\) by config.json",
    ),
    "deeper": (
        config(num_hidden_layers=3),
        "the weights lack 16 parameters of the encoder .* the first bert.encoder.layer.2.attention.self.query.weight",
    ),
    "truncated": (truncated, "model.safetensors is truncated or damaged"),
    "empty file": (empty, "model.safetensors is truncated or damaged"),
    "not finite": (
        weights(lambda tensors: tensors | {"cls.predictions.bias": torch.full((99,), float("nan"))}),
        "cls.predictions.bias holds values that are not finite",
    ),
    "code in a pickle": (pickled({"a": Code()}), "pytorch_model.bin is damaged, or holds code .* which is not run"),
    "pickle of something else": (pickled({"a": [1]}), "pytorch_model.bin holds no dictionary of tensors"),
    "truncated pickle": (truncated_pickle, "pytorch_model.bin is (truncated or )?damaged"),
    "index to the outside": (index({"weight_map": {"a": "../b.safetensors"}}), "points outside its directory"),
    "index to nothing": (index({"weight_map": {"a": "b.safetensors"}}), "b.safetensors is missing"),
    "index of nothing": (index({}), "has no weight_map"),
}


@pytest.fixture(scope="module")
def stock_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stock")
    stock(directory)
    return directory


@pytest.mark.parametrize("kind", BAD_STOCK)
def test_what_cannot_be_converted_is_named(kind, stock_directory, tmp_path, capsys):
    damage, message = BAD_STOCK[kind]
    shutil.copytree(stock_directory, tmp_path / "stock")
    damage(tmp_path / "stock")
    with pytest.raises(InputError, match=message) as caught:
        from_stock(tmp_path / "stock", tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["stock"], "nothing may be left behind"
    assert "was run" not in capsys.readouterr().out


def test_sources_and_targets_that_are_not_possible(stock_directory, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "file").write_text("")
    for source, message in [
        (tmp_path / "nothing", "no checkpoint directory"),
        (tmp_path / "file", "is a file; name the directory"),
        ("no-such-user/no-such-model", "neither a directory nor a model that the Hub gives"),
    ]:
        with pytest.raises(InputError, match=message):
            from_stock(source, tmp_path / "ours")
    with pytest.raises(InputError, match="model_type is 'bert'; it need not be converted"):
        to_stock(stock_directory, tmp_path / "ours")
    with pytest.raises(InputError, match="is not empty; name a new one"):
        from_stock(stock_directory, stock_directory)
    with pytest.raises(InputError, match="file is a file"):
        from_stock(stock_directory, tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written .*Not a directory"):
        from_stock(stock_directory, tmp_path / "file" / "below")
    (tmp_path / "empty").mkdir()
    assert from_stock(stock_directory, tmp_path / "empty").largest_difference == 0.0


def test_a_conversion_that_changes_an_output_fails(stock_directory, tmp_path, monkeypatch):
    # What the check at the end is for: a mistake in the conversion.
    def misread(source, model_type):
        checkpoint = read_checkpoint(source, model_type)
        checkpoint.tensors["bert.encoder.layer.1.output.dense.bias"][3] += 1e-3
        return checkpoint

    monkeypatch.setattr(conversion, "read_checkpoint", misread)
    with pytest.raises(RuntimeError, match="differ by"):
        from_stock(stock_directory, tmp_path / "ours")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- the recipe


def test_the_recipe_converts_and_reports(stock_directory, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *arguments])
        runpy.run_path(str(RECIPE), run_name="__main__")

    verbosity = transformers.logging.get_verbosity()
    try:
        run("--to", "hfbert", "--model", str(stock_directory), "--output_dir", str(tmp_path / "ours"))
        printed = capsys.readouterr().out
        assert "HFBertForPreTraining, largest difference of outputs 0.0" in printed
        assert "note: there is no tokenizer" in printed
        for bad in (["--to", "stock", "--model", str(stock_directory)], ["--to", "onnx", "--model", "x"]):
            with pytest.raises(SystemExit) as ended:
                run(*bad, "--output_dir", str(tmp_path / "stock"))
            assert ended.value.code == 2
            assert capsys.readouterr().err.startswith("error: ")
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
