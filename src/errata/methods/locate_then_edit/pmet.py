"""PMET: MEMIT with the attention's part of the target set apart, and only the MLP's written.

Li, Li, Song, Yang, Ma, Yu: PMET: Precise Model Editing in a Transformer (AAAI 2024, arXiv 2308.08742). Shifts of the
attention's and of the MLP's output are sought together; the first is thrown away, because attention is held to carry
general patterns. What the released code does besides, weighing the loss down once the target is likeliest, is left out.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from errata.methods.base import MethodInfo
from errata.methods.locate_then_edit.insertion import Insertion, InsertionConfig
from errata.methods.locate_then_edit.value_types import Site


class PmetConfig(InsertionConfig):
    """Options of PMET."""

    spread: Literal["even", "sqrt", "direct"] = Field(
        "sqrt",
        description="A layer's share of what is missing: 1/remaining (MEMIT), 1/√remaining (PMET), or all of it, "
        "with targets found anew at each layer (BLUE).",
    )


class Pmet(Insertion[PmetConfig]):
    """PMET: MEMIT with a target for the MLP alone."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="pmet",
        title="PMET",
        strategy="local modification",
        summary="MEMIT whose targets are found for attention and MLP apart, and written for the MLP alone.",
        changes="the MLP out-projections of about five layers, rank at most the number of edits",
        needs="the second moments of those layers' keys over ordinary text",
        paper="Li et al.: PMET: Precise Model Editing in a Transformer (AAAI 2024, arXiv 2308.08742)",
    )
    Config = PmetConfig
    site: ClassVar[Site] = "mlp and attention"
