"""The page to try a checkpoint: what each ability answers, how it is shown, and the folder of a Space."""

import importlib.util
import math
import re

import numpy as np
import pytest
import torch
from helpers import CASES, make, pair
from matplotlib.figure import Figure

from hfbert_scratch.app import answers, pictures
from hfbert_scratch.app.checkpoint import Checkpoint, open_checkpoint
from hfbert_scratch.app.page import build_page
from hfbert_scratch.conversion.stock import to_stock
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.utils.errors import InputError


TEXT = "kala mose fidu"
EVERYWHERE = ["similarity", "attention"]
ABILITIES = {
    "base": EVERYWHERE,
    "pretraining": ["fill_mask", "next_sentence", "pseudo_likelihood", *EVERYWHERE],
    "masked_lm": ["fill_mask", "pseudo_likelihood", *EVERYWHERE],
    "next_sentence": ["next_sentence", *EVERYWHERE],
    "single_label": ["classify", *EVERYWHERE],
    "token": ["tag_words", *EVERYWHERE],
    "question_answering": ["answer_question", *EVERYWHERE],
    "multiple_choice": EVERYWHERE,
}


@pytest.fixture(scope="module")
def opened(tokenizer, tmp_path_factory):
    """case → a checkpoint of random weights, saved and opened."""
    found = {}

    def get(case: str) -> Checkpoint:
        if case not in found:
            directory = tmp_path_factory.mktemp("checkpoints") / case
            make(case, vocab_size=len(tokenizer)).save_pretrained(directory)
            save_tokenizer(tokenizer, directory)
            found[case] = open_checkpoint(directory)
        return found[case]

    return get


@pytest.mark.parametrize("case", ABILITIES)
def test_a_checkpoint_is_asked_for_what_its_head_can_do(case, opened):
    checkpoint = opened(case)
    assert (checkpoint.head, checkpoint.abilities) == (CASES[case][1], ABILITIES[case])


def test_a_stock_checkpoint_answers_as_ours(opened, tmp_path):
    to_stock(opened("pretraining").name, tmp_path / "stock")
    stock = open_checkpoint(tmp_path / "stock")
    assert stock.abilities == ABILITIES["pretraining"]
    ours, theirs = (answers.pseudo_likelihood(checkpoint, TEXT) for checkpoint in (opened("pretraining"), stock))
    assert [value for _, value in theirs] == pytest.approx([value for _, value in ours], rel=1e-4)


def test_a_model_that_reads_left_to_right_fills_no_blanks(tokenizer, tmp_path):
    make("masked_lm", vocab_size=len(tokenizer), left_to_right=True).save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    assert open_checkpoint(tmp_path).abilities == EVERYWHERE


@torch.no_grad()
def test_each_blank_gets_its_words(opened, tokenizer):
    checkpoint = opened("pretraining")
    first, second = answers.fill_mask(checkpoint, "kala [MASK] fidu [MASK]", 3)
    inputs = tokenizer("kala [MASK] fidu [MASK]", return_tensors="pt")
    blanks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    best = checkpoint.model(**inputs).prediction_logits[0, blanks].softmax(-1).topk(3)
    for found, values, ids in zip((first, second), best.values, best.indices, strict=True):
        assert list(found) == tokenizer.convert_ids_to_tokens(ids.tolist())
        assert list(found.values()) == pytest.approx(values.tolist())


@torch.no_grad()
@pytest.mark.parametrize("case", ["pretraining", "next_sentence"])
def test_the_next_sentence_is_column_0(case, opened, tokenizer):
    checkpoint = opened(case)
    outputs = checkpoint.model(**tokenizer(TEXT, "bako rale", return_tensors="pt"))
    logits = outputs.seq_relationship_logits if case == "pretraining" else outputs.logits
    assert answers.next_sentence(checkpoint, TEXT, "bako rale") == pytest.approx(float(logits.softmax(-1)[0, 0]))


@torch.no_grad()
@pytest.mark.parametrize("case", ["single_label", "multi_label", "regression"])
def test_classes_come_with_the_probabilities_of_their_problem(case, opened, tokenizer):
    checkpoint = opened(case)
    logits = checkpoint.model(**tokenizer(TEXT, "bako", return_tensors="pt")).logits[0]
    found = answers.classify(checkpoint, TEXT, "bako")
    if case == "regression":
        assert found == {"score": pytest.approx(float(logits))}
        return
    expected = logits.softmax(-1) if case == "single_label" else logits.sigmoid()
    assert [found[f"LABEL_{number}"] for number in range(3)] == pytest.approx(expected.tolist())
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_entities_are_pieces_of_the_text(opened):
    pieces = answers.tag_words(opened("token"), f"{TEXT}, bako  rale.")
    assert "".join(text for text, _ in pieces) == f"{TEXT}, bako  rale."
    assert {kind for _, kind in pieces} <= {None, "LABEL_0", "LABEL_1", "LABEL_2"}
    assert any(kind for _, kind in pieces)


