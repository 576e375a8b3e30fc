"""Value vectors that were looked for: as numbers, a table and a picture, and as patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from errata.errors import ConfigError
from errata.evaluation.schema import Metric, Record
from errata.lm import LanguageModel
from errata.locate.neurons import Neuron, scale_neurons
from errata.locate.pictures import INK, SECOND, drawable
from errata.locate.result import Located, Table
from errata.locate.value_vectors import (
    Promoted,
    ValueVector,
    by_direction,
    by_peak,
    by_words,
    concept_direction,
    of_neurons,
)
from errata.patch import Patch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6  # tokens of each end in the table


@dataclass(frozen=True, eq=False)
class ValueVectors(Located):
    """Columns of out-projections and what they promote.

    Attributes:
        lm: the model.
        by: how they were chosen: ``words``, ``concept``, ``peak`` or ``neurons``.
        options: with what.
        vectors: the columns, the strongest first.
        looked_at: among how many.
        chance: for words, the largest score that each list of as many random tokens reaches.
    """

    name: ClassVar[str] = "values"
    key: ClassVar[str] = "neuron"

    lm: LanguageModel = field(repr=False)
    by: str
    options: dict[str, Any]
    vectors: tuple[ValueVector, ...]
    looked_at: int
    chance: tuple[float, ...] = ()
    title: str = "Value vectors"

    def what(self) -> dict[str, Any]:
        """How they were chosen."""
        return {"verb": "locate values", "by": self.by, **self.options}

    def to_dict(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "what": self.what(),
            "looked_at": self.looked_at,
            "chance": list(self.chance),
            "vectors": self.records(),
        }

    def records(self) -> list[Record]:
        """One record a column."""
        return [
            {
                "neuron": f"{v.neuron.layer}:{v.neuron.index}",
                "layer": v.neuron.layer,
                "index": v.neuron.index,
                "score": v.score,
                "norm": v.norm,
                "top": _plain(v.top),
                "bottom": _plain(v.bottom),
            }
            for v in self.vectors
        ]

    def metrics(self) -> dict[str, Metric]:
        """The strongest score, beside what chance gives."""
        if not self.vectors or self.by == "neurons":
            return {}
        best = max(abs(v.score) for v in self.vectors)
        found = {"best_score": Metric(value=best, low=None, high=None, n=self.looked_at)}
        if self.chance:
            base = max(self.chance)
            above = sum(abs(v.score) > base for v in self.vectors)
            found["best_score"] = Metric(value=best, low=None, high=None, n=self.looked_at, base=base)
            found["above_chance"] = Metric(value=float(above), low=None, high=None, n=len(self.vectors), base=0.0)
        return found

    def table(self) -> Table:
        """The columns and both ends of their rankings."""
        sign = "" if self.by == "neurons" else "+"
        rows = [
            (f"{v.neuron.layer}:{v.neuron.index}", f"{v.score:{sign}.3g}", _words(v.top), _words(v.bottom))
            for v in self.vectors
        ]
        columns = ("layer:index", "norm" if self.by == "neurons" else "score", "promotes", "where negative")
        return Table.of(columns, rows, right=(columns[1],), title=self.title)

    def notes(self) -> list[str]:
        """What the numbers mean."""
        lines = [
            "A neuron promotes the first list where its coefficient is positive and the second where it is negative; "
            "lower layers do not write in the vocabulary's basis, and their lists mean little."
        ]
        if self.chance:
            lines.append(
                f"The score is the mean over words in standard deviations over the vocabulary; the best of "
                f"{len(self.chance)} lists of as many random tokens reaches {max(self.chance):.2f} among the same "
                f"{self.looked_at} columns."
            )
        return lines

    def plot(self) -> Figure:
        """Bars of the scores, each with its tokens."""
        from matplotlib.figure import Figure

        shown = self.vectors[:25]
        figure = Figure(figsize=(8.5, 0.9 + 0.28 * max(4, len(shown))), layout="constrained")
        axes = figure.subplots()
        places = range(len(shown))
        colours = [INK if v.score >= 0 else SECOND for v in shown]
        axes.barh(list(places), [abs(v.score) for v in shown], color=colours, height=0.7)
        ends = [_words(v.top if v.score >= 0 else v.bottom) for v in shown]
        labels = [f"{v.neuron.layer}:{v.neuron.index}" for v in shown]
        axes.set_yticks(list(places), labels, fontsize=8)
        widest = max((abs(v.score) for v in shown), default=1.0)
        for place, (v, text) in enumerate(zip(shown, ends, strict=True)):
            axes.text(abs(v.score) + 0.01 * widest, place, drawable(text), va="center", fontsize=7)
        axes.set_xlim(0, 2.2 * widest)
        axes.invert_yaxis()
        axes.set_xlabel("score (negative ones in orange, with what they promote where negative)")
        axes.set_title(f"{self.title} in {self.lm.name}", loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    @property
    def neurons(self) -> list[Neuron]:
        """The neurons of these columns, the strongest first."""
        return [v.neuron for v in self.vectors]

    def suppress(self, count: int | None = None) -> Patch:
        """A patch that silences the first so many of these neurons (all by default), everywhere."""
        return self.amplify(0.0, count)

    def amplify(self, factor: float = 2.0, count: int | None = None) -> Patch:
        """A patch that multiplies what they write.

        Raises:
            ConfigError: there are none.
        """
        config = {"operation": "suppress" if factor == 0 else "scale", "by": self.by, **self.options}
        return scale_neurons(self.lm, self.neurons[:count], factor, method="value-vectors", config=config)


def find_value_vectors(
    lm: LanguageModel,
    *,
    words: Sequence[str] | None = None,
    concept: Sequence[str] | None = None,
    neurons: Sequence[Neuron] | None = None,
    layers: Sequence[int] | None = None,
    limit: int = 20,
    top: int = 10,
    gain: bool = True,
) -> ValueVectors:
    """What columns of the out-projections promote: of given neurons, or of those a search finds.

    Args:
        lm: the model.
        words: look for the columns that raise or lower these words.
        concept: look for the columns along the mean direction of these words instead.
        neurons: these columns; without any of the three, those that single out a token most.
        layers: search only these.
        limit: how many columns. top: how many tokens of each end.
        gain: through the final norm's gain, as the model does, or without it, as the paper writes.

    Raises:
        ConfigError: more than one way to choose, or a number below 1.
        RequestError: a word that the tokenizer cannot spell.
        ArchitectureError: no such layer.
    """
    given = {name: value for name, value in (("words", words), ("concept", concept), ("neurons", neurons)) if value}
    if len(given) > 1:
        raise ConfigError(f"Give one of {' and '.join(given)}: they choose columns in different ways.")
    if not 1 <= top <= lm.architecture.vocabulary - len(lm.tokenizer.all_special_ids):
        raise ConfigError(f"{top} tokens of each end cannot be listed: give at least 1, and fewer than there are.")
    chance: list[float] = []
    if neurons:
        by, (projector, found) = "neurons", of_neurons(lm, neurons, gain=gain)
    elif concept:
        direction = concept_direction(lm, concept, gain=gain)
        by, (projector, found) = "concept", by_direction(lm, direction, layers=layers, limit=limit, gain=gain)
    elif words:
        by, (projector, found, chance) = "words", by_words(lm, words, layers=layers, limit=limit, gain=gain)
    else:
        by, (projector, found) = "peak", by_peak(lm, layers=layers, limit=limit, gain=gain)
    options: dict[str, Any] = {"layers": list(layers) if layers else None, "limit": limit, "top": top, "gain": gain}
    if by in ("words", "concept"):
        options["words"] = list(given[by])
    searched = [n.layer for n, _ in found] if by == "neurons" else layers
    looked_at = len(found) if by == "neurons" else sum(lm.layer(i).key_width for i in searched or _all(lm))
    titles = {
        "words": "Value vectors that raise or lower the words",
        "concept": "Value vectors along the words' mean direction",
        "peak": "Value vectors that single out a token",
        "neurons": "Value vectors",
    }
    return ValueVectors(lm, by, options, projector.described(found, top), looked_at, tuple(chance), titles[by])


def _all(lm: LanguageModel) -> list[int]:
    return [i for i, block in enumerate(lm.architecture.blocks) if block.refusal is None]


def _plain(promoted: Sequence[Promoted]) -> list[dict[str, Any]]:
    return [{"token": p.token, "text": p.text, "score": p.score} for p in promoted]


def _words(promoted: Sequence[Promoted]) -> str:
    return " ".join(repr(p.text)[1:-1].strip() or "␣" for p in promoted[:SHOWN])
