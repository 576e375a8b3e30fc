"""The fast value optimiser finds what the plain one finds, for every kind of architecture, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from errata.errors import NumericalError
from errata.lm import load
from errata.methods.locate_then_edit import descent, row_groups
from errata.methods.locate_then_edit import values as module
from errata.methods.locate_then_edit.rewrites import tokenise
from errata.methods.locate_then_edit.values import ValueSettings, optimise_values
from errata.testing import FAMILIES, VARIANTS, tiny, tiny_tokenizer
from reference.odd_model import odd_model
from reference.plain_keys import plain_keys
from reference.plain_value import plain_value
from reference.samples import CONTEXTS, EDITS, LATE, hooks_on, one_sentence

EDITABLE = tuple(sorted({*FAMILIES, *VARIANTS} - {"mixtral"}))
SETTINGS = ValueSettings(steps=7, learning_rate=0.5, weight_decay=0.5, clamp=4.0, kl_weight=0.0625, stop_loss=0.05)
CLAMPED = replace(SETTINGS, clamp=0.4)


@cache
def loaded(family, layers=4):
    """Shared by tests that do not change it."""
    if family == "odd":
        return load((odd_model(), tiny_tokenizer()))
    return load(tiny(family, layers=layers))


def plain(lm, rewrite, layer, settings, site):
    """The reference on the module that the site names; where a norm follows the MLP that is W's output always."""
    block = lm.layer(layer)
    at_block = site == "block" and block.additive
    asked = [p.requires_grad for p in lm.model.parameters()]
    try:
        return plain_value(lm.model, rewrite, block.path if at_block else block.out_projection, **published(settings))
    finally:
        for parameter, flag in zip(lm.model.parameters(), asked, strict=True):
            parameter.requires_grad_(flag)


def published(settings):
    """What the papers' objective and its optimiser are told; the rest is how fast ours goes about it."""
    names = ("steps", "learning_rate", "weight_decay", "clamp", "kl_weight", "stop_loss")
    return {name: getattr(settings, name) for name in names}


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def assert_equal_to_plain(lm, edits, layer, settings, site, contexts=CONTEXTS):
    rewrites = tokenise(lm, edits, contexts)
    found = optimise_values(lm, rewrites, layer, settings, site=site)
    for i, rewrite in enumerate(rewrites):
        expected = plain(lm, rewrite, layer, settings, site)
        assert found.steps[i] == len(expected.losses)
        assert found.losses[i] == pytest.approx(expected.losses[-1], rel=1e-4, abs=1e-4)
        assert relative(found.start[i], expected.start) < 1e-4
        assert relative(found.delta[i], expected.delta) < 1e-4
    return found


# --- the same values as the plain reference -------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["mlp", "block"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "gptj"])
def test_a_batch_of_edits_equals_the_plain_optimisation_of_each(family, site):
    assert_equal_to_plain(loaded(family), EDITS, 1, SETTINGS, site)


@pytest.mark.parametrize("family", [*sorted(set(EDITABLE) - {"gpt2", "llama", "gemma3", "gptj"}), "odd"])
def test_every_other_family_equals_the_plain_optimisation(family):
    assert_equal_to_plain(loaded(family), EDITS[:2], 1, replace(SETTINGS, steps=4), "block", CONTEXTS[:2])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_the_losses_are_the_same_at_every_step(steps):
    lm = loaded("llama")
    rewrites = tokenise(lm, EDITS[:2], CONTEXTS)
    found = optimise_values(lm, rewrites, 1, replace(SETTINGS, steps=steps), site="mlp")
    for i, rewrite in enumerate(rewrites):
        assert found.losses[i] == pytest.approx(plain(lm, rewrite, 1, SETTINGS, "mlp").losses[steps - 1], abs=1e-4)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_any_layer(family, layer):
    assert_equal_to_plain(loaded(family), EDITS[:2], layer, replace(SETTINGS, steps=4), "mlp")


