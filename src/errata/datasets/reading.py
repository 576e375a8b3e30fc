"""Opening the user's files: lines and JSON records, each with the place to name when something there is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from errata.errors import DatasetError

Record: TypeAlias = dict[str, Any]


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file (a byte-order mark is dropped) with their numbers from 1 and their line ends.

    Only ``\\n``, ``\\r`` and ``\\r\\n`` end a line: other Unicode separators may stand inside a JSON string.

    Raises:
        DatasetError: the file is missing, unreadable, or not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from enumerate(file, start=1)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text: save it again with the encoding UTF-8.") from error
    except FileNotFoundError as error:
        raise DatasetError(f"There is no file {path}: check the path.") from error
    except IsADirectoryError as error:
        raise DatasetError(f"{path} is a folder: name one file in it.") from error
    except OSError as error:
        raise DatasetError(f"Could not read {path} ({error.strerror or error}): check its permissions.") from error


def json_records(path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON file, one at a time, each with its place (``"line 3"`` or ``"record 3"``).

    What is in the file decides: a list of objects, one object, or one object a line, whichever of the extensions
    ``.json`` and ``.jsonl`` it bears. One object a line is read as a stream, so a large file costs no memory.

    Raises:
        DatasetError: something does not parse, is not an object, or the file cannot be read.
    """
    lines = ((number, line) for number, line in text_lines(path) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    number, line = first
    if not line.lstrip().startswith("[") and (path.suffix.lower() != ".json" or _parses(line)):
        for number, line in chain([first], lines):
            yield f"line {number}", _object(_parse(line, path, number), path, f"line {number}")
        return
    # Blank lines count again here, so that the line a parse error names is the one an editor shows.
    value = _parse("".join(line for _, line in text_lines(path)), path)
    for index, item in enumerate(value if isinstance(value, list) else [value], start=1):
        yield f"record {index}", _object(item, path, f"record {index}")


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(text: str, path: Path, number: int | None = None) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = number or error.lineno
        raise DatasetError(f"{path}, line {line} is not valid JSON ({error.msg}): correct or remove it.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} holds JSON that cannot be read ({error}): correct it.") from error
    if "\\u" in text:
        _refuse_half_characters(value, path, number)
    return value


def _refuse_half_characters(value: Any, path: Path, number: int | None) -> None:
    # JSON can escape half of a surrogate pair; no tokenizer can encode it, and the failure would come much later.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        place = f"{path}, line {number}" if number else str(path)
        raise DatasetError(f"{place} holds half of a \\u surrogate pair: write the character itself.") from error


def _object(value: Any, path: Path, place: str) -> Record:
    if not isinstance(value, dict):
        raise DatasetError(f"{path}, {place} is not a JSON object: write {{'key': value, ...}} there.")
    return value
