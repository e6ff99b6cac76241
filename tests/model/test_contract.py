"""The contract with stock BERT: whatever a user of stock can name, call or read is here too, and behaves alike.

What differs is in `DIFFERENCES` with its reason. A difference that is not listed fails, and so does one that is listed
and no longer there.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from helpers import CASES, PREDICTING, TINY, batch, make, pair, rename_weights, save_wrapped, tensors, tiny_config
from torch import nn
from transformers import BertConfig
from transformers.integrations import sdpa_attention

import hfbert_scratch
from hfbert_scratch import HEADS, HFBertConfig
from hfbert_scratch.model.layout_hfbert import UNPADDED


TOLERANCE = 1e-6
# Where one class of ours stands for several of stock's.
COUNTERPARTS = {
    "BertEmbeddings": "HFBertEmbeddings",
    "BertSelfAttention": "HFBertSelfAttention",
    "BertSelfOutput": "HFBertResidual",
    "BertAttention": "HFBertAttention",
    "BertIntermediate": "HFBertIntermediate",
    "BertOutput": "HFBertResidual",
    "BertLayer": "HFBertLayer",
    "BertEncoder": "HFBertEncoder",
    "BertPooler": "HFBertPooler",
    "BertPredictionHeadTransform": "HFBertPredictionHeadTransform",
    "BertLMPredictionHead": "HFBertLMPredictionHead",
    "BertOnlyMLMHead": "HFBertPreTrainingHeads",
    "BertOnlyNSPHead": "HFBertPreTrainingHeads",
    "BertPreTrainingHeads": "HFBertPreTrainingHeads",
}

_ENCODER = "HFBert is an encoder: what decoders alone have is absent, and refused where it is given"
_ONE_BIAS = "one output bias under one name: FSDP2 refuses stock's second name for the same parameter"
_OWN_NAME = "names the class itself"
_OWN_LOSS = "HFBert divides its loss by the counts it is given, and Trainer asks for them by this attribute"
# What transformers 5.17 calls by another name.
TODAYS_NAMES = {"past_key_values": "cache", "past_key_values_length": "cache_length"}
_DECODER_ARGUMENTS = ("encoder_hidden_states", "encoder_attention_mask", "use_cache", "cache", "cache_length")

# (what is compared, where, name) → why it differs. "*" stands for every place, and needs to differ in one.
DIFFERENCES: dict[tuple[str, str, str], str] = {
    **{("argument", "*", name): _ENCODER for name in _DECODER_ARGUMENTS},
    ("argument", "*", "query_subset"): "addition: the same for the last layer",
    ("argument", "*", "masked_positions"): "addition: where the labels are, so that no shape depends on data",
    ("argument", "*", "skip_logits"): "addition: the loss without the logits",
    ("argument", "*", "num_items_in_batch"): _OWN_LOSS,
    ("argument", "*", "num_sequences_in_batch"): _OWN_LOSS,
    (
        "argument",
        "BertOnlyMLMHead",
        "pooled_output",
    ): "one class serves the three of stock; either input may be absent",
    (
        "argument",
        "BertOnlyNSPHead",
        "sequence_output",
    ): "one class serves the three of stock; the first input is its own",
    (
        "default",
        "BertOnlyMLMHead",
        "sequence_output",
    ): "one class serves the three of stock; either input may be absent",
    ("default", "BertOnlyNSPHead", "pooled_output"): "one class serves the three of stock; either input may be absent",
    ("default", "BertPreTrainingHeads", "sequence_output"): "one class serves the three of stock",
    ("default", "BertPreTrainingHeads", "pooled_output"): "one class serves the three of stock",
    ("attribute", "BertEmbeddings", "token_type_ids"): "a buffer of zeros; zeros are made where they are needed",
    ("buffer", "*", "embeddings.token_type_ids"): "a buffer of zeros; zeros are made where they are needed",
    ("attribute", "BertSelfAttention", "is_decoder"): _ENCODER,
    ("attribute", "BertSelfAttention", "layer_idx"): "the number of the layer in a decoder's cache: " + _ENCODER,
    ("attribute", "BertAttention", "is_cross_attention"): _ENCODER,
    ("attribute", "BertLayer", "is_decoder"): _ENCODER,
    ("attribute", "BertLayer", "add_cross_attention"): _ENCODER,
    ("type", "BertEncoder", "output"): "BaseModelOutput: " + _ENCODER,
    ("type", "BertModel", "output"): "BaseModelOutputWithPooling: " + _ENCODER,
    ("type", "BertForPreTraining", "output"): "HFBertForPreTrainingOutput goes on with the two parts of the loss",
    ("field", "BertForPreTraining", "masked_lm_loss"): "addition: the first part of the loss, behind stock's fields",
    ("field", "BertForPreTraining", "next_sentence_loss"): "addition: the second part of the loss",
    ("field", "BertModel", "cross_attentions"): _ENCODER,
    ("field", "BertModel", "cache"): _ENCODER,
    ("field", "BertEncoder", "cross_attentions"): _ENCODER,
    ("field", "BertEncoder", "cache"): _ENCODER,
    ("class attribute", "*", "_no_split_modules"): _OWN_NAME,
    ("class attribute", "*", "_can_record_outputs"): _OWN_NAME,
    ("class attribute", "*", "_auto_class"): "checkpoints carry their code",
    ("class attribute", "*", "_can_compile_fullgraph"): "addition: all of it is one graph, which a test compiles",
    (
        "class attribute",
        "*",
        "_keys_to_ignore_on_load_unexpected",
    ): "old checkpoints, and stock's with two biases, load without a complaint",
    ("class attribute", "*", "_tied_weights_keys"): _ONE_BIAS,
    ("state_dict", "*", "cls.predictions.decoder.bias"): _ONE_BIAS,
    ("config", "BertConfig", "is_decoder"): _ENCODER,
    ("config", "BertConfig", "add_cross_attention"): _ENCODER,
    ("config", "BertConfig", "use_cache"): _ENCODER,
    ("config value", "BertConfig", "model_type"): _OWN_NAME,
    ("config value", "BertConfig", "_auto_class"): "checkpoints carry their code",
    ("config value", "BertConfig", "keys_to_ignore_at_inference"): "the parts of the loss are no predictions",
    ("behaviour", "BertForPreTraining", "labels of one task"): "stock returns no loss; here it is that task's",
    ("behaviour", "*", "nothing labelled"): "stock's loss is NaN, which would end a run; here it is 0",
    ("behaviour", "BertForQuestionAnswering", "one of two positions"): "stock returns no loss; here it is refused",
    ("behaviour", "BertForSequenceClassification", "an unknown problem_type"): "stock returns no loss; here the three "
    "that there are are named",
    ("behaviour", "BertForSequenceClassification", "labels that broadcast"): "stock compares every output with every "
    "label and warns; here both shapes are named",
    ("behaviour", "BertForSequenceClassification", "several labels beyond 0 to 1"): "stock's loss has no lower bound "
    "there (-100 does not mean ignored); here the range is named",
    ("behaviour", "BertForSequenceClassification", "float64 labels"): "stock's loss has their type; here the logits', "
    "at least float32",
    (
        "behaviour",
        "BertForQuestionAnswering",
        "three labels",
    ): "stock's span head grows with num_labels and its forward fails; here it has two outputs",
    ("behaviour", "BertModel", "encoder_hidden_states"): "stock ignores them without a cross-attention; " + _ENCODER,
    ("behaviour", "BertModel", "past_key_values"): "stock's encoder sees them, for PEFT's prefix tuning of the bare "
    "encoder (stock's heads do not take them); here they are refused: prompt tuning and p-tuning work",
    ("behaviour", "BertModel", "is_causal"): "stock follows it in sdpa without a mask and ignores it elsewhere; here "
    "it is refused, and left_to_right decides",
    ("behaviour", "BertModel", "a list for a tensor"): "stock fails inside PyTorch; here the argument is named",
    ("behaviour", "BertModel", "a longer mask"): "stock cuts a mask to the input; here both shapes are named",
    ("behaviour", "BertForMaskedLM", "loss in half precision"): "stock rounds it to the model's type; here it is in "
    "float32",
    ("behaviour", "BertModel", "too long"): "stock fails inside PyTorch; here the limit is named",
    (
        "behaviour",
        "BertForMaskedLM",
        "embeddings without head",
    ): "stock fails inside PyTorch; here the remedy is named",
    ("behaviour", "BertForMaskedLM", "untied, saved and opened"): "stock loses the output bias, which it saves under "
    "the name that it does not read; here the logits stay",
    ("behaviour", "BertForMaskedLM", "strict load_state_dict into stock"): _ONE_BIAS + "; save_pretrained and "
    "from_pretrained, or strict=False and tie_weights(), carry the weights over",
    ("behaviour", "BertForMaskedLM", "weights named by a wrapper"): "stock draws them anew and reports; here it is "
    "refused, for nothing of the checkpoint would be used",
}

Difference = tuple[str, str, str]


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """The named parameters; a rest of any kind takes what stock's has by name."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = inspect.signature(function).parameters
    return {TODAYS_NAMES.get(name, name): value for name, value in named.items() if value.kind not in variable}


