"""Causal tracing: which hidden states carry a fact (Meng et al., NeurIPS 2022, arXiv 2202.05262).

The model runs clean, with the subject corrupted, and corrupted with one clean value put back; how much of the answer's
probability returns is the indirect effect of that value. Where it is large says where the fact passes through, not
which layer is best to edit (Hase et al., NeurIPS 2023, arXiv 2301.04213).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from errata.datasets import occupation_facts, starter_facts
from errata.errors import ConfigError, RequestError
from errata.lm import LanguageModel
from errata.lm.activations import frozen
from errata.lm.forward import next_token_logits
from errata.lm.products import fast_products
from errata.lm.scoring import score
from errata.lm.tokens import encode, target_ids, tokens_of
from errata.locate.corruption import Corrupter, Corruption
from errata.locate.patching import Patching
from errata.locate.trace_result import BiasTrace, FactTrace, Trace
from errata.locate.tracing import GRIDS, Measure, TraceOptions, grid, measured, modules, parse_kinds
from errata.progress import track
from errata.records import Edit, EditCase, Fact

NOT_PREDICTED = "not predicted by the model"
NO_REPLACEMENT = "no other subject of as many tokens"


@dataclass(frozen=True)
class _Prepared:
    """A fact as tokens: the prompt, the subject's positions in it, and the continuations (the answer first)."""

    fact: Fact
    prompt: tuple[int, ...]
    labels: tuple[str, ...]
    subject: tuple[int, int]
    continuations: tuple[tuple[int, ...], ...]
    said: bool  # the answer is what the model itself says next


def trace(
    lm: LanguageModel,
    facts: Sequence[Fact | Edit | EditCase] | Fact | Edit | None = None,
    *,
    kinds: Sequence[str] = GRIDS,
    window: int | None = None,
    before: int | None = None,
    corruption: Corruption | None = None,
    samples: int = 10,
    seed: int = 1,
    measure: Measure = "probability",
) -> Trace:
    """Trace facts through a model; what it does not predict is left out and counted.

    Args:
        lm: the model, unchanged afterwards.
        facts: what to trace; by default those that the starter cases change. Of an edit, its ``target_true``. A fact
            without an answer is traced for the token that the model says next.
        kinds: what is put back: any of state, mlp, attention, severed-mlp, severed-attention.
        window, before, corruption, samples, seed, measure: see :class:`TraceOptions`.

    Returns:
        For each fact the measure of the clean run, of the corrupted ones, and of each restoration [tokens, layers].

    Raises:
        ConfigError: an option is out of range.
        RequestError: no fact is left, or the only one cannot be traced.
        ArchitectureError: MLPs were asked for of a model whose MLPs are mixtures of experts.
    """
    options = TraceOptions(
        kinds=parse_kinds(kinds), window=window, before=before, corruption=corruption or Corruption(),
        samples=samples, seed=seed, measure=measure,
    )  # fmt: skip
    given = starter_facts() if facts is None else _as_facts(facts)
    traces, skipped, sigma = _trace(lm, given, options, must_be_predicted=True)
    return Trace(lm.num_layers, options, tuple(traces), skipped, sigma)


def trace_bias(
    lm: LanguageModel,
    facts: Sequence[Fact] | Fact | None = None,
    *,
    kinds: Sequence[str] = GRIDS,
    window: int | None = None,
    before: int | None = None,
    corruption: Corruption | None = None,
    samples: int = 10,
    seed: int = 1,
    measure: Measure = "probability-difference",
) -> BiasTrace:
    """Trace a preference between two continuations, such as he and she after a sentence about a nurse.

    Measured is how much more probable the continuation is that the clean run prefers, so that preferences of either
    sign add up in averages (Cai et al. 2024, arXiv 2403.14409, trace P(he) - P(she)). No prompt is left out.

    Args:
        lm: the model, unchanged afterwards.
        facts: prompts with an ``answer`` and an ``other``; by default sentences about people of 24 occupations.
        kinds, window, before, corruption, samples, seed: as of :func:`trace`.
        measure: "probability-difference" or "logit-difference".

    Raises:
        ConfigError: an option is out of range.
        RequestError: a prompt has no two continuations, or there is none.
    """
    if measure == "probability":
        raise ConfigError("Bias is a difference of two continuations: choose probability-difference.")
    options = TraceOptions(
        kinds=parse_kinds(kinds), window=window, before=before, corruption=corruption or Corruption(),
        samples=samples, seed=seed, measure=measure,
    )  # fmt: skip
    given = occupation_facts() if facts is None else _as_facts(facts)
    lacking = next((fact for fact in given if fact.answer is None or fact.other is None), None)
    if lacking is not None:
        raise RequestError(f"The prompt {lacking.text!r} has no two continuations: give it an 'answer' and an 'other'.")
    traces, skipped, sigma = _trace(lm, given, options, must_be_predicted=False)
    return BiasTrace(lm.num_layers, options, tuple(traces), skipped, sigma)


def _as_facts(facts: Sequence[Fact | Edit | EditCase] | Fact | Edit) -> list[Fact]:
    given = [facts] if isinstance(facts, Fact | Edit) else list(facts)
    if not given:
        raise RequestError("There is no fact to trace: give at least one.")
    found = []
    for item in given:
        if isinstance(item, EditCase):
            found.append(Fact.of(item.edit, item.case_id))
        else:
            found.append(Fact.of(item) if isinstance(item, Edit) else item)
    return found


