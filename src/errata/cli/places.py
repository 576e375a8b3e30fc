"""Where a verb will write, decided and checked before anything slow begins."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from errata.errors import StorageError
from errata.records import Edit

PATCHES = Path("patches")
LONGEST_SLUG = 40


def default_folder(edits: Sequence[Edit], parent: Path = PATCHES) -> Path:
    """``patches/the-eiffel-tower-rome``, or ``patches/5-edits``; with -2, -3, ... where that is taken."""
    name = f"{slug(edits[0].subject)}-{slug(edits[0].target_new)}" if len(edits) == 1 else f"{len(edits)}-edits"
    return free_folder(name, parent)


def free_folder(name: str, parent: Path = PATCHES) -> Path:
    """A folder of this name, with -2, -3, ... where it is taken."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def slug(text: str) -> str:
    """Text as a part of a file name: lower case, letters and digits of any script, hyphens between."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[\W_]+", "-", plain.casefold()).strip("-")[:LONGEST_SLUG].strip("-") or "edit"


def check_new_folder(folder: Path, *, replace: bool = False, replaceable: str | None = None) -> None:
    """Refuse a folder that could not be written at the end.

    Args:
        folder: where something will be written.
        replace: a folder that is there already may be replaced ...
        replaceable: ... if it is empty or holds a file of this name.

    Raises:
        StorageError: it is there and not empty, or cannot be made.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not replace:
            remedy = ", or give --replace" if replaceable else ""
            raise StorageError(f"{folder} already exists and is not empty: choose another --out{remedy}.")
        if replaceable and not (folder / replaceable).is_file():
            raise StorageError(f"{folder} holds something else than a patch and is not replaced: choose another --out.")
    elif folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file: choose another --out.")
    check_parent(folder)


def check_parent(path: Path) -> None:
    """Refuse a path whose folder is not there and cannot be made, or cannot be written to.

    Raises:
        StorageError: so it is.
    """
    nearest = path.absolute().parent
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise StorageError(f"{path} cannot be written, because {nearest} is not a folder: choose another place.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StorageError(f"{path} cannot be written, because {nearest} is closed to writing: choose another place.")
