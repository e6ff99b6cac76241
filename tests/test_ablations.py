"""Tables of the paper in one command: what is run and paired, gates and verdicts, and what ends it early."""

import dataclasses
import importlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from corpus_helpers import documents, small_tokenizer
from finetuning_helpers import call, make_data, read
from training_helpers import RECIPES

from hfbert_scratch.ablations.arms import BUDGETS, COLUMNS, TABLES, Arm, Table
from hfbert_scratch.ablations.jobs import Job, results_of, run_jobs
from hfbert_scratch.ablations.report import Evidence, pretraining_directory, task_directory, write_report
from hfbert_scratch.corpus.bigrams import bigram_baseline
from hfbert_scratch.metrics.bootstrap import mean_rows
from hfbert_scratch.tasks import TASKS
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.utils.errors import DivergenceError
from hfbert_scratch.utils.files import write_json


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks")
    for task in ("sst2", "mrpc", "mnli", "conll2003"):
        make_data(directory / task, task, train=32, validation=20)
    return directory


def line(inputs, data, output, table="5", **options):
    settings = {"table": table, "budget": "rehearsal", "corpus": inputs["corpus"], "tokenizer": inputs["tokenizer"]}
    settings |= {"data_dir": data, "output_dir": output, "learning_rates": 1e-3} | options
    words = []
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


