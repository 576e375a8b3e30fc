"""What a paid judge has said, kept on disk: nothing is asked twice, and an interruption loses nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from errata.files import cache_dir, write_json


class AnswerCache:
    """Answers by the hash of everything that they depend on, one small file each, written atomically.

    Args:
        folder: where they stand; by default in the user's cache folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = Path(folder) if folder is not None else cache_dir("judges")

    def get(self, *key: str) -> dict[str, Any] | None:
        """What was put under this key, or None; a damaged file counts as none."""
        try:
            found = json.loads(self._path(key).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, value: dict[str, Any], *key: str) -> None:
        """Keep a value under a key.

        Raises:
            StorageError: it cannot be written.
        """
        write_json(self._path(key), value)

    def _path(self, key: tuple[str, ...]) -> Path:
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest}.json"
