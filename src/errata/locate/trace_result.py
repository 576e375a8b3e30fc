"""What a trace found: a grid a fact and kind, and their averages over facts by role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from errata.evaluation import intervals
from errata.evaluation.schema import Metric, Record
from errata.locate.result import Located, Table
from errata.locate.roles import Role, positions_by_role
from errata.locate.tracing import Grid, Kind, TraceOptions
from errata.records import Fact

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMAL_95 = 1.96
DIGITS = 9


@dataclass(frozen=True)
class FactTrace:
    """One fact's trace.

    Attributes:
        fact: with the answer (and the other continuation) that was measured.
        tokens: the prompt's tokens as text. subject: positions (first, one after the last) of the subject.
        clean, corrupted: the measure in the clean run, and averaged over the corrupted ones.
        scores: for each kind the measure [tokens, layers] with that restoration; NaN where it was not asked for.
    """

    fact: Fact
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    clean: float
    corrupted: float
    scores: Mapping[Kind, Grid]

    @property
    def total_effect(self) -> float:
        """What the corruption takes away."""
        return self.clean - self.corrupted

    def effect(self, kind: Kind) -> Grid:
        """The indirect effect [tokens, layers]: what a restoration gives back."""
        return self.scores[kind] - self.corrupted

    def by_role(self, kind: Kind) -> dict[Role, Grid]:
        """The indirect effect [layers] of each role that the prompt has, averaged over its tokens."""
        effect = self.effect(kind)
        found = {}
        for role, positions in positions_by_role(len(self.tokens), self.subject).items():
            rows = effect[list(positions)]
            if len(rows) and not np.isnan(rows).any():
                found[role] = rows.mean(axis=0)
        return found

    def peak(self, kind: Kind) -> tuple[int, int, float]:
        """Token, layer and measure of the strongest restoration."""
        grid = self.scores[kind]
        token, layer = np.unravel_index(np.nanargmax(grid), grid.shape)
        return int(token), int(layer), float(grid[token, layer])

    def to_dict(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "fact": self.fact.to_dict(),
            "tokens": list(self.tokens),
            "subject_tokens": list(self.subject),
            "clean": self.clean,
            "corrupted": self.corrupted,
            "scores": {kind.value: np.round(grid, DIGITS).tolist() for kind, grid in self.scores.items()},
        }


@dataclass(frozen=True)
class Average:
    """The mean indirect effect [layers] of one role over n facts, with 95% bands (1.96 standard errors)."""

    mean: Grid
    low: Grid
    high: Grid
    n: int


@dataclass(frozen=True)
class Trace(Located):
    """Traces of one or many facts.

    Attributes:
        layers: how many the model has. options: how it was traced. facts: one trace a fact.
        skipped: the ids of facts that were left out, by reason.
        sigma: the standard deviation of the subjects' token embeddings, of which noise is a multiple.
    """

    layers: int
    options: TraceOptions
    facts: tuple[FactTrace, ...]
    skipped: Mapping[str, list[str]] = field(default_factory=dict)
    sigma: float = float("nan")

    name: ClassVar[str] = "trace"
    heading: ClassVar[str] = "Causal trace"

    @property
    def title(self) -> str:  # type: ignore[override]
        """One line for a person."""
        if len(self.facts) == 1:
            fact = self.facts[0].fact
            against = f" rather than {fact.other}" if fact.other else ""
            return f"{self.heading}: {fact.text} → {fact.answer}{against}"
        return f"{self.heading}: average over {len(self.facts)} prompts"

    def what(self) -> dict[str, Any]:
        """The options, and what was left out."""
        options = asdict(self.options)
        options["kinds"] = [kind.value for kind in self.options.kinds]
        options["window"] = self.options.width(self.layers)
        options["corruption"] = self.options.corruption.describe()
        counts = {reason: len(ids) for reason, ids in self.skipped.items()}
        return {"verb": f"locate {self.name}", **options, "sigma": self.sigma, "n": len(self.facts), "left_out": counts}

    def average(self, kind: Kind) -> dict[Role, Average]:
        """The average indirect effect of each role, over the facts whose prompts have it."""
        rows: dict[Role, list[Grid]] = {}
        for item in self.facts:
            for role, effect in item.by_role(kind).items():
                rows.setdefault(role, []).append(effect)
        return {role: _average(np.stack(rows[role])) for role in Role if role in rows}

    def metrics(self) -> dict[str, Metric]:
        """The clean and corrupted measure, and for each kind and role the largest average effect and its layer."""
        found = {
            "clean": _metric([item.clean for item in self.facts]),
            "corrupted": _metric([item.corrupted for item in self.facts]),
            "total_effect": _metric([item.total_effect for item in self.facts]),
        }
        for kind in self.options.kinds:
            found[f"{kind}_largest"] = _metric([item.peak(kind)[2] for item in self.facts])
            for role, average in self.average(kind).items():
                layer = int(average.mean.argmax())
                values = [e[role][layer] for item in self.facts if role in (e := item.by_role(kind))]
                name = f"{kind}_{role.key}"
                found[name] = _metric([float(value) for value in values])
                found[f"{name}_layer"] = Metric(value=layer, low=None, high=None, n=average.n)
        return found

    def records(self) -> list[Record]:
        """A record a fact, with its strongest restoration of each kind."""
        records = []
        for item in self.facts:
            peaks = {}
            for kind in self.options.kinds:
                token, layer, value = item.peak(kind)
                peaks[kind.value] = {"token": token, "layer": layer, "score": value}
            records.append(
                {
                    **item.fact.to_dict(),
                    "tokens": list(item.tokens),
                    "subject_tokens": list(item.subject),
                    "clean": item.clean,
                    "corrupted": item.corrupted,
                    "peaks": peaks,
                }
            )
        return records

    def to_dict(self) -> dict[str, Any]:
        """All grids, and the averages."""
        averages = {
            kind.value: {
                role.key: {
                    "n": a.n,
                    **{end: np.round(getattr(a, end), DIGITS).tolist() for end in ("mean", "low", "high")},
                }
                for role, a in self.average(kind).items()
            }
            for kind in self.options.kinds
        }
        return {
            "what": self.what(),
            "layers": self.layers,
            "skipped": dict(self.skipped),
            "averages": averages,
            "facts": [item.to_dict() for item in self.facts],
        }

    def table(self) -> Table:
        """One prompt: the strongest restoration of each kind. Several: each kind and role at its best layer."""
        if len(self.facts) == 1:
            return self._table_of_one(self.facts[0])
        rows = []
        metrics = self.metrics()
        for kind in self.options.kinds:
            for role in Role:
                name = f"{kind}_{role.key}"
                if name in metrics:
                    metric, layer = metrics[name], metrics[f"{name}_layer"].value
                    interval = "" if metric.low is None else f"{metric.low:+.3f} – {metric.high:+.3f}"
                    rows.append(
                        (kind.value, role.value, f"{layer:.0f}", f"{metric.value:+.3f}", interval, str(metric.n))
                    )
        columns = ("restored", "at", "layer", "effect", "95% interval", "n")
        return Table.of(columns, rows, right=columns[2:], title=f"{self.title}, largest indirect effects")

    def _table_of_one(self, item: FactTrace) -> Table:
        rows = [("nothing (corrupted)", "", "", f"{item.corrupted:.3f}", "")]
        for kind in self.options.kinds:
            token, layer, value = item.peak(kind)
            rows.append((kind.value, item.tokens[token], str(layer), f"{value:.3f}", f"{value - item.corrupted:+.3f}"))
        rows.append(("everything (clean)", "", "", f"{item.clean:.3f}", f"{item.total_effect:+.3f}"))
        columns = ("restored", "at", "layer", self.options.measure, "indirect effect")
        return Table.of(columns, rows, right=("layer", self.options.measure, "indirect effect"), title=self.title)

    def notes(self) -> list[str]:
        """What was averaged, and what was left out."""
        found = []
        if len(self.facts) > 1:
            metrics = self.metrics()
            clean, corrupted = metrics["clean"].value, metrics["corrupted"].value
            found.append(
                f"{self.options.measure.capitalize()}: {clean:.3f} clean, {corrupted:.3f} corrupted "
                f"({self.options.corruption.describe()}); averages over {len(self.facts)} prompts."
            )
        if self.skipped:
            parts = "; ".join(f"{len(ids)} {reason}" for reason, ids in self.skipped.items())
            found.append(f"Left out: {parts}.")
        return found

    def plot(self) -> Figure:
        """Heat maps, one a kind; for several prompts by role, with lines and their bands below."""
        from errata.locate.trace_plot import plot_average, plot_one

        return plot_one(self, self.facts[0]) if len(self.facts) == 1 else plot_average(self)


class BiasTrace(Trace):
    """The same for the difference of two continuations, each prompt's in the direction that its clean run prefers."""

    name: ClassVar[str] = "bias"
    heading: ClassVar[str] = "Bias trace"


def _metric(values: list[float]) -> Metric:
    """The mean over facts; of one fact there is no interval."""
    found = Metric.of(intervals.mean(values))
    return found if len(values) > 1 else found.model_copy(update={"low": None, "high": None})


def _average(rows: Grid) -> Average:
    mean = rows.mean(axis=0)
    error = NORMAL_95 * rows.std(axis=0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.full_like(mean, np.nan)
    return Average(mean, mean - error, mean + error, len(rows))
