"""Taking fields from the records of published sets, with one sentence where a field is not what its form says."""

from __future__ import annotations

import unicodedata
from typing import Any

from errata.datasets.reading import Record
from errata.errors import RequestError

CLOSING = tuple("?？؟!！.。")  # marks with which a question ends, or what stands in its place


def text(record: Record, key: str, form: str) -> str:
    """The text in a field, without the blanks around it.

    Raises:
        RequestError: the field is missing, not text, or blank.
    """
    value: Any = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"The {form} field {key!r} is missing, not text or empty: restore it or remove the record.")
    return value.strip()


def question(record: Record, key: str, form: str) -> str:
    """As :func:`text`, with the question mark that published questions often lack (those of Natural Questions, Thai).

    Raises:
        RequestError: the field is missing, not text, or blank.
    """
    asked = text(record, key, form)
    if asked.endswith(CLOSING):
        return asked
    return asked + ("？" if unicodedata.east_asian_width(asked[-1]) == "W" else "?")


def texts(record: Record, key: str, form: str) -> tuple[str, ...]:
    """The texts in a field that holds one text or a list of them, also nested; blank ones and repeats are left out.

    Published sets write answers and their aliases in all of these ways. A missing field holds none.

    Raises:
        RequestError: there is something else in the field.
    """
    found: dict[str, None] = {}
    left: list[Any] = [record.get(key)]
    while left:
        value = left.pop(0)
        if isinstance(value, list):
            left = [*value, *left]
        elif isinstance(value, str):
            found |= {value.strip(): None} if value.strip() else {}
        elif value is not None:
            raise RequestError(f"The {form} field {key!r} holds {value!r}, which is not text: write it as text.")
    return tuple(found)


def objects(record: Record, key: str, form: str) -> list[Record]:
    """The objects in a field that holds a list of them; a missing field holds none.

    Raises:
        RequestError: the field holds something else.
    """
    value: Any = record.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RequestError(f"The {form} field {key!r} is not a list of objects: restore it or remove the record.")
    return value
