"""Reading a file of edits or cases, whichever form it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias, get_args

from errata.datasets import counterfact, knowedit, mquake, mzsre, own, qaedit, zsre
from errata.datasets.reading import Record, json_records
from errata.datasets.zsre import ZsreTarget
from errata.errors import ConfigError, DatasetError, RequestError
from errata.records import Edit, EditCase

Reader: TypeAlias = Callable[[Record], EditCase | None]  # None: the record holds no edit, and is meant to be left out
Form: TypeAlias = tuple[Callable[[Record], bool], Reader]

KNOWN = "CounterFact, zsRE, MzsRE, KnowEdit, QAEdit or MQuAKE"


@dataclass(frozen=True)
class _Options:
    """What a form alone cannot decide; each means something to one form only."""

    language: str = "en"
    test_languages: tuple[str, ...] = ()
    zsre_target: ZsreTarget = "answers"

    def forms(self) -> tuple[Form, ...]:
        """The first form that recognises a file's first record reads all of it, so that a fault further down is named
        as a fault. KnowEdit comes before CounterFact's short form, whose keys it may also have.
        """
        return (
            (counterfact.is_full, counterfact.read_full),
            (mquake.is_mquake, mquake.read_mquake),
            (knowedit.is_knowedit, knowedit.read_knowedit),
            (counterfact.is_short, counterfact.read_short),
            (zsre.is_zsre, partial(zsre.read_zsre, target=self.zsre_target)),
            (mzsre.is_mzsre, partial(mzsre.read_mzsre, language=self.language, test_languages=self.test_languages)),
            (qaedit.is_qaedit, qaedit.read_qaedit),
            (own.is_own, own.read_own),
        )

    def check(self, record: Record, path: Path) -> None:
        """Refuse what this file cannot follow, rather than measure something else than what was asked."""
        if self.zsre_target not in get_args(ZsreTarget):
            raise ConfigError(f"There is no zsre_target {self.zsre_target!r}: choose 'answers' or 'alt'.")
        if (self.language, self.test_languages) != ("en", ()) and not mzsre.is_mzsre(record):
            raise ConfigError(f"{path} has no versions in several languages: leave out language and test_languages.")
        if self.zsre_target != "answers" and not zsre.is_zsre(record):
            raise ConfigError(f"{path} is not zsRE in MEND's form: leave out zsre_target.")


def read_cases(
    path: str | Path,
    *,
    limit: int | None = None,
    language: str = "en",
    test_languages: Sequence[str] = (),
    zsre_target: ZsreTarget = "answers",
) -> list[EditCase]:
    """Read cases from a file; its content tells the form.

    Args:
        path: CounterFact (full or short), zsRE (MEND's form), MzsRE, KnowEdit, QAEdit or MQuAKE in JSON, or one's own
            cases in JSON, JSON lines or CSV; UTF-8.
        limit: read only so many from the beginning.
        language: of MzsRE, the code of the language to edit.
        test_languages: of MzsRE, the languages in which the cases are tested beside it.
        zsre_target: of zsRE, whether the edit writes the right answer ("answers": ROME, MEMIT, AlphaEdit) or the other
            one ("alt": MEND, EasyEdit).

    Raises:
        DatasetError: the file cannot be read, holds no case, holds a record that cannot be an edit, or uses one
            ``case_id`` twice; the sentence names the file and the line or record.
        ConfigError: ``limit`` is below 1, or an option is given that means nothing to this file's form.
    """
    cases: list[EditCase] = []
    places: dict[str, str] = {}
    options = _Options(language, tuple(test_languages), zsre_target)
    for place, case in islice(_cases(Path(path), options), _checked(limit)):
        if case.case_id in places:
            raise DatasetError(
                f"{path}, {place} has the same case_id {case.case_id!r} as {places[case.case_id]}: "
                "remove one of them or give it another case_id."
            )
        places[case.case_id] = place
        cases.append(case)
    if not cases:
        raise _empty(path)
    return cases


def read_edits(path: str | Path, *, language: str = "en", zsre_target: ZsreTarget = "answers") -> list[Edit]:
    """Read only the edits of a file, in any form and with the options that :func:`read_cases` knows.

    Raises:
        DatasetError: the file cannot be read, holds no edit, or holds a record that cannot be one.
        ConfigError: an option is given that means nothing to this file's form.
    """
    options = _Options(language=language, zsre_target=zsre_target)
    edits = [edit for _, case in _cases(Path(path), options) for edit in case.edits]
    if not edits:
        raise _empty(path)
    return edits


def _cases(path: Path, options: _Options) -> Iterator[tuple[str, EditCase]]:
    read: Reader | None = None
    for number, (place, record) in enumerate(_records(path)):
        if read is None:
            read = _reader(record, path, place, options)
        try:
            case = read(record)
        except RequestError as error:
            raise DatasetError(f"{path}, {place}: {error}") from error
        if case is not None:
            # Some published sets name no case; as in their own readers it is then the number, from 0.
            yield place, case if case.case_id else replace(case, case_id=str(number))


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return own.csv_records(path)
    if suffix in (".json", ".jsonl"):
        return json_records(path)
    raise DatasetError(f"The form of {path} is not known: give a file that ends in .json, .jsonl or .csv.")


def _reader(record: Record, path: Path, place: str, options: _Options) -> Reader:
    options.check(record, path)
    for matches, read in options.forms():
        if matches(record):
            return read
    keys = ", ".join(map(repr, record)) or "none"
    raise DatasetError(
        f"{path}, {place} is in no form that is known (its keys: {keys}): "
        f"give {KNOWN}, or records with 'prompt', 'subject' and 'target_new'."
    )


def _checked(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit {limit} leaves no case: give at least 1, or none for all.")
    return limit


def _empty(path: str | Path) -> DatasetError:
    return DatasetError(f"{path} holds no record: write at least one with 'prompt', 'subject' and 'target_new'.")
