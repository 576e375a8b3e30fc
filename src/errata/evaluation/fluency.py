"""Fluency of generated text as the entropy of its n-grams (GE of Meng et al. 2022): low means repetition."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from errata.lm.generation import generate
from errata.lm.language_model import LanguageModel

FLUENCY_TOKENS = 100
FLUENCY_TOP_K = 5

# Close to nltk's word_tokenize without its download: punctuation counts, "don't" is "do" + "n't", "3.14" is one token.
# Ideographs and kana count one by one, because without blanks a whole sentence would be one word.
IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff"
WORD = rf"[^\W{IDEOGRAPHS}]"
TOKENS = re.compile(
    rf"""
      \d+(?:[.,:]\d+)+                          # 3.14  1,000  12:30
    | (?:[^\W\d_]\.){{2,}}                      # U.S.
    | {WORD}+?(?=n['’]t\b) | n['’]t\b           # do|n't
    | ['’](?:s|re|ve|ll|d|m)\b                  # Paris|'s
    | {WORD}+(?:-{WORD}+)*                      # well-known
    | [{IDEOGRAPHS}]
    | \.{{2,}} | -{{2,}}
    | [^\w\s]
    """,
    re.VERBOSE | re.IGNORECASE,
)


def sampled_texts(
    lm: LanguageModel, openings: Sequence[tuple[str, str]], *, seed: int = 0, tags: Sequence[int] | None = None
) -> dict[tuple[str, str], dict[str, Any]]:
    """For each (case id, opening) a sampled text and its :func:`ngram_entropy`: ``prompt``, ``text``, ``entropy``.

    What is drawn depends on ``seed``, the case and the opening, and not on what is drawn beside it; a text before and
    after an edit is drawn by the same numbers. ``tags`` are told to hooks (:mod:`errata.lm.tags`).
    """
    seeds = [_seed(seed, case_id, opening) for case_id, opening in openings]
    prompts = [opening for _, opening in openings]
    texts = generate(
        lm,
        prompts,
        max_new_tokens=FLUENCY_TOKENS,
        stop="never",
        sample=True,
        top_k=FLUENCY_TOP_K,
        seed=seeds,
        tags=tags,
    )
    return {
        opening: {"prompt": opening[1], "text": text, "entropy": ngram_entropy(f"{opening[1]} {text}")}
        for opening, text in zip(openings, texts, strict=True)
    }


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def ngram_entropy(text: str) -> float:
    """A third of the bigram entropy plus two thirds of the trigram entropy of one text, in bits.

    Papers print it times 100. It grows with the length of the text, so compare only texts of one length; a text of
    ``W`` words without a repeated n-gram has ``log2(W - 1) / 3 + 2 * log2(W - 2) / 3``, the most it can have. A text
    too short for an n-gram has no entropy from it.
    """
    tokens = TOKENS.findall(text)
    return _entropy(tokens, 2) / 3 + 2 * _entropy(tokens, 3) / 3


def _entropy(tokens: Sequence[str], size: int) -> float:
    counts = Counter(zip(*(tokens[start:] for start in range(size)), strict=False))
    total = counts.total()
    return sum(count / total * math.log2(total / count) for count in counts.values())
