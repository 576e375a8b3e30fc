"""Score one model on edit cases: the published CounterFact measures and free generation, kept sentence by sentence.

The definitions are those of Meng et al. (2022) and, for generation with a natural stop, Yang et al. (ACL 2025): see
:mod:`errata.evaluation.summary` for how these records become metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from errata.evaluation.fluency import ngram_entropy
from errata.lm.generation import generate
from errata.lm.language_model import LanguageModel
from errata.lm.scoring import score
from errata.records import EditCase, unique

ANSWER_TOKENS = 20
FLUENCY_TOKENS = 100
FLUENCY_TOP_K = 5


@dataclass(frozen=True)
class Measures:
    """What is measured beside the log-probabilities, which always are.

    Attributes:
        generation: greedy answers with a natural stop on the edit's prompt and its neighbours.
        fluency: sampled texts of a hundred tokens and their n-gram entropy (slow).
    """

    generation: bool = True
    fluency: bool = False


def score_cases(
    lm: LanguageModel, cases: Sequence[EditCase], measures: Measures, *, seed: int = 0
) -> list[dict[str, Any]]:
    """One record a case: for each prompt of each kind what the model says of both answers, and what it writes.

    Every row has ``prompt``, and where both answers are known ``new`` and ``true``: mean log-probability per token.
    """
    rows = [_rows(case) for case in cases]
    wanted = [pair for case_rows in rows for row in case_rows for pair in row.pairs]
    scores = dict(zip(wanted, score(lm, wanted), strict=True)) if wanted else {}
    answers: dict[str, str] = {}
    if measures.generation:
        prompts = unique(row.prompt for case_rows in rows for row in case_rows if row.kind in ("rewrite", "neighbours"))
        answers = dict(zip(prompts, generate(lm, prompts, max_new_tokens=ANSWER_TOKENS, stop="natural"), strict=True))
    records = []
    for case, case_rows in zip(cases, rows, strict=True):
        record: dict[str, Any] = {}
        for row in case_rows:
            entry: dict[str, Any] = {"prompt": row.prompt}
            for name, pair in zip(row.names, row.pairs, strict=True):
                entry[name] = scores[pair].log_probability
            if "new" in row.names:
                entry["new_tokens_correct"] = list(scores[row.pairs[row.names.index("new")]].correct)
            if row.prompt in answers and row.kind in ("rewrite", "neighbours"):
                entry["answer"] = answers[row.prompt]
            record.setdefault(row.kind, []).append(entry)
        if measures.fluency and case.generation_prompts:
            record["fluency"] = _fluency(lm, unique(case.generation_prompts), seed)
        records.append(record)
    return records


@dataclass(frozen=True)
class _PromptRow:
    kind: str
    prompt: str
    names: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def _rows(case: EditCase) -> list[_PromptRow]:
    new, true = case.edit.target_new, case.edit.target_true
    rows = [_row("rewrite", case.edit.text, new, true)]
    rows += [_row("paraphrases", prompt, new, true) for prompt in case.paraphrases]
    # On a neighbour the right answer is its own; what must not spill over onto it is the new one.
    rows += [_row("neighbours", p.prompt, new, p.answers[0] if p.answers else true) for p in case.neighbours]
    rows += [_row("consequences", p.prompt, p.answers[0], true) for p in case.consequences if p.answers]
    return rows


def _row(kind: str, prompt: str, new: str, true: str | None) -> _PromptRow:
    prompt = prompt.rstrip()
    named = [("new", new)] + ([("true", true)] if true is not None else [])
    return _PromptRow(kind, prompt, tuple(n for n, _ in named), tuple((prompt, target) for _, target in named))


def _fluency(lm: LanguageModel, prompts: Sequence[str], seed: int) -> list[dict[str, Any]]:
    texts = generate(
        lm, prompts, max_new_tokens=FLUENCY_TOKENS, stop="never", sample=True, top_k=FLUENCY_TOP_K, seed=seed
    )
    return [
        {"prompt": prompt, "text": text, "entropy": ngram_entropy(f"{prompt} {text}")}
        for prompt, text in zip(prompts, texts, strict=True)
    ]
