"""zsRE in MEND's form (Levy et al. 2017, arXiv 1706.04115; Mitchell et al. 2022, arXiv 2110.11309).

A record is a question about a subject (``src``), the same in other words (``rephrase``), right answers (``answers``), a
plausible other one (``alt``), and an unrelated question of Natural Questions (``loc``) with its answer.

Two conventions for the edit's target are in use, and figures differ by it. ROME, MEMIT and AlphaEdit write the right
answer, ``answers[0]``; there is then no other answer to compare with, and token accuracy judges. MEND and EasyEdit
write the wrong one, ``alt``, in place of the right one.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from errata.datasets.fields import question, text, texts
from errata.datasets.reading import Record
from errata.errors import RequestError
from errata.records import Edit, EditCase, Probe

ZsreTarget: TypeAlias = Literal["answers", "alt"]

FORM = "zsRE"
UNRELATED = "unrelated"  # the type of the neighbours


def is_zsre(record: Record) -> bool:
    """Whether this is a record in MEND's form."""
    return {"subject", "src", "answers", "loc"} <= record.keys()


def read_zsre(record: Record, target: ZsreTarget = "answers") -> EditCase | None:
    """The case in one record; it has no name of its own unless it brings a ``case_id``.

    Returns:
        None where ``alt`` shall be written and is blank, as in a few records of the published files.

    Raises:
        RequestError: a field is missing or not in its form, or the question does not hold the subject.
    """
    answers = texts(record, "answers", FORM)
    if not answers:
        raise RequestError("The zsRE field 'answers' holds no answer: restore it or remove the record.")
    if target == "alt" and isinstance(record.get("alt"), str) and not record["alt"].strip():
        return None
    edit = Edit(
        prompt=question(record, "src", FORM),
        subject=text(record, "subject", FORM),
        target_new=answers[0] if target == "answers" else text(record, "alt", FORM),
        target_true=None if target == "answers" else answers[0],
    )
    return EditCase(
        case_id=str(record.get("case_id", "")),
        edit=edit,
        paraphrases=texts(record, "rephrase", FORM),
        neighbours=(unrelated(record),),
    )


def unrelated(record: Record, language: str | None = None) -> Probe:
    """The question that has nothing to do with the edit.

    Its opening ``nq question:`` stays and the mark it lacks is added, as in ROME's evaluation.

    Raises:
        RequestError: it is missing or not text.
    """
    answers = texts(record, "loc_ans", FORM)
    return Probe(prompt=question(record, "loc", FORM), answers=answers, kind=UNRELATED, language=language)
