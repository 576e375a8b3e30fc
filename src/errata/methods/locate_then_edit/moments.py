"""The metric C⁻¹ of each edited layer, factored once per model, corpus and layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from errata.lm.language_model import LanguageModel
from errata.methods.locate_then_edit.config import IDENTITY, LocateThenEditConfig
from errata.methods.locate_then_edit.solvers import Metric
from errata.patch import base_fingerprint
from errata.patch.stack import bare
from errata.statistics import open_corpus, second_moments

KEPT = 16  # factors in memory: each is m x m in float64

_factors: OrderedDict[tuple[object, ...], Metric] = OrderedDict()


def metrics_for(lm: LanguageModel, layers: Sequence[int], config: LocateThenEditConfig) -> dict[int, Metric]:
    """The metric of each layer, on the weights without their patches (a sequence of edits keeps one C throughout)."""
    if config.corpus == IDENTITY:
        return {layer: Metric.of(None) for layer in layers}
    fingerprint = base_fingerprint(lm)
    corpus = open_corpus(config.corpus)
    keys = {layer: (fingerprint, layer, corpus.identity, config.corpus_tokens) for layer in layers}
    missing = [layer for layer, key in keys.items() if key not in _factors]
    if missing:
        with bare(lm):
            found = second_moments(lm, missing, corpus, tokens=config.corpus_tokens, fingerprint=fingerprint)
        for layer, moment in found.items():
            _factors[keys[layer]] = Metric.of(moment.matrix)
    result = {layer: _factors[key] for layer, key in keys.items()}
    for key in keys.values():
        _factors.move_to_end(key)
    while len(_factors) > max(KEPT, len(layers)):
        _factors.popitem(last=False)
    return result
