"""EMMET, AlphaEdit and the guards of sequential editing: the cards' identities, and what they do on tiny models."""

from __future__ import annotations

import math

import pytest
import torch

import errata
from errata.errors import ConfigError, FingerprintMismatch, PatchError, RequestError
from errata.lm import load
from errata.methods import get_method
from errata.methods.locate_then_edit.guards import anchored, cap_spectrum, keep_largest
from errata.methods.locate_then_edit.rewrites import tokenise
from errata.methods.locate_then_edit.sequence import compact, earlier_keys
from errata.methods.locate_then_edit.solvers import Metric, key_energy, ridge
from errata.methods.locate_then_edit.steps import NormalisedSteps
from errata.methods.locate_then_edit.values import optimise_values
from errata.patch import Patch, applied_patches
from errata.statistics import null_space
from errata.testing import tiny
from reference.samples import EDITS, LATE

FAMILY = ("memit", "emmet", "pmet", "alphaedit")
OPTIONS = {
    "steps": 4, "learning_rate": 0.2, "weight_decay": 0.0, "kl_weight": 0.0, "clamp": 20.0, "contexts": 2,
    "corpus": "identity", "layers": (0, 1), "preservation": 0.05, "precision": "float32",
}  # fmt: skip


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(m, rank=None, seed=1):
    sample = numbers(m, 4 * m, seed=seed) * torch.logspace(0, -2, m, dtype=torch.float64)[:, None]
    if rank is not None:
        sample[rank:] = 0
    turn = torch.linalg.qr(numbers(m, m, seed=seed + 1)).Q
    return turn @ (sample @ sample.T / sample.shape[1]) @ turn.T


def change(factors):
    return factors[0] @ factors[1]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


# --- solvers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 40])
@pytest.mark.parametrize("strength", [0.1, 3.0])
def test_memory_equals_the_dense_solve_with_the_earlier_keys_inside(n, strength):
    m, d = 24, 7
    C, K, old, R = moment(m), numbers(m, n, seed=3), numbers(m, 11, seed=4), numbers(d, n, seed=5)
    metric = Metric.of(C, ridge=0.0).remembering(old, strength)
    expected = R @ torch.linalg.solve(strength * C + old @ old.T + K @ K.T, K).T
    assert relative(change(ridge(metric, K, R, strength)), expected) < 1e-9


def test_memories_add_up_whatever_their_order():
    C, first, second = moment(16), numbers(16, 3, seed=6), numbers(16, 5, seed=7)
    K, R = numbers(16, 4, seed=8), numbers(5, 4, seed=9)
    metric = Metric.of(C)
    one = metric.remembering(first, 0.3).remembering(second, 0.3)
    two = metric.remembering(torch.cat([second, first], dim=1), 0.3)
    assert relative(change(ridge(one, K, R, 0.3)), change(ridge(two, K, R, 0.3))) < 1e-9


@pytest.mark.parametrize(("n", "old"), [(3, 0), (3, 9), (30, 9)])
def test_alphaedit_equals_the_published_solve(n, old):
    m, d, l2 = 20, 6, 0.7
    C, K, Kp, R = moment(m), numbers(m, n, seed=3), numbers(m, old, seed=4), numbers(d, n, seed=5)
    basis = null_space(C, protected=0.9)
    P = basis @ basis.T
    X = torch.linalg.solve(P @ (K @ K.T + Kp @ Kp.T) + l2 * torch.eye(m, dtype=torch.float64), P @ K @ R.T)
    metric = Metric(None, basis=basis).remembering(Kp, l2)
    found = change(ridge(metric, K, R, l2))
    assert relative(found, X.T) < 1e-9
    assert relative(found @ P, found) < 1e-9


def test_alphaedit_leaves_protected_keys_alone():
    m, d = 20, 6
    C = moment(m, rank=8)
    values, vectors = torch.linalg.eigh(C)
    protected = vectors[:, values > 1e-9]
    metric = Metric(None, basis=null_space(C, threshold=1e-9))
    delta = change(ridge(metric, numbers(m, 5), numbers(d, 5, seed=2), 0.1))
    assert float((delta @ protected).norm()) < 1e-10 * float(delta.norm())
    assert float(delta.norm()) > 0


