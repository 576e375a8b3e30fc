"""Knowledge neurons, values and the lens on the embedded model: skipped where its weights cannot be had."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import errata
from errata.lm.load import EMBEDDED, EMBEDDED_INSTALL, EMBEDDED_PACKAGE
from errata.locate import FactPrompts, Neuron, NeuronOptions, find_knowledge_neurons, find_value_vectors, logit_lens
from errata.locate.attribution import attribute, queries

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        find_spec(EMBEDDED_PACKAGE) is None, reason=f"the embedded model is not here: {EMBEDDED_INSTALL}"
    ),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield errata.load(EMBEDDED)


def test_attributions_add_up_to_what_silencing_a_layer_does(lm):
    """Completeness at 200 steps: to 1% of the largest effect among these layers."""
    found = attribute(lm, queries(lm, "The capital city of France is", "Paris"), steps=200, layers=[0, 10, 21, 29])
    whole = (found.clean[:, None] - found.zeroed).abs()
    assert float(whole.max()) > 0.5
    assert float(found.error.abs().max()) < 0.01 * float(whole.max())


def test_silencing_a_facts_neurons_takes_its_answer_and_random_ones_do_not(lm):
    facts = [FactPrompts.of(case) for case in errata.starter_cases(2)]
    found = find_knowledge_neurons(lm, facts, NeuronOptions(steps=10)).with_effects()
    changes = {(effect.arm, effect.operation): effect.change.value for effect in found.effects}
    assert changes["knowledge neurons", "suppress"] < -0.5
    assert abs(changes["random neurons", "suppress"]) < 0.1
    assert min(neuron.layer for neuron in found.neurons("starter-001")) > 10


def test_a_column_for_days_is_found_by_their_names(lm):
    found = find_value_vectors(lm, words=["Monday", "Tuesday", "Friday"], limit=5, layers=[21, 29])
    said = {p.text.strip().lower() for v in found.vectors for p in (v.top if v.score > 0 else v.bottom)}
    assert "wednesday" in said
    assert abs(found.vectors[0].score) > max(found.chance)
    capital = find_value_vectors(lm, neurons=[Neuron(24, 1005)]).vectors[0]
    assert any("capital" in p.text for p in capital.bottom)


def test_the_lens_ends_in_paris(lm):
    lens = logit_lens(lm, "The capital city of France is")
    assert lens.answer.strip() == "Paris"
    assert lens.settled > 20
    assert lens.answer_rank[0] > 100
