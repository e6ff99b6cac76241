"""The model of a pretraining run, and the loss it is trained by."""

from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from ..lstm import LSTMPairConfig, LSTMPairForPreTraining
from ..model.configuration_hfbert import SIZES, HFBertConfig
from ..model.loading import check_fits, check_memory, open_config, open_model
from ..model.modeling_hfbert import HFBertForMaskedLM, HFBertForPreTraining
from ..text.tokenizer import load_tokenizer
from ..utils.errors import InputError, one_line
from .arguments import PretrainingArguments


_NUMBERS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
# Options that a checkpoint decides.
MODEL_OPTIONS = ("size", *_NUMBERS, "initializer_range", "max_position_embeddings", "sinusoidal_positions")
PretrainingModel = HFBertForPreTraining | HFBertForMaskedLM | LSTMPairForPreTraining


def build_model(arguments: PretrainingArguments, tokenizer: Any, say: Callable[[str], None]) -> PretrainingModel:
    """Open `--model`, naming the weights it lacks, or initialise a model from the seed.

    Args:
        arguments: of the run.
        tokenizer: the corpus's.
        say: prints a warning.

    Raises:
        InputError: if the checkpoint does not fit, or no model has such a size.
    """
    try:
        torch.manual_seed(arguments.seed)
        if arguments.model:
            return _open_model(arguments.model, arguments, tokenizer, say)
        build = _build_lstms if arguments.architecture == "lstm_pair" else _build_bert
        return build(arguments, tokenizer)
    except InputError:
        raise
    except (ValueError, OSError, StrictDataclassError) as error:
        raise InputError(f"no such model can be made: {one_line(error)}") from error


def take_from_checkpoint(arguments: PretrainingArguments, recorded: dict[str, Any]) -> dict[str, Any]:
    """Complete the arguments of a run that starts from `--model`, and refuse options that contradict the checkpoint.

    Args:
        arguments: with `model`. `left_to_right`, if it is not given, becomes the checkpoint's.
        recorded: settings of the run that goes on, which keeps what it began with; empty if the run begins. Runs of
            0.1.0 recorded a size and other values that they did not have; these pass, and are taken out.

    Returns:
        The settings that change: those the run has recorded, where they have no effect.

    Raises:
        InputError: if the checkpoint cannot be opened, or an option names a value that it does not have.
    """
    config: Any = open_config(_model_class(arguments), str(arguments.model))
    if arguments.dropout is None:
        arguments.dropout = recorded.get("dropout")
    if arguments.left_to_right is None:
        arguments.left_to_right = recorded.get("left_to_right", config.left_to_right)
    arguments.check_next_sentence()
    numbers = {name: getattr(config, name) for name in _NUMBERS}
    sizes = {name: HFBertConfig.from_size(name) for name in SIZES}
    named = [name for name, size in sizes.items() if numbers == {number: getattr(size, number) for number in numbers}]
    actual = {
        "size": named[0] if named else "a size without a name",
        **numbers,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": config.max_position_embeddings,
        "sinusoidal_positions": "positions already",
    }
    given = {name: value for name in MODEL_OPTIONS if (value := getattr(arguments, name)) not in (None, False)}
    wrong = {name: value for name, value in given.items() if value != actual[name]}
    told = {name: f"{name} {value} (it has {actual[name]})" for name, value in wrong.items()}
    if refused := [text for name, text in told.items() if recorded.get(name) != wrong[name]]:
        raise InputError(
            f"the checkpoint {arguments.model} does not go with {', '.join(refused)}; the checkpoint decides, leave "
            "it out of the command and its --config"
        )
    for name in wrong:
        setattr(arguments, name, False if name == "sinusoidal_positions" else None)
    ineffective = {name: recorded.get(name, getattr(arguments, name)) for name in MODEL_OPTIONS}
    return ineffective | {name: getattr(arguments, name) for name in ("dropout", "left_to_right", "no_nsp")}


def _model_class(arguments: PretrainingArguments) -> type[HFBertForPreTraining] | type[HFBertForMaskedLM]:
    return HFBertForMaskedLM if arguments.no_nsp else HFBertForPreTraining


def _dropout(arguments: PretrainingArguments) -> dict[str, Any]:
    return dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), arguments.dropout)