def compare_signatures(where: str, ours: Any, stock: Any) -> Iterator[Difference]:
    left, right = parameters(ours), parameters(stock)
    for name in left.keys() ^ right.keys():
        yield "argument", where, name
    shared = [name for name in right if name in left]
    assert shared == [name for name in left if name in right], where
    for name in shared:
        if left[name].default != right[name].default:
            yield "default", where, name
    # Nothing given by position may mean something else than in stock.
    decoders = [name for name in right if name not in _DECODER_ARGUMENTS]
    by_position = [name for name, value in left.items() if value.kind is not inspect.Parameter.KEYWORD_ONLY]
    if where not in ("BertOnlyMLMHead", "BertOnlyNSPHead"):
        assert by_position[: len(decoders)] == decoders, where


def public_names(value: Any) -> set[str]:
    return {name for name in dir(value) if not name.startswith("_")}


def field_names(output: type) -> list[str]:
    return [TODAYS_NAMES.get(name, name) for name in output.__dataclass_fields__]


def module_differences() -> Iterator[Difference]:
    """Attributes, paths, signatures and names of every module of every head."""
    for case in CASES:
        ours, stock = pair(case)
        left, right = dict(ours.named_modules()), dict(stock.named_modules())
        assert left.keys() == right.keys(), case
        assert [name for name, _ in ours.named_parameters()] == [name for name, _ in stock.named_parameters()], case
        assert {name: value.shape for name, value in ours.named_parameters()} == {
            name: value.shape for name, value in stock.named_parameters()
        }
        for name in dict(ours.named_buffers()).keys() ^ dict(stock.named_buffers()).keys():
            yield "buffer", CASES[case][1], name.removeprefix("bert.")
        for name in ours.state_dict().keys() ^ stock.state_dict().keys():
            yield "state_dict", CASES[case][1], name
        for path, module in right.items():
            where, mine = type(module).__name__, left[path]
            if where.startswith("Bert") and path:
                assert type(mine).__name__ == COUNTERPARTS.get(where, f"HF{where}"), path
            for name in public_names(module) - public_names(mine):
                yield "attribute", where, name
            if type(mine) is not type(module):
                yield from compare_signatures(where, mine.forward, module.forward)
            for name in public_names(module) & public_names(mine):
                mine_value, value = getattr(mine, name, None), getattr(module, name, None)
                if isinstance(value, bool | int | float | str | None) and mine_value != value:
                    yield "value", where, name


