"""Reading a file of edits or cases, whichever form it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from errata.datasets import counterfact, own
from errata.datasets.reading import Record, json_records
from errata.errors import ConfigError, DatasetError, RequestError
from errata.records import Edit, EditCase

# The form that recognises a file's first record reads all of it, so that a fault further down is named as a fault.
FORMS: tuple[tuple[Callable[[Record], bool], Callable[[Record], EditCase]], ...] = (
    (counterfact.is_full, counterfact.read_full),
    (counterfact.is_short, counterfact.read_short),
    (own.is_own, own.read_own),
)


def read_cases(path: str | Path, *, limit: int | None = None) -> list[EditCase]:
    """Read cases from a file; its content tells the form.

    Args:
        path: CounterFact (full or short) in JSON, or one's own cases in JSON, JSON lines or CSV; UTF-8.
        limit: read only so many from the beginning.

    Raises:
        DatasetError: the file cannot be read, holds no case, holds a record that cannot be an edit, or uses one
            ``case_id`` twice; the sentence names the file and the line or record.
        ConfigError: ``limit`` is below 1.
    """
    cases: list[EditCase] = []
    places: dict[str, str] = {}
    for place, case in islice(_cases(Path(path)), _checked(limit)):
        if case.case_id in places:
            raise DatasetError(
                f"{path}, {place} has the same case_id {case.case_id!r} as {places[case.case_id]}: "
                "remove one of them or give it another case_id."
            )
        places[case.case_id] = place
        cases.append(case)
    if not cases:
        raise _empty(path)
    return cases


def read_edits(path: str | Path) -> list[Edit]:
    """Read only the edits of a file, in any form that :func:`read_cases` knows.

    Raises:
        DatasetError: the file cannot be read, holds no edit, or holds a record that cannot be one.
    """
    edits = [case.edit for _, case in _cases(Path(path))]
    if not edits:
        raise _empty(path)
    return edits


def _cases(path: Path) -> Iterator[tuple[str, EditCase]]:
    read: Callable[[Record], EditCase] | None = None
    for place, record in _records(path):
        if read is None:
            read = _reader(record, path, place)
        try:
            yield place, read(record)
        except RequestError as error:
            raise DatasetError(f"{path}, {place}: {error}") from error


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return own.csv_records(path)
    if suffix in (".json", ".jsonl"):
        return json_records(path)
    raise DatasetError(f"The form of {path} is not known: give a file that ends in .json, .jsonl or .csv.")


def _reader(record: Record, path: Path, place: str) -> Callable[[Record], EditCase]:
    for matches, read in FORMS:
        if matches(record):
            return read
    keys = ", ".join(map(repr, record)) or "none"
    raise DatasetError(
        f"{path}, {place} is in no form that is known (its keys: {keys}): "
        "give CounterFact, or records with 'prompt', 'subject' and 'target_new'."
    )


def _checked(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit {limit} leaves no case: give at least 1, or none for all.")
    return limit


def _empty(path: str | Path) -> DatasetError:
    return DatasetError(f"{path} holds no record: write at least one with 'prompt', 'subject' and 'target_new'.")
