"""The way from the residual stream to the vocabulary: the final norm's gain and the rows of the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.errors import ArchitectureError, RequestError
from errata.lm import LanguageModel


class Vocabulary:
    """What the directions of the residual stream mean in tokens.

    Two conventions are in use for what a vector v promotes: ``E v`` with the rows E of the head (Geva et al., 2022,
    2203.14680), and ``E (g * v)`` with the gain g of the final norm, which stands between the two in the model.

    Args:
        lm: the model.
        gain: whether v is multiplied by the gain (and, before a norm that subtracts the mean, centred).

    Attributes:
        rows: E [vocabulary, d]: the head's weight, not a copy.
        gain: g [d], float32, on the head's device; all ones without it.
        centred: the mean is subtracted first.

    Raises:
        ArchitectureError: the head reads something else than the residual stream.
    """

    def __init__(self, lm: LanguageModel, *, gain: bool = True) -> None:
        self.lm = lm
        head = lm.model.get_submodule(lm.architecture.head)
        weight: Any = head.weight
        self.rows: Tensor = weight.detach()
        width = lm.architecture.hidden_size
        if self.rows.shape[1] != width:
            raise ArchitectureError(
                f"The vocabulary head of {lm.name} reads {self.rows.shape[1]} numbers where the residual stream has "
                f"{width}: a projection stands between them, and what a neuron promotes cannot be read off directly."
            )
        self.gain, self.centred = torch.ones(width, device=self.rows.device), False
        if gain and lm.architecture.final_norm is not None:
            self.gain, self.centred = norm_gain(lm)

    def seen(self, vectors: Tensor) -> Tensor:
        """What the head gets of vectors [n, d] of the residual stream, up to their size: float32 on its device."""
        wide = vectors.to(self.rows.device, torch.float32)
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        return wide * self.gain

    def project(self, vectors: Tensor) -> Tensor:
        """What vectors [n, d] add to each token's logit, up to the norm's scale: [n, vocabulary], float32."""
        return self.seen(vectors) @ self.rows.float().T

    def direction(self, tokens: Sequence[int]) -> Tensor:
        """The mean direction [d] of the residual stream that raises these tokens' logits: float32, on the processor.

        Raises:
            RequestError: there is no token.
        """
        if not tokens:
            raise RequestError("There are no tokens to take a direction from: name at least one word.")
        mean = self.rows[list(tokens)].float().mean(0) * self.gain
        return (mean - mean.mean() if self.centred else mean).cpu()


def norm_gain(lm: LanguageModel) -> tuple[Tensor, bool]:
    """The gain of the final norm [d] and whether it subtracts the mean, from what it does.

    Some families keep the gain less one (Gemma), so the weight alone does not tell. The odd part of a norm at a vector
    of mean 0 and mean square 1 is the gain times that vector.
    """
    path = lm.architecture.final_norm
    if path is None:
        raise ArchitectureError(f"{lm.name} has no final norm: project without its gain.")
    norm = lm.model.get_submodule(path)
    weight = next(norm.parameters())
    width = lm.architecture.hidden_size
    probe = torch.ones(width, dtype=torch.float64)
    probe[1::2] = -1.0
    if width % 2:  # the last three sum to zero instead
        probe[-3:] = torch.tensor([2.0, -1.0, -1.0])
    probe = probe / probe.square().mean().sqrt()
    probe = (probe * 100).to(weight.device, weight.dtype)  # large, so that the norm's epsilon does not show

    def odd(x: Tensor) -> Tensor:
        both: Tensor = norm(torch.stack([x, -x])[None])[0].float()
        return (both[0] - both[1]) / 2

    with torch.no_grad():
        plain, shifted = odd(probe), odd(probe + 100)
    unit = probe.float() / probe.float().square().mean().sqrt()
    centred = bool((plain - shifted).norm() < 0.05 * plain.norm())
    head: Any = lm.model.get_submodule(lm.architecture.head)
    return (plain / unit).to(head.weight.device), centred
