"""Greedy and sampled generation for many prompts at once, stopping where an answer ends by itself."""

from __future__ import annotations

from collections.abc import Sequence

from errata.lm.asking import Question, ask
from errata.lm.decoding import Decoding
from errata.lm.language_model import LanguageModel
from errata.lm.tags import UNTAGGED
from errata.lm.tokens import prompt_ids


def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 40,
    stop: str = "eos",
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    skip_special_tokens: bool = True,
    tags: Sequence[int] | None = None,
) -> list[str]:
    """Continue each prompt; only the continuation is returned.

    Args:
        lm: the model.
        prompts: texts of any lengths.
        max_new_tokens: longest continuation, in tokens.
        stop: "eos", "natural" (EOS, line break or end of a sentence: an answer) or "never".
        sample: draw tokens rather than take the likeliest.
        temperature: of the draw. top_k: draw among the k likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens that together have this probability (nucleus sampling); 1 for all.
        seed: of the draw, which leaves the global generator as it was. One seed draws for all prompts together, so that
            a text depends on the prompts beside it; with one seed a prompt each text stands by itself.
        batch_size: prompts a pass; by default as many as memory allows (32 where one seed draws for all).
        skip_special_tokens: leave EOS and the like out of the text.
        tags: a whole number a prompt, told to hooks (:mod:`errata.lm.tags`).

    Raises:
        RequestError: a prompt has no token.
        ConfigError: there is no such stop, or ``top_p`` is not in (0, 1].
        NumericalError: the model's probabilities are not numbers, so nothing can be drawn.
    """
    ids = [prompt_ids(lm.tokenizer, prompt) for prompt in prompts]
    out = generate_ids(
        lm, ids, max_new_tokens=max_new_tokens, stop=stop, sample=sample, temperature=temperature, top_k=top_k,
        top_p=top_p, seed=seed, batch_size=batch_size, tags=tags,
    )  # fmt: skip
    return [str(lm.tokenizer.decode(row, skip_special_tokens=skip_special_tokens)) for row in out]


def generate_ids(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: str = "eos",
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    tags: Sequence[int] | None = None,
) -> list[list[int]]:
    """As :func:`generate`, from token ids to the new token ids (up to and including the one that ended a row)."""
    together = seed if isinstance(seed, int) else None
    decoding = Decoding(max_new_tokens, stop, sample, temperature, top_k, together, top_p)
    seeds = [None] * len(rows) if isinstance(seed, int) else list(seed)
    questions = [
        Question(tuple(row), continued=True, tag=tag, seed=own)
        for row, tag, own in zip(rows, tags or [UNTAGGED] * len(rows), seeds, strict=True)
    ]
    return [reply.tokens for reply in ask(lm, questions, decoding, batch_size=batch_size)]
