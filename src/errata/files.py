"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from errata.errors import StorageError


def cache_dir(*parts: str) -> Path:
    """The user's cache folder for Errata (``ERRATA_CACHE`` moves it), or a folder below it."""
    root = os.environ.get("ERRATA_CACHE") or platformdirs.user_cache_dir("errata", appauthor=False)
    return Path(root).expanduser().joinpath(*parts)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it becomes ``path`` only if the block ends without an error.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise _storage_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it becomes ``path`` only if the block ends without an error.

    Args:
        path: where the folder shall stand.
        replace: take the place of a folder that is already there; otherwise a non-empty one is an error.

    Raises:
        StorageError: the folder exists and is not empty, cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.exists() and not replace and (path.is_file() or any(path.iterdir())):
        raise StorageError(f"{path} already exists and is not empty: choose another folder or allow it to be replaced.")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        os.chmod(temporary, 0o755)
        yield temporary
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.replace(path, old / "content")
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise _storage_error(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. Numbers that JSON lacks (NaN, infinity) become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """The same nested value with every NaN or infinite float replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _storage_error(path: Path, error: OSError) -> OSError:
    if isinstance(error, StorageError):
        return error
    reason = error.strerror or str(error)
    return StorageError(f"Could not write {path} ({reason}): free some space or choose another place.")
