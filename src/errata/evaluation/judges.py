"""Judging generated text against the answers wanted, by rule.

Teacher forcing hands a model both the words and the length of the answer; these judges look at what it writes by
itself (Yang et al. 2025, arXiv 2502.11177).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

ARTICLES = ("a", "an", "the")
KEPT_MARKS = "#%&@"  # punctuation to Unicode, but part of an answer such as C# or 5%

# A dot after one of these belongs to the word. Words that are also answers or names (no, fig, Ed) are left out.
ABBREVIATION = re.compile(
    r"approx|bros|capt|co|corp|dr|etc|ft|gov|inc|jr|lt|ltd|mr|mrs|ms|mt|prof|rev|sen|sgt|sr|st|vs", re.IGNORECASE
)
STOPS = re.compile(r"[.!?]+(?=[\"'”’»)\]]*(?:\s|$))|[。！？।؟]+")
DOTTED = re.compile(r"(?:^|[\s(\"'“‘])((?:[^\W\d_]\.)*[^\W\d_])$")  # an initial, or U.S and a.m before their last dot
NO_BLANKS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")


def normalise(text: str) -> str:
    """The text as answers are compared: NFKC, case folded, blanks collapsed, no punctuation at the ends, no article.

    An article goes only from the front (``Hepatitis A`` keeps its A), and nothing is stripped down to no text at all.
    Applying it twice changes nothing more.
    """
    while True:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        stripped = _without_article(_strip_marks(" ".join(folded.split())))
        if stripped == text:
            return text
        text = stripped


def first_answer(generated: str) -> str:
    """The generation up to its natural stop: the first newline, or the mark that ends the first sentence.

    Blanks and newlines before the first word do not count. The dots of ``U.S.``, ``St. Louis``, ``J. R. R. Tolkien``
    and 3.14 end nothing; the mark itself is not returned.
    """
    lines = generated.strip().splitlines()
    line = lines[0] if lines else ""
    for stop in STOPS.finditer(line):
        before = line[: stop.start()]
        if stop.group() != "." or not _abbreviated(before, at_end=stop.end() == len(line)):
            return before.strip()
    return line.strip()


def strict_success(generated: str, target: str) -> bool:
    """Whether the generation begins with the target and the target ends there at the end of a word.

    In scripts written without blanks (Chinese, Japanese, Thai, ...) any place between two letters will do.
    """
    wanted = normalise(target)
    written = normalise(generated)
    return bool(wanted) and written.startswith(wanted) and _ends_word(written, len(wanted))


def contains_answer(generated: str, answers: Iterable[str]) -> bool:
    """Whether any of the answers stands in the generation as whole words."""
    written = normalise(generated)
    return any(_stands_in(written, wanted) for wanted in map(normalise, answers) if wanted)


def same_answer(before: str, after: str) -> bool:
    """Whether two generations give the same first answer: the judge of locality by free generation."""
    return normalise(first_answer(before)) == normalise(first_answer(after))


def _strip_marks(text: str) -> str:
    start, end = 0, len(text)
    while start < end and _is_mark(text[start]):
        start += 1
    while end > start and _is_mark(text[end - 1]):
        end -= 1
    return text[start:end] or text


def _is_mark(character: str) -> bool:
    if character in KEPT_MARKS:
        return False
    return character.isspace() or unicodedata.category(character).startswith("P")


def _without_article(text: str) -> str:
    first, _, rest = text.partition(" ")
    return rest if rest and first in ARTICLES else text


def _abbreviated(before: str, *, at_end: bool) -> bool:
    """Whether the dot after ``before`` belongs to its last word; at the end of all text only that of U.S. does."""
    dotted = DOTTED.search(before)
    if at_end:
        return dotted is not None and "." in dotted[1]
    words = before.split()
    return dotted is not None or bool(words and ABBREVIATION.fullmatch(words[-1].lstrip("\"'“‘(")))


def _stands_in(written: str, wanted: str) -> bool:
    at = written.find(wanted)
    while at >= 0:
        if (at == 0 or _between(written, at)) and _ends_word(written, at + len(wanted)):
            return True
        at = written.find(wanted, at + 1)
    return False


def _ends_word(text: str, at: int) -> bool:
    if at >= len(text):
        return True
    # 3 is not the answer 3.14, nor 1 the answer 1,000.
    number_goes_on = text[at] in ".," and text[at - 1].isdigit() and text[at + 1 : at + 2].isdigit()
    return _between(text, at) and not number_goes_on


def _between(text: str, at: int) -> bool:
    """Whether a word ends between the characters ``at - 1`` and ``at``."""
    left, right = text[at - 1], text[at]
    if unicodedata.category(right).startswith("M"):  # an accent or vowel sign continues the letter before it
        return False
    if not (_in_word(left) and _in_word(right)):
        return True
    return bool(NO_BLANKS.match(left) or NO_BLANKS.match(right))


def _in_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")
