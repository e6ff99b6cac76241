"""GGUF: one file for llama.cpp and programs built on it, with the encoder in float32, WordPiece and the pooling."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from ...model import modeling_hfbert
from ...model.configuration_hfbert import HFBertConfig
from ...text.tokenizer import SPECIAL_TOKENS, load_tokenizer
from ...utils.errors import InputError
from ..source import Arrays, ExportSource


def write(source: ExportSource, directory: Path) -> float:
    """Write model.gguf, rebuild our encoder from it, and return the largest difference of its outputs."""
    import gguf

    config, tokenizer = source.model.config, load_tokenizer(source.stock)
    _check_supported(config, tokenizer)
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
            gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(gguf_name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _verify(source, directory / "model.gguf", tokenizer)


def _check_supported(config: PreTrainedConfig, tokenizer: Any) -> None:
    """Refuse activations and tokenizers that the file has no key for; llama.cpp implements one of each."""
    if config.hidden_act not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        raise InputError(f"gguf holds GELU, not the activation {config.hidden_act!r}; choose onnx or stock")
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"] or {}
    if not normalizer.get("lowercase"):
        raise InputError("llama.cpp lower-cases all text, this tokenizer keeps case: choose onnx instead of gguf")
    if normalizer.get("strip_accents") is False:
        raise InputError(
            "llama.cpp takes accented letters apart, this tokenizer keeps them: choose onnx instead of gguf"
        )


def _add_vocabulary(writer: Any, tokenizer: Any, config: PreTrainedConfig) -> None:
    """Write the vocabulary with llama.cpp's marks: ▁ begins a word, where WordPiece's ## continues one."""
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


def _verify(source: ExportSource, path: Path, tokenizer: Any) -> float:
    """Rebuild our encoder and the vocabulary from the file alone; return the largest difference of the outputs."""
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = HFBertConfig(  # type: ignore[call-arg]  # attn_implementation is among the base's **kwargs
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
    parameters = [name for name, _ in model.named_parameters()]
    gguf_names = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in parameters}
    model.load_state_dict({name: stored[gguf_name] for name, gguf_name in gguf_names.items()})
    special = set(tokenizer.all_special_tokens)
    tokens = [
        token if token in special else token[1:] if token.startswith("\u2581") else f"##{token}"
        for token in fields["tokenizer.ggml.tokens"][: len(tokenizer)]
    ]
    if tokens != tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))):
        raise RuntimeError(f"the vocabulary in {path} is not the tokenizer's")

    def run(batch: Arrays) -> Arrays:
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        with torch.no_grad():
            states = model(**tensors).last_hidden_state
        # The file holds no pooler; our own output stands in for it.
        return source.outputs(tensors) | {"last_hidden_state": states.numpy()}

    return source.largest_difference(run)
