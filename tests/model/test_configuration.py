"""The configuration: what it refuses and how it says so, what it stores, and that stock's reads as ours."""

import json

import pytest
import torch
from helpers import TINY, tiny_config
from transformers import BertConfig

from hfbert_scratch import HEADS, SIZES, HFBertConfig, HFBertModel
from hfbert_scratch.model import configuration_hfbert


# field values → what the message must name
BAD_FIELDS = [
    ({"vocab_size": 0}, "vocab_size is 0; it must be between 1 and"),
    ({"vocab_size": 10**15}, "vocab_size is 1000000000000000; it must be between 1 and 10000000"),
    ({"hidden_size": -32}, "hidden_size is -32"),
    ({"hidden_size": 33}, "hidden_size 33 is not a multiple of num_attention_heads 4"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"intermediate_size": 0}, "intermediate_size is 0"),
    ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ({"type_vocab_size": 0}, "type_vocab_size is 0"),
    ({"hidden_act": "nosuch"}, "hidden_act is 'nosuch'; known activations: .*gelu"),
    ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
    ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is -0.1"),
    ({"classifier_dropout": 1.0}, "classifier_dropout is 1.0"),
    ({"initializer_range": 0}, "initializer_range is 0"),
    ({"initializer_range": float("nan")}, "initializer_range is nan"),
    ({"initializer_range": float("inf")}, "initializer_range is inf"),
    ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob is nan"),
    ({"layer_norm_eps": -1e-12}, "layer_norm_eps is -1e-12"),
    ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf"),
    ({"pad_token_id": 500}, "pad_token_id 500 is outside the vocabulary of 99"),
    ({"pad_token_id": -1}, "pad_token_id -1"),
    ({"chunk_size_feed_forward": -1}, "chunk_size_feed_forward is -1"),
    ({"hidden_size": "32"}, "hidden_size"),
    ({"num_hidden_layers": 2.0}, "num_hidden_layers"),
    ({"vocab_size": None}, "vocab_size"),
    ({"sparse_prediction": "yes"}, "sparse_prediction"),
    ({"left_to_right": 1}, "left_to_right"),
    ({"hiden_size": 64}, "unknown field 'hiden_size'; did you mean 'hidden_size'"),
    ({"num_hidden_layer": 3}, "did you mean 'num_hidden_layers'"),
    ({"is_decoder": True}, "is_decoder=True: HFBert is an encoder; left_to_right=True"),
    ({"add_cross_attention": True}, "add_cross_attention=True"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key': only 'absolute'"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[json.dumps(fields) for fields, _ in BAD_FIELDS])
def test_a_bad_field_is_named(fields, message, tmp_path):
    with pytest.raises(Exception, match=f"(?s){message}"):
        tiny_config(**fields)
    # The same from a file.
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"model_type": "hfbert"} | fields))
    with pytest.raises(Exception, match=f"(?s){message}"):
        HFBertConfig.from_pretrained(tmp_path)


def test_a_field_made_bad_later_does_not_reach_the_disk(tmp_path):
    config = tiny_config()
    config.hidden_size = 33
    with pytest.raises(Exception, match="hidden_size 33"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_defaults_are_stocks():
    ours, stock = HFBertConfig().to_dict(), BertConfig().to_dict()
    only_ours = {"auto_map", "sparse_prediction", "left_to_right", "bilstm"}
    only_stock = {"is_decoder", "add_cross_attention", "use_cache"}
    for name in (ours.keys() | stock.keys()) - only_ours - only_stock - {"model_type"}:
        assert ours[name] == stock[name], name


def test_a_stock_configuration_reads_as_ours_and_back(tmp_path):
    stock = BertConfig(**TINY, num_labels=5, classifier_dropout=0.3)
    stock.save_pretrained(tmp_path)
    ours = HFBertConfig.from_pretrained(tmp_path)
    assert ours.model_type == "hfbert" and ours.to_dict()["model_type"] == "hfbert"
    assert (ours.num_labels, ours.classifier_dropout, ours.hidden_size) == (5, 0.3, 32)
    ours.save_pretrained(tmp_path)
    again = BertConfig.from_pretrained(tmp_path)
    assert (again.num_labels, again.classifier_dropout, again.hidden_size) == (5, 0.3, 32)


def test_what_is_saved_is_what_is_read(tmp_path):
    config = tiny_config(sparse_prediction=True, left_to_right=True, num_labels=4, hidden_dropout_prob=0, extra="kept")
    config.save_pretrained(tmp_path)
    again = HFBertConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.extra == "kept"


def test_the_file_names_every_auto_class_and_what_other_readers_ask_for(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "hfbert"
    assert written["auto_map"] == {"AutoConfig": "configuration_hfbert.HFBertConfig"} | {
        auto_class: f"modeling_hfbert.{name}" for auto_class, name in HEADS.items()
    }
    # Read by text-embeddings-inference and other servers, which know no defaults.
    assert written.keys() >= TINY.keys() | {"hidden_act", "hidden_dropout_prob", "layer_norm_eps", "pad_token_id"}
    assert written.keys() >= {"type_vocab_size", "initializer_range"}


# Parameters of the encoder with pooler: BERT-BASE and -LARGE as in the paper (110 M and 340 M), the smaller ones as
# published in Turc et al. 2019, table 1 (which counts tiny as 4.4, mini 11.3, small 29.1 and medium 41.7 million).
PARAMETERS = {"tiny": 4.4, "mini": 11.2, "small": 28.8, "medium": 41.4, "base": 109.5, "large": 335.1}


@pytest.mark.parametrize("size", SIZES)
def test_the_published_sizes_have_the_published_number_of_parameters(size):
    with torch.device("meta"):
        model = HFBertModel(HFBertConfig.from_size(size))
    assert model.num_parameters() / 1e6 == pytest.approx(PARAMETERS[size], abs=0.06)
    assert model.config.hidden_size == 64 * model.config.num_attention_heads
    assert model.config.intermediate_size == 4 * model.config.hidden_size


def test_a_size_with_changes_and_an_unknown_one():
    config = HFBertConfig.from_size("mini", vocab_size=8000, hidden_dropout_prob=0.0)
    assert (config.vocab_size, config.hidden_size, config.hidden_dropout_prob) == (8000, 256, 0.0)
    with pytest.raises(ValueError, match="unknown size 'huge'; the published sizes are tiny, mini"):
        HFBertConfig.from_size("huge")


def test_a_configuration_of_another_architecture_is_warned_about(monkeypatch):
    warnings = []
    monkeypatch.setattr(configuration_hfbert.logger, "warning", warnings.append)
    HFBertConfig(**TINY, model_type="bert")
    assert not warnings
    HFBertConfig(**TINY, model_type="gpt2")
    assert len(warnings) == 1 and "'gpt2'" in warnings[0]
