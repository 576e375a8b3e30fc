"""UltraEdit: thousands of edits without any search, from one backward pass a batch and a ridge solve.

Gu et al.: UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language Models (arXiv 2505.14679). For
each answer token, with h its key and g the gradient at the layer's output, both normalised over all that was ever
edited (ĥ, ĝ):

    v = -η ‖ĥ‖² ĝ,    Δ = Vᵀ H (HᵀH + λI)⁻¹,    W ← W + Δ
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from errata.lm.language_model import LanguageModel
from errata.methods.base import Method, MethodConfig, MethodInfo
from errata.methods.hypernetworks.gradients import Trace, answer_traces
from errata.methods.hypernetworks.normaliser import Normaliser
from errata.methods.layers import layer_at, layers_up_to
from errata.methods.locate_then_edit.solvers import Metric, ridge
from errata.methods.pilots import pilots
from errata.patch import Dense, Patch, applied_patches
from errata.progress import task
from errata.records import Edit

STATE = "ultraedit"


class UltraEditConfig(MethodConfig):
    """Options of UltraEdit."""

    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="The edited layers; by default `span` of them up to `depth`."
    )
    depth: float = Field(
        0.9, ge=0.0, le=1.0, description="The highest edited layer as a fraction of depth, where none are named."
    )
    span: int = Field(5, ge=1, description="How many layers are edited, where none are named.")
    step: float = Field(
        0.5, gt=0.0, description="Mean ‖v‖ of the first turn relative to the mean ‖W h‖; it fixes η for the sequence."
    )
    ridge: float = Field(
        0.1, gt=0.0, description="λ relative to the mean ‖h‖²: more keeps more and writes less (the paper's is 1)."
    )
    turn: int = Field(100, ge=1, description="Edits a turn: each turn sees the model as the earlier ones left it.")
    warm: int = Field(
        100, ge=0, description="Where a sequence begins with fewer edits, shipped ones complete its first statistics."
    )


@dataclass(frozen=True)
class _Layer:
    """What one layer carries from turn to turn: its change so far [d, m], its statistics, and η."""

    change: Tensor
    keys: Normaliser
    gradients: Normaliser
    rate: float


class UltraEdit(Method[UltraEditConfig]):
    """UltraEdit: for very many edits."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ultraedit",
        title="UltraEdit",
        strategy="local modification",
        summary="Very many edits without search or training: normalised gradients of the answers, merged by ridge.",
        changes="the MLP out-projections of some layers above the middle",
        needs="nothing; it runs forward and backward once a turn",
        paper="Gu et al.: UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language Models "
        "(arXiv 2505.14679)",
    )
    Config = UltraEditConfig

    def solve(self, lm: LanguageModel, edits: Sequence[Edit], config: UltraEditConfig) -> Patch:
        """The edits in turns, each on the model as the earlier turns left it."""
        return self.resume(lm, edits, config)

    def resume(
        self,
        lm: LanguageModel,
        edits: Sequence[Edit],
        config: UltraEditConfig,
        *,
        known: Patch | None = None,
        folder: Path | None = None,
    ) -> Patch:
        """As :meth:`solve`; after each turn the patch so far is kept in the folder."""
        layers = self.layers(lm, config)
        base = lm.fingerprint()
        done, carried = 0, _carried(lm, layers)
        if folder is not None and (found := _unfinished(folder, edits, config, base)) is not None:
            done, carried = len(found.edits), _of_patch(found, lm, layers)
        if not carried[layers[0]].keys.count and (more := pilots(min(len(edits), config.turn), config.warm)):
            traces = answer_traces(lm, more, layers)
            carried = {layer: _warmed(carried[layer], traces[layer], config) for layer in layers}
        with task(f"{self.info.title}: {len(edits)} edit(s)", total=len(edits)) as bar:
            bar.advance(done)
            patch: Patch | None = None
            while done < len(edits):
                chosen = edits[done : done + config.turn]
                with ExitStack() as stack:
                    if patch is not None or done:
                        so_far = patch or _patch(self, lm, carried, edits[:done], config, base)
                        stack.enter_context(so_far.applied(lm, verify=False))
                    traces = answer_traces(lm, chosen, layers)
                for layer in layers:
                    carried[layer] = _advanced(carried[layer], traces[layer], config)
                done += len(chosen)
                bar.advance(len(chosen))
                patch = _patch(self, lm, carried, edits[:done], config, base)
                if folder is not None and done < len(edits):
                    patch.save_pretrained(folder / "turns", replace=True)
        return patch or _patch(self, lm, carried, edits, config, base)

    def layers(self, lm: LanguageModel, config: UltraEditConfig) -> list[int]:
        """The layers it would edit, in order."""
        if config.layers is not None:
            for layer in config.layers:
                lm.layer(layer)
            return sorted(set(config.layers))
        return layers_up_to(lm, layer_at(lm, config.depth), config.span)


