"""KnowEdit (Zhang et al. 2024, arXiv 2401.01286): the sets that ask prompt, subject and target_new.

These are ZsRE, WikiData_counterfact and WikiData_recent. Their probes are grouped by type: under ``portability``
Subject_Aliasing, Reasoning and Logical_Generalization, under ``locality`` Relation_Specificity and Forgetfulness. Under
a type stands either a list of ``{"prompt", "ground_truth"}``, as published, or one such object with two lists, as
EasyEdit passes it on and writes it into its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from errata.datasets.fields import text, texts
from errata.datasets.reading import Record
from errata.errors import RequestError
from errata.records import Edit, EditCase, Probe

FORM = "KnowEdit"
NO_ANSWER = "<|endoftext|>"  # stands where the old answer is not known
PARTS = ("portability", "locality")


def is_knowedit(record: Record) -> bool:
    """Whether the record's probes are grouped by type."""
    return {"prompt", "subject", "target_new"} <= record.keys() and any(
        isinstance(record.get(part), dict) and record[part] for part in PARTS
    )


def read_knowedit(record: Record) -> EditCase:
    """The case in one record; it has no name of its own unless it brings a ``case_id``.

    Raises:
        RequestError: a field is missing or not in its form, or the prompt does not hold the subject.
    """
    known = [answer for answer in texts(record, "ground_truth", FORM) if answer != NO_ANSWER]
    edit = Edit(
        prompt=text(record, "prompt", FORM),
        subject=text(record, "subject", FORM),
        target_new=text(record, "target_new", FORM),
        target_true=known[0] if known else None,
    )
    return EditCase(
        case_id=str(record.get("case_id", "")),
        edit=edit,
        paraphrases=texts(record, "rephrase", FORM) + texts(record, "rephrase_prompt", FORM),
        neighbours=tuple(_probes(record, "locality")),
        consequences=tuple(_probes(record, "portability")),
    )


def _probes(record: Record, part: str) -> Iterator[Probe]:
    groups = record.get(part) or {}
    if not isinstance(groups, dict):
        raise RequestError(f"The KnowEdit field {part!r} is not an object with a key a type: restore it.")
    for name, group in groups.items():
        for entry in _entries(group, name):
            answers = texts(entry, "ground_truth", FORM)
            yield Probe(prompt=text(entry, "prompt", FORM), answers=answers, kind=name.lower())


def _entries(group: Any, name: str) -> list[Record]:
    if isinstance(group, dict):
        prompts, answers = group.get("prompt"), group.get("ground_truth")
        if not isinstance(prompts, list) and not isinstance(answers, list):
            prompts, answers = [prompts], [answers]
        if isinstance(prompts, list) and isinstance(answers, list) and len(prompts) == len(answers):
            group = [{"prompt": p, "ground_truth": a} for p, a in zip(prompts, answers, strict=True)]
    if not isinstance(group, list) or not all(isinstance(entry, dict) for entry in group):
        raise RequestError(f"The KnowEdit type {name!r} does not hold a ground_truth for each prompt: restore it.")
    return group