@pytest.fixture
def run(monkeypatch, inputs, data):
    """Run the recipe in this process; returns its exit code."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return lambda output, **options: call(monkeypatch, "ablations", line(inputs, data, output, **options))


def test_every_table_can_be_run_and_its_figures_are_of_known_columns(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    arguments = importlib.import_module("pretrain").PretrainingArguments
    for build in TABLES.values():
        for budget in BUDGETS.values():
            table = build(budget)
            names = [arm.name for arm in table.arms]
            assert len(set(names)) == len(names) and {name for pair in table.pairs for name in pair} <= set(names)
            assert {column for arm in table.arms for column in arm.paper} <= set(table.columns) <= set(COLUMNS)
            for arm in table.arms:
                options = dict(budget.pretraining) | dict(arm.pretraining)
                arguments(**options, corpus="c", tokenizer="t", output_dir="o")
            assert all(arm.pretrained_as is None or table.arm(arm.pretrained_as) for arm in table.arms)
    assert {column.task for column in COLUMNS.values()} <= set(TASKS)


def test_a_table_runs_once_and_goes_on_where_it_was_killed(run, tmp_path, capsys):
    options = {"table": "systems", "tasks": ["mrpc", "mrpc_f1"], "learning_rates": [1e-3, 3e-3]}
    assert run(tmp_path, **options) == 0
    printed = capsys.readouterr().out
    assert printed.index("Decision rule") < printed.index("== bert/seed0/pretraining")
    results = read(tmp_path / "results.json")
    assert list(results["arms"]) == ["bert", "gpt", "elmo"]
    assert all(len(arm["columns"]["mrpc_f1"]["scores"]) == 2 for arm in results["arms"].values())
    assert results["arms"]["bert"]["columns"]["mrpc_f1"]["paper"] == 88.9
    paper = {row["column"]: row["paper"] for row in results["comparisons"] if row["against"] == "gpt"}
    assert paper == {"mrpc": None, "mrpc_f1": 6.6}
    # Eight steps beat no counts: nothing is compared, and the report says why.
    assert all(row["verdict"].startswith("not compared") for row in results["comparisons"])
    assert "held-out loss" in (tmp_path / "results.md").read_text() and (tmp_path / "scores.png").is_file()
    # Started again, finished runs stay; the one that is missing is run.
    missing = tmp_path / "gpt" / "seed1" / "mrpc"
    before = read(missing / "results.json")
    shutil.rmtree(missing)
    assert run(tmp_path, **options) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n== ") == 1 and "== gpt/seed1/mrpc" in printed
    assert {k: v for k, v in read(missing / "results.json").items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }
    assert run(tmp_path, **options | {"tasks": ["sst2"]}) == 6
    assert "holds runs with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "tasks"), [("7", ["ner"]), ("figure5", ["mnli"]), pytest.param("6", ["sst2"], marks=pytest.mark.slow)]
)
def test_features_checkpoints_and_sizes_are_arms_too(run, tmp_path, table, tasks, monkeypatch):
    if table == "7":  # two rows of it, for the time
        arms = lambda budget: dataclasses.replace(  # noqa: E731
            whole(budget),
            arms=tuple(a for a in whole(budget).arms if a.name in ("finetuned", "last")),
            pairs=(("last", "finetuned"),),
        )
        whole = TABLES["7"]
        monkeypatch.setitem(TABLES, "7", arms)
    assert run(tmp_path, table=table, tasks=tasks) == 0
    results = read(tmp_path / "results.json")
    assert all(len(arm["columns"][tasks[0]]["scores"]) == 2 for arm in results["arms"].values())
    assert (tmp_path / "scores.png").is_file()
    if table == "figure5":
        steps = {path.name for path in (tmp_path / "mlm_100" / "seed0" / "pretraining" / "checkpoints").iterdir()}
        assert {"step-4", "step-8"} <= steps and not (tmp_path / "mlm_50" / "seed0" / "pretraining").exists()


def test_processes_that_share_a_directory_do_each_run_once(tmp_path, monkeypatch):
    monkeypatch.setattr("hfbert_scratch.ablations.jobs.PATIENCE", 0.01)
    done = []

    def job(name, *needs):
        def run():
            time.sleep(0.02)
            done.append(name)
            return {"name": name}

        return Job(tmp_path / name, [tmp_path / need for need in needs], run)

    jobs = [job("a"), job("b"), *(job(f"{start}{number}", start) for start in "ab" for number in range(4))]
    with ThreadPoolExecutor() as pool:  # locks are of open files: threads exclude each other as processes do
        assert list(pool.map(lambda _: run_jobs(jobs, tmp_path), range(3))) == [True] * 3
    assert sorted(done) == sorted(job.directory.name for job in jobs)


def test_an_estimate_counts_all_runs_and_leaves_no_trace(run, tmp_path, capsys):
    """Three arms from two seeds, and each fine-tuned on a task; the ELMo-like one tries two rates before: 6 + 8."""
    assert run(tmp_path / "runs", table="systems", tasks=["mrpc"], estimate="true", price=3.6) == 0
    printed = capsys.readouterr().out
    estimate = json.loads(printed.splitlines()[-1])
    assert estimate["runs"] == 14 and estimate["steps"] > estimate["timed_steps"] > 0
    assert estimate["money"] == pytest.approx(estimate["seconds"] / 1000, abs=1e-3)
    assert "14 runs" in printed and not list(tmp_path.iterdir())
    assert run(tmp_path / "runs", price=3.6) == 2
    assert "give --estimate as well" in capsys.readouterr().err


def test_the_time_left_counts_runs_of_both_kinds_at_their_own_pace(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def job(name, seconds, *needs):
        def run():
            now[0] += seconds
            return {}

        return Job(tmp_path / name, [tmp_path / need for need in needs], run)

    jobs = [job("a", 600), *(job(f"task{number}", 60, "a") for number in range(3))]
    assert run_jobs(jobs, tmp_path)
    etas = [line.rpartition("eta ")[2] for line in capsys.readouterr().out.splitlines() if "eta" in line]
    assert etas == ["more than 0:00", "about 2:00", "about 1:00", "about 0:00"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["qnli"]}, "has no directory qnli or glue_qnli; name --tasks that it has"),
        ({"seeds": [3]}, "they must be two different numbers or more"),
        ({"seeds": [3, 999]}, "without 999, on which the learning rates are chosen"),
        ({"table": "9"}, "table"),
        ({"data_dir": "nowhere"}, "no directory sst2"),
        ({"table": "7", "tasks": ["ner"], "size": "tiny"}, "weighted_last_four needs 4 layers, this model has 2"),
    ],
)
def test_bad_input_is_named_before_the_first_run(run, tmp_path, capsys, options, message):
    assert run(tmp_path / "runs", **({"tasks": ["sst2"]} | options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_corpus_of_another_tokenizer_is_refused(run, tmp_path, tokenizer, capsys):
    save_tokenizer(small_tokenizer(documents(20, seed=3), vocab_size=150), tmp_path / "other")
    assert run(tmp_path / "runs", tasks=["sst2"], tokenizer=tmp_path / "other") == 2
    assert "was built with another tokenizer" in capsys.readouterr().err


def test_a_run_that_diverges_costs_only_what_starts_from_it(tmp_path, capsys):
    def diverges():
        raise DivergenceError("the gradient of step 3 is not finite")

    jobs = [
        Job(tmp_path / "a" / "pretraining", (), diverges),
        Job(tmp_path / "b" / "pretraining", (), lambda: {"loss": 1.0}),
        Job(tmp_path / "a" / "task", (tmp_path / "a" / "pretraining",), lambda: pytest.fail("it has no start")),
        Job(tmp_path / "b" / "task", (tmp_path / "b" / "pretraining",), lambda: None),
    ]
    assert run_jobs(jobs, tmp_path) is False  # the last one was stopped by a signal
    assert "step 3" in results_of(tmp_path / "a" / "pretraining")["diverged"]
    assert results_of(tmp_path / "a" / "task")["diverged"] == "it starts from a/pretraining, which diverged"
    assert not jobs[3].is_done
    jobs[3] = Job(jobs[3].directory, jobs[3].needs, lambda: {"score": 1.0})
    assert run_jobs(jobs, tmp_path) is True and results_of(jobs[3].directory)["score"] == 1.0


def finished_runs(root, scores, accuracy=0.4):
    """Directories as a finished table leaves them, with given shares of right answers: arm → seed → share."""
    table = Table(
        "made up",
        "nothing",
        (Arm("ours", "ours", paper={"sst2": 90.0}), Arm("theirs", "theirs", paper={"sst2": 91.5})),
        (("ours", "theirs"),),
        ("sst2",),
    )
    rng = np.random.default_rng(0)
    difficulty = rng.random(400)
    for arm in table.arms:
        for seed, share in enumerate(scores[arm.name]):
            counts = {"unigram": {"loss": 4.0}, "bigram": {"accuracy": 0.3}}
            run = {"loss": 3.0, "accuracy": accuracy, "steps": 10, "parameters": 9} | counts
            if share is None:
                run = {"diverged": "not finite"}
            for directory in (
                pretraining_directory(root, arm, seed),
                task_directory(root, arm, seed, COLUMNS["sst2"]),
            ):
                directory.mkdir(parents=True)
            write_json(pretraining_directory(root, arm, seed) / "results.json", run)
            directory = task_directory(root, arm, seed, COLUMNS["sst2"])
            if share is not None:
                right = difficulty < share
                np.save(directory / "sst2.npy", mean_rows(right))
                column = {"score": float(right.mean()), "majority": 0.5, "function": "mean"}
                run = {"columns": {"sst2": column}, "learning_rate": 1e-4}
            write_json(directory / "results.json", run)
    return Evidence(root, table, [COLUMNS["sst2"]], range(len(scores["ours"])))


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([0.90, 0.89, 0.91], [0.80, 0.81, 0.79], "decided: higher"),
        ([0.80, 0.82, 0.79], [0.80, 0.79, 0.81], "undecided: "),
        ([0.7, 0.9, 0.8], [0.7, 0.77, 0.78], "undecided: about "),
        ([0.4, 0.45, 0.42], [0.8, 0.8, 0.8], "not compared: ours did not pass the gates"),
        ([None, 0.8, 0.8], [0.8, 0.8, 0.8], "not compared: ours did not pass the gates"),
    ],
)
def test_verdicts(tmp_path, ours, theirs, verdict):
    evidence = finished_runs(tmp_path, {"ours": ours, "theirs": theirs})
    text = write_report(evidence, {}, {})
    (row,) = read(tmp_path / "results.json")["comparisons"]
    assert row["verdict"].startswith(verdict) and row["paper"] == -1.5
    assert verdict in text and ("Diverged:" in text) == (None in ours)


def test_an_arm_that_knows_no_more_than_its_neighbours_counts_is_not_compared(tmp_path):
    evidence = finished_runs(tmp_path, {"ours": [0.9, 0.9], "theirs": [0.8, 0.8]}, accuracy=0.2)
    assert "held-out accuracy 20.0 %, counts of neighbouring tokens 30.0 %" in write_report(evidence, {}, {})
    assert "not compared" in read(tmp_path / "results.json")["comparisons"][0]["verdict"]


def test_the_bigram_baseline_is_the_counts():
    class Documents:
        num_shards = 1

        def tokens(self, shard):
            return np.array([5, 6, 5, 6, 5, 7, 8, 5], dtype=np.uint32)

        def token_counts(self, size):
            return np.bincount(self.tokens(0), minlength=size)

    ids = np.array([[2, 5, 4, 3]])
    labels = np.array([[-100, -100, 6, -100]])
    single = (np.bincount([5, 6, 5, 6, 5, 7, 8, 5], minlength=9) + 1) / 17
    # After 5 came 6 twice and 7 once: two different tokens.
    expected = (2 + 2 * single[6]) / (3 + 2)
    masked = bigram_baseline(Documents(), [{"input_ids": ids, "labels": labels}], 9, left_to_right=False)
    assert masked == {"loss": pytest.approx(-np.log(expected)), "accuracy": 1.0}
    labels = np.array([[5, 6, 3, -100]])  # next tokens; after [CLS] and token 4 nothing is known
    following = bigram_baseline(Documents(), [{"input_ids": ids, "labels": labels}], 9, left_to_right=True)
    assert following["accuracy"] == pytest.approx(2 / 3)  # 5 is the most frequent token
    assert following["loss"] == pytest.approx(-np.log([single[5], expected, single[3]]).mean())
