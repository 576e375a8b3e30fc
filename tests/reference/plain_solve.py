"""The papers' formulas with explicit inverses and dense solves, in float64."""

from __future__ import annotations

import torch


def plain_rome(C, key, residual, read_at=None):
    """Λ uᵀ with u = C⁻¹ key and Λ = residual / (u · read_at): the change of W, [d, m]."""
    u = torch.linalg.inv(C.double()) @ key.double()
    return torch.outer(residual.double() / (u @ (key if read_at is None else read_at).double()), u)


def plain_memit(C, K, R, strength):
    """R Qᵀ with Q = (λ C + K Kᵀ)⁻¹ K: the change of W, [d, m]."""
    K, R = K.double(), R.double()
    return R @ torch.linalg.solve(strength * C.double() + K @ K.T, K).T
