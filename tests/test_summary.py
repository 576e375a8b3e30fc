"""Metrics are a pure function of records: hand-made records with known answers, and the invariants of the measures."""

from __future__ import annotations

import math

import pytest

from errata.evaluation.summary import perplexity_metrics, summarise


def said(*, rewrite, paraphrases=(), neighbours=(), answer="Rome, Italy.", correct=(True, True)):
    """What one phase says of a case; each pair is (log-probability of new, of true)."""
    row = {"prompt": "The Tower is in", "new_tokens_correct": list(correct), "answer": answer}
    return {
        "rewrite": [{**row, "new": rewrite[0], "true": rewrite[1]}],
        "paraphrases": [{"prompt": "p", "new": new, "true": true} for new, true in paraphrases],
        "neighbours": [{"prompt": "n", "new": new, "true": true, "answer": text} for new, true, text in neighbours],
    }


def record(before, after, name="a", **more):
    return {"case_id": name, "target_new": "Rome", "base": before, "after": after, **more}


BEFORE = said(
    rewrite=(-5.0, -1.0),
    paraphrases=[(-5.0, -1.0), (-4.0, -1.0)],
    neighbours=[(-5.0, -1.0, "Paris."), (-5.0, -1.0, "Paris.")],
    answer="Paris.",
    correct=(False, True),
)
AFTER = said(
    rewrite=(-0.5, -3.0),
    paraphrases=[(-1.0, -2.0), (-3.0, -2.0)],
    neighbours=[(-5.0, -1.0, "Paris."), (-1.0, -2.0, "Rome.")],
)


def test_each_measure_is_the_papers():
    metrics = summarise([record(BEFORE, AFTER)])
    value = {name: metric.value for name, metric in metrics.items()}
    base = {name: metric.base for name, metric in metrics.items()}
    assert (value["ES"], value["PS"], value["NS"]) == (1.0, 0.5, 0.5)
    assert (base["ES"], base["PS"], base["NS"]) == (0.0, 0.0, 1.0)
    assert value["S"] == pytest.approx(3 / (1 / 1.0 + 1 / 0.5 + 1 / 0.5))
    assert base["S"] == 0.0
    assert value["EM"] == pytest.approx(math.exp(-0.5) - math.exp(-3.0))
    assert value["NM"] == pytest.approx(((math.exp(-1) - math.exp(-5)) + (math.exp(-2) - math.exp(-1))) / 2)
    assert (value["token_accuracy"], base["token_accuracy"]) == (1.0, 0.5)
    assert (value["strict_success"], base["strict_success"]) == (1.0, 0.0)
    assert (value["unchanged_neighbours"], base["unchanged_neighbours"]) == (0.5, 1.0)
    assert all(metric.n == 1 for metric in metrics.values())


def test_swapping_new_and_true_turns_the_scores_round():
    swapped = said(rewrite=(-3.0, -0.5), paraphrases=[(-2.0, -1.0), (-2.0, -3.0)], neighbours=[(-1.0, -5.0, "x")])
    metrics = summarise([record(BEFORE, swapped)])
    one = summarise([record(BEFORE, AFTER)])
    assert metrics["ES"].value == 1 - one["ES"].value
    assert metrics["EM"].value == pytest.approx(-one["EM"].value)


def test_ties_count_for_nobody():
    tied = said(rewrite=(-2.0, -2.0), paraphrases=[(-2.0, -2.0)], neighbours=[(-2.0, -2.0, "x")])
    metrics = summarise([record(tied, tied)])
    assert (metrics["ES"].value, metrics["PS"].value, metrics["NS"].value) == (0.0, 0.0, 0.0)
    assert metrics["S"].value == 0.0


def test_cases_weigh_alike_however_many_prompts_they_have():
    many = said(rewrite=(-1.0, -2.0), neighbours=[(-5.0, -1.0, "x")] * 9)
    few = said(rewrite=(-1.0, -2.0), neighbours=[(-1.0, -5.0, "x")])
    metrics = summarise([record(many, many, "a"), record(few, few, "b")])
    assert metrics["NS"].value == 0.5


