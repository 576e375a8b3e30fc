"""Public formats and the user's own files, read into the records that everything else passes around."""

from __future__ import annotations

from errata.datasets.cases import read_cases, read_edits
from errata.datasets.detox import DetoxExample, read_detox
from errata.datasets.facts import occupation_facts, read_facts, starter_facts
from errata.datasets.starter import held_out_text, starter_cases
from errata.datasets.texts import read_text

__all__ = [
    "DetoxExample",
    "held_out_text",
    "occupation_facts",
    "read_cases",
    "read_detox",
    "read_edits",
    "read_facts",
    "read_text",
    "starter_cases",
    "starter_facts",
]
