"""SafeEdit (Wang et al. 2024, arXiv 2403.14472): attacks with a safe and an unsafe answer, and four kinds of probes.

The set is read from the user's own copy: its publisher asks everyone for a pledge. ``docs/safety.md`` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from errata.datasets.fields import text
from errata.datasets.reading import Record, json_records
from errata.errors import ConfigError, DatasetError, RequestError
from errata.files import write_json

FORM = "SafeEdit"
SLOT = "[QUESTION]"
# The measures, in the published order, and the field that holds each one's prompt.
DEFENCE = "DS"
GENERALISATION = {
    "DG_onlyQ": "test input of only harmful question",
    "DG_otherA": "test input of other attack prompt input",
    "DG_otherQ": "test input of other question input",
    "DG_otherAQ": "test input of other questions and attack prompts",
}
MEASURES = (DEFENCE, *GENERALISATION)


@dataclass(frozen=True)
class SafetyCase:
    """One record: an attack on a question, the answer wanted, the one not wanted, and what else is asked.

    Attributes:
        case_id: its number.
        category: the unsafe category.
        question: the plain question.
        prompt: the attack with the question in it: what an edit is made for.
        safe: the answer wanted. unsafe: the other one, which methods use to find a layer only.
        constraint: an unrelated prompt and its answer, which an edit must leave as they are.
        probes: prompts by measure (DG_onlyQ, DG_otherA, DG_otherQ, DG_otherAQ).
    """

    case_id: str
    category: str
    question: str
    prompt: str
    safe: str
    unsafe: str
    constraint: tuple[str, str]
    probes: dict[str, str]

    @property
    def attack(self) -> str:
        """The attack without its question; one that does not hold the question word for word is given whole."""
        return self.prompt.replace(self.question, SLOT)

    def asked(self) -> dict[str, str]:
        """Every prompt that is answered for this record, by its measure."""
        return {DEFENCE: self.prompt, **self.probes}

    def to_record(self) -> dict[str, Any]:
        """The record in the published form."""
        return {
            "id": int(self.case_id) if self.case_id.isdecimal() else self.case_id,
            "unsafety category": self.category,
            "question": self.question,
            "adversarial prompt": self.prompt,
            "safe generation": self.safe,
            "unsafe generation": self.unsafe,
            "knowledge constrain": {"prompt": self.constraint[0], "answer": self.constraint[1]},
            "generalization test": {field: self.probes[name] for name, field in GENERALISATION.items()},
        }


def read_safeedit(path: str | Path, *, limit: int | None = None) -> list[SafetyCase]:
    """The records of a copy of SafeEdit (``SafeEdit_test.json``, ...), or of any file in its form.

    Raises:
        DatasetError: the file cannot be read or holds no record, or a record is malformed; the sentence names it.
        ConfigError: ``limit`` is below 1.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit {limit} leaves no record: give at least 1, or none for all.")
    cases: dict[str, SafetyCase] = {}
    for number, (place, record) in enumerate(islice(json_records(path), limit)):
        try:
            case = _case(record, number)
        except RequestError as error:
            raise DatasetError(f"{path}, {place}: {error}") from error
        if case.case_id in cases:
            raise DatasetError(f"{path}, {place} has the id {case.case_id} of an earlier record: give it its own.")
        cases[case.case_id] = case
    if not cases:
        raise DatasetError(f"{path} holds no record: give a file of SafeEdit.")
    return list(cases.values())


def write_safeedit(path: str | Path, cases: Sequence[SafetyCase]) -> None:
    """Write records in the published form, atomically.

    Raises:
        StorageError: the file cannot be written.
    """
    write_json(Path(path), [case.to_record() for case in cases])


def _case(record: Record, number: int) -> SafetyCase:
    constraint, probes = (_part(record, key) for key in ("knowledge constrain", "generalization test"))
    return SafetyCase(
        case_id=str(record.get("id", number)),
        category=text(record, "unsafety category", FORM),
        question=text(record, "question", FORM),
        prompt=text(record, "adversarial prompt", FORM),
        safe=text(record, "safe generation", FORM),
        unsafe=text(record, "unsafe generation", FORM),
        constraint=(text(constraint, "prompt", FORM), text(constraint, "answer", FORM)),
        probes={name: text(probes, field, FORM) for name, field in GENERALISATION.items()},
    )


def _part(record: Record, key: str) -> Record:
    value = record.get(key)
    if not isinstance(value, dict):
        raise RequestError(f"The {FORM} field {key!r} is missing or no object: restore it or remove the record.")
    return value
