"""From a finished run to a repository: the card says what the records say, the folder opens, bad input is named."""

import dataclasses
import json
import math
import shutil
import tomllib
from importlib.metadata import version
from pathlib import Path

import finetuning_helpers
import huggingface_hub
import pytest
import yaml
from finetuning_helpers import call, make_data, make_model
from huggingface_hub import ModelCard, SpaceCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from packaging.requirements import Requirement
from training_helpers import ROOT, arguments, handlers_restored, make_inputs, pretrain_here

from hfbert_scratch.publishing import card as publishing
from hfbert_scratch.publishing import repository, space
from hfbert_scratch.publishing.card import CardArguments, build_card, carbon, eval_results
from hfbert_scratch.publishing.finetunings import TaskScores
from hfbert_scratch.publishing.finished_run import FinishedRun, open_run
from hfbert_scratch.publishing.repository import build_repository
from hfbert_scratch.tasks import get_task
from hfbert_scratch.utils.errors import InputError
from hfbert_scratch.utils.files import write_json


CARD = ROOT / "model_card.md"
REQUIRED = {"license", "library_name", "pipeline_tag", "tags", "metrics", "model-index", "language"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One finished run of each kind."""
    directory = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch, handlers_restored():
        command = arguments(make_inputs(directory / "inputs"), directory / "pretraining", keep_checkpoints=0)
        assert pretrain_here(monkeypatch, command) == 0
        data = make_data(directory / "data", "mrpc")
        start = make_model(directory / "start")
        command = finetuning_helpers.options("mrpc", data, start, directory / "mrpc", max_steps=8)
        assert call(monkeypatch, "finetune", command) == 0
    return directory


def card_arguments(runs, target, kind="pretraining", **options):
    settings = {"run": str(runs / kind), "output_dir": str(target), "license": "apache-2.0"} | options
    return CardArguments(**settings)


@pytest.mark.parametrize("kind", ["pretraining", "mrpc"])
def test_a_repository_says_what_the_records_say_and_opens(kind, runs, tmp_path, monkeypatch):
    if kind == "pretraining":  # the demo's test opens such a one
        monkeypatch.setattr(repository, "check_loads", lambda *_: None)
    statements = card_arguments(
        runs, tmp_path / "out", kind, power_watts=100.0, datasets=["me/texts"], data="Own texts.", language=["la"]
    )
    run = open_run(statements.run)
    files = {str(path.relative_to(tmp_path / "out")) for path in build_repository(run, statements)}
    assert {path.name for path in run.model.iterdir()} < files
    assert {"README.md", "curves.png", "modeling_hfbert.py", "model.safetensors", "tokenizer.json"} <= files

    card = ModelCard.load(tmp_path / "out" / "README.md")
    metadata = yaml.safe_load(card.content.split("---")[1])
    assert metadata.keys() >= REQUIRED | {"datasets", "co2_eq_emissions"}
    assert str(runs) not in card.content.replace(str(tmp_path), ""), "no path of this machine"
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    record = json.loads((runs / kind / "record.json").read_text())
    grams = record["seconds"] / 3600 * 0.1 * publishing.WORLD_GRID
    assert metadata["co2_eq_emissions"]["emissions"] == pytest.approx(grams, abs=1e-3)
    if kind == "pretraining":
        results = record["results"]
        assert values["masked LM accuracy"] == pytest.approx(results["eval_masked_lm_accuracy"], abs=1e-6)
        assert values["masked LM perplexity"] == pytest.approx(math.exp(results["eval_masked_lm_loss"]), rel=1e-5)
        assert values["next sentence accuracy"] == pytest.approx(results["eval_next_sentence_accuracy"], abs=1e-6)
        assert metadata["datasets"] == ["me/texts"] and metadata["pipeline_tag"] == "fill-mask"
        assert not any(".eval_results" in name for name in files)
    else:
        results = json.loads((runs / kind / "results.json").read_text())
        main = results["main_metric"]
        assert card.data.eval_results[0].metric_value == pytest.approx(main["value"], abs=1e-6)
        assert card.data.eval_results[0].dataset_config == "mrpc"
        assert metadata["datasets"] == ["me/texts", "nyu-mll/glue"]
        assert "confusion.png" in files and "(confusion.png)" in card.content
        entries = yaml.safe_load((tmp_path / "out" / ".eval_results" / "hfbert.yaml").read_text())
        parsed = huggingface_hub.parse_eval_result_entries(entries)
        assert (parsed[0].dataset_id, parsed[0].task_id) == ("nyu-mll/glue", "mrpc")
        assert parsed[0].value == pytest.approx(main["value"], abs=1e-6)


def test_without_a_stated_power_there_is_no_estimate(runs, tmp_path):
    statements = card_arguments(runs, tmp_path / "out")
    run = open_run(statements.run)
    assert carbon(run, statements) is None
    assert "the power drawn was not stated" in build_card(run, statements).content


def test_what_nobody_said_is_not_made_up(runs, tmp_path):
    """No language, and no title from the name of a folder; small numbers stay numbers."""
    statements = card_arguments(runs, tmp_path / "x1")
    run = open_run(statements.run)
    card = build_card(run, statements)
    assert "language" not in card.data.to_dict() and "The language of the texts was not stated." in card.content
    assert "\n# BERT of 1 layers, width 32\n" in card.content and "# x1" not in card.content
    tokens = run.record["corpus"]["splits"]["train"]["tokens"]
    assert 1e4 < tokens < 1e6 and f" {tokens:,} tokens;" in card.content and "0.0 M" not in card.content
    assert "\n# bert-own\n" in build_card(run, dataclasses.replace(statements, repo_id="me/bert-own")).content
    tuned = card_arguments(runs, tmp_path / "x1", "mrpc")
    assert "\n# BERT fine-tuned on mrpc\n" in build_card(open_run(tuned.run), tuned).content


def test_the_start_of_a_finetuning_run_is_a_base_model_only_if_it_is_a_name(runs, tmp_path):
    statements = card_arguments(runs, tmp_path / "out", "mrpc")
    run = open_run(statements.run)
    assert "base_model" not in publishing.card_data(run, statements).to_dict()
    run.record["arguments"]["model"] = "google-bert/bert-base-uncased"
    assert publishing.card_data(run, statements).to_dict()["base_model"] == "google-bert/bert-base-uncased"
    assert "from google-bert/bert-base-uncased" in build_card(run, statements).content
    named = dataclasses.replace(statements, base_model="me/base")
    assert publishing.card_data(run, named).to_dict()["base_model"] == "me/base"


def test_results_on_data_of_ones_own_are_not_entered_for_the_task(runs):
    run = open_run(runs / "mrpc")
    assert eval_results(run)
    run.record["arguments"]["dataset"] = "me/paraphrases"
    assert not eval_results(run)


def test_the_card_at_the_top_is_the_one_that_publish_writes_for_the_reference_run():
    held = json.loads((ROOT / "tests" / "data" / "reference_run.json").read_text(encoding="utf-8"))
    finetunings = tuple(TaskScores(**row | {"scores": dict(row["scores"])}) for row in held["finetunings"])
    run = FinishedRun(Path("runs/reference"), held["record"], None, held["config"], finetunings)
    card = build_card(run, CardArguments(**held["statements"]), pictures=False)
    assert str(card) == CARD.read_text(encoding="utf-8")


def finetuning(directory, model, task="mrpc", seed=0, value=0.85, examples=3668):
    """Write the records of a fine-tuning."""
    directory.mkdir()
    name = get_task(task).main_metric
    results = {"task": task, "model": str(model), "examples": {"train": examples}}
    results |= {"main_metric": {"name": name, "split": "validation", "value": value}}
    write_json(directory / "results.json", results | {"majority_baseline": {"validation": {name: 0.0}}})
    write_json(directory / "record.json", {"arguments": {"seed": seed}})
    return str(directory)


def test_scores_of_fine_tunings_join_the_card(runs, tmp_path):
    model = runs / "pretraining" / "model"
    runs_of_tasks = [
        finetuning(tmp_path / f"mrpc{seed}", model, seed=seed, value=0.8 + seed / 50) for seed in range(3)
    ]
    runs_of_tasks.append(finetuning(tmp_path / "squad", model, "squad", value=61.25, examples=87599))
    run = open_run(runs / "pretraining", runs_of_tasks)
    card = str(build_card(run, card_arguments(runs, tmp_path / "out"), pictures=False))
    assert "| mrpc | f1 | validation | 3,668 | 3 | 82.0 ± 2.0 | 0.0 |\n" in card
    assert "| squad | f1 | validation | 87,599 | 1 | 61.2 | 0.0 |\n\n## Hardware" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 0}, "is the second fine-tuning on mrpc with seed 0"),
        ({"seed": 1, "examples": 100}, "100 training examples, scored on validation; the one before on mrpc had 3668"),
        ({"seed": 1, "model": "runs/another"}, "was fine-tuned from runs/another, not from"),
    ],
)
def test_fine_tunings_that_do_not_belong_together_are_named(changes, message, runs, tmp_path):
    model = runs / "pretraining" / "model"
    first = finetuning(tmp_path / "first", model)
    second = finetuning(tmp_path / "second", **({"model": model} | changes))
    with pytest.raises(InputError, match=message):
        open_run(runs / "pretraining", [first, second])


# ---------------------------------------------------------------------------------------------------- the Space


def test_a_space_carries_the_model_or_names_it(runs, tmp_path):
    title = 'The "demo\'s" BERT'
    run = open_run(runs / "pretraining")
    for repo_id in (None, "me/demo"):
        target = tmp_path / f"space-{repo_id is None}"
        statements = card_arguments(runs, tmp_path / "out", title=title, repo_id=repo_id)
        files = {path.relative_to(target).as_posix() for path in space.build_space(run, statements, target)}
        assert {"README.md", "app.py", "requirements.txt"} <= files
        assert ("model/model.safetensors" in files) == (repo_id is None)
        header = SpaceCard.load(target / "README.md").data
        assert (header.sdk, header.app_file, header.title, header.license) == ("gradio", "app.py", title, "apache-2.0")
        assert header.models == (None if repo_id is None else [repo_id])
        assert f"hfbert-scratch[app]=={version('hfbert-scratch')}" in (target / "requirements.txt").read_text()
        # The page is served with the arguments of app.py, here without Gradio.
        served = []
        names = {"open_checkpoint": lambda name: name, "build_page": lambda *a, **b: (a, b), "serve": served.append}
        program = [line for line in (target / "app.py").read_text().splitlines() if not line.startswith("from ")]
        exec("\n".join(program), names)
        assert served == [((repo_id or "model",), {"title": title})]


def test_the_space_s_gradio_is_one_that_the_extra_allows():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["app"]
    (requirement,) = map(Requirement, extra)
    assert requirement.name == "gradio" and requirement.specifier.contains(space.GRADIO_VERSION)


# ---------------------------------------------------------------------------------------------------- bad input


def change_record(**entries):
    def change(run):
        path = run / "record.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def damage_weights(run):
    path = run / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BAD_RUNS = {
    "no run": (lambda run: (run / "record.json").unlink(), "is not the directory of a run: it has no record.json"),
    "another record": (lambda run: (run / "record.json").write_text("{}"), "is not the record of a training run"),
    "not JSON": (lambda run: (run / "record.json").write_text("{"), "record.json is not readable JSON"),
    "not finished": (change_record(status="stopped"), "is not finished; start it again with the same command"),
    "no model": (lambda run: shutil.rmtree(run / "model"), "has no model/ to publish"),
    "never evaluated": (change_record(results={}), "holds no evaluation"),
    "damaged": (damage_weights, "does not open by itself with trust_remote_code: "),
}


@pytest.mark.parametrize("kind", BAD_RUNS)
def test_what_cannot_be_published_is_named(kind, runs, tmp_path):
    damage, message = BAD_RUNS[kind]
    shutil.copytree(runs / "pretraining", tmp_path / "run")
    damage(tmp_path / "run")
    statements = card_arguments(runs, tmp_path / "out", run=str(tmp_path / "run"))
    with pytest.raises(InputError, match=message) as caught:
        build_repository(open_run(statements.run), statements)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists(), "nothing may be left behind"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license": ""}, "license is ''; it must be an identifier of the Hub"),
        ({"license": "Apache License 2.0"}, "must be an identifier of the Hub such as apache-2.0"),
        ({"repo_id": "a/b/c"}, "repo_id is no name of the Hub"),
        ({"power_watts": 0.0}, "power_watts is 0.0; it must be above 0"),
    ],
)
def test_bad_wishes(options, message, runs, tmp_path):
    with pytest.raises(InputError, match=message):
        card_arguments(runs, tmp_path / "out", **options)


# ---------------------------------------------------------------------------------------------------- the recipe


def publish(monkeypatch, *line):
    return call(monkeypatch, "publish", list(map(str, line)))


def test_the_recipe_lists_pushes_and_explains(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(repository, "check_loads", lambda *_: None)  # shown above; it takes a new process
    uploads = []

    class Hub:
        error = None

        def create_repo(self, repo_id, **options):
            if self.error:
                raise self.error

        def upload_folder(self, *, folder_path, repo_id, commit_message, repo_type="model"):
            uploads.append((repo_id, {path.name for path in Path(folder_path).iterdir()}, repo_type))
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr(repository, "HfApi", Hub)
    given = ("--run", runs / "mrpc", "--license", "mit")
    here = ("--output_dir", tmp_path / "dry", "--space", tmp_path / "space")
    assert publish(monkeypatch, *given, *here) == 0
    printed = capsys.readouterr().out
    assert "requirements.txt" in printed and (tmp_path / "space" / "model" / "model.safetensors").is_file()
    assert "nothing was uploaded" in printed and "model.safetensors" in printed and "README.md" in printed
    assert not uploads

    given += ("--repo_id", "me/bert-mrpc", "--push")
    assert publish(monkeypatch, *given, "--output_dir", tmp_path / "pushed") == 0
    assert uploads[0][0] == "me/bert-mrpc" and {"README.md", ".eval_results"} < uploads[0][1]
    assert "https://hub/commit" in capsys.readouterr().out
    assert 'from_pretrained("me/bert-mrpc"' in (tmp_path / "pushed" / "README.md").read_text()

    both = ("--output_dir", tmp_path / "model", "--space", tmp_path / "page")
    assert publish(monkeypatch, *given, *both) == 0
    assert [(repo_id, kind) for repo_id, _, kind in uploads[1:]] == [
        ("me/bert-mrpc", "model"),
        ("me/bert-mrpc", "space"),
    ]
    assert uploads[2][1] == {"README.md", "app.py", "requirements.txt"}
    capsys.readouterr()

    Hub.error = LocalTokenNotFoundError("no token")
    assert publish(monkeypatch, *given, "--output_dir", tmp_path / "a") == 7
    assert "error: cannot push to me/bert-mrpc: log in first" in capsys.readouterr().err
    Hub.error = HfHubHTTPError("403 Forbidden", response=type("R", (), {"headers": {}, "request": None})())
    assert publish(monkeypatch, *given, "--output_dir", tmp_path / "b") == 7
    assert "cannot push to me/bert-mrpc: 403 Forbidden" in capsys.readouterr().err

    assert publish(monkeypatch, "--run", runs / "mrpc", "--output_dir", tmp_path / "c") == 2
    assert "--license" in capsys.readouterr().err
    assert publish(monkeypatch, *given[:4], "--push", "--output_dir", tmp_path / "c") == 2
    assert "--push needs --repo_id" in capsys.readouterr().err
    assert publish(monkeypatch, *given[:4], "--output_dir", tmp_path / "dry") == 2
    assert "is not empty; name a new one" in capsys.readouterr().err

    assert publish(monkeypatch, *given[:4], "--output_dir", tmp_path / "d", "--card", tmp_path / "card.md") == 0
    assert "![curves]" not in (tmp_path / "card.md").read_text(encoding="utf-8")
