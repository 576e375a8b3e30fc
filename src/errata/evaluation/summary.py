"""From records to metrics: a pure function, so that anyone can recompute a table from ``records.jsonl``.

A record holds ``case_id``, ``target_new``, what was said ``after`` the edit and, under ``base``, by the unedited model.
Names and definitions are those of the CounterFact papers, each a mean over cases of the mean over a case's prompts:

    ES, PS   new answer likelier than the old one, at the edit's prompt / its paraphrases
    NS       a neighbour's own answer likelier than the new one
    S        harmonic mean of ES, PS and NS
    EM, PM, NM   by how much: difference of the (geometric mean token) probabilities
    token_accuracy      share of the new answer's tokens that are the likeliest, teacher-forced
    strict_success      the greedy answer begins with the new one (free generation, natural stop)
    unchanged_neighbours   the greedy answer at a neighbour is what it was
    consequences        the consequence's answer likelier than the old object
    GE       n-gram entropy of sampled text, x100
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from errata.evaluation.intervals import harmonic_mean_of_means, mean, ratio_of_means
from errata.evaluation.judges import first_answer, same_answer, strict_success
from errata.evaluation.schema import Metric

Record = Mapping[str, Any]


def summarise(records: Sequence[Record], *, seed: int = 0) -> dict[str, Metric]:
    """All metrics that the records allow, each with its n, 95% interval and the unedited model's value.

    A record with an ``error`` (the edit could not be made) counts as a failure: its after-scores are the base's.
    """
    metrics: dict[str, Metric] = {}
    for name, measure in PER_CASE.items():
        after = _column(records, "after", measure)
        base = _column(records, "base", measure)
        if after:
            metrics[name] = Metric.of(mean(after, seed=seed), base=mean(base, seed=seed).value if base else None)
    if all(name in metrics for name in ("ES", "PS", "NS")):
        whole = [r for r in records if all(PER_CASE[name](r, "after") is not None for name in ("ES", "PS", "NS"))]
        columns = [_column(whole, "after", PER_CASE[name]) for name in ("ES", "PS", "NS")]
        bases = [_column(whole, "base", PER_CASE[name]) for name in ("ES", "PS", "NS")]
        both = len({len(column) for column in (*columns, *bases)}) == 1
        metrics["S"] = Metric.of(
            harmonic_mean_of_means(columns, seed=seed),
            base=harmonic_mean_of_means(bases, seed=seed).value if both else None,
        )
    metrics.update(_perplexities(records, seed))
    return metrics


def perplexity_metrics(
    before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]], *, seed: int = 0
) -> dict[str, Metric]:
    """Perplexity of one held-out text under one edited model; n and the interval are over its windows.

    Args:
        before: (summed NLL, tokens) of each window under the unedited model. after: under the edited one.
        seed: of the bootstrap.
    """
    tokens = sum(count for _, count in after)
    base = math.exp(sum(total for total, _ in before) / tokens)
    value = math.exp(min(700.0, sum(total for total, _ in after) / tokens))
    # Windows have (nearly) equal length, so the mean of their means stands for the mean over tokens in the interval.
    shift = mean([a / n - b / n for (a, n), (b, _) in zip(after, before, strict=True)], seed=seed)
    change = Metric(
        value=value / base - 1,
        low=math.exp(min(700.0, shift.low)) - 1,
        high=math.exp(min(700.0, shift.high)) - 1,
        n=len(after),
        base=0.0,
    )
    low, high = (base * (1 + bound) if bound is not None else None for bound in (change.low, change.high))
    return {
        "perplexity": Metric(value=value, low=low, high=high, n=len(after), base=base),
        "perplexity_change": change,
    }


def _perplexities(records: Sequence[Record], seed: int) -> dict[str, Metric]:
    """Mean perplexity over edited models, where each case had one of its own."""
    after = [r["perplexity"] for r in records if r.get("perplexity") is not None]
    if not after:
        return {}
    base = [r["base_perplexity"] for r in records if r.get("perplexity") is not None]
    if not all(math.isfinite(value) for value in after):
        worst = Metric(value=math.inf, low=None, high=None, n=len(after), base=base[0])
        return {"perplexity": worst}
    change = ratio_of_means(base, after, seed=seed)
    return {
        "perplexity": Metric.of(mean(after, seed=seed), base=sum(base) / len(base)),
        "perplexity_change": Metric(
            value=change.value - 1, low=change.low - 1, high=change.high - 1, n=change.n, base=0.0
        ),
    }


def _column(records: Sequence[Record], phase: str, measure: Callable[[Record, str], float | None]) -> list[float]:
    values = (measure(record, phase) for record in records)
    return [value for value in values if value is not None]


def _over(kind: str, judge: Callable[[Mapping[str, Any]], float | None]) -> Callable[[Record, str], float | None]:
    """Mean of a judgement over a case's prompts of one kind; None where it has none."""

    def measure(record: Record, phase: str) -> float | None:
        rows = (record.get(phase) or {}).get(kind) or []
        values = [value for row in rows if (value := judge(row)) is not None]
        return sum(values) / len(values) if values else None

    return measure


def _prefers(first: str, second: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: float(row[first] > row[second]) if first in row and second in row else None


def _by(first: str, second: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: math.exp(row[first]) - math.exp(row[second]) if first in row and second in row else None


def _tokens(row: Mapping[str, Any]) -> float | None:
    correct = row.get("new_tokens_correct")
    return sum(correct) / len(correct) if correct else None


def _strict(record: Record, phase: str) -> float | None:
    rows = (record.get(phase) or {}).get("rewrite") or []
    answers = [row["answer"] for row in rows if "answer" in row]
    return float(strict_success(first_answer(answers[0]), record["target_new"])) if answers else None


def _unchanged(record: Record, phase: str) -> float | None:
    before = (record.get("base") or {}).get("neighbours") or []
    now = (record.get(phase) or {}).get("neighbours") or []
    same = [
        float(same_answer(b["answer"], a["answer"]))
        for b, a in zip(before, now, strict=False)
        if "answer" in a and "answer" in b
    ]
    return sum(same) / len(same) if same else None


PER_CASE: dict[str, Callable[[Record, str], float | None]] = {
    "ES": _over("rewrite", _prefers("new", "true")),
    "PS": _over("paraphrases", _prefers("new", "true")),
    "NS": _over("neighbours", _prefers("true", "new")),
    "EM": _over("rewrite", _by("new", "true")),
    "PM": _over("paraphrases", _by("new", "true")),
    "NM": _over("neighbours", _by("true", "new")),
    "token_accuracy": _over("rewrite", _tokens),
    "paraphrase_token_accuracy": _over("paraphrases", _tokens),
    "strict_success": _strict,
    "unchanged_neighbours": _unchanged,
    "consequences": _over("consequences", _prefers("new", "true")),
    "GE": _over("fluency", lambda row: 100.0 * row["entropy"]),
}
