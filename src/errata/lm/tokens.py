"""From text to token positions: subjects by character offsets, targets by difference, padding, chat templates."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.errors import ModelError, RequestError


@dataclass(frozen=True)
class Encoded:
    """Token ids and, for each, the characters of the text it covers: [n] and [n] pairs (start, end)."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def encode(tokenizer: Any, text: str) -> Encoded:
    """Tokenise once, with the tokenizer's own special tokens, but never a second BOS nor an EOS that closes the text.

    Raises:
        ModelError: the tokenizer cannot give character offsets.
    """
    doubled = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    try:
        out = tokenizer(text, add_special_tokens=not doubled, return_offsets_mapping=True, verbose=False)
    except NotImplementedError:
        raise ModelError(
            "This tokenizer cannot give character offsets, which finding a subject needs: load its fast version."
        ) from None
    ids, offsets = tuple(out["input_ids"]), tuple((int(a), int(b)) for a, b in out["offset_mapping"])
    if ids and ids[-1] == tokenizer.eos_token_id and offsets[-1] == (0, 0):
        ids, offsets = ids[:-1], offsets[:-1]  # not in the text: the tokenizer put it there, and texts go on
    return Encoded(ids, offsets)


def prompt_ids(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """The token ids of a text that something shall follow.

    Raises:
        RequestError: there are none, so there is no position from which to predict.
    """
    ids = encode(tokenizer, prompt).ids
    if not ids:
        raise RequestError("The prompt is empty, and this tokenizer puts no token before a text: give it some text.")
    return ids


def last_token_of(encoded: Encoded, span: tuple[int, int]) -> int:
    """Index of the last token that overlaps the characters [start, end).

    Raises:
        RequestError: no token covers the span.
    """
    return tokens_of(encoded, span)[1] - 1


def tokens_of(encoded: Encoded, span: tuple[int, int]) -> tuple[int, int]:
    """The tokens (first, one after the last) that overlap the characters [start, end).

    Raises:
        RequestError: no token covers the span.
    """
    start, end = span
    overlapping = [i for i, (a, b) in enumerate(encoded.offsets) if a < end and b > start and b > a]
    if not overlapping:
        raise RequestError(f"No token covers characters {start} to {end}: the tokenizer drops this subject.")
    return overlapping[0], overlapping[-1] + 1


def joined(prompt: str, target: str) -> str:
    """Prompt and continuation with the blank that belongs between them (none around wide scripts such as Chinese)."""
    if not prompt or prompt[-1].isspace() or _wide(prompt[-1]) or _wide(target[0]):
        return prompt + target
    return f"{prompt} {target}"


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in ("W", "F")


def target_ids(tokenizer: Any, prompt: str, target: str) -> tuple[int, ...]:
    """The tokens that continue ``prompt`` as ``target``, without special tokens: found by difference.

    Raises:
        RequestError: the target is empty or the tokenizer has no tokens that spell it.
    """
    if not target.strip():
        raise RequestError(f"The target of {prompt!r} is empty: give the text that shall follow.")
    before, whole = encode(tokenizer, prompt).ids, encode(tokenizer, joined(prompt, target)).ids
    if whole[: len(before)] == before:
        ids = whole[len(before) :]
    else:  # a merge crosses the border: the target's own tokens, blank included
        ids = tuple(tokenizer(joined("x", target), add_special_tokens=False)["input_ids"])
        lead = tuple(tokenizer("x", add_special_tokens=False)["input_ids"])
        ids = ids[len(lead) :] if ids[: len(lead)] == lead else ids
    spelt = tokenizer.decode(list(ids), skip_special_tokens=True)
    if not ids or tokenizer.unk_token_id in ids or _letters(target) != _letters(spelt):
        raise RequestError(f"The tokenizer cannot express the target {target!r}: choose another wording of it.")
    return ids


def _letters(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, side: str = "right") -> tuple[Tensor, Tensor]:
    """Stack rows of ids to [batch, longest] with a mask of the same shape (1 on real tokens)."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, at] = torch.tensor(list(row), dtype=torch.long)
        mask[i, at] = 1
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """Position ids [batch, seq] of the real tokens under a padding mask: 0, 1, 2, ... from each row's first one."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def pad_id(tokenizer: Any) -> int:
    """A token id to fill with: the pad token, else EOS, else 0 (masks, not ids, say what is real)."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def chat_prompt(tokenizer: Any, question: str, *, system: str | None = None) -> str:
    """The question inside the model's chat template, ending where its answer begins.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("This model has no chat template: use the question as a plain prompt.")
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": question})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
