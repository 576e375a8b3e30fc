"""CounterFact (Meng et al. 2022, arXiv 2202.05262): the full records, and the short ones that EasyEdit distributes."""

from __future__ import annotations

from typing import Any

from errata.datasets.reading import Record
from errata.errors import RequestError
from errata.records import Edit, EditCase, Probe


def is_full(record: Record) -> bool:
    """Whether this is a record of the published file (its rewrite is one object; MQuAKE's is a list of them)."""
    return isinstance(record.get("requested_rewrite"), dict)


def is_short(record: Record) -> bool:
    """Whether this is a record of the short form: subject verbatim in the prompt, one paraphrase, one neighbour."""
    return {"prompt", "subject", "target_new"} <= record.keys() and bool(
        {"rephrase_prompt", "locality_prompt"} & record.keys()
    )


def read_full(record: Record) -> EditCase:
    """The case in one full record; each neighbour's right answer is the edit's true object.

    Raises:
        RequestError: a field is missing or not in its form, or the record cannot be an edit.
    """
    rewrite = record["requested_rewrite"]
    edit = Edit(
        prompt=_text(rewrite, "prompt"),
        subject=_text(rewrite, "subject"),
        target_new=_object_text(rewrite, "target_new"),
        target_true=_object_text(rewrite, "target_true"),
    )
    answers = (edit.target_true,) if edit.target_true else ()
    return EditCase(
        case_id=str(record.get("case_id", edit.edit_id)),
        edit=edit,
        paraphrases=_texts(record, "paraphrase_prompts"),
        neighbours=tuple(Probe(prompt=text, answers=answers) for text in _texts(record, "neighborhood_prompts")),
        generation_prompts=_texts(record, "generation_prompts"),
        relation=_text(rewrite, "relation_id") if "relation_id" in rewrite else None,
        extra={"attribute_prompts": _texts(record, "attribute_prompts")},
    )


def read_short(record: Record) -> EditCase:
    """The case in one short record; where the subject occurs several times, the first one is the edit's.

    Raises:
        RequestError: a field is not text, or the record cannot be an edit (the prompt does not hold the subject).
    """
    edit = Edit(
        prompt=_text(record, "prompt"),
        subject=_text(record, "subject"),
        target_new=_text(record, "target_new"),
        target_true=_text(record, "ground_truth") if "ground_truth" in record else None,
    )
    neighbours: tuple[Probe, ...] = ()
    if "locality_prompt" in record:
        answers = (_text(record, "locality_ground_truth"),) if "locality_ground_truth" in record else ()
        neighbours = (Probe(prompt=_text(record, "locality_prompt"), answers=answers),)
    return EditCase(
        case_id=str(record.get("case_id", edit.edit_id)),
        edit=edit,
        paraphrases=(_text(record, "rephrase_prompt"),) if "rephrase_prompt" in record else (),
        neighbours=neighbours,
    )


def _text(record: Record, key: str) -> str:
    value: Any = record.get(key)
    if not isinstance(value, str):
        raise RequestError(f"The CounterFact field {key!r} is missing or not text: restore it or remove the record.")
    return value


def _object_text(rewrite: Record, key: str) -> str:
    value: Any = rewrite.get(key)
    if not isinstance(value, dict) or not isinstance(value.get("str"), str):
        raise RequestError(f"The CounterFact field {key!r} is not {{'str': text}}: restore it or remove the record.")
    return str(value["str"])


def _texts(record: Record, key: str) -> tuple[str, ...]:
    values: Any = record.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise RequestError(f"The CounterFact field {key!r} is not a list of texts: restore it or remove the record.")
    return tuple(values)
