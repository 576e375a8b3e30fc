"""The loop of generation: choose a token for every row, drop the rows that have ended, compute the next position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from errata.errors import ConfigError, NumericalError
from errata.lm.language_model import LanguageModel
from errata.lm.prompts import PromptBatch

STOPS = ("eos", "natural", "never")
ENDS = (".", "!", "?", "。", "！", "？")
DROP_AT = 8  # rows are dropped once one in so many has ended: copying the others costs less than computing these

_ends: WeakKeyDictionary[Any, tuple[Tensor, Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Decoding:
    """How prompts are continued: see :func:`errata.lm.generation.generate` for the options.

    Attributes:
        seed: one for all rows, which are then drawn together, or None where every row has its own.

    Raises:
        ConfigError: there is no such stop, or ``top_p`` is not in (0, 1].
    """

    max_new_tokens: int
    stop: str = "eos"
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    seed: int | None = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, which is no share: give more than 0 and at most 1.")
        if self.stop not in STOPS:
            raise ConfigError(f"There is no stop {self.stop!r}: choose one of {', '.join(STOPS)}.")

    @property
    def drawn_together(self) -> bool:
        """Whether rows share one generator, so that what one draws depends on the rows beside it."""
        return self.sample and self.seed is not None


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


def eos_ids(lm: LanguageModel) -> list[int]:
    """The tokens that end a text: the checkpoint's and the tokenizer's."""
    configured = getattr(lm.model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured, lm.tokenizer.eos_token_id]
    return [int(i) for i in listed if i is not None]


class Ending:
    """Says when a row is done: at EOS, and with a natural stop at the end of a sentence or line that says anything."""

    def __init__(self, lm: LanguageModel, decoding: Decoding) -> None:
        self._eos = set(eos_ids(lm)) if decoding.stop != "never" else set()
        self._natural = answer_ends(lm) if decoding.stop == "natural" else None
        self._most = decoding.max_new_tokens

    def after(self, row: Sequence[int], said: bool) -> tuple[bool, bool]:
        """Whether a row ends with its last token, and whether it has said anything (it had before: ``said``)."""
        token = row[-1]
        done = token in self._eos or len(row) >= self._most
        if self._natural is not None:
            ending, blank = self._natural
            said = said or not bool(blank[token])
            done = done or (said and bool(ending[token]))
        return done, said

    def cut(self, row: list[int]) -> list[int]:
        """The row up to and including the token that ended it."""
        said = False
        for at in range(1, len(row) + 1):
            done, said = self.after(row[:at], said)
            if done:
                return row[:at]
        return row


class Chooser(ABC):
    """Takes a token for every row from the logits after it."""

    def __init__(self, lm: LanguageModel, decoding: Decoding) -> None:
        self.lm, self.decoding = lm, decoding
        self._forbidden = eos_ids(lm) if decoding.stop == "never" else []

    def choose(self, logits: Tensor, step: int, seeds: Sequence[int | None]) -> list[int]:
        """A token a row, from logits [rows, vocabulary], for the ``step``-th new one."""
        wide = logits.float()
        if self._forbidden:
            wide = wide.index_fill(-1, torch.tensor(self._forbidden, device=wide.device), -torch.inf)
        return [int(token) for token in self._from(wide, step, seeds).tolist()]

    @abstractmethod
    def _from(self, logits: Tensor, step: int, seeds: Sequence[int | None]) -> Tensor:
        """A token a row [rows], from float32 logits that the chooser may keep."""

    def _weighed(self, logits: Tensor) -> Tensor:
        return logits if self.decoding.temperature == 1.0 else logits / self.decoding.temperature

    def _broken(self) -> NumericalError:
        return NumericalError(
            f"{self.lm.name} gives probabilities that are not numbers: its weights are damaged, or too large for "
            f"{self.lm.dtype}; load it in float32."
        )


class Likeliest(Chooser):
    """Greedy decoding."""

    def _from(self, logits: Tensor, step: int, seeds: Sequence[int | None]) -> Tensor:
        return logits.argmax(-1)


class DrawnTogether(Chooser):
    """One generator for all rows: the way of the transformers library, whose texts of the same seed these are."""

    def __init__(self, lm: LanguageModel, decoding: Decoding) -> None:
        super().__init__(lm, decoding)
        self._generator = torch.Generator(device=lm.device).manual_seed(decoding.seed or 0)

    def _from(self, logits: Tensor, step: int, seeds: Sequence[int | None]) -> Tensor:
        logits = self._weighed(logits.to(self.lm.device))
        if self.decoding.top_k:
            kept = logits.topk(min(self.decoding.top_k, logits.shape[-1])).values
            logits = logits.masked_fill(logits < kept[:, -1:], -torch.inf)
        logits = nucleus(logits, self.decoding.top_p)
        try:
            return torch.multinomial(logits.softmax(-1), 1, generator=self._generator)[:, 0]
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise self._broken() from error


class DrawnApart(Chooser):
    """A seed a row: what a row draws depends on nothing but its seed and its probabilities."""

    def __init__(self, lm: LanguageModel, decoding: Decoding) -> None:
        super().__init__(lm, decoding)
        self._numbers: dict[int, Tensor] = {}

    def _from(self, logits: Tensor, step: int, seeds: Sequence[int | None]) -> Tensor:
        logits, among = self._weighed(logits), None
        if self.decoding.top_k:
            logits, among = logits.topk(min(self.decoding.top_k, logits.shape[-1]))
        logits = nucleus(logits, self.decoding.top_p)
        sums = logits.double().softmax(-1).cumsum(-1)
        if not bool(torch.isfinite(sums).all()):
            raise self._broken()
        drawn = torch.stack([self._of(seed or 0)[step] for seed in seeds]).to(sums.device)
        at = (sums < drawn[:, None]).sum(-1, keepdim=True).clamp(max=sums.shape[-1] - 1)
        return (at if among is None else among.gather(-1, at))[:, 0]

    def _of(self, seed: int) -> Tensor:
        if seed not in self._numbers:
            generator = torch.Generator().manual_seed(seed)
            self._numbers[seed] = torch.rand(self.decoding.max_new_tokens, generator=generator, dtype=torch.float64)
        return self._numbers[seed]


def nucleus(logits: Tensor, share: float) -> Tensor:
    """Logits [rows, n] with -inf outside the fewest likeliest tokens that hold this share of the probability.

    Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751); the likeliest token always stays.
    """
    if share >= 1:
        return logits
    ordered, at = logits.sort(dim=-1, descending=True)
    chances = ordered.softmax(-1)
    beyond = chances.cumsum(-1) - chances >= share
    outside = torch.zeros_like(beyond).scatter(-1, at, beyond)
    return logits.masked_fill(outside, -torch.inf)


def chooser(lm: LanguageModel, decoding: Decoding) -> Chooser:
    """The chooser that a decoding asks for."""
    if not decoding.sample:
        return Likeliest(lm, decoding)
    return DrawnTogether(lm, decoding) if decoding.drawn_together else DrawnApart(lm, decoding)


def continued(batch: PromptBatch, decoding: Decoding, choose: Chooser, seeds: Sequence[int | None]) -> list[list[int]]:
    """The new token ids of each row of a batch, up to and including the one that ended it; the batch is used up."""
    ending = Ending(batch.lm, decoding)
    rows: list[list[int]] = [[] for _ in seeds]
    said = [False] * len(rows)
    live, done = list(range(len(rows))), set[int]()  # what each row of the batch is, and which of them have ended
    for step in range(decoding.max_new_tokens):
        tokens = choose.choose(batch.ends, step, [seeds[i] for i in live])
        for i, token in zip(live, tokens, strict=True):
            if i in done:
                continue
            rows[i].append(token)
            ended, said[i] = ending.after(rows[i], said[i])
            if ended:
                done.add(i)
        staying = [n for n, i in enumerate(live) if i not in done]
        if not staying:
            break
        if not decoding.drawn_together and len(live) - len(staying) >= max(1, len(live) // DROP_AT):
            batch.keep(staying)
            live, tokens = [live[n] for n in staying], [tokens[n] for n in staying]
        batch.step(torch.tensor(tokens))
    return rows
