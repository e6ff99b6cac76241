"""The page, laid out with Gradio: a tab for each ability of the checkpoint. Nothing is sent to anybody."""

import importlib.util
import os
from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any

from ..utils.errors import InputError, OutputError, one_line
from ..utils.quantities import count_text
from . import answers, pictures
from .checkpoint import Checkpoint


_Answer = Callable[..., str]


def build_page(checkpoint: Checkpoint, title: str | None = None) -> Any:
    """Lay out the page of a checkpoint.

    Args:
        checkpoint: an opened checkpoint.
        title: the heading; None: the checkpoint's name.

    Returns:
        The page, a `gradio.Blocks`; `serve` shows it.

    Raises:
        InputError: if Gradio is not installed.
    """
    gradio = _import_gradio()
    tabs = {
        "fill_mask": ("Fill in blanks", _fill_mask_tab),
        "next_sentence": ("Next sentence", _next_sentence_tab),
        "classify": ("Classify", _classify_tab),
        "tag_words": ("Entities", _tag_words_tab),
        "answer_question": ("Questions", _answer_question_tab),
        "pseudo_likelihood": ("Likelihood", _pseudo_likelihood_tab),
        "similarity": ("Similarity", _similarity_tab),
        "attention": ("Attention", _attention_tab),
    }
    heading = title or checkpoint.title
    parameters = count_text(checkpoint.model.num_parameters())
    with gradio.Blocks(title=heading, analytics_enabled=False) as page:
        gradio.Markdown(
            f"# {heading}\n{checkpoint.head} · {parameters} parameters · reads at most {checkpoint.max_tokens} tokens"
        )
        for ability in checkpoint.abilities:
            name, lay_out = tabs[ability]
            with gradio.Tab(name, id=ability):
                lay_out(gradio, checkpoint)
    return page


def serve(page: Any, host: str | None = None, port: int | None = None, **options: Any) -> Any:
    """Show a page until the process is interrupted.

    Args:
        page: a page of `build_page`.
        host: the address to listen on; None: that of a Space, else 127.0.0.1, this machine alone.
        port: the port; None: the first free one from 7860.
        options: further options of `gradio.Blocks.launch`.

    Returns:
        As `gradio.Blocks.launch`.

    Raises:
        OutputError: if the port is taken.
    """
    gradio = _import_gradio()
    # Fonts of the system: Gradio's own themes load theirs from Google.
    theme = gradio.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    settings = {"share": False, "ssr_mode": False, "footer_links": [], "theme": theme} | options
    try:
        return page.launch(server_name=host, server_port=port, **settings)
    except OSError as error:
        raise OutputError(
            f"the page cannot listen on port {port} ({one_line(error)}); choose another --port"
        ) from None


def _import_gradio() -> Any:
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs Gradio, which is not installed: pip install hfbert-scratch[app]")
    # Read when Gradio is imported: it would report use to its makers, and ask them for newer versions.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import gradio

    return gradio


def _ask(gradio: Any, label: str, answer: _Answer, inputs: list[Any], empty: str) -> None:
    """Add a button and an output; the button, the Enter key of one-line inputs and sliders call `answer`.

    Args:
        gradio: the module.
        label: the button's.
        answer: takes the inputs' values and returns HTML.
        inputs: the components.
        empty: stands in the output before the first answer.
    """
    button = gradio.Button(label, variant="primary")
    output = gradio.HTML(f"<p style='opacity:.7'>{empty}</p>")
    events = [button.click]
    for box in inputs:
        if isinstance(box, gradio.Slider):
            events.append(box.release)
        elif box.lines == 1:
            events.append(box.submit)
    gradio.on(events, _with_errors_shown(answer), inputs, output, api_visibility="private")


def _with_errors_shown(answer: _Answer) -> _Answer:
    """Return `answer` with an InputError turned into a sentence; any other exception is a bug, and is raised."""

    @wraps(answer)
    def answered(*inputs: Any) -> str:
        try:
            return answer(*inputs)
        except InputError as error:
            sentence = str(error)
            return f"<p role='alert' style='color:#dc2626'>{escape(sentence[0].upper() + sentence[1:])}.</p>"

    return answered


def _fill_mask_tab(gradio: Any, checkpoint: Checkpoint) -> None:
    mask = checkpoint.tokenizer.mask_token

    def show(text: str, top_k: float) -> str:
        blanks = answers.fill_mask(checkpoint, text, int(top_k))
        tables = [pictures.probability_table(list(blank.items())) for blank in blanks]
        if len(tables) == 1:
            return tables[0]
        return "".join(f"<h4>Blank {number}</h4>{table}" for number, table in enumerate(tables, 1))

    gradio.Markdown(f"Write `{mask}` where words are missing.")
    text = gradio.Textbox(f"He opened the {mask} and looked outside.", label="Text")
    top_k = gradio.Slider(1, 20, 5, step=1, label="Words for each blank")
    _ask(gradio, "Fill in", show, [text, top_k], "The likeliest words, with their probabilities.")


