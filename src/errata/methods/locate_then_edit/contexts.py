"""Texts put in front of a prompt, so that an edit holds wherever its subject appears (ROME, section 3.1)."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from errata.lm.generation import generate_ids
from errata.lm.language_model import LanguageModel
from errata.lm.tokens import encode
from errata.patch.stack import bare

BARE = ""
SEEDS = ("The", "Therefore", "Because", "I", "You")
PREFIX_TOKENS = 10
TOP_K = 5

_drawn: WeakKeyDictionary[LanguageModel, dict[tuple[int, int], tuple[str, ...]]] = WeakKeyDictionary()


def sample_contexts(lm: LanguageModel, count: int, seed: int = 0) -> tuple[str, ...]:
    """The bare context and ``count`` short openings drawn from the model itself, each ending in ". ".

    They are kept per model, so that every edit of one model sees the same ones, and recorded in the patch.
    """
    known = _drawn.setdefault(lm, {})
    if (count, seed) not in known:
        # From the bare model: a sequence that is resumed half-way must see the openings that it began with.
        with bare(lm):
            known[count, seed] = (BARE, *_draw(lm, count, seed))
    return known[count, seed]


def _draw(lm: LanguageModel, count: int, seed: int) -> list[str]:
    starts = [list(encode(lm.tokenizer, SEEDS[i % len(SEEDS)]).ids) for i in range(count)]
    if not starts:
        return []
    more = generate_ids(lm, starts, max_new_tokens=PREFIX_TOKENS - 1, sample=True, top_k=TOP_K, seed=seed)
    texts = [lm.tokenizer.decode(a + b, skip_special_tokens=True) for a, b in zip(starts, more, strict=True)]
    # Line breaks would make the prefix a paragraph of its own, and a full stop is added anyway.
    return [" ".join(text.split()).rstrip(" .") + ". " for text in texts]
