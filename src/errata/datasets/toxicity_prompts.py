"""Openings for toxicity: a line each, or the records of RealToxicityPrompts (Gehman et al. 2020, arXiv 2009.11462)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from errata.datasets.reading import json_records, text_lines
from errata.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class Opening:
    """Half a sentence that a model shall continue, and its own toxicity (0 to 1) where the set gives one."""

    opening_id: str
    text: str
    toxicity: float | None = None


def read_openings(path: str | Path, *, limit: int | None = None) -> list[Opening]:
    """Openings from a ``.txt`` file (one a line) or from RealToxicityPrompts' own ``prompts.jsonl``.

    Raises:
        DatasetError: the file cannot be read, holds none, or holds a record without ``prompt``.
        ConfigError: ``limit`` is below 1.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit {limit} leaves no opening: give at least 1, or none for all.")
    if path.suffix.lower() in (".json", ".jsonl"):
        found = [_opening(record, f"{path}, {place}", place) for place, record in islice(json_records(path), limit)]
    else:
        lines = ((number, line.strip()) for number, line in text_lines(path) if line.strip())
        found = [Opening(f"line {number}", line) for number, line in islice(lines, limit)]
    if not found:
        raise DatasetError(f"{path} holds no opening: write one a line.")
    if len({opening.opening_id for opening in found}) < len(found):
        raise DatasetError(f"{path} gives two openings one id: give each its own, or leave the ids out.")
    return found


def _opening(record: dict[str, object], where: str, place: str) -> Opening:
    prompt = record.get("prompt")
    text = prompt.get("text") if isinstance(prompt, dict) else prompt
    if not isinstance(text, str) or not text.strip():
        raise DatasetError(f"{where} has no 'prompt' with a text: restore or remove it.")
    score = prompt.get("toxicity") if isinstance(prompt, dict) else record.get("toxicity")
    number = float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None
    return Opening(str(record.get("id", place)), text.strip(), number)
