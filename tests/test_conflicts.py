"""Edits in each other's way: found by their texts, by what was made before, and by their keys in a model."""

from __future__ import annotations

import json

import pytest
import torch

import errata
from errata.errors import ConfigError
from errata.methods.conflicts import KINDS, NOTES
from errata.methods.locate_then_edit import parallel
from errata.methods.locate_then_edit.parallel import cosines_of, parallel_pairs, unit_keys
from errata.methods.questions import names, plain, tied
from errata.patch import Dense, Patch
from errata.testing import tiny


def edit(prompt, subject, target) -> errata.Edit:
    return errata.Edit(prompt=prompt, subject=subject, target_new=target)


def kinds(*edits, **options) -> list[str]:
    return [conflict.kind for conflict in errata.find_conflicts(edits, **options)]


CITY = "{} is located in the city of"
ROME, BERLIN = (edit(CITY, "The Eiffel Tower", city) for city in ("Rome", "Berlin"))


@pytest.fixture(scope="module")
def lm():
    return errata.load(tiny("llama"), device="cpu")


# By text.


def test_unrelated_edits_and_none_at_all_are_in_nobodys_way():
    assert kinds() == []
    assert kinds(ROME) == kinds(ROME, edit(CITY, "The Louvre", "Rome"), edit("{} is made of", "Ice", "water")) == []
    assert errata.find_conflicts(ROME) == []


@pytest.mark.parametrize(
    "other",
    [
        BERLIN,
        edit("{} is located in the city of", "the eiffel tower", "Berlin"),
        edit("{} is located, in the  city of: ", "The Eiffel Tower", "Berlin"),
        edit("The {} is located in the city of", "Eiffel Tower", "Berlin"),  # the subject cut elsewhere
        edit(CITY, "The Eiffel Tower", "rome"),  # refused by errata.edit too
    ],
)
def test_one_question_with_two_answers(other):
    (conflict,) = errata.find_conflicts([ROME, other])
    assert conflict.kind == "same question"
    assert not conflict.note
    assert (conflict.first, conflict.second, conflict.carried) == (ROME, other, False)
    assert "'Rome'" in conflict.sentence
    assert conflict.cosine is conflict.layer is None


def test_three_answers_are_three_pairs_and_a_repeat_adds_one_remark():
    paris = edit(CITY, "The Eiffel Tower", "Paris")
    found = errata.find_conflicts([ROME, BERLIN, paris, BERLIN])
    assert [c.kind for c in found] == ["same question"] * 3 + ["duplicate"]
    assert found[-1].first == found[-1].second == BERLIN
    assert found[-1].note


def test_both_directions_of_a_fact():
    mother = edit("The mother of {} is", "Anna", "Beate")
    child = edit("The child of {} is", "Beate", "Anna")
    (conflict,) = errata.find_conflicts([mother, child])
    assert conflict.kind == "reverse"
    assert "both can be true" in conflict.sentence
    (same,) = errata.find_conflicts([mother, edit("The mother of {} is", "Beate", "Anna")])
    assert "unless the relation is mutual" in same.sentence
    longer = edit("The child of {} is", "Mrs Beate Keller", "little Anna")
    assert kinds(mother, longer) == ["reverse"]


def test_a_chain_is_a_remark_whichever_edit_comes_first_and_needs_the_whole_name():
    capital, mayor = edit("The capital of {} is", "France", "Lyon"), edit("The mayor of {} is", "Lyon", "Viktor")
    for order in ([capital, mayor], [mayor, capital]):
        (conflict,) = errata.find_conflicts(order)
        assert (conflict.kind, conflict.note) == ("chain", True)
        assert "'Lyon' is the answer of one" in conflict.sentence
    assert kinds(capital, edit("The rector of {} is", "the University of Lyon", "Viktor")) == []


def test_an_edit_that_answers_with_its_own_subject_is_no_pair():
    assert kinds(edit("{} is called", "Anna", "Anna")) == []


def test_the_gravest_kind_comes_first():
    chain = [edit("The capital of {} is", "France", "Lyon"), edit("The mayor of {} is", "Lyon", "Viktor")]
    assert kinds(*chain, ROME, BERLIN) == ["same question", "chain"]
    assert set(NOTES) < set(KINDS)


def test_plain_text_keeps_what_has_no_letters():
    assert plain("  The “Café”,\nOPEN! ") == "the café open"
    assert plain("!?") == "!?"
    assert names("Lyon", "the mayor of Lyon")
    assert names("the old town of Lyon", "Lyon")
    assert not names("Lyon", "Lyonnais")


def test_ties_are_found_by_lookup_in_a_long_list():
    edits = [edit("{} likes", f"Person {i}", f"Thing {i}") for i in range(5000)]
    edits.append(edit("{} belongs to", "Thing 4321", "Person 4321"))
    assert sorted(tied(edits)) == [(4321, 5000), (5000, 4321)]


# With what was made before.


