"""A checkpoint in other programs' formats: ONNX, GGUF, CTranslate2, OpenVINO, sentence-transformers, stock `bert`.

Every format starts from the stock conversion, which is exact, and leaves a directory that its readers open as it is.
At the end the written directory is opened again and what it computes is compared with our own forward pass.
"""

import importlib.metadata
import importlib.util
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from ..features.encoder import encode
from ..model import modeling_hfbert
from ..model.configuration_hfbert import HFBertConfig
from ..text.tokenizer import SPECIAL_TOKENS, load_tokenizer
from ..utils.errors import InputError
from ..utils.files import read_json, write_json
from .stock import TOKENIZER_FILES, new_directory, random_batch, to_stock


POOLINGS = ("mean", "cls")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Outputs of the ONNX graph by head, named as transformers.js and optimum look for them.
_OUTPUTS = {
    "BertModel": ("last_hidden_state", "pooler_output"),
    "BertForPreTraining": ("logits", "seq_relationship_logits"),
    "BertForQuestionAnswering": ("start_logits", "end_logits"),
}
# Their encoder is what one wants of them elsewhere; a fine-tuned head is not left out in silence.
_PRETRAINING_HEADS = ("BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Format:
    """What a format needs and holds.

    write: writes a directory and returns how far what `checked_by` reads from it is from our own forward pass.
    packages: what writing and checking import (distribution → module). heads: stock's names of the architectures it
    can hold; None for all. encoder: of a checkpoint with pretraining heads, the encoder is written. tokenizer: whether
    there must be one. tolerance: the largest difference from our own forward pass that counts as the same, absolute;
    numbers are of the order of 1 (vectors after a LayerNorm, logits).
    """

    write: Callable[["Source", Path], float]
    packages: dict[str, str]
    heads: tuple[str, ...] | None
    encoder: bool
    tokenizer: bool
    tolerance: float
    checked_by: str


@dataclass(frozen=True)
class Export:
    """What an export wrote. `largest_difference` is at most `tolerance`; `checked_by` says what opened the result."""

    directory: Path
    format: str
    architecture: str
    largest_difference: float
    tolerance: float
    checked_by: str
    notes: list[str]


@dataclass(frozen=True)
class Source:
    """What a format is written from: the stock directory, and our own model with the same weights in eval mode."""

    stock: Path
    architecture: str
    model: transformers.PreTrainedModel
    pooling: str

    def batches(self) -> list[dict[str, torch.Tensor]]:
        """Two padded batches of different size and length."""
        first = random_batch(self.model.config, self.architecture)
        return [first, {name: tensor[1:, ..., : max(1, tensor.shape[-1] - 5)] for name, tensor in first.items()}]

    @torch.no_grad()
    def outputs(self, batch: dict[str, torch.Tensor]) -> Arrays:
        """Our own forward pass, by the names the ONNX graph uses."""
        return dict(zip(self.names, (part.numpy() for part in self.model(**batch).to_tuple()), strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs' names."""
        if self.architecture == "BertModel" and self.model.pooler is None:
            return ("last_hidden_state",)
        return _OUTPUTS.get(self.architecture, ("logits",))

    def largest_difference(self, run: Callable[[dict[str, np.ndarray]], Arrays]) -> float:
        """Of what `run` computes from our own outputs, over both batches, wherever there is no padding."""
        differences = []
        for batch in self.batches():
            found, mask = run({name: tensor.numpy() for name, tensor in batch.items()}), batch["attention_mask"].bool()
            for name, ours in self.outputs(batch).items():
                theirs = found[name]
                if theirs.shape != ours.shape:
                    raise RuntimeError(f"{name} has shape {theirs.shape}; our own forward pass gives {ours.shape}")
                if ours.shape[: mask.ndim] == mask.shape:
                    theirs, ours = theirs[mask], ours[mask]
                differences.append(_difference(theirs, ours))
        return max(differences)


def export(source: str | Path, target: str | Path, format: str, *, pooling: str = "mean") -> Export:
    """Write our checkpoint `source` (a directory or a name on the Hub) in another `format` (a key of FORMATS).

    `target` is new or empty. pooling ("mean" or "cls"): how formats for sentence vectors (gguf, sentence-transformers)
    make one of the token vectors.

    Raises InputError for a source that is no HFBert checkpoint, lacks weights or has a head that the format cannot
    hold, for a missing package and a target that is not empty; OutputError if `target` cannot be written; RuntimeError
    if what was written computes something else.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is not known; choose one of {', '.join(FORMATS)}")
    if pooling not in POOLINGS:
        raise InputError(f"pooling {pooling!r} is not known; choose one of {', '.join(POOLINGS)}")
    form = FORMATS[format]
    with tempfile.TemporaryDirectory() as temporary, new_directory(target) as directory:
        prepared, notes = _prepare(source, Path(temporary), format, pooling)
        _require(form.packages, format)
        difference = form.write(prepared, directory)
        if not difference <= form.tolerance:
            raise RuntimeError(f"{format} of {source} differs by {difference:.3g} from our own forward pass")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in form.packages)
    return Export(
        Path(target),
        format,
        prepared.architecture,
        difference,
        form.tolerance,
        form.checked_by + (f" ({versions})" if versions else ""),
        notes,
    )


# ---------------------------------------------------------------------------------------------------- what is written


def _prepare(source: str | Path, temporary: Path, format: str, pooling: str) -> tuple[Source, list[str]]:
    """The source of `format` in `temporary`, and notes about it. Raises InputError for what the format cannot hold."""
    form = FORMATS[format]
    _refuse_stock(source, format)
    converted = to_stock(source, temporary / "stock")
    architecture, notes = converted.architecture, converted.notes
    model = _our_model(source, architecture)
    if form.encoder and architecture in _PRETRAINING_HEADS:
        notes = [f"{format} holds the encoder of {architecture}, without the pretraining heads"]
        architecture, model = "BertModel", _our_model(source, "BertModel")
    left_to_right = model.config.left_to_right
    if form.heads is not None and (architecture not in form.heads or left_to_right):
        what = "left-to-right attention" if left_to_right else f"the head of {architecture}"
        able = [name for name, other in FORMATS.items() if other.heads is None or architecture in other.heads]
        able = [name for name in able if not left_to_right or FORMATS[name].heads is None]
        raise InputError(f"{format} cannot hold {what}; choose {' or '.join(able)}")
    has_tokenizer = any((converted.directory / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    if form.tokenizer and not has_tokenizer:
        raise InputError(f"{source} holds no tokenizer, which {format} needs; put its files beside the model")
    if form.encoder and architecture == "BertModel":
        if model.pooler is None:
            # Readers of these formats expect one. A random one would pass for trained.
            model.pooler = modeling_hfbert.HFBertPooler(model.config).eval()
            nn.init.zeros_(model.pooler.dense.weight)
            nn.init.zeros_(model.pooler.dense.bias)
            notes = [note for note in notes if not note.startswith("not in the weights")]
            notes.append("the checkpoint has no pooler: pooler_output will be 0")
        model.save_pretrained(temporary / "encoder")
        for name in TOKENIZER_FILES:
            if (converted.directory / name).is_file():
                shutil.copyfile(converted.directory / name, temporary / "encoder" / name)
        converted = to_stock(temporary / "encoder", temporary / "stock_encoder")
    return Source(converted.directory, architecture, model, pooling), notes


def _require(packages: dict[str, str], format: str) -> None:
    missing = [name for name, module in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"format {format!r} needs packages that are not installed: pip install {' '.join(missing)} "
            "(for all formats: the extra hfbert-scratch[export])"
        )


def _refuse_stock(source: str | Path, format: str) -> None:
    config = Path(source) / "config.json"
    if format != "stock" and config.is_file():
        fields = read_json(config, "the model's configuration")
        if isinstance(fields, dict) and fields.get("model_type") == "bert":
            raise InputError(f"{source} is a stock bert checkpoint; convert it first: recipes/convert.py --to hfbert")


def _our_model(source: str | Path, architecture: str) -> transformers.PreTrainedModel:
    """Our model in eval mode and float32; without a pooler if the checkpoint has none. A head must have weights."""
    name = "HFBertForMaskedLM" if architecture == "BertLMHeadModel" else f"HF{architecture}"
    model, info = getattr(modeling_hfbert, name).from_pretrained(
        source, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    missing = sorted(info["missing_keys"])
    if missing and name == "HFBertModel" and all(key.startswith("pooler.") for key in missing):
        model.pooler = None
    elif missing:
        raise InputError(f"{source} has no weights for {', '.join(missing[:3])} of {name}; train that head first")
    return model.eval()


def _difference(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left.astype(np.float64) - right).max())


def _copy(source: Source, directory: Path, *names: str) -> None:
    for name in names:
        if (source.stock / name).is_file():
            shutil.copyfile(source.stock / name, directory / name)


def _write_stock(source: Source, directory: Path) -> float:
    shutil.copytree(source.stock, directory, dirs_exist_ok=True)
    stock = getattr(transformers, source.architecture).from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    stock.eval()

    def run(batch: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = stock(**{name: torch.from_numpy(array) for name, array in batch.items()}, return_dict=True)
        parts = [part.numpy() for part in outputs.to_tuple() if isinstance(part, torch.Tensor)]
        return dict(zip(source.names, parts, strict=False))

    return source.largest_difference(run)


# ---------------------------------------------------------------------------------------------------- ONNX, OpenVINO


class _Positional(nn.Module):
    """The model with the graph's inputs and outputs in order, and nothing else."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model(**dict(zip(INPUTS, inputs, strict=True)), return_dict=True).to_tuple()


def _write_onnx(source: Source, directory: Path) -> float:
    """The layout of transformers.js: onnx/model.onnx beside config.json and the tokenizer."""
    (directory / "onnx").mkdir()
    path = directory / "onnx" / "model.onnx"
    _export_graph(source, path)
    _copy(source, directory, "config.json", *TOKENIZER_FILES)
    config = read_json(directory / "config.json", "the model's configuration")
    # transformers.js looks for a quantized file in a browser, unless it is told which there is.
    write_json(directory / "config.json", config | {"transformers.js_config": {"dtype": "fp32"}})

    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return source.largest_difference(lambda batch: dict(zip(names, session.run(None, batch), strict=True)))


def _export_graph(source: Source, path: Path) -> None:
    """Batch size, length and number of choices stay free in the graph."""
    batch = source.batches()[0]
    dynamic = dict.fromkeys(range(batch["input_ids"].ndim), torch.export.Dim.DYNAMIC)
    # It warns of every torchvision operator that is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    program = torch.onnx.export(
        _Positional(source.model).eval(),
        tuple(batch[name] for name in INPUTS),
        dynamo=True,
        dynamic_shapes=((dynamic,) * len(INPUTS),),
        input_names=list(INPUTS),
        output_names=list(source.names),
        verbose=False,
    )
    program.save(str(path), external_data=False)


def _write_openvino(source: Source, directory: Path) -> float:
    """The layout of optimum-intel and sentence-transformers: openvino_model.xml and .bin, config.json, tokenizer."""
    import openvino

    with tempfile.TemporaryDirectory() as temporary:
        _export_graph(source, Path(temporary) / "model.onnx")
        model = openvino.convert_model(Path(temporary) / "model.onnx")
        openvino.save_model(model, directory / "openvino_model.xml", compress_to_fp16=False)
    _copy(source, directory, "config.json", *TOKENIZER_FILES)
    # By default OpenVINO computes in what is fastest on the hardware; here the file is checked, not bfloat16.
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(directory / "openvino_model.xml", "CPU", hints)

    def run(batch: Arrays) -> Arrays:
        results = compiled(batch)
        return {name: results[name] for name in source.names}

    return source.largest_difference(run)


# ---------------------------------------------------------------------------------------------------- CTranslate2


def _write_ctranslate2(source: Source, directory: Path) -> float:
    import ctranslate2

    activation = source.model.config.hidden_act
    known = ctranslate2.converters.transformers._SUPPORTED_ACTIVATIONS
    if activation not in known:
        raise InputError(f"ctranslate2 does not know the activation {activation!r}; choose onnx or stock")
    copied = [name for name in TOKENIZER_FILES if (source.stock / name).is_file()]
    converter = ctranslate2.converters.TransformersConverter(str(source.stock), copy_files=copied)
    converter.convert(str(directory), force=True)
    encoder = ctranslate2.Encoder(str(directory), device="cpu", compute_type="float32")

    def run(batch: Arrays) -> Arrays:
        lengths = batch["attention_mask"].sum(axis=1).astype(np.int32)
        outputs = encoder.forward_batch(
            ctranslate2.StorageView.from_array(batch["input_ids"].astype(np.int32)),
            ctranslate2.StorageView.from_array(lengths),
            token_type_ids=batch["token_type_ids"].tolist(),
        )
        return {name: np.array(getattr(outputs, name)) for name in source.names}

    return source.largest_difference(run)


# ---------------------------------------------------------------------------------------------------- GGUF


def _write_gguf(source: Source, directory: Path) -> float:
    """One file for llama.cpp and what is built on it: the encoder in float32, WordPiece, the pooling."""
    import gguf

    config, tokenizer = source.model.config, load_tokenizer(source.stock)
    _refuse_for_llama_cpp(config, tokenizer)
    writer = gguf.GGUFWriter(str(directory / "model.gguf"), "bert")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN if source.pooling == "mean" else gguf.PoolingType.CLS)
    _add_vocabulary(writer, tokenizer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    for name, tensor in load_file(source.stock / "model.safetensors").items():
        if not name.startswith("pooler."):  # llama.cpp pools by itself
            written = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(written, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _check_gguf(source, directory / "model.gguf", tokenizer)


def _refuse_for_llama_cpp(config: HFBertConfig, tokenizer: Any) -> None:
    """What the file has no key for, and llama.cpp does in one way only."""
    if config.hidden_act not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        raise InputError(f"gguf holds GELU, not the activation {config.hidden_act!r}; choose onnx or stock")
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"] or {}
    if not normalizer.get("lowercase"):
        raise InputError("llama.cpp lower-cases all text, this tokenizer keeps case: choose onnx instead of gguf")
    if normalizer.get("strip_accents") is False:
        raise InputError(
            "llama.cpp takes accented letters apart, this tokenizer keeps them: choose onnx instead of gguf"
        )


def _add_vocabulary(writer: Any, tokenizer: Any, config: HFBertConfig) -> None:
    """llama.cpp marks the beginning of words (▁), where WordPiece marks continuations (##)."""
    import gguf

    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(SPECIAL_TOKENS) | set(tokenizer.all_special_tokens)
    tokens, types = [], []
    for token, _ in vocabulary:
        kind = gguf.TokenType.NORMAL
        if token in special:
            kind = gguf.TokenType.UNKNOWN if token == tokenizer.unk_token else gguf.TokenType.CONTROL
        elif token.startswith("##"):
            token = token[2:]
        else:
            token = "\u2581" + token
        tokens.append(token)
        types.append(kind)
    for number in range(len(tokens), config.vocab_size):
        tokens.append(f"[unused-{number}]")
        types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_type_count(config.type_vocab_size)
    # In llama.cpp's terms [CLS] begins and [SEP] ends a text.
    writer.add_bos_token_id(tokenizer.cls_token_id)
    writer.add_eos_token_id(tokenizer.sep_token_id)
    writer.add_sep_token_id(tokenizer.sep_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_mask_token_id(tokenizer.mask_token_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _check_gguf(source: Source, path: Path, tokenizer: Any) -> float:
    """Build our encoder from what the file says alone, and the vocabulary as well."""
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = HFBertConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["bert.embedding_length"],
        num_hidden_layers=fields["bert.block_count"],
        num_attention_heads=fields["bert.attention.head_count"],
        intermediate_size=fields["bert.feed_forward_length"],
        max_position_embeddings=fields["bert.context_length"],
        type_vocab_size=fields["tokenizer.ggml.token_type_count"],
        layer_norm_eps=fields["bert.attention.layer_norm_epsilon"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        hidden_act=source.model.config.hidden_act,
        attn_implementation="eager",
    )
    model = modeling_hfbert.HFBertModel(config, add_pooling_layer=False).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    stored = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    mapped = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name, _ in model.named_parameters()}
    model.load_state_dict({name: stored[written] for name, written in mapped.items()})
    special = set(tokenizer.all_special_tokens)
    read = [
        token if token in special else token[1:] if token.startswith("\u2581") else f"##{token}"
        for token in fields["tokenizer.ggml.tokens"][: len(tokenizer)]
    ]
    if read != tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))):
        raise RuntimeError(f"the vocabulary in {path} is not the tokenizer's")

    def run(batch: Arrays) -> Arrays:
        with torch.no_grad():
            states = model(**{name: torch.from_numpy(array) for name, array in batch.items()}).last_hidden_state
        return source.outputs({name: torch.from_numpy(array) for name, array in batch.items()}) | {
            "last_hidden_state": states.numpy()
        }

    return source.largest_difference(run)


# ---------------------------------------------------------------------------------------------------- sentence vectors


def _write_sentence_transformers(source: Source, directory: Path) -> float:
    """A SentenceTransformer of encoder and pooling; a classifier's directory, as it is, for CrossEncoder.

    The keys are those of the first versions, which all later ones and text-embeddings-inference read.
    """
    shutil.copytree(source.stock, directory, dirs_exist_ok=True)
    config = source.model.config
    if source.architecture == "BertForSequenceClassification":
        return _check_cross_encoder(source, directory)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{module}"}
        for number, (path, module) in enumerate(modules)
    ]
    write_json(directory / "modules.json", entries)
    # The tokenizer does what there is to do about case.
    limits = {"max_seq_length": config.max_position_embeddings, "do_lower_case": False}
    write_json(directory / "sentence_bert_config.json", limits)
    write_json(directory / "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})
    pooling = {f"pooling_mode_{mode}": False for mode in ("cls_token", "mean_tokens", "max_tokens")}
    pooling["pooling_mode_mean_tokens" if source.pooling == "mean" else "pooling_mode_cls_token"] = True
    (directory / "1_Pooling").mkdir()
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size} | pooling)

    from sentence_transformers import SentenceTransformer

    texts, tokenizer = _texts(directory)
    ours = np.stack([row.vectors[0] for row in encode(source.model, tokenizer, texts, pooling=source.pooling)])
    theirs = SentenceTransformer(str(directory), device="cpu").encode(texts, convert_to_numpy=True)
    return _difference(theirs, ours)


