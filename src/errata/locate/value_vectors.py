"""What each MLP neuron promotes: its column of the out-projection, seen through the vocabulary.

Geva, Caciularu, Wang and Goldberg, *Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the
Vocabulary Space*, EMNLP 2022 (2203.14680). A neuron with coefficient c adds ``c (E v)`` to the logits. The coefficient
of a gated MLP may be negative, so both ends of the ranking mean something. Projections have no scale of their own; here
they are standardised over the vocabulary, so that 5 is five standard deviations above its mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata import progress
from errata.errors import ConfigError, RequestError
from errata.lm import LanguageModel
from errata.lm.tokens import target_ids
from errata.locate.attribution import usable_layers
from errata.locate.neurons import Neuron, check_neurons
from errata.locate.vocabulary import Vocabulary

COLUMNS_AT_ONCE = 256  # times the vocabulary, in float32, is what a block takes: 50 MB of 49,152 tokens
CONTEXT = "It is called"  # words are tokenised as they stand within a sentence


@dataclass(frozen=True)
class Promoted:
    """A token and its standardised projection."""

    token: int
    text: str
    score: float


@dataclass(frozen=True)
class ValueVector:
    """One column, and both ends of its projection.

    Attributes:
        neuron: which.
        score: by what it was found; its sign tells which end.
        top: the tokens it promotes where its coefficient is positive. bottom: where it is negative.
        norm: of the column.
    """

    neuron: Neuron
    score: float
    top: tuple[Promoted, ...]
    bottom: tuple[Promoted, ...]
    norm: float


class Projector:
    """Columns through the vocabulary, with what standardising them takes computed once.

    Args:
        lm: the model.
        gain: through the final norm's gain (``E (g * v)``) or without it (``E v``).

    Raises:
        ArchitectureError: the head does not read the residual stream.
    """

    def __init__(self, lm: LanguageModel, *, gain: bool = True) -> None:
        self.lm, self.vocabulary = lm, Vocabulary(lm, gain=gain)
        rows = self.vocabulary.rows
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        second = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
        for block in torch.split(rows, 8192):
            wide = block.double()
            total += wide.sum(0)
            second += wide.T @ wide
        self.mean_row = (total / len(rows)).float()
        self._covariance = (second / len(rows) - torch.outer(total, total) / len(rows) ** 2).float()
        marks = {token for token, added in lm.tokenizer.added_tokens_decoder.items() if added.special}
        hidden = [token for token in marks.union(lm.tokenizer.all_special_ids) if token < len(rows)]
        self._hidden = torch.tensor([*hidden, *range(min(len(lm.tokenizer), len(rows)), len(rows))], dtype=torch.int64)

    def spread(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the vocabulary of the projections of [n, d]: without projecting them."""
        variance = ((seen @ self._covariance) * seen).sum(-1)
        return seen @ self.mean_row, variance.clamp(min=1e-20).sqrt()

    def standardised(self, vectors: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """Projections [n, tokens] (or all the vocabulary) of vectors [n, d], each row standardised."""
        seen = self.vocabulary.seen(vectors)
        mean, deviation = self.spread(seen)
        rows = self.vocabulary.rows if tokens is None else self.vocabulary.rows[list(tokens)]
        return (seen @ rows.float().T - mean[:, None]) / deviation[:, None]

    def ends(self, vectors: Tensor, top: int) -> tuple[list[tuple[Promoted, ...]], list[tuple[Promoted, ...]]]:
        """The likeliest and the unlikeliest tokens of each vector [n, d]; special and unused tokens are left out."""
        high: list[tuple[Promoted, ...]] = []
        low: list[tuple[Promoted, ...]] = []
        for block in torch.split(vectors, COLUMNS_AT_ONCE):
            scores = self.standardised(block)
            for sign, found in ((1.0, high), (-1.0, low)):
                ranked = (sign * scores).index_fill(1, self._hidden.to(scores.device), -torch.inf).topk(top)
                for values, tokens in zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True):
                    found.append(self._named(tokens, [sign * value for value in values]))
        return high, low

    def _named(self, tokens: Sequence[int], scores: Sequence[float]) -> tuple[Promoted, ...]:
        texts = self.lm.tokenizer.batch_decode([[token] for token in tokens])
        return tuple(Promoted(*each) for each in zip(tokens, texts, scores, strict=True))

    def columns(self, layers: Sequence[int], description: str) -> Iterator[tuple[int, Tensor]]:
        """The columns of each layer as vectors [m, d], with a bar."""
        for layer in progress.track(layers, description):
            yield layer, self.lm.weight(layer).T

    def described(self, found: Sequence[tuple[Neuron, float]], top: int) -> tuple[ValueVector, ...]:
        """Neurons and their scores, with what they promote."""
        if not found:
            return ()
        vectors = torch.stack([self.lm.weight(n.layer)[:, n.index].float().cpu() for n, _ in found])
        high, low = self.ends(vectors, top)
        norms = vectors.norm(dim=1).tolist()
        return tuple(
            ValueVector(neuron, score, above, below, norm)
            for (neuron, score), above, below, norm in zip(found, high, low, norms, strict=True)
        )


