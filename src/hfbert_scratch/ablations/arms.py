"""The paper's ablations as data: an arm is a row, a comparison two rows, a budget the limits of a run.

Figures are the paper's (Devlin et al. 2018, arXiv:1810.04805v2), in per cent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Column:
    """A score of a task, to compare arms by.

    Args:
        name: of the column.
        task: the task it is of.
        metric: the task's metric that the paper reports.
        combination: None for fine-tuning; else the layers whose features a BiLSTM reads, the encoder frozen.
    """

    name: str
    task: str
    metric: str
    combination: str | None = None


COLUMNS = {
    column.name: column
    for column in (
        Column("mnli", "mnli", "accuracy"),
        Column("qnli", "qnli", "accuracy"),
        Column("mrpc", "mrpc", "accuracy"),
        Column("mrpc_f1", "mrpc", "f1"),
        Column("sst2", "sst2", "accuracy"),
        Column("cola", "cola", "matthews_correlation"),
        Column("stsb", "stsb", "spearmanr"),
        Column("qqp_f1", "qqp", "f1"),
        Column("rte", "rte", "accuracy"),
        Column("squad", "squad", "f1"),
        Column("ner", "conll2003", "f1"),
        Column("ner_features", "conll2003", "f1", "concat_last_four"),
    )
}


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        name: of its directory.
        label: its row in the table.
        pretraining: options of recipes/pretrain.py beside the budget's.
        pretrained_as: the arm whose pretraining it shares; None for one of its own.
        finetuning: options of recipes/finetune.py beside the budget's.
        learning_rates: tried in place of the budget's.
        combination: layers to read in place of fine-tuning, for tasks that tag words (table 7).
        checkpoint: share of the pretraining's steps after which it is taken; 1 for its end.
        paper: column → the paper's figure.
    """

    name: str
    label: str
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    pretrained_as: str | None = None
    finetuning: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()
    combination: str | None = None
    checkpoint: float = 1.0
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Arms, the pairs of them that are compared, and the columns they are compared by.

    Args:
        title: of the report.
        claim: what the paper says of it.
        arms: the rows.
        pairs: names (ours, theirs): the difference is ours − theirs.
        columns: names in COLUMNS, those of the paper.
        picture: how the scores are drawn: bars, sizes or steps.
    """

    title: str
    claim: str
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    picture: str = "bars"

    def arm(self, name: str) -> Arm:
        """Return the arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class Budget:
    """The limits of a table's runs.

    Args:
        pretraining: options of recipes/pretrain.py.
        finetuning: options of recipes/finetune.py, for every task.
        features: options of recipes/feature_based_ner.py.
        learning_rates: tried for every arm and task on a seed that is not reported.
        seeds: reported ones.
        columns: those of the table's that are run unless --tasks names others; all of them if none is here.
        sizes: the shapes of table 6, (layers, hidden size, heads).
        checkpoints: points of figure 5.
    """

    pretraining: Mapping[str, Any]
    finetuning: Mapping[str, Any]
    features: Mapping[str, Any]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    columns: tuple[str, ...]
    sizes: tuple[tuple[int, int, int], ...]
    checkpoints: int


# Not reported: its runs choose the learning rates.
SELECTION_SEED = 999

_PAPER_SIZES = ((3, 768, 12), (6, 768, 3), (6, 768, 12), (12, 768, 12), (12, 1024, 16), (24, 1024, 16))

# What is quick: a few thousand short examples.
_SMALL_COLUMNS = ("mrpc", "mrpc_f1", "sst2", "qnli", "ner", "ner_features")

