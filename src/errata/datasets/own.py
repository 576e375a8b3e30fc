"""The user's own edits: JSON in the form of :meth:`EditCase.from_dict`, or a table in CSV."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from errata.datasets.reading import Record, text_lines
from errata.errors import DatasetError, RequestError
from errata.records import EditCase

REQUIRED = ("prompt", "subject", "target_new")
TEXTS = ("paraphrases", "generation_prompts")
PROBES = ("neighbours", "consequences")
KEYS = (*REQUIRED, "target_true", "also", "case_id", "relation", *TEXTS, *PROBES, "translations")
BETWEEN, ANSWER = "|", "=>"

# What other forms call the same thing. Kept as unknown keys these would silently take the probes from an evaluation.
ELSEWHERE = {
    "ground_truth": "target_true",
    "rephrase": "paraphrases",
    "rephrase_prompt": "paraphrases",
    "locality": "neighbours",
    "locality_prompt": "neighbours",
    "portability": "consequences",
}


def is_own(record: Record) -> bool:
    """Whether the record holds any of the three keys that an edit cannot do without."""
    return any(key in record for key in REQUIRED)


def read_own(record: Record) -> EditCase:
    """The case in one record; keys that Errata does not know are kept in ``extra``.

    Raises:
        RequestError: a key is missing, misspelt or not in its form, or the record cannot be an edit.
    """
    record = {key: value for key, value in record.items() if value is not None}
    unknown = [key for key in record if key not in KEYS]
    for key in unknown:
        meant = ELSEWHERE.get(key) or next(iter(difflib.get_close_matches(key.lower(), KEYS, n=1, cutoff=0.85)), None)
        if meant is not None and meant not in record:
            raise RequestError(f"The key {key!r} is not known: write {meant!r} if that is what it means.")
    for key in ("target_true", "relation"):
        if not isinstance(record.get(key, ""), str):
            raise RequestError(f"{key!r} is not text: write it between quotation marks.")
    for key in (*PROBES, "translations"):
        _check_answers(record.get(key), key)
    return replace(EditCase.from_dict(record), extra={key: record[key] for key in unknown})


def csv_records(path: Path) -> Iterator[tuple[str, Record]]:
    """The rows of a CSV file as records, each with its place; several texts in one cell are separated by ``|``.

    The header names the columns: prompt, subject and target_new, and any of target_true, case_id, relation,
    paraphrases, generation_prompts, neighbours and consequences, the last two written ``prompt => answer``.
    A comma, a semicolon or a tab separates the columns, whichever the header uses.

    Raises:
        DatasetError: a column is missing or twice there, a row is longer than the header, or its quoting is broken.
    """
    numbered = text_lines(path)
    top, first = next(((number, line) for number, line in numbered if line.strip()), (0, ""))
    if not first:
        return
    separator = max(",;\t", key=first.count)
    header = [name.strip().lower() for name in next(csv.reader([first], delimiter=separator))]
    _check_header(header, path)
    rows = csv.reader((line for _, line in numbered), delimiter=separator, strict=True)
    while True:
        start = top + rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DatasetError(
                f"{path}, line {start} is not valid CSV ({error}): check its quotation marks."
            ) from error
        if row is None:
            return
        if len(row) > len(header):
            raise DatasetError(
                f"{path}, line {start} has {len(row)} cells where the header has {len(header)}: "
                "put a text that holds the separator between quotation marks."
            )
        if any(cell.strip() for cell in row):
            yield f"line {start}", _record(dict(zip(header, row, strict=False)))


def _check_header(header: list[str], path: Path) -> None:
    needed = ", ".join(REQUIRED)
    for name in REQUIRED:
        if name not in header:
            raise DatasetError(f"{path} has no column {name!r}: its first line must name at least {needed}.")
    repeated = next((name for name in header if header.count(name) > 1), None)
    if repeated is not None:
        raise DatasetError(f"{path} has two columns named {repeated!r}: rename or remove one of them.")


def _record(cells: dict[str, str]) -> Record:
    record: Record = {}
    for name, cell in cells.items():
        text = cell.strip()
        if name in REQUIRED:
            record[name] = cell
        elif text and name in TEXTS:
            record[name] = _parts(text)
        elif text and name in PROBES:
            record[name] = [_probe(part) for part in _parts(text)]
        elif text:
            record[name] = text
    return record


def _parts(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(BETWEEN) if part.strip()]


def _probe(part: str) -> Record:
    prompt, mark, answer = part.rpartition(ANSWER)
    if not mark:
        return {"prompt": part, "answers": []}
    return {"prompt": prompt.strip(), "answers": [answer.strip()] if answer.strip() else []}


def _check_answers(probes: Any, key: str) -> None:
    for probe in probes if isinstance(probes, list) else []:
        answers = probe.get("answers", []) if isinstance(probe, dict) else []
        texts = [answers] if isinstance(answers, str) else answers
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RequestError(f"{key!r} holds answers that are not text: write a list of strings.")
