"""MEMIT: many facts at once, by ridge-regularised changes of several consecutive MLP matrices.

Meng, Sen Sharma, Andonian, Belinkov, Bau: Mass-Editing Memory in a Transformer (ICLR 2023, arXiv 2210.07229).
Targets z are found at the highest edited layer; going upwards, each layer writes its share of what is missing there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

from pydantic import Field

from errata.lm.language_model import LanguageModel
from errata.methods.base import Method, MethodInfo
from errata.methods.locate_then_edit.config import LocateThenEditConfig, check_layer, layer_at
from errata.methods.locate_then_edit.contexts import sample_contexts
from errata.methods.locate_then_edit.keys import KeySweep, context_weights
from errata.methods.locate_then_edit.moments import metrics_for
from errata.methods.locate_then_edit.rewrites import tokenise
from errata.methods.locate_then_edit.solvers import key_energy, ridge
from errata.methods.locate_then_edit.values import optimise_values
from errata.patch import LowRank, Patch
from errata.progress import track
from errata.records import Edit


class MemitConfig(LocateThenEditConfig):
    """Options of MEMIT."""

    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="The edited layers; by default `span` of them up to `depth`."
    )
    depth: float = Field(
        0.2, ge=0.0, le=1.0, description="The highest edited layer as a fraction of depth, where none are named."
    )
    span: int = Field(5, ge=1, description="How many layers share the edit, where none are named.")
    steps: int = Field(25, ge=1, le=1000, description="Forward passes of the value optimisation, at most.")
    clamp: float = Field(0.75, gt=0.0, description="Largest ‖δ‖ relative to ‖v0‖, the block's output.")
    preservation: float = Field(
        0.2, gt=0.0, description="λ relative to the mean of the keys' own kᵀC⁻¹k: more keeps more and writes less."
    )


class Memit(Method[MemitConfig]):
    """MEMIT: the default for several edits."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="memit",
        title="MEMIT",
        strategy="local modification",
        summary="Many facts at once, by ridge-regularised changes of several consecutive MLP matrices.",
        changes="the MLP out-projections of about five layers, rank at most the number of edits",
        needs="the second moments of those layers' keys over ordinary text",
        paper="Meng et al.: Mass-Editing Memory in a Transformer (ICLR 2023, arXiv 2210.07229)",
    )
    Config = MemitConfig

    def solve(self, lm: LanguageModel, edits: Sequence[Edit], config: MemitConfig) -> Patch:
        """All edits in one batch."""
        layers = self.layers(lm, config)
        last = layers[-1]
        contexts = sample_contexts(lm, config.contexts, config.seed)
        rewrites = tokenise(lm, edits, contexts)  # before the second moments: a bad request fails early
        metrics = metrics_for(lm, layers, config)
        values = optimise_values(lm, rewrites, last, config.value_settings(), site="block")
        targets = (values.start + values.delta).double()  # z, [n, d]
        of_block = lm.layer(last).additive
        base = lm.fingerprint()
        sweep = KeySweep(lm, rewrites, layers[0])
        weights = context_weights(len(contexts), bare=0.5)
        updates: list[LowRank] = []
        gaps: list[float] = []
        strengths: list[float] = []
        with ExitStack() as stack:
            for place, layer in enumerate(track(layers, "Writing layers")):
                keys = (sweep.keys(layer).double() * weights.to(targets)[None, :, None]).sum(1).T  # K, [m, n]
                missing = targets - sweep.states(last, of_block=of_block).double()  # Z - H, [n, d]
                gaps.append(float(missing.norm()))
                strengths.append(config.preservation * float(key_energy(metrics[layer], keys).mean()))
                share = missing.T / (len(layers) - place)
                left, right = ridge(metrics[layer], keys, share, strengths[-1])
                updates.append(LowRank(lm.weight_name(layer), left.float(), right.float(), lm.layer(layer).transposed))
                # The layers above must see this one edited; all are put back when the block ends.
                step = self._patch(lm, updates[-1:], edits, config, contexts, {}, layers, base)
                stack.enter_context(step.applied(lm, verify=False))
            gaps.append(float((targets - sweep.states(last, of_block=of_block).double()).norm()))
        notes = {
            "edits": [
                {"edit_id": edit.edit_id, "loss": loss, "steps": steps}
                for edit, loss, steps in zip(edits, values.losses, values.steps, strict=True)
            ],
            "gap": gaps,  # ‖Z - H‖ before each layer and at the end: it should fall towards 0
            "lambda": strengths,
        }
        return self._patch(lm, updates, edits, config, contexts, notes, layers, base)

    def layers(self, lm: LanguageModel, config: MemitConfig) -> list[int]:
        """The layers it would edit, in order.

        Where a norm follows the MLP, a share written below does not arrive at the highest layer as it was written, so
        the whole edit goes into that one layer unless layers are named.
        """
        if config.layers is not None:
            return [check_layer(lm, layer) for layer in sorted(set(config.layers))]
        last = layer_at(lm, config.depth)
        span = config.span if lm.layer(last).additive else 1
        return [i for i in range(max(0, last - span + 1), last + 1) if lm.architecture.blocks[i].refusal is None]

    def _patch(
        self,
        lm: LanguageModel,
        updates: Sequence[LowRank],
        edits: Sequence[Edit],
        config: MemitConfig,
        contexts: Sequence[str],
        notes: dict[str, Any],
        layers: Sequence[int],
        base: str,
    ) -> Patch:
        resolved = {**config.model_dump(), "layers": list(layers)}
        return Patch.create(
            lm, updates, method=self.info.name, config=resolved, edits=edits, seeds={"contexts": config.seed},
            contexts=contexts, notes=notes, fingerprint=base,
        )  # fmt: skip
