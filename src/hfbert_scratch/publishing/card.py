"""The model card: metadata for the Hub and text for people, from a run's own records.

Data, procedure, results and hardware come from record.json and results.json; a person adds the licence and facts
that no record holds. The text is in card_template.md.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..training.hardware.throughput import clock
from ..utils.arguments import argument
from ..utils.errors import InputError, one_line
from ..utils.quantities import count_text
from .finished_run import PIPELINES, FinishedRun


TEMPLATE = Path(__file__).with_name("card_template.md")
# World average of 2023 in g CO2e/kWh: Ember, Global Electricity Review 2024.
WORLD_GRID = 480.0
# Rows of the card's table, where the run has the setting: argument → label.
_SETTINGS = {
    "optimizer": "optimizer",
    "learning_rate": "peak learning rate",
    "warmup_steps": "steps of linear warm-up",
    "max_steps": "steps, linear decay to 0 at the last",
    "batch_size": "sequences per step",
    "max_seq_length": "tokens per sequence, at most",
    "weight_decay": "weight decay",
    "adam_beta2": "β₂",
    "dropout": "dropout",
    "masked_lm_prob": "share of tokens predicted",
    "seed": "seed",
}


@dataclass(kw_only=True)
class CardArguments:
    """A person's statements about a run; everything else comes from its records."""

    run: str = argument(help="directory of a finished run of `hfbert pretrain` or `hfbert finetune`")
    output_dir: str = argument(help="the repository folder to write, new or empty")
    license: str = argument(help="the Hub's identifier of the model's licence: apache-2.0, mit, cc-by-4.0, other…")
    repo_id: str | None = argument(None, help="OWNER/NAME on the Hub; the card loads the model by it")
    title: str | None = argument(None, help="the card's heading; default: --repo_id's name, else the kind of model")
    summary: str = argument("", help="a sentence or two on the model's purpose")
    language: list[str] = argument([], help="codes of the texts' languages: en, de…; without it the card names none")
    datasets: list[str] = argument([], help="data sets of the Hub it was trained on; a known task's is added")
    data: str = argument("", help="origin of the training texts, and their licence")
    limits: str = argument("", help="uses to avoid, beside those that the record shows")
    finetunings: list[str] = argument(
        [],
        help="directories of `hfbert finetune` runs that started from this model, of any tasks and seeds: the card "
        "shows their scores, mean ± standard deviation",
    )
    base_model: str | None = argument(None, help="OWNER/NAME it started from, where the record has a path")
    power_watts: float | None = argument(None, help="of all the hardware while training; without it, no estimate")
    grid_intensity: float = argument(WORLD_GRID, help="g CO2e per kWh; default: world average of 2023 (Ember)")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", self.license):
            raise InputError(f"license is {self.license!r}; it must be an identifier of the Hub such as apache-2.0")
        for name in ("repo_id", "base_model"):
            value = getattr(self, name)
            if value is not None:
                try:
                    validate_repo_id(value)
                except HFValidationError as error:
                    raise InputError(f"{name} is no name of the Hub: {one_line(error)}") from None
        for name in ("power_watts", "grid_intensity"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be above 0 and finite")

    @property
    def name(self) -> str:
        """The argument of from_pretrained in the card."""
        return self.repo_id or self.output_dir

    def energy(self, hours: float) -> float:
        """Return kWh drawn in `hours`. Needs power_watts."""
        assert self.power_watts is not None
        return hours * self.power_watts / 1000


def build_card(run: FinishedRun, arguments: CardArguments, pictures: bool = True) -> ModelCard:
    """Write the model card of a run.

    Args:
        run: the run's records.
        arguments: a person's statements.
        pictures: link the run's plots, which must then lie beside the card.

    Returns:
        The card; `str(card)` is its text.
    """
    card = ModelCard.from_template(
        card_data(run, arguments),
        template_path=str(TEMPLATE),
        run=run,
        arguments=arguments,
        heading=heading(run, arguments),
        origin=origin(run),
        settings=[
            (label, run.settings[name]) for name, label in _SETTINGS.items() if run.settings.get(name) is not None
        ],
        results=run.held_out_results(),
        pictures=run.plots if pictures else [],
        duration=clock(run.record["seconds"]),
        carbon=carbon(run, arguments),
        count=count_text,
    )
    card.content += "\n"  # Jinja drops the template's last line end
    return card


def heading(run: FinishedRun, arguments: CardArguments) -> str:
    """Return the title that was given, the repository's name on the Hub, or the kind of the model."""
    if arguments.title or arguments.repo_id:
        return arguments.title or str(arguments.repo_id).rpartition("/")[2]
    if run.results is not None:
        return f"BERT fine-tuned on {run.results['task']}"
    return f"BERT of {run.config['num_hidden_layers']} layers, width {run.config['hidden_size']}"


def card_data(run: FinishedRun, arguments: CardArguments) -> ModelCardData:
    """Return the card's metadata, model-index included."""
    hub, start, emissions = run.hub_dataset, run.start, carbon(run, arguments)
    datasets = list(dict.fromkeys([*arguments.datasets, *([hub[0]] if hub else [])]))
    is_name = start is not None and re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", start) and not Path(start).exists()
    results = run.held_out_results()
    optional: dict[str, Any] = {} if emissions is None else {"co2_eq_emissions": emissions}
    return ModelCardData(
        license=arguments.license,
        language=arguments.language or None,
        library_name="transformers",
        pipeline_tag=PIPELINES[run.head],
        tags=["bert", "hfbert-scratch", "custom_code", *([run.results["task"]] if run.results else ["pretraining"])],
        datasets=datasets or None,
        metrics=list(dict.fromkeys(result.metric for result in results)),
        base_model=arguments.base_model or (start if is_name else None),
        model_name=heading(run, arguments),
        eval_results=[
            EvalResult(
                task_type=PIPELINES[run.head],
                dataset_type=hub[0] if hub else "custom",
                dataset_name="held-out documents of its corpus" if run.results is None else run.results["task"],
                dataset_config=hub[1] if hub else None,
                dataset_split=result.split,
                metric_type=result.metric,
                metric_name=result.title,
                metric_value=round(result.value, 6),
            )
            for result in results
        ],
        **optional,
    )


def eval_results(run: FinishedRun) -> list[dict[str, Any]]:
    """Return the main result in the format of `.eval_results/*.yaml`.

    Args:
        run: the run's records.

    Returns:
        A list of one entry; empty for a pretraining run, and for data that are not on the Hub.
    """
    if run.results is None or run.hub_dataset is None:
        return []
    dataset, configuration = run.hub_dataset
    main = run.results["main_metric"]
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=configuration or run.results["task"],
        value=round(main["value"], 6),
        date=run.date,
        notes=f"{main['name']} on {main['split']}, {run.results['examples'][main['split']]} examples",
    )
    return eval_result_entries_to_yaml([entry])


def carbon(run: FinishedRun, arguments: CardArguments) -> dict[str, Any] | None:
    """Estimate the emissions of the training: hours × kW × g/kWh.

    Args:
        run: the run's records.
        arguments: the stated power in watts, and the grid's intensity in g CO2e/kWh.

    Returns:
        The Hub's co2_eq_emissions, `emissions` in grams; None without a stated power.
    """
    if arguments.power_watts is None:
        return None
    return {
        "emissions": round(arguments.energy(run.hours) * arguments.grid_intensity, 3),
        "source": "hours of training × power in kW × grid intensity in g CO2e/kWh",
        "training_type": "pre-training" if run.results is None else "fine-tuning",
        "hardware_used": run.record["hardware"],
    }


def origin(run: FinishedRun) -> str:
    """Describe the training data and the initial weights."""
    if run.results is not None:
        return f"fine-tuned on {run.results['task']} from {run.start_name}"
    return "pretrained from scratch" if run.start is None else f"pretrained further from {run.start_name}"