def _warmed(before: _Layer, trace: Trace, config: UltraEditConfig) -> _Layer:
    """Statistics with these rows in them, and η where it is not fixed yet."""
    now = replace(before, keys=before.keys.seen(trace.keys), gradients=before.gradients.seen(trace.gradients))
    if now.rate:
        return now
    wanted, pushed = trace.outputs.norm(dim=-1).mean(), _pushes(now, trace).norm(dim=-1).mean()
    return replace(now, rate=float(config.step * wanted / pushed.clamp(min=1e-12)))


def _pushes(now: _Layer, trace: Trace) -> Tensor:
    """v / η of each row, [N, d]."""
    return -now.keys(trace.keys).square().sum(-1, keepdim=True) * now.gradients(trace.gradients)


def _advanced(before: _Layer, trace: Trace, config: UltraEditConfig) -> _Layer:
    """One turn at one layer: its rows are in the statistics that normalise them."""
    now = _warmed(before, trace, config)
    strength = config.ridge * float(trace.keys.square().sum(-1).mean())
    left, right = ridge(Metric(None), trace.keys.T, now.rate * _pushes(now, trace).T, strength)
    return replace(now, change=now.change + (left @ right).cpu())


def _carried(lm: LanguageModel, layers: Sequence[int]) -> dict[int, _Layer]:
    """Statistics and rates of the sequence that the model carries, or fresh ones; no change yet."""
    fresh = {}
    for layer in layers:
        d, m = lm.weight(layer).shape
        nothing = torch.zeros(d, m, dtype=torch.float64)
        fresh[layer] = _Layer(nothing, Normaliser.empty(m), Normaliser.empty(d), 0.0)
        for patch in applied_patches(lm):
            if f"{STATE}.{layer}.rate" in patch.state:
                fresh[layer] = _read(patch, layer, nothing)
    return fresh


def _of_patch(patch: Patch, lm: LanguageModel, layers: Sequence[int]) -> dict[int, _Layer]:
    changes = dict(zip(layers, patch.updates, strict=True))
    return {layer: _read(patch, layer, _oriented(lm, layer, changes[layer].delta().double())) for layer in layers}


def _read(patch: Patch, layer: int, change: Tensor) -> _Layer:
    def part(name: str) -> dict[str, Tensor]:
        start = f"{STATE}.{layer}.{name}."
        return {key.removeprefix(start): value for key, value in patch.state.items() if key.startswith(start)}

    rate = float(patch.state[f"{STATE}.{layer}.rate"])
    return _Layer(change, Normaliser.of_tensors(part("keys")), Normaliser.of_tensors(part("gradients")), rate)


def _state(carried: dict[int, _Layer]) -> Iterator[tuple[str, Tensor]]:
    for layer, now in carried.items():
        yield f"{STATE}.{layer}.rate", torch.tensor(now.rate, dtype=torch.float64)
        for name, statistics in (("keys", now.keys), ("gradients", now.gradients)):
            for part, tensor in statistics.tensors().items():
                yield f"{STATE}.{layer}.{name}.{part}", tensor


def _oriented(lm: LanguageModel, layer: int, change: Tensor) -> Tensor:
    return change.T if lm.layer(layer).transposed else change


def _patch(
    method: UltraEdit,
    lm: LanguageModel,
    carried: dict[int, _Layer],
    edits: Sequence[Edit],
    config: UltraEditConfig,
    base: str,
) -> Patch:
    updates = []
    for layer, now in carried.items():
        # What was rounded for the model must be what the next turn starts from, or a resumed run would differ.
        written = now.change.float()
        carried[layer] = replace(now, change=written.double())
        updates.append(Dense(lm.weight_name(layer), _oriented(lm, layer, written).contiguous()))
    settings = {**config.model_dump(mode="json"), "layers": list(carried)}
    return Patch.create(
        lm, updates, method=method.info.name, config=settings, edits=edits, state=dict(_state(carried)),
        fingerprint=base,
    )  # fmt: skip


def _unfinished(folder: Path, edits: Sequence[Edit], config: UltraEditConfig, base: str) -> Patch | None:
    """The turns that an interrupted run of just these edits left, or None."""
    place = folder / "turns"
    if not place.is_dir():
        return None
    patch = Patch.from_pretrained(place)
    begun = [edit.edit_id for edit in edits[: len(patch.edits)]]
    same = begun == [edit.edit_id for edit in patch.edits] and patch.card.base.fingerprint == base
    wanted = {**config.model_dump(mode="json"), "layers": patch.card.config["layers"]}
    return patch if same and patch.card.config == wanted else None