def class_differences() -> Iterator[Difference]:
    """Class attributes and the methods that contain and replace."""
    methods = (
        "get_input_embeddings",
        "set_input_embeddings",
        "get_output_embeddings",
        "set_output_embeddings",
        "resize_token_embeddings",
    )
    for name in HEADS.values():
        ours, stock = getattr(hfbert_scratch, name), getattr(transformers, name.removeprefix("HF"))
        where = stock.__name__
        for attribute in sorted(vars(transformers.PreTrainedModel)) + ["_no_split_modules"]:
            mine, value = getattr(ours, attribute, None), getattr(stock, attribute, None)
            plain = bool | int | str | list | dict | set | tuple | None
            if not attribute.startswith("__") and isinstance(mine, plain) and mine != value:
                yield "class attribute", where, attribute
        for method in methods:
            yield from compare_signatures(f"{where}.{method}", getattr(ours, method), getattr(stock, method))
        assert ours.base_model_prefix == stock.base_model_prefix
        yield from compare_signatures(f"{where}()", ours.__init__, stock.__init__)


def output_differences() -> Iterator[Difference]:
    """Classes of outputs, their fields and the order of their keys."""
    options = {"output_hidden_states": True, "output_attentions": True}
    for case, (_, stock_name, _) in CASES.items():
        ours, stock = pair(case, attn_implementation="eager")
        left, right = ours(**batch(case), **options), stock(**batch(case), **options)
        if type(left) is not type(right):
            yield "type", stock_name, "output"
        for name in set(field_names(type(left))) ^ set(field_names(type(right))):
            yield "field", stock_name, name
        shared = [name for name in right if name in left]
        assert list(left)[: len(shared)] == shared
        assert {name for name in right if name not in left} <= {"cross_attentions"}, case
        for name, value in tensors({name: right[name] for name in shared}).items():
            torch.testing.assert_close(tensors(left)[name], value, atol=TOLERANCE, rtol=0)
    ours, stock = pair("base")
    vectors = torch.randn(2, 7, TINY["hidden_size"])
    left, right = ours.encoder(vectors), stock.encoder(vectors)
    if type(left) is not type(right):
        yield "type", "BertEncoder", "output"
    for name in set(field_names(type(left))) ^ set(field_names(type(right))):
        yield "field", "BertEncoder", name


