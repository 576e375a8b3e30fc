"""Building records in SafeEdit's form from topics: questions times attacks, split so that no part shares either.

As the paper describes it (Wang et al. 2024, section 3): the questions of each category are divided 3 : 2 : 1 among
training, validation and test; the attacks go in equal runs to the three, and what is left over is out of domain.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from errata.datasets.safeedit import SLOT, SafetyCase
from errata.errors import DatasetError

SPLITS = ("train", "validation", "test")
SHARES = (3, 2, 1)


@dataclass(frozen=True)
class TopicQuestion:
    """A plain question with the answer wanted and the one not wanted."""

    question: str
    safe: str
    unsafe: str


@dataclass(frozen=True)
class Attack:
    """A text with one ``[QUESTION]`` in it, and its family (role play, ...).

    Raises:
        DatasetError: it does not hold the slot exactly once.
    """

    text: str
    family: str = ""

    def __post_init__(self) -> None:
        if self.text.count(SLOT) != 1:
            raise DatasetError(f"The attack {self.text[:40]!r} must hold {SLOT} exactly once: put it where one asks.")

    def on(self, question: str) -> str:
        """The attack with a question in its slot."""
        return self.text.replace(SLOT, question)


def split_questions(items: Sequence[TopicQuestion]) -> dict[str, list[TopicQuestion]]:
    """3 : 2 : 1 in the order given; 60 questions become 30, 20 and 10.

    Raises:
        DatasetError: there are fewer than six, or their number is no multiple of six.
    """
    if not items or len(items) % sum(SHARES):
        raise DatasetError(f"A category has {len(items)} questions: give a multiple of {sum(SHARES)}, for 3 : 2 : 1.")
    unit, parts, at = len(items) // sum(SHARES), {}, 0
    for split, share in zip(SPLITS, SHARES, strict=True):
        parts[split] = list(items[at : at + share * unit])
        at += share * unit
    return parts


def split_attacks(attacks: Sequence[Attack], each: int | None = None) -> dict[str, list[Attack]]:
    """Equal runs for the three parts and the rest "out of domain"; 48 attacks with ``each=15`` leave 3.

    Raises:
        DatasetError: fewer than two an attack's part: a probe needs another attack than its record's.
    """
    size = each if each is not None else len(attacks) // len(SPLITS)
    if size < 2 or size * len(SPLITS) > len(attacks):
        raise DatasetError(f"{len(attacks)} attacks cannot be split into three parts of {size}: give at least 6.")
    parts = {split: list(attacks[i * size : (i + 1) * size]) for i, split in enumerate(SPLITS)}
    parts["out of domain"] = list(attacks[len(SPLITS) * size :])
    return parts


def build_safety_cases(
    topics: Mapping[str, Sequence[TopicQuestion]],
    attacks: Sequence[Attack],
    constraints: Sequence[tuple[str, str]],
    *,
    split: str,
    attacks_each: int | None = None,
    attacks_a_question: int | None = None,
    seed: int = 0,
) -> list[SafetyCase]:
    """The records of one part.

    Args:
        topics: the questions of each category, a multiple of six each.
        attacks: at least six.
        constraints: prompts with answers that have nothing to do with the topics.
        split: "train", "validation" or "test".
        attacks_each: how many attacks a part has; by default a third.
        attacks_a_question: how many of them each question is combined with (they take turns); by default all.
        seed: of the choice of other questions, attacks and constraints.

    Returns:
        categories x questions x attacks records: 9 x 10 x 15 = 1,350 of the published test part. The other question of
        a probe is of the same category and has another answer; the other attack is of the same part.

    Raises:
        DatasetError: too few attacks, constraints or questions, or no such part.
    """
    if split not in SPLITS:
        raise DatasetError(f"There is no part {split!r}: choose one of {', '.join(SPLITS)}.")
    if not constraints:
        raise DatasetError("There is no constraint: give at least one prompt with its answer.")
    wrappers = split_attacks(attacks, attacks_each)[split]
    generator = random.Random(seed)
    cases: list[SafetyCase] = []
    for place, (category, items) in enumerate(topics.items()):
        chosen = split_questions(items)[split]
        if len({item.unsafe for item in chosen}) < 2:
            raise DatasetError(f"The {split} part of {category!r} needs two questions with other answers: give more.")
        for item, attack in _pairs(chosen, wrappers, attacks_a_question, place):
            other = generator.choice([o for o in chosen if o.unsafe != item.unsafe])
            elsewhere = generator.choice([a for a in wrappers if a != attack])
            cases.append(
                SafetyCase(
                    case_id=str(len(cases)),
                    category=category,
                    question=item.question,
                    prompt=attack.on(item.question),
                    safe=item.safe,
                    unsafe=item.unsafe,
                    constraint=generator.choice(list(constraints)),
                    probes={
                        "DG_onlyQ": item.question,
                        "DG_otherA": elsewhere.on(item.question),
                        "DG_otherQ": attack.on(other.question),
                        "DG_otherAQ": elsewhere.on(other.question),
                    },
                )
            )
    return cases


def _pairs(
    items: Sequence[TopicQuestion], attacks: Sequence[Attack], count: int | None, place: int
) -> Iterator[tuple[TopicQuestion, Attack]]:
    each = len(attacks) if count is None else min(count, len(attacks))
    for number, item in enumerate(items):
        for turn in range(each):
            yield item, attacks[(place + number * each + turn) % len(attacks)]
