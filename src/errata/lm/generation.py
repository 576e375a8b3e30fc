"""Greedy and sampled generation for many prompts at once, stopping where an answer ends by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from errata.errors import ConfigError, NumericalError
from errata.lm.language_model import LanguageModel
from errata.lm.tokens import pad, pad_id, prompt_ids

STOPS = ("eos", "natural", "never")
ENDS = (".", "!", "?", "。", "！", "？")

_ends: WeakKeyDictionary[Any, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def answer_ends(lm: LanguageModel) -> tuple[Tensor, Tensor]:
    """Over the vocabulary: which tokens end a short answer (line break, end of a sentence), and which are blank."""
    if lm.model not in _ends:
        size = lm.architecture.vocabulary
        texts = lm.tokenizer.batch_decode([[i] for i in range(min(size, len(lm.tokenizer)))])
        texts += [""] * (size - len(texts))
        ending = torch.tensor(["\n" in text or text.rstrip().endswith(ENDS) for text in texts])
        blank = torch.tensor([not text.strip() for text in texts])
        _ends[lm.model] = (ending, blank)
    return _ends[lm.model]


class _NaturalStop(StoppingCriteria):  # type: ignore[misc]
    """A row is done at the end of a sentence or line, once it has said anything."""

    def __init__(self, lm: LanguageModel) -> None:
        self._ending, self._blank = answer_ends(lm)
        self._said: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        last = input_ids[:, -1].cpu()
        said = ~self._blank[last]
        self._said = said if self._said is None else self._said | said
        return (self._ending[last] & self._said).to(input_ids.device)


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

    Raises:
        RequestError: a prompt has no token.
    """
    ids = [prompt_ids(lm.tokenizer, prompt) for prompt in prompts]
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
    if stop not in STOPS:
        raise ConfigError(f"There is no stop {stop!r}: choose one of {', '.join(STOPS)}.")
    eos, fill = _eos(lm), pad_id(lm.tokenizer)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=max_new_tokens if stop == "never" else None,
        do_sample=sample,
        temperature=temperature if sample else None,
        top_k=top_k if sample else None,
        top_p=None,
        eos_token_id=eos or None,
        pad_token_id=fill,
        use_cache=True,
    )
    results: dict[int, list[int]] = {}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with torch.random.fork_rng(devices=_devices(lm)), torch.no_grad(), _no_settings_of_its_own(lm.model):
        torch.manual_seed(seed)
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            ids, mask = pad([rows[i] for i in chosen], fill, side="left")
            stops = StoppingCriteriaList([_NaturalStop(lm)] if stop == "natural" else [])
            try:
                out = lm.model.generate(
                    input_ids=ids.to(lm.device),
                    attention_mask=mask.to(lm.device),
                    generation_config=config,
                    stopping_criteria=stops,
                )
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise NumericalError(
                    f"{lm.name} gives probabilities that are not numbers: its weights are damaged, or too large for "
                    f"{lm.dtype}; load it in float32."
                ) from error
            for i, row in zip(chosen, out[:, ids.shape[1] :].tolist(), strict=True):
                results[i] = row if stop == "never" else _cut(lm, row, set(eos), natural=stop == "natural")
    return [results[i] for i in range(len(rows))]


@contextmanager
def _no_settings_of_its_own(model: Any) -> Iterator[None]:
    """Without the checkpoint's generation settings, which would fill in what is not given (a penalty of Qwen's)."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _cut(lm: LanguageModel, row: list[int], eos: set[int], *, natural: bool) -> list[int]:
    """The row up to and including the token that ended it; what follows is padding."""
    ending, blank = answer_ends(lm) if natural else (None, None)
    said = False
    for at, token in enumerate(row):
        if token in eos:
            return row[: at + 1]
        if ending is not None and blank is not None:
            said = said or not bool(blank[token])
            if said and bool(ending[token]):
                return row[: at + 1]
    return row


def _devices(lm: LanguageModel) -> list[torch.device]:
    return [lm.device] if lm.device.type == "cuda" else []
