"""zsRE in twelve languages with portability questions: MzsRE (Wang et al., Retrieval-augmented Multilingual Knowledge
Editing, ACL 2024, arXiv 2312.13040).

A record holds one version of the case a language, under the language's code. One language is edited; the case may be
tested in any, each with the answers of its own version.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from errata.datasets.fields import CLOSING, question, text, texts
from errata.datasets.reading import Record
from errata.datasets.zsre import unrelated
from errata.errors import RequestError
from errata.records import Edit, EditCase, Probe

FORM = "MzsRE"
ONE_HOP = "one_hop"  # the type of the portability questions
APOSTROPHES = str.maketrans("’‘ʼ", "'''")  # one character each, so that places in the text stay the same


def is_mzsre(record: Record) -> bool:
    """Whether this is a record with one version of a case a language."""
    return bool(record) and all(
        isinstance(version, dict) and {"subject", "src", "alt"} <= version.keys() for version in record.values()
    )


def read_mzsre(record: Record, language: str = "en", test_languages: Sequence[str] = ()) -> EditCase:
    """The case in one record.

    The translation of a subject does not always stand in the translated question: another casing of it, or its English
    form, is taken where that does, and the whole question without its closing mark where none of them does.

    Args:
        record: the versions by language code (``en``, ``zh``, ``cz``, ``de``, ``du``, ...).
        language: the one to edit.
        test_languages: those in which the case is tested beside it.

    Raises:
        RequestError: the record has no such language, or a field is missing or not in its form.
    """
    version = _version(record, language)
    asked = question(version, "src", FORM)
    names = [text(version, "subject", FORM)]
    if "en" in record:
        names.append(text(_version(record, "en"), "subject", FORM))
    start, end = locate(asked, names)
    edit = Edit(
        prompt=f"{asked[:start]}{{}}{asked[end:]}",
        subject=asked[start:end],
        target_new=text(version, "alt", FORM),
    )
    others = [(code, _version(record, code)) for code in dict.fromkeys(test_languages) if code != language]
    return EditCase(
        case_id=str(version.get("case_id", "")),
        edit=edit,
        paraphrases=texts(version, "rephrase", FORM),
        translations=tuple(probe for code, other in others for probe in _translations(other, code)),
        neighbours=(unrelated(version), *(unrelated(other, code) for code, other in others)),
        consequences=(
            *_portability(version),
            *(probe for code, other in others for probe in _portability(other, code)),
        ),
    )


def locate(asked: str, names: Sequence[str]) -> tuple[int, int]:
    """Where (start, end) the first of the names that occurs stands in the question, whatever its casing.

    Where none does it is the whole question but its closing marks: the mark alone would be the same key for all.
    """
    for name in names:
        found = re.search(re.escape(name.translate(APOSTROPHES)), asked.translate(APOSTROPHES), re.IGNORECASE)
        if found:
            return found.span()
    return 0, len(asked.rstrip(" " + "".join(CLOSING))) or len(asked)


def _version(record: Record, language: str) -> Record:
    version = record.get(language)
    if not isinstance(version, dict):
        raise RequestError(f"The record has no language {language!r}: choose among {', '.join(record)}.")
    return version


def _translations(version: Record, language: str) -> tuple[Probe, ...]:
    answers = (text(version, "alt", FORM),)
    rewrite = Probe(prompt=question(version, "src", FORM), answers=answers, kind="rewrite", language=language)
    return rewrite, *(
        Probe(prompt=prompt, answers=answers, kind="paraphrase", language=language)
        for prompt in texts(version, "rephrase", FORM)
    )


def _portability(version: Record, language: str | None = None) -> tuple[Probe, ...]:
    asked = version.get("portability")
    if not asked:
        return ()
    if not isinstance(asked, dict):
        raise RequestError("The MzsRE field 'portability' is not an object: restore it or remove the record.")
    answers = texts(asked, "New Answer", FORM)
    return (Probe(prompt=question(asked, "New Question", FORM), answers=answers, kind=ONE_HOP, language=language),)
