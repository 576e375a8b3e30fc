"""How the subject is made unrecognisable: what its token embeddings become in the corrupted runs.

Noise enters at the output of the token-embedding module, before positions are added; weights are never touched. Models
that scale their embeddings do it inside that module (Gemma 3) or behind it (Gemma 2): sigma is measured where the noise
is added, so a multiple of sigma means the same in both. Replacing the subject by another one of as many tokens keeps
the model on familiar ground (Zhang & Nanda, ICLR 2024).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from errata.datasets import held_out_text
from errata.errors import ConfigError
from errata.lm import LanguageModel
from errata.lm.tokens import encode

Kind = Literal["gaussian", "uniform", "covariance", "replacement"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """What happens to a subject's embeddings.

    Attributes:
        kind: "gaussian" adds independent normal noise; "uniform" adds noise between -level and level; "covariance" adds
            normal noise with the covariance that token embeddings of ordinary text have; "replacement" puts another
            fact's subject of as many tokens in its place.
        multiple: the noise level in sigmas, the standard deviation of the subjects' token embeddings over all facts
            (of "covariance": a factor on its noise).
        level: the noise level itself, in place of a multiple.

    Raises:
        ConfigError: an unknown kind, or a level that is negative or not finite.
    """

    kind: Kind = "gaussian"
    multiple: float = 3.0
    level: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"There is no corruption {self.kind!r}: choose one of {', '.join(KINDS)}.")
        for value in (self.multiple, self.level):
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"The noise level {value} is not a number from 0 up: 3 sigmas (3s) are usual.")

    @classmethod
    def parse(cls, kind: str, noise: str) -> Corruption:
        """From a kind and a level as text: ``3s`` for three sigmas, ``0.1`` for a level.

        Raises:
            ConfigError: the level is neither, or there is no such kind.
        """
        try:
            number = float(noise.removesuffix("s"))
        except ValueError:
            raise ConfigError(f"The noise {noise!r} is not a level: write 3s for three sigmas, or 0.1.") from None
        if noise.endswith("s"):
            return cls(kind=kind, multiple=number)  # type: ignore[arg-type]
        return cls(kind=kind, level=number)  # type: ignore[arg-type]

    def describe(self) -> str:
        """In a few characters: ``gaussian 3s``."""
        if self.kind == "replacement":
            return self.kind
        return f"{self.kind} {self.multiple:g}s" if self.level is None else f"{self.kind} {self.level:g}"


class Corrupter:
    """Makes the corrupted embeddings of one subject after another.

    Args:
        lm: the model.
        subjects: the token ids of every subject, as they stand in their prompts.
        corruption: what is done to them. samples: corrupted rows a fact. seed: of all that is drawn.

    Attributes:
        sigma: the standard deviation over all entries of the subjects' token embeddings.
    """

    def __init__(
        self,
        lm: LanguageModel,
        subjects: Sequence[tuple[int, ...]],
        corruption: Corruption,
        *,
        samples: int = 10,
        seed: int = 1,
    ) -> None:
        self._lm, self._corruption, self._samples, self._seed = lm, corruption, samples, seed
        self._subjects = list(dict.fromkeys(subjects))
        every = embedded(lm, [token for subject in subjects for token in subject]).float()
        self.sigma = float(every.std(correction=0))
        self._centred: Tensor | None = None

    @property
    def level(self) -> float:
        """By what standard normal (or uniform) numbers are multiplied."""
        corruption = self._corruption
        return corruption.multiple * self.sigma if corruption.level is None else corruption.level

    def rows(self, subject: tuple[int, ...], name: str) -> Tensor | None:
        """What the subject's embeddings become, [samples, tokens of the subject, d].

        Args:
            subject: its token ids. name: of the fact; with the seed it decides what is drawn, so that a fact's noise
                depends neither on the other facts nor on their order.

        Returns:
            None where there is no other subject of as many tokens to put in its place.
        """
        digest = hashlib.sha256(f"{self._seed}\x1f{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        if self._corruption.kind == "replacement":
            return self._replaced(subject, generator)
        clean = embedded(self._lm, subject)
        shape = (self._samples, *clean.shape)
        return clean + self._noise(shape, generator).to(clean)

    def _noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if self._corruption.kind == "uniform":
            return self.level * (2 * torch.rand(shape, generator=generator) - 1)
        if self._corruption.kind == "gaussian":
            return self.level * torch.randn(shape, generator=generator)
        # A normal mix of centred samples has their covariance, whatever its rank: no matrix has to be factored.
        if self._centred is None:
            sample = embedded(self._lm, encode(self._lm.tokenizer, held_out_text()).ids).float().cpu()
            self._centred = (sample - sample.mean(0)) / max(1, len(sample) - 1) ** 0.5
        scale = self._corruption.multiple if self._corruption.level is None else self._corruption.level
        return scale * torch.randn((*shape[:-1], len(self._centred)), generator=generator) @ self._centred

    def _replaced(self, subject: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        others = [other for other in self._subjects if len(other) == len(subject) and other != subject]
        if not others:
            return None
        order = torch.randperm(len(others), generator=generator).tolist()[: self._samples]
        return torch.stack([embedded(self._lm, others[i]) for i in order])


def embedded(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """The output of the token-embedding module for some ids, [n, d]."""
    module = lm.model.get_submodule(lm.architecture.embedding)
    with torch.no_grad():
        out: Tensor = module(torch.tensor([list(ids)], device=lm.device))[0]
    return out
