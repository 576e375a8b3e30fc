"""The one call that edits: ``errata.edit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.errors import RequestError
from errata.lm.activations import evaluating
from errata.lm.language_model import LanguageModel
from errata.methods.base import MethodConfig
from errata.methods.registry import get_method
from errata.patch import Patch
from errata.records import Edit, check_consistent

ONE, SEVERAL = "r-rome", "memit"


def default_method(count: int) -> str:
    """The method used where none is named: R-ROME for one edit, MEMIT for several."""
    return ONE if count == 1 else SEVERAL


def edit(
    lm: LanguageModel,
    edits: Edit | Sequence[Edit],
    *,
    method: str | None = None,
    config: Mapping[str, Any] | MethodConfig | None = None,
    resume: str | Path | None = None,
) -> Patch:
    """Find the patch that makes these edits; the model is bit for bit the same afterwards.

    Args:
        lm: the model.
        edits: what to change.
        method: by name, as ``errata methods`` lists them; by default R-ROME for one edit and MEMIT for several.
        config: the method's options, such as ``{"layer": 5}``.
        resume: a folder for unfinished work: the same call, made again after an interruption, goes on from there.
            MEMIT's family keeps the values it has found, UltraEdit its finished turns; other methods begin again.

    Returns:
        A patch; ``patch.apply(lm)`` puts it on, ``patch.save_pretrained(folder)`` keeps it.

    Raises:
        RequestError: an edit cannot be carried out as asked, or two contradict each other.
        ConfigError: no such method, option or layer.
        NumericalError: the optimisation did not give finite numbers.
    """
    edits = [edits] if isinstance(edits, Edit) else list(edits)
    if not all(isinstance(item, Edit) for item in edits):
        raise RequestError("An edit is given as errata.Edit(prompt=..., subject=..., target_new=...).")
    check_consistent(edits)
    chosen = get_method(method or default_method(len(edits)))
    with evaluating(lm.model):
        settings = chosen.configure(config)
        patch = chosen.resume(lm, edits, settings, folder=None if resume is None else Path(resume))
        return chosen.finish(lm, [patch], settings) or patch
