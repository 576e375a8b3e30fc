"""What the texts of edits show of each other: one question asked twice, and answers that are other edits' subjects.

Everything is found by lookup, so that ten thousand edits take no hundred million comparisons.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

from errata.records import Edit

LONGEST_NAME = 8  # words; a longer run of an answer's words names no subject


def same_question(edits: Sequence[Edit]) -> Iterator[tuple[tuple[int, int], bool]]:
    """Pairs (i, j), i < j, of edits whose prompts read the same, and whether they ask the same answer.

    Each answer of a question is paired with each other one, and a repeated answer with its first occurrence. As
    everywhere in requests, 'rome' is another answer than 'Rome'.
    """
    questions: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for i, edit in enumerate(edits):
        answers = questions[plain(edit.text)]
        if edit.target_new in answers:
            yield (answers[edit.target_new], i), True
            continue
        for other in answers.values():
            yield (other, i), False
        answers[edit.target_new] = i


def tied(edits: Sequence[Edit]) -> Iterator[tuple[int, int]]:
    """Pairs (i, j) where the answer of edit i and the subject of edit j are one name, or one holds the other."""
    by_subject: defaultdict[str, list[int]] = defaultdict(list)
    by_phrase: defaultdict[str, list[int]] = defaultdict(list)
    for j, edit in enumerate(edits):
        by_subject[plain(edit.subject)].append(j)
        for phrase in _phrases(edit.subject):
            by_phrase[phrase].append(j)
    for i, edit in enumerate(edits):
        named = {j for phrase in _phrases(edit.target_new) for j in by_subject.get(phrase, ())}
        named.update(by_phrase.get(plain(edit.target_new), ()))
        yield from ((i, j) for j in sorted(named) if i != j)


def names(answer: str, subject: str) -> bool:
    """Whether an answer and a subject are one name, or one holds the other as whole words."""
    return plain(answer) in _phrases(subject) or plain(subject) in _phrases(answer)


def plain(text: str) -> str:
    """Text without what does not change its meaning: case, blanks and punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(" " if unicodedata.category(c).startswith("P") else c for c in folded)
    return " ".join(bare.split()) or folded.strip()


def _phrases(text: str) -> set[str]:
    """The text and every run of its words, up to a length that a name may have."""
    words = plain(text).split(" ")
    ends = range(1, LONGEST_NAME + 1)
    return {" ".join(words[a : a + length]) for a in range(len(words)) for length in ends} | {" ".join(words)}