def _trace(
    lm: LanguageModel, facts: Sequence[Fact], options: TraceOptions, *, must_be_predicted: bool
) -> tuple[list[FactTrace], dict[str, list[str]], float]:
    """The traces, the ids of what was left out by reason, and sigma."""
    for kind in options.kinds:
        modules(lm, kind)
    skipped: dict[str, list[str]] = {}
    prepared: list[_Prepared] = []
    for fact in facts:
        try:
            prepared.append(_prepare(lm, fact))
        except RequestError as error:
            if len(facts) == 1:
                raise
            skipped.setdefault(str(error).rstrip("."), []).append(fact.fact_id)
    subjects = [tuple(item.prompt[slice(*item.subject)]) for item in prepared]
    corrupter = Corrupter(lm, subjects, options.corruption, samples=options.samples, seed=options.seed)
    if must_be_predicted:
        known = _predicted(lm, prepared)
        skipped[NOT_PREDICTED] = [item.fact.fact_id for item, right in zip(prepared, known, strict=True) if not right]
        prepared = [item for item, right in zip(prepared, known, strict=True) if right]
        _refuse_nothing(lm, prepared, len(facts))
    traces: list[FactTrace] = []
    with torch.no_grad(), frozen(lm.model), fast_products(lm.model):
        for item in track(prepared, "Tracing"):
            rows = corrupter.rows(tuple(item.prompt[slice(*item.subject)]), item.fact.text)
            if rows is None:
                skipped.setdefault(NO_REPLACEMENT, []).append(item.fact.fact_id)
            else:
                traces.append(_one(lm, item, rows, options, must_be_predicted))
    if not traces:
        raise RequestError(
            "No subject has another one of as many tokens to be replaced by: give more facts, or choose gaussian noise."
        )
    return traces, {reason: ids for reason, ids in skipped.items() if ids}, corrupter.sigma


def _refuse_nothing(lm: LanguageModel, left: Sequence[_Prepared], given: int) -> None:
    if left:
        return
    if given == 1:
        raise RequestError(
            f"{lm.name} does not predict this answer, so there is nothing to trace: leave the answer out to trace "
            "what it says itself."
        )
    raise RequestError(f"{lm.name} predicts none of the {given} facts: give facts that it knows.")


def _prepare(lm: LanguageModel, given: Fact) -> _Prepared:
    fact = given
    encoded = encode(lm.tokenizer, fact.text)
    subject = tokens_of(encoded, fact.subject_span)
    if fact.answer is None:
        with torch.no_grad():
            said = int(next_token_logits(lm, [encoded.ids])[0].argmax())
        answer: tuple[int, ...] = (said,)
        fact = replace(fact, answer=lm.tokenizer.decode([said]).strip() or repr(lm.tokenizer.decode([said])))
    else:
        answer = target_ids(lm.tokenizer, fact.text, fact.answer)
    others = () if fact.other is None else (target_ids(lm.tokenizer, fact.text, fact.other),)
    if answer in others:
        raise RequestError(f"{fact.answer!r} and {fact.other!r} are the same tokens: give two different continuations.")
    labels = tuple(
        fact.text[a:b].strip() or lm.tokenizer.decode([token]).strip()
        for token, (a, b) in zip(encoded.ids, encoded.offsets, strict=True)
    )
    return _Prepared(fact, encoded.ids, labels, subject, (answer, *others), fact is not given)


def _predicted(lm: LanguageModel, prepared: Sequence[_Prepared]) -> list[bool]:
    """Whether the greedy continuation begins with the answer."""
    asked = [(item.fact.text, item.fact.answer or "") for item in prepared if not item.said]
    found = iter(score(lm, asked))
    return [item.said or all(next(found).correct) for item in prepared]


def _one(
    lm: LanguageModel, item: _Prepared, corrupted: torch.Tensor, options: TraceOptions, answer_first: bool
) -> FactTrace:
    outputs = list(dict.fromkeys(path for kind in options.kinds for path in modules(lm, kind)))

    def patched(continuations: Sequence[tuple[int, ...]]) -> list[Patching]:
        together = len({continuation[:-1] for continuation in continuations}) == 1
        groups = [continuations] if together else [[continuation] for continuation in continuations]
        return [Patching(lm, item.prompt, group, item.subject, corrupted, outputs=outputs) for group in groups]

    fact, continuations = item.fact, item.continuations
    if options.measure == "probability":
        continuations = continuations[:1]
    patchings = patched(continuations)
    if options.measure != "probability" and len(continuations) == 1:
        rival = next(token for token in patchings[0].rivals if token != continuations[0][0])
        fact = replace(fact, other=lm.tokenizer.decode([rival]).strip() or repr(lm.tokenizer.decode([rival])))
        patchings = patched((*continuations, (rival,)))
    clean = float(measured([p.clean[None] for p in patchings], options.measure))
    sign = 1.0 if answer_first or clean >= 0 else -1.0
    tokens = len(item.prompt)
    return FactTrace(
        fact=fact if sign > 0 else replace(fact, answer=fact.other, other=fact.answer),
        tokens=item.labels,
        subject=item.subject,
        clean=sign * clean,
        corrupted=sign * float(measured([p.corrupted for p in patchings], options.measure)),
        scores={kind: sign * grid(patchings, tokens, item.subject, kind, options) for kind in options.kinds},
    )
