"""When a value is promoted: a vector g on an out-projection's keys, with gᵀk near 1 where it shall be, else near 0.

``W += v gᵀ`` then adds v where the gate is open. A unit of the MLP is such a gate and value too; here the gate is the
ridge regression of what is wanted on keys, solved in the smaller of their two dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.lm.forward import SplitBatch
from errata.lm.language_model import LanguageModel

ROWS_AT_ONCE = 16


@torch.no_grad()
def keys_of(lm: LanguageModel, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, list[Tensor]]:
    """What the out-projections of some layers are given, [tokens, m] a row, in float32."""
    paths = {layer: lm.architecture.blocks[layer].out_projection for layer in layers}
    last = paths[max(layers)]
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for at in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[at : at + ROWS_AT_ONCE]
        _, seen = SplitBatch(lm, some).run(inputs=list(paths.values()), stop=last)
        for layer, path in paths.items():
            keys = seen.inputs[path].float()
            shaped = keys.reshape(len(some), -1, keys.shape[-1])
            found[layer] += [own[: len(row)] for own, row in zip(shaped, some, strict=True)]
    return found


@dataclass(frozen=True)
class Gate:
    """A fitted gate.

    Attributes:
        vector: g, [m].
        opened: its mean where it shall be 1. closed: where it shall be 0, None where that is nowhere.
        spread: the root mean square of how far it is off, over all keys it was fitted to.
    """

    vector: Tensor
    opened: float
    closed: float | None
    spread: float


def fit(wanted: Tensor, unwanted: Tensor | None, ridge: float) -> Gate:
    """The gate of keys [n, m] where it shall be open and, if any, [k, m] where it shall be closed.

    Both sides weigh the same, however many keys each has.

    Args:
        wanted: keys. unwanted: keys.
        ridge: the penalty on g, relative to the mean squared size of a key.
    """
    parts = [wanted] if unwanted is None or not len(unwanted) else [wanted, unwanted]
    keys = torch.cat(parts).double()
    asked = torch.cat([keys.new_full((len(part),), 1.0 - i) for i, part in enumerate(parts)])
    share = torch.cat([keys.new_full((len(part),), len(part) ** -0.5) for part in parts])
    rows, goal = keys * share[:, None], asked * share
    penalty = ridge * float(rows.square().sum()) / len(rows)
    if len(rows) < rows.shape[1]:
        gram = rows @ rows.T
        gram.diagonal().add_(penalty)
        vector = rows.T @ torch.linalg.solve(gram, goal)
    else:
        gram = rows.T @ rows
        gram.diagonal().add_(penalty)
        vector = torch.linalg.solve(gram, rows.T @ goal)
    given = keys @ vector
    closed = float(given[len(wanted) :].mean()) if len(parts) > 1 else None
    return Gate(
        vector.float(), float(given[: len(wanted)].mean()), closed, float((given - asked).square().mean().sqrt())
    )
