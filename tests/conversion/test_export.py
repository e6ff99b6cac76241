"""Exports: what each directory holds, what is refused, and the keys that serving programs read.

Formats whose packages are missing are skipped; `make test-clients` runs all of them, and the programs themselves.
"""

import importlib.util
import json
import re
import sys
import typing

import pytest
import torch
import transformers
from corpus_helpers import documents
from helpers import CASES, batch, make
from safetensors.torch import load_file, save_file
from training_helpers import RECIPES

from hfbert_scratch.conversion.export import export
from hfbert_scratch.conversion.formats import FORMATS, STOCK, onnx, web
from hfbert_scratch.conversion.source import ExportSource
from hfbert_scratch.conversion.stock import from_stock, to_stock
from hfbert_scratch.text.tokenizer import save_tokenizer, train_wordpiece
from hfbert_scratch.utils.errors import InputError


TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"}


def save(directory, case="pretraining", *, lowercase=True, strip_accents=True, with_tokenizer=True, **options):
    rules = {"lowercase": lowercase, "strip_accents": strip_accents}
    tokenizer = train_wordpiece(documents(50), vocab_size=300, model_max_length=40, **rules)
    model = make(case, vocab_size=len(tokenizer), **options)
    model.save_pretrained(directory)
    if with_tokenizer:
        save_tokenizer(tokenizer, directory)
    return model


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def files(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("case", ["pretraining", "token", "question_answering"])
def test_stock_is_exact_and_complete(case, tmp_path):
    model = save(tmp_path / "ours", case)
    result = export(tmp_path / "ours", tmp_path / "out", "stock")
    assert (result.architecture, result.largest_difference, result.notes) == (CASES[case][1], 0.0, [])
    assert files(tmp_path / "out") == {"config.json", "model.safetensors"} | TOKENIZER_FILES
    theirs = getattr(transformers, CASES[case][1]).from_pretrained(tmp_path / "out")
    assert torch.equal(theirs(**batch(case, labels=False))[0], model(**batch(case, labels=False))[0])


def test_stock_is_the_same_by_export_and_by_convert(tmp_path):
    save(tmp_path / "ours", "masked_lm")
    export(tmp_path / "ours", tmp_path / "exported", "stock")
    to_stock(tmp_path / "ours", tmp_path / "converted")
    exported, converted = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("exported", "converted")
    )
    assert exported == converted


