"""What every tool that looks for something in a model returns, and how it is kept.

A result is numbers first: :meth:`Located.to_dict` holds all of them, and the table, the metrics and the picture follow
from those. :func:`save` writes one folder that needs nothing else to be read or looked at.
"""

from __future__ import annotations

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from errata.evaluation.schema import Cost, Measured, Metric, Record, RecordWriter, model_record, versions, write_metrics
from errata.files import atomic_folder, write_json, write_text
from errata.lm import LanguageModel
from errata.locate.page import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "index.html"
DOTS_PER_INCH = 160


@dataclass(frozen=True)
class Table:
    """Rows for the terminal and the page; cells are text, and the columns named in ``right`` hold numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[str, ...] = ()
    title: str = ""

    @classmethod
    def of(
        cls, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), title: str = ""
    ) -> Table:
        """A table of any sequences."""
        return cls(tuple(columns), tuple(tuple(row) for row in rows), tuple(right), title)


class Located(ABC):
    """Something found in a model.

    Attributes:
        name: a word for its files (``trace``), the same for every result of a tool.
        title: one line for a person, as the heading of the page.
        key: the field (or fields) that names each of :meth:`records`.
    """

    name: ClassVar[str]
    title: str
    key: ClassVar[str | tuple[str, ...]] = "fact_id"

    @abstractmethod
    def what(self) -> dict[str, Any]:
        """Whatever it takes to find this again: the options, the cases, the seed; for ``metrics.json``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All numbers, in types that JSON has."""

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """The headline numbers, each with its n and its 95% interval where there is one."""

    @abstractmethod
    def records(self) -> list[Record]:
        """One record a fact or prompt, each with :attr:`key`."""

    @abstractmethod
    def table(self) -> Table:
        """What a person reads first."""

    @abstractmethod
    def plot(self) -> Figure:
        """The picture: a figure of its own, never one of pyplot's, so that no global state is touched."""

    def notes(self) -> list[str]:
        """Sentences that belong under the picture: what was left out, what a number means."""
        return []


def save(result: Located, out: str | Path, *, lm: LanguageModel, cost: Cost) -> Measured:
    """Write a result as one new folder, whole or not at all.

    The folder holds ``metrics.json`` and ``records.jsonl`` (the project's schema), all numbers as ``NAME.json``, the
    picture as ``NAME.png`` and ``NAME.svg``, and ``index.html``, one page with picture and table that fetches nothing.

    Args:
        result: what was found. out: a new or empty folder. lm: the model. cost: what the search took.

    Raises:
        StorageError: the folder is there and not empty, or cannot be written.
    """
    measured = Measured(
        what=result.what(),
        model=model_record(lm),
        metrics=result.metrics(),
        cost=cost,
        versions=versions(),
    )
    figure = result.plot()
    png, svg = picture(figure, "png"), picture(figure, "svg")
    with atomic_folder(Path(out)) as folder:
        write_metrics(folder, measured)
        with RecordWriter(folder, key=result.key) as writer:
            for record in result.records():
                writer.write(record)
        write_json(folder / f"{result.name}.json", result.to_dict())
        (folder / f"{result.name}.png").write_bytes(png)
        (folder / f"{result.name}.svg").write_bytes(svg)
        embedded = base64.b64encode(png).decode("ascii")
        page = render(result.title, embedded, result.table(), measured, result.notes())
        write_text(folder / PAGE, page)
    return measured


def picture(figure: Figure, form: str) -> bytes:
    """A figure as the bytes of a ``png`` or ``svg`` file; equal figures give equal bytes."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "errata"}):
        figure.savefig(stream, format=form, dpi=DOTS_PER_INCH, metadata={"Date": None} if form == "svg" else None)
    return stream.getvalue()