@pytest.mark.parametrize("protected", [0.5, 0.9, 0.99])
def test_the_null_space_holds_what_the_protected_share_leaves(protected):
    C = moment(30)
    basis = null_space(C, protected=protected)
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-10)
    left = float(torch.trace(basis.T @ C @ basis) / torch.trace(C))
    assert left <= 1 - protected
    worst = float(torch.linalg.eigvalsh(basis.T @ C @ basis).max())
    delta = numbers(4, 30) @ basis @ basis.T
    assert float(torch.trace(delta @ C @ delta.T)) <= worst * float(delta.norm() ** 2) * (1 + 1e-9)


def test_a_null_space_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="No direction is left"):
        null_space(torch.eye(4), threshold=1e-3)


def test_without_protection_alphaedit_is_memit_with_the_identity():
    K, R = numbers(12, 4), numbers(5, 4, seed=2)
    whole = Metric(None, basis=torch.eye(12, dtype=torch.float64))
    assert relative(change(ridge(whole, K, R, 0.4)), change(ridge(Metric(None), K, R, 0.4))) < 1e-12


def test_emmet_is_memits_limit_and_with_a_ridge_memit():
    m, n, lam, eps = 24, 6, 50.0, 0.1
    C, K, R = moment(m), numbers(m, n, seed=3), numbers(5, n, seed=4)
    inverse = torch.linalg.inv(lam * C)
    D = K.T @ inverse @ K
    metric = Metric.of(C, ridge=0.0)
    exact = R @ torch.linalg.inv(D) @ K.T @ inverse
    found = change(ridge(metric, K, R, 0.0))
    assert relative(found, exact) < 1e-6
    assert relative(found @ K, R) < 1e-6
    released = R @ torch.linalg.inv(D + eps * torch.eye(n, dtype=torch.float64)) @ K.T @ inverse
    assert relative(change(ridge(metric, K, R, lam * eps)), released) < 1e-9


def test_remembered_keys_move_less_the_less_regularisation_there_is():
    C, old, K, R = moment(24), numbers(24, 4, seed=5), numbers(24, 3, seed=6), numbers(5, 3, seed=7)
    basis = null_space(C, protected=0.5)
    moved = [
        float((change(ridge(Metric(None, basis=basis).remembering(old, l2), K, R, l2)) @ old).norm())
        for l2 in (1.0, 1e-2, 1e-4)
    ]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-3 * moved[0]


def test_compact_keys_have_the_same_gram_matrix():
    keys = numbers(6, 40)
    small = compact(keys)
    assert small.shape == (6, 6)
    assert torch.allclose(small @ small.T, keys @ keys.T)
    assert compact(keys[:, :6]).shape == (6, 6)


# --- guards ---------------------------------------------------------------------------------------------------------


def test_prune_caps_large_singular_values_and_leaves_the_others():
    weight = numbers(8, 12)
    top = float(torch.linalg.matrix_norm(weight, ord=2))
    left, right = torch.linalg.qr(numbers(8, 8, seed=3)).Q, torch.linalg.qr(numbers(12, 8, seed=4)).Q
    values = torch.tensor([30.0 * top, 2.0 * top, 0.5 * top, *[0.1] * 5], dtype=torch.float64)
    capped = cap_spectrum(left @ torch.diag(values) @ right.T, weight)
    found = torch.linalg.svdvals(capped)
    expected = torch.tensor([top + math.log(30.0), top + math.log(2.0)], dtype=torch.float64)
    assert torch.allclose(found[:2], expected)
    assert torch.allclose(found[2:], values[2:])
    small = 0.01 * numbers(8, 12, seed=5)
    assert torch.allclose(cap_spectrum(small, weight), small)


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_rect_keeps_the_relatively_largest_entries(share):
    delta, weight = numbers(7, 9), numbers(7, 9, seed=2)
    kept = keep_largest(delta, weight, share)
    chosen = kept != 0
    assert int(chosen.sum()) == math.ceil(share * 63)
    assert torch.equal(kept[chosen], delta[chosen])
    size = (delta / weight).abs()
    if share < 1:
        assert float(size[chosen].min()) >= float(size[~chosen].max())


