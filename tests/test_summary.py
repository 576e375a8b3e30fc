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