def test_an_answer_is_a_part_of_the_text(opened):
    found = answers.answer_question(opened("question_answering"), "bako?", f"{TEXT} rale.", top_k=3)
    assert len(found) == 3 and all(text in f"{TEXT} rale." and 0 <= share <= 1 for text, share in found)


@torch.no_grad()
def test_the_likelihood_masks_each_token_in_turn(opened, tokenizer):
    checkpoint = opened("masked_lm")
    found = answers.pseudo_likelihood(checkpoint, TEXT)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert [token for token, _ in found] == tokenizer.convert_ids_to_tokens(ids[0, 1:-1].tolist())
    for position, (_, probability) in enumerate(found, 1):
        masked = ids.clone()
        masked[0, position] = tokenizer.mask_token_id
        expected = checkpoint.model(masked).logits[0, position].softmax(-1)[ids[0, position]]
        assert probability == pytest.approx(float(expected), rel=1e-4)


def test_similarity_is_the_cosine_of_means_and_attention_sums_to_1(opened):
    cosines = answers.similarity(opened("base"), [TEXT, "bako rale", f" {TEXT} ", ""])
    assert cosines.shape == (3, 3) and np.allclose(cosines, cosines.T) and cosines[0, 2] == pytest.approx(1, abs=1e-5)
    found = answers.attention(opened("base"), TEXT, "bako")
    assert found.tokens[0] == "[CLS]" and found.tokens.count("[SEP]") == 2
    assert found.weights.shape == (2, 4, len(found.tokens), len(found.tokens))
    assert np.allclose(found.weights.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda opened: answers.fill_mask(opened("pretraining"), "  "), "the text is empty; type one"),
        (lambda opened: answers.fill_mask(opened("pretraining"), TEXT), r"the text has no \[MASK\]; write it where"),
        (lambda opened: answers.next_sentence(opened("pretraining"), TEXT, ""), "the second sentence is empty"),
        (lambda opened: answers.classify(opened("single_label"), TEXT * 20), "this model reads at most 40; cut it"),
        (lambda opened: answers.answer_question(opened("question_answering"), "", TEXT), "the question is empty"),
        (lambda opened: answers.similarity(opened("base"), [TEXT, " "]), "write at least two sentences"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_sentence(ask, message, opened):
    with pytest.raises(InputError, match=message):
        ask(opened)


def test_a_checkpoint_of_another_kind_is_named(tokenizer, tmp_path):
    _, stock = pair("masked_lm")
    stock.config.architectures = ["BertLMHeadModel"]
    stock.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("BertForMaskedLM", "BertLMHeadModel"))
    with pytest.raises(InputError, match="holds BertLMHeadModel, and the page shows BERT's heads only"):
        open_checkpoint(tmp_path)


def test_a_name_that_is_no_directory_is_said_to_be_one_of_the_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nowhere \(no directory here, so a name on the Hub\) cannot be opened"):
        open_checkpoint("nowhere")


def test_a_model_of_one_layer_and_one_head_has_a_page(tokenizer, tmp_path):
    pytest.importorskip("gradio")
    model = make("base", vocab_size=len(tokenizer), num_hidden_layers=1, num_attention_heads=1)
    model.save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    assert build_page(open_checkpoint(tmp_path)).title == tmp_path.name


def test_nothing_typed_becomes_markup():
    evil = "<script>alert(1)</script>"
    shown = (
        pictures.probability_table([(evil, 0.5)]),
        pictures.entity_text([(evil, None), (evil, evil)]),
        pictures.similarity_table([evil, "b"], np.eye(2)),
        pictures.likelihood_table([(evil, 0.0)]),
    )
    assert not any("<script" in html for html in shown) and all("&lt;script" in html for html in shown)


def test_the_likelihood_is_the_sum_of_the_logarithms():
    html = re.sub("<[^>]*>", "", pictures.likelihood_table([("a", 0.5), ("b", 0.25)]))
    assert f"−{math.log(8):.2f} nats" in html and f"pseudo-perplexity {8**0.5:.1f}" in html


def test_attention_is_drawn_with_its_tokens(opened):
    found = answers.attention(opened("base"), TEXT)
    figure = pictures.draw_attention(found, 1, 2)
    assert isinstance(figure, Figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == found.tokens
    assert len(pictures.draw_heads(found, 0).axes) == 4 and len(pictures.draw_heads(found).axes) == 8
    assert pictures.picture(figure, "weights").startswith("<img") and "data:image/png" in pictures.picture(figure, "w")


def test_without_gradio_one_sentence_says_what_to_install(opened, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    with pytest.raises(InputError, match=r"pip install hfbert-scratch\[app\]$"):
        build_page(opened("base"))
