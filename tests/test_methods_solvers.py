"""The solvers equal the papers' formulas solved densely, and keep every invariant that follows from them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.errors import NumericalError
from errata.methods.locate_then_edit.keys import context_weights
from errata.methods.locate_then_edit.rome import solve_value
from errata.methods.locate_then_edit.solvers import Metric, key_energy, rank_one, ridge
from reference.plain_solve import plain_memit, plain_rome
from reference.samples import one_sentence

many = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10**6)
widths = st.integers(2, 12)
counts = st.integers(1, 6)
strengths = st.floats(1e-3, 1e3)


class Problem:
    """Random C (positive definite, uneven), W, keys K and residuals R in float64."""

    def __init__(self, seed, m, d=None, n=1):
        self.generator = torch.Generator().manual_seed(seed)
        self.m, self.d = m, d or max(1, m - 1)
        sample = self.randn(self.m, 3 * self.m) * torch.logspace(-1, 1, self.m, dtype=torch.float64)[:, None]
        self.C = sample @ sample.T / sample.shape[1]
        self.W, self.K, self.R = self.randn(self.d, self.m), self.randn(self.m, n), self.randn(self.d, n)

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    @property
    def metric(self):
        return Metric.of(self.C, ridge=0.0)

    @property
    def key(self):
        return self.K[:, 0]

    @property
    def residual(self):
        return self.R[:, 0]


def change(factors):
    left, right = factors
    return left @ right


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def side_effect(delta, C):
    """tr(Δ C Δᵀ): the mean squared change of what ordinary keys give."""
    return float(torch.trace(delta @ C @ delta.T))


# --- the metric -----------------------------------------------------------------------------------------------------


@many
@given(seeds, widths, counts)
def test_the_metric_is_the_inverse_of_c(seed, m, n):
    p = Problem(seed, m, n=n)
    whitened = p.metric.whiten(p.K)
    torch.testing.assert_close(whitened.T @ whitened, p.K.T @ torch.linalg.inv(p.C) @ p.K, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(p.metric.inverse_times(whitened), torch.linalg.inv(p.C) @ p.K, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(
        key_energy(p.metric, p.K), (p.K * (torch.linalg.inv(p.C) @ p.K)).sum(0), rtol=1e-7, atol=0
    )


@many
@given(seeds, widths)
def test_the_ridge_is_relative_to_the_mean_diagonal(seed, m):
    p = Problem(seed, m)
    factor = Metric.of(p.C, ridge=0.01).factor
    torch.testing.assert_close(factor @ factor.T, p.C + 0.01 * torch.trace(p.C) / m * torch.eye(m, dtype=torch.float64))


@many
@given(seeds, st.integers(3, 12), st.integers(0, 2))
def test_a_singular_c_is_handled(seed, m, rank):
    p = Problem(seed, m)
    few = p.randn(m, rank + 1).float()
    left, right = rank_one(Metric.of(few @ few.T), p.key, p.residual)
    assert left.isfinite().all()
    torch.testing.assert_close(change((left, right)) @ p.key, p.residual, rtol=1e-4, atol=1e-5)


def test_the_ridge_grows_where_rounding_left_c_indefinite():
    C = torch.eye(5)
    C[0, 0] = -2e-3  # as float32 sums may
    with pytest.raises(RuntimeError):
        torch.linalg.cholesky(C + 1e-4 * C.diagonal().mean() * torch.eye(5))
    assert Metric.of(C).factor.isfinite().all()


@pytest.mark.parametrize(
    "C", [-torch.eye(4), torch.zeros(4, 4), torch.full((4, 4), torch.nan)], ids=["negative", "zero", "nan"]
)
def test_what_is_no_second_moment_is_refused(C):
    with pytest.raises(NumericalError, match="not positive definite") as error:
        Metric.of(C)
    assert one_sentence(error)


# --- rank one: ROME and R-ROME --------------------------------------------------------------------------------------


@many
@given(seeds, widths)
def test_rank_one_equals_the_plain_formula(seed, m):
    p = Problem(seed, m)
    read_at = p.randn(m)
    assert relative(change(rank_one(p.metric, p.key, p.residual)), plain_rome(p.C, p.key, p.residual)) < 1e-7
    found = change(rank_one(p.metric, p.key, p.residual, read_at=read_at))
    assert relative(found, plain_rome(p.C, p.key, p.residual, read_at)) < 1e-6


@many
@given(seeds, widths)
def test_rank_one_meets_its_value_and_leaves_orthogonal_inputs_alone(seed, m):
    p = Problem(seed, m)
    delta = change(rank_one(p.metric, p.key, p.residual))
    assert relative((p.W + delta) @ p.key, p.W @ p.key + p.residual) < 1e-9
    singular = torch.linalg.svdvals(delta)
    assert (singular[1:] < 1e-9 * singular[0]).all()
    u = torch.linalg.inv(p.C) @ p.key
    other = p.randn(m)
    other -= u * (u @ other) / (u @ u)
    assert (delta @ other).norm() < 1e-8 * delta.norm() * other.norm()


@many
@given(seeds, widths, st.floats(1e-6, 1e6))
def test_the_scale_of_c_does_not_matter(seed, m, scale):
    p = Problem(seed, m)
    once, scaled = (change(rank_one(Metric.of(c), p.key, p.residual)) for c in (p.C, scale * p.C))
    assert relative(scaled, once) < 1e-7


@many
@given(seeds, widths)
def test_no_c_is_the_identity(seed, m):
    p = Problem(seed, m)
    eye = torch.eye(m, dtype=torch.float64)
    assert relative(change(rank_one(Metric.of(None), p.key, p.residual)), plain_rome(eye, p.key, p.residual)) < 1e-10
    assert relative(change(rank_one(Metric.of(eye), p.key, p.residual)), plain_rome(eye, p.key, p.residual)) < 1e-10
    assert relative(change(ridge(Metric.of(None), p.K, p.R, 0.7)), plain_memit(eye, p.K, p.R, 0.7)) < 1e-10


@many
@given(seeds, st.integers(3, 12))
def test_rank_one_has_the_least_side_effect_of_all_that_meet_the_value(seed, m):
    p = Problem(seed, m)
    best = change(rank_one(p.metric, p.key, p.residual))
    for size in (1e-3, 1.0):
        other = size * p.randn(p.d, m)
        other -= torch.outer(other @ p.key, p.key) / (p.key @ p.key)  # keeps Δ k = r
        torch.testing.assert_close((best + other) @ p.key, p.residual, rtol=1e-6, atol=1e-8)
        assert side_effect(best + other, p.C) > side_effect(best, p.C)


@many
@given(seeds, widths)
def test_the_norm_is_bounded_from_below_with_equality_for_the_identity(seed, m):
    p = Problem(seed, m)
    bound = p.residual.norm() / p.key.norm()
    assert change(rank_one(p.metric, p.key, p.residual)).norm() >= bound * (1 - 1e-9)
    torch.testing.assert_close(change(rank_one(Metric.of(None), p.key, p.residual)).norm(), bound)


def test_a_key_of_zeros_is_refused():
    with pytest.raises(NumericalError, match="no direction") as error:
        rank_one(Metric.of(None), torch.zeros(3), torch.ones(2))
    assert one_sentence(error)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_key_that_is_not_finite_is_refused(bad):
    with pytest.raises(NumericalError):
        rank_one(Metric.of(None), torch.tensor([1.0, bad]), torch.ones(2))


def in_contexts(p, contexts=5):
    """Keys [contexts, m], outputs W k + b of a module with a bias, and a target value."""
    keys, bias = p.randn(contexts, p.m) + 2.0, p.randn(p.d)
    return keys, keys @ p.W.T + bias, bias, p.randn(p.d)


@many
@given(seeds, widths)
def test_r_rome_writes_the_target_at_the_mean_key(seed, m):
    p = Problem(seed, m)
    keys, outputs, bias, target = in_contexts(p)
    delta = change(solve_value(p.metric, keys, outputs, target, one_key=True))
    assert relative((p.W + delta) @ keys.mean(0) + bias, target) < 1e-8
    assert relative(delta, plain_rome(p.C, keys.mean(0), target - outputs.mean(0))) < 1e-7


@many
@given(seeds, widths, st.floats(0.5, 1.0))
def test_enough_of_the_shift_arrives_at_the_bare_key(seed, m, reach):
    p = Problem(seed, m)
    keys, outputs, _, target = in_contexts(p)
    keys[0] -= 4.0  # unlike the others
    metric = p.metric
    delta = change(solve_value(metric, keys, outputs, target, one_key=True, bare=0.5, reach=reach))
    direction = delta.T @ torch.ones(p.d, dtype=delta.dtype)
    weights = [context_weights(len(keys), bare=b) for b in (0.5 + 0.05 * i for i in range(11))]
    shares = []
    for w in weights:
        mean = w @ keys.double()
        spread = metric.inverse_times(metric.whiten(mean[:, None]))[:, 0]
        if relative(delta, torch.outer((target - w @ outputs) / (spread @ mean), spread)) < 1e-6:
            shares.append(float((spread @ keys[0].double()) / (spread @ mean)))
    assert direction.isfinite().all()
    assert len(shares) == 1
    assert shares[0] >= reach - 1e-9


@many
@given(seeds, widths)
def test_rome_writes_the_target_at_the_bare_key_in_the_mean_keys_direction(seed, m):
    p = Problem(seed, m)
    keys, outputs, bias, target = in_contexts(p)
    delta = change(solve_value(p.metric, keys, outputs, target, one_key=False))
    assert relative((p.W + delta) @ keys[0] + bias, target) < 1e-5
    assert relative(delta, plain_rome(p.C, keys.mean(0), target - outputs[0], read_at=keys[0])) < 1e-6


@many
@given(seeds, widths, st.integers(1, 5))
def test_rome_is_r_rome_where_all_contexts_are_bare(seed, m, contexts):
    p = Problem(seed, m)
    keys, outputs, _, target = in_contexts(p, 1)
    keys, outputs = keys.repeat(contexts, 1), outputs.repeat(contexts, 1)
    one, two = (change(solve_value(p.metric, keys, outputs, target, one_key=k)) for k in (True, False))
    assert relative(one, two) < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_rome_collapses_where_the_bare_key_is_nearly_orthogonal_and_r_rome_does_not(seed):
    p = Problem(seed, 10)
    mean = p.randn(10)
    odd, others = p.randn(10), p.randn(3, 10)

    def sizes(overlap):
        """Norms of both updates with u · k_b = overlap, the mean key and mean output held."""
        u = torch.linalg.inv(p.C) @ mean
        bare = odd + u * (overlap - u @ odd) / (u @ u)
        keys = torch.cat([bare[None], others, (5 * mean - bare - others.sum(0))[None]])
        outputs = (p.W @ mean).repeat(5, 1)
        target = p.W @ mean + torch.ones(p.d, dtype=torch.float64)
        torch.testing.assert_close(keys.mean(0), mean)
        return [float(change(solve_value(p.metric, keys, outputs, target, one_key=k)).norm()) for k in (True, False)]

    r_rome, rome = sizes(1e-6)
    healthy_r_rome, healthy_rome = sizes(float(mean @ torch.linalg.inv(p.C) @ mean))
    assert rome > 1e5 * healthy_rome
    assert r_rome == pytest.approx(healthy_r_rome, rel=1e-6)
    assert healthy_rome == pytest.approx(healthy_r_rome, rel=1e-6)


@many
@given(seeds, widths, counts)
def test_denominators_and_energies_are_positive(seed, m, n):
    p = Problem(seed, m, n=n)
    assert (key_energy(p.metric, p.K) > 0).all()
    assert (key_energy(Metric.of(p.C.float()), p.K.float()) > 0).all()


def test_the_mean_energy_of_ordinary_keys_is_their_width():
    p = Problem(0, 8)
    keys = p.randn(8, 500)
    metric = Metric.of(keys @ keys.T / 500, ridge=0.0)
    assert float(key_energy(metric, keys).mean()) == pytest.approx(8)


# --- ridge: MEMIT ---------------------------------------------------------------------------------------------------


@many
@given(seeds, widths, counts, strengths)
def test_the_dual_form_equals_the_direct_solve(seed, m, n, strength):
    p = Problem(seed, m, n=n)
    assert relative(change(ridge(p.metric, p.K, p.R, strength)), plain_memit(p.C, p.K, p.R, strength)) < 1e-6


@many
@given(seeds, st.integers(2, 6), st.integers(7, 15), strengths)
def test_more_edits_than_dimensions(seed, m, n, strength):
    p = Problem(seed, m, n=n)
    assert relative(change(ridge(p.metric, p.K, p.R, strength)), plain_memit(p.C, p.K, p.R, strength)) < 1e-6


@many
@given(seeds, widths, counts, strengths)
def test_the_objectives_gradient_vanishes(seed, m, n, strength):
    p = Problem(seed, m, n=n)
    delta = change(ridge(p.metric, p.K, p.R, strength))
    gradient = strength * delta @ p.C + (delta @ p.K - p.R) @ p.K.T
    assert gradient.norm() < 1e-6 * (p.R @ p.K.T).norm()


@many
@given(seeds, widths)
def test_one_edit_without_regularisation_is_rank_one(seed, m):
    p = Problem(seed, m)
    delta = change(ridge(p.metric, p.K, p.R, 1e-8 * float(key_energy(p.metric, p.K)[0])))
    assert relative(delta, change(rank_one(p.metric, p.key, p.residual))) < 1e-4
    assert relative(delta @ p.key, p.residual) < 1e-4


@many
@given(seeds, widths, counts)
def test_no_regularisation_meets_all_values_where_it_can(seed, m, n):
    n = min(n, m)
    p = Problem(seed, m, n=n)
    if torch.linalg.cond(p.K) < 1e3:
        assert relative(change(ridge(p.metric, p.K, p.R, 0.0)) @ p.K, p.R) < 1e-2


@many
@given(seeds, widths, strengths)
def test_one_edit_is_written_to_the_share_that_its_energy_says(seed, m, strength):
    p = Problem(seed, m)
    energy = float(key_energy(p.metric, p.K)[0])
    torch.testing.assert_close(
        change(ridge(p.metric, p.K, p.R, strength)) @ p.key, p.residual * energy / (strength + energy)
    )


@many
@given(seeds, widths, counts, strengths)
def test_rank_and_row_space(seed, m, n, strength):
    p = Problem(seed, m, n=n)
    left, right = ridge(p.metric, p.K, p.R, strength)
    assert (left.shape, right.shape) == ((p.d, n), (n, m))
    span, _ = torch.linalg.qr(torch.linalg.inv(p.C) @ p.K)
    assert (right - right @ span @ span.T).norm() < 1e-6 * right.norm()


@many
@given(seeds, widths, strengths, st.integers(2, 5))
def test_a_repeated_edit_is_one_with_less_regularisation(seed, m, strength, times):
    p = Problem(seed, m)
    repeated = change(ridge(p.metric, p.K.repeat(1, times), p.R.repeat(1, times), strength))
    assert relative(repeated, change(ridge(p.metric, p.K, p.R, strength / times))) < 1e-7


@many
@given(seeds, widths)
def test_repeated_edits_without_regularisation_do_not_fail(seed, m):
    p = Problem(seed, m)
    repeated = change(ridge(p.metric, p.K.repeat(1, 3), p.R.repeat(1, 3), 0.0))
    assert relative(repeated @ p.key, p.residual) < 1e-4


@many
@given(seeds, widths, counts, strengths)
def test_more_regularisation_writes_less_and_moves_less(seed, m, n, strength):
    p = Problem(seed, m, n=n)
    deltas = [change(ridge(p.metric, p.K, p.R, strength * factor)) for factor in (1, 3, 9, 27)]
    missed = [float((delta @ p.K - p.R).norm()) for delta in deltas]
    moved = [side_effect(delta, p.C) for delta in deltas]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(missed))
    assert all(a >= b * (1 - 1e-9) for a, b in itertools.pairwise(moved))


@many
@given(seeds, widths, counts, strengths)
def test_the_order_of_the_edits_does_not_matter(seed, m, n, strength):
    p = Problem(seed, m, n=n)
    order = torch.randperm(n, generator=p.generator)
    one, two = (change(ridge(p.metric, k, r, strength)) for k, r in ((p.K, p.R), (p.K[:, order], p.R[:, order])))
    assert relative(two, one) < 1e-6


@many
@given(seeds, widths, counts, strengths, st.floats(1e-3, 1e3))
def test_scaling_c_is_scaling_lambda(seed, m, n, strength, scale):
    p = Problem(seed, m, n=n)
    scaled = change(ridge(Metric.of(scale * p.C, ridge=0.0), p.K, p.R, strength / scale))
    assert relative(scaled, change(ridge(p.metric, p.K, p.R, strength))) < 1e-6


def test_single_precision_keys_are_solved_in_double():
    p = Problem(1, 8, n=4)
    left, right = ridge(Metric.of(p.C.float(), ridge=0.0), p.K.float(), p.R.float(), 0.5)
    assert left.dtype == right.dtype == torch.float64
    expected = plain_memit(p.C.float().double(), p.K.float(), p.R.float(), 0.5)
    assert relative(left @ right, expected) < 1e-9


@pytest.mark.parametrize("bad", [0.0, torch.nan])
def test_keys_without_direction_are_refused(bad):
    with pytest.raises(NumericalError, match="not finite or coincide") as error:
        ridge(Metric.of(None), torch.full((4, 2), bad), torch.ones(3, 2), 0.0)
    assert one_sentence(error)


# --- weights of contexts --------------------------------------------------------------------------------------------


def test_context_weights():
    assert context_weights(6, bare=0.5).tolist() == pytest.approx([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert context_weights(4, bare=0.25).tolist() == pytest.approx([0.25] * 4)
    assert context_weights(1, bare=0.5).tolist() == [1.0]
