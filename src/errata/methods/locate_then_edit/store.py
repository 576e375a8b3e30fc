"""Values that are already known: chunks of an interrupted optimisation on disk, and those of an earlier patch.

A chunk's file is named by a digest of everything that decides its content (weights, layer, settings, the edits' tokens
under their contexts), so a folder can serve any number of runs and never gives a value that belongs to another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata.files import atomic_file
from errata.methods.locate_then_edit.rewrites import Rewrite

FORMAT = 1  # raised when the content of a chunk's file changes its meaning


class KnownValue(NamedTuple):
    """What an optimisation found for one edit: δ and v0, each [d], the last loss, and how many passes it took."""

    delta: Tensor
    start: Tensor
    loss: float
    steps: int


class ValueStore:
    """A folder that holds finished chunks, one safetensors file each.

    Args:
        folder: where they stand; it is made when the first chunk is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a chunk's tensors under its key, atomically.

        Raises:
            StorageError: the folder cannot be written or the disk is full.
        """
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        note = {"key": key, "sha256": _digest(whole)}
        with atomic_file(self._file(key)) as temporary:
            save_file(whole, temporary, metadata={"errata": json.dumps(note)})

    def read(self, key: str) -> dict[str, Tensor] | None:
        """A chunk's tensors, or None where there is no whole file of this key."""
        path = self._file(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                note = json.loads((file.metadata() or {}).get("errata", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        except (SafetensorError, OSError, ValueError):
            return None
        return tensors if note == {"key": key, "sha256": _digest(tensors)} else None

    def _file(self, key: str) -> Path:
        return self.folder / f"values_{key[:32]}.safetensors"


def chunk_key(rewrites: Sequence[Rewrite], **decides: str | int | float | bool | None) -> str:
    """SHA-256 of a chunk's edits, as tokens under their contexts, and of whatever else decides their values."""
    rows = [
        [r.edit.edit_id, [[p.ids, p.lookup] for p in r.prompts], r.target, r.essence.ids, r.essence.lookup]
        for r in rewrites
    ]
    question = json.dumps({"format": FORMAT, **decides, "edits": rows}, sort_keys=True)
    return hashlib.sha256(question.encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
