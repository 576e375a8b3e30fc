"""Generation by the transformers library's own loop, for models whose cache is not plain keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from errata.lm.decoding import Chooser, Decoding, Ending
from errata.lm.language_model import LanguageModel
from errata.lm.tags import tagged
from errata.lm.tokens import pad, pad_id


class _Chosen(LogitsProcessor):  # type: ignore[misc]
    """Leaves only the token that the chooser takes."""

    def __init__(self, choose: Chooser, seeds: Sequence[int | None]) -> None:
        self._choose, self._seeds, self._step = choose, seeds, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self._choose.choose(scores, self._step, self._seeds)
        self._step += 1
        only = torch.full_like(scores, -torch.inf)
        only[range(len(chosen)), chosen] = 0.0
        return only


class _Ended(StoppingCriteria):  # type: ignore[misc]
    """Which rows are done; the loop ends when all are."""

    def __init__(self, ending: Ending, rows: int, begin: int) -> None:
        self._ending, self._begin, self._said = ending, begin, [False] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        new = [row[self._begin :] for row in input_ids.tolist()]
        after = [self._ending.after(row, said) for row, said in zip(new, self._said, strict=True)]
        self._said = [said for _, said in after]
        return torch.tensor([done for done, _ in after], device=input_ids.device)


def continued_by_the_library(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    tags: Sequence[int],
    decoding: Decoding,
    choose: Chooser,
    seeds: Sequence[int | None],
) -> list[list[int]]:
    """The new token ids of each prompt, as :func:`errata.lm.decoding.continued` gives them."""
    ids, mask = pad(prompts, pad_id(lm.tokenizer), side="left")
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=pad_id(lm.tokenizer),
        use_cache=True,
    )
    ending = Ending(lm, decoding)
    with torch.no_grad(), _no_settings_of_its_own(lm.model), tagged(lm.model, torch.tensor(list(tags))):
        out = lm.model.generate(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Chosen(choose, seeds)]),
            stopping_criteria=StoppingCriteriaList([_Ended(ending, len(prompts), ids.shape[1])]),
        )
    return [ending.cut(row) for row in out[:, ids.shape[1] :].tolist()]


@contextmanager
def _no_settings_of_its_own(model: Any) -> Iterator[None]:
    """Without the checkpoint's generation settings, which would fill in what is not given (a penalty of Qwen's)."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
