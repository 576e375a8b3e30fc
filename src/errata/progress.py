"""Progress of long work, told to whoever watches.

Library code says what it does with :func:`task`; the watcher decides what to show. By default a bar appears on a
terminal's standard error once a task has run for two seconds; elsewhere nothing is printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
DELAY_SECONDS = 2.0


class Reporter(Protocol):
    """Receives the state of the current task: its description, what is done, and the total where known."""

    def update(self, description: str, done: float, total: float | None) -> None:
        """Called at the start of a task and after each advance."""

    def finish(self) -> None:
        """Called once when the task ends, also by an error."""


class Silent:
    """Shows nothing."""

    def update(self, description: str, done: float, total: float | None) -> None:
        """Ignore the news."""

    def finish(self) -> None:
        """Nothing to tidy."""


class Bar:
    """A bar on standard error for tasks that outlast two seconds."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._started = time.monotonic()
        self._progress: Progress | None = None

    def update(self, description: str, done: float, total: float | None) -> None:
        """Draw or move the bar."""
        if self._progress is None:
            if time.monotonic() - self._started < DELAY_SECONDS:
                return
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._progress.add_task(description, total=total)
        row = self._progress.task_ids[0]
        self._progress.update(row, description=description, completed=done, total=total)

    def finish(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


class Task:
    """One piece of long work; ``advance`` after each part of it."""

    def __init__(self, description: str, total: float | None, reporter: Reporter) -> None:
        self.description, self.total, self.done = description, total, 0.0
        self._reporter = reporter
        reporter.update(description, 0.0, total)

    def advance(self, amount: float = 1.0, description: str | None = None) -> None:
        """Report that ``amount`` more is done."""
        self.done += amount
        self.description = description or self.description
        self._reporter.update(self.description, self.done, self.total)


_quiet: ContextVar[bool | None] = ContextVar("errata_quiet", default=None)
_inside: ContextVar[bool] = ContextVar("errata_task_running", default=False)


@contextmanager
def quiet(value: bool = True) -> Iterator[None]:
    """Within the block no bar is shown (or, with ``False``, bars are shown even where no terminal is seen)."""
    token = _quiet.set(value)
    try:
        yield
    finally:
        _quiet.reset(token)


def _reporter() -> Reporter:
    hidden = _quiet.get()
    if hidden is None:
        hidden = not sys.stderr.isatty()
    # A task within a task would fight over the terminal's line, so only the outermost one is drawn.
    return Silent() if hidden or _inside.get() else Bar()


@contextmanager
def task(description: str, total: float | None = None) -> Iterator[Task]:
    """Announce long work: ``with task("Reading the corpus", total=n) as bar: ...; bar.advance()``."""
    reporter = _reporter()
    token = _inside.set(True)
    try:
        yield Task(description, total, reporter)
    finally:
        _inside.reset(token)
        reporter.finish()


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Iterate with a bar."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with task(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