def _open_model(name: str, arguments: PretrainingArguments, tokenizer: Any, say: Callable[[str], None]) -> Any:
    """Open the checkpoint to go on from."""
    overrides = {"left_to_right": arguments.left_to_right}
    overrides |= {} if arguments.dropout is None else _dropout(arguments)
    model, new = open_model(_model_class(arguments), name, overrides, new_head=False)
    check_fits(model, tokenizer, max(phase.max_seq_length for phase in arguments.phases()))
    load_tokenizer(arguments.tokenizer, model=name)  # compares the two vocabularies
    if new:
        say(f"warning: {name} has no {', '.join(new)}; they start from random numbers")
    if any("seq_relationship" in weight for weight in new):
        say("warning: --no_nsp true trains masked LM alone, as the checkpoint was perhaps trained")
    return model


def _build_bert(arguments: PretrainingArguments, tokenizer: Any) -> HFBertForPreTraining | HFBertForMaskedLM:
    """Initialise a BERT."""
    sizes = {name: value for name in _NUMBERS if (value := getattr(arguments, name)) is not None}
    if "hidden_size" in sizes:
        sizes = {"intermediate_size": 4 * sizes["hidden_size"]} | sizes
    config = HFBertConfig.from_size(
        str(arguments.size),
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=arguments.initializer_range,
        max_position_embeddings=arguments.max_position_embeddings,
        left_to_right=arguments.left_to_right,
        **_dropout(arguments),
        **sizes,
    )
    with torch.device("meta"):
        check_memory(_model_class(arguments)(config), "this size")
    # Ablations are paired: without next-sentence prediction the other weights start the same.
    model: Any = HFBertForPreTraining(config)
    if arguments.no_nsp:
        whole, model = model, HFBertForMaskedLM(config)
        model.load_state_dict(whole.state_dict(), strict=False)
    if arguments.sinusoidal_positions:
        set_sinusoidal_positions(model, 2 * config.initializer_range)
    return model


def _build_lstms(arguments: PretrainingArguments, tokenizer: Any) -> LSTMPairForPreTraining:
    """Initialise the two LSTM language models."""
    config = LSTMPairConfig(
        vocab_size=len(tokenizer),
        lstm_size=arguments.hidden_size or HFBertConfig.from_size(str(arguments.size)).hidden_size,
        num_hidden_layers=arguments.num_hidden_layers or 2,
        hidden_dropout_prob=float(arguments.dropout or 0),
        initializer_range=float(arguments.initializer_range or 0),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("meta"):
        check_memory(LSTMPairForPreTraining(config), "this size")
    return LSTMPairForPreTraining(config)


@torch.no_grad()
def set_sinusoidal_positions(model: Any, scale: float) -> None:
    """Start the learned positions from `scale`·sin and `scale`·cos (Vaswani et al. 2017, section 3.5).

    A fixed offset is then a linear map from the first step on, so heads that look at neighbours form soon; otherwise
    small runs spend most of their steps on the unigram plateau.

    Args:
        model: a pretraining model of this package.
        scale: of the sinusoids.
    """
    table = model.bert.embeddings.position_embeddings.weight
    positions, width = table.shape
    angles = torch.arange(positions)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)
    table.copy_(scale * torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width])


def loss_without_logits(model: nn.Module, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
    """Return a pretraining model's outputs without the logits, which training does not read.

    Args:
        model: a pretraining model, wrapped or not.
        inputs: its inputs and labels, on its device.
        totals: divisors of the summed losses over the whole step: `num_items_in_batch` and, with next-sentence
            prediction, `num_sequences_in_batch`.

    Returns:
        The outputs; `loss` is the micro-batch's share of the step's mean.
    """
    return model(**inputs, **totals, skip_logits=True)


def weigh_next_sentence(model: Any, weight: float) -> Callable[..., Any]:
    """Return a forward for `train` whose loss is the masked-LM loss + `weight` · the next-sentence loss.

    With weight 0 the pooler and the next-sentence head are frozen as well: without a gradient they would still decay.
    The next-sentence loss is computed and reported with any weight.

    Args:
        model: a HFBertForPreTraining, not yet wrapped.
        weight: at least 0.
    """
    if weight == 0:
        model.bert.pooler.requires_grad_(False)
        model.cls.seq_relationship.requires_grad_(False)

    def forward(model: nn.Module, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
        outputs = loss_without_logits(model, inputs, totals)
        outputs.loss = outputs.masked_lm_loss
        if weight:
            outputs.loss = outputs.loss + weight * outputs.next_sentence_loss
        return outputs

    return forward
