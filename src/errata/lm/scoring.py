"""Log-probabilities of continuations, at their own positions only, and perplexity of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from errata.lm.activations import frozen
from errata.lm.asking import Score, ask, merged
from errata.lm.decoding import Decoding
from errata.lm.forward import SplitBatch
from errata.lm.language_model import LanguageModel
from errata.lm.products import fast_products
from errata.lm.tags import UNTAGGED
from errata.lm.tokens import encode, prompt_ids, target_ids

__all__ = ["Score", "perplexity", "perplexity_of", "score", "score_and_generate", "window_nlls", "window_nlls_by_tag"]

TOKENS_AT_ONCE = 512  # of text: each takes a row of the vocabulary in float32, twice


def score(lm: LanguageModel, pairs: Sequence[tuple[str, str]], *, tags: Sequence[int] | None = None) -> list[Score]:
    """Score (prompt, continuation) pairs; the continuation's leading blank is added as text needs it.

    Equal prompts are computed once, so all that is asked of one should be asked together. ``tags`` holds a whole number
    a pair, told to hooks (:mod:`errata.lm.tags`).

    Raises:
        RequestError: a continuation is empty or cannot be spelt by the tokenizer, or a prompt has no token.
    """
    return score_and_generate(lm, pairs, [], pair_tags=tags)[0]


def score_and_generate(
    lm: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 40,
    stop: str = "eos",
    pair_tags: Sequence[int] | None = None,
    prompt_tags: Sequence[int] | None = None,
) -> tuple[list[Score], list[str]]:
    """:func:`score` the pairs and greedily continue the prompts, each distinct prompt computed once for both.

    See :func:`errata.lm.generation.generate` for the other arguments and for errors.
    """
    scored = [
        (prompt_ids(lm.tokenizer, p), tag, target_ids(lm.tokenizer, p, t))
        for (p, t), tag in zip(pairs, pair_tags or [UNTAGGED] * len(pairs), strict=True)
    ]
    continued = [
        (prompt_ids(lm.tokenizer, p), tag)
        for p, tag in zip(prompts, prompt_tags or [UNTAGGED] * len(prompts), strict=True)
    ]
    questions = merged([*scored, *((*key, None) for key in continued)])
    replies = ask(lm, questions, Decoding(max_new_tokens, stop) if continued else None)
    scores = {
        (question.prompt, question.tag, target): found
        for question, reply in zip(questions, replies, strict=True)
        for target, found in zip(question.targets, reply.scores, strict=True)
    }
    tokens = {(question.prompt, question.tag): reply.tokens for question, reply in zip(questions, replies, strict=True)}
    texts = [str(lm.tokenizer.decode(tokens[key], skip_special_tokens=True)) for key in continued]
    return [scores[key] for key in scored], texts


def perplexity(lm: LanguageModel, text: str, *, window: int = 256, tokens: int | None = None) -> float:
    """exp of the mean negative log-likelihood per token of a text, cut into windows of so many tokens.

    Args:
        lm: the model.
        text: the text.
        window: tokens a window; the first of each is given, not predicted.
        tokens: use at most so many tokens of the text.
    """
    return perplexity_of(window_nlls(lm, text, window=window, tokens=tokens))


def perplexity_of(sums: Sequence[tuple[float, int]]) -> float:
    """exp of the mean over all tokens, from (summed negative log-likelihood, tokens) of each window."""
    mean = sum(total for total, _ in sums) / max(1, sum(count for _, count in sums))
    return math.exp(mean) if mean < 700 else math.inf


def window_nlls(
    lm: LanguageModel, text: str, *, window: int = 256, tokens: int | None = None
) -> list[tuple[float, int]]:
    """For each window of a text: summed negative log-likelihood (natural log), and over how many tokens."""
    return window_nlls_by_tag(lm, text, [UNTAGGED], window=window, tokens=tokens)[0]


def window_nlls_by_tag(
    lm: LanguageModel,
    text: str,
    tags: Sequence[int],
    *,
    window: int = 256,
    tokens: int | None = None,
    start: int = 0,
) -> list[list[tuple[float, int]]]:
    """As :func:`window_nlls`, once for each tag that hooks are told (:mod:`errata.lm.tags`).

    Args:
        lm: the model.
        text: the text.
        tags: whole numbers.
        window: tokens a window. tokens: use at most so many.
        start: the first block whose rows differ by tag; what is below it is computed once for all.
    """
    ids = list(encode(lm.tokenizer, text).ids)[:tokens]
    windows = [w for i in range(0, len(ids), window) if len(w := ids[i : i + window]) > 1]
    most = max(1, TOKENS_AT_ONCE // window)
    sums: list[list[tuple[float, int]]] = [[] for _ in tags]
    # Windows of one length need no padding; only the last may be shorter.
    at_once = most if len(tags) == 1 else 1
    with torch.no_grad(), frozen(lm.model), fast_products(lm.model):
        for length in sorted({len(w) for w in windows}, reverse=True):
            same = [w for w in windows if len(w) == length]
            for at in range(0, len(same), at_once):
                rows = same[at : at + at_once]
                entering = _entering(lm, rows, start)
                for first in range(0, len(tags), most):
                    part = tags[first : first + most]
                    found = _nlls(lm, rows * len(part), [tag for tag in part for _ in rows], start, entering)
                    for n in range(len(part)):
                        sums[first + n] += found[n * len(rows) : (n + 1) * len(rows)]
    return sums


def _entering(lm: LanguageModel, rows: Sequence[Sequence[int]], start: int) -> Tensor | None:
    """What enters a block [rows, columns, d], without any tag; None where passes begin at the bottom anyway."""
    if not start:
        return None
    block = lm.architecture.blocks[start].path
    batch = SplitBatch(lm, rows)
    if not batch.restartable:
        return None
    _, seen = batch.run(inputs=[block], stop=block, stop_before=True)
    return seen.inputs[block]


def _nlls(
    lm: LanguageModel, rows: Sequence[Sequence[int]], tags: Sequence[int], start: int, entering: Tensor | None
) -> list[tuple[float, int]]:
    """Summed negative log-likelihood of each row, all of one length, and over how many tokens."""
    count = len(rows[0]) - 1
    spots = torch.arange(len(rows)).repeat_interleave(count), torch.arange(count).repeat(len(rows))
    batch = SplitBatch(lm, rows, tags=tags)
    if entering is None:
        logits, _ = batch.run(at=spots)
    else:
        logits, _ = batch.run(start=start, hidden=entering.repeat(len(rows) // len(entering), 1, 1), at=spots)
    if logits is None:
        raise RuntimeError("a pass that was not stopped gives logits")
    wanted = torch.tensor([token for row in rows for token in row[1:]], device=logits.device)
    losses = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none").double().cpu()
    return [(float(part.sum()), count) for part in torch.split(losses, count)]
