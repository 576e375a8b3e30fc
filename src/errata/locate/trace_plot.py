"""The pictures of a trace: heat maps of tokens (or roles) by layers, and lines with bands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from errata.locate.roles import Role
from errata.locate.tracing import Grid, Kind

if TYPE_CHECKING:
    from errata.locate.trace_result import FactTrace, Trace

PALETTE = {Kind.STATE: "Purples", Kind.MLP: "Greens", Kind.ATTENTION: "Reds"}
LINE = {Kind.STATE: "#54278f", Kind.SEVERED_MLP: "#1b7837", Kind.SEVERED_ATTENTION: "#a50f15"}
# Told apart by lightness and by dash as well as by hue, for print.
ROLE_STYLE: dict[Role, dict[str, Any]] = {
    Role.FIRST_SUBJECT: {"color": "#9ecae1", "linestyle": "-"},
    Role.MIDDLE_SUBJECT: {"color": "#4292c6", "linestyle": "--"},
    Role.LAST_SUBJECT: {"color": "#08306b", "linestyle": "-", "linewidth": 2.2},
    Role.FIRST_SUBSEQUENT: {"color": "#fdae6b", "linestyle": "-"},
    Role.FURTHER: {"color": "#e6550d", "linestyle": "--"},
    Role.LAST: {"color": "#7f2704", "linestyle": "-", "linewidth": 2.2},
}
NAMES = {
    Kind.STATE: "hidden state",
    Kind.MLP: "MLP outputs",
    Kind.ATTENTION: "attention outputs",
    Kind.SEVERED_MLP: "hidden state, MLP severed",
    Kind.SEVERED_ATTENTION: "hidden state, attention severed",
}
WIDTH = 4.6


def plot_one(trace: Trace, item: FactTrace) -> Figure:
    """One prompt: tokens by layers, one panel a kind, and a panel of lines where paths were severed."""
    grids, severed = _split(trace)
    columns = len(grids) + bool(severed)
    figure = Figure(figsize=(WIDTH * columns, 1.6 + 0.26 * len(item.tokens)), layout="constrained")
    figure.suptitle(trace.title, parse_math=False, fontsize=11)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    labels = [f"{token}*" if item.subject[0] <= i < item.subject[1] else token for i, token in enumerate(item.tokens)]
    for ax, kind in zip(axes, grids, strict=False):
        _heat(figure, ax, item.scores[kind], kind, labels, item.corrupted, _measure(trace, item), trace)
    if severed:
        token = item.subject[1] - 1
        lines = {kind: item.scores[kind][token] for kind in severed}
        _severed(axes[-1], lines, _measure(trace, item))
        axes[-1].axhline(item.corrupted, color="0.5", linewidth=0.8, linestyle=":")
    return figure


def plot_average(trace: Trace) -> Figure:
    """Many prompts: six roles by layers, one panel a kind, the same as lines with 95% bands below."""
    grids, severed = _split(trace)
    columns = len(grids) + bool(severed)
    figure = Figure(figsize=(WIDTH * columns + 0.8, 6.4), layout="constrained")
    figure.suptitle(f"{trace.title} ({trace.options.corruption.describe()})", parse_math=False, fontsize=11)
    axes = figure.subplots(2, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for column, kind in enumerate(grids):
        averages = trace.average(kind)
        rows = np.stack([averages[role].mean if role in averages else np.full(trace.layers, np.nan) for role in Role])
        labels = [role.value for role in Role] if column == 0 else [""] * len(Role)
        _heat(figure, axes[0, column], rows, kind, labels, 0.0, "average indirect effect", trace)
        for role, average in averages.items():
            handles[role.value] = _line(axes[1, column], average.mean, average.low, average.high, **ROLE_STYLE[role])
        _finish(axes[1, column], "average indirect effect" if column == 0 else "")
    if severed:
        lines, bands = {}, {}
        for kind in severed:
            average = trace.average(kind)[Role.LAST_SUBJECT]
            lines[kind], bands[kind] = average.mean, (average.low, average.high)
        _severed(axes[0, -1], lines, "average indirect effect", bands, alone=True)
        axes[1, -1].set_axis_off()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _split(trace: Trace) -> tuple[list[Kind], list[Kind]]:
    """The kinds that fill a grid, and those drawn as lines (the whole state first, to compare with)."""
    severed = [kind for kind in trace.options.kinds if kind.severed]
    grids = [kind for kind in trace.options.kinds if not kind.severed]
    return grids, [*([Kind.STATE] if severed and Kind.STATE in grids else []), *severed]


def _measure(trace: Trace, item: FactTrace) -> str:
    fact = item.fact
    if trace.options.measure == "probability":
        return f"P({fact.answer})"
    sign = "P" if trace.options.measure == "probability-difference" else "log P"
    return f"{sign}({fact.answer}) − {sign}({fact.other})"


def _heat(
    figure: Figure, ax: Any, grid: Grid, kind: Kind, labels: list[str], floor: float, measure: str, trace: Trace
) -> None:
    top = np.nanmax(grid) if np.isfinite(grid).any() else floor
    image = ax.imshow(
        np.ma.masked_invalid(grid), aspect="auto", cmap=PALETTE[kind], vmin=floor, vmax=max(top, floor + 1e-9),
        interpolation="nearest",
    )  # fmt: skip
    ax.set_facecolor("0.92")  # roles that no prompt has
    ax.set_yticks(range(len(labels)), labels, parse_math=False, fontsize=9)
    window = "" if kind is Kind.STATE else f", windows of {trace.options.width(trace.layers)} layers"
    ax.set_title(f"{NAMES[kind]}{window}", fontsize=10)
    ax.set_xlabel("layer")
    bar = figure.colorbar(image, ax=ax, shrink=0.9, extend="min")
    bar.set_label(measure, parse_math=False, fontsize=9)


def _line(ax: Any, mean: Grid, low: Grid, high: Grid, **style: Any) -> Any:
    layers = np.arange(len(mean))
    ax.fill_between(layers, low, high, color=style["color"], alpha=0.2, linewidth=0)
    return ax.plot(layers, mean, **style)[0]


def _severed(
    ax: Any,
    lines: dict[Kind, Grid],
    measure: str,
    bands: dict[Kind, tuple[Grid, Grid]] | None = None,
    alone: bool = False,
) -> None:
    for kind, line in lines.items():
        low, high = (bands or {}).get(kind, (line, line))
        _line(ax, line, low, high, color=LINE[kind], linestyle="-" if kind is Kind.STATE else "--")
        ax.lines[-1].set_label(NAMES[kind])
    ax.set_title("at the subject's last token", fontsize=10)
    legend = ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    legend.set_in_layout(not alone)  # below it is an empty place
    _finish(ax, measure)


def _finish(ax: Any, measure: str) -> None:
    ax.set_xlabel("layer")
    ax.set_ylabel(measure, parse_math=False, fontsize=9)
    ax.margins(x=0)
    ax.axhline(0, color="0.7", linewidth=0.6, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
