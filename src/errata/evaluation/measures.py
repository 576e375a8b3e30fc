"""What one case's record says, measure by measure: the functions whose means over cases are the metrics.

A measure takes a record and a phase ("base" or "after") and gives a number, or None where the case has no such prompt.
Within a case the mean is over the prompts of one type, then over its types (Zhang et al. 2024, arXiv 2401.01286), so
that a type with many prompts weighs no more than another. Prompts in a language other than the edit's are measured
apart. :mod:`errata.evaluation.summary` defines each measure by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from errata.evaluation.judges import contains_answer, first_answer, same_answer, strict_success

Record: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, Any]
Measure: TypeAlias = Callable[[Record, str], float | None]
Judge: TypeAlias = Callable[[Row], float | None]

HOP, MULTI_HOP = "hop", "multi_hop"  # types of consequences: the links of a chain, and the questions over all of it


@dataclass(frozen=True)
class Which:
    """Which rows of a list a measure is about.

    Attributes:
        language: the code of theirs; None for the edit's own.
        kind: their type; None for every type but the links of a chain, which are no portability by themselves.
    """

    language: str | None = None
    kind: str | None = None

    def __call__(self, row: Row) -> bool:
        """Whether it is one of them."""
        kind = row.get("kind")
        return row.get("language") == self.language and (kind != HOP if self.kind is None else kind == self.kind)


def measures(records: Sequence[Record]) -> dict[str, Measure]:
    """All measures by name, with those of single types and languages that the records hold.

    The measure of one type or language has the name of the one over all, a dot, and the type or the language. Types are
    told apart only where there are several.
    """
    named = dict(PER_CASE)
    for name, (rows, make) in SPLIT.items():
        present = {(row.get("language"), row.get("kind")) for record in records for row in _rows(record, "base", rows)}
        types = {kind for language, kind in present if language is None and kind != HOP}
        if len(types) > 1:
            named |= {f"{name}.{kind}": make(rows, Which(kind=kind)) for kind in sorted(types - {None}, key=str)}
        named |= {f"{name}.{code}": make(rows, Which(code)) for code in _languages(records, rows)}
    for name, (kind, make) in TRANSLATED.items():
        named |= {
            f"{name}.{code}": make("translations", Which(code, kind)) for code in _languages(records, "translations")
        }
    return named


def _languages(records: Sequence[Record], rows: str) -> list[str]:
    return sorted({row["language"] for r in records for row in _rows(r, "base", rows) if "language" in row})


def _rows(record: Record, phase: str, rows: str) -> list[Row]:
    return (record.get(phase) or {}).get(rows) or []


def _mean_by_type(judged: Sequence[tuple[Row, float | None]]) -> float | None:
    """The mean over types of the mean within one; None where nothing could be judged."""
    by_type: dict[str | None, list[float]] = {}
    for row, value in judged:
        if value is not None:
            by_type.setdefault(row.get("kind"), []).append(value)
    means = [sum(values) / len(values) for values in by_type.values()]
    return sum(means) / len(means) if means else None


def _over(judge: Judge, rows: str, which: Which | None = None) -> Measure:
    """The mean of a judgement over a case's rows of one list."""
    chosen = which or Which()

    def measure(record: Record, phase: str) -> float | None:
        return _mean_by_type([(row, judge(row)) for row in _rows(record, phase, rows) if chosen(row)])

    return measure


def _as_before(judge: Callable[[Row, Row], float | None], rows: str, which: Which | None = None) -> Measure:
    """The mean of a judgement over a case's rows, each beside what the unedited model said there."""
    chosen = which or Which()

    def measure(record: Record, phase: str) -> float | None:
        pairs = zip(_rows(record, "base", rows), _rows(record, phase, rows), strict=False)
        return _mean_by_type([(now, judge(before, now)) for before, now in pairs if chosen(now)])

    return measure


def _of_all(decide: Callable[[Sequence[bool]], bool], kind: str) -> Measure:
    """One judgement over all consequences of a type: is one of them answered, or every one?"""

    def measure(record: Record, phase: str) -> float | None:
        chosen = filter(Which(kind=kind), _rows(record, phase, "consequences"))
        values = [value for row in chosen if (value := _contained(row)) is not None]
        return float(decide([value == 1.0 for value in values])) if values else None

    return measure


def _prefers(first: str, second: str) -> Judge:
    return lambda row: float(row[first] > row[second]) if first in row and second in row else None