BUDGETS = {
    # The demo's shape (recipes/README.md has how it was found), at twice its length so that pairs of sentences fit.
    "cpu": Budget(
        pretraining={
            "num_hidden_layers": 4,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "dropout": 0.0,
            "initializer_range": 0.05,
            "sinusoidal_positions": True,
            "max_seq_length": 64,
            "max_position_embeddings": 128,
            "batch_size": 32,
            "micro_batch_size": 32,
            "learning_rate": 1e-3,
            "adam_beta2": 0.98,
            "warmup_steps": 200,
            "max_steps": 2000,
            "log_every": 500,
            "eval_every": 2000,
            "save_every": 500,
            "eval_rows": 1024,
        },
        finetuning={"epochs": 3.0, "batch_size": 32, "max_seq_length": 64, "max_train_samples": 3000},
        features={"lstm_size": 128, "lstm_layers": 1, "epochs": 3.0, "max_train_samples": 3000, "max_seq_length": 64},
        learning_rates=(1e-4, 3e-4),
        seeds=(0, 1, 2),
        columns=_SMALL_COLUMNS,
        sizes=((2, 64, 2), (2, 128, 4), (4, 128, 4), (4, 192, 6)),
        checkpoints=5,
    ),
    "gpu": Budget(
        pretraining={
            "size": "mini",
            "dropout": 0.1,
            "sinusoidal_positions": True,
            "max_seq_length": 128,
            "max_position_embeddings": 512,
            "batch_size": 256,
            "micro_batch_size": 256,
            "learning_rate": 1e-3,
            "adam_beta2": 0.98,
            "warmup_steps": 100,
            "max_steps": 1200,
            "log_every": 400,
            "eval_every": 1200,
            "save_every": 1200,
            "eval_rows": 2048,
        },
        finetuning={"epochs": 3.0, "batch_size": 32, "max_seq_length": 128, "max_train_samples": 4000},
        features={"lstm_size": 256, "epochs": 5.0, "max_train_samples": 4000},
        learning_rates=(1e-4, 3e-4),
        seeds=(0, 1, 2),
        columns=_SMALL_COLUMNS,
        sizes=((2, 128, 2), (4, 256, 4), (4, 512, 8), (8, 512, 8)),
        checkpoints=5,
    ),
    # The paper's own: BERT-BASE's schedule, its tasks and its grid of learning rates.
    "full": Budget(
        pretraining={
            "size": "base",
            "max_seq_length": 128,
            "long_max_seq_length": 512,
            "batch_size": 256,
            "micro_batch_size": 64,
            "learning_rate": 1e-4,
            "warmup_steps": 10_000,
            "max_steps": 1_000_000,
            "log_every": 500,
            "eval_every": 10_000,
            "save_every": 10_000,
        },
        finetuning={"epochs": 3.0, "batch_size": 32},
        features={"epochs": 10.0},
        learning_rates=(2e-5, 3e-5, 4e-5, 5e-5),
        seeds=(0, 1, 2, 3, 4),
        columns=(),
        sizes=_PAPER_SIZES,
        checkpoints=5,
    ),
}
# Every step of the real thing in a minute, for rehearsals and tests: its scores mean nothing.
BUDGETS["rehearsal"] = replace(
    BUDGETS["cpu"],
    pretraining=dict(BUDGETS["cpu"].pretraining)
    | {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "max_steps": 8, "warmup_steps": 2}
    | {"log_every": 4, "eval_every": 8, "save_every": 4, "eval_rows": 64, "max_seq_length": 32},
    finetuning={"max_steps": 4, "batch_size": 8, "max_seq_length": 48, "max_train_samples": 64},
    features={"lstm_size": 8, "lstm_layers": 1, "epochs": 1.0, "max_train_samples": 32, "max_seq_length": 48},
    learning_rates=(1e-3, 3e-3),
    seeds=(0, 1),
    sizes=((1, 16, 2), (1, 32, 2)),
    checkpoints=2,
)