def test_anchored_targets_have_one_norm_or_are_given_up():
    targets = torch.tensor([[3.0, 4.0], [0.0, 1.0], [30.0, 40.0]])
    start = torch.ones(3, 2)
    found = anchored(targets, start, 5.0)
    assert torch.allclose(found[:2], torch.tensor([[3.0, 4.0], [0.0, 5.0]]))
    assert torch.equal(found[2], start[2])


# --- on models ------------------------------------------------------------------------------------------------------


def deltas(patch):
    return {update.parameter: update.delta().double() for update in patch.updates}


def assert_same(one, two, tolerance=1e-4):
    a, b = deltas(one), deltas(two)
    assert list(a) == list(b)
    for name in a:
        assert relative(a[name], b[name]) < tolerance


@pytest.mark.parametrize("method", FAMILY)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_removing_an_edit_equals_never_having_made_it(family, method, tmp_path, monkeypatch):
    lm = load(tiny(family))
    patch = errata.edit(lm, EDITS, method=method, config=OPTIONS)
    patch.save_pretrained(tmp_path / "patch")
    again = Patch.from_pretrained(tmp_path / "patch")
    rest = [edit for edit in EDITS if edit is not EDITS[1]]
    fresh = errata.edit(lm, rest, method=method, config=OPTIONS)
    was = lm.fingerprint()
    with monkeypatch.context() as patched:
        # Nothing is searched again: the values are in the patch.
        patched.setattr(NormalisedSteps, "step", lambda *_: pytest.fail("a value was optimised again"))
        left = again.without(EDITS[1].edit_id, lm=lm)
    assert left.edits == rest
    assert_same(left, fresh)
    assert lm.fingerprint() == was
    assert_same(left.with_edits([EDITS[1]], lm=lm), errata.edit(lm, [*rest, EDITS[1]], method=method, config=OPTIONS))


def test_an_edit_is_removed_from_a_patch_that_is_on():
    lm = load(tiny("llama"))
    bare = lm.fingerprint()
    patch = errata.edit(lm, EDITS, method="memit", config=OPTIONS)
    expected = patch.without(EDITS[0], lm=lm)
    patch.apply(lm)
    on = lm.fingerprint()
    assert_same(patch.without(EDITS[0], lm=lm), expected, 1e-6)
    assert lm.fingerprint() == on
    other = errata.edit(lm, LATE[:1], method="memit", config=OPTIONS)
    other.apply(lm)
    with pytest.raises(PatchError, match="after this one"):
        patch.without(EDITS[0], lm=lm)
    other.revert(lm)
    patch.revert(lm)
    assert lm.fingerprint() == bare


@pytest.mark.parametrize("method", ["r-rome", "rome"])
def test_methods_without_kept_values_solve_anew(method):
    lm = load(tiny("llama"))
    config = {k: v for k, v in OPTIONS.items() if k not in ("layers", "preservation")} | {"layer": 1}
    patch = errata.edit(lm, EDITS[:3], method=method, config=config)
    fresh = errata.edit(lm, [EDITS[0], EDITS[2]], method=method, config=config)
    left = patch.without(EDITS[1], lm=lm)
    assert [u.parameter for u in left.updates] == [u.parameter for u in fresh.updates]
    for a, b in zip(left.updates, fresh.updates, strict=True):
        assert relative(a.delta(), b.delta()) < 1e-4


def test_what_cannot_be_removed_or_added():
    lm = load(tiny("llama"))
    patch = errata.edit(lm, EDITS[:2], method="memit", config=OPTIONS)
    with pytest.raises(PatchError, match="holds no edit"):
        patch.without("00000000", lm=lm)
    with pytest.raises(PatchError, match="No edit would be left"):
        patch.without(*EDITS[:2], lm=lm)
    with pytest.raises(FingerprintMismatch, match="other weights"):
        patch.without(EDITS[0], lm=load(tiny("gpt2")))
    contrary = errata.Edit(prompt=EDITS[0].prompt, subject=EDITS[0].subject, target_new="otherwise")
    with pytest.raises(RequestError, match="contradict"):
        patch.with_edits([contrary], lm=lm)


def in_steps(lm, config, method, steps):
    patches = []
    for edits in steps:
        patches.append(errata.edit(lm, edits, method=method, config=config))
        patches[-1].apply(lm)
    return patches


