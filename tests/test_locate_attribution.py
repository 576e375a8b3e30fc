"""Attributions equal the plain integral and obey its axioms."""

from __future__ import annotations

import pytest
import torch

import errata
from errata.errors import ConfigError, ErrataError, RequestError
from errata.locate.adaptive import attribute_within, worst_share
from errata.locate.attribution import Query, attribute, queries
from errata.locate.integral import nodes, spread_in_logarithm
from errata.testing import FAMILIES, VARIANTS, tiny, tiny_tokenizer
from reference.odd_model import odd_model
from reference.plain_attribution import plain_activation, plain_attribution, plain_value
from reference.plain_model import plain_logits
from reference.samples import hooks_on, one_sentence

PROMPTS = (("The capital of Italy is", "Rome"), ("Anna was born in", "Marlow, in a house"), ("She went to", "London"))


def tiny_lm(family, **options):
    return errata.load(tiny(family, **options))


def asked(lm):
    return [query for prompt, answer in PROMPTS for query in queries(lm, prompt, answer)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma3", "opt", "falcon", "bloom"])
@pytest.mark.parametrize("of", ["probability", "log-probability", "logit"])
def test_fast_equals_plain(family, of):
    lm = tiny_lm(family)
    wanted = asked(lm)[:4]
    found = attribute(lm, wanted, of=of, steps=5, rule="trapezoid")
    places, weights = nodes("trapezoid", 5)
    if family == "gemma3":  # a norm follows the MLP
        places, weights = spread_in_logarithm(places, weights)
    for at, layer in enumerate(found.layers):
        path = lm.layer(layer).out_projection
        for row, query in enumerate(wanted):
            plain, zero = plain_attribution(
                lm.model, query.context, query.token, path, nodes=places, weights=weights, of=of
            )
            scale = max(1.0, float(plain.abs().max()))
            assert float((found.scores[at][row] - plain).abs().max()) <= 1e-5 * scale
            assert torch.allclose(
                found.activations[at][row], plain_activation(lm.model, query.context, path), atol=1e-4
            )
            assert abs(float(found.zeroed[row, at]) - zero) <= 1e-5 * max(1.0, abs(zero))
            clean = plain_value(plain_logits(lm.model, query.context)[-1], query.token, of)
            assert float(found.clean[row]) == pytest.approx(float(clean.detach()), rel=1e-5, abs=1e-5)


def test_a_model_that_cannot_be_split_gives_the_same_as_plain():
    lm = errata.load((odd_model(), tiny_tokenizer()))
    wanted = asked(lm)[:3]
    found = attribute(lm, wanted, steps=3, rule="left")
    places, weights = nodes("left", 3)
    for at, layer in enumerate(found.layers):
        path = lm.layer(layer).out_projection
        for row, query in enumerate(wanted):
            plain, _ = plain_attribution(lm.model, query.context, query.token, path, nodes=places, weights=weights)
            assert float((found.scores[at][row] - plain).abs().max()) <= 1e-5


@pytest.mark.parametrize("family", [f for f in (*FAMILIES, *VARIANTS) if f != "mixtral"])
def test_attributions_are_complete_on_every_family(family):
    lm = tiny_lm(family)
    found = attribute(lm, asked(lm)[:2], of="log-probability", steps=200)
    whole = (found.clean[:, None] - found.zeroed).abs()
    # A ReLU makes the integrand jump, which no rule integrates fast: hence the floor.
    assert float((found.error.abs() / whole.clamp(min=0.25)).max()) < 0.01


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
def test_a_norm_after_the_mlp_does_not_hide_what_its_layer_does(family):
    """Scaled evenly the sum would be almost nothing: the norm undoes every scale but those next to zero."""
    lm = tiny_lm(family)
    found = attribute(lm, asked(lm)[:2], of="log-probability", steps=20)
    whole = (found.clean[:, None] - found.zeroed).abs()
    assert float((found.error.abs() / whole.clamp(min=0.25)).max()) < 0.05


@pytest.mark.parametrize("rule", ["left", "right", "midpoint", "trapezoid"])
def test_every_rule_converges(rule):
    lm = tiny_lm("llama")
    coarse, fine = (attribute(lm, asked(lm)[:1], steps=n, rule=rule).error.abs().sum() for n in (5, 200))
    assert fine < coarse
    places, weights = nodes(rule, 20)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert 0 <= float(places.min()) <= float(places.max()) <= 1


def test_midpoint_and_trapezoid_are_better_than_left():
    lm = tiny_lm("llama")
    errors = {
        rule: float(attribute(lm, asked(lm), steps=20, rule=rule).error.abs().sum())
        for rule in ("left", "midpoint", "trapezoid")
    }
    assert errors["midpoint"] < errors["trapezoid"] < errors["left"]


def test_a_silent_neuron_gets_nothing():
    lm = tiny_lm("opt")  # ReLU: many activations are exactly zero
    found = attribute(lm, asked(lm), steps=3)
    silent = [(a == 0) for a in found.activations]
    assert sum(int(s.sum()) for s in silent) > 10
    for mask, scores in zip(silent, found.scores, strict=True):
        assert bool((scores[mask] == 0).all())


def test_on_a_linear_readout_the_steps_do_not_matter():
    """Last layer, no final norm, logit: F is linear in the activations, and the attribution is a_i (E_y · w_i)."""
    lm = errata.load((odd_model(), tiny_tokenizer()))
    lm.model.last = torch.nn.Identity()
    lm = errata.load((lm.model, lm.tokenizer))
    last = lm.num_layers - 1
    query = asked(lm)[0]
    exact = lm.model.out.weight[query.token] @ lm.weight(last)
    for steps in (1, 7):
        found = attribute(lm, [query], layers=[last], of="logit", steps=steps)
        assert torch.allclose(found.scores[0][0], found.activations[0][0] * exact, atol=1e-5)


def test_batching_changes_nothing(monkeypatch):
    lm = tiny_lm("gpt2")
    whole = attribute(lm, asked(lm), steps=6)
    for rows in (1, 30, 10_000):
        monkeypatch.setattr("errata.locate.attribution.ROWS_AT_ONCE", rows)
        again = attribute(lm, asked(lm), steps=6)
        for one, other in zip(whole.scores, again.scores, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_more_steps_are_taken_where_a_sum_is_off_and_only_there():
    lm = tiny_lm("gpt2")
    wanted = asked(lm)
    plain = attribute(lm, wanted, steps=4, rule="left")
    allowed = 0.02 * (plain.clean[:, None] - plain.zeroed).abs().amax(1, keepdim=True)
    off = plain.error.abs() > allowed
    assert bool(off.any())
    assert not bool(off.all())
    found = attribute_within(lm, wanted, steps=4, rule="left", tolerance=0.02)
    for at in range(len(plain.layers)):
        same = (found.scores[at] == plain.scores[at]).all(1)
        assert bool((same == ~off[:, at]).all())
    assert float(found.error.abs().sum()) < float(plain.error.abs().sum())
    assert worst_share(found) < worst_share(plain)
    finest = attribute(lm, wanted, steps=64, rule="left")
    for at in range(len(plain.layers)):
        rows = found.error.abs()[:, at] > allowed[:, 0]
        torch.testing.assert_close(found.scores[at][rows], finest.scores[at][rows], atol=1e-6, rtol=1e-4)
    none = attribute_within(lm, wanted, steps=4, rule="left", tolerance=None)
    assert all(torch.equal(a, b) for a, b in zip(none.scores, plain.scores, strict=True))


def test_the_model_is_left_alone():
    lm = tiny_lm("qwen2")
    before, hooks = lm.fingerprint(), hooks_on(lm.model)
    asks = [p.requires_grad for p in lm.model.parameters()]
    attribute(lm, asked(lm)[:2], steps=2, layers=[1, 3])
    assert lm.fingerprint() == before
    assert hooks_on(lm.model) == hooks
    assert [p.requires_grad for p in lm.model.parameters()] == asks
    assert all(p.grad is None for p in lm.model.parameters())


def test_a_tiny_probability_does_not_underflow_in_bfloat16():
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    found = attribute(lm, asked(lm)[:1], steps=3)
    assert all(bool(torch.isfinite(scores).all()) and bool(scores.any()) for scores in found.scores)


def test_bad_requests_are_one_sentence():
    lm = tiny_lm("llama")
    good = asked(lm)[:1]
    cases = [
        (RequestError, lambda: attribute(lm, [])),
        (RequestError, lambda: attribute(lm, [Query((), 5)])),
        (RequestError, lambda: queries(lm, "The capital is", "   ")),
        (ErrataError, lambda: attribute(lm, good, layers=[99])),
        (ConfigError, lambda: attribute(lm, good, layers=[])),
        (ConfigError, lambda: attribute(lm, good, steps=0)),
        (ConfigError, lambda: attribute(lm, good, steps=1, rule="trapezoid")),
        (ConfigError, lambda: attribute(lm, good, rule="simpson")),
        (ConfigError, lambda: attribute(lm, good, of="loss")),
        (ConfigError, lambda: attribute_within(lm, good, tolerance=0.0)),
        (ErrataError, lambda: attribute(tiny_lm("mixtral"), good)),
    ]
    for kind, call in cases:
        with pytest.raises(kind) as error:
            call()
        assert one_sentence(error)
