"""Which layers a method works on, from a fraction of the depth or from the numbers a user names."""

from __future__ import annotations

from errata.errors import ConfigError
from errata.lm.language_model import LanguageModel


def layer_at(lm: LanguageModel, depth: float, *, last: bool = False) -> int:
    """The editable layer nearest a fraction of the depth.

    Args:
        lm: the model.
        depth: between 0 and 1.
        last: also the last layer; not where a value is written that a later one must read.

    Raises:
        ArchitectureError: no layer of the model can be edited.
        ConfigError: the model has one layer, and the last does not count.
    """
    count = lm.num_layers if last else lm.num_layers - 1
    if count < 1:
        raise ConfigError("A model of one layer cannot be edited so: there is no later layer to read the edit.")
    wanted = round(depth * (lm.num_layers - 1))
    usable = [i for i in range(count) if lm.architecture.blocks[i].refusal is None]
    if not usable:
        lm.layer(wanted)  # raises the sentence that says why
    return min(usable, key=lambda i: (abs(i - wanted), i))


def layers_up_to(lm: LanguageModel, highest: int, span: int) -> list[int]:
    """The editable ones of ``span`` layers of which one is the highest."""
    return [i for i in range(max(0, highest - span + 1), highest + 1) if lm.architecture.blocks[i].refusal is None]


def check_layer(lm: LanguageModel, layer: int) -> int:
    """The layer, if it can be edited and a later one reads it.

    Raises:
        ArchitectureError: there is no such layer, it cannot be edited, or it is the last one.
    """
    lm.layer(layer)
    if layer == lm.num_layers - 1:
        raise ConfigError(
            f"Layer {layer} is the last one, so no later layer can read the edit: choose 0 to {layer - 1}."
        )
    return layer
