"""Where the blocks, the MLP, the attention, the norms and the head are: the map that every method works on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BlockMap:
    """The parts of one transformer block, as module paths in the whole model.

    Attributes:
        path: the block.
        out_projection: W, the MLP's last matrix: keys [.., m] in, values [.., d] out.
        transposed: W is stored (m, d), as GPT-2's ``Conv1D`` does, and not (d, m).
        attention_output: the attention's last matrix.
        attention: the attention module, or None where its matrices stand in the block itself.
        mlp: the MLP module, or None where its matrices stand in the block itself.
        norms: the block's normalisation layers, in the order they run.
        additive: what is added to W's output is added, unchanged, to the block's output (false where a norm follows).
        key_width: m.
        refusal: why this block's MLP cannot be edited, as a sentence; None where it can.
    """

    path: str
    out_projection: str
    transposed: bool
    attention_output: str
    attention: str | None
    mlp: str | None
    norms: tuple[str, ...]
    additive: bool
    key_width: int
    refusal: str | None = None


@dataclass(frozen=True)
class Architecture:
    """The map of a whole model.

    Attributes:
        blocks: one entry a layer, from the embedding upwards.
        embedding: token embedding.
        head: vocabulary projection.
        final_norm: the norm before the head, or None.
        hidden_size: d.
        vocabulary: rows of the head.
        tied: head and embedding share their weight.
        parallel: attention and MLP read the same input rather than one after the other.
        blocks_return_tuple: a block returns (hidden state, ...) rather than the hidden state.
        accepts_positions: the forward pass takes ``position_ids``.
        source: "detected", or "given" where the user handed in a part of the map.
    """

    blocks: tuple[BlockMap, ...]
    embedding: str
    head: str
    final_norm: str | None
    hidden_size: int
    vocabulary: int
    tied: bool
    parallel: bool
    blocks_return_tuple: bool
    accepts_positions: bool
    source: str = "detected"

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, for ``errata inspect --json``."""
        return asdict(self)


@dataclass(frozen=True)
class ArchitectureHint:
    """What a user says of the map where detection is unsure; each part left None is detected.

    Attributes:
        blocks: path of the list of blocks, such as ``model.layers``.
        out_projection: the MLP's last matrix within a block, such as ``mlp.down_proj``.
        attention_output: the attention's last matrix within a block, such as ``self_attn.o_proj``.
    """

    blocks: str | None = None
    out_projection: str | None = None
    attention_output: str | None = None
