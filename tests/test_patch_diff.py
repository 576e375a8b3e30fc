"""Two patches side by side: edits, settings, and the changes of weights against dense arithmetic."""

from __future__ import annotations

import json

import pytest
import torch

import errata
from errata.patch import Dense, LowRank, Patch
from errata.patch import diff as module
from errata.testing import tiny

DOWN, UP = "model.layers.1.mlp.down_proj.weight", "model.layers.2.mlp.up_proj.weight"


def edit(subject, target) -> errata.Edit:
    return errata.Edit(prompt="{} is located in the city of", subject=subject, target_new=target)


@pytest.fixture(scope="module")
def lm():
    return errata.load(tiny("llama"), device="cpu")


def factors(lm, name, rank, seed):
    d, m = lm.model.get_parameter(name).shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d, rank, generator=generator), torch.randn(rank, m, generator=generator)


def low(lm, name, rank=2, seed=0):
    return LowRank(name, *factors(lm, name, rank, seed))


def turned(update):
    """The same change of the same stored numbers, of a layer that stores its weight as (d_in, d_out)."""
    return LowRank(update.parameter, update.right.T, update.left.T, True)


def make(lm, updates, edits=(), config=None, method="memit", **more):
    return Patch.create(lm, updates, method=method, config=config or {}, edits=list(edits), **more)


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def test_edits_fall_into_four_heaps(lm):
    a = make(lm, [low(lm, DOWN)], [edit("A", "Rome"), edit("B", "Rome"), edit("C", "Rome")])
    b = make(lm, [low(lm, DOWN, seed=1)], [edit("b", "Rome"), edit("C", "Oslo"), edit("D", "Rome")])
    found = a.diff(b)
    assert found.only_a == (edit("A", "Rome"),)
    assert found.only_b == (edit("D", "Rome"),)
    assert found.both == (edit("B", "Rome"),)
    assert found.changed == ((edit("C", "Rome"), edit("C", "Oslo")),)
    assert found.stackable
    assert "different answers to the same question" in found.stacking


def test_settings_that_differ_are_named_and_no_others(lm):
    a = make(lm, [low(lm, DOWN)], config={"layers": [1], "steps": 20}, seeds={"contexts": 0})
    b = make(lm, [low(lm, DOWN)], config={"layers": [1, 2], "steps": 20, "memory": True}, method="alphaedit")
    told = {setting.name: (setting.a, setting.b) for setting in a.diff(b).settings}
    assert told == {
        "method": ("memit", "alphaedit"),
        "config.layers": ([1], [1, 2]),
        "config.memory": (None, True),
        "seeds.contexts": (0, None),
    }
    assert a.diff(a).settings == ()


@pytest.mark.parametrize("kinds", ["low low", "low dense", "dense low", "dense dense", "turned turned"])
def test_norms_and_cosines_are_those_of_the_dense_changes(lm, kinds):
    ours, theirs = low(lm, DOWN, 3, 1), low(lm, DOWN, 2, 2)
    whole = ours.delta() + 0.5 * theirs.delta()  # related, so that the cosine is none of a coincidence
    half = LowRank(DOWN, 0.5 * theirs.left, theirs.right)
    first, second = kinds.split()
    a = {"low": [ours, half], "dense": [Dense(DOWN, whole)], "turned": [turned(ours), turned(half)]}[first]
    b = {"low": [theirs], "dense": [Dense(DOWN, theirs.delta())], "turned": [turned(theirs)]}[second]
    (weight,) = make(lm, a).diff(make(lm, b)).weights
    assert weight.norm_a == pytest.approx(float(whole.norm()), rel=1e-5)
    assert weight.norm_b == pytest.approx(float(theirs.delta().norm()), rel=1e-5)
    assert weight.cosine == pytest.approx(cosine(whole, theirs.delta()), abs=1e-6)
    assert (weight.overlap is None) == ("dense" in kinds)


def test_the_row_space_is_that_of_the_keys_also_where_the_weight_is_stored_turned(lm):
    a, b = low(lm, DOWN, 3, 1), low(lm, DOWN, 2, 2)
    plain, other = (make(lm, [x]).diff(make(lm, [y])).weights[0] for x, y in ((a, b), (turned(a), turned(b))))
    assert plain.overlap == pytest.approx(spanned(a.right, b.right), abs=1e-6)
    assert other.overlap == pytest.approx(spanned(a.left.T, b.left.T), abs=1e-6)


