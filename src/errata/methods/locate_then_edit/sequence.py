"""What a sequence of edits must know of its earlier steps: read from the patches that the model carries.

Nothing is kept beside the patches, so a sequence that was interrupted goes on as if it had not been, and an edit that
was reverted is forgotten.
"""

from __future__ import annotations

import torch
from torch import Tensor

from errata.lm.language_model import LanguageModel
from errata.patch import applied_patches

ANCHOR = "anchor"


def keys_name(layer: int) -> str:
    """Under which name a patch's state holds the keys of its edits at a layer."""
    return f"keys.{layer}"


def compact(keys: Tensor) -> Tensor:
    """Keys [m, n], or where n > m an [m, m] factor with the same K Kᵀ: all that a memory needs of them."""
    if keys.shape[1] <= keys.shape[0]:
        return keys
    factor: Tensor = torch.linalg.qr(keys.T, mode="r").R.T
    return factor


def earlier_keys(lm: LanguageModel, layer: int, like: Tensor) -> Tensor:
    """The keys at one layer of all edits the model carries, [m, N]; ``like`` [m, n] gives their type and device."""
    name = keys_name(layer)
    kept = [patch.state[name].to(like) for patch in applied_patches(lm) if name in patch.state]
    return compact(torch.cat(kept, dim=1)) if kept else like[:, :0]


def earlier_anchor(lm: LanguageModel) -> float | None:
    """The norm that the first patch of the sequence fixed for all targets."""
    return next((float(patch.state[ANCHOR]) for patch in applied_patches(lm) if ANCHOR in patch.state), None)
