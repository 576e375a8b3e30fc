"""Greedy and sampled generation for many prompts at once, stopping where an answer ends by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig

from errata.lm.language_model import LanguageModel
from errata.lm.tokens import encode, pad, pad_id

_stops: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()
ENDS = ("\n", ".", "!", "?", "。", "！", "？")


def natural_stops(lm: LanguageModel) -> list[int]:
    """Tokens after which a short answer is over: EOS, and those that hold a line break or end a sentence."""
    if lm.model not in _stops:
        tokenizer = lm.tokenizer
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        ends = [i for i, text in enumerate(texts) if "\n" in text or text.rstrip().endswith(ENDS)]
        _stops[lm.model] = sorted({*_eos(lm), *ends})
    return _stops[lm.model]


def _eos(lm: LanguageModel) -> list[int]:
    configured = getattr(lm.model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured, lm.tokenizer.eos_token_id]
    return [int(i) for i in listed if i is not None]


def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 40,
    stop: str = "eos",
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    skip_special_tokens: bool = True,
) -> list[str]:
    """Continue each prompt; only the continuation is returned.

    Args:
        lm: the model.
        prompts: texts of any lengths (they are padded on the left).
        max_new_tokens: longest continuation, in tokens.
        stop: "eos", "natural" (EOS, line break or end of a sentence: an answer) or "never".
        sample: draw tokens rather than take the likeliest.
        temperature: of the draw. top_k: draw among the k likeliest tokens; 0 for all.
        seed: of the draw, which leaves the global generator as it was.
        batch_size: prompts a pass.
        skip_special_tokens: leave EOS and the like out of the text.
    """
    ids = [encode(lm.tokenizer, prompt).ids for prompt in prompts]
    out = generate_ids(
        lm, ids, max_new_tokens=max_new_tokens, stop=stop, sample=sample, temperature=temperature, top_k=top_k,
        seed=seed, batch_size=batch_size,
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
    seed: int = 0,
    batch_size: int = 32,
) -> list[list[int]]:
    """As :func:`generate`, from token ids to the new token ids (without the padding after a row's end)."""
    ends = {"eos": _eos(lm), "natural": natural_stops(lm), "never": []}[stop] if stop != "natural" else natural_stops(lm)
    fill = pad_id(lm.tokenizer)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=max_new_tokens if stop == "never" else None,
        do_sample=sample,
        temperature=temperature if sample else None,
        top_k=top_k if sample else None,
        top_p=None,
        eos_token_id=ends or _eos(lm) or None,
        pad_token_id=fill,
        use_cache=True,
    )
    results: dict[int, list[int]] = {}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with torch.random.fork_rng(devices=_devices(lm)), torch.no_grad():
        torch.manual_seed(seed)
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            ids, mask = pad([rows[i] for i in chosen], fill, side="left")
            out = lm.model.generate(input_ids=ids.to(lm.device), attention_mask=mask.to(lm.device), generation_config=config)
            for i, row in zip(chosen, out[:, ids.shape[1] :].tolist(), strict=True):
                results[i] = _cut(row, set(ends))
    return [results[i] for i in range(len(rows))]


def _cut(row: list[int], ends: set[int]) -> list[int]:
    """The row up to and including its first end token; what follows is padding."""
    for at, token in enumerate(row):
        if token in ends:
            return row[: at + 1]
    return row


def _devices(lm: LanguageModel) -> list[torch.device]:
    return [lm.device] if lm.device.type == "cuda" else []
