"""Which row of a pass belongs to whom, so that what hooks a module can treat rows differently.

Rows are permuted, branched and dropped between passes; whoever runs a pass says what its rows are tagged with, and a
hook asks for it while the pass runs (:mod:`errata.patch.rowwise` gives every row a patch of its own that way).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

UNTAGGED = -1

_running: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()


@contextmanager
def tagged(model: Any, tags: Tensor) -> Iterator[None]:
    """Within the block, the rows of the model's passes carry these tags: whole numbers [rows], -1 for none."""
    before = _running.get(model)
    _running[model] = tags
    try:
        yield
    finally:
        if before is None:
            del _running[model]
        else:
            _running[model] = before


def tags_of_pass(model: Any) -> Tensor | None:
    """The tags [rows] of the pass that runs on the model now; None where whoever runs it gave none."""
    return _running.get(model)
