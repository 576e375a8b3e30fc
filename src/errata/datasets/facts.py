"""Facts to look for in a model: the known facts of ROME's repository, one's own, or those of any file of cases."""

from __future__ import annotations

from importlib.resources import as_file
from itertools import islice
from pathlib import Path

from errata.datasets.cases import read_cases
from errata.datasets.fields import text
from errata.datasets.reading import Record, json_records
from errata.datasets.starter import DATA, starter_cases
from errata.errors import ConfigError, DatasetError, RequestError
from errata.records import Fact

KNOWN_FORM = "known facts"


def read_facts(path: str | Path, *, limit: int | None = None) -> list[Fact]:
    """Read facts from a file; its content tells the form.

    Args:
        path: the known facts of Meng et al. 2022 (``known_1000.json``: ``prompt``, ``subject``, ``attribute``), one's
            own in JSON or JSON lines (``prompt``, ``subject`` and, where there are any, ``answer`` and ``other``), or
            any file that :func:`~errata.datasets.read_cases` reads, of which ``target_true`` is the answer.
        limit: read only so many from the beginning.

    Raises:
        DatasetError: the file cannot be read, holds no fact, or holds a record that cannot be one; the sentence names
            the file and the line or record.
        ConfigError: ``limit`` is below 1.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit {limit} leaves no fact: give at least 1, or none for all.")
    if path.suffix.lower() not in (".json", ".jsonl"):
        return [Fact.of(case.edit, case.case_id) for case in read_cases(path, limit=limit)]
    first = next(json_records(path), None)
    if first is None:
        raise DatasetError(f"{path} holds no fact: write at least one with 'prompt', 'subject' and 'answer'.")
    if "attribute" not in first[1] and ("target_new" in first[1] or "prompt" not in first[1]):
        return [Fact.of(case.edit, case.case_id) for case in read_cases(path, limit=limit)]
    facts = []
    for number, (place, record) in enumerate(islice(json_records(path), limit)):
        try:
            facts.append(_fact(record, number))
        except RequestError as error:
            raise DatasetError(f"{path}, {place}: {error}") from error
    return facts


def _fact(record: Record, number: int) -> Fact:
    name = next((str(record[key]) for key in ("fact_id", "known_id") if key in record), str(number))
    key = "attribute" if "attribute" in record else "answer"
    answer = text(record, key, KNOWN_FORM) if record.get(key) is not None else None
    other = text(record, "other", KNOWN_FORM) if record.get("other") is not None else None
    prompt, subject = text(record, "prompt", KNOWN_FORM), text(record, "subject", KNOWN_FORM)
    return Fact(prompt=prompt, subject=subject, answer=answer, other=other, fact_id=name)


def starter_facts(limit: int | None = None) -> list[Fact]:
    """The facts that the cases which come with Errata change, as they are before, or the first ``limit`` of them.

    Raises:
        ConfigError: ``limit`` is below 1.
    """
    return [Fact.of(case.edit, case.case_id) for case in starter_cases(limit)]


def occupation_facts(limit: int | None = None) -> list[Fact]:
    """Sentences about people of many occupations that go on with ``he`` or ``she``, or the first ``limit`` of them.

    Raises:
        ConfigError: ``limit`` is below 1.
    """
    with as_file(DATA / "occupations.jsonl") as path:
        return read_facts(path, limit=limit)
