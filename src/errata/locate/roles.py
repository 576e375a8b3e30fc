"""What a token is to its prompt: the rows over which traces of different prompts are averaged (Meng et al. 2022)."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The six roles, in the order in which they stand in a prompt."""

    FIRST_SUBJECT = "first subject token"
    MIDDLE_SUBJECT = "middle subject tokens"
    LAST_SUBJECT = "last subject token"
    FIRST_SUBSEQUENT = "first subsequent token"
    FURTHER = "further tokens"
    LAST = "last token"

    @property
    def key(self) -> str:
        """The role as a part of a metric's name: ``last_subject_token``."""
        return self.value.replace(" ", "_")


def positions_by_role(tokens: int, subject: tuple[int, int]) -> dict[Role, tuple[int, ...]]:
    """The positions of each role in a prompt of so many tokens whose subject is [first, one after the last).

    A subject of one token is its last. A prompt that ends with its subject has its last token there and no last
    subject token: what is predicted is read off that token, which outweighs that it is the subject's. Tokens before
    the subject have no role, for nothing that happens after them reaches them.
    """
    first, end = subject
    last = tokens - 1
    inside = [position for position in range(first, end) if position != last]
    after = list(range(end, last))
    own_last = [end - 1] if end - 1 != last else []
    rest = [position for position in inside if position not in own_last]
    return {
        Role.FIRST_SUBJECT: tuple(rest[:1]),
        Role.MIDDLE_SUBJECT: tuple(rest[1:]),
        Role.LAST_SUBJECT: tuple(own_last),
        Role.FIRST_SUBSEQUENT: tuple(after[:1]),
        Role.FURTHER: tuple(after[1:]),
        Role.LAST: (last,),
    }
