"""QAEdit (Yang et al., The Mirage of Model Editing, ACL 2025, arXiv 2502.11177): questions that models get wrong.

A record is one question of Natural Questions, TriviaQA or SimpleQA (``source``) with its answer, the same in other
words, and a few unrelated questions.
"""

from __future__ import annotations

from errata.datasets.fields import objects, question, text, texts
from errata.datasets.reading import Record
from errata.datasets.zsre import unrelated
from errata.records import Edit, EditCase

FORM = "QAEdit"


def is_qaedit(record: Record) -> bool:
    """Whether this is a record of QAEdit: its target is named ``target``, its unrelated questions are a list."""
    return {"prompt", "subject", "target"} <= record.keys() and isinstance(record.get("locality"), list)


def read_qaedit(record: Record) -> EditCase:
    """The case in one record; its name is source and id, as an id alone repeats from one source to another.

    Raises:
        RequestError: a field is missing or not in its form, or the question does not hold the subject.
    """
    edit = Edit(
        prompt=question(record, "prompt", FORM),
        subject=text(record, "subject", FORM),
        target_new=text(record, "target", FORM),
    )
    named = [str(record[key]) for key in ("source", "id") if key in record]
    return EditCase(
        case_id="-".join(named) if "id" in record else "",
        edit=edit,
        paraphrases=texts(record, "rephrase", FORM),
        neighbours=tuple(unrelated(other) for other in objects(record, "locality", FORM)),
    )
