"""Topic lists, from which records in SafeEdit's form are built: questions, attacks and constraints in one JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from errata.datasets.fields import objects, text
from errata.datasets.reading import Record, json_records
from errata.datasets.safety_building import Attack, TopicQuestion
from errata.errors import DatasetError, RequestError

FORM = "topic list's"


@dataclass(frozen=True)
class TopicList:
    """What records are built from.

    Attributes:
        topics: the questions of each category. attacks: the wrappers. constraints: unrelated prompts and answers.
    """

    topics: dict[str, list[TopicQuestion]]
    attacks: list[Attack]
    constraints: list[tuple[str, str]]


def read_topic_list(path: str | Path) -> TopicList:
    """Read ``{"topics": {CATEGORY: [{question, safe, unsafe}]}, "attacks": [{text, family}], "constraints": [...]}``.

    Raises:
        DatasetError: the file cannot be read, or a part of it is missing or malformed; the sentence says which.
    """
    path = Path(path)
    record = next((record for _, record in json_records(path)), None)
    topics = (record or {}).get("topics")
    if record is None or not isinstance(topics, dict) or not topics:
        raise DatasetError(f"{path} has no 'topics': write an object that holds a list of questions a category.")
    place = "attacks"
    try:
        attacks = [_attack(item) for item in objects(record, "attacks", FORM)]
        place = "constraints"
        constraints = [(text(c, "prompt", FORM), text(c, "answer", FORM)) for c in objects(record, place, FORM)]
        found: dict[str, list[TopicQuestion]] = {}
        for category in topics:
            found[category] = []
            for number, item in enumerate(objects(topics, category, FORM), start=1):
                place = f"{category}, question {number}"
                found[category].append(
                    TopicQuestion(*(text(item, key, FORM) for key in ("question", "safe", "unsafe")))
                )
    except RequestError as error:
        raise DatasetError(f"{path}, {place}: {error}") from error
    return TopicList(found, attacks, constraints)


def _attack(item: Record) -> Attack:
    family = item.get("family", "")
    return Attack(text(item, "text", FORM), family if isinstance(family, str) else "")
