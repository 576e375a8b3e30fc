"""What a patch that detoxifies does, at a glance: answers before and after, harmless ones too, and plain text.

A prompt-only defence changes answers by itself, so where a patch comes with one (DINM's suffix, Self-Reminder) each
request is asked four ways: without and with the patch, each with and without the words around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from errata.datasets import held_out_text
from errata.datasets.detox import DetoxExample
from errata.lm import LanguageModel, generate, perplexity, score
from errata.methods.detox.wording import Wording
from errata.patch import Patch
from errata.progress import task

ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Response:
    """One request before and after.

    Attributes:
        example_id: of the example.
        prompt: the request.
        before: the greedy answer without the patch and without words around the request.
        worded: the same with the words alone; None where the patch has none.
        after: with the patch, as it wants to be asked.
        after_bare: with the patch, without the words; None where it has none.
        safe_before: mean NLL a token of the safe answer, in nats, asked as ``before``. safe_after: asked as ``after``.
        unsafe_before: of the unsafe answer, where there is one. unsafe_after: asked as ``after``.
    """

    example_id: str
    prompt: str
    before: str
    worded: str | None
    after: str
    after_bare: str | None
    safe_before: float
    safe_after: float
    unsafe_before: float | None
    unsafe_after: float | None

    @property
    def took(self) -> bool:
        """The safe answer became likelier, and is likelier a token than the unsafe one where that is known.

        A likelihood, and no judge of the answer that is given: read that.
        """
        return self.safe_after < self.safe_before and (self.unsafe_after is None or self.safe_after < self.unsafe_after)


@dataclass(frozen=True)
class Harmless:
    """A harmless request before and after; ``after`` is asked as the patch wants to be asked."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Responses:
    """Everything a person wants to see of a fresh patch.

    Attributes:
        rows: one an example. harmless: the examples' harmless requests.
        perplexity_before: of held-out text without the patch. perplexity_after: with it.
        tokens: of held-out text, at most.
    """

    rows: tuple[Response, ...]
    harmless: tuple[Harmless, ...]
    perplexity_before: float
    perplexity_after: float
    tokens: int

    @property
    def took(self) -> bool:
        """Whether every example took."""
        return all(row.took for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "examples": [{**asdict(row), "took": row.took} for row in self.rows],
            "harmless": [asdict(row) for row in self.harmless],
            "perplexity": {"before": self.perplexity_before, "after": self.perplexity_after, "tokens": self.tokens},
        }


@dataclass(frozen=True)
class _Look:
    answers: list[str]
    safe: list[float]
    unsafe: list[float | None]
    harmless: list[str]


def responses(
    lm: LanguageModel,
    patch: Patch,
    examples: Sequence[DetoxExample],
    *,
    harmless: Sequence[str] = (),
    max_new_tokens: int = ANSWER_TOKENS,
    tokens: int = 1000,
) -> Responses:
    """Ask the same without and with a patch; the model is afterwards as it was.

    Args:
        lm: the model, which does not carry the patch.
        patch: the patch.
        examples: what it was made from, with the unsafe answers that its card leaves out.
        harmless: requests that are to be answered as before, beside those of the examples.
        max_new_tokens: longest answer.
        tokens: of held-out text, for the perplexity.

    Raises:
        PatchError: the patch does not apply to this model, or it carries it already.
    """
    wording = Wording.of(patch)
    bare = wording.bare
    around = wording != bare
    others = list(dict.fromkeys([*(e.constraint_prompt for e in examples if e.constraint_prompt), *harmless]))

    def look(how: Wording) -> _Look:
        prompts = [how.prompt(lm, e.prompt) for e in examples]
        pairs = [(p, e.safe) for p, e in zip(prompts, examples, strict=True)]
        pairs += [(p, e.unsafe) for p, e in zip(prompts, examples, strict=True) if e.unsafe is not None]
        losses = [-scored.log_probability for scored in score(lm, pairs)]
        left = iter(losses[len(examples) :])
        unsafe = [None if e.unsafe is None else next(left) for e in examples]
        asked = [*prompts, *(how.prompt(lm, text) for text in others)]
        answers = [text.strip() for text in generate(lm, asked, max_new_tokens=max_new_tokens)]
        return _Look(answers[: len(examples)], losses[: len(examples)], unsafe, answers[len(examples) :])

    with task("Answers before and after", total=4) as bar:
        before, plain = look(bare), perplexity(lm, held_out_text(), tokens=tokens)
        bar.advance()
        worded = look(wording) if around else None
        bar.advance()
        with patch.applied(lm):
            after, changed = look(wording), perplexity(lm, held_out_text(), tokens=tokens)
            bar.advance()
            after_bare = look(bare) if around else None
            bar.advance()
    rows = tuple(
        Response(
            example_id=example.example_id,
            prompt=example.prompt,
            before=before.answers[i],
            worded=worded.answers[i] if worded else None,
            after=after.answers[i],
            after_bare=after_bare.answers[i] if after_bare else None,
            safe_before=before.safe[i],
            safe_after=after.safe[i],
            unsafe_before=before.unsafe[i],
            unsafe_after=after.unsafe[i],
        )
        for i, example in enumerate(examples)
    )
    kept = tuple(Harmless(*each) for each in zip(others, before.harmless, after.harmless, strict=True))
    return Responses(rows, kept, plain, changed, tokens)
