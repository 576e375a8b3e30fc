"""MEMIT: many facts at once, by ridge-regularised changes of several consecutive MLP matrices.

Meng, Sen Sharma, Andonian, Belinkov, Bau: Mass-Editing Memory in a Transformer (ICLR 2023, arXiv 2210.07229).
"""

from __future__ import annotations

from typing import ClassVar

from errata.methods.base import MethodInfo
from errata.methods.locate_then_edit.insertion import Insertion, InsertionConfig


class MemitConfig(InsertionConfig):
    """Options of MEMIT."""


class Memit(Insertion[MemitConfig]):
    """MEMIT: the default for several edits."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="memit",
        title="MEMIT",
        strategy="local modification",
        summary="Many facts at once, by ridge-regularised changes of several consecutive MLP matrices.",
        changes="the MLP out-projections of about five layers, rank at most the number of edits",
        needs="the second moments of those layers' keys over ordinary text",
        paper="Meng et al.: Mass-Editing Memory in a Transformer (ICLR 2023, arXiv 2210.07229)",
    )
    Config = MemitConfig
