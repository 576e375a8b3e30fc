"""The faster ways to a value: long steps, stopping at the likeliest, rounded products; and how rows are batched."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errata.lm import load
from errata.lm.products import has_bfloat16
from errata.methods import get_method
from errata.methods.locate_then_edit import descent
from errata.methods.locate_then_edit.rewrites import tokenise
from errata.methods.locate_then_edit.row_groups import PASS_COLUMNS, ValueRow, grouped
from errata.methods.locate_then_edit.steps import NormalisedSteps
from errata.methods.locate_then_edit.values import ValueSettings, optimise_values
from errata.testing import tiny
from reference.plain_model import plain_logits
from reference.samples import CONTEXTS, EDITS, LATE

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from plain import plain_key, plain_second_moment, plain_value

PUBLISHED = ValueSettings(steps=6, learning_rate=0.5, weight_decay=0.5, clamp=4.0, kl_weight=0.0625, stop_loss=0.05)
LONG = replace(PUBLISHED, optimiser="normalised", clamp=2.0)
NAMES = ("steps", "learning_rate", "weight_decay", "clamp", "kl_weight", "stop_loss")


@cache
def loaded(family):
    """Shared by tests that do not change it."""
    return load(tiny(family))


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


# --- the plain code of the benchmark ------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["mlp", "block"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
def test_the_benchmarks_plain_code_finds_the_same_values(family, site):
    lm = load(tiny(family))
    rewrites = tokenise(lm, EDITS, CONTEXTS)
    found = optimise_values(lm, rewrites, 1, PUBLISHED, site=site)
    block = lm.layer(1)
    for i, rewrite in enumerate(rewrites):
        path = block.path if site == "block" else block.out_projection
        plain = plain_value(lm.model, rewrite, path, **{name: getattr(PUBLISHED, name) for name in NAMES})
        assert len(plain.losses) == found.steps[i]
        assert found.losses[i] == pytest.approx(plain.losses[-1], abs=1e-4)
        assert relative(found.start[i] + found.delta[i], plain.start + plain.delta) < 1e-4
        keys, outputs = plain_key(lm.model, rewrite.prompts, block.out_projection)
        torch.testing.assert_close(found.keys[i], keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.outputs[i], outputs, rtol=1e-4, atol=1e-4)


def test_its_second_moment_is_the_mean_of_the_keys():
    lm = loaded("llama")
    path = lm.layer(1).out_projection
    windows = [[5, 6, 7], [8, 9], [4, 3, 2, 1, 5]]
    keys = [key for w in windows for key in _keys_of(lm, w, path)[1:]]
    expected = sum(torch.outer(key, key) for key in keys) / len(keys)
    torch.testing.assert_close(plain_second_moment(lm.model, windows, path), expected, rtol=1e-4, atol=1e-6)


def _keys_of(lm, window, path):
    seen = []
    handle = lm.model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0][0].detach()))
    plain_logits(lm.model, window)
    handle.remove()
    return seen[0]


# --- long steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["mlp", "block"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_long_steps_come_further_than_as_many_of_adams(family, site):
    rewrites = tokenise(loaded(family), LATE, CONTEXTS)
    adam, long = (
        optimise_values(loaded(family), rewrites, 1, replace(LONG, optimiser=name), site=site)
        for name in ("adam", "normalised")
    )
    assert sum(long.losses) < sum(adam.losses)
    assert (long.delta.norm(dim=-1) <= LONG.clamp * long.start.norm(dim=-1) * (1 + 1e-5)).all()


def test_each_edit_takes_its_own_steps(monkeypatch):
    lm = loaded("llama")
    rewrites = tokenise(lm, EDITS, CONTEXTS)
    together = optimise_values(lm, rewrites, 1, LONG, site="mlp")
    monkeypatch.setitem(descent.COLUMNS_AT_ONCE, "cpu", 10)
    apart = optimise_values(lm, rewrites, 1, LONG, site="mlp")
    for i, rewrite in enumerate(rewrites):
        alone = optimise_values(lm, [rewrite], 1, LONG, site="mlp")
        assert relative(together.delta[i], alone.delta[0]) < 1e-3
        assert relative(apart.delta[i], alone.delta[0]) < 1e-3
        assert together.losses[i] == pytest.approx(alone.losses[0], abs=1e-3)


@pytest.mark.parametrize("clamp", [0.5, 30.0, 1000.0])
def test_however_long_the_first_step_the_end_is_no_worse_than_the_start(clamp):
    lm = loaded("llama")
    rewrites = tokenise(lm, EDITS, CONTEXTS)
    settings = replace(LONG, clamp=clamp, steps=9)
    first = optimise_values(lm, rewrites, 1, replace(settings, steps=1), site="mlp").losses
    found = optimise_values(lm, rewrites, 1, settings, site="mlp").losses
    assert all(after <= before for after, before in zip(found, first, strict=True))
    if clamp < 100:
        assert all(after < before for after, before in zip(found, first, strict=True))


def test_the_loss_reported_is_that_of_the_shift_returned():
    lm = loaded("gpt2")
    rewrites = tokenise(lm, LATE, ("",))
    settings = replace(LONG, weight_decay=0.0, kl_weight=0.0, stop_loss=0.0)
    found = optimise_values(lm, rewrites, 1, settings, site="mlp")
    path = lm.layer(1).out_projection
    for i, rewrite in enumerate(rewrites):
        (row,) = rewrite.training_rows()
        handle = lm.model.get_submodule(path).register_forward_hook(_adding(row.lookup, found.delta[i]))
        logs = plain_logits(lm.model, row.ids).log_softmax(-1)
        handle.remove()
        first = len(rewrite.prompts[0].ids) - 1
        nll = -sum(float(logs[first + j, t].detach()) for j, t in enumerate(rewrite.target)) / len(rewrite.target)
        assert found.losses[i] == pytest.approx(nll, abs=1e-4)


def _adding(position, value):
    def hook(_module, _args, output):
        changed = output.clone()
        changed.view(-1, output.shape[-1])[position] += value
        return changed

    return hook


def test_a_step_that_goes_too_far_is_taken_again_at_half_its_length():
    delta = torch.zeros(2, 1, requires_grad=True)
    steps = NormalisedSteps(delta, torch.full((2, 1), 10.0), 0.8, 0.5)
    running = torch.tensor([True, True])
    places = []
    for _ in range(3):  # (δ - 2)² from 0 and (δ - 9)²: the first step, of length 8, is too long for the first row
        delta.grad = None
        loss = (delta[:, 0] - torch.tensor([2.0, 9.0])).square()
        loss.sum().backward()
        steps.step(loss.detach(), running)
        places.append(delta.detach().flatten().tolist())
    assert places[0] == [8.0, 8.0]
    assert places[1] == [4.0, 10.0]  # half as far from 0, and onwards by half, cut at 10
    loss = (delta.detach()[:, 0] - torch.tensor([2.0, 9.0])).square()
    assert steps.finish(loss, running).tolist() == [min(4.0, float(loss[0])), 1.0]


# --- stopping and precision -----------------------------------------------------------------------------------------


def test_stopping_at_the_likeliest_is_no_later_and_leaves_the_target_the_likeliest():
    lm = loaded("llama")
    rewrites = tokenise(lm, LATE, CONTEXTS)
    settings = replace(LONG, steps=12, weight_decay=0.0, kl_weight=0.0, clamp=20.0, stop_loss=0.0)
    on = optimise_values(lm, rewrites, 1, settings, site="mlp")
    early = optimise_values(lm, rewrites, 1, replace(settings, stop_at_argmax=True), site="mlp")
    assert all(a <= b for a, b in zip(early.steps, on.steps, strict=True))
    stopped = [i for i, steps in enumerate(early.steps) if steps < settings.steps]
    assert stopped
    for i in stopped:
        for row in rewrites[i].prompts:
            handle = lm.model.get_submodule(lm.layer(1).out_projection).register_forward_hook(
                _adding(row.lookup, early.delta[i])
            )
            assert int(plain_logits(lm.model, row.ids)[-1].argmax()) == rewrites[i].target[0]
            handle.remove()


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16 products")
def test_rounded_products_change_the_search_and_not_what_was_measured():
    lm = loaded("llama")
    rewrites = tokenise(lm, EDITS, CONTEXTS)
    exact, rounded = (
        optimise_values(lm, rewrites, 1, replace(LONG, precision=name), site="mlp") for name in ("float32", "bfloat16")
    )
    for name in ("start", "keys", "outputs"):
        assert torch.equal(getattr(rounded, name), getattr(exact, name))
    assert not torch.equal(rounded.delta, exact.delta)
    assert all(a == pytest.approx(b, abs=0.1) for a, b in zip(rounded.losses, exact.losses, strict=True))


@pytest.mark.parametrize("method", ["rome", "r-rome", "memit"])
def test_the_published_optimiser_is_reached_by_options(method):
    config = get_method(method).configure({"optimiser": "adam", "steps": 25, "precision": "float32"})
    settings = config.value_settings()
    assert (settings.optimiser, settings.steps, settings.precision) == ("adam", 25, "float32")
    assert (settings.learning_rate, settings.weight_decay, settings.kl_weight) == (0.5, 0.5, 0.0625)
    assert not settings.stop_at_argmax


def test_rome_as_released_uses_the_published_optimiser():
    settings = get_method("rome").configure().value_settings()
    assert (settings.optimiser, settings.steps, settings.precision, settings.clamp) == ("adam", 20, "float32", 4.0)


# --- batches of rows ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(1, 60))
def test_rows_are_cut_into_batches_that_hold_them_all(columns, most):
    rows = [ValueRow(i, 0, tuple(range(n + 2)), 2, ()) for i, n in enumerate(columns)]
    groups = grouped(rows, most)
    assert sorted(row.edit for group in groups for row in group) == list(range(len(rows)))
    assert all(len(group) == 1 or len(group) * max(r.columns for r in group) <= most for group in groups)

    def cost(parts):
        return sum(len(part) * max(row.columns for row in part) + PASS_COLUMNS for part in parts)

    order = sorted(rows, key=lambda row: row.columns)
    greedy = [[row] for row in order]
    assert cost(groups) <= cost(greedy)
    if len(order) * order[-1].columns <= most:
        assert cost(groups) <= cost([order])
