"""Pictures that several tools share. Figures are made without pyplot, so no global state is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from errata.locate.neurons import Grid, Neuron

INK, LIGHT, SECOND = "#1f4e79", "#a8c5e0", "#b5532a"


def drawable(text: str) -> str:
    """Text without the signs that a picture's font lacks, and with those escaped that would start mathematics."""
    return "".join(c if c.isascii() or (c.isalpha() and ord(c) < 0x250) else "·" for c in text).replace("$", r"\$")


def neurons_by_layer(points: Sequence[tuple[Neuron, float]], grid: Grid, title: str, *, size: str) -> Figure:
    """Two panels over the layers: how many neurons were chosen there, and which, as dots sized by their score.

    Args:
        points: neurons with their scores; one that several facts have may stand there several times.
        grid: the layers looked at. title: the heading. size: what the score is called.
    """
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.0, 1.4))
    counts = Counter(neuron.layer for neuron, _ in points)
    above.bar(grid.layers, [counts[layer] for layer in grid.layers], color=INK, width=0.8)
    above.set_ylabel("neurons")
    above.yaxis.set_major_locator(MaxNLocator(integer=True))
    above.set_title(title, loc="left", fontsize=11)
    largest = max((abs(score) for _, score in points), default=1.0) or 1.0
    for sign, colour in ((1, INK), (-1, SECOND)):
        own = [(neuron, score) for neuron, score in points if (score >= 0) == (sign > 0)]
        below.scatter(
            [neuron.layer for neuron, _ in own],
            [neuron.index for neuron, _ in own],
            s=[8 + 80 * abs(score) / largest for _, score in own],
            color=colour,
            alpha=0.6,
            linewidths=0,
        )
    below.set_ylim(-0.02 * max(grid.widths), 1.02 * max(grid.widths))
    below.set_xlim(min(grid.layers) - 0.6, max(grid.layers) + 0.6)
    below.set_ylabel(f"index (dot: {size})")
    below.set_xlabel("layer")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
