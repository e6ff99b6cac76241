"""Answers as figures and as HTML, for the page and for notebooks."""

import base64
import io
import math
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from .answers import Attention


if TYPE_CHECKING:
    from matplotlib.figure import Figure


_COLORS = "Blues"
# A column of heads is this wide in an overview, in inches.
_SMALL = 1.7
# Above this many tokens the labels would overlap.
_MOST_LABELS = 60
# The smallest probability of float32.
_SMALLEST = 1e-45


def draw_attention(attention: Attention, layer: int, head: int) -> "Figure":
    """Draw one head: a row reads from the columns.

    Args:
        attention: the weights.
        layer: index of the layer, from 0.
        head: index of the head, from 0.

    Returns:
        The figure.
    """
    tokens = attention.tokens
    figure = _figure(figsize=(size := min(11.0, max(4.5, 0.34 * len(tokens) + 1.6)), size))
    axis = figure.subplots()
    image = axis.imshow(attention.weights[layer, head], cmap=_COLORS, vmin=0, vmax=1)
    if len(tokens) <= _MOST_LABELS:
        axis.set_xticks(range(len(tokens)), tokens, rotation=90)
        axis.set_yticks(range(len(tokens)), tokens)
    axis.set(title=f"layer {layer + 1}, head {head + 1}", xlabel="is read", ylabel="reads")
    figure.colorbar(image, ax=axis, fraction=0.04, pad=0.02)
    return figure


def draw_heads(attention: Attention, layer: int | None = None) -> "Figure":
    """Draw all heads small: of one layer, or every layer as a row.

    Args:
        attention: the weights.
        layer: index of the layer, from 0; None for all layers.

    Returns:
        The figure.
    """
    if layer is None:
        grid = attention.weights
        names = [[f"{row + 1}.{column + 1}" for column in range(grid.shape[1])] for row in range(grid.shape[0])]
    else:
        heads = attention.weights[layer]
        columns = min(8, len(heads))
        rows = math.ceil(len(heads) / columns)
        grid = np.full((rows * columns, *heads.shape[1:]), np.nan)
        grid[: len(heads)] = heads
        grid = grid.reshape(rows, columns, *heads.shape[1:])
        names = [[f"head {row * columns + column + 1}" for column in range(columns)] for row in range(rows)]
    figure = _figure(figsize=(_SMALL * grid.shape[1], (_SMALL + 0.2) * grid.shape[0]))
    axes = figure.subplots(grid.shape[0], grid.shape[1], squeeze=False)
    for axis, name, weights in zip(axes.flat, sum(names, []), grid.reshape(-1, *grid.shape[2:]), strict=True):
        axis.set_axis_off()
        if not np.isnan(weights).all():
            axis.imshow(weights, cmap=_COLORS, vmin=0, vmax=1)
            axis.set_title(name, fontsize=9)
    return figure


def picture(figure: "Figure", description: str) -> str:
    """Return a figure as HTML; `description` is for those who cannot see it."""
    file = io.BytesIO()
    figure.savefig(file, dpi=96)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f"<img style='max-width:100%' alt='{escape(description)}' src='data:image/png;base64,{data}'>"


def probability_table(probabilities: list[tuple[str, float]], empty: str = "") -> str:
    """Return HTML with a row for each text: a bar and per cent.

    Args:
        probabilities: (text, probability), in the order of the rows.
        empty: shown for an empty text.
    """
    rows = (
        f"<span style='min-width:5em;overflow-wrap:anywhere'>{escape(text or empty)}</span>"
        "<span style='background:rgba(127,127,127,.18);border-radius:4px'><span style='display:block;height:14px;"
        f"border-radius:4px;background:#3b82f6;width:{100 * probability:.1f}%'></span></span>"
        f"<span style='text-align:right'>{_percent(probability)}</span>"
        for text, probability in probabilities
    )
    style = "display:grid;grid-template-columns:fit-content(55%) minmax(3em,1fr) 4.5em;gap:8px 14px;align-items:center"
    return f"<div class='hfbert-answer' style='{style}'>{''.join(rows)}</div>"


def entity_text(pieces: list[tuple[str, str | None]]) -> str:
    """Return a text as HTML, its entities coloured by type and followed by it."""
    types = sorted({kind for _, kind in pieces if kind is not None})
    shown = []
    for text, kind in pieces:
        if kind is None:
            shown.append(escape(text))
            continue
        color = f"hsl({360 * types.index(kind) // len(types) + 210},75%,50%)"
        shown.append(
            f"<mark style='background:color-mix(in srgb,{color} 25%,transparent);color:inherit;padding:2px 5px;"
            f"border-radius:5px'>{escape(text)} <small style='opacity:.75'>{escape(kind)}</small></mark>"
        )
    note = "" if types else "<p style='opacity:.7'>No entity was found.</p>"
    return f"<p class='hfbert-answer' style='line-height:2;overflow-wrap:anywhere'>{''.join(shown)}</p>{note}"


def similarity_table(texts: list[str], cosines: np.ndarray) -> str:
    """Return an HTML table of the cosines between numbered texts, the higher the darker; a wide one scrolls."""
    others = cosines[~np.eye(len(cosines), dtype=bool)]
    low, spread = float(others.min()), float(np.ptp(others)) or 1.0
    cell = "padding:5px 11px;border:none;text-align:center"
    name = "text-align:left;max-width:16em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
    head = "".join(f"<th style='{cell}'>{number}</th>" for number in range(1, len(texts) + 1))
    rows = []
    for number, text in enumerate(texts):
        label = f"<td style='{cell};{name}' title='{escape(text)}'>{number + 1}. {escape(text)}</td>"
        cells = ""
        for column, value in enumerate(cosines[number]):
            shade = 0.0 if column == number else 0.6 * (value - low) / spread
            cells += f"<td style='{cell};background:rgba(59,130,246,{shade:.2f})'>{value:.2f}</td>"
        rows.append(f"<tr style='border:none'>{label}{cells}</tr>")
    top = f"<tr style='border:none'><th style='{cell}'></th>{head}</tr>"
    table = f"<table style='border-collapse:collapse;border:none'>{top}{''.join(rows)}</table>"
    return f"<div class='hfbert-answer' style='overflow-x:auto'>{table}</div>"


def likelihood_table(tokens: list[tuple[str, float]]) -> str:
    """Return HTML with each token over its probability, unlikely ones in red, and the sum of the logarithms."""
    total = sum(math.log(max(probability, _SMALLEST)) for _, probability in tokens)
    boxes = "".join(
        "<span style='display:inline-block;text-align:center;padding:4px 8px;margin:2px;border-radius:6px;"
        f"background:rgba(220,38,38,{0.5 * (1 - probability) ** 2:.2f})'>{escape(token)}<br>"
        f"<small>{_percent(probability)}</small></span>"
        for token, probability in tokens
    )
    surprise = -total / len(tokens)
    return (
        f"<p class='hfbert-answer'>{boxes}</p><p>Pseudo-log-likelihood <b>−{-total:.2f}</b> nats, −{surprise:.2f} a "
        f"token; pseudo-perplexity {math.exp(surprise):,.1f}.</p>"
    )


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %" if probability >= 0.001 or probability == 0 else "&lt; 0.1 %"


def _figure(**options: Any) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and is not made for several threads

    return Figure(layout="constrained", **options)