def test_edits_made_before_are_compared_with_those_asked_but_not_with_one_another(lm):
    patch = Patch.create(
        lm, [Dense("model.norm.weight", torch.zeros(lm.model.config.hidden_size))], method="rome", config={},
        edits=[ROME, BERLIN],
    )  # fmt: skip
    found = errata.find_conflicts([ROME], against=[patch])
    assert [(c.kind, c.carried) for c in found] == [("same question", True), ("duplicate", True)]
    assert "edited to 'Berlin' before" in found[0].sentence
    assert errata.find_conflicts([edit(CITY, "The Louvre", "Rome")], against=[patch, ROME]) == []
    with patch.applied(lm):
        carried = errata.find_conflicts([ROME], lm, against=[patch])
    assert [c.kind for c in carried] == ["same question", "duplicate"]


# By key.


def test_keys_are_those_that_the_methods_edit_and_the_model_is_left_alone(lm):
    before = lm.fingerprint()
    edits = [ROME, edit("The capital of {} is", "France", "Lyon")]
    keys = unit_keys(lm, edits, [2, 1])
    assert list(keys) == [1, 2]
    path = lm.layer(1).out_projection
    for i, one in enumerate(edits):
        end = one.subject_span[1]
        ids = lm.tokenizer(one.text[:end], return_tensors="pt").input_ids
        with errata.lm.activations.capture(lm.model, inputs=[path]) as seen, torch.no_grad():
            lm.model(ids)
        key = seen.inputs[path].reshape(ids.shape[1], -1)[-1]
        torch.testing.assert_close(keys[1][i], key / key.norm(), rtol=1e-4, atol=1e-5)
    assert lm.fingerprint() == before
    assert unit_keys(lm, edits, []) == unit_keys(lm, [], [1]) == {}


def test_two_relations_of_one_subject_at_the_beginning_have_one_key(lm):
    designed = edit("{} was designed by", "The Eiffel Tower", "Leonardo")
    (conflict,) = errata.find_conflicts([ROME, designed], lm)
    assert conflict.kind == "parallel keys"
    assert conflict.cosine == pytest.approx(1.0, abs=1e-5)
    assert conflict.layer == 0  # the lowest of those that are alike
    assert "one value must serve both" in conflict.sentence
    # One answer for both does no harm, and texts alone show nothing.
    assert kinds(ROME, edit("{} was designed by", "The Eiffel Tower", "rome"), lm=lm) == []
    assert kinds(ROME, designed) == []


def test_the_bound_and_the_layers_are_the_callers(lm):
    louvre = edit("The halls of {} are in", "the Louvre", "Oslo")
    (near,) = errata.find_conflicts([ROME, louvre], lm, layer=1, parallel=1e-6)
    keys = unit_keys(lm, [ROME, louvre], [1])[1]
    assert near.cosine == pytest.approx(float(keys[0] @ keys[1]), abs=1e-6)
    assert near.layer == 1
    assert f"{near.cosine:.3f}" in near.sentence
    assert kinds(ROME, louvre, lm=lm, layer=1, parallel=abs(near.cosine) + 1e-3) == []
    both = errata.find_conflicts([ROME, louvre], lm, layer=[1, 2], parallel=1e-6)
    assert abs(both[0].cosine) >= abs(near.cosine)
    assert kinds(ROME, louvre, lm=lm, layer=(), parallel=1e-6) == []


def test_a_pair_known_by_its_text_gets_its_cosine_and_keeps_its_kind(lm):
    chain = [edit("The capital of {} is", "France", "Lyon"), edit("The mayor of {} is", "Lyon", "Viktor")]
    found = errata.find_conflicts([ROME, BERLIN, *chain], lm, parallel=1.0)
    assert [c.kind for c in found if "parallel" not in c.kind] == ["same question", "chain"]
    assert all(c.cosine is not None and c.layer is not None for c in found)
    assert errata.find_conflicts(chain, lm, parallel=1e-6)[0].kind == "parallel keys"


@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_blocks_find_what_the_whole_matrix_shows(rows, monkeypatch):
    monkeypatch.setattr(parallel, "ROWS_AT_ONCE", rows)
    keys = torch.nn.functional.normalize(torch.randn(11, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = keys @ keys.T
    for first in (None, 4):
        found = parallel_pairs(keys, 0.7, first=first)
        above = {(i, j) for i in range(first or 11) for j in range(i + 1, 11) if abs(whole[i, j]) >= 0.7}
        assert set(found) == above
        assert any(cosine < 0 for cosine in found.values())
        assert cosines_of(keys, list(found)) == pytest.approx(found, abs=1e-6)
    assert cosines_of(keys, []) == {}


@pytest.mark.parametrize("bound", [0.0, -0.5, 1.1, float("nan")])
def test_a_bound_that_is_no_cosine_is_refused(bound):
    with pytest.raises(ConfigError, match="at most 1"):
        errata.find_conflicts([ROME], parallel=bound)


def test_a_layer_that_is_not_there_is_refused(lm):
    with pytest.raises(errata.ErrataError, match="no layer 99"):
        errata.find_conflicts([ROME, BERLIN], lm, layer=99)


def test_a_conflict_is_plain_json(lm):
    (conflict,) = errata.find_conflicts([ROME, BERLIN], lm)
    told = json.loads(json.dumps(conflict.to_dict()))
    assert told["kind"] == "same question"
    assert told["first"]["edit_id"] == ROME.edit_id
    assert told["second"]["target_new"] == "Berlin"
    assert told["note"] is told["carried"] is False
    assert told["cosine"] == pytest.approx(1.0, abs=1e-5)
