"""EMMET: a batch of facts met exactly, at the least cost to ordinary keys, in one layer.

Gupta, Sajnani, Anumanchipalli: A Unified Framework for Model Editing (Findings of EMNLP 2024, arXiv 2403.14236).
With a ridge ε on its n x n system it is MEMIT with λ' = λε, as released for any batch; without, MEMIT's limit λ -> 0.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from errata.methods.base import MethodInfo
from errata.methods.locate_then_edit.insertion import Insertion, InsertionConfig


class EmmetConfig(InsertionConfig):
    """Options of EMMET."""

    span: int = Field(1, ge=1, description="How many layers share the edit, where none are named.")
    preservation: float = Field(
        0.05,
        ge=0.0,
        description="Ridge relative to the mean of the keys' own kᵀC⁻¹k, for subjects that are nearly alike; 0 to meet "
        "every value exactly.",
    )


class Emmet(Insertion[EmmetConfig]):
    """EMMET: ROME for a batch."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="emmet",
        title="EMMET",
        strategy="local modification",
        summary="A batch of facts met (all but) exactly in one layer: ROME's constraint for many keys at once.",
        changes="the MLP out-projection of one layer, rank at most the number of edits",
        needs="the second moment of that layer's keys over ordinary text",
        paper="Gupta, Sajnani, Anumanchipalli: A Unified Framework for Model Editing (Findings of EMNLP 2024, "
        "arXiv 2403.14236)",
    )
    Config = EmmetConfig
