"""Which of a model's weights a list of updates changes, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from errata.errors import PatchError
from errata.patch.updates import Update


@dataclass
class Target:
    """One weight, under the first of its names, and the updates that change it."""

    name: str
    weight: nn.Parameter
    updates: list[Update] = field(default_factory=list)


def find_targets(model: Any, updates: Sequence[Update]) -> dict[str, Target]:
    """The weights that the updates change, by name.

    A tied weight has several names and is one target, so that updates under either name add up and its original is
    kept once.

    Raises:
        PatchError: a weight does not exist, has another shape, is packed, or is not in memory.
    """
    names: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    first_names: dict[int, str] = {}
    for name, weight in names.items():
        first_names.setdefault(id(weight), name)
    targets: dict[str, Target] = {}
    for update in updates:
        if update.parameter not in names:
            raise PatchError(
                f"The model has no weight {update.parameter!r}: apply the patch to a model of the architecture it was "
                "made for."
            )
        weight = names[update.parameter]
        _check(update, weight)
        name = first_names[id(weight)]
        targets.setdefault(name, Target(name, weight)).updates.append(update)
    return targets


def _check(update: Update, weight: nn.Parameter) -> None:
    name = update.parameter
    if weight.is_meta:
        raise PatchError(f"The weight {name} is offloaded and not in memory: load the model without offloading.")
    if not weight.is_floating_point():
        raise PatchError(f"The weight {name} is packed as {weight.dtype}: load the model with floating-point weights.")
    if tuple(weight.shape) != update.shape:
        raise PatchError(
            f"The weight {name} has the shape {tuple(weight.shape)} and its update {update.shape}: apply the patch to "
            "a model of the size it was made for."
        )