def config_differences() -> Iterator[Difference]:
    ours, stock = HFBertConfig(), BertConfig()
    where = "BertConfig"
    for name in public_names(BertConfig) - public_names(HFBertConfig):
        yield "config", where, name
    for name in vars(stock).keys() - vars(ours).keys():
        if not name.startswith("_"):
            yield "config", where, name
    names = vars(stock).keys() | vars(transformers.PreTrainedConfig).keys() | {"keys_to_ignore_at_inference"}
    for name in sorted(names):
        mine, value = getattr(HFBertConfig, name, None), getattr(BertConfig, name, None)
        if name in vars(stock) and name in vars(ours):
            mine, value = getattr(ours, name), getattr(stock, name)
        plain = bool | int | float | str | list | dict | None
        is_plain = isinstance(value, plain) and isinstance(mine, plain) and not name.startswith("__")
        if is_plain and mine != value and name not in ("is_decoder", "add_cross_attention", "use_cache"):
            yield "config value", where, name
    left, right = parameters(HFBertConfig.__init__), parameters(BertConfig.__init__)
    for name in right.keys() - left.keys():
        yield "config", where, name
    for name in right.keys() & left.keys():
        assert left[name].default == right[name].default, name


def outcome(call: Any) -> Any:
    """What came of a call, coarse enough to be compared: the kind of exception, or what it returned."""
    try:
        value = call()
    except Exception as error:  # stock raises whatever PyTorch does
        return type(error).__name__, str(error)
    if isinstance(value, torch.Tensor):
        return "NaN" if value.isnan().any() else round(value.item(), 5)
    return value


def one_task(model):
    return model(**(batch("pretraining") | {"next_sentence_label": None})).loss


def nothing_labelled(case):
    def call(model):
        inputs = batch(case)
        for name in ("labels", "next_sentence_label"):
            if name in inputs:
                inputs[name] = torch.full_like(inputs[name], -100)
        for name in ("start_positions", "end_positions"):
            if name in inputs:
                inputs[name] = torch.full_like(inputs[name], 99)
        return model(**inputs).loss

    return call


def classification_labels(problem_type, labels):
    def call(model):
        vars(model.config)["problem_type"] = problem_type  # transformers 5.17 checks what is assigned
        loss = model(**batch(labels=False), labels=labels).loss
        return loss if loss is None else str((loss.dtype, round(loss.item(), 4)))

    return call


def untied(model, tmp_path):
    model.config.tie_word_embeddings = False
    decoder = model.get_output_embeddings()
    decoder.weight = nn.Parameter(decoder.weight.detach() * 2)
    directory = tmp_path / f"untied {type(model).__name__}"
    model.save_pretrained(directory)
    again = type(model).from_pretrained(directory).eval()
    return torch.allclose(again(**batch()).logits, model(**batch()).logits, atol=TOLERANCE)


def one_position(model):
    return model(**(batch("question_answering") | {"end_positions": None})).loss


def three_labels(model):
    other = type(model)(type(model.config)(**TINY, num_labels=3))
    return len(other(**batch("question_answering")))


def encoder_states(model):
    vectors = torch.zeros(3, 5, TINY["hidden_size"])
    return tuple(model(**batch(), encoder_hidden_states=vectors).last_hidden_state.shape)


def too_long(model):
    return model(torch.ones(1, TINY["max_position_embeddings"] + 1, dtype=torch.long)).last_hidden_state.sum()


def embeddings_alone(model):
    model.bert.resize_token_embeddings(TINY["vocab_size"] + 5)
    return model(**batch("masked_lm", labels=False)).logits.sum()