def spanned(rows, others):
    one, two = (torch.linalg.qr(matrix.double().T).Q for matrix in (rows, others))
    return float((one.T @ two).norm() ** 2) / min(one.shape[1], two.shape[1])


def test_low_rank_changes_are_compared_without_a_dense_matrix(lm, monkeypatch):
    a, b = make(lm, [low(lm, DOWN)]), make(lm, [low(lm, DOWN, seed=1)])
    monkeypatch.setattr(LowRank, "delta", lambda self: pytest.fail("built the full matrix"))
    (weight,) = a.diff(b).weights
    assert (weight.rank_a, weight.rank_b) == (2, 2)


def test_row_spaces_overlap_as_the_principal_angles_say(lm):
    d, m = lm.model.get_parameter(DOWN).shape
    eye, left = torch.eye(m), torch.randn(d, 2, generator=torch.Generator().manual_seed(3))
    same = [LowRank(DOWN, left, eye[:2])], [LowRank(DOWN, left @ torch.tensor([[1.0, 2.0], [0.0, 1.0]]), eye[:2])]
    apart = [LowRank(DOWN, left, eye[:2])], [LowRank(DOWN, left, eye[2:4])]
    inside = [LowRank(DOWN, left[:, :1], eye[:1])], [LowRank(DOWN, left, eye[:2])]
    slanted = [LowRank(DOWN, left[:, :1], eye[:1])], [LowRank(DOWN, left[:, :1], eye[:1] + eye[1:2])]
    overlaps = [make(lm, a).diff(make(lm, b)).weights[0].overlap for a, b in (same, apart, inside, slanted)]
    assert overlaps == pytest.approx([1.0, 0.0, 1.0, 0.5], abs=1e-6)
    # One term written twice has rank one, whatever its factors' size.
    double = make(lm, [LowRank(DOWN, left[:, :1], eye[:1]), LowRank(DOWN, left[:, :1], eye[:1])])
    assert double.diff(double).weights[0].rank_a == 1


def test_weights_that_one_patch_leaves_alone_have_a_norm_only(lm):
    down, up = make(lm, [low(lm, DOWN)]).diff(make(lm, [low(lm, UP)])).weights
    assert (down.parameter, up.parameter) == (DOWN, UP)
    assert down.norm_a > 0 == down.norm_b
    assert down.cosine is down.overlap is down.rank_b is None
    zero = make(lm, [LowRank(DOWN, torch.zeros(lm.model.get_parameter(DOWN).shape[0], 1), factors(lm, DOWN, 1, 0)[1])])
    (weight,) = zero.diff(make(lm, [low(lm, DOWN)])).weights
    assert (weight.norm_a, weight.rank_a, weight.cosine, weight.overlap) == (0.0, 0, None, None)


def test_what_can_be_stacked(lm):
    a = make(lm, [low(lm, DOWN)])
    twin = make(lm, [low(lm, DOWN)])
    assert a.diff(twin).same_updates
    assert not a.diff(twin).stackable
    assert "one patch" in a.diff(twin).stacking
    other = make(lm, [low(lm, DOWN, seed=1)])
    assert a.diff(other).stackable
    a.apply(lm)
    later = make(lm, [low(lm, DOWN, seed=2)])
    other.apply(lm)  # as the comparison says
    other.revert(lm)
    a.revert(lm)
    assert not a.diff(later).same_base
    assert "different weights" in a.diff(later).stacking
    assert "base.fingerprint" in {setting.name for setting in a.diff(later).settings}


def test_patches_of_models_of_different_sizes_have_norms_and_no_cosine(lm):
    other = errata.load(tiny("llama", hidden_size=48), device="cpu")
    (weight,) = make(lm, [low(lm, DOWN)]).diff(make(other, [low(other, DOWN)])).weights
    assert weight.norm_a > 0 < weight.norm_b
    assert weight.cosine is weight.overlap is None


def test_a_comparison_is_plain_json(lm):
    told = make(lm, [low(lm, DOWN)], [edit("A", "Rome")]).diff(make(lm, [low(lm, UP)], [edit("A", "Oslo")])).to_dict()
    told = json.loads(json.dumps(told))
    assert told["edits"]["changed"][0]["b"]["target_new"] == "Oslo"
    assert told["stackable"] is True
    assert [weight["parameter"] for weight in told["weights"]] == [DOWN, UP]
    assert module.PatchDiff is errata.patch.PatchDiff
