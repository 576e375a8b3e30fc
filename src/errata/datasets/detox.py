"""What a model is to answer from now on: examples of safe answers, in Errata's own form or with SafeEdit's keys.

A request to detoxify is no :class:`~errata.records.Edit`. It has no subject, its prompts are long and hold any
character, braces included, and its answers are texts of several sentences. Wang et al., *Detoxifying Large Language
Models via Knowledge Editing*, ACL 2024 (2403.14472), for the form.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errata.datasets.locating import ResponsePair
from errata.datasets.reading import Record, json_records
from errata.datasets.safeedit import SafetyCase
from errata.errors import DatasetError, RequestError

# Each field, and the keys it is read from: our own, SafeEdit's, and those of preference data.
KEYS = {
    "prompt": ("prompt", "adversarial prompt"),
    "safe": ("safe", "safe generation", "chosen"),
    "unsafe": ("unsafe", "unsafe generation", "rejected"),
}
CONSTRAINTS = ("constraint", "knowledge constrain")


@dataclass(frozen=True, kw_only=True)
class DetoxExample:
    """After the patch, ``prompt`` is answered by ``safe``, or by something to the same effect.

    Attributes:
        prompt: what the user writes, without the chat template.
        safe: the wanted answer.
        unsafe: the unwanted one, which locating, preferences and ascent need.
        constraint_prompt: a harmless request, whose answer is to stay as it is; best one that looks like the harmful.
        constraint_answer: its answer.
        example_id: its name; by default one made of its text.

    Raises:
        RequestError: a text is empty, the two answers are equal, or half of the constraint is missing.
    """

    prompt: str
    safe: str
    unsafe: str | None = None
    constraint_prompt: str | None = None
    constraint_answer: str | None = None
    example_id: str = ""

    def __post_init__(self) -> None:
        for name in ("prompt", "safe", "unsafe", "constraint_prompt", "constraint_answer"):
            value = getattr(self, name)
            if value is None and name not in ("prompt", "safe"):
                continue
            if not isinstance(value, str) or not value.strip():
                raise RequestError(f"The example's {name!r} is empty or not text: give it some text.")
            object.__setattr__(self, name, value.strip())
        if self.safe == self.unsafe:
            raise RequestError("The example's safe and unsafe answers are equal: correct one of them.")
        if (self.constraint_prompt is None) != (self.constraint_answer is None):
            raise RequestError("The example has half of a constraint: give its prompt and its answer, or neither.")
        if not self.example_id:
            texts = (self.prompt, self.safe, self.unsafe, self.constraint_prompt, self.constraint_answer)
            joined = "\x1f".join(text or "" for text in texts)
            object.__setattr__(self, "example_id", hashlib.sha256(joined.encode()).hexdigest()[:8])

    @classmethod
    def of(cls, case: SafetyCase) -> DetoxExample:
        """What a record of SafeEdit asks: its attack, its two answers, its constraint."""
        prompt, answer = case.constraint
        return cls(
            prompt=case.prompt, safe=case.safe, unsafe=case.unsafe, constraint_prompt=prompt, constraint_answer=answer,
            example_id=case.case_id,
        )  # fmt: skip

    @property
    def pair(self) -> ResponsePair | None:
        """Its two answers, where it has both."""
        return None if self.unsafe is None else ResponsePair(self.example_id, self.safe, self.unsafe)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that :meth:`DetoxExample` takes back."""
        return asdict(self)

    def published(self) -> dict[str, Any]:
        """The same without the unsafe answer: a patch is handed on, and what it forbids should not be."""
        return {**self.to_dict(), "unsafe": None}


def check_examples(examples: list[DetoxExample]) -> None:
    """Refuse an empty list, things that are no examples, and two safe answers to one prompt.

    Raises:
        RequestError: there is one of these.
    """
    if not all(isinstance(example, DetoxExample) for example in examples):
        raise RequestError("An example is given as errata.DetoxExample(prompt=..., safe=...).")
    if not examples:
        raise RequestError("There is no example to learn from: give at least one.")
    answers: dict[str, str] = {}
    for example in examples:
        if answers.setdefault(example.prompt, example.safe) != example.safe:
            raise RequestError(f"Two examples answer {example.prompt[:60]!r} differently: keep one of them.")


def read_detox(path: str | Path) -> list[DetoxExample]:
    """Examples from ``.jsonl`` or ``.json``: prompt, safe, unsafe, constraint ({prompt, answer}), example_id.

    SafeEdit's keys ("adversarial prompt", "safe generation", "unsafe generation", "knowledge constrain") and those of
    preference data (chosen, rejected) are understood too; other keys are not read.

    Raises:
        DatasetError: the file cannot be read, or a record is no example; the sentence names its line.
    """
    path, found = Path(path), list[DetoxExample]()
    for place, record in json_records(path):
        try:
            found.append(_example(record))
        except RequestError as error:
            raise DatasetError(f"{path}, {place}: {error}") from error
    if not found:
        raise DatasetError(f"{path} holds no example: write at least one.")
    return found


def _example(record: Record) -> DetoxExample:
    fields = {field: _value(record, field, keys) for field, keys in KEYS.items()}
    for field in ("prompt", "safe"):
        if fields[field] is None:
            raise RequestError(f"The record has no {field!r}: an example needs 'prompt' and 'safe'.")
    constraint: Any = next((record[key] for key in CONSTRAINTS if record.get(key) is not None), {})
    if not isinstance(constraint, dict):
        raise RequestError("'constraint' is no object: write {'prompt': ..., 'answer': ...}.")
    name = record.get("example_id", record.get("case_id", record.get("id", "")))
    return DetoxExample(
        **fields,
        constraint_prompt=constraint.get("prompt"),
        constraint_answer=constraint.get("answer"),
        example_id=str(name),
    )


def _value(record: Record, field: str, keys: tuple[str, ...]) -> Any:
    given = [key for key in keys if record.get(key) is not None]
    if len(given) > 1:
        raise RequestError(f"The record has both {given[0]!r} and {given[1]!r}: keep one of them.")
    return record[given[0]] if given else None