def _table5(budget: Budget) -> Table:
    return Table(
        "Pretraining tasks (table 5)",
        "next-sentence prediction helps on QNLI, MNLI and SQuAD; left-to-right is worse than masked LM on all tasks",
        (
            Arm("mlm_nsp", "MLM + NSP", paper=_scores(mnli=84.4, qnli=88.4, mrpc=86.7, sst2=92.7, squad=88.5)),
            Arm("nsp_weight_0", "the same pairs, NSP weight 0", {"next_sentence_weight": 0.0}),
            Arm(
                "no_nsp",
                "no NSP (contiguous text)",
                {"no_nsp": True},
                paper=_scores(mnli=83.9, qnli=84.9, mrpc=86.5, sst2=92.6, squad=87.9),
            ),
            Arm(
                "left_to_right",
                "left-to-right, no NSP",
                {"left_to_right": True},
                paper=_scores(mnli=82.1, qnli=84.3, mrpc=77.5, sst2=92.1, squad=77.8),
            ),
            Arm(
                "left_to_right_bilstm",
                "left-to-right + BiLSTM in fine-tuning",
                pretrained_as="left_to_right",
                finetuning={"bilstm": True},
                paper=_scores(mnli=82.1, qnli=84.1, mrpc=75.7, sst2=91.6, squad=84.9),
            ),
        ),
        (
            ("nsp_weight_0", "mlm_nsp"),
            ("no_nsp", "mlm_nsp"),
            ("left_to_right", "no_nsp"),
            ("left_to_right_bilstm", "left_to_right"),
            ("left_to_right_bilstm", "no_nsp"),
        ),
        ("mnli", "qnli", "mrpc", "sst2", "squad"),
    )


def _table6(budget: Budget) -> Table:
    figures = {
        (3, 768, 12): _scores(mnli=77.9, mrpc=79.8, sst2=88.4),
        (6, 768, 3): _scores(mnli=80.6, mrpc=82.2, sst2=90.7),
        (6, 768, 12): _scores(mnli=81.9, mrpc=84.8, sst2=91.3),
        (12, 768, 12): _scores(mnli=84.4, mrpc=86.7, sst2=92.9),
        (12, 1024, 16): _scores(mnli=85.7, mrpc=86.9, sst2=93.3),
        (24, 1024, 16): _scores(mnli=86.6, mrpc=87.8, sst2=93.7),
    }
    arms = tuple(
        Arm(
            f"{layers}x{hidden}x{heads}",
            f"{layers} layers of {hidden}, {heads} heads",
            {
                "num_hidden_layers": layers,
                "hidden_size": hidden,
                "num_attention_heads": heads,
                "intermediate_size": 4 * hidden,
            },
            paper=figures.get((layers, hidden, heads), {}),
        )
        for layers, hidden, heads in budget.sizes
    )
    names = [arm.name for arm in arms]
    return Table(
        "Model size (table 6)",
        "larger models are more accurate on every task, also on the smallest",
        arms,
        tuple(zip(names[1:], names, strict=False)),
        ("mnli", "mrpc", "sst2"),
        "sizes",
    )


def _table7(budget: Budget) -> Table:
    figures = {
        "embeddings": 91.0,
        "second_to_last": 95.6,
        "last": 94.9,
        "weighted_last_four": 95.9,
        "concat_last_four": 96.1,
        "weighted_all": 95.5,
    }
    finetuned = Arm("finetuned", "fine-tuning", paper={"ner": 96.4})
    features = tuple(
        Arm(name, f"features: {name}", pretrained_as="finetuned", combination=name, paper={"ner": figure})
        for name, figure in figures.items()
    )
    return Table(
        "Features in place of fine-tuning (table 7)",
        "the concatenation of the last four layers comes within 0.3 F1 of fine-tuning",
        (finetuned, *features),
        tuple((name, "finetuned") for name in figures),
        ("ner",),
    )