@pytest.mark.parametrize("site", ["mlp", "block"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_the_clamp_is_the_plain_ones_and_holds(family, site):
    lm = loaded(family)
    found = assert_equal_to_plain(lm, EDITS, 1, CLAMPED, site)
    sizes = found.delta.norm(dim=-1) / found.start.norm(dim=-1)
    assert (sizes <= CLAMPED.clamp * (1 + 1e-6)).all()
    assert sizes.max() > 0.99 * CLAMPED.clamp


@pytest.mark.parametrize("change", [{"kl_weight": 4.0}, {"weight_decay": 20.0}, {"learning_rate": 0.05}])
def test_each_knob_means_what_it_means_in_the_plain_one(change):
    assert_equal_to_plain(loaded("gpt2"), EDITS[:2], 1, replace(SETTINGS, **change), "mlp")


def test_without_contexts():
    assert_equal_to_plain(loaded("gpt2"), EDITS, 1, SETTINGS, "mlp", ("",))


def test_a_bos_before_every_text():
    model, _ = tiny("llama")
    lm = load((model, tiny_tokenizer(bos=True)))
    found = assert_equal_to_plain(lm, EDITS[:2], 1, SETTINGS, "mlp")
    assert tokenise(lm, EDITS[:1], CONTEXTS)[0].prompts[0].lookup == 2
    assert found.delta.isfinite().all()


def test_a_subject_at_the_first_position():
    lm = loaded("gpt2")
    rewrites = tokenise(lm, [replace(EDITS[0], subject="R")], ("",))
    assert rewrites[0].prompts[0].lookup == 0
    assert_equal_to_plain(lm, [replace(EDITS[0], subject="R"), EDITS[1]], 1, SETTINGS, "mlp")


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_without_splitting_the_values_are_the_same(family, monkeypatch):
    lm = loaded(family)
    rewrites = tokenise(lm, EDITS, CONTEXTS)
    fast = optimise_values(lm, rewrites, 1, SETTINGS, site="mlp")
    monkeypatch.setattr("errata.lm.forward.supports_splitting", lambda _: False)
    slow = optimise_values(lm, rewrites, 1, SETTINGS, site="mlp")
    assert relative(slow.delta, fast.delta) < 1e-4
    assert slow.steps == fast.steps


# --- edits are independent problems ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "columns", "extra"), [(1, 512, 24), (3, 1, 24), (64, 20, 0), (64, 40, 1000), (64, 512, 0)]
)
def test_chunks_and_groups_of_any_size_and_order_give_the_same(edits, columns, extra, monkeypatch):
    lm = loaded("llama")
    rewrites = tokenise(lm, EDITS, CONTEXTS)
    alone = [optimise_values(lm, [rewrite], 1, SETTINGS, site="mlp") for rewrite in rewrites]
    monkeypatch.setattr(module, "EDITS_AT_ONCE", edits)
    monkeypatch.setitem(descent.COLUMNS_AT_ONCE, "cpu", columns)
    monkeypatch.setattr(row_groups, "PASS_COLUMNS", extra)
    order = [2, 0, 3, 1]
    found = optimise_values(lm, [rewrites[i] for i in order], 1, SETTINGS, site="mlp")
    for place, i in enumerate(order):
        for name in ("delta", "start", "keys", "outputs"):
            assert relative(getattr(found, name)[place], getattr(alone[i], name)[0]) < 1e-4, name
        assert found.losses[place] == pytest.approx(alone[i].losses[0], abs=1e-4)
        assert found.steps[place] == alone[i].steps[0]


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_edits_that_stop_at_different_steps_stop_as_they_do_alone(family):
    lm = loaded(family)
    rewrites = tokenise(lm, LATE, CONTEXTS[:2])
    settings = replace(SETTINGS, steps=14, learning_rate=0.2, weight_decay=0.0)
    traces = [plain(lm, rewrite, 1, settings, "mlp").losses for rewrite in rewrites]
    # A threshold that the edits cross at different steps, and that no loss merely grazes.
    seen = sorted(x for trace in traces for x in trace)
    between = [(a + b) / 2 for a, b in pairwise(seen) if b - a > 0.01]
    stop = max(between, key=lambda stop: len({first_below(trace, stop) for trace in traces}))
    expected = [first_below(trace, stop) for trace in traces]
    assert len(set(expected)) > 2
    settings = replace(settings, stop_loss=stop)
    found = optimise_values(lm, rewrites, 1, settings, site="mlp")
    assert found.steps == expected
    for i, rewrite in enumerate(rewrites):
        torch.testing.assert_close(found.delta[i], plain(lm, rewrite, 1, settings, "mlp").delta, rtol=1e-3, atol=1e-4)
        assert (found.losses[i] < stop) is (traces[i][expected[i] - 1] < stop)


def first_below(trace, stop):
    """After how many passes an edit with this trace of losses stops."""
    return next((i + 1 for i, loss in enumerate(trace) if loss < stop), len(trace))


def test_an_edit_that_is_satisfied_at_once_is_left_alone():
    lm = loaded("gpt2")
    found = optimise_values(lm, tokenise(lm, EDITS, CONTEXTS), 1, replace(SETTINGS, stop_loss=1e9), site="mlp")
    assert found.steps == [1] * len(EDITS)
    assert not found.delta.any()


def test_one_step_only_looks():
    lm = loaded("gpt2")
    rewrites = tokenise(lm, EDITS[:1], CONTEXTS)
    found = optimise_values(lm, rewrites, 1, replace(SETTINGS, steps=1), site="mlp")
    assert not found.delta.any()
    bare = optimise_values(lm, rewrites, 1, replace(SETTINGS, steps=1, kl_weight=9.0, weight_decay=9.0), site="mlp")
    assert bare.losses == found.losses  # at δ = 0 neither the KL nor the decay counts


# --- what else it reports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EDITABLE)
def test_keys_and_outputs_are_those_of_plain_passes(family):
    lm = loaded(family)
    rewrites = tokenise(lm, EDITS[:2], CONTEXTS)
    found = optimise_values(lm, rewrites, 1, replace(SETTINGS, steps=1), site="mlp")
    keys, outputs = plain_keys(lm.model, rewrites, lm.layer(1).out_projection)
    torch.testing.assert_close(found.keys, keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.outputs, outputs, atol=1e-4, rtol=1e-4)


def test_a_longer_optimisation_makes_the_target_likelier():
    lm = loaded("llama")
    rewrites = tokenise(lm, LATE, CONTEXTS)
    settings = replace(SETTINGS, learning_rate=0.2, weight_decay=0.0, kl_weight=0.0, clamp=20.0)
    losses = [optimise_values(lm, rewrites, 1, replace(settings, steps=s), site="mlp").losses for s in (1, 25)]
    assert all(after < before - 1 for before, after in zip(*losses, strict=True))


# --- the model is not touched ---------------------------------------------------------------------------------------


def state(lm):
    model = lm.model
    flags = [p.requires_grad for p in model.parameters()]
    grads = [p.grad is None for p in model.parameters()]
    return lm.fingerprint(), flags, grads, model.training, hooks_on(model)


def test_the_model_is_left_as_it_was():
    lm = load(tiny("gpt2"))
    lm.model.transformer.wte.weight.requires_grad_(False)
    before = state(lm)
    optimise_values(lm, tokenise(lm, EDITS[:2], CONTEXTS), 1, SETTINGS, site="block")
    assert state(lm) == before
    assert not all(before[1])


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "odd"])
def test_a_loss_that_is_no_number_is_one_sentence_and_changes_nothing(family):
    lm = load((odd_model(), tiny_tokenizer()) if family == "odd" else tiny(family))
    with torch.no_grad():
        list(lm.block(lm.num_layers - 1).parameters())[-1].fill_(float("nan"))
    before = state(lm)
    with pytest.raises(NumericalError, match="not a number") as error:
        optimise_values(lm, tokenise(lm, EDITS[:2], CONTEXTS), 1, SETTINGS, site="mlp")
    assert one_sentence(error)
    assert state(lm) == before


def test_a_loss_that_explodes_is_noticed():
    lm = loaded("llama")
    with pytest.raises(NumericalError):
        optimise_values(
            lm, tokenise(lm, EDITS[:1], CONTEXTS), 1, replace(SETTINGS, learning_rate=1e30, clamp=1e38), site="mlp"
        )


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same(without):
    lm = loaded("gpt2")
    rewrites = tokenise(lm, EDITS[:1], CONTEXTS)
    expected = optimise_values(lm, rewrites, 1, SETTINGS, site="mlp")
    with without():
        found = optimise_values(lm, rewrites, 1, SETTINGS, site="mlp")
    assert torch.equal(found.delta, expected.delta)
    assert found.delta.requires_grad is False


def test_an_interrupted_optimisation_leaves_the_model_as_it_was(monkeypatch):
    lm = load(tiny("gpt2"))
    before = state(lm)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimise_values(lm, tokenise(lm, EDITS[:1], CONTEXTS), 1, SETTINGS, site="mlp")
    assert state(lm) == before
