"""AlphaEdit: MEMIT whose updates read nothing of what ordinary keys contain, with a memory of earlier edits.

Fang, Jiang et al.: AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models (ICLR 2025,
arXiv 2410.02355). The update is Δ = R KᵀP (L2·I + KᵀPK + earlier keys)⁻¹ with P the projection on the directions in
which ordinary keys have (nearly) no energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from errata.lm.language_model import LanguageModel
from errata.methods.base import MethodInfo
from errata.methods.locate_then_edit.insertion import Insertion, InsertionConfig
from errata.methods.locate_then_edit.moments import metrics_for
from errata.methods.locate_then_edit.solvers import Metric
from errata.statistics import null_space


class AlphaEditConfig(InsertionConfig):
    """Options of AlphaEdit."""

    memory: bool = Field(True, description="Count the keys of earlier edits that the model carries.")
    protected: float = Field(
        0.8,
        gt=0.0,
        lt=1.0,
        description="Share of the energy of ordinary keys, the trace of C, in the directions that no update reads.",
    )
    threshold: float | None = Field(
        None,
        gt=0.0,
        description="Instead of `protected`: eigenvalues of C below this are free (2e-2 in the paper's models; it has "
        "the scale of a model's keys, so it does not carry over).",
    )
    preservation: float = Field(
        0.2, gt=0.0, description="L2 relative to the mean of the keys' own kᵀPk: more moves less and writes less."
    )


class AlphaEdit(Insertion[AlphaEditConfig]):
    """AlphaEdit: for long sequences of edits."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="alphaedit",
        title="AlphaEdit",
        strategy="local modification",
        summary="MEMIT projected on the null space of ordinary keys, with a memory of earlier edits.",
        changes="the MLP out-projections of about five layers, rank at most the number of edits",
        needs="the second moments of those layers' keys over ordinary text",
        paper="Fang, Jiang et al.: AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models (ICLR 2025, "
        "arXiv 2410.02355)",
    )
    Config = AlphaEditConfig

    def metrics(self, lm: LanguageModel, layers: Sequence[int], config: AlphaEditConfig) -> dict[int, Metric]:
        """The projection on each layer's null space, in place of C⁻¹."""

        def projection(matrix: Tensor) -> Metric:
            return Metric(None, basis=null_space(matrix, protected=config.protected, threshold=config.threshold))

        return metrics_for(lm, layers, config, projection, kind=f"null space {config.protected} {config.threshold}")
