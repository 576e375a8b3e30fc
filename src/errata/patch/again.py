"""Solving a patch again with fewer or more edits: the result equals a run that was asked so from the beginning.

The method that made the patch does it. It stands on a higher floor than patches do, so it is found as users find it, by
the name in the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from errata.errors import FingerprintMismatch, PatchError
from errata.patch import stack
from errata.plugins import METHODS, registered
from errata.records import Edit, check_consistent

if TYPE_CHECKING:
    from errata.lm.language_model import LanguageModel
    from errata.patch.patch import Patch


def without(patch: Patch, unwanted: Sequence[Edit | str], lm: LanguageModel) -> Patch:
    """The patch as it would be had these edits never been asked; see :meth:`Patch.without`."""
    _refuse_examples(patch)
    ids = {edit.edit_id if isinstance(edit, Edit) else edit for edit in unwanted}
    known = {edit.edit_id for edit in patch.edits}
    missing = sorted(ids - known)
    if missing:
        raise PatchError(f"The patch holds no edit {missing[0]!r}: `errata show` lists the ids of those it holds.")
    staying = [edit for edit in patch.edits if edit.edit_id not in ids]
    if not staying:
        raise PatchError("No edit would be left in the patch: revert the patch instead.")
    return _solved_again(patch, staying, lm)


def with_edits(patch: Patch, more: Sequence[Edit], lm: LanguageModel) -> Patch:
    """The patch as it would be had these edits been asked as well; see :meth:`Patch.with_edits`."""
    _refuse_examples(patch)
    edits = [*patch.edits, *more]
    check_consistent(edits)
    return _solved_again(patch, edits, lm)


def _refuse_examples(patch: Patch) -> None:
    # Its card leaves the unsafe answers out, so what it was asked cannot be asked again from the patch alone.
    if patch.card.examples:
        raise PatchError(
            f"This {patch.card.method} patch was made from examples of safe answers and no edits: detoxify again with "
            "the examples it shall have."
        )


def _solved_again(patch: Patch, edits: Sequence[Edit], lm: LanguageModel) -> Patch:
    method = _method(patch)
    with _as_it_was(lm, patch):
        config = method.configure(patch.card.config)
        solved: Patch = method.resume(lm, edits, config, known=patch)
        return method.finish(lm, [solved], config) or solved


def _method(patch: Patch) -> Any:
    points = registered(METHODS)
    if patch.card.method not in points:
        raise PatchError(
            f"The method {patch.card.method!r} that made this patch is not installed: install the package it is in."
        )
    return points[patch.card.method].load()()


@contextmanager
def _as_it_was(lm: LanguageModel, patch: Patch) -> Iterator[None]:
    """The model as it was when the patch was made: without it, where it is the last that the model carries."""
    applied = stack.applied_patches(lm)
    carried = stack.is_applied(lm, patch)
    if carried and applied[-1].digest != patch.digest:
        raise PatchError("Other patches were applied after this one: revert those before solving it again.")
    if carried:
        patch.revert(lm)
    try:
        if lm.fingerprint() != patch.card.base.fingerprint:
            raise FingerprintMismatch(
                f"The patch was made on other weights than {lm.name} has now: load that model, or apply the patches "
                "that it carried then."
            )
        yield
    finally:
        if carried:
            patch.apply(lm, verify=False)