@torch.no_grad()
def _check_cross_encoder(source: Source, directory: Path) -> float:
    from sentence_transformers import CrossEncoder

    texts, tokenizer = _texts(directory)
    pairs = list(zip(texts, reversed(texts), strict=True))
    limit = source.model.config.max_position_embeddings
    batch = tokenizer(pairs, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    reader = CrossEncoder(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    theirs = reader.predict(pairs, activation_fn=nn.Identity(), convert_to_numpy=True)
    return _difference(theirs.reshape(len(pairs), -1), source.model(**batch).logits.numpy())


def _texts(directory: Path) -> tuple[list[str], Any]:
    """Eight texts of 1 to 22 words from the vocabulary of the tokenizer in `directory`, and the tokenizer."""
    tokenizer = load_tokenizer(directory)
    special = set(tokenizer.all_special_tokens)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [token for token, _ in vocabulary if token not in special and not token.startswith("##")]
    chosen = torch.randint(len(words), (8, 22), generator=torch.Generator().manual_seed(0)).tolist()
    return [" ".join(words[index] for index in row[: 1 + 3 * number]) for number, row in enumerate(chosen)], tokenizer


_ONNX_PACKAGES = {"onnx": "onnx", "onnxscript": "onnxscript"}
_ENCODER = ("BertModel",)

FORMATS: dict[str, Format] = {
    "stock": Format(_write_stock, {}, None, False, False, 0.0, "stock BertModel"),
    "onnx": Format(
        _write_onnx, _ONNX_PACKAGES | {"onnxruntime": "onnxruntime"}, None, False, False, 1e-4, "ONNX Runtime"
    ),
    "openvino": Format(
        _write_openvino, _ONNX_PACKAGES | {"openvino": "openvino"}, None, False, False, 1e-4, "OpenVINO"
    ),
    "ctranslate2": Format(
        _write_ctranslate2, {"ctranslate2": "ctranslate2"}, _ENCODER, True, True, 1e-4, "CTranslate2"
    ),
    "gguf": Format(_write_gguf, {"gguf": "gguf"}, _ENCODER, True, True, 0.0, "our encoder built from the file"),
    "sentence-transformers": Format(
        _write_sentence_transformers,
        {"sentence-transformers": "sentence_transformers"},
        (*_ENCODER, "BertForSequenceClassification"),
        True,
        True,
        1e-5,
        "sentence-transformers",
    ),
}
