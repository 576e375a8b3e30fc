"""Ordinary text as windows of token ids: from files, from a hub dataset, or sampled from the model itself."""

from __future__ import annotations

import hashlib
import re
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
# Headings of lists, so that text sampled from the model is full of names of many kinds. The subjects of edits and their
# neighbours are names, and where C has not seen the like of a neighbour, nothing keeps the edit from moving it.
LISTS = (
    "Famous painters and where they were born", "Great composers and the instruments they played",
    "Cities of Europe and the countries they lie in", "Rivers of the world and where they flow",
    "Well-known companies and where they have their head offices", "Airlines and their home airports",
    "Writers and the languages they wrote in", "Politicians and the offices they held",
    "Football players and the clubs they played for", "Ice hockey and basketball players and their positions",
    "Actors and the films that made them famous", "Television series and the channels that broadcast them",
    "Car models and who makes them", "Software and the companies behind it",
    "Bands, their singers and the records they made", "Scientists and what they discovered",
    "Philosophers and what they taught", "Universities and the towns they are in",
    "Mountains, islands and lakes, by country", "Kings, queens and emperors, and the lands they ruled",
    "Saints, bishops and prophets, and their religions", "Newspapers and magazines, and the cities they appear in",
    "Museums, theatres and stadiums, and where to find them",
    "Countries of Africa, Asia and South America with their capitals", "Languages and the people who speak them",
    "Battles and wars, and when they were fought", "Singers and the kind of music they perform",
    "Football clubs, their stadiums and managers", "Districts, provinces and counties, and the states they belong to",
    "Bridges, towers and palaces, and who built them", "Generals, admirals and soldiers, and their armies",
    "Video games, the studios that made them, and the consoles",
    "Mathematicians, physicians and engineers, with their years of birth and death",
    "Dishes, drinks and the places they come from", "Explorers and the coasts they reached",
    "Journalists, lawyers and diplomats, and where they worked",
)  # fmt: skip
OPENINGS = tuple(f"{heading}:\n-" for heading in LISTS)
SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\s*\n\s*")
SHORTEST_SENTENCE = 4  # tokens; what is shorter is a number, a bullet or a rest


class Corpus(ABC):
    """A source of token windows; ``identity`` names it in caches and cards."""

    identity: str

    @abstractmethod
    def windows(self, lm: LanguageModel, tokens: int) -> Iterator[list[int]]:
        """Windows of at most :data:`WINDOW` token ids, about ``tokens`` of them in all (fewer where text runs out)."""


class SelfSampled(Corpus):
    """Sentences that the model writes itself, in lists of names of many kinds: needs no file and no network.

    Each sentence, or line, is a window of its own, because the prompts at which edits are made and judged are single
    sentences too: keys some hundred tokens into a text are not quite like theirs.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.identity = seed, f"self-lists-{seed}"

    def windows(self, lm: LanguageModel, tokens: int, *, batch_size: int = 72) -> Iterator[list[int]]:
        """Sample ``batch_size`` texts at a time, at temperature 1, and cut them."""
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
                for sentence in _sentences(lm, start + more):
                    given += len(sentence)
                    yield sentence
                    if given >= tokens:
                        return


def _sentences(lm: LanguageModel, ids: list[int]) -> list[list[int]]:
    """The sentences and lines of a text, each as a text of its own; the text whole where it has none to speak of."""
    text = lm.tokenizer.decode(ids, skip_special_tokens=True)
    # Encoded anew, so that each begins as a prompt does: with the tokenizer's own first token, without a blank.
    parts = [encode(lm.tokenizer, part.strip()).ids for part in SENTENCE_BREAK.split(text) if part.strip()]
    return [list(part[:WINDOW]) for part in parts if len(part) >= SHORTEST_SENTENCE] or [ids]


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