def _next_sentence_tab(gradio: Any, checkpoint: Checkpoint) -> None:
    def show(first: str, second: str) -> str:
        follows = answers.next_sentence(checkpoint, first, second)
        return pictures.probability_table([("follows", follows), ("does not follow", 1 - follows)])

    gradio.Markdown("Does the second sentence follow the first in a text?")
    first = gradio.Textbox("He opened the door and looked outside.", label="First sentence")
    second = gradio.Textbox("It was raining.", label="Second sentence")
    _ask(gradio, "Ask", show, [first, second], "The probability that the second sentence follows the first.")


def _classify_tab(gradio: Any, checkpoint: Checkpoint) -> None:
    def show(text: str, second: str) -> str:
        classes = answers.classify(checkpoint, text, second)
        if checkpoint.model.config.num_labels == 1:
            return f"<p>score <b>{classes['score']:.3f}</b></p>"
        return pictures.probability_table(list(classes.items()))

    task = checkpoint.task.get("task")
    gradio.Markdown(f"The model was fine-tuned on {task}." if task else "Classes as the checkpoint names them.")
    text = gradio.Textbox("A film that I would watch again.", label="Text")
    second = gradio.Textbox("", label="Second text, for a model of pairs")
    _ask(gradio, "Classify", show, [text, second], "The classes, with their probabilities.")


def _tag_words_tab(gradio: Any, checkpoint: Checkpoint) -> None:
    def show(text: str) -> str:
        return pictures.entity_text(answers.tag_words(checkpoint, text))

    gradio.Markdown("Names and other entities that the model finds.")
    text = gradio.Textbox("Ada Lovelace was born in London.", label="Text")
    _ask(gradio, "Find", show, [text], "The text, with its entities.")


def _answer_question_tab(gradio: Any, checkpoint: Checkpoint) -> None:
    def show(question: str, context: str) -> str:
        return pictures.probability_table(answers.answer_question(checkpoint, question, context), "(no answer)")

    context = gradio.Textbox("Ada Lovelace was born in London in 1815.", label="Text", lines=4)
    question = gradio.Textbox("Where was Ada Lovelace born?", label="Question")
    _ask(gradio, "Answer", show, [question, context], "The answer, a part of the text, and the runners-up.")


def _pseudo_likelihood_tab(gradio: Any, checkpoint: Checkpoint) -> None:
    def show(text: str) -> str:
        return pictures.likelihood_table(answers.pseudo_likelihood(checkpoint, text))

    gradio.Markdown("How likely is a sentence? Each token is masked in turn; its probability stands below it.")
    text = gradio.Textbox("He opened the door and looked outside.", label="Sentence")
    _ask(gradio, "Score", show, [text], "The tokens with their probabilities, and their pseudo-log-likelihood.")


def _similarity_tab(gradio: Any, checkpoint: Checkpoint) -> None:
    def show(text: str) -> str:
        texts = [line.strip() for line in text.splitlines() if line.strip()]
        return pictures.similarity_table(texts, answers.similarity(checkpoint, texts))

    gradio.Markdown(
        "The cosine between the means of the token vectors. A model that was not trained for similarity gives high "
        "values to all pairs: compare them with each other."
    )
    lines = ("He opened the door.", "She closed the window.", "Prices rose by two per cent.", "Inflation was low.")
    text = gradio.Textbox("\n".join(lines), label="Sentences, one a line", lines=5)
    _ask(gradio, "Compare", show, [text], "A table of the similarities.")


def _attention_tab(gradio: Any, checkpoint: Checkpoint) -> None:
    config = checkpoint.model.config

    def show(text: str, second: str, layer: float, head: float) -> str:
        found = answers.attention(checkpoint, text, second)
        one = pictures.draw_attention(found, int(layer) - 1, int(head) - 1)
        heads = pictures.draw_heads(found, int(layer) - 1)
        return (
            pictures.picture(one, f"attention of layer {layer}, head {head}")
            + f"<h4>All heads of layer {layer}</h4>"
            + pictures.picture(heads, f"attention of all heads of layer {layer}")
        )

    gradio.Markdown("How much each token (row) reads from each token (column).")
    text = gradio.Textbox("He opened the door and looked outside.", label="Text")
    second = gradio.Textbox("", label="Second text, if any")
    with gradio.Row():
        layer, head = (
            # A slider needs two values; where there is one, nothing is to be chosen.
            gradio.Slider(1, max(2, count), 1, step=1, label=label, visible=count > 1)
            for label, count in (("Layer", config.num_hidden_layers), ("Head", config.num_attention_heads))
        )
    _ask(gradio, "Show", show, [text, second, layer, head], "A picture of the weights.")
