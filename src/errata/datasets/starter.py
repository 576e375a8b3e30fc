"""What comes with the package: a small set of cases to begin with, and a text to measure perplexity on."""

from __future__ import annotations

from importlib.resources import as_file, files

from errata.datasets.cases import read_cases
from errata.datasets.reading import text_lines
from errata.records import EditCase

DATA = files("errata") / "data"


def starter_cases(limit: int | None = None) -> list[EditCase]:
    """The cases that come with Errata, or the first ``limit`` of them.

    Raises:
        ConfigError: ``limit`` is below 1.
    """
    with as_file(DATA / "starter_cases.jsonl") as path:
        return read_cases(path, limit=limit)


def held_out_text() -> str:
    """The text that comes with Errata, whole, for perplexity before and after an edit."""
    with as_file(DATA / "held_out.txt") as path:
        return "".join(line for _, line in text_lines(path)).strip()
