"""Patches on a model: applied in place, taken off bit for bit, in any order, or not touched at all."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from errata.errors import FingerprintMismatch, PatchError
from errata.lm.load import load
from errata.patch import Dense, LowRank, Patch, applied_patches, base_fingerprint, is_applied, stack
from errata.records import Edit
from errata.testing import FAMILIES, tiny

EDIT = Edit(prompt="{} is the capital of", subject="Paris", target_new="Italy")
DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.2.mlp.up_proj.weight"


def snapshot(lm) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}


def same(lm, weights) -> bool:
    now = dict(lm.model.named_parameters())
    return now.keys() == weights.keys() and all(torch.equal(now[name], weights[name]) for name in weights)


def inner_matrices(lm) -> list[str]:
    """The matrices inside the blocks: what methods edit."""
    blocks = {module for module in lm.model.modules() if isinstance(module, torch.nn.ModuleList)}
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    return [name for name, w in lm.model.named_parameters() if w.ndim == 2 and id(w) in inside]


def make_patch(lm, *names, seed=0, scale=0.3, kind="low-rank", method="rome") -> Patch:
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for name in names:
        weight = lm.model.get_parameter(name)
        turned = type(lm.model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
        d_out, d_in = weight.shape[::-1] if turned else weight.shape
        if kind == "dense":
            updates.append(Dense(name, scale * torch.randn(weight.shape, generator=generator)))
        else:
            left = scale * torch.randn(d_out, 2, generator=generator)
            updates.append(LowRank(name, left, torch.randn(2, d_in, generator=generator), turned))
    return Patch.create(lm, updates, method=method, config={}, edits=[EDIT])


def logits(lm):
    with torch.no_grad():
        return lm.model(**lm.tokenizer("Paris is the capital of", return_tensors="pt")).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_loaded_applied_reverted_bit_for_bit_on_every_family(family, dtype, tmp_path):
    lm = load(tiny(family, dtype=dtype, layers=2))
    names = inner_matrices(lm)
    before, unpatched, print_before = snapshot(lm), logits(lm), lm.fingerprint()
    make_patch(lm, names[0], names[-1]).save_pretrained(tmp_path / "p")
    patch = Patch.from_pretrained(tmp_path / "p")
    assert same(lm, before)
    patch.apply(lm)
    for update in patch.updates:
        expected = (before[update.parameter].float() + update.delta()).to(dtype)
        close = {} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-6}
        torch.testing.assert_close(lm.model.get_parameter(update.parameter).data, expected, **close)
        assert not torch.equal(expected, before[update.parameter])
    assert not torch.equal(logits(lm), unpatched)
    assert lm.fingerprint() != print_before
    assert base_fingerprint(lm) == print_before
    patch.revert(lm)
    assert same(lm, before)
    assert torch.equal(logits(lm), unpatched)
    assert lm.fingerprint() == print_before


def test_weights_stay_the_same_objects():
    lm = load(tiny("llama"))
    weight = lm.model.get_parameter(DOWN)
    pointer, gradient = weight.data_ptr(), weight.requires_grad
    patch = make_patch(lm, DOWN)
    patch.apply(lm)
    assert lm.model.get_parameter(DOWN) is weight
    patch.revert(lm)
    assert weight.data_ptr() == pointer
    assert weight.requires_grad == gradient


def test_updates_of_one_weight_in_a_patch_add_up():
    lm = load(tiny("llama", dtype=torch.float64))
    one, two = make_patch(lm, DOWN, seed=1), make_patch(lm, DOWN, seed=2, kind="dense")
    both = Patch.create(lm, [*one.updates, *two.updates], method="rome", config={}, edits=[EDIT])
    before = snapshot(lm)
    both.apply(lm)
    expected = before[DOWN] + (one.updates[0].delta() + two.updates[0].delta()).double()
    torch.testing.assert_close(lm.model.get_parameter(DOWN).data, expected, rtol=0, atol=1e-6)
    both.revert(lm)
    assert same(lm, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_patch_of_a_stack_comes_off(dtype):
    lm = load(tiny("llama", dtype=dtype))
    before = snapshot(lm)
    first = make_patch(lm, DOWN, seed=1)
    middle = make_patch(lm, DOWN, UP, seed=2)
    last = make_patch(lm, DOWN, seed=3, kind="dense")
    first.apply(lm)
    last.apply(lm)
    without_middle = snapshot(lm)
    last.revert(lm)
    first.revert(lm)
    assert same(lm, before)
    for patch in (first, middle, last):
        patch.apply(lm)
    assert applied_patches(lm) == (first, middle, last)
    middle.revert(lm)
    assert applied_patches(lm) == (first, last)
    assert same(lm, without_middle)
    first.revert(lm)
    last.revert(lm)
    assert applied_patches(lm) == ()
    assert same(lm, before)


def test_a_patch_made_on_top_of_another_is_accepted():
    lm = load(tiny("llama"))
    before = snapshot(lm)
    first = make_patch(lm, DOWN, seed=1)
    first.apply(lm)
    second = make_patch(lm, DOWN, seed=2)
    assert second.card.base.fingerprint != first.card.base.fingerprint
    second.apply(lm)
    second.revert(lm)
    first.revert(lm)
    with pytest.raises(FingerprintMismatch):
        second.apply(lm)
    assert same(lm, before)


def test_the_base_is_known_even_if_the_first_patch_was_not_verified():
    lm = load(tiny("llama"))
    first, second = make_patch(lm, DOWN, seed=1), make_patch(lm, UP, seed=2)
    base = lm.fingerprint()
    first.apply(lm, verify=False)
    patched = snapshot(lm)
    assert base_fingerprint(lm) == base
    assert same(lm, patched)
    second.apply(lm)


def test_verify_false_reads_no_fingerprint(monkeypatch):
    lm = load(tiny("llama"))
    patch = make_patch(lm, DOWN)

    def forbidden():
        raise AssertionError("hashed")

    monkeypatch.setattr(lm, "fingerprint", forbidden)
    with patch.applied(lm, verify=False):
        assert is_applied(lm, patch)
    with pytest.raises(AssertionError, match="hashed"):
        patch.apply(lm)


def test_another_model_is_refused_and_forced():
    lm, other = load(tiny("llama", seed=0)), load(tiny("llama", seed=1))
    patch = make_patch(lm, DOWN)
    before = snapshot(other)
    with pytest.raises(FingerprintMismatch, match="force") as caught:
        patch.apply(other)
    assert patch.card.base.fingerprint[:12] in str(caught.value)
    assert other.fingerprint()[:12] in str(caught.value)
    assert same(other, before)
    assert not is_applied(other, patch)
    patch.apply(other, force=True)
    assert not same(other, before)
    patch.revert(other)
    assert same(other, before)


def test_another_type_of_weights_is_explained():
    patch = make_patch(load(tiny("llama")), DOWN)
    with pytest.raises(FingerprintMismatch, match="load with dtype='float32'"):
        patch.apply(load(tiny("llama", dtype=torch.bfloat16)))


def test_an_error_in_the_block_restores_and_is_the_one_seen():
    lm = load(tiny("llama"))
    before, patch = snapshot(lm), make_patch(lm, DOWN)

    def spoil():
        assert not same(lm, before)
        # Even a weight spoilt inside the block must not hide the error that ended it.
        lm.model.get_parameter(DOWN).data.zero_()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), patch.applied(lm):
        spoil()
    assert same(lm, before)
    assert applied_patches(lm) == ()


def test_the_block_gives_the_model_and_restores():
    lm = load(tiny("llama"))
    before, patch = snapshot(lm), make_patch(lm, DOWN)
    with patch.applied(lm) as patched:
        assert patched is lm
        assert applied_patches(lm) == (patch,)
    assert same(lm, before)
    with patch.applied(lm):
        patch.revert(lm)
    assert same(lm, before)


def test_tied_weights_stay_tied_and_are_one_weight():
    lm = load(tiny("llama_tied"))
    before = snapshot(lm)
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    shape = tuple(lm.model.lm_head.weight.shape)
    updates = [Dense("lm_head.weight", torch.ones(shape)), Dense("model.embed_tokens.weight", torch.ones(shape))]
    patch = Patch.create(lm, updates, method="rome", config={}, edits=[EDIT])
    patch.apply(lm)
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    torch.testing.assert_close(lm.model.lm_head.weight.data, before["model.embed_tokens.weight"] + 2)
    patch.revert(lm)
    assert same(lm, before)


def card_of(lm):
    return make_patch(lm, DOWN).card


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (LowRank(UP, torch.ones(3, 1), torch.ones(1, 4)), "shape"),
        (LowRank(UP, torch.ones(32, 1), torch.ones(1, 72)), "shape"),
        (Dense("model.norm.weight", torch.ones(31)), "shape"),
        (LowRank("model.layers.9.mlp.up_proj.weight", torch.ones(3, 1), torch.ones(1, 4)), "has no weight"),
    ],
)
def test_an_update_that_does_not_fit_leaves_everything_unchanged(bad, sentence):
    lm = load(tiny("llama"))
    before = snapshot(lm)
    good = make_patch(lm, DOWN).updates
    with pytest.raises(PatchError, match=sentence):
        Patch((*good, bad), card_of(lm)).apply(lm, force=True)
    assert same(lm, before)
    assert applied_patches(lm) == ()


def test_an_overflow_leaves_everything_unchanged():
    lm = load(tiny("llama", dtype=torch.float16))
    before = snapshot(lm)
    updates = [*make_patch(lm, DOWN).updates, Dense(UP, torch.full((72, 32), 1e6))]
    with pytest.raises(PatchError, match="overflow float16"):
        Patch.create(lm, updates, method="rome", config={}, edits=[EDIT]).apply(lm)
    assert same(lm, before)
    assert applied_patches(lm) == ()


def test_packed_and_offloaded_weights_are_refused():
    lm = load(tiny("llama"))
    patch = make_patch(lm, DOWN)
    module = lm.model.get_submodule(DOWN.removesuffix(".weight"))
    module.weight = torch.nn.Parameter(torch.zeros(32, 72, dtype=torch.int8), requires_grad=False)
    with pytest.raises(PatchError, match=r"packed as torch\.int8"):
        patch.apply(lm, force=True)
    module.weight = torch.nn.Parameter(torch.zeros(32, 72, device="meta"))
    with pytest.raises(PatchError, match="offloaded"):
        patch.apply(lm, force=True)


def test_an_interruption_while_writing_restores(monkeypatch):
    lm = load(tiny("llama"))
    before, patch = snapshot(lm), make_patch(lm, DOWN, UP)
    weights = stack._weights(lm.model)

    class Torn:
        def copy_(self, value):
            if torch.equal(value, before[UP]):
                return
            raise KeyboardInterrupt

    monkeypatch.setattr(stack, "_weights", lambda model: {**weights, UP: Torn()})
    with pytest.raises(KeyboardInterrupt):
        patch.apply(lm)
    monkeypatch.undo()
    assert same(lm, before)
    assert applied_patches(lm) == ()


def test_applying_twice_and_reverting_a_stranger_are_refused(tmp_path):
    lm = load(tiny("llama"))
    patch, stranger = make_patch(lm, DOWN), make_patch(lm, DOWN, seed=9)
    patch.save_pretrained(tmp_path / "p")
    copy = Patch.from_pretrained(tmp_path / "p")
    with pytest.raises(PatchError, match="does not carry"):
        patch.revert(lm)
    before = snapshot(lm)
    patch.apply(lm)
    with pytest.raises(PatchError, match="already"):
        copy.apply(lm)
    with pytest.raises(PatchError, match="does not carry"):
        stranger.revert(lm)
    copy.revert(lm)
    assert same(lm, before)


def test_somebody_elses_change_is_noticed():
    lm = load(tiny("llama"))
    patch, other = make_patch(lm, DOWN), make_patch(lm, DOWN, seed=3)
    before = snapshot(lm)
    patch.apply(lm)
    with torch.no_grad():
        lm.model.get_parameter(DOWN)[0, 0] += 1
    changed = snapshot(lm)
    with pytest.raises(PatchError, match=f"Something else changed {DOWN}"):
        other.apply(lm)
    with pytest.raises(PatchError, match=f"Something else changed {DOWN}"):
        patch.revert(lm)
    assert same(lm, changed)
    assert is_applied(lm, patch)
    patch.revert(lm, force=True)
    assert same(lm, before)


def test_two_handles_of_one_model_agree():
    model, tokenizer = tiny("llama")
    lm, again = load((model, tokenizer)), load((model, tokenizer))
    patch, before = make_patch(lm, DOWN), snapshot(lm)
    patch.apply(lm)
    assert applied_patches(again) == (patch,)
    patch.revert(again)
    assert same(lm, before)


def test_a_dropped_model_is_not_kept_alive():
    lm = load(tiny("llama"))
    make_patch(lm, DOWN).apply(lm)
    gone = weakref.ref(lm.model)
    del lm
    gc.collect()
    assert gone() is None
