"""Knowledge neurons: thresholds, agreement of wordings, and the patches made of them."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import ExitStack
from itertools import pairwise

import pytest
import torch

import errata
from errata.errors import ConfigError, ErrataError, RequestError
from errata.evaluation.schema import CostMeter
from errata.lm.activations import replace
from errata.lm.forward import next_token_logits
from errata.lm.scoring import score
from errata.lm.tokens import prompt_ids
from errata.locate import (
    FactPrompts,
    Neuron,
    NeuronOptions,
    find_knowledge_neurons,
    rewrite_neurons,
    save,
    scale_neurons,
)
from errata.locate.refine import above, adjusted, coarse, shares
from errata.testing import tiny
from reference.samples import one_sentence

FACTS = (
    FactPrompts("italy", ("The capital of Italy is", "Italy has its capital in", "The city of Italy is"), "Rome"),
    FactPrompts("anna", ("Anna was born in", "The city where Anna was born is", "She was born in"), "Marlow"),
    FactPrompts("orla", ("The river Orla flows to", "People say that Orla comes from"), "the north"),
)


@pytest.fixture(scope="module")
def lm():
    return errata.load(tiny("llama"))


@pytest.fixture(scope="module")
def result(lm):
    return find_knowledge_neurons(lm, FACTS, NeuronOptions(steps=8, share=0.3))


def test_the_threshold_is_relative_and_monotone():
    scores = torch.tensor([[1.0, 0.5, 0.25, -2.0], [0.0, 0.0, 0.0, 0.0]])
    assert coarse(scores, 0.3).tolist() == [[True, True, False, False], [False] * 4]
    wide, narrow = coarse(scores, 0.1), coarse(scores, 0.6)
    assert bool((wide | ~narrow).all())


def test_more_than_the_share_of_prompts_must_agree():
    masks = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    share = shares(masks)
    assert above(share, 0.75).tolist() == [True, False, False, False]
    assert above(share, 0.75, reached=True).tolist() == [True, True, False, False]
    assert above(share, 0.0, reached=True).tolist() == [True, True, True, False]
    ten = torch.tensor([[True]] * 7 + [[False]] * 3)
    assert not bool(above(shares(ten), 0.7)[0])


def test_the_schedule_moves_towards_two_to_five():
    many = [torch.cat([torch.full((20,), 0.72), torch.full((3,), 0.9)])]
    assert adjusted(many, 0.7) == pytest.approx(0.75)
    few = [torch.full((4,), 0.66)]
    assert adjusted(few, 0.7) == pytest.approx(0.65)
    assert adjusted([torch.zeros(4)], 0.7) == pytest.approx(0.4)  # six moves at most


def test_a_larger_threshold_or_share_gives_a_subset(lm):
    found = [
        {fact.fact_id: {f.neuron for f in fact.neurons} for fact in find_knowledge_neurons(lm, FACTS, options).facts}
        for options in (
            NeuronOptions(steps=4, threshold=0.1, share=0.3),
            NeuronOptions(steps=4, threshold=0.3, share=0.3),
            NeuronOptions(steps=4, threshold=0.3, share=0.7),
        )
    ]
    for wide, narrow in pairwise(found):
        assert all(narrow[name] <= wide[name] for name in wide)


def test_what_is_reported_is_the_models(lm, result):
    fact = result.facts[2]  # an answer of several tokens
    wanted = score(lm, [(prompt, fact.answer) for prompt in fact.prompts])
    for found, each in zip(fact.probabilities, wanted, strict=True):
        assert found == pytest.approx(float(torch.tensor(each.total, dtype=torch.float64).exp()), rel=1e-3)
    ordered = [f.attribution for f in fact.neurons]
    assert ordered == sorted(ordered, reverse=True)
    assert all(f.share > 0.3 for f in fact.neurons)


def test_ranking_by_activation_takes_the_largest(lm):
    options = NeuronOptions(steps=2, by="activation")
    assert options.threshold == 0.5
    fact = find_knowledge_neurons(lm, FACTS[:1], options).facts[0]
    assert [f.activation for f in fact.neurons] == sorted((f.activation for f in fact.neurons), reverse=True)


def test_an_answer_left_out_is_what_the_model_says(lm):
    asked = dataclasses.replace(FACTS[0], answer=None)
    said = lm.tokenizer.decode(int(next_token_logits(lm, [prompt_ids(lm.tokenizer, asked.prompts[0])]).argmax()))
    assert said.strip()
    found = find_knowledge_neurons(lm, [asked], NeuronOptions(steps=2))
    assert found.facts[0].answer == said.strip()


def test_common_neurons_are_dropped(lm):
    twice = [FACTS[0], dataclasses.replace(FACTS[0], fact_id="again")]
    kept = find_knowledge_neurons(lm, twice, NeuronOptions(steps=2, share=0.3))
    assert kept.facts[0].neurons
    dropped = find_knowledge_neurons(lm, twice, NeuronOptions(steps=2, share=0.3, drop_common=0.1))
    assert not dropped.facts[0].neurons


def test_suppressing_is_silencing_everywhere(lm, result):
    neurons = result.neurons("italy")
    assert neurons
    patch = result.suppress("italy")
    assert patch.card.config["operation"] == "suppress"
    assert patch.card.config["neurons"] == [[n.layer, n.index] for n in sorted(neurons)]
    masks = {layer: torch.ones(lm.layer(layer).key_width) for layer in range(lm.num_layers)}
    for neuron in neurons:
        masks[neuron.layer][neuron.index] = 0.0
    with ExitStack() as stack:
        for layer, mask in masks.items():
            path = lm.layer(layer).out_projection
            stack.enter_context(replace(lm.model, path, lambda taken, by=mask: taken * by, where="input"))
        wanted = score(lm, [(FACTS[0].prompts[0], "Rome")])[0].log_probability
    before = lm.fingerprint()
    with patch.applied(lm):
        assert score(lm, [(FACTS[0].prompts[0], "Rome")])[0].log_probability == pytest.approx(wanted, abs=1e-4)
    assert lm.fingerprint() == before


def test_amplify_and_erase_and_random(lm, result):
    assert all(bool((u.factors == 3).all()) for u in result.amplify(3.0).updates)
    once = result.amplify(1.0, "italy")
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    with once.applied(lm):
        assert all(torch.equal(p.detach(), before[name]) for name, p in lm.model.named_parameters())
    assert sum(u.rank for u in result.erase(2).updates) == 2
    control = result.random("italy", seed=3)
    assert control == result.random("italy", seed=3)
    assert not set(control) & set(result.neurons("italy"))
    assert sorted(n.layer for n in control) == sorted(n.layer for n in result.neurons("italy"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_rewriting_moves_the_answer_and_only_the_columns(family):
    lm = errata.load(tiny(family))
    prompt = "The capital of Italy is"
    neurons = [Neuron(3, 1), Neuron(3, 5), Neuron(2, 7)]
    patch = rewrite_neurons(lm, neurons, prompt, "Rome", "London")
    before = {layer: lm.weight(layer).clone() for layer in (2, 3)}
    with patch.applied(lm):
        for layer, chosen in ((2, {7}), (3, {1, 5})):
            moved = (lm.weight(layer) != before[layer]).any(0).nonzero()[:, 0].tolist()
            assert set(moved) == chosen
        change = lm.weight(3)[:, 1] - before[3][:, 1]
        ratio = float(change.norm() / before[3][:, 1].norm())
        assert 6.9 < ratio < 9.1  # 8 ± 1 norms
    assert all(torch.equal(lm.weight(layer), before[layer]) for layer in before)


def test_a_facts_neurons_are_rewritten(lm, result):
    patch = result.rewrite("italy", "London", add=4.0)
    assert patch.card.config["operation"] == "rewrite"
    assert patch.card.config["old"] == "Rome"
    assert sum(update.rank for update in patch.updates) == len(result.neurons("italy"))


def test_effects_are_measured_against_controls(lm, result):
    before = lm.fingerprint()
    measured = result.with_effects(seed=1)
    assert lm.fingerprint() == before
    assert [(e.arm, e.operation) for e in measured.effects][:2] == [
        ("knowledge neurons", "suppress"),
        ("knowledge neurons", "amplify"),
    ]
    first = measured.effects[0]
    with result.suppress("italy").applied(lm):
        pairs = [(prompt, "Rome") for prompt in FACTS[0].prompts]
        wanted = sum(math.exp(each.total) for each in score(lm, pairs)) / 3
    assert first.after[0] == pytest.approx(wanted, rel=1e-4)
    assert first.change.value == pytest.approx(sum(first.after) / sum(first.before) - 1)
    assert "suppress_random_neurons_others" in measured.metrics()
    assert len(measured.notes()) == len(result.notes()) + 6


def test_saving(lm, result, tmp_path):
    with CostMeter() as meter:
        pass
    measured = save(result, tmp_path / "out", lm=lm, cost=meter.cost())
    assert measured.metrics["neurons_per_fact"].n == 3
    content = json.loads((tmp_path / "out" / "neurons.json").read_text())
    assert [fact["fact_id"] for fact in content["facts"]] == ["italy", "anna", "orla"]
    assert (tmp_path / "out" / "neurons.png").stat().st_size > 5000
    assert (tmp_path / "out" / "index.html").is_file()


def test_bad_requests_are_one_sentence(lm, result):
    cases = [
        (RequestError, lambda: find_knowledge_neurons(lm, [])),
        (RequestError, lambda: FactPrompts("x", ())),
        (RequestError, lambda: FactPrompts("x", ("a prompt", "  "))),
        (RequestError, lambda: FactPrompts("x", ("a prompt",), " ")),
        (RequestError, lambda: find_knowledge_neurons(lm, [FACTS[0], FACTS[0]])),
        (ConfigError, lambda: NeuronOptions(threshold=1.5)),
        (ConfigError, lambda: NeuronOptions(share=-0.1)),
        (ConfigError, lambda: NeuronOptions(by="size")),
        (ConfigError, lambda: NeuronOptions(tolerance=-1.0)),
        (ErrataError, lambda: find_knowledge_neurons(lm, FACTS, NeuronOptions(layers=(77,)))),
        (ConfigError, lambda: result.suppress("nobody")),
        (ConfigError, lambda: result.erase(0)),
        (ConfigError, lambda: scale_neurons(lm, [], 0.0)),
        (ConfigError, lambda: scale_neurons(lm, [Neuron(0, 10_000)], 0.0)),
        (ErrataError, lambda: scale_neurons(lm, [Neuron(50, 0)], 0.0)),
        (ErrataError, lambda: scale_neurons(lm, [Neuron(0, 0)], float("inf"))),
        (RequestError, lambda: rewrite_neurons(lm, [Neuron(0, 0)], "The capital is", "Rome", " ")),
    ]
    for kind, call in cases:
        with pytest.raises(kind) as error:
            call()
        assert one_sentence(error)
