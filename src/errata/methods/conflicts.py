"""Edits that stand in each other's way, found before anything is edited: by their texts, and by their keys in a model.

An edit writes a value at a key. Two edits of one question, or of two questions whose keys nearly coincide, ask two
values of one place, and the later or the larger one wins; edits that are logically tied are each made for themselves,
and what follows from them together is not (Li et al., ICLR 2024, arXiv 2310.02129: coverage, reverse, composite).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from errata.errors import ConfigError
from errata.lm.activations import evaluating
from errata.lm.language_model import LanguageModel
from errata.methods.editing import default_method
from errata.methods.locate_then_edit.parallel import Pair, cosines_of, parallel_pairs, unit_keys
from errata.methods.questions import names, plain, same_question, tied
from errata.methods.registry import get_method
from errata.patch import Patch, applied_patches
from errata.records import SLOT, Edit

Kind = Literal["same question", "reverse", "parallel keys", "duplicate", "chain"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # the gravest first
NOTES: tuple[Kind, ...] = ("duplicate", "chain")


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two edits that stand in each other's way, or that are worth a word.

    Attributes:
        kind: ``same question`` (one prompt, two answers), ``reverse`` (each answers with the other's subject),
            ``parallel keys`` (a model hardly tells the two subjects apart where it is edited), ``duplicate``, or
            ``chain`` (the answer of one is the subject of the other).
        first: one of the edits asked for.
        second: another of them, or one that was made before.
        carried: the second was made before: the model or a patch carries it.
        cosine: of the two keys, from -1 to 1, where a model was given; of all layers compared, the largest in size.
        layer: where that is.
        sentence: what it means and what to do.
    """

    kind: Kind
    first: Edit
    second: Edit
    sentence: str
    carried: bool = False
    cosine: float | None = None
    layer: int | None = None

    @property
    def note(self) -> bool:
        """Whether it is a remark only, which needs no change of the request."""
        return self.kind in NOTES

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.kind,
            "note": self.note,
            "first": {"edit_id": self.first.edit_id, **self.first.to_dict()},
            "second": {"edit_id": self.second.edit_id, **self.second.to_dict()},
            "carried": self.carried,
            "cosine": self.cosine,
            "layer": self.layer,
            "sentence": self.sentence,
        }


def find_conflicts(
    edits: Edit | Sequence[Edit],
    lm: LanguageModel | None = None,
    *,
    against: Sequence[Patch | Edit] = (),
    layer: int | Sequence[int] | None = None,
    parallel: float = 0.98,
) -> list[Conflict]:
    """Look for edits that stand in each other's way; each pair is listed once, as the gravest kind that it is.

    With a model, the keys of the bare prompts are compared too, which takes one pass over them as far as the highest
    of the layers: little beside the editing itself. Edits made before are compared with those asked for, and not with
    one another.

    Args:
        edits: what is to be asked.
        lm: the model that is to be edited; the edits of the patches it carries count as made before.
        against: further edits made before, or patches that hold them.
        layer: where keys are compared: one layer or several, from 0; by default those that the default method would
            edit, and with an empty sequence none.
        parallel: keys whose cosine is at least this in size count as parallel.

    Returns:
        The conflicts, the gravest kind first and then in the order of the edits.

    Raises:
        ConfigError: ``parallel`` is not above 0 and at most 1.
        RequestError: the tokenizer cannot find a subject or spell a target.
        ArchitectureError: no such layer, or one that cannot be edited.
    """
    if not 0.0 < parallel <= 1.0:
        raise ConfigError(f"Keys cannot be parallel from a cosine of {parallel} on: give a number above 0, at most 1.")
    asked = [edits] if isinstance(edits, Edit) else list(edits)
    made = _made_before(lm, against)
    both = [*asked, *made]
    kinds = _by_text(both, len(asked))
    cosines: dict[Pair, tuple[float, int]] = {}
    if lm is not None:
        with evaluating(lm.model):
            cosines = _by_key(lm, both, _layers(lm, len(asked), layer), parallel, kinds, len(asked))
        for pair, (cosine, _) in cosines.items():
            if abs(cosine) >= parallel and kinds.get(pair, "chain") == "chain" and _unlike(both, pair):
                kinds[pair] = "parallel keys"
    found = []
    for (i, j), kind in sorted(kinds.items(), key=lambda item: (KINDS.index(item[1]), item[0])):
        number, at = cosines.get((i, j), (None, None))
        carried = j >= len(asked)
        said = _sentence(kind, both[i], both[j], carried, number, at)
        pair_of = {"first": both[i], "second": both[j]}
        found.append(Conflict(kind=kind, **pair_of, sentence=said, carried=carried, cosine=number, layer=at))
    return found