def earlier_keys(model):
    keys = torch.zeros(3, TINY["num_attention_heads"], 2, TINY["hidden_size"] // TINY["num_attention_heads"])
    cache = transformers.DynamicCache([(keys, keys)] * TINY["num_hidden_layers"])
    return model(batch()["input_ids"], past_key_values=cache).last_hidden_state.sum()


def double_causality(model):
    return model(batch()["input_ids"], is_causal=True).last_hidden_state.sum()


def half_precision(model):
    return str(model.bfloat16()(**batch("masked_lm")).loss.dtype)


def no_tensor(model):
    return model(batch()["input_ids"], token_type_ids=[[0] * 12] * 3).last_hidden_state.sum()


def other_mask(model):
    return model(batch()["input_ids"], attention_mask=torch.ones(3, 15)).last_hidden_state.sum()


def load_into_stock(model):
    _, stock = pair("masked_lm")
    return str(stock.load_state_dict(model.state_dict()))


def wrapped_names(model, tmp_path):
    directory = tmp_path / type(model).__name__
    save_wrapped(model, directory)
    return type(model).from_pretrained(directory).num_parameters()


# The heads that take class ids or positions.
UNLABELLED = [case for case in CASES if case not in ("base", "multi_label", "regression")]
# (case, name) → what is done with the model
BEHAVIOURS: dict[tuple[str, str], Any] = {
    ("pretraining", "labels of one task"): one_task,
    **{(case, "nothing labelled"): nothing_labelled(case) for case in UNLABELLED},
    ("single_label", "an unknown problem_type"): classification_labels("other", torch.tensor([0, 1, 2])),
    ("single_label", "labels that broadcast"): classification_labels("regression", torch.ones(3)),
    ("multi_label", "several labels beyond 0 to 1"): classification_labels(
        "multi_label_classification", torch.full((3, 3), -100.0)
    ),
    ("multi_label", "float64 labels"): classification_labels("multi_label_classification", torch.ones(3, 3).double()),
    ("question_answering", "one of two positions"): one_position,
    ("question_answering", "three labels"): three_labels,
    ("base", "encoder_hidden_states"): encoder_states,
    ("base", "too long"): too_long,
    ("base", "is_causal"): double_causality,
    ("base", "past_key_values"): earlier_keys,
    ("base", "a list for a tensor"): no_tensor,
    ("base", "a longer mask"): other_mask,
    ("masked_lm", "loss in half precision"): half_precision,
    ("masked_lm", "embeddings without head"): embeddings_alone,
    ("masked_lm", "untied, saved and opened"): untied,
    ("masked_lm", "strict load_state_dict into stock"): load_into_stock,
    ("masked_lm", "weights named by a wrapper"): wrapped_names,
}


def behaviour_differences(tmp_path) -> Iterator[Difference]:
    for (case, name), do in BEHAVIOURS.items():
        more = (tmp_path,) if "tmp_path" in inspect.signature(do).parameters else ()
        left, right = (outcome(lambda model=model: do(model, *more)) for model in pair(case))  # noqa: B023
        if left != right:
            yield "behaviour", CASES[case][1], name


def test_nothing_differs_from_stock_but_what_is_listed_with_its_reason(tmp_path):
    differences = {
        *module_differences(),
        *class_differences(),
        *output_differences(),
        *config_differences(),
        *behaviour_differences(tmp_path),
    }
    unlisted, seen = set(), set()
    for kind, where, name in differences:
        keys = {(kind, where, name), (kind, "*", name)} & DIFFERENCES.keys()
        seen |= keys
        if not keys:
            unlisted.add((kind, where, name))
    assert not unlisted, "differ from stock without a listed reason"
    gone = sorted(DIFFERENCES.keys() - seen)
    assert not gone, "are listed as differences and are none"
    assert all(len(reason) > 10 for reason in DIFFERENCES.values())


# ------------------------------------------------------------------------------------------------ calls of the parts


def part_calls() -> dict[str, tuple[str, tuple, dict[str, Any]]]:
    """name → (path of the module, arguments, named arguments), as one would call stock's."""
    ids, vectors = batch()["input_ids"], torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    wide, pooled = torch.randn(3, 7, 64), vectors[:, 0]
    mask = torch.zeros(3, 1, 7, 7)
    mask[1, ..., 5:] = torch.finfo(torch.float32).min
    layer = "bert.encoder.layer.0"
    return {
        "embeddings": ("bert.embeddings", (ids,), {}),
        "embeddings of vectors": ("bert.embeddings", (), {"inputs_embeds": vectors}),
        "embeddings by name": (
            "bert.embeddings",
            (),
            {"input_ids": ids, "token_type_ids": torch.ones_like(ids), "position_ids": torch.arange(12)[None] + 3},
        ),
        "encoder": ("bert.encoder", (vectors, mask), {}),
        "encoder by name": ("bert.encoder", (), {"hidden_states": vectors, "attention_mask": mask}),
        "layer": (layer, (vectors, mask), {}),
        "layer by name": (layer, (), {"hidden_states": vectors}),
        "attention": (f"{layer}.attention", (vectors, mask), {}),
        "self-attention": (f"{layer}.attention.self", (vectors,), {"attention_mask": mask}),
        "self-attention's output": (f"{layer}.attention.output", (vectors, vectors), {}),
        "output by name": (f"{layer}.attention.output", (), {"hidden_states": vectors, "input_tensor": vectors}),
        "intermediate": (f"{layer}.intermediate", (), {"hidden_states": vectors}),
        "output": (f"{layer}.output", (), {"hidden_states": wide, "input_tensor": vectors}),
        "dropout": (f"{layer}.output.dropout", (), {"input": vectors}),
        "pooler": ("bert.pooler", (), {"hidden_states": vectors}),
        "pooler's activation": ("bert.pooler.activation", (vectors,), {}),
        "heads": ("cls", (), {"sequence_output": vectors, "pooled_output": pooled}),
        "predictions": ("cls.predictions", (), {"hidden_states": vectors}),
        "transform": ("cls.predictions.transform", (), {"hidden_states": vectors}),
        "decoder": ("cls.predictions.decoder", (), {"input": vectors}),
        "next sentence": ("cls.seq_relationship", (), {"input": pooled}),
    }


@pytest.mark.parametrize("name", part_calls())
def test_a_part_called_alone_is_stocks(name):
    path, args, kwargs = part_calls()[name]
    left, right = (
        model.get_submodule(path)(*args, **kwargs) for model in pair("pretraining", attn_implementation="eager")
    )
    if isinstance(right, dict):
        left, right = left.to_tuple(), right.to_tuple()
    assert type(left) is type(right)
    torch.testing.assert_close(left, right, atol=TOLERANCE, rtol=0)


def test_the_feed_forward_of_a_layer_is_replaced_and_called_by_stocks_name():
    ours, stock = pair("base")
    vectors = torch.randn(3, 7, 32)
    left, right = (model.encoder.layer[0].feed_forward_chunk(vectors) for model in (ours, stock))
    torch.testing.assert_close(left, right, atol=TOLERANCE, rtol=0)
    for model in (ours, stock):
        model.encoder.layer[1].feed_forward_chunk = lambda attention_output: attention_output * 2
    assert torch.allclose(ours(**batch())[0], stock(**batch())[0], atol=TOLERANCE)


@pytest.mark.parametrize("attention", ["sdpa", "eager", UNPADDED])
@pytest.mark.parametrize("case", CASES)
def test_hooks_see_the_tensors_that_they_see_in_stock(case, attention):
    """Every module is called in the same way: inputs by position and by name, outputs, and how often."""
    (ours, stock), mask = pair(case), batch(case)["attention_mask"].view(-1, 12)
    ours.set_attn_implementation(attention)
    stock.set_attn_implementation("sdpa" if attention == UNPADDED else attention)
    seen: list[dict[str, list[Any]]] = [{}, {}]

    def listen(module, number, path):
        def hook(module, args, kwargs, output):
            named = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
            values = list(output.values()) if isinstance(output, dict) else output
            seen[number].setdefault(path, []).append(present([args, named, values]))

        module.register_forward_hook(hook, with_kwargs=True)

    for number, model in enumerate((ours, stock)):
        for path, module in model.named_modules():
            if attention != UNPADDED or module is model.base_model:  # its layers see another shape
                listen(module, number, path)
        model(**batch(case))
    assert seen[0].keys() == seen[1].keys()
    for path, calls in seen[1].items():
        if path == "" and case == "pretraining":  # goes on with the two parts of the loss
            seen[0][path][0][2] = seen[0][path][0][2][: len(calls[0][2])]
        if attention == UNPADDED:  # without padding it returns zeros there
            seen[0][path], calls = (scrub(value, mask) for value in (seen[0][path], calls))
        torch.testing.assert_close(
            seen[0][path], calls, atol=1e-5, rtol=1e-5, msg=lambda text, at=path: f"{at}: {text}"
        )


def present(value: Any) -> Any:
    """Tensors alone, lists for tuples, and nothing that is None."""
    if isinstance(value, dict):
        return {name: present(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [present(part) for part in value if part is not None]
    return value.detach()


def scrub(value: Any, mask: torch.Tensor) -> Any:
    """Set vectors of padding to 0."""
    if isinstance(value, dict):
        return {name: scrub(part, mask) for name, part in value.items()}
    if isinstance(value, list):
        return [scrub(part, mask) for part in value]
    return value * mask[..., None] if value.dim() == 3 and value.shape[:2] == mask.shape else value


class MeanPooler(nn.Module):
    def forward(self, hidden_states):
        return hidden_states.mean(1)


@pytest.mark.parametrize("attention", ["sdpa", UNPADDED])
@pytest.mark.parametrize("case", ["base", "single_label", "multiple_choice"])
def test_a_replaced_pooler_gets_all_vectors_as_in_stock(case, attention):
    ours, stock = pair(case)
    ours.set_attn_implementation(attention)
    inputs = {name: values for name, values in batch(case).items() if name != "attention_mask"}
    for model in (ours, stock):
        model.base_model.pooler = MeanPooler()
    torch.testing.assert_close(ours(**inputs)[1], stock(**inputs)[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", PREDICTING)
@pytest.mark.parametrize("labels", [True, False])
def test_a_hook_on_the_heads_changes_the_logits_as_in_stock(case, labels):
    def doubled(module, args, output):
        return tuple(2 * part for part in output) if isinstance(output, tuple) else 2 * output

    ours, stock = pair(case)
    plain = ours(**batch(case, labels=labels))
    for model in (ours, stock):
        model.cls.register_forward_hook(doubled)
        model.cls.register_forward_pre_hook(lambda module, args: tuple(part + 0.5 for part in args))
    left, right = (tensors(model(**batch(case, labels=labels))) for model in (ours, stock))
    for name, value in right.items():
        torch.testing.assert_close(left[name], value, atol=1e-5, rtol=1e-5)
    assert not torch.equal(left[list(right)[-1]], tensors(plain)[list(right)[-1]])


def test_arguments_of_a_decoder_are_refused():
    model = make("masked_lm")
    for name in ("encoder_hidden_states", "encoder_attention_mask", "cache", "past_key_values"):
        with pytest.raises(ValueError, match=f"{name} is for decoders, and HFBert is an encoder"):
            model(**batch(), **{name: torch.ones(3, 4)})
        model(**batch(), **{name: None})
    vectors = torch.zeros(1, 3, 32)
    with pytest.raises(TypeError):
        model.bert(torch.ones(1, 3, dtype=torch.long), None, None, None, None, vectors)
    with pytest.raises(TypeError):
        model.bert.encoder(vectors, None, vectors)


# -------------------------------------------------------------------------------------------------------- containers


@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_gotten_set_resized_and_loaded_as_stocks(case):
    ours, stock = pair(case)
    for model in (ours, stock):
        assert (model.get_output_embeddings() is None) == (case not in PREDICTING)
        torch.manual_seed(2)
        resized = model.resize_token_embeddings(105)
        assert resized is model.get_input_embeddings() and resized.num_embeddings == 105
        assert model.config.vocab_size == model.base_model.config.vocab_size == 105
    inputs = batch(case, labels=False)
    for name, value in tensors(stock(**inputs)).items():
        torch.testing.assert_close(tensors(ours(**inputs))[name], value, atol=TOLERANCE, rtol=0)
    # Stock's whole state dict loads here as it is; ours there but for the second name of the bias.
    ours.load_state_dict(stock.state_dict())
    result = stock.load_state_dict(ours.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= {"cls.predictions.decoder.bias"}
    replacement = nn.Embedding(105, 32)
    for model in (ours, stock):
        model.set_input_embeddings(replacement)
        model.tie_weights()
        assert model.base_model.embeddings.word_embeddings is replacement
    for name, value in tensors(stock(**inputs)).items():
        torch.testing.assert_close(tensors(ours(**inputs))[name], value, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", PREDICTING)
def test_embeddings_resized_without_their_head_are_named(case):
    model = make(case)
    model.bert.resize_token_embeddings(105)
    for labels in (False, True):
        with pytest.raises(ValueError, match="hold 105 tokens and the output bias 99; resize the model with its head"):
            model(**batch(case, labels=labels))
    model.resize_token_embeddings(105)
    assert model(**batch(case, labels=False))[0].shape[-1] == 105


def test_embeddings_smaller_than_the_configurations_vocabulary_are_named():
    model = make("base")
    model.set_input_embeddings(nn.Embedding(50, 32))
    with pytest.raises(ValueError, match="word embeddings hold 50 tokens and vocab_size is 99; resize both"):
        model(torch.full((1, 4), 60))


# -------------------------------------------------------------------------------------------------------- attentions


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_attentions_that_a_kernel_does_not_return_are_refused_or_warned_about_as_in_stock(attention, monkeypatch):
    outcomes = []
    for model in pair("base"):
        model.requires_grad_(False).set_attn_implementation(attention)
        warnings: list[str] = []
        monkeypatch.setattr(sdpa_attention.logger, "warning_once", warnings.append, raising=False)
        attentions = outcome(lambda: model(**batch(), output_attentions=True).attentions)  # noqa: B023
        setting = outcome(lambda: setattr(model.config, "output_attentions", True))  # noqa: B023
        outcomes.append((attentions, setting, warnings))
    assert outcomes[0] == outcomes[1]


def test_the_unpadded_attention_returns_no_attentions_and_says_so():
    model = make("base")
    model.set_attn_implementation(UNPADDED)
    with pytest.raises(ValueError, match=r"returns no attentions; model.set_attn_implementation\('eager'\) does"):
        model(**batch(), output_attentions=True)


# ------------------------------------------------------------------------------------------------------ configuration

# Each is made from the other where it is alone.
LABELS = {"id2label", "label2id"}
# Values that the machinery of transformers treats apart, and ordinary ones of every other field.
KEPT: list[dict[str, Any]] = [
    *({name: getattr(tiny_config(), name)} for name in sorted(HFBertConfig.__dataclass_fields__.keys() - LABELS)),
    {"num_labels": 5},
    {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}},
    {"dtype": "bfloat16"},
    {"torch_dtype": "float16"},
    {"problem_type": "regression"},
    {"attribute_map": {"n_embd": "hidden_size"}},
    {"n_embd": 7, "n_layer": 3},
    {"output_hidden_states": True, "return_dict": False},
    {"attn_implementation": "eager"},
    {"eos_token_id": [1, 2], "bos_token_id": 3},
    {"pad_token_id": None},
    {"tie_word_embeddings": False},
    {"classifier_dropout": 0.25},
    {"task_specific_params": {"a": {"b": 1}}, "finetuning_task": "mrpc", "tokenizer_class": "BertTokenizer"},
    {"is_decoder": False, "use_cache": True, "position_embedding_type": "absolute"},
    {"sizes": [1, 2], "nested": {"a": {"b": None}}},
]


@pytest.mark.parametrize("fields", KEPT, ids=str)
def test_a_configuration_that_is_saved_is_the_one_that_is_opened(fields, tmp_path):
    config = tiny_config(**fields)
    config.save_pretrained(tmp_path)
    assert HFBertConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_sizes", [32, 64]),
        ("vocab_sizes", 99),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("position_embedding_type", "relative_key"),
        ("dtype", "bfloat61"),
    ],
)
def test_what_could_not_be_opened_again_is_not_saved(name, value, tmp_path):
    config = tiny_config()
    setattr(config, name, value)
    with pytest.raises(Exception, match=name):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


# ------------------------------------------------------------------------------------------------- names of a wrapper


def renamed(pattern: str, replacement: str) -> Any:
    return lambda weights: {re.sub(pattern, replacement, name): value for name, value in weights.items()}


# What wrappers and other programs make of the names of weights.
NAMES = {
    "DistributedDataParallel": renamed("^", "module."),
    "compiled": renamed("^", "_orig_mod."),
    "both": renamed("^", "module._orig_mod."),
    "compiled layers": renamed(r"layer\.(\d)\.", r"layer.\1._orig_mod."),
    "compiled layers of one": renamed(r"^(.*)layer\.(\d)\.", r"module.\1layer.\2._orig_mod."),
    "Lightning": renamed("^", "model."),
    "PEFT": renamed("^", "base_model.model."),
    "FSDP1": renamed("^", "_fsdp_wrapped_module."),
    "a user's": renamed("^", "text.encoder."),
    "the package's name": renamed(r"^(bert\.|(?!cls))", "hfbert."),
    "the package's name, heads too": renamed("^", "hfbert."),
    "DistributedDataParallel of the encoder": renamed(r"^(bert\.|(?!cls))", "bert.module."),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("case", ["base", "masked_lm"])
def test_weights_named_by_a_wrapper_are_refused_with_the_remedy(kind, case, tmp_path):
    model = make(case)
    rename_weights(model, tmp_path, NAMES[kind])
    with pytest.raises(ValueError, match=r"a wrapper of the model named .*; open it with from_pretrained") as refusal:
        type(model).from_pretrained(tmp_path)
    mapping = ast.literal_eval(str(refusal.value).split("key_mapping=")[1].removesuffix(")"))
    again, info = type(model).from_pretrained(tmp_path, key_mapping=mapping, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again(**batch())[0], model(**batch())[0])


OTHERS_WEIGHTS = {
    "another convention": renamed(r"layer\.", "layers."),
    "in capitals": lambda weights: {name.upper(): value for name, value in weights.items()},
    "none of BERT": lambda weights: {"convolution.weight": torch.zeros(3)},
}


@pytest.mark.parametrize("kind", OTHERS_WEIGHTS)
@pytest.mark.parametrize("case", ["base", "single_label"])
def test_a_checkpoint_with_hardly_a_weight_of_the_encoder_is_refused(kind, case, tmp_path):
    model = make(case)
    rename_weights(model, tmp_path, OTHERS_WEIGHTS[kind])
    with pytest.raises(ValueError, match=r"do not belong to its config.json: .* of the encoder's 37"):
        type(model).from_pretrained(tmp_path)


def test_a_start_from_a_part_of_the_weights_is_not_refused(tmp_path):
    """A new head, more layers, a new vocabulary, or weights given by hand."""
    model = make("masked_lm")
    model.save_pretrained(tmp_path / "all")
    for name in HEADS.values():
        getattr(hfbert_scratch, name).from_pretrained(tmp_path / "all")
    hfbert_scratch.HFBertForMaskedLM.from_pretrained(tmp_path / "all", num_hidden_layers=4)
    rename_weights(model, tmp_path / "none", lambda weights: {k: v for k, v in weights.items() if "word_emb" not in k})
    hfbert_scratch.HFBertForMaskedLM.from_pretrained(tmp_path / "none")
    hfbert_scratch.HFBertModel.from_pretrained(None, config=model.config, state_dict={})
