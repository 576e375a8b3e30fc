"""The metric of each edited layer, made of its second moment once per model, corpus and layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor

from errata.lm.language_model import LanguageModel
from errata.methods.locate_then_edit.config import IDENTITY, LocateThenEditConfig
from errata.methods.locate_then_edit.solvers import Metric
from errata.patch import base_fingerprint
from errata.patch.stack import bare
from errata.statistics import open_corpus, second_moments

KEPT = 16  # factors in memory: each is m x m in float64

_factors: OrderedDict[tuple[object, ...], Metric] = OrderedDict()


def metrics_for(
    lm: LanguageModel,
    layers: Sequence[int],
    config: LocateThenEditConfig,
    make: Callable[[Tensor], Metric] = Metric.of,
    *,
    kind: str = "cholesky",
) -> dict[int, Metric]:
    """The metric of each layer, on the weights without their patches (a sequence of edits keeps one C throughout).

    Args:
        lm: the model.
        layers: which layers.
        config: names the corpus.
        make: a metric from a second moment [m, m]. kind: names what ``make`` does, for it is done once.
    """
    if config.corpus == IDENTITY:
        return {layer: Metric.of(None) for layer in layers}
    fingerprint = base_fingerprint(lm)
    corpus = open_corpus(config.corpus)
    keys = {layer: (fingerprint, layer, corpus.identity, config.corpus_tokens, kind) for layer in layers}
    missing = [layer for layer, key in keys.items() if key not in _factors]
    if missing:
        with bare(lm):
            found = second_moments(lm, missing, corpus, tokens=config.corpus_tokens, fingerprint=fingerprint)
        for layer, moment in found.items():
            _factors[keys[layer]] = make(moment.matrix)
    result = {layer: _factors[key] for layer, key in keys.items()}
    for key in keys.values():
        _factors.move_to_end(key)
    while len(_factors) > max(KEPT, len(layers)):
        _factors.popitem(last=False)
    return result
