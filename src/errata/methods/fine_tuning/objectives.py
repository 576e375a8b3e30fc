"""What training minimises: one loss an item, from the rows of tokens that belong to it.

An item may have several rows: a wanted and an unwanted answer to compare, a harmless request beside the edited one. A
:class:`Term` says what is asked of its rows; :class:`Weighted` adds terms up, with one pass for the rows of all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from errata.methods.fine_tuning.examples import Example
from errata.methods.fine_tuning.passes import Passes, Scores

ITEMS_AT_ONCE = 8  # of which the unchanged model's answers are kept in one pass


class Objective(Protocol):
    """A loss an item."""

    @property
    def rows(self) -> Sequence[Example]:
        """All rows that passes will run over."""

    def prepare(self, passes: Passes) -> None:
        """Keep what the loss compares with, while the model is still as it was."""

    def losses(self, passes: Passes, items: Sequence[int]) -> Tensor:
        """The loss of each of some items, [items], with its gradient history."""


class Likelihood:
    """The mean negative log-likelihood of the tokens wanted; each item is one row."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = rows

    def prepare(self, passes: Passes) -> None:
        """Nothing is compared with."""

    def losses(self, passes: Passes, items: Sequence[int]) -> Tensor:
        """Of each row."""
        return passes.losses(items)


class Term(ABC):
    """One summand of a loss.

    Args:
        rows: of each item; empty where it has nothing to say about one.
        weight: its factor in the sum.
    """

    name: ClassVar[str]

    def __init__(self, rows: Sequence[Sequence[Example]], weight: float = 1.0) -> None:
        self.rows, self.weight = [tuple(own) for own in rows], weight

    def remember(self, item: int, scores: Scores, places: Sequence[int]) -> None:  # noqa: B027
        """Keep what the unchanged model gives for the item's rows, which stand at these places of a pass."""

    @abstractmethod
    def loss(self, item: int, scores: Scores, places: Sequence[int]) -> Tensor:
        """The item's loss, a scalar, from its rows at these places of a pass."""


class Weighted:
    """The sum of terms, each times its weight.

    Attributes:
        rows: those of all items and terms.
        history: for each step, the mean over its items of each term, without its weight.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = terms
        self.rows: list[Example] = []
        self._first: dict[tuple[int, int], int] = {}  # (item, term) -> its first row
        for item in range(len(terms[0].rows)):
            for t, term in enumerate(terms):
                self._first[item, t] = len(self.rows)
                self.rows += term.rows[item]
        self.history: list[dict[str, float]] = []

    def prepare(self, passes: Passes) -> None:
        """Let each term keep what it compares with."""
        items = range(len(self.terms[0].rows))
        for at in range(0, len(items), ITEMS_AT_ONCE):
            scores, places = self._pass(passes, items[at : at + ITEMS_AT_ONCE])
            for (item, t), own in places.items():
                self.terms[t].remember(item, scores, own)

    def losses(self, passes: Passes, items: Sequence[int]) -> Tensor:
        """Of each item."""
        scores, places = self._pass(passes, items)
        found = {key: self.terms[key[1]].loss(key[0], scores, own) for key, own in places.items()}
        step = {}
        for t, term in enumerate(self.terms):
            seen = [float(loss.detach()) for (_, own), loss in found.items() if own == t]
            if seen:
                step[term.name] = sum(seen) / len(seen)
        self.history.append(step)
        zero = scores.log_probs.new_zeros(())
        return torch.stack(
            [
                sum((term.weight * found[item, t] for t, term in enumerate(self.terms) if (item, t) in found), zero)
                for item in items
            ]
        )

    def _pass(self, passes: Passes, items: Sequence[int]) -> tuple[Scores, dict[tuple[int, int], list[int]]]:
        """The scores of all rows of some items, and where those of each (item, term) stand among them."""
        rows: list[int] = []
        places: dict[tuple[int, int], list[int]] = {}
        for item in items:
            for t, term in enumerate(self.terms):
                count, first = len(term.rows[item]), self._first[item, t]
                if count:
                    places[item, t] = list(range(len(rows), len(rows) + count))
                    rows += range(first, first + count)
        return passes.scores(rows), places


class Answer(Term):
    """The mean NLL of a wanted answer."""

    name = "answer"

    def loss(self, item: int, scores: Scores, places: Sequence[int]) -> Tensor:
        """Of its one row."""
        return scores.nll()[places[0]]