@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_memory_leaves_earlier_edits_better_in_place(method):
    drift = []
    for memory in (False, True):
        lm = load(tiny("llama"))
        config = {**OPTIONS, "layers": (1,), "memory": memory, "preservation": 1e-3, "contexts": 0}
        in_steps(lm, config, method, [EDITS[:2], EDITS[2:4]])
        first, second = applied_patches(lm)
        keys = first.state["keys.1"].double()
        delta = second.updates[0].delta().double()
        drift.append(float((delta @ keys).norm()))
        assert earlier_keys(lm, 1, keys).shape[1] == 4
    assert drift[1] < 0.2 * drift[0]


@pytest.mark.parametrize("options", [{"memory": True}, {"anchor": True, "memory": True}])
def test_a_sequence_read_back_from_disk_goes_on_as_if_uninterrupted(options, tmp_path):
    config = {**OPTIONS, **options}
    whole = in_steps(load(tiny("llama")), config, "memit", [EDITS[:2], EDITS[2:4]])
    whole[0].save_pretrained(tmp_path / "first")
    lm = load(tiny("llama"))
    Patch.from_pretrained(tmp_path / "first").apply(lm)
    resumed = errata.edit(lm, EDITS[2:4], method="memit", config=config)
    assert resumed.digest == whole[1].digest


def test_the_anchor_is_the_first_steps_and_holds_for_all():
    lm = load(tiny("llama"))
    config = {**OPTIONS, "anchor": True, "layers": (1,), "contexts": 0, "preservation": 1e-6}
    first, second = in_steps(lm, config, "memit", [EDITS[:1], EDITS[1:2]])
    assert first.state["anchor"].item() == pytest.approx(second.state["anchor"].item())
    assert first.card.config["anchor"] is True


def test_rect_writes_only_its_share():
    lm = load(tiny("gpt2"))
    patch = errata.edit(lm, EDITS, method="memit", config={**OPTIONS, "keep_share": 0.25})
    for update in patch.updates:
        changed = update.delta() != 0
        assert int(changed.sum()) == math.ceil(0.25 * changed.numel())


def test_prune_restrains_the_finished_change():
    lm = load(tiny("llama"))
    config = {
        **OPTIONS,
        "layers": (1,),
        "clamp": 400.0,
        "steps": 25,
        "optimiser": "adam",
        "learning_rate": 5.0,
        "preservation": 1e-4,
    }
    free = errata.edit(lm, EDITS, method="memit", config=config)
    held = errata.edit(lm, EDITS, method="memit", config={**config, "prune": True})
    (name,) = deltas(free)
    expected = cap_spectrum(deltas(free)[name], lm.weight(1).double())
    assert relative(deltas(held)[name], expected) < 1e-5
    assert relative(deltas(held)[name], deltas(free)[name]) > 0.01
    assert tuple(held.edits) == EDITS
    assert_same(
        held.without(EDITS[0], lm=lm), errata.edit(lm, EDITS[1:], method="memit", config={**config, "prune": True})
    )


def test_blue_writes_the_ends_with_targets_of_their_own():
    lm = load(tiny("llama", layers=5))
    config = {**OPTIONS, "layers": (0, 1, 2, 3), "ends_only": True, "spread": "direct"}
    patch = errata.edit(lm, EDITS, method="memit", config=config)
    assert [u.parameter for u in patch.updates] == [lm.weight_name(0), lm.weight_name(3)]
    alone = errata.edit(lm, EDITS, method="memit", config={**OPTIONS, "layers": (0,)})
    assert relative(patch.updates[0].delta(), alone.updates[0].delta()) < 1e-5


