"""The directions in which ordinary keys have (nearly) no energy: where a change of W does them no harm.

Fang, Jiang et al. (ICLR 2025, arXiv 2410.02355) cut C's eigenvalues at an absolute threshold, which has the scale of
one model's keys; a share of the trace means the same on any model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from errata.errors import ConfigError


def null_space(matrix: Tensor, *, protected: float = 0.9, threshold: float | None = None) -> Tensor:
    """An orthonormal basis of C's approximate null space, [m, r] float64.

    For any change Δ of W that reads only this space, the mean change of ordinary keys' outputs is bounded:
    tr(Δ C Δᵀ) ≤ τ ‖Δ‖², with τ the largest eigenvalue left in the space.

    Args:
        matrix: C, [m, m], symmetric positive semi-definite.
        protected: the eigenvectors of the largest eigenvalues that together hold this share of the trace are left out.
        threshold: instead: leave out eigenvalues from here on, in C's own units.

    Raises:
        ConfigError: nothing is left, so no update would be possible.
    """
    # In float64, because float32 sorts the smallest eigenvalues wrongly around the cut.
    values, vectors = torch.linalg.eigh(matrix.double())
    values = values.clamp(min=0.0)
    # Ascending, so the sum up to an eigenvalue is the part of the trace that it and the smaller ones hold.
    free = values.cumsum(0) <= (1.0 - protected) * values.sum() if threshold is None else values < threshold
    if not bool(free.any()):
        raise ConfigError("No direction is left to edit in: lower 'protected', or raise 'threshold'.")
    basis: Tensor = vectors[:, free].contiguous()
    return basis
