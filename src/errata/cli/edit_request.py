"""What ``errata edit`` is asked, read from its flags and checked as far as that goes without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.cli.options import method_options
from errata.cli.places import check_new_folder, check_parent, default_folder
from errata.errors import RequestError, StorageError
from errata.records import Edit, check_consistent

if TYPE_CHECKING:
    from errata.lm import LanguageModel
    from errata.methods import Conflict


@dataclass(frozen=True)
class EditRequest:
    """The edits, the method with its options, and the folder of the patch."""

    edits: list[Edit]
    method: str
    config: dict[str, Any]
    folder: Path

    def check_targets(self, lm: LanguageModel) -> None:
        """Refuse a target that the tokenizer cannot express, before statistics are gathered for it.

        Raises:
            RequestError: there is one.
        """
        from errata.lm.tokens import target_ids

        for edit in self.edits:
            target_ids(lm.tokenizer, edit.text, edit.target_new)

    def conflicts(self, lm: LanguageModel) -> list[Conflict]:
        """Edits that stand in each other's way, their keys compared in the layers that the method will edit."""
        if len(self.edits) == 1:
            return []

        from errata.methods import find_conflicts, get_method

        method = get_method(self.method)
        return find_conflicts(self.edits, lm, layer=method.layers(lm, method.configure(self.config)))


def read_request(
    *,
    prompt: str | None,
    subject: str | None,
    target: str | None,
    true: str | None,
    file: Path | None,
    method: str | None,
    layer: str | None,
    settings: Sequence[str] | None,
    corpus: str | None,
    out: Path | None,
    replace: bool,
    html: Path | None,
    resume: Path | None,
) -> EditRequest:
    """Everything from the flags.

    Raises:
        RequestError: the edits are not given in one way, or cannot be carried out.
        DatasetError: the file of edits cannot be read.
        ConfigError: no such method or option.
        StorageError: the patch or the page could not be written where it is wanted.
    """
    edits = _edits(prompt, subject, target, true, file)
    check_consistent(edits)
    folder = out if out is not None else default_folder(edits)
    check_new_folder(folder, replace=replace, replaceable="patch.json")
    if html is not None:
        if html.is_dir():
            raise StorageError(f"{html} is a folder: name a file for the page.")
        check_parent(html)
    if resume is not None and resume.exists() and not resume.is_dir():
        raise StorageError(f"{resume} is a file: name a folder for the unfinished work.")

    from errata.methods import default_method, get_method

    name = method or default_method(len(edits))
    config = method_options(get_method(name), settings, corpus=corpus, layer=layer)
    return EditRequest(edits, name, config, folder)


def _edits(
    prompt: str | None, subject: str | None, target: str | None, true: str | None, file: Path | None
) -> list[Edit]:
    flags = {"--prompt": prompt, "--subject": subject, "--target": target}
    if file is not None:
        given = [flag for flag, value in {**flags, "--true": true}.items() if value is not None]
        if given:
            raise RequestError(f"The edits come from --file, and {given[0]} is given too: keep one of them.")
        from errata.datasets import read_edits

        return read_edits(file)
    missing = [flag for flag, value in flags.items() if value is None]
    if prompt is None or subject is None or target is None:
        raise RequestError(f"There is no {' and no '.join(missing)}: give --prompt, --subject and --target, or --file.")
    return [Edit(prompt=prompt, subject=subject, target_new=target, target_true=true)]
