"""Log-probabilities of continuations, at their own positions only; both answers of a prompt share its computation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from errata.lm.forward import SplitBatch
from errata.lm.language_model import LanguageModel
from errata.lm.tokens import encode, prompt_ids, target_ids

ROWS_AT_ONCE = 48


@dataclass(frozen=True)
class Score:
    """What a model says of one continuation of one prompt.

    Attributes:
        log_probability: mean natural-log probability per token of the continuation.
        total: sum over its tokens.
        correct: for each token, whether it is the likeliest one there (teacher-forced).
    """

    log_probability: float
    total: float
    correct: tuple[bool, ...]


def score(lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[Score]:
    """Score (prompt, continuation) pairs; the continuation's leading blank is added as text needs it.

    Raises:
        RequestError: a continuation is empty or cannot be spelt by the tokenizer, or a prompt has no token.
    """
    encoded = [(prompt_ids(lm.tokenizer, p), target_ids(lm.tokenizer, p, t)) for p, t in pairs]
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i][0]), encoded[i][0]))
    scores: dict[int, Score] = {}
    for at in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[at : at + ROWS_AT_ONCE]
        scores.update(zip(chosen, _score_ids(lm, [encoded[i] for i in chosen]), strict=True))
    return [scores[i] for i in range(len(pairs))]


def _score_ids(lm: LanguageModel, items: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Score]:
    """Each distinct prompt is computed once; the passes over its continuations share its key/value cache."""
    prompts = list(dict.fromkeys(prompt for prompt, _ in items))
    number = {prompt: i for i, prompt in enumerate(prompts)}
    # The last token of a target predicts nothing wanted, so targets of one token all read one and the same row.
    rows = list(dict.fromkeys((number[prompt], target[:-1]) for prompt, target in items))
    at_row = {row: r for r, row in enumerate(rows)}
    with torch.no_grad():
        base = SplitBatch(lm, prompts, [len(prompt) - 1 for prompt in prompts])
        batch = base.branch([i for i, _ in rows], [more for _, more in rows])
        spots = [
            (at_row[number[prompt], target[:-1]], len(prompt) - 1 + j, token)
            for prompt, target in items
            for j, token in enumerate(target)
        ]
        where = torch.tensor([r for r, _, _ in spots]), torch.tensor([batch.column(r, t) for r, t, _ in spots])
        logits, _ = batch.run(at=where)
    if logits is None:
        raise RuntimeError("a pass that was not stopped gives logits")
    wanted = torch.tensor([token for _, _, token in spots], device=logits.device)
    picked = torch.log_softmax(logits.float(), dim=-1).gather(1, wanted[:, None])[:, 0].double().cpu()
    hits = (logits.argmax(-1) == wanted).cpu()
    results, at = [], 0
    for _, target in items:
        part = slice(at, at + len(target))
        total = float(picked[part].sum())
        results.append(Score(total / len(target), total, tuple(bool(h) for h in hits[part])))
        at += len(target)
    return results


def perplexity(lm: LanguageModel, text: str, *, window: int = 256, tokens: int | None = None) -> float:
    """exp of the mean negative log-likelihood per token of a text, cut into windows of so many tokens.

    Args:
        lm: the model.
        text: the text.
        window: tokens a window; the first of each is given, not predicted.
        tokens: use at most so many tokens of the text.
    """
    sums = window_nlls(lm, text, window=window, tokens=tokens)
    mean = sum(total for total, _ in sums) / max(1, sum(count for _, count in sums))
    return math.exp(mean) if mean < 700 else math.inf


def window_nlls(
    lm: LanguageModel, text: str, *, window: int = 256, tokens: int | None = None, batch_size: int = 8
) -> list[tuple[float, int]]:
    """For each window of a text: summed negative log-likelihood (natural log), and over how many tokens."""
    ids = list(encode(lm.tokenizer, text).ids)[:tokens]
    windows = [w for i in range(0, len(ids), window) if len(w := ids[i : i + window]) > 1]
    sums: list[tuple[float, int]] = []
    with torch.no_grad():
        for at in range(0, len(windows), batch_size):
            rows = windows[at : at + batch_size]
            spots = [(r, c) for r, row in enumerate(rows) for c in range(len(row) - 1)]
            where = torch.tensor([r for r, _ in spots]), torch.tensor([c for _, c in spots])
            logits, _ = SplitBatch(lm, rows).run(at=where)
            if logits is None:
                raise RuntimeError("a pass that was not stopped gives logits")
            wanted = torch.tensor([token for row in rows for token in row[1:]], device=logits.device)
            losses = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none").double().cpu()
            sums += [(float(part.sum()), len(part)) for part in torch.split(losses, [len(row) - 1 for row in rows])]
    return sums
