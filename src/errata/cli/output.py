"""Where a verb's words go: one JSON document, one essential line, or tables; progress and errors to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from errata import progress
from errata.files import finite


def console(*, stderr: bool = False) -> Console:
    """A console that prints what it is given: prompts may hold square brackets, so markup stays off.

    ``NO_COLOR`` takes away every escape code, bold included.
    """
    system = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, color_system=system, markup=False, highlight=False, emoji=False)  # type: ignore[arg-type]


class Output:
    """What one verb says, in the form its flags ask for."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around the work itself: no bars with ``--json`` or ``--quiet``, and nothing strays onto standard output."""
        with ExitStack() as stack:
            if self.as_json or self.quiet:
                stack.enter_context(progress.quiet())
            # A library that prints must not spoil the document, so until it is written stdout leads to stderr.
            stack.enter_context(redirect_stdout(sys.stderr))
            yield

    @contextmanager
    def step(self, description: str) -> Iterator[None]:
        """A spinner for work that cannot say how far it is, such as loading; shown on a terminal only."""
        screen = console(stderr=True)
        if self.as_json or self.quiet or not screen.is_terminal:
            yield
            return
        with screen.status(Text(description)):
            yield

    def report(self, document: Any, essential: str | None, *body: RenderableType) -> None:
        """Say the result: the document with ``--json``, the essential line with ``--quiet``, else the body."""
        if self.as_json:
            typer.echo(json.dumps(finite(document), indent=2, ensure_ascii=False))
        elif self.quiet:
            if essential is not None:
                typer.echo(essential)
        else:
            screen = console()
            for part in body:
                # A path or a command is copied from the screen, so lines of text are never broken.
                screen.print(part, soft_wrap=isinstance(part, str | Text))


def table(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    """A table in the style of all verbs; the columns in ``right`` hold numbers. Long cells wrap, none is cut."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def facts(pairs: list[tuple[str, str]], *, title: str | None = None) -> Table:
    """Two columns without a header: a name and its value."""
    made = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, value)
    return made


def megabytes(size: int) -> str:
    """A size for people: ``12 kB``, ``3.4 MB``."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"


def percent(probability: float) -> str:
    """A probability for people: ``97.3%``, ``0.0021%``."""
    if probability >= 0.001 or probability == 0.0:
        return f"{probability:.1%}"
    return f"{100 * probability:.1g}%"
