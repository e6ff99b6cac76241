"""Every AutoModelFor… opens every checkpoint: with the package, without it, and after conversion without any code."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from helpers import TINY, TRAVELLING, batch, fresh_process, make, tiny_config
from safetensors import safe_open

import hfbert_scratch
from hfbert_scratch import HEADS, HFBertConfig
from hfbert_scratch.conversion.stock import to_stock
from hfbert_scratch.model import modeling_hfbert
from hfbert_scratch.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer, save_tokenizer


CASE_OF = {
    "AutoModel": "base",
    "AutoModelForPreTraining": "pretraining",
    "AutoModelForMaskedLM": "masked_lm",
    "AutoModelForNextSentencePrediction": "next_sentence",
    "AutoModelForSequenceClassification": "single_label",
    "AutoModelForTokenClassification": "token",
    "AutoModelForQuestionAnswering": "question_answering",
    "AutoModelForMultipleChoice": "multiple_choice",
}
WORDS = [f"word{i}" for i in range(TINY["vocab_size"] - len(SPECIAL_TOKENS))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pretraining checkpoint with its tokenizer, and the model that was saved."""
    directory = tmp_path_factory.mktemp("auto") / "ours"
    model = make("pretraining")
    model.save_pretrained(directory)
    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *WORDS])}
    save_tokenizer(bert_tokenizer(vocabulary, lowercase=True, model_max_length=40), directory)
    return directory, model


def inputs_for(auto_class):
    return batch(CASE_OF[auto_class], labels=False)


# ---------------------------------------------------------------------------------------------------- with the package


@pytest.mark.parametrize("auto_class", HEADS)
def test_the_auto_class_gives_our_class(auto_class, checkpoint):
    directory, saved = checkpoint
    auto = getattr(transformers, auto_class)
    ours = getattr(hfbert_scratch, HEADS[auto_class])
    # The package is installed and the checkpoint brings its code too: the package wins, and nobody is asked.
    for trust in (None, False, True):
        model = auto.from_pretrained(directory, trust_remote_code=trust)
        assert type(model) is ours
    assert type(auto.from_config(saved.config)) is ours
    encoder = getattr(model, "bert", model)
    assert torch.equal(encoder(**batch())[0], saved.bert(**batch())[0])


def test_loading_reports_nothing_for_the_saved_class(checkpoint):
    directory, saved = checkpoint
    model, info = transformers.AutoModelForPreTraining.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    for left, right in zip(model(**batch()).to_tuple(), saved(**batch()).to_tuple(), strict=True):
        assert torch.equal(left, right)


def test_config_and_tokenizer(checkpoint):
    directory, _ = checkpoint
    assert type(transformers.AutoConfig.from_pretrained(directory)) is HFBertConfig
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert isinstance(tokenizer, transformers.BertTokenizer)
    assert tokenizer("word1 word2")["input_ids"] == [2, 6, 7, 3]


def names_of(assignment: ast.Assign) -> list[str]:
    return [target.id for target in assignment.targets if isinstance(target, ast.Name)]


def test_the_package_exports_what_the_table_names():
    assert set(HEADS.values()) <= set(hfbert_scratch.__all__)
    for name in hfbert_scratch.__all__:
        assert hasattr(hfbert_scratch, name), name
    # Type checkers and editors know only names that are written out.
    statements = ast.parse(Path(modeling_hfbert.__file__).read_text(encoding="utf-8")).body
    [exported] = [node.value for node in statements if isinstance(node, ast.Assign) and names_of(node) == ["__all__"]]
    assert set(HEADS.values()) <= set(ast.literal_eval(exported))
    stock = {name for name in dir(transformers) if name.startswith("BertFor") or name == "BertModel"}
    assert {name.removeprefix("HF") for name in HEADS.values()} == stock


@pytest.mark.parametrize("auto_class", HEADS)
def test_files_on_disk_are_stocks(auto_class, tmp_path):
    case = CASE_OF[auto_class]
    make(case).save_pretrained(tmp_path / "ours")
    stock = getattr(transformers, HEADS[auto_class].removeprefix("HF"))(transformers.BertConfig(**TINY))
    stock.save_pretrained(tmp_path / "stock")
    names = []
    for directory in ("ours", "stock"):
        with safe_open(tmp_path / directory / "model.safetensors", framework="pt") as file:
            names.append(sorted(file.keys()))
            assert file.metadata() == {"format": "pt"}
    assert names[0] == names[1]
    assert not [name for name in names[0] if re.search(r"decoder\.|position_ids", name)]
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"config.json", "model.safetensors"} | TRAVELLING


