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
    return [_example(lm, edit, objective) for edit in edits]


def distinct(examples: Sequence[Example]) -> tuple[list[Example], list[int]]:
    """The examples without repeats, and for each that was given its place among them."""
    numbers: dict[Example, int] = {}
    places = [numbers.setdefault(example, len(numbers)) for example in examples]
    return list(numbers), places


def _example(lm: LanguageModel, edit: Edit, objective: Objective) -> Example:
    prompt = prompt_ids(lm.tokenizer, edit.text)
    target = target_ids(lm.tokenizer, edit.text, edit.target_new)
    limit = getattr(lm.model.config, "max_position_embeddings", None)
    if limit is not None and len(prompt) + len(target) > limit:
        raise RequestError(
            f"The edit of {edit.subject!r} has {len(prompt) + len(target)} tokens, and this model takes {limit}: "
            "shorten it."
        )
    last = len(prompt) - 1
    if objective == "prompt-last":
        return Example(prompt, tuple((last, token) for token in target))
    return Example((*prompt, *target[:-1]), tuple((last + j, token) for j, token in enumerate(target)))
