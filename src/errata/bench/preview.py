"""What a patch does, at a glance: the answers before and after, what else moved, and the perplexity of plain text.

A preview is for a person who just made an edit. It takes seconds and is no evaluation: its controls are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from errata.datasets import held_out_text, starter_cases
from errata.evaluation.judges import strict_success
from errata.lm import LanguageModel, generate, perplexity, score
from errata.lm.tokens import chat_prompt
from errata.patch import Patch
from errata.progress import Task, task
from errata.records import Edit

ANSWER_TOKENS = 12
CHAT_TOKENS = 24
QUESTION = "Complete this sentence: {}"


@dataclass(frozen=True)
class Row:
    """One edit before and after.

    Attributes:
        prompt: with its subject.
        target: the answer wanted.
        before: the greedy answer without the patch.
        after: the greedy answer with it.
        p_before: probability of the target as the continuation, without the patch. p_after: with it.
        took: the greedy answer with the patch begins with the target.
        chat_before: the answer inside the chat template, None where the tokenizer has none. chat_after: with the patch.
    """

    prompt: str
    target: str
    before: str
    after: str
    p_before: float
    p_after: float
    took: bool
    chat_before: str | None = None
    chat_after: str | None = None


@dataclass(frozen=True)
class Control:
    """A prompt about something else, before and after."""

    prompt: str
    before: str
    after: str
    same: bool


@dataclass(frozen=True)
class Preview:
    """Everything a person wants to see of a fresh patch.

    Attributes:
        rows: one an edit, in the patch's order.
        controls: prompts about other things.
        perplexity_before: of held-out text without the patch. perplexity_after: with it.
        tokens: of held-out text, at most.
    """

    rows: tuple[Row, ...]
    controls: tuple[Control, ...]
    perplexity_before: float
    perplexity_after: float
    tokens: int

    @property
    def took(self) -> bool:
        """Whether every edit took."""
        return all(row.took for row in self.rows)

    @property
    def unchanged(self) -> int:
        """How many controls are answered as before."""
        return sum(control.same for control in self.controls)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the keys ``edits``, ``controls`` and ``perplexity``."""
        return {
            "edits": [asdict(row) for row in self.rows],
            "controls": {
                "unchanged": self.unchanged,
                "n": len(self.controls),
                "cases": [asdict(control) for control in self.controls],
            },
            "perplexity": {"before": self.perplexity_before, "after": self.perplexity_after, "tokens": self.tokens},
        }


@dataclass(frozen=True)
class _Look:
    """What the model as it stands says to all questions."""

    answers: list[str]
    probabilities: list[float]
    chat: list[str | None]
    controls: list[str]
    perplexity: float


def before_after(lm: LanguageModel, patch: Patch, *, controls: int = 20, tokens: int = 1000) -> Preview:
    """Ask the model the same questions without and with a patch; the model is afterwards as it was.

    Args:
        lm: the model, which does not carry the patch.
        patch: the patch.
        controls: prompts about other things, at most.
        tokens: of held-out text, for the perplexity.

    Raises:
        PatchError: the patch does not apply to this model, or it carries it already.
    """
    edits = patch.edits
    others = control_prompts(edits, controls)
    with task("Answers before and after", total=10) as bar:
        before = _look(lm, edits, others, tokens, bar)
        with patch.applied(lm):
            after = _look(lm, edits, others, tokens, bar)
    rows = tuple(
        Row(
            prompt=edit.text,
            target=edit.target_new,
            before=before.answers[i],
            after=after.answers[i],
            p_before=before.probabilities[i],
            p_after=after.probabilities[i],
            took=strict_success(after.answers[i], edit.target_new),
            chat_before=before.chat[i],
            chat_after=after.chat[i],
        )
        for i, edit in enumerate(edits)
    )
    moved = tuple(
        Control(prompt, old, new, old == new)
        for prompt, old, new in zip(others, before.controls, after.controls, strict=True)
    )
    return Preview(rows, moved, before.perplexity, after.perplexity, tokens)


def control_prompts(edits: Sequence[Edit], count: int) -> list[str]:
    """Prompts of the starter cases that have nothing to do with the edits, spread over all of them.

    A case is left out where its subject and an edit's occur in one another or in one another's prompts.
    """
    free = [case.edit for case in starter_cases() if not any(_related(case.edit, edit) for edit in edits)]
    wanted = min(count, len(free))
    return [free[i * len(free) // wanted].text for i in range(wanted)]


def _related(case: Edit, edit: Edit) -> bool:
    ours, theirs = case.text.casefold(), edit.text.casefold()
    return case.subject.casefold() in theirs or edit.subject.casefold() in ours


def _look(lm: LanguageModel, edits: Sequence[Edit], others: Sequence[str], tokens: int, bar: Task) -> _Look:
    scores = score(lm, [(edit.text, edit.target_new) for edit in edits])
    bar.advance()
    answers = _answers(lm, [edit.text for edit in edits])
    bar.advance()
    chat: list[str | None] = [None] * len(edits)
    if getattr(lm.tokenizer, "chat_template", None):
        questions = [chat_prompt(lm.tokenizer, QUESTION.format(edit.text)) for edit in edits]
        chat = list(_answers(lm, questions, CHAT_TOKENS))
    bar.advance()
    controls = _answers(lm, others)
    bar.advance()
    measured = perplexity(lm, held_out_text(), tokens=tokens)
    bar.advance()
    return _Look(answers, [math.exp(s.total) for s in scores], chat, controls, measured)


def _answers(lm: LanguageModel, prompts: Sequence[str], tokens: int = ANSWER_TOKENS) -> list[str]:
    """Greedy answers up to their natural stop, blanks at the ends removed."""
    return [text.strip() for text in generate(lm, prompts, max_new_tokens=tokens, stop="natural")]
