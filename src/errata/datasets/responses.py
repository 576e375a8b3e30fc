"""Responses to judge: the user's own file of prompts and what was said to them."""

from __future__ import annotations

from pathlib import Path

from errata.datasets.reading import json_records
from errata.errors import DatasetError


def read_responses(path: str | Path) -> list[tuple[str, str, str]]:
    """(name, prompt, response) from JSON lines or a JSON list with ``prompt``, ``response`` and perhaps ``case_id``.

    A response may be empty: that is for the judge to say.

    Raises:
        DatasetError: the file cannot be read or holds none, or a record lacks a text or repeats a name.
    """
    path, found = Path(path), dict[str, tuple[str, str, str]]()
    for number, (place, record) in enumerate(json_records(path), start=1):
        prompt, response = record.get("prompt", ""), record.get("response")
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise DatasetError(f"{path}, {place} has no 'response' that is a text: write it there.")
        name = str(record.get("case_id", number))
        if name in found:
            raise DatasetError(f"{path}, {place} repeats the case_id {name!r}: give it its own.")
        found[name] = (name, prompt, response)
    if not found:
        raise DatasetError(f"{path} holds no response: write one object with 'prompt' and 'response' a line.")
    return list(found.values())