def pmet_by_hand(lm, rewrite, layer, settings):
    """PMET's search for one edit: every row alone, hooks on both outputs, Adam; its shift of the MLP's output."""
    block = lm.layer(layer)
    modules = [lm.model.get_submodule(path) for path in (block.out_projection, block.attention_output)]
    shifts = None

    def passing(row):
        seen = [None, None]

        def hook(part):
            def add(_, __, out):
                shaped = out.reshape(1, -1, out.shape[-1]).clone()
                seen[part] = shaped[0, row.lookup].detach()
                if shifts is not None:
                    shaped[0, row.lookup] += shifts[part]
                return shaped.view_as(out)

            return add

        handles = [module.register_forward_hook(hook(part)) for part, module in enumerate(modules)]
        logs = lm.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        return logs, seen

    with torch.no_grad():
        starts = passing(rewrite.prompts[0])[1]
        reference = passing(rewrite.essence)[0][rewrite.essence.lookup]
    shifts = [torch.zeros_like(start, requires_grad=True) for start in starts]
    adam = torch.optim.Adam(shifts, lr=settings.learning_rate)
    for _ in range(settings.steps - 1):
        nll = 0
        for row, prompt in zip(rewrite.training_rows(), rewrite.prompts, strict=True):
            logs = passing(row)[0]
            places = [len(prompt.ids) - 1 + j for j in range(len(rewrite.target))]
            nll = nll - logs[places, list(rewrite.target)].mean() / len(rewrite.prompts)
        now = passing(rewrite.essence)[0][rewrite.essence.lookup]
        kl = (now.exp() * (now - reference)).sum()
        decay = sum(shift.norm() / start.norm() ** 2 for shift, start in zip(shifts, starts, strict=True))
        loss = nll + settings.kl_weight * kl + settings.weight_decay * decay
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for shift, start in zip(shifts, starts, strict=True):
                limit = settings.clamp * start.norm()
                shift *= min(1.0, float(limit / shift.norm()))
    return shifts[0].detach()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2"])
def test_pmets_values_equal_a_plain_search_with_hooks_on_both_outputs(family):
    lm = load(tiny(family))
    options = {**OPTIONS, "optimiser": "adam", "clamp": 1.5, "weight_decay": 0.5, "kl_weight": 0.5, "stop_loss": 0.0}
    config = get_method("pmet").configure(options)
    rewrites = tokenise(lm, EDITS, ("", "The river is wide. "))
    found = optimise_values(lm, rewrites, 1, config.value_settings(), site="mlp and attention")
    lm.model.requires_grad_(False)
    for i, rewrite in enumerate(rewrites):
        assert relative(found.delta[i], pmet_by_hand(lm, rewrite, 1, config.value_settings())) < 1e-3
    assert (found.delta.norm(dim=-1) <= 1.5 * found.start.norm(dim=-1) * (1 + 1e-5)).all()


def test_pmet_writes_mlps_only():
    lm = load(tiny("llama"))
    patch = errata.edit(lm, EDITS, method="pmet", config=OPTIONS)
    assert [update.parameter for update in patch.updates] == [lm.weight_name(0), lm.weight_name(1)]
    assert all(update.rank <= len(EDITS) for update in patch.updates)


def test_a_penalty_on_the_weights_makes_smaller_changes():
    lm = load(tiny("llama"))
    norms = []
    for penalty in (0.0, 1.0, 10.0):
        config = {**OPTIONS, "corpus": "self", "corpus_tokens": 400, "weight_penalty": penalty}
        patch = errata.edit(lm, EDITS, method="memit", config=config)
        norms.append(sum(update.norm**2 for update in patch.updates))
    assert norms == sorted(norms, reverse=True)


def test_many_edits_are_stored_dense():
    lm = load(tiny("llama"))
    d, m = lm.weight(1).shape
    edits = [
        errata.Edit(prompt="{} is found in", subject=f"The {a} {b}", target_new="Rome")
        for a in ("old", "new", "red", "green", "tall", "small", "wide", "round")
        for b in ("tower", "house", "river", "bridge", "garden", "market", "harbour", "road")
    ][: d * m // (d + m) + 1]
    config = {**OPTIONS, "steps": 1, "contexts": 0, "layers": (1,)}
    patch = errata.edit(lm, edits, method="memit", config=config)
    assert patch.updates[0].kind == "dense"
    assert patch.state["keys.1"].shape[1] <= m
    assert patch.updates[0].shape == lm.model.get_parameter(lm.weight_name(1)).shape


def test_the_defaults_of_the_family():
    assert get_method("emmet").configure().span == 1
    assert get_method("alphaedit").configure().memory is True
    assert get_method("memit").configure().memory is False
    lm = load(tiny("llama"))
    K = torch.eye(lm.weight(1).shape[1], 3)
    assert torch.allclose(key_energy(Metric(None), K), torch.ones(3, dtype=torch.float64))
