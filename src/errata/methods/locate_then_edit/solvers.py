"""Which change of W sends keys to values: pure linear algebra on [m, n] keys and [d, n] residuals.

C is the [m, m] second moment of ordinary keys. All solves run in float64 through one Cholesky factor of C, computed
once a layer; with Y = L⁻¹K every method needs only the n x n Gram matrix G = YᵀY = KᵀC⁻¹K (the cards' dual forms).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import NumericalError


@dataclass(frozen=True)
class Metric:
    """The inner product kᵀC⁻¹k' in which an edit's side effects are measured.

    Attributes:
        factor: lower Cholesky factor of C (with its ridge), [m, m] float64; None stands for C = I.
    """

    factor: Tensor | None

    @staticmethod
    def of(matrix: Tensor | None, *, ridge: float = 1e-4) -> Metric:
        """Factor C + ridge · tr(C)/m · I; the ridge grows tenfold where too few tokens left C singular.

        Raises:
            NumericalError: C is not positive definite even with a ridge of a tenth of its mean diagonal.
        """
        if matrix is None:
            return Metric(None)
        c = matrix.double()
        scale, eye = c.diagonal().mean(), torch.eye(len(c), dtype=c.dtype, device=c.device)
        for step in range(4):
            factor, failed = torch.linalg.cholesky_ex(c + ridge * 10**step * scale * eye)
            if not int(failed):
                return Metric(factor)
        raise NumericalError("The second moment is not positive definite: measure it again on more text.")

    def whiten(self, keys: Tensor) -> Tensor:
        """Y = L⁻¹K, [m, n] float64."""
        keys = keys.double()
        if self.factor is None:
            return keys
        solved: Tensor = torch.linalg.solve_triangular(self.factor.to(keys.device), keys, upper=False)
        return solved

    def inverse_times(self, whitened: Tensor) -> Tensor:
        """C⁻¹K = L⁻ᵀY from the whitened keys, [m, n]."""
        if self.factor is None:
            return whitened
        solved: Tensor = torch.linalg.solve_triangular(self.factor.to(whitened.device).T, whitened, upper=True)
        return solved


def rank_one(metric: Metric, key: Tensor, residual: Tensor, *, read_at: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The change of least side effect that adds ``residual`` at a key: W + left rightᵀ (ROME, equation 2).

    Args:
        metric: of C.
        key: [m], sets the direction u = C⁻¹ key.
        residual: [d], what shall be added to W's output.
        read_at: [m], the key at which it shall be added exactly; by default ``key`` itself. ROME as released reads at
            the bare prompt's key here although u comes from the averaged one; where the two are nearly C⁻¹-orthogonal
            the denominator vanishes and the update explodes (R-ROME, arXiv 2403.07175).

    Returns:
        left [d, 1] and right [1, m], float64.

    Raises:
        NumericalError: the denominator is zero or not finite.
    """
    direction = metric.inverse_times(metric.whiten(key[:, None]))[:, 0]
    denominator = torch.dot(direction, (key if read_at is None else read_at).double())
    if not torch.isfinite(denominator) or float(denominator) == 0.0:
        raise NumericalError(
            "The key of this edit has no direction of its own: choose another layer or reword the prompt."
        )
    return (residual.double() / denominator)[:, None], direction[None, :]


def ridge(metric: Metric, keys: Tensor, residuals: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """min ‖ΔK - R‖² + strength · tr(Δ C Δᵀ), in the form Δ = R (strength·I + G)⁻¹ KᵀC⁻¹ (MEMIT, equation 14).

    Args:
        metric: of C.
        keys: K, [m, n].
        residuals: R, [d, n].
        strength: λ ≥ 0, in the units of kᵀC⁻¹k; near 0 the residuals are met exactly (EMMET).

    Returns:
        left [d, n] = R and right [n, m], float64: Δ = left @ right has rank at most n.
    """
    whitened = metric.whiten(keys)
    gram = whitened.T @ whitened
    n = len(gram)
    # Duplicate requests make G singular; λ, or a trace of its own scale, keeps the solve well posed.
    floor = max(strength, 1e-10 * float(gram.diagonal().mean()))
    system = gram + floor * torch.eye(n, dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed):
        raise NumericalError("The edits' keys are not finite or coincide: drop repeated edits, or raise lambda.")
    right = torch.cholesky_solve(metric.inverse_times(whitened).T, factor)
    return residuals.double(), right


def key_energy(metric: Metric, keys: Tensor) -> Tensor:
    """Diagonal of G = KᵀC⁻¹K, [n]: how far each key lies from ordinary ones (a corpus token's mean is m)."""
    whitened = metric.whiten(keys)
    return (whitened * whitened).sum(0)
