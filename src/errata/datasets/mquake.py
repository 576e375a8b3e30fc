"""MQuAKE (Zhong et al., EMNLP 2023, arXiv 2305.14795): questions of several hops whose answer the edits change.

A record asks for one or more rewrites, which hold together, and poses one question over the chain in three wordings.
``new_single_hops`` are the links of the chain as it is after the edits, the edited ones and those that stay.
"""

from __future__ import annotations

from errata.datasets.fields import objects, text, texts
from errata.datasets.reading import Record
from errata.errors import RequestError
from errata.records import Edit, EditCase, Probe

FORM = "MQuAKE"
HOP, MULTI_HOP = "hop", "multi_hop"


def is_mquake(record: Record) -> bool:
    """Whether this is a record of MQuAKE: its rewrites are a list (CounterFact's is one object)."""
    return isinstance(record.get("requested_rewrite"), list) and "new_answer" in record


def read_mquake(record: Record) -> EditCase:
    """The case in one record.

    Its consequences are the questions (kind ``multi_hop``) and the links of the new chain (kind ``hop``) as sentences
    to complete, each with the aliases of its answer.

    Raises:
        RequestError: a field is missing or not in its form, or the rewrites contradict each other.
    """
    edits = [_edit(rewrite) for rewrite in objects(record, "requested_rewrite", FORM)]
    if not edits:
        raise RequestError("The MQuAKE field 'requested_rewrite' holds no rewrite: restore it or remove the record.")
    relation = record["requested_rewrite"][0].get("relation_id")
    answers = _with_aliases(record, "new_answer", "new_answer_alias")
    hops = objects(record, "new_single_hops", FORM)
    return EditCase(
        case_id=str(record.get("case_id", "")),
        edit=edits[0],
        also=tuple(edits[1:]),
        consequences=(
            *(Probe(prompt=q, answers=answers, kind=MULTI_HOP) for q in texts(record, "questions", FORM)),
            *(Probe(prompt=text(hop, "cloze", FORM), answers=_with_aliases(hop), kind=HOP) for hop in hops),
        ),
        relation=relation if isinstance(relation, str) else None,
    )


def _edit(rewrite: Record) -> Edit:
    new, true = rewrite.get("target_new"), rewrite.get("target_true")
    if not isinstance(new, dict) or not isinstance(true, dict | None):
        raise RequestError("The MQuAKE field 'target_new' or 'target_true' is not {'str': text}: restore it.")
    return Edit(
        prompt=text(rewrite, "prompt", FORM),
        subject=text(rewrite, "subject", FORM),
        target_new=text(new, "str", FORM),
        target_true=text(true, "str", FORM) if true else None,
    )


def _with_aliases(record: Record, key: str = "answer", aliases: str = "answer_alias") -> tuple[str, ...]:
    answer = text(record, key, FORM)
    return (answer, *(alias for alias in texts(record, aliases, FORM) if alias != answer))
