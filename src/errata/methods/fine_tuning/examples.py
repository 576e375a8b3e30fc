"""An edit as a row of tokens, and which tokens are wanted at which of its positions: the objectives of fine-tuning.

``prompt-last`` asks the one distribution behind the prompt for every token of the target, as the FT of ROME's paper
and of much of the literature does. For a target of several tokens that is not what the model is used for: the loss
cannot fall below log(tokens), and what is learnt is a mixture of them. ``target`` is the likelihood of the target
itself, each token given those before it, with the prompt's own tokens masked (FT-M). For one token they are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from errata.errors import RequestError
from errata.lm.language_model import LanguageModel
from errata.lm.tokens import prompt_ids, target_ids
from errata.records import Edit

Objective = Literal["prompt-last", "target"]


@dataclass(frozen=True)
class Example:
    """Token ids, and pairs (position, token wanted after it); the loss is the mean NLL over the pairs."""

    ids: tuple[int, ...]
    wanted: tuple[tuple[int, int], ...]


def examples_of(lm: LanguageModel, edits: Sequence[Edit], objective: Objective) -> list[Example]:
    """One row an edit.

    Raises:
        RequestError: a prompt or target that the tokenizer cannot spell, or that is too long for the model.
    """
    return [row_of(lm, e.text, e.target_new, objective, what=f"edit of {e.subject!r}") for e in edits]


def distinct(examples: Sequence[Example]) -> tuple[list[Example], list[int]]:
    """The examples without repeats, and for each that was given its place among them."""
    numbers: dict[Example, int] = {}
    places = [numbers.setdefault(example, len(numbers)) for example in examples]
    return list(numbers), places


def row_of(
    lm: LanguageModel, prompt: str, target: str, objective: Objective = "target", *, close: bool = False, what: str
) -> Example:
    """A prompt and what shall follow it as one row.

    Args:
        lm: the model.
        prompt: the text before. target: the text that follows.
        objective: which tokens are wanted where.
        close: the token that ends a text is wanted after the target: an answer that is not to go on.
        what: whose row it is, for the sentence of an error.

    Raises:
        RequestError: a prompt or target that the tokenizer cannot spell, or that is too long for the model.
    """
    before = prompt_ids(lm.tokenizer, prompt)
    after = target_ids(lm.tokenizer, prompt, target)
    if close and lm.tokenizer.eos_token_id is not None:
        after = (*after, int(lm.tokenizer.eos_token_id))
    limit = getattr(lm.model.config, "max_position_embeddings", None)
    if limit is not None and len(before) + len(after) > limit:
        raise RequestError(
            f"The {what} has {len(before) + len(after)} tokens, and this model takes {limit}: shorten it."
        )
    last = len(before) - 1
    if objective == "prompt-last":
        return Example(before, tuple((last, token) for token in after))
    return Example((*before, *after[:-1]), tuple((last + j, token) for j, token in enumerate(after)))
