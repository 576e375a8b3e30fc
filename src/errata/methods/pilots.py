"""Shipped edits that stand in where a method measures a model's scales and the request has too few edits for that."""

from __future__ import annotations

from errata.datasets import starter_cases
from errata.records import Edit


def pilots(count: int, wanted: int = 32) -> list[Edit]:
    """Shipped edits that complete so many others to as many as a mean needs that is to mean something."""
    return [case.edit for case in starter_cases(wanted - count)] if count < wanted else []
