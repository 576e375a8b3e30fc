"""Ordinary text as windows of token ids: from files, from a hub dataset, or sampled from the model itself."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.datasets import read_text
from errata.errors import ConfigError
from errata.lm.generation import generate_ids
from errata.lm.language_model import LanguageModel
from errata.lm.tokens import encode

WINDOW = 128
SELF = "self"
HUB_PREFIX = "hub:"
# Everyday openings, so that text sampled from the model spreads over many topics.
OPENINGS = (
    "The history of", "In the city of", "Scientists have", "The company", "A recent study", "My name is", "The river",
    "She was born in", "He is best known for", "The first", "According to", "During the war", "The school", "The film",
    "In mathematics", "To cook", "The president of", "Music is", "The team", "On Monday", "Birds are", "The book",
    "Once upon a time", "The island of", "It is important to", "The language", "Many people", "The largest",
    "Dear", "Question:", "In this paper", "The government", "Water is", "Born in", "The album", "Located in",
)  # fmt: skip


class Corpus(ABC):
    """A source of token windows; ``identity`` names it in caches and cards."""

    identity: str

    @abstractmethod
    def windows(self, lm: LanguageModel, tokens: int) -> Iterator[list[int]]:
        """Windows of at most :data:`WINDOW` token ids, about ``tokens`` of them in all (fewer where text runs out)."""


class SelfSampled(Corpus):
    """Text that the model writes itself, from everyday openings, at temperature 1: needs no file and no network."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.identity = seed, f"self-{seed}"

    def windows(self, lm: LanguageModel, tokens: int, *, batch_size: int = 72) -> Iterator[list[int]]:
        """Sample ``batch_size`` windows at a time."""
        starts = [list(encode(lm.tokenizer, opening).ids) for opening in OPENINGS]
        given, drawn = 0, 0
        while given < tokens:
            rows = [starts[(drawn * batch_size + i) % len(starts)] for i in range(batch_size)]
            out = generate_ids(
                lm, rows, max_new_tokens=WINDOW - max(map(len, starts)), stop="never", sample=True,
                seed=self.seed * 10_000 + drawn, batch_size=batch_size,
            )  # fmt: skip
            drawn += 1
            for start, more in zip(rows, out, strict=True):
                given += len(start) + len(more)
                yield start + more
                if given >= tokens:
                    return


class TextFiles(Corpus):
    """Documents of a .txt, .jsonl or .json file, or of a folder of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        digest = hashlib.sha256()
        for document in read_text(path, limit_chars=1_000_000):
            digest.update(document.encode())
        self.identity = f"text-{digest.hexdigest()[:12]}"

    def windows(self, lm: LanguageModel, tokens: int) -> Iterator[list[int]]:
        """Each document cut into windows, in order."""
        yield from _cut(lm, read_text(self.path), tokens)


class HubDataset(Corpus):
    """Documents streamed from a dataset on the hub, such as ``hub:wikimedia/wikipedia:20231101.en``."""

    def __init__(self, spec: str) -> None:
        self.name, _, self.configuration = spec.removeprefix(HUB_PREFIX).partition(":")
        self.identity = f"hub-{self.name.replace('/', '--')}-{self.configuration or 'default'}"

    def windows(self, lm: LanguageModel, tokens: int) -> Iterator[list[int]]:
        """Each document cut into windows, as they stream in."""
        yield from _cut(lm, self._documents(), tokens)

    def _documents(self) -> Iterator[str]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise ConfigError("Reading a hub dataset needs `pip install 'errata[hub]'`.") from None
        try:
            stream: Any = load_dataset(self.name, self.configuration or None, split="train", streaming=True)
        except Exception as error:  # the hub client raises many kinds
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(
                f"The hub dataset {self.name!r} cannot be read ({reason}): use a text file or 'self'."
            ) from error
        for record in stream:
            text = record.get("text")
            if not isinstance(text, str):
                raise ConfigError(
                    f"The hub dataset {self.name!r} has no 'text' column: use another one, or a text file."
                )
            yield text


def _cut(lm: LanguageModel, documents: Iterator[str], tokens: int) -> Iterator[list[int]]:
    given = 0
    for document in documents:
        ids = list(encode(lm.tokenizer, document).ids)
        for at in range(0, len(ids), WINDOW):
            window = ids[at : at + WINDOW]
            if len(window) < 2:
                continue
            given += len(window)
            yield window
            if given >= tokens:
                return


def open_corpus(spec: str | Corpus | None) -> Corpus:
    """The corpus a specification names: "self" (the default), a path, or "hub:dataset[:configuration]".

    Raises:
        ConfigError: nothing by that name. DatasetError: the file cannot be read.
    """
    if isinstance(spec, Corpus):
        return spec
    if spec is None or spec == SELF:
        return SelfSampled()
    if spec.startswith(HUB_PREFIX):
        return HubDataset(spec)
    path = Path(spec).expanduser()
    if not path.exists():
        raise ConfigError(
            f"There is no corpus {spec!r}: give 'self', a text file or folder, or 'hub:<dataset>:<configuration>'."
        )
    return TextFiles(path)