def test_a_case_without_a_known_truth_has_no_comparison_but_is_still_measured():
    bare = {"rewrite": [{"prompt": "x", "new": -1.0, "new_tokens_correct": [True], "answer": "Rome."}]}
    metrics = summarise([record(bare, bare)])
    assert "ES" not in metrics
    assert metrics["strict_success"].value == 1.0
    assert metrics["token_accuracy"].value == 1.0


def test_an_answer_is_judged_by_its_beginning():
    late = said(rewrite=(-1.0, -2.0), answer="Paris, not Rome.")
    assert summarise([record(BEFORE, late)])["strict_success"].value == 0.0


def test_perplexity_of_single_edits_is_paired_with_the_unedited_one():
    records = [
        record(BEFORE, AFTER, "a", perplexity=11.0, base_perplexity=10.0),
        record(BEFORE, AFTER, "b", perplexity=10.0, base_perplexity=10.0),
    ]
    metrics = summarise(records)
    assert metrics["perplexity"].value == pytest.approx(10.5)
    assert metrics["perplexity"].base == 10.0
    assert metrics["perplexity_change"].value == pytest.approx(0.05)


def test_a_collapsed_model_looks_collapsed():
    records = [record(BEFORE, AFTER, "a", perplexity=math.inf, base_perplexity=10.0)]
    assert summarise(records)["perplexity"].value is None  # infinite: JSON has no number for it


def test_perplexity_of_a_batch_is_over_windows():
    before = [(100.0, 50), (150.0, 50), (110.0, 50)]
    after = [(105.0, 50), (155.0, 50), (115.0, 50)]
    metrics = perplexity_metrics(before, after)
    assert metrics["perplexity"].value == pytest.approx(math.exp(375 / 150))
    assert metrics["perplexity"].base == pytest.approx(math.exp(360 / 150))
    assert metrics["perplexity_change"].value == pytest.approx(math.exp(0.1) - 1)
    assert metrics["perplexity_change"].n == 3
    assert metrics["perplexity_change"].low <= metrics["perplexity_change"].value <= metrics["perplexity_change"].high


def typed(kind, prompt="p", **more):
    return {"prompt": prompt, "kind": kind, **more}


def both(name="a", **lists):
    return record(lists, lists, name)


def values(records):
    return {name: metric.value for name, metric in summarise(records).items()}


def test_partial_credit_and_the_score_of_the_zsre_tables():
    said_of = {
        "rewrite": [{"prompt": "x", "new_tokens_correct": [True, True, False]}],
        "paraphrases": [{"prompt": "y", "new_tokens_correct": [True, False]}],
        "neighbours": [{"prompt": "z", "true_tokens_correct": [False, False, False, True]}],
    }
    found = values([record(said_of, said_of)])
    assert found["token_accuracy"] == pytest.approx(2 / 3)
    assert found["paraphrase_token_accuracy"] == 0.5
    assert found["neighbour_token_accuracy"] == 0.25
    assert found["token_S"] == pytest.approx(3 / (3 / 2 + 2 + 4))
    assert not {"ES", "PS", "S"} & set(found)


def test_locality_by_tokens_is_against_the_unedited_model_and_one_before_the_edit():
    before = {"neighbours": [typed("unrelated", likeliest_tokens=[1, 2, 3, 4], true_tokens_correct=[False] * 4)]}
    after = {"neighbours": [typed("unrelated", likeliest_tokens=[1, 2, 3, 9], true_tokens_correct=[True] * 4)]}
    metric = summarise([record(before, after)])["unchanged_neighbour_tokens"]
    assert (metric.value, metric.base) == (0.75, 1.0)