def word_tokens(lm: LanguageModel, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of each word, as it stands after another word.

    Raises:
        RequestError: there is no word, or the tokenizer cannot spell one.
    """
    if not words:
        raise RequestError("There is no word to look for: give at least one.")
    return [target_ids(lm.tokenizer, CONTEXT, word) for word in words]


def scores_of_words(projector: Projector, tokens: Sequence[Sequence[int]], vectors: Tensor) -> Tensor:
    """How much vectors [n, d] promote words: the mean over words of the mean over their tokens, [n]."""
    flat = [token for word in tokens for token in word]
    weights = torch.tensor([1 / (len(word) * len(tokens)) for word in tokens for _ in word])
    found = projector.standardised(vectors, flat)
    return found @ weights.to(found)


def by_words(
    lm: LanguageModel, words: Sequence[str], *, layers: Sequence[int] | None = None, limit: int = 20, gain: bool = True
) -> tuple[Projector, list[tuple[Neuron, float]], list[float]]:
    """The columns whose projection raises (or lowers) the words most, by the size of the mean standardised score.

    Returns:
        The projector, the columns with their scores, and the largest score that each of 20 lists of as many random
        tokens reaches: what chance gives among so many columns.

    Raises:
        RequestError: no word. ConfigError: a limit below 1. ArchitectureError: no such layer.
    """
    _check_limit(limit)
    tokens, chosen = word_tokens(lm, words), usable_layers(lm, layers)
    projector = Projector(lm, gain=gain)
    generator = torch.Generator().manual_seed(0)
    size = len(projector.vocabulary.rows)
    random = [torch.randint(size, (len(tokens),), generator=generator).tolist() for _ in range(20)]
    best: list[tuple[Neuron, float]] = []
    chance = [0.0] * len(random)
    for layer, vectors in projector.columns(chosen, "Searching the value vectors"):
        best = _kept(best, layer, scores_of_words(projector, tokens, vectors), limit)
        for n, drawn in enumerate(random):
            found = scores_of_words(projector, [[token] for token in drawn], vectors)
            chance[n] = max(chance[n], float(found.abs().max()))
    return projector, best, chance


def by_direction(
    lm: LanguageModel,
    direction: Tensor,
    *,
    layers: Sequence[int] | None = None,
    limit: int = 20,
    gain: bool = True,
) -> tuple[Projector, list[tuple[Neuron, float]]]:
    """The columns nearest a direction [d] of the residual stream, by the size of the cosine.

    Raises:
        RequestError: the direction has another width, or is zero. ConfigError: a limit below 1.
    """
    _check_limit(limit)
    width = lm.architecture.hidden_size
    if direction.shape != (width,) or not float(direction.norm()) > 0:
        raise RequestError(f"The direction has the shape {tuple(direction.shape)} or is zero: give ({width},) numbers.")
    chosen = usable_layers(lm, layers)
    projector = Projector(lm, gain=gain)
    unit = direction.float() / direction.float().norm()
    best: list[tuple[Neuron, float]] = []
    for layer, vectors in projector.columns(chosen, "Searching the value vectors"):
        wide = vectors.float()
        best = _kept(best, layer, (wide @ unit.to(wide.device)) / wide.norm(dim=1).clamp(min=1e-12), limit)
    return projector, best


def concept_direction(lm: LanguageModel, words: Sequence[str], *, gain: bool = True) -> Tensor:
    """The mean direction [d] that raises the words' logits, less the mean of the vocabulary's.

    Raises:
        RequestError: there is no word, or the tokenizer cannot spell one.
    """
    vocabulary = Vocabulary(lm, gain=gain)
    each = torch.stack([vocabulary.direction(word) for word in word_tokens(lm, words)])
    return each.mean(0) - vocabulary.direction(range(len(vocabulary.rows)))


def by_peak(
    lm: LanguageModel, *, layers: Sequence[int] | None = None, limit: int = 20, gain: bool = True
) -> tuple[Projector, list[tuple[Neuron, float]]]:
    """The columns that single out one token most, by the size of its standardised score; all are projected."""
    _check_limit(limit)
    chosen = usable_layers(lm, layers)
    projector = Projector(lm, gain=gain)
    best: list[tuple[Neuron, float]] = []
    for layer, vectors in projector.columns(chosen, "Projecting the value vectors"):
        peaks = []
        for block in torch.split(vectors, COLUMNS_AT_ONCE):
            scores = projector.standardised(block)
            low, high = scores.aminmax(dim=1)
            peaks.append(torch.where(high >= -low, high, low))
        best = _kept(best, layer, torch.cat(peaks), limit)
    return projector, best


def of_neurons(
    lm: LanguageModel, neurons: Sequence[Neuron], *, gain: bool = True
) -> tuple[Projector, list[tuple[Neuron, float]]]:
    """The columns of given neurons, with their norms for scores.

    Raises:
        ConfigError: no neuron, or one that is not there. ArchitectureError: no such layer.
    """
    found = check_neurons(lm, neurons)
    return Projector(lm, gain=gain), [(n, float(lm.weight(n.layer)[:, n.index].float().norm())) for n in found]


def _kept(best: list[tuple[Neuron, float]], layer: int, scores: Tensor, limit: int) -> list[tuple[Neuron, float]]:
    """The ``limit`` largest by size of those so far and one more layer's."""
    strongest = scores.abs().topk(min(limit, len(scores))).indices.tolist()
    more = [(Neuron(layer, index), float(scores[index])) for index in strongest]
    return sorted([*best, *more], key=lambda pair: (-abs(pair[1]), pair[0]))[:limit]


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise ConfigError(f"The limit {limit} leaves no column: give at least 1.")