def _by(first: str, second: str) -> Judge:
    return lambda row: math.exp(row[first]) - math.exp(row[second]) if first in row and second in row else None


def _tokens(answer: str) -> Judge:
    def judge(row: Row) -> float | None:
        correct: Sequence[bool] | None = row.get(f"{answer}_tokens_correct")
        return sum(correct) / len(correct) if correct else None

    return judge


def _written(row: Row) -> str | None:
    """What the model answered; a question that was asked as one has its answer there."""
    text: str | None = row.get("asked_answer", row.get("answer"))
    return text


def _contained(row: Row) -> float | None:
    text = _written(row)
    return float(contains_answer(text, row["answers"])) if text is not None and "answers" in row else None


def _begins(name: str | None = None) -> Judge:
    """Whether the answer of that name, by default that of :func:`_written`, begins with one of those wanted."""

    def judge(row: Row) -> float | None:
        text = _written(row) if name is None else row.get(name)
        if text is None or "answers" not in row:
            return None
        return float(any(strict_success(first_answer(text), wanted) for wanted in row["answers"]))

    return judge


def _success(name: str) -> Measure:
    """At the prompts of the edits. Each edit of a case has its own target; the first one's stands in the record."""
    judge = _begins(name)

    def measure(record: Record, phase: str) -> float | None:
        rows = _rows(record, phase, "rewrite")
        values = [judge({**row, "answers": [row.get("target_new", record["target_new"])]}) for row in rows]
        return _mean_by_type(list(zip(rows, values, strict=True)))

    return measure


def _same_answers(before: Row, now: Row) -> float | None:
    old, new = _written(before), _written(now)
    return float(same_answer(old, new)) if old is not None and new is not None else None


def _same_tokens(before: Row, now: Row) -> float | None:
    """The share of positions of the answer where the likeliest token is what it was."""
    old: Sequence[int] | None = before.get("likeliest_tokens")
    new: Sequence[int] | None = now.get("likeliest_tokens")
    if not old or not new:
        return None
    return sum(a == b for a, b in zip(old, new, strict=True)) / len(old)


def _made(judge: Judge) -> Callable[[str, Which], Measure]:
    return lambda rows, which: _over(judge, rows, which)


def _made_as_before(judge: Callable[[Row, Row], float | None]) -> Callable[[str, Which], Measure]:
    return lambda rows, which: _as_before(judge, rows, which)


# These are also given for each type and each language among the rows of the list.
SPLIT: dict[str, tuple[str, Callable[[str, Which], Measure]]] = {
    "neighbour_token_accuracy": ("neighbours", _made(_tokens("true"))),
    "unchanged_neighbours": ("neighbours", _made_as_before(_same_answers)),
    "unchanged_neighbour_tokens": ("neighbours", _made_as_before(_same_tokens)),
    "portability_token_accuracy": ("consequences", _made(_tokens("new"))),
    "portability_contains": ("consequences", _made(_contained)),
    "portability_strict_success": ("consequences", _made(_begins())),
}
# And these for each language of a case's translations, of which the type says to what they correspond.
TRANSLATED: dict[str, tuple[str, Callable[[str, Which], Measure]]] = {
    "token_accuracy": ("rewrite", _made(_tokens("new"))),
    "paraphrase_token_accuracy": ("paraphrase", _made(_tokens("new"))),
    "strict_success": ("rewrite", _made(_begins("answer"))),
    "asked_success": ("rewrite", _made(_begins("asked_answer"))),
}
PER_CASE: dict[str, Measure] = {
    "ES": _over(_prefers("new", "true"), "rewrite"),
    "PS": _over(_prefers("new", "true"), "paraphrases"),
    "NS": _over(_prefers("true", "new"), "neighbours"),
    "EM": _over(_by("new", "true"), "rewrite"),
    "PM": _over(_by("new", "true"), "paraphrases"),
    "NM": _over(_by("true", "new"), "neighbours"),
    "token_accuracy": _over(_tokens("new"), "rewrite"),
    "paraphrase_token_accuracy": _over(_tokens("new"), "paraphrases"),
    "strict_success": _success("answer"),
    "asked_success": _success("asked_answer"),
    **{name: make(rows, Which()) for name, (rows, make) in SPLIT.items()},
    "multi_hop_accuracy": _of_all(any, MULTI_HOP),
    "instance_accuracy": _of_all(all, HOP),
    "consequences": _over(_prefers("new", "true"), "consequences"),
    "GE": _over(lambda row: 100.0 * row["entropy"], "fluency"),
}