def test_the_recipe_offers_every_format(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    choices = typing.get_type_hints(importlib.import_module("export").ExportArguments)["format"]
    assert {STOCK, *FORMATS} == set(typing.get_args(choices))


def test_onnx_has_the_layout_of_transformers_js(tmp_path):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    save(tmp_path / "ours")
    result = export(tmp_path / "ours", tmp_path / "out", "onnx")
    assert result.architecture == "BertForPreTraining" and result.largest_difference <= result.tolerance
    assert files(tmp_path / "out") == {"config.json", "onnx/model.onnx"} | TOKENIZER_FILES
    config = read(tmp_path / "out" / "config.json")
    assert config["model_type"] == "bert" and config["transformers.js_config"] == {"dtype": "fp32"}


def test_a_quantized_graph_takes_the_place_of_the_other(tmp_path):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    save(tmp_path / "ours", "masked_lm")
    result = export(tmp_path / "ours", tmp_path / "out", "onnx", quantize=True)
    assert files(tmp_path / "out") == {"config.json", "onnx/model_quantized.onnx"} | TOKENIZER_FILES
    assert read(tmp_path / "out" / "config.json")["transformers.js_config"] == {"dtype": "q8"}
    assert any("largest difference on random inputs" in note for note in result.notes)


def web_source(directory, case="pretraining", **options):
    """What `export` hands to the web format, and a stand-in for its ONNX directory."""
    model = save(directory / "ours", case)
    return ExportSource(directory / "stock", CASES[case][1], model, **options)


def settings_of(page):
    return json.loads(re.search(r'id="settings">(.*?)</script>', page)[1])


@pytest.mark.parametrize(
    ("case", "task"),
    [
        ("pretraining", "fill-mask"),
        ("regression", "text-classification"),
        ("token", "token-classification"),
        ("question_answering", "question-answering"),
    ],
)
def test_a_web_page_asks_for_what_the_head_can_do(case, task, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(onnx, "write", lambda source, directory: written.append(directory) or 0.5)
    title = '</script><b>"1"'
    (tmp_path / "out").mkdir()
    source = web_source(tmp_path, case, name=title, task={"null_threshold": 1.5})
    assert web.write(source, tmp_path / "out") == 0.5
    assert written == [tmp_path / "out" / "model"]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    settings = settings_of(page)
    assert (settings["task"], settings["title"], settings["regression"]) == (task, title, case == "regression")
    assert settings["nullThreshold"] == 1.5
    assert settings["library"].startswith(
        f"https://cdn.jsdelivr.net/npm/@huggingface/transformers@{web.LIBRARY_VERSION}/"
    )
    assert settings["runtime"] is None and "{{" not in page and "<b>" not in page


def node_modules(directory, version=web.LIBRARY_VERSION):
    for name in (web._LIBRARY, *web._RUNTIME):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    (directory / "@huggingface/transformers/package.json").write_text(json.dumps({"version": version}))
    return directory


def test_a_web_page_carries_the_library_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "write", lambda *_: 0.0)
    (tmp_path / "out").mkdir()
    web.write(web_source(tmp_path, web_library=node_modules(tmp_path / "modules")), tmp_path / "out")
    runtime = {f"library/ort-wasm-simd-threaded.{kind}" for kind in ("mjs", "wasm")}
    assert files(tmp_path / "out") == {"index.html", "library/transformers.min.js"} | runtime
    settings = settings_of((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert (settings["library"], settings["runtime"]) == ("./library/transformers.min.js", "./library/")


def test_a_library_that_is_not_there_or_another_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"--web_library .* has no @huggingface/transformers/dist/transformers.min.js"
    ):
        web.copy_library(tmp_path, tmp_path / "library")
    with pytest.raises(InputError, match=r"holds transformers.js 3.0.0, and the page is for 4"):
        web.copy_library(node_modules(tmp_path / "modules", "3.0.0"), tmp_path / "library")


@pytest.mark.parametrize(
    ("format", "options", "named"),
    [
        ("gguf", {"quantize": True}, "--quantize is for onnx and web, not gguf"),
        ("stock", {"quantize": True}, "--quantize is for onnx and web, not stock"),
        ("onnx", {"web_library": "modules"}, "--web_library is for web, not onnx"),
    ],
)
def test_an_option_of_other_formats_is_refused(format, options, named, tmp_path):
    with pytest.raises(InputError, match=named):
        export(tmp_path, tmp_path / "out", format, **options)


def test_gguf_of_a_checkpoint_without_pooler(tmp_path):
    gguf = pytest.importorskip("gguf")
    model = save(tmp_path / "ours", "masked_lm")
    result = export(tmp_path / "ours", tmp_path / "out", "gguf", pooling="cls")
    assert (result.architecture, result.largest_difference) == ("BertModel", 0.0)
    assert files(tmp_path / "out") == {"model.gguf"}
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    assert reader.fields["bert.pooling_type"].contents() == gguf.PoolingType.CLS
    words = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert torch.equal(torch.tensor(words.data), model.bert.embeddings.word_embeddings.weight)


def test_sentence_transformers_comes_back_as_ours(tmp_path):
    pytest.importorskip("sentence_transformers")
    model = save(tmp_path / "ours", "masked_lm")
    result = export(tmp_path / "ours", tmp_path / "out", "sentence-transformers")
    own = {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
    assert files(tmp_path / "out") == {"config.json", "model.safetensors"} | TOKENIZER_FILES | own
    # The keys that text-embeddings-inference and llama.cpp's converter read, whichever version wrote the others.
    pooling = read(tmp_path / "out" / "1_Pooling" / "config.json")
    assert pooling["pooling_mode_mean_tokens"] and not pooling["pooling_mode_cls_token"]
    assert any("pooler_output will be 0" in note for note in result.notes)
    from_stock(tmp_path / "out", tmp_path / "again")
    again = transformers.AutoModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**batch()).last_hidden_state, model.bert(**batch()).last_hidden_state)


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("format", "case", "named"),
    [
        ("gguf", "token", "the head of BertForTokenClassification; choose stock or onnx or web or openvino"),
        ("ctranslate2", "single_label", "choose stock or onnx or web or openvino or sentence-transformers"),
        ("sentence-transformers", "multiple_choice", "the head of BertForMultipleChoice"),
    ],
)
def test_a_head_that_the_format_cannot_hold(format, case, named, tmp_path):
    save(tmp_path / "ours", case)
    with pytest.raises(InputError, match=named):
        export(tmp_path / "ours", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_left_to_right_goes_where_it_can(tmp_path):
    save(tmp_path / "ours", "masked_lm", left_to_right=True)
    assert export(tmp_path / "ours", tmp_path / "stock", "stock").architecture == "BertLMHeadModel"
    with pytest.raises(InputError, match="gguf cannot hold left-to-right attention; choose stock or onnx or openvino"):
        export(tmp_path / "ours", tmp_path / "out", "gguf")


def test_what_is_no_checkpoint_of_ours(tmp_path):
    save(tmp_path / "ours", with_tokenizer=False)
    export(tmp_path / "ours", tmp_path / "stock", "stock")
    (tmp_path / "empty").mkdir()
    for source, format, named in (
        (tmp_path / "none", "stock", "no checkpoint directory"),
        (tmp_path / "empty", "onnx", "it has no config.json"),
        (tmp_path / "stock", "onnx", "convert it first: hfbert convert --to hfbert"),
        (tmp_path / "stock", "stock", "it need not be converted"),
        (tmp_path / "ours", "gguf", "holds no tokenizer, which gguf needs"),
        (tmp_path / "ours", "onxx", "choose one of stock, onnx"),
    ):
        with pytest.raises(InputError, match=named):
            export(source, tmp_path / "out", format)
    with pytest.raises(InputError, match="not empty"):
        export(tmp_path / "ours", tmp_path / "stock", "stock")


def test_a_head_without_weights(tmp_path):
    save(tmp_path / "ours", "single_label")
    path = tmp_path / "ours" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("classifier")}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="no weights for classifier.bias, classifier.weight"):
        export(tmp_path / "ours", tmp_path / "out", "onnx")


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_package(format, tmp_path, monkeypatch):
    save(tmp_path / "ours")
    found = importlib.util.find_spec
    modules = FORMATS[format].packages.values()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else found(name))
    with pytest.raises(InputError, match=f"pip install {' '.join(FORMATS[format].packages)}"):
        export(tmp_path / "ours", tmp_path / "out", format)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lowercase": False}, "keeps case"),
        ({"strip_accents": False}, "takes accented letters apart"),
        ({"hidden_act": "relu"}, "not the activation 'relu'"),
    ],
)
def test_what_llama_cpp_does_in_one_way_only(options, named, tmp_path):
    pytest.importorskip("gguf")
    save(tmp_path / "ours", **options)
    with pytest.raises(InputError, match=named):
        export(tmp_path / "ours", tmp_path / "out", "gguf")