def test_types_weigh_alike_and_are_also_given_apart_where_there_are_several():
    right, wrong = {"new_tokens_correct": [True]}, {"new_tokens_correct": [False]}
    many = both(consequences=[typed("alias", **right)] * 3 + [typed("reasoning", **wrong)])
    found = values([many, both("b", consequences=[typed("alias", **wrong)])])
    assert found["portability_token_accuracy"] == pytest.approx((0.5 + 0.0) / 2)
    assert found["portability_token_accuracy.alias"] == pytest.approx((1.0 + 0.0) / 2)
    assert found["portability_token_accuracy.reasoning"] == 0.0
    one_type = values([both(consequences=[typed("alias", **right)])])
    assert not [name for name in one_type if "." in name]


def test_portability_in_free_generation_takes_any_alias_and_tells_containing_from_beginning():
    rows = [
        typed("alias", answers=["Rome", "Roma"], answer=" Roma.\n"),
        typed("alias", answers=["Rome", "Roma"], answer=" The city of Rome."),
        typed("alias", answers=["Rome"], answer=""),
        typed("alias", answers=["Rome"], answer=" Romeo."),
    ]
    found = values([both(consequences=rows)])
    assert (found["portability_contains"], found["portability_strict_success"]) == (0.5, 0.25)


def test_one_of_the_multi_hop_questions_is_enough_but_every_link_is_needed():
    right, wrong = {"answers": ["Rome"], "answer": " In Rome."}, {"answers": ["Rome"], "answer": " Paris."}
    chain = [typed("multi_hop", **right), typed("multi_hop", **wrong), typed("multi_hop", **wrong)]
    links = [typed("hop", **right), typed("hop", **wrong)]
    found = values([both(consequences=chain + links), both("b", consequences=chain[1:] + links[:1])])
    assert found["multi_hop_accuracy"] == 0.5
    assert found["portability_contains"] == pytest.approx((1 / 3 + 0) / 2)  # the links are no portability
    assert found["instance_accuracy"] == 0.5
    assert not [name for name in found if "." in name]


def test_each_of_several_edits_is_judged_by_its_own_target():
    rows = [{"prompt": "x", "answer": " Rome."}, {"prompt": "y", "answer": " Oslo.", "target_new": "Oslo"}]
    assert values([both(rewrite=rows)])["strict_success"] == 1.0
    assert values([both(rewrite=[rows[0], {**rows[1], "answer": " Rome."}])])["strict_success"] == 0.5


def test_other_languages_are_measured_apart():
    right = {"new_tokens_correct": [True], "answers": ["Rome"], "answer": " Rome."}
    wrong = {"new_tokens_correct": [False], "answers": ["Rom"], "answer": " Paris."}
    case = both(
        rewrite=[{"prompt": "x", **right}],
        translations=[typed("rewrite", language="de", **wrong), typed("paraphrase", language="de", **right)],
        consequences=[typed("one_hop", **right), typed("one_hop", language="de", **wrong)],
        neighbours=[
            typed("unrelated", likeliest_tokens=[1], answer=" a.", new=-2.0, true=-1.0),
            typed("unrelated", language="de", likeliest_tokens=[1], answer=" b.", new=-1.0, true=-2.0),
        ],
    )
    found = values([case])
    assert (found["token_accuracy"], found["token_accuracy.de"]) == (1.0, 0.0)
    assert (found["strict_success"], found["strict_success.de"]) == (1.0, 0.0)
    assert found["paraphrase_token_accuracy.de"] == 1.0
    assert (found["portability_contains"], found["portability_contains.de"]) == (1.0, 0.0)
    assert found["unchanged_neighbour_tokens.de"] == found["unchanged_neighbours.de"] == 1.0
    assert found["NS"] == 1.0
    assert "neighbour_token_accuracy.de" not in found


def test_a_question_is_judged_bare_at_the_edit_and_as_asked_elsewhere():
    rows = [{"prompt": "Where is it?", "answer": " Rome.", "asked_answer": " Paris."}]
    before = {"rewrite": rows, "neighbours": [{"prompt": "Who?", "asked_answer": " He."}]}
    after = {"rewrite": rows, "neighbours": [{"prompt": "Who?", "asked_answer": " She."}]}
    found = values([record(before, after)])
    assert (found["strict_success"], found["asked_success"]) == (1.0, 0.0)
    assert found["unchanged_neighbours"] == 0.0