def test_a_stock_checkpoint_opens_as_it_is(tmp_path):
    torch.manual_seed(0)
    stock = transformers.BertForPreTraining(transformers.BertConfig(**TINY)).eval()
    stock.save_pretrained(tmp_path)
    model, info = hfbert_scratch.HFBertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(model.eval()(**batch())[0], stock(**batch())[0])


def test_ours_opens_as_stock_on_request(checkpoint):
    directory, saved = checkpoint
    model = transformers.AutoModelForMaskedLM.from_pretrained(directory, model_type="bert")
    assert type(model) is transformers.BertForMaskedLM
    assert torch.equal(model(**batch()).logits, saved(**batch()).prediction_logits)


def test_fill_mask_pipeline(checkpoint):
    directory, saved = checkpoint
    fill = transformers.pipeline("fill-mask", model=str(directory))
    answers = fill("word1 [MASK] word3", top_k=3)
    ids = torch.tensor([[2, 6, 4, 8, 3]])
    expected = saved(ids, torch.ones_like(ids)).prediction_logits[0, 2].softmax(-1).topk(3)
    assert [answer["token"] for answer in answers] == expected.indices.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(expected.values.tolist(), abs=1e-6)


# ---------------------------------------------------------------------------------------------------- without it

WITHOUT_PACKAGE = """
import torch, transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
ours, stock, tuned = PATHS
heads, given = torch.load("given.pt")
results = {"stock": {}, "remote": {}, "tuned": {}}

try:
    import hfbert_scratch
    raise SystemExit("the package can be imported here")
except ImportError:
    pass

def code_of_ours():
    # An editable installation has a finder of its own, which is none of it.
    names = [name for name, module in sys.modules.items() if module is not None and "hfbert" in name.lower()]
    return [name for name in names if not name.startswith("__editable__")]

def run(auto, directory, **options):
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_pretrained(directory, **options).eval()
    with torch.no_grad():
        output = model(**given[auto])
    values = {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
    return type(model).__name__, values, model

# Stock first, while none of our code has been near this process.
for auto in heads:
    results["stock"][auto] = run(auto, stock)[:2]
fill = transformers.pipeline("fill-mask", model=stock)
results["stock_fill"] = fill("word1 [MASK] word3")[0]["token_str"]
assert not code_of_ours()

# Nothing of ours runs unless it was asked for.
results["refusals"] = []
for options in ({"trust_remote_code": False}, {}):
    for auto in ("AutoModel", "AutoConfig"):
        try:
            getattr(transformers, auto).from_pretrained(ours, **options)
            results["refusals"].append("opened")
        except ValueError as error:
            results["refusals"].append(str(error))
assert not code_of_ours()
tokenizer = transformers.AutoTokenizer.from_pretrained(ours, trust_remote_code=False)
results["tokens"] = tokenizer("word1 word2")["input_ids"]

for auto in heads:
    results["remote"][auto] = run(auto, ours, trust_remote_code=True)[:2]
fill = transformers.pipeline("fill-mask", model=ours, trust_remote_code=True)
results["remote_fill"] = fill("word1 [MASK] word3")[0]["token_str"]

# Fine-tune one step, save, open again by every class.
torch.manual_seed(0)
model = transformers.AutoModelForSequenceClassification.from_pretrained(ours, trust_remote_code=True)
model.gradient_checkpointing_enable()
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
inputs = given["AutoModelForSequenceClassification"]
model(**inputs, labels=torch.tensor([0, 1, 1])).loss.backward()
optimizer.step()
model.save_pretrained(tuned)
tokenizer.save_pretrained(tuned)
for auto in heads:
    # As in stock, the classifier (two outputs here) and the scorer of choices (one output) share a name.
    options = {"ignore_mismatched_sizes": True} if auto == "AutoModelForMultipleChoice" else {}
    name, values, loaded = run(auto, tuned, trust_remote_code=True, **options)
    results["tuned"][auto] = name, values
    encoder = getattr(loaded, "bert", loaded)
    for left, right in zip(encoder.encoder.parameters(), model.bert.encoder.parameters(), strict=True):
        assert torch.equal(left, right), auto
    if auto == "AutoModelForSequenceClassification":
        with torch.no_grad():
            assert torch.equal(values["logits"], model.eval()(**inputs).logits)
torch.save(results, "results.pt")
"""


@pytest.fixture(scope="module")
def without_package(checkpoint, tmp_path_factory):
    """What a process in which our package cannot be imported made of the checkpoint."""
    directory, _ = checkpoint
    stock, place = directory.parent / "stock", tmp_path_factory.mktemp("elsewhere")
    to_stock(directory, stock)
    torch.save((list(HEADS), {auto: inputs_for(auto) for auto in HEADS}), place / "given.pt")
    paths = [str(directory), str(stock), str(place / "tuned")]
    fresh_process(f"PATHS = {paths!r}\n{WITHOUT_PACKAGE}", place)
    return torch.load(place / "results.pt", weights_only=False), place / "tuned"


