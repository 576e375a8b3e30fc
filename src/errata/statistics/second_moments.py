"""The uncentred second moment C = E[k kᵀ] of a layer's keys over ordinary text (Meng et al. 2022, 2023).

One pass over the corpus serves every layer asked for and stops at the last of them. Results are kept on disk under the
weights' fingerprint, the layer, the corpus and the size; a file that is torn or belongs to something else is rebuilt.
Position 0 is left out: its keys are anomalous attention sinks whose size would dominate the trace.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata.errors import ConfigError, NumericalError
from errata.files import atomic_file, cache_dir
from errata.lm.activations import frozen, no_nan
from errata.lm.forward import SplitBatch
from errata.lm.language_model import LanguageModel
from errata.lm.products import fast_products, gram
from errata.progress import task
from errata.statistics.corpora import Corpus

TOKENS_PER_WIDTH = 10  # FastMEMIT (arXiv 2506.04226): this many tokens per key dimension keep the published quality
BATCH_TOKENS = 8192  # read before a batch is cut into passes of like length
PASS_TOKENS = 1024  # of one pass, padding included


@dataclass(frozen=True)
class SecondMoment:
    """C of one layer, [m, m] float32, the mean of k kᵀ over ``count`` tokens."""

    matrix: Tensor
    count: int
    layer: int
    corpus: str


def enough_tokens(lm: LanguageModel, layers: Sequence[int]) -> int:
    """The sample size that suffices for the widest of the layers."""
    return TOKENS_PER_WIDTH * max(lm.layer(layer).key_width for layer in layers)


def second_moments(
    lm: LanguageModel,
    layers: Sequence[int],
    corpus: Corpus,
    *,
    tokens: int | None = None,
    fingerprint: str | None = None,
    rebuild: bool = False,
) -> dict[int, SecondMoment]:
    """C for each layer, from the cache where it is known and from one streaming pass where not.

    Args:
        lm: the model.
        layers: which layers.
        corpus: where ordinary text comes from.
        tokens: sample size; by default ten tokens per key dimension.
        fingerprint: of the weights, where already known.
        rebuild: measure again even where the cache has an answer.

    Raises:
        ConfigError: too few tokens. ArchitectureError: a layer that cannot be edited.
    """
    tokens = enough_tokens(lm, layers) if tokens is None else tokens
    if tokens < 2:
        raise ConfigError(f"A second moment from {tokens} tokens means nothing: use at least a few thousand.")
    question = _Question(fingerprint or lm.fingerprint(), corpus.identity, tokens)
    found = {} if rebuild else {layer: c for layer in layers if (c := _read(question, layer)) is not None}
    missing = sorted(set(layers) - set(found))
    if missing:
        for layer, moment in _measure(lm, missing, corpus, tokens).items():
            _write(question, moment)
            found[layer] = moment
    return {layer: found[layer] for layer in layers}


def _measure(lm: LanguageModel, layers: Sequence[int], corpus: Corpus, tokens: int) -> dict[int, SecondMoment]:
    paths = {layer: lm.layer(layer).out_projection for layer in layers}
    sums = {
        layer: torch.zeros(
            lm.layer(layer).key_width, lm.layer(layer).key_width, dtype=torch.float64, device=lm.weight(layer).device
        )
        for layer in layers
    }
    count, size = 0, 0
    rows: list[list[int]] = []
    stop = paths[max(layers)]

    def flush() -> int:
        real = 0
        with torch.no_grad(), frozen(lm.model), fast_products(lm.model):
            for chosen in _passes(rows):
                batch = SplitBatch(lm, chosen)
                _, seen = batch.run(inputs=list(paths.values()), stop=stop, stop_before=True)
                counted = batch.mask.bool()
                counted[:, 0] = False
                for layer, path in paths.items():
                    keys = seen.inputs[path].reshape(*counted.shape, -1)[counted.to(seen.inputs[path].device)]
                    # Products of one pass in float32 are exact enough; sums over the corpus are kept in float64.
                    sums[layer] += gram(keys.float()).double()
                real += int(counted.sum())
        return real

    with task(f"Second moments of {len(layers)} layer(s) over {tokens} tokens", total=tokens) as bar:
        for window in corpus.windows(lm, tokens):
            rows.append(window)
            size += len(window)
            if size >= BATCH_TOKENS:
                count += flush()
                bar.advance(size)
                rows, size = [], 0
        if rows:
            count += flush()
            bar.advance(size)
    if count == 0:
        raise ConfigError(f"The corpus {corpus.identity} holds no text: use another one, or 'self'.")
    moments = {
        layer: SecondMoment((total / count).float().cpu(), count, layer, corpus.identity)
        for layer, total in sums.items()
    }
    for layer, moment in moments.items():
        if not no_nan(moment.matrix):
            raise NumericalError(
                f"The keys of layer {layer} are not finite on ordinary text: load the model in float32."
            )
    return moments


def _passes(rows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """The rows, shortest first, so many at a time as make a pass of at most :data:`PASS_TOKENS` padded tokens."""
    chosen: list[list[int]] = []
    for row in sorted(rows, key=len):
        if chosen and (len(chosen) + 1) * len(row) > PASS_TOKENS:
            yield chosen
            chosen = []
        chosen.append(row)
    if chosen:
        yield chosen


def cache_folder(fingerprint: str, corpus: str, tokens: int) -> Path:
    """Where the second moments of these weights on the corpus of this identity are kept: one file a layer."""
    return cache_dir("second_moments", fingerprint[:24], f"{corpus}-{tokens}")


@dataclass(frozen=True)
class _Question:
    """What an answer in the cache must belong to; the layer is the file's."""

    fingerprint: str
    corpus: str
    tokens: int

    def file(self, layer: int) -> Path:
        return cache_folder(self.fingerprint, self.corpus, self.tokens) / f"layer_{layer:03d}.safetensors"


def _digest(matrix: Tensor) -> str:
    return hashlib.sha256(matrix.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def _write(question: _Question, moment: SecondMoment) -> None:
    note = {**asdict(question), "layer": moment.layer, "count": moment.count, "sha256": _digest(moment.matrix)}
    with atomic_file(question.file(moment.layer)) as temporary:
        save_file({"second_moment": moment.matrix}, temporary, metadata={"errata": json.dumps(note)})


def _read(question: _Question, layer: int) -> SecondMoment | None:
    """What the cache holds, or None where there is nothing whole that belongs to this question."""
    path = question.file(layer)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("errata", "{}"))
            matrix = file.get_tensor("second_moment")
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
    asked = {**asdict(question), "layer": layer, "sha256": _digest(matrix)}
    if {name: note.get(name) for name in asked} != asked:
        return None
    return SecondMoment(matrix, int(note["count"]), layer, question.corpus)
