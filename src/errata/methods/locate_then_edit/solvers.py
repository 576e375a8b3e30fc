"""Which change of W sends keys to values: pure linear algebra on [m, n] keys and [d, n] residuals.

C is the [m, m] second moment of ordinary keys. All solves run in float64 through a map T with C⁻¹ = TᵀT, computed once
a layer (from a Cholesky factor of C, or a basis of its null space). With Y = TK every method needs only the n x n Gram
matrix G = YᵀY = KᵀC⁻¹K, or YYᵀ where edits outnumber dimensions (the cards' dual and primal forms).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from errata.errors import NumericalError


@dataclass(frozen=True)
class Metric:
    """The inner product kᵀC⁻¹k' in which an edit's side effects are measured, as a linear map T with C⁻¹ = TᵀT.

    Attributes:
        factor: lower Cholesky factor of C (with its ridge), [m, m] float64; None stands for C = I.
        basis: orthonormal columns [m, r] float64, in place of a factor: C⁻¹ is then the projection on their span, and
            an update reads nothing outside it (AlphaEdit's null space).
        memory: lower Cholesky factor [r, r] of what earlier edits added, in whitened coordinates.
    """

    factor: Tensor | None
    basis: Tensor | None = None
    memory: Tensor | None = None

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

    def remembering(self, keys: Tensor, strength: float) -> Metric:
        """The metric of C + KKᵀ/λ: keys of earlier edits, [m, N], count beside ordinary ones (MEMIT-seq, AlphaEdit).

        With T of this metric and LLᵀ = I + (TK)(TK)ᵀ/λ, the new map is L⁻¹T, whatever T is; so one memory serves every
        method of the family.
        """
        if keys.shape[1] == 0:
            return self
        whitened = self.whiten(keys)
        added = whitened @ whitened.T / strength
        added.diagonal().add_(1.0)
        factor, failed = torch.linalg.cholesky_ex(added)
        if int(failed):
            raise NumericalError("The keys of earlier edits are not finite: revert the patch that broke the model.")
        return replace(self, memory=factor if self.memory is None else self.memory @ factor)

    def whiten(self, keys: Tensor) -> Tensor:
        """Y = TK, [r, n] float64 (r = m without a basis)."""
        whitened = keys.double()
        if self.basis is not None:
            whitened = self.basis.to(keys.device).T @ whitened
        elif self.factor is not None:
            whitened = torch.linalg.solve_triangular(self.factor.to(keys.device), whitened, upper=False)
        if self.memory is not None:
            whitened = torch.linalg.solve_triangular(self.memory.to(keys.device), whitened, upper=False)
        return whitened

    def inverse_times(self, whitened: Tensor) -> Tensor:
        """C⁻¹K = TᵀY from the whitened keys, [m, n]."""
        solved = whitened
        if self.memory is not None:
            solved = torch.linalg.solve_triangular(self.memory.to(solved.device).T, solved, upper=True)
        if self.basis is not None:
            return self.basis.to(solved.device) @ solved
        if self.factor is not None:
            solved = torch.linalg.solve_triangular(self.factor.to(solved.device).T, solved, upper=True)
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
    dual = whitened.shape[1] <= whitened.shape[0]
    # (λI + YᵀY)⁻¹Yᵀ = Yᵀ(λI + YYᵀ)⁻¹: the smaller of the two systems is solved.
    system = whitened.T @ whitened if dual else whitened @ whitened.T
    # Duplicate requests make G singular; λ, or a trace of its own scale, keeps the solve well posed.
    energy = (whitened * whitened).sum() / whitened.shape[1]
    system.diagonal().add_(max(strength, 1e-10 * float(energy)))
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed):
        raise NumericalError("The edits' keys are not finite or coincide: drop repeated edits, or raise lambda.")
    if dual:
        right = torch.cholesky_solve(metric.inverse_times(whitened).T, factor)
    else:
        right = metric.inverse_times(torch.cholesky_solve(whitened, factor)).T
    return residuals.double(), right


def key_energy(metric: Metric, keys: Tensor) -> Tensor:
    """Diagonal of G = KᵀC⁻¹K, [n]: how far each key lies from ordinary ones (a corpus token's mean is m)."""
    whitened = metric.whiten(keys)
    return (whitened * whitened).sum(0)