def test_the_recipe_tells_the_difference_and_gives_one_sentence_for_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(RECIPES))
    recipe = importlib.import_module("export")
    save(tmp_path / "ours", "token")

    def call(format):
        command = ["export.py", "--format", format, "--model", str(tmp_path / "ours")]
        monkeypatch.setattr(sys, "argv", [*command, "--output_dir", str(tmp_path / format)])
        recipe.main()

    call("stock")
    assert "largest difference from our own forward pass 0 (tolerance 0)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        call("gguf")
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- serving


# What each program takes from config.json without a default of its own, as far as we know: none of them ran here.
TEXT_EMBEDDINGS_INFERENCE = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act"
TEXT_EMBEDDINGS_INFERENCE += " hidden_dropout_prob max_position_embeddings type_vocab_size initializer_range"
TEXT_EMBEDDINGS_INFERENCE += " layer_norm_eps pad_token_id model_type architectures"
CTRANSLATE2 = "num_hidden_layers num_attention_heads hidden_act layer_norm_eps vocab_size position_embedding_type"
VLLM = TEXT_EMBEDDINGS_INFERENCE + " position_embedding_type"


def test_serving_programs_find_what_they_read(tmp_path):
    save(tmp_path / "ours", "base")
    export(tmp_path / "ours", tmp_path / "stock", "stock")
    config = read(tmp_path / "stock" / "config.json")
    wanted = {*TEXT_EMBEDDINGS_INFERENCE.split(), *CTRANSLATE2.split(), *VLLM.split()}
    assert wanted <= config.keys()
    assert (config["model_type"], config["position_embedding_type"]) == ("bert", "absolute")
    # vLLM's back end for transformers models loads ours by remote code.
    ours = read(tmp_path / "ours" / "config.json")
    assert ours["auto_map"]["AutoModel"] == "modeling_hfbert.HFBertModel"
    assert {*VLLM.split()} - {"position_embedding_type"} <= ours.keys()
    for directory in ("ours", "stock"):
        weights = {
            name for name in files(tmp_path / directory) if name.endswith((".safetensors", ".bin", ".pt", ".pth"))
        }
        assert weights == {"model.safetensors"}
