"""Causal tracing equals the published way, cell by cell, and keeps what must hold whatever the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import errata
from errata.errors import ArchitectureError, ConfigError, RequestError
from errata.lm.tokens import encode, target_ids, tokens_of
from errata.locate.corruption import Corrupter, Corruption, embedded
from errata.locate.patching import Cell, Patching
from errata.locate.tracing import Kind, TraceOptions, grid
from errata.records import Edit, Fact
from errata.testing import FAMILIES, VARIANTS, tiny
from reference.plain_trace import plain_cell, plain_outputs
from reference.samples import hooks_on, one_sentence

FACT = Fact(prompt="The mother tongue of {} is", subject="Maria", answer="German")
SHORT = Fact(prompt="{} is the capital of", subject="Rome", answer="France")
ENDS = Fact(prompt="People say of {}", subject="Maria", answer="river")
KINDS = tuple(Kind)
DENSE = [name for name in (*FAMILIES, *VARIANTS) if name != "mixtral"]
_models = {}


def model(family, **kw):
    key = (family, *kw.items())
    if key not in _models:
        _models[key] = errata.load(tiny(family, **kw), device="cpu")
    return _models[key]


def patching(lm, fact=FACT, samples=3, level=1.0, kinds=KINDS):
    encoded = encode(lm.tokenizer, fact.text)
    span = tokens_of(encoded, fact.subject_span)
    noise = torch.Generator().manual_seed(1)
    clean = embedded(lm, encoded.ids[slice(*span)])
    corrupted = clean + level * torch.randn((samples, *clean.shape), generator=noise)
    blocks = lm.architecture.blocks
    outputs = [b.out_projection for b in blocks if b.out_projection] + [b.attention_output for b in blocks]
    target = target_ids(lm.tokenizer, fact.text, fact.answer)
    return Patching(lm, encoded.ids, [target], span, corrupted, outputs=outputs), encoded.ids, span, corrupted, target


def plain_grid(lm, ids, span, corrupted, target, kind, options):
    """The probability at every token and layer, by the plain way."""
    architecture, depth = lm.architecture, lm.num_layers
    row = [*ids, *target[:-1]]
    found = np.full((len(ids), depth), np.nan)
    mlps = [block.out_projection for block in architecture.blocks]
    attentions = [block.attention_output for block in architecture.blocks]
    for token in [span[1] - 1] if kind.severed else range(len(ids)):
        outputs = mlps if kind in (Kind.MLP, Kind.SEVERED_MLP) else attentions
        held = plain_outputs(lm.model, architecture.embedding, row, span, corrupted, outputs, token)
        for layer in range(depth):
            here, kept = [(architecture.blocks[layer].path, [token])], {}
            if kind in (Kind.MLP, Kind.ATTENTION):
                here = [(outputs[i], [token]) for i in options.layers(layer, depth)]
            if kind.severed:
                kept = {(path, token): held[path] for path in outputs[layer + 1 :]}
            logs = plain_cell(
                lm.model, architecture.embedding, row, target, len(ids), span, corrupted, restored=here, held=kept
            )
            found[token, layer] = float(logs.double().exp().mean())
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma3", "falcon", "opt_postnorm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_equals_the_plain_way(family, kind):
    lm = model(family)
    options = TraceOptions(window=3)
    for fact in (FACT, SHORT) if family in ("llama", "gpt2") else (FACT,):
        patched, ids, span, corrupted, target = patching(lm, fact)
        fast = grid([patched], len(ids), span, kind, options)
        plain = plain_grid(lm, ids, span, corrupted, target, kind, options)
        np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", [name for name in DENSE if name not in ("llama", "gpt2", "gptj", "gemma3")])
def test_a_trace_equals_the_plain_way_in_every_family(family):
    lm = model(family, layers=3) if family != "gpt_neo" else model(family)
    patched, ids, span, corrupted, target = patching(lm, FACT, samples=2)
    for kind in KINDS:
        fast = grid([patched], len(ids), span, kind, TraceOptions(window=2))
        plain = plain_grid(lm, ids, span, corrupted, target, kind, TraceOptions(window=2))
        np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=1e-7)


def test_a_trace_equals_the_plain_way_where_passes_cannot_be_split(monkeypatch):
    lm = errata.load(tiny("gpt2"), device="cpu")
    monkeypatch.setattr("errata.lm.forward.supports_splitting", lambda _: False)
    patched, ids, span, corrupted, target = patching(lm)
    for kind in KINDS:
        fast = grid([patched], len(ids), span, kind, TraceOptions(window=2))
        plain = plain_grid(lm, ids, span, corrupted, target, kind, TraceOptions(window=2))
        np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=1e-7)


def test_passes_of_a_model_that_is_traced_first_are_split():
    lm = errata.load(tiny("llama"), device="cpu")
    patched, *_ = patching(lm)
    assert patched._kept.restartable
    assert patched._kept.split_at(3).ids.shape[1] == len(patched._row) - 3


def test_the_size_of_a_pass_changes_no_number(monkeypatch):
    lm = model("llama")
    patched, ids, span, *_ = patching(lm)
    whole = grid([patched], len(ids), span, Kind.MLP, TraceOptions(window=2))
    for overhead in (0, 1e9):  # one cell a pass, all cells in one
        monkeypatch.setattr("errata.locate.patching.OVERHEAD", {"cpu": overhead})
        np.testing.assert_allclose(grid([patched], len(ids), span, Kind.MLP, TraceOptions(window=2)), whole, rtol=1e-5)


# What must hold.


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2", "bloom"])
def test_restoring_every_token_of_a_layer_gives_the_clean_run(family):
    patched, ids, span, _, target = patching(model(family))
    everything = len(ids) + len(target) - 1 - span[0]
    layers = range(patched.lm.num_layers)
    cells = [Cell(layer + 1, patched.clean_state(layer + 1, span[0], everything)) for layer in layers]
    restored = patched.restored(span[0], cells)
    torch.testing.assert_close(restored, patched.clean.expand_as(restored), atol=1e-5, rtol=1e-5)


def test_restoring_nothing_gives_the_corrupted_run():
    patched, _, span, *_ = patching(model("llama"))
    restored = patched.restored(span[0], [Cell(0), Cell(2), Cell(4)])
    torch.testing.assert_close(restored, patched.corrupted.expand_as(restored), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3"])
def test_without_noise_nothing_has_an_effect(family):
    noiseless = Corruption(multiple=0.0)
    item = errata.locate.trace(model(family), said("llama"), corruption=noiseless, kinds=KINDS).facts[0]
    assert item.total_effect == pytest.approx(0, abs=1e-6)
    for kind in KINDS:
        np.testing.assert_allclose(np.nan_to_num(item.effect(kind)), 0, atol=1e-6)


def said(_family, prompt="The mother tongue of {} is", subject="Maria Gonzalez"):
    """A fact that any model predicts: whatever it says itself."""
    return Fact(prompt=prompt, subject=subject)


def test_the_edges_of_a_grid():
    item = errata.locate.trace(model("llama"), said("llama"), kinds=KINDS).facts[0]
    state = item.scores[Kind.STATE]
    assert (state[: item.subject[0]] == item.corrupted).all()  # nothing before the subject can matter
    assert state[-1, -1] == pytest.approx(item.clean, rel=1e-6)
    np.testing.assert_allclose(state[:-1, -1], item.corrupted, rtol=1e-6)
    for kind in (Kind.SEVERED_MLP, Kind.SEVERED_ATTENTION):  # above the last layer there is nothing to sever
        assert item.scores[kind][item.subject[1] - 1, -1] == pytest.approx(item.corrupted)
        assert np.isnan(item.scores[kind]).sum() == (len(item.tokens) - 1) * 4


def test_a_prompt_that_ends_with_its_subject():
    item = errata.locate.trace(model("gpt2"), said("gpt2", "People say of {}")).facts[0]
    assert item.subject[1] == len(item.tokens)
    assert item.scores[Kind.STATE][-1, -1] == pytest.approx(item.clean, rel=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    runs = [errata.locate.trace(model("llama"), said("llama"), kinds=("state",), seed=seed) for seed in (1, 1, 2)]
    first, again, other = (run.facts[0].scores[Kind.STATE] for run in runs)
    assert (first == again).all()
    assert not (first == other).all()


def test_a_fact_s_noise_depends_on_no_other_fact():
    lm, level = model("llama"), Corruption(level=0.3)
    more = said("llama", "The river {} flows to", "Orla")
    alone = errata.locate.trace(lm, said("llama"), kinds=("state",), corruption=level)
    together = errata.locate.trace(lm, [more, said("llama")], kinds=("state",), corruption=level)
    assert (alone.facts[0].scores[Kind.STATE] == together.facts[1].scores[Kind.STATE]).all()


def test_the_model_is_left_as_it_was():
    lm = model("gptj")
    before, hooks = lm.fingerprint(), hooks_on(lm.model)
    errata.locate.trace(lm, said("gptj"), kinds=KINDS)
    assert (lm.fingerprint(), hooks_on(lm.model)) == (before, hooks)


def test_an_answer_of_several_tokens_is_scored_as_a_product():
    lm = model("llama")
    fact = Fact(prompt="The mother tongue of {} is", subject="Maria", answer="Stockholm newspaper")
    patched, ids, _, _, target = patching(lm, fact)
    assert len(target) > 1
    logs = lm.model(input_ids=torch.tensor([[*ids, *target[:-1]]])).logits[0].detach().log_softmax(-1)
    wanted = sum(float(logs[len(ids) - 1 + j, token]) for j, token in enumerate(target))
    assert float(patched.clean.sum()) == pytest.approx(wanted, rel=1e-5)


def test_mixtures_of_experts_give_states_and_attention():
    lm = model("mixtral")
    found = errata.locate.trace(lm, said("mixtral"), kinds=("state", "attention", "severed-attention")).facts[0]
    assert found.scores[Kind.STATE][-1, -1] == pytest.approx(found.clean, rel=1e-5)
    with pytest.raises(ArchitectureError, match="mixture of experts") as error:
        errata.locate.trace(lm, said("mixtral"), kinds=("mlp",))
    assert one_sentence(error)


# Corruption.


def test_sigma_is_the_spread_of_the_subjects_embeddings():
    lm = model("llama")
    subjects = [(5, 6, 7), (8,)]
    corrupter = Corrupter(lm, subjects, Corruption(), samples=2000)
    wanted = embedded(lm, [5, 6, 7, 8]).std(correction=0)
    assert corrupter.sigma == pytest.approx(float(wanted), rel=1e-5)
    noise = corrupter.rows((8,), "a") - embedded(lm, (8,))
    assert float(noise.std()) == pytest.approx(3 * corrupter.sigma, rel=0.03)


def test_uniform_noise_stays_within_its_level_and_covariance_has_that_of_text():
    lm = model("llama")
    uniform = Corrupter(lm, [(5,)], Corruption(kind="uniform", level=0.2), samples=500)
    noise = uniform.rows((5,), "a") - embedded(lm, (5,))
    assert 0.19 < float(noise.abs().max()) <= 0.2 + 1e-6
    matched = Corrupter(lm, [(5,)], Corruption(kind="covariance", multiple=1.0), samples=8000)
    noise = (matched.rows((5,), "a") - embedded(lm, (5,)))[:, 0]
    sample = embedded(lm, encode(lm.tokenizer, errata.datasets.held_out_text()).ids)
    wanted = sample.T.cov()
    assert float((noise.T.cov() - wanted).norm() / wanted.norm()) < 0.15


def test_a_subject_is_replaced_by_others_of_as_many_tokens():
    lm = model("llama")
    replaced = Corrupter(lm, [(5,), (6,), (7, 8), (9,)], Corruption(kind="replacement"))
    rows = replaced.rows((5,), "a")
    assert rows.shape[:2] == (2, 1)
    assert {tuple(row[0].tolist()) for row in rows} == {tuple(embedded(lm, (n,))[0].tolist()) for n in (6, 9)}
    assert replaced.rows((7, 8), "a") is None


def test_facts_without_a_replacement_are_counted_and_none_left_is_said():
    lm, swap = model("llama"), Corruption(kind="replacement")
    facts = [said("", "{} is in", name) for name in ("Rome", "Anna", "Professor James Whitman")]
    sizes = [len(encode(lm.tokenizer, f" {fact.subject}").ids) for fact in facts]
    if sizes[0] != sizes[1]:
        facts[1] = said("", "They said {} is in", "Rome")
    with pytest.raises(RequestError, match="as many tokens") as error:
        errata.locate.trace(lm, facts[2], corruption=swap)
    assert one_sentence(error)


# Facts, options, measures.


def test_what_the_model_does_not_predict_is_left_out_and_counted():
    lm = model("llama")
    found = errata.locate.trace(lm, [FACT, said("llama")], kinds=("state",))
    assert [item.fact.text for item in found.facts] == [said("").text]
    assert found.what()["left_out"] == {"not predicted by the model": 1}
    for facts, words in (([FACT, SHORT], "none of the 2 facts"), ([FACT], "does not predict"), ([], "no fact")):
        with pytest.raises(RequestError, match=words) as error:
            errata.locate.trace(lm, facts)
        assert one_sentence(error)


def test_edits_are_traced_for_what_is_true():
    lm = model("llama")
    for subject in ("Maria", "Rome", "Anna", "Orla", "Paris", "Lyon"):  # the first whose answer is a word of its own
        fact = errata.locate.trace(lm, Fact(prompt="{} is", subject=subject), kinds=("state",)).facts[0].fact
        if errata.lm.score(lm, [(fact.text, fact.answer)])[0].correct == (True,):
            break
    edit = Edit(prompt="{} is", subject=fact.subject, target_new="German", target_true=fact.answer)
    assert errata.locate.trace(lm, edit, kinds=("state",)).facts[0].fact.answer == fact.answer


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": ()},
        {"kinds": ("states",)},
        {"window": 0},
        {"window": 3, "before": 3},
        {"before": -1},
        {"samples": 0},
        {"measure": "loss"},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ConfigError) as error:
        errata.locate.trace(model("llama"), FACT, **options)
    assert one_sentence(error)


@pytest.mark.parametrize("options", [{"kind": "noise"}, {"multiple": -1.0}, {"level": math.inf}])
def test_corruptions_out_of_range(options):
    with pytest.raises(ConfigError) as error:
        Corruption(**options)
    assert one_sentence(error)


def test_a_window_is_cut_off_at_both_ends():
    options = TraceOptions(window=10)
    assert [options.layers(layer, 48) for layer in (0, 20, 47)] == [range(5), range(15, 25), range(42, 48)]
    assert TraceOptions(window=10, before=4).layers(20, 48) == range(16, 26)
    assert [TraceOptions().width(depth) for depth in (4, 28, 30, 48)] == [1, 6, 6, 10]


def test_logit_difference_is_against_what_the_corrupted_runs_say():
    item = errata.locate.trace(model("llama"), said("llama"), kinds=("state",), measure="logit-difference").facts[0]
    assert item.fact.other
    assert item.fact.other != item.fact.answer
    assert item.clean > item.corrupted
    assert item.scores[Kind.STATE][-1, -1] == pytest.approx(item.clean, rel=1e-5)


def test_bias_is_the_difference_of_two_continuations_in_the_direction_the_model_prefers():
    lm = model("llama")
    facts = [Fact(prompt="{} is", subject=s, answer="German", other="river") for s in ("Maria", "Rome", "Orla")]
    found = errata.locate.trace_bias(lm, facts, kinds=("state", "mlp"))
    assert len(found.facts) == 3
    for item, fact in zip(found.facts, facts, strict=True):
        assert item.clean > 0
        assert {item.fact.answer, item.fact.other} == {"German", "river"}
        ids = encode(lm.tokenizer, fact.text).ids
        p = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].detach().softmax(-1)
        a, b = (float(p[target_ids(lm.tokenizer, fact.text, t)[0]]) for t in ("German", "river"))
        if len(target_ids(lm.tokenizer, fact.text, "German")) == len(target_ids(lm.tokenizer, fact.text, "river")) == 1:
            assert item.clean == pytest.approx(abs(a - b), rel=1e-4)
        assert item.scores[Kind.STATE][-1, -1] == pytest.approx(item.clean, rel=1e-4)
    with pytest.raises(RequestError, match="no two continuations"):
        errata.locate.trace_bias(lm, [FACT])


def test_continuations_of_different_lengths_are_traced_apart_and_add_up():
    lm = model("llama")
    long = Fact(prompt="{} is", subject="Maria", answer="German", other="Stockholm newspaper")
    item = errata.locate.trace_bias(lm, long, kinds=("state",)).facts[0]
    assert item.scores[Kind.STATE].shape == (len(item.tokens), 4)
    assert item.clean > 0