def _made_before(lm: LanguageModel | None, against: Sequence[Patch | Edit]) -> list[Edit]:
    carried = [] if lm is None else applied_patches(lm)
    every = [edit for item in (*carried, *against) for edit in (item.edits if isinstance(item, Patch) else [item])]
    return list({edit.edit_id: edit for edit in every}.values())


def _layers(lm: LanguageModel, count: int, layer: int | Sequence[int] | None) -> list[int]:
    if layer is None:
        method = get_method(default_method(count))
        return method.layers(lm, method.configure())
    return [layer] if isinstance(layer, int) else list(layer)


# By text.


def _by_text(edits: Sequence[Edit], asked: int) -> dict[Pair, Kind]:
    """What the texts alone show; pairs (i, j) with i < asked, i < j."""
    found: dict[Pair, Kind] = {}
    for i, j in tied(edits):
        kind: Kind = "reverse" if names(edits[j].target_new, edits[i].subject) else "chain"
        # A chain is a name that fits exactly: an answer 'France' says nothing of 'the University of France'.
        if min(i, j) < asked and (kind == "reverse" or plain(edits[i].target_new) == plain(edits[j].subject)):
            pair = (min(i, j), max(i, j))
            found[pair] = min(kind, found.get(pair, kind), key=KINDS.index)
    # Last, because what two edits ask of one question outweighs what else they are to each other.
    for pair, alike in same_question(edits):
        if pair[0] < asked:
            found[pair] = "duplicate" if alike else "same question"
    return found


# By key.


def _by_key(
    lm: LanguageModel,
    edits: Sequence[Edit],
    layers: Sequence[int],
    parallel: float,
    listed: dict[Pair, Kind],
    asked: int,
) -> dict[Pair, tuple[float, int]]:
    """The largest cosine in size, and its layer, of the pairs that are parallel and of those listed already."""
    largest: dict[Pair, tuple[float, int]] = {}
    for layer, keys in unit_keys(lm, edits, layers).items():
        cosines = parallel_pairs(keys, parallel, first=asked) | cosines_of(keys, list(listed))
        for pair, cosine in cosines.items():
            # More than rounding, so that one key in all layers is shown for the lowest.
            if pair not in largest or abs(cosine) > abs(largest[pair][0]) + 1e-6:
                largest[pair] = (cosine, layer)
    return largest


def _unlike(edits: Sequence[Edit], pair: Pair) -> bool:
    """Whether two edits ask different questions for different answers; one answer at two like keys does no harm."""
    first, second = (edits[i] for i in pair)
    return plain(first.target_new) != plain(second.target_new) and plain(first.text) != plain(second.text)


# In words.


def _sentence(kind: Kind, first: Edit, second: Edit, carried: bool, cosine: float | None, layer: int | None) -> str:
    one, two = repr(first.target_new), repr(second.target_new)
    if kind == "same question":
        if carried:
            return f"This was edited to {two} before: revert that patch, or leave that edit out of it, to ask {one}."
        return f"One question is to have the answers {one} and {two}: keep one of them."
    if kind == "duplicate":
        return "This edit was made before: leave it out." if carried else "Asked twice: once is enough."
    if kind == "chain":
        answer = one if plain(first.target_new) == plain(second.subject) else two
        return (
            f"{answer} is the answer of one and the subject of the other: what follows from both is not edited, and "
            "if one relation reverses the other they contradict each other."
        )
    if kind == "reverse":
        if plain(_template(first)) == plain(_template(second)):
            return "One relation holds in both directions: keep one of the edits, unless the relation is mutual."
        return "Each answers with the other's subject: see that both can be true, for neither brings the other about."
    if first.text[: first.subject_span[1]] == second.text[: second.subject_span[1]]:
        return (
            "Both prompts are one text as far as the subject, so one value must serve both answers: see afterwards "
            "whether both took, or reword one."
        )
    return (
        f"In layer {layer} the two subjects have nearly one key (cosine {cosine:.3f}), so what is written for one is "
        "read for the other: reword one, or put words before a subject that begins its prompt."
    )


def _template(edit: Edit) -> str:
    return edit.prompt.replace(SLOT, " x ", 1)