def _table8(budget: Budget) -> Table:
    # (masked, same, random): MNLI, NER by fine-tuning, NER by features.
    figures = {
        (80, 10, 10): (84.2, 95.4, 94.9),
        (100, 0, 0): (84.3, 94.9, 94.0),
        (80, 0, 20): (84.1, 95.2, 94.6),
        (80, 20, 0): (84.4, 95.2, 94.7),
        (0, 20, 80): (83.7, 94.8, 94.6),
        (0, 0, 100): (83.6, 94.9, 94.6),
    }
    arms = tuple(
        Arm(
            f"mask{mask}_keep{keep}_random{random}",
            f"{mask} % [MASK], {keep} % kept, {random} % random",
            {"mask_share": mask / 100, "keep_share": keep / 100, "random_share": random / 100},
            paper=dict(zip(("mnli", "ner", "ner_features"), scores, strict=True)),
        )
        for (mask, keep, random), scores in figures.items()
    )
    return Table(
        "Masking (table 8)",
        "fine-tuning hardly depends on the mix; [MASK] alone hurts features, random tokens alone hurt most",
        arms,
        tuple((arm.name, arms[0].name) for arm in arms[1:]),
        ("mnli", "ner", "ner_features"),
    )


def _figure5(budget: Budget) -> Table:
    points = [number / budget.checkpoints for number in range(1, budget.checkpoints + 1)]
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "mlm": ("masked LM", {}),
        "left_to_right": ("left-to-right", {"left_to_right": True}),
    }
    arms = tuple(
        Arm(
            f"{name}_{round(100 * point)}",
            f"{label}, {round(100 * point)} % of the steps",
            options,
            None if point == 1 else f"{name}_100",
            checkpoint=point,
        )
        for name, (label, options) in ways.items()
        for point in points
    )
    pairs = tuple((f"mlm_{round(100 * point)}", f"left_to_right_{round(100 * point)}") for point in points)
    return Table(
        "Steps of pretraining (figure 5)",
        "masked LM converges a little later and is better almost from the start",
        arms,
        pairs,
        ("mnli",),
        "steps",
    )


def _systems(budget: Budget) -> Table:
    # Test sets of GLUE in the paper's table 1; CoNLL-2003's validation set in table 7.
    bert = _scores(
        mnli=84.6, qqp_f1=71.2, qnli=90.5, sst2=93.5, cola=52.1, stsb=85.8, mrpc_f1=88.9, rte=66.4, ner=96.4
    )
    gpt = _scores(mnli=82.1, qqp_f1=70.3, qnli=87.4, sst2=91.3, cola=45.4, stsb=80.0, mrpc_f1=82.3, rte=56.0)
    # BiLSTM+ELMo+Attn, which has a task architecture on top of the features; ours averages them.
    elmo = _scores(mnli=76.4, qqp_f1=64.8, qnli=79.8, sst2=90.4, cola=36.0, stsb=73.3, mrpc_f1=84.9, rte=56.8)
    return Table(
        "Systems (figure 1, table 1)",
        "a deeply bidirectional model, fine-tuned, is better than a left-to-right one and than features of two LSTMs",
        (
            Arm("bert", "BERT: bidirectional, fine-tuned", paper=bert),
            Arm("gpt", "GPT-like: left-to-right Transformer, fine-tuned", {"left_to_right": True}, paper=gpt),
            Arm(
                "elmo",
                "ELMo-like: two LSTMs, frozen, as features",
                # LSTMs want a higher rate than Transformers; tried at the CPU budget (docs/reproduction.md).
                {"architecture": "lstm_pair", "num_hidden_layers": 2, "learning_rate": 1e-2},
                combination="elmo",
                learning_rates=(1e-3, 3e-3),
                paper=elmo | {"ner": 95.7},
            ),
        ),
        (("bert", "gpt"), ("bert", "elmo"), ("gpt", "elmo")),
        ("mnli", "qqp_f1", "qnli", "sst2", "cola", "stsb", "mrpc_f1", "rte", "ner"),
    )


def _scores(**figures: float) -> dict[str, float]:
    return figures


TABLES: Mapping[str, Callable[[Budget], Table]] = {
    "5": _table5,
    "6": _table6,
    "7": _table7,
    "8": _table8,
    "figure5": _figure5,
    "systems": _systems,
}