def assert_equal_outputs(auto_class, values, expected):
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(values[name], value), (auto_class, name)


# Heads whose every weight is in a pretraining checkpoint; the others start with random ones.
COMPLETE = ("AutoModel", "AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForNextSentencePrediction")


@pytest.mark.parametrize("way", ["stock", "remote"])
def test_every_class_opens_without_the_package(way, without_package, checkpoint):
    results, _ = without_package
    directory, _ = checkpoint
    for auto_class, name in HEADS.items():
        opened, values = results[way][auto_class]
        assert opened == (name if way == "remote" else name.removeprefix("HF"))
        assert all(value.isfinite().all() for value in values.values())
        if auto_class in COMPLETE:
            here = getattr(transformers, auto_class).from_pretrained(directory)
            with torch.no_grad():
                assert_equal_outputs(auto_class, values, here(**inputs_for(auto_class)))


def test_a_model_fine_tuned_without_the_package_opens_everywhere(without_package, tmp_path):
    results, tuned = without_package
    for auto_class, name in HEADS.items():
        assert results["tuned"][auto_class][0] == name
    files = {path.name for path in tuned.iterdir()}
    assert {"config.json", "model.safetensors"} | TRAVELLING <= files
    written = json.loads((tuned / "config.json").read_text())
    assert written["model_type"] == "hfbert" and set(HEADS) < set(written["auto_map"])
    # Back where the package is installed, and on to stock.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tuned)
    assert type(model) is hfbert_scratch.HFBertForSequenceClassification
    inputs = inputs_for("AutoModelForSequenceClassification")
    with torch.no_grad():
        assert_equal_outputs("tuned", results["tuned"]["AutoModelForSequenceClassification"][1], model(**inputs))
    assert to_stock(tuned, tmp_path / "stock").architecture == "BertForSequenceClassification"


def test_no_code_runs_without_asking(without_package):
    results, _ = without_package
    assert len(results["refusals"]) == 4
    assert all("trust_remote_code=True" in refusal for refusal in results["refusals"]), results["refusals"]


def test_tokenizer_and_pipeline_without_the_package(without_package, checkpoint):
    results, _ = without_package
    directory, _ = checkpoint
    assert results["tokens"] == [2, 6, 7, 3]
    here = transformers.pipeline("fill-mask", model=str(directory))("word1 [MASK] word3")[0]["token_str"]
    assert results["stock_fill"] == results["remote_fill"] == here


def test_the_travelling_files_import_nothing_else_of_ours(checkpoint):
    directory, _ = checkpoint
    for name in TRAVELLING:
        relative = re.findall(r"^\s*from (\.\S*) import", (directory / name).read_text(), re.MULTILINE)
        assert {f"{module[1:]}.py" for module in relative} <= TRAVELLING
        assert "import hfbert_scratch" not in (directory / name).read_text()


def test_a_checkpoint_says_so_when_its_weights_are_not_there(checkpoint, tmp_path):
    directory, _ = checkpoint
    shutil.copytree(directory, tmp_path / "ours")
    (tmp_path / "ours" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.AutoModel.from_pretrained(tmp_path / "ours")


def test_importing_the_package_imports_nothing_beyond_the_model(tmp_path):
    program = """
import sys
from transformers import AutoConfig, AutoModelForPreTraining, AutoTokenizer, BertForPreTraining, BertTokenizer
before = set(sys.modules)
import hfbert_scratch
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
heavy = ("datasets", "evaluate", "matplotlib", "pyarrow", "seqeval", "sklearn", "tensorboard")
print(*[name for name in heavy if name in set(sys.modules) - before])
"""
    added, heavy = fresh_process(program, tmp_path, without_package=False).stdout.splitlines()
    assert added == "hfbert_scratch"
    assert not heavy


class Weighted(hfbert_scratch.HFBertForSequenceClassification):
    """A user's own subclass."""


def test_a_subclass_and_a_configuration_alone_are_saved_with_all_code(tmp_path):
    Weighted(tiny_config()).save_pretrained(tmp_path / "model")
    tiny_config().save_pretrained(tmp_path / "config")
    for directory in (tmp_path / "model", tmp_path / "config"):
        assert {path.name for path in directory.iterdir()} >= TRAVELLING
    code = "from transformers import AutoModelForSequenceClassification as A\n"
    fresh_process(code + "A.from_pretrained('model', trust_remote_code=True)", tmp_path)
