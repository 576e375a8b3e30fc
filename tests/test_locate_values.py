"""Value vectors and the logit lens: projections, searches, and the model's own words."""

from __future__ import annotations

import pytest
import torch

import errata
from errata.errors import ConfigError, ErrataError, RequestError
from errata.evaluation.schema import CostMeter
from errata.lm.activations import capture
from errata.lm.tokens import prompt_ids
from errata.locate import Neuron, find_value_vectors, logit_lens, save
from errata.locate.value_vectors import Projector, by_direction, concept_direction, scores_of_words, word_tokens
from errata.locate.vocabulary import Vocabulary, norm_gain
from errata.testing import FAMILIES, VARIANTS, tiny, tiny_tokenizer
from reference.odd_model import odd_model
from reference.plain_model import plain_logits
from reference.samples import hooks_on, one_sentence

WORDS = ["Rome", "Paris", "London"]
PROMPT = "The capital of Italy is"


def tiny_lm(family="llama", **options):
    return errata.load(tiny(family, **options))


@pytest.mark.parametrize("family", [f for f in (*FAMILIES, *VARIANTS) if f != "mixtral"])
def test_coefficients_times_columns_are_what_the_mlp_writes(family):
    lm = tiny_lm(family)
    path = lm.layer(1).out_projection
    with torch.no_grad(), capture(lm.model, inputs=[path], outputs=[path]) as seen:
        plain_logits(lm.model, prompt_ids(lm.tokenizer, PROMPT))
    bias = getattr(lm.out_projection(1), "bias", None)
    made = seen.inputs[path] @ lm.weight(1).T + (0 if bias is None else bias)
    torch.testing.assert_close(made, seen.outputs[path], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gain_is_found_whatever_form_the_norm_keeps_it_in(family):
    lm = tiny_lm(family)
    gain, centred = norm_gain(lm)
    weight = lm.model.get_submodule(lm.architecture.final_norm).weight.detach()
    wanted = weight + 1 if family in ("gemma2", "gemma3") else weight
    torch.testing.assert_close(gain, wanted, atol=2e-3, rtol=2e-3)
    assert centred == (family in ("bloom", "falcon", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt"))


def test_projection_equals_what_the_models_tail_adds():
    """A state moved by v moves the logits along E (g v), up to the norm's scale: exact for the direction of large v."""
    for family in ("llama", "gpt2", "gemma3"):
        lm = tiny_lm(family)
        vector = lm.weight(2).T[5].float()
        norm = lm.model.get_submodule(lm.architecture.final_norm)
        with torch.no_grad():
            both = norm(torch.stack([1e3 * vector, -1e3 * vector])[None])[0]
        head = lm.model.get_submodule(lm.architecture.head).weight.detach()
        wanted = ((both[0] - both[1]) / 2) @ head.T
        found = Vocabulary(lm).project(vector[None])[0]
        assert float(torch.nn.functional.cosine_similarity(found, wanted, dim=0)) > 0.9999


def test_standardised_equals_the_whole_projection():
    lm = tiny_lm("gpt2")
    projector = Projector(lm)
    vectors = lm.weight(1).T[:20]
    whole = projector.vocabulary.project(vectors)
    wanted = (whole - whole.mean(1, keepdim=True)) / whole.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(projector.standardised(vectors), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(projector.standardised(vectors, [7, 99]), wanted[:, [7, 99]], atol=1e-4, rtol=1e-4)


def test_scaling_keeps_the_ranking_and_negation_turns_it_round():
    lm = tiny_lm()
    projector = Projector(lm)
    vectors = lm.weight(1).T[:6]
    high, low = projector.ends(vectors, 8)
    assert [[p.token for p in row] for row in projector.ends(7 * vectors, 8)[0]] == [[p.token for p in r] for r in high]
    turned_high, turned_low = projector.ends(-vectors, 8)
    assert [[p.token for p in row] for row in turned_high] == [[p.token for p in row] for row in low]
    assert [[p.token for p in row] for row in turned_low] == [[p.token for p in row] for row in high]
    special = set(lm.tokenizer.all_special_ids)
    assert not special & {p.token for row in (*high, *low) for p in row}


def test_words_find_the_column_that_was_made_for_them():
    lm = tiny_lm("gpt2")
    direction = concept_direction(lm, WORDS)
    with torch.no_grad():
        lm.weight(2)[:, 33] = -3 * direction  # a view of the weight
    by_words = find_value_vectors(lm, words=WORDS, limit=5)
    by_concept = find_value_vectors(lm, concept=WORDS, limit=5)
    for found in (by_words, by_concept):
        assert found.vectors[0].neuron == Neuron(2, 33)
        assert found.vectors[0].score < 0
    assert by_concept.vectors[0].score == pytest.approx(-1.0, abs=1e-4)
    wanted = {token for word in word_tokens(lm, WORDS) for token in word}
    assert wanted & {p.token for p in by_words.vectors[0].bottom}
    assert by_words.metrics()["best_score"].base is not None


def test_search_equals_a_plain_search():
    lm = tiny_lm()
    found = find_value_vectors(lm, words=WORDS, limit=4, layers=[1, 3])
    projector = Projector(lm)
    tokens = word_tokens(lm, WORDS)
    plain = []
    for layer in (1, 3):
        whole = projector.vocabulary.project(lm.weight(layer).T)
        whole = (whole - whole.mean(1, keepdim=True)) / whole.std(1, correction=0, keepdim=True)
        score = torch.stack([whole[:, list(word)].mean(1) for word in tokens]).mean(0)
        torch.testing.assert_close(scores_of_words(projector, tokens, lm.weight(layer).T), score, atol=1e-4, rtol=1e-4)
        plain += [(float(value), Neuron(layer, i)) for i, value in enumerate(score)]
    plain.sort(key=lambda pair: -abs(pair[0]))
    assert [v.neuron for v in found.vectors] == [neuron for _, neuron in plain[:4]]


def test_peak_and_given_neurons():
    lm = tiny_lm()
    peak = find_value_vectors(lm, limit=3, top=4)
    first = peak.vectors[0]
    ends = [first.top[0].score, first.bottom[0].score]
    assert abs(first.score) >= max(abs(e) for e in ends) - 1e-4  # special tokens may be the peak
    given = find_value_vectors(lm, neurons=[first.neuron, Neuron(0, 2)], top=4)
    assert {v.neuron for v in given.vectors} == {first.neuron, Neuron(0, 2)}
    assert any(v.top == first.top for v in given.vectors)


def test_without_the_gain_it_is_the_papers_projection():
    lm = tiny_lm()
    vocabulary = Vocabulary(lm, gain=False)
    vectors = lm.weight(0).T[:3]
    head = lm.model.get_submodule(lm.architecture.head).weight.detach()
    torch.testing.assert_close(vocabulary.project(vectors), vectors @ head.T)


def test_values_are_saved_and_become_patches(tmp_path):
    lm = tiny_lm()
    found = find_value_vectors(lm, words=WORDS, limit=3)
    with CostMeter() as meter:
        pass
    save(found, tmp_path / "v", lm=lm, cost=meter.cost())
    assert (tmp_path / "v" / "values.png").stat().st_size > 3000
    patch = found.suppress(2)
    assert sum(update.rank for update in patch.updates) == 2


@pytest.mark.parametrize("family", [*FAMILIES, "falcon_serial", "opt_postnorm"])
def test_the_last_layer_of_the_lens_is_the_model(family):
    lm = tiny_lm(family)
    before, hooks = lm.fingerprint(), hooks_on(lm.model)
    lens = logit_lens(lm, PROMPT, top=3)
    with torch.no_grad():
        wanted = plain_logits(lm.model, prompt_ids(lm.tokenizer, PROMPT)).float().softmax(-1)
    for position, cell in enumerate(lens.guesses[-1]):
        best = wanted[position].topk(3)
        assert [g.token for g in cell] == best.indices.tolist()
        assert [g.probability for g in cell] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert lens.answer_rank[-1] == 1
    assert lens.guesses[-1][-1][0].text == lens.answer
    assert lm.fingerprint() == before
    assert hooks_on(lm.model) == hooks


def test_an_inner_layer_of_the_lens_is_its_state_through_norm_and_head():
    lm = tiny_lm("llama")
    lens = logit_lens(lm, PROMPT, answer="Rome")
    ids = prompt_ids(lm.tokenizer, PROMPT)
    path = lm.architecture.blocks[1].path
    with torch.no_grad(), capture(lm.model, outputs=[path]) as seen:
        plain_logits(lm.model, ids)
    norm, head = (lm.model.get_submodule(p) for p in (lm.architecture.final_norm, lm.architecture.head))
    with torch.no_grad():
        wanted = head(norm(seen.outputs[path]))[0].softmax(-1)
    assert lens.guesses[1][-1][0].token == int(wanted[-1].argmax())
    assert lens.entropy[1][-1] == pytest.approx(float(-(wanted[-1] * wanted[-1].log()).sum()), rel=1e-4)
    assert "".join(lens.pieces) == PROMPT


def test_the_lens_of_a_model_of_no_known_family():
    lm = errata.load((odd_model(), tiny_tokenizer()))
    lens = logit_lens(lm, PROMPT)
    assert lens.answer_rank[-1] == 1
    assert 0 <= lens.settled < lm.num_layers


def test_the_lens_is_saved(tmp_path):
    lm = tiny_lm()
    with CostMeter() as meter:
        pass
    save(logit_lens(lm, "It cost $5 and $6\nin Paris"), tmp_path / "l", lm=lm, cost=meter.cost())
    assert (tmp_path / "l" / "lens.svg").is_file()


def test_bad_requests_are_one_sentence():
    lm = tiny_lm()
    cases = [
        (RequestError, lambda: find_value_vectors(lm, words=[" "])),
        (RequestError, lambda: word_tokens(lm, [])),
        (ConfigError, lambda: find_value_vectors(lm, words=["a"], concept=["b"])),
        (ConfigError, lambda: find_value_vectors(lm, words=["Rome"], limit=0)),
        (ConfigError, lambda: find_value_vectors(lm, words=["Rome"], top=0)),
        (ErrataError, lambda: find_value_vectors(lm, words=["Rome"], layers=[9])),
        (ConfigError, lambda: find_value_vectors(lm, neurons=[Neuron(0, 9999)])),
        (RequestError, lambda: by_direction(lm, torch.zeros(32))),
        (RequestError, lambda: by_direction(lm, torch.ones(31))),
        (RequestError, lambda: logit_lens(lm, "")),
        (RequestError, lambda: logit_lens(lm, PROMPT, answer=" ")),
        (ConfigError, lambda: logit_lens(lm, PROMPT, top=0)),
    ]
    for kind, call in cases:
        with pytest.raises(kind) as error:
            call()
        assert one_sentence(error)
