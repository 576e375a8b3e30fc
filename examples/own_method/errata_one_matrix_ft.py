"""A method of one's own: plain fine-tuning of one MLP matrix, with every entry held near its original value.

It is close to FT+L (Zhu et al. 2020, arXiv 2012.00363), and is meant as an example of the interface rather than as a
good editor: it changes the whole matrix densely, and nothing holds what the model says about other subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from errata import Edit, LanguageModel, Patch
from errata.errors import NumericalError
from errata.lm.tokens import prompt_ids, target_ids
from errata.methods import Method, MethodConfig, MethodInfo
from errata.patch import Dense


class OneMatrixConfig(MethodConfig):
    """Options; numbers relative to the matrix scale to a model nobody has tuned."""

    layer: int | None = Field(None, ge=0, description="The edited layer; by default the middle one.")
    steps: int = Field(25, ge=1, description="Steps of Adam, at most.")
    learning_rate: float = Field(0.05, gt=0.0, description="Relative to the root mean square of W's entries.")
    clamp: float = Field(0.5, gt=0.0, description="Largest change of an entry, relative to the same.")
    stop_loss: float = Field(0.05, ge=0.0, description="Stop where the mean loss falls below this.")


class OneMatrixFT(Method[OneMatrixConfig]):
    """Gradient descent on the targets, on one matrix, within a box."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="one-matrix-ft",
        title="Fine-tuning of one matrix",
        strategy="local modification",
        summary="Gradient descent on the targets, on one MLP out-projection, each entry held near its value.",
        changes="the MLP out-projection of one layer, densely",
        needs="nothing",
        paper="after Zhu et al.: Modifying Memories in Transformer Models (2020, arXiv 2012.00363)",
    )
    Config = OneMatrixConfig

    def layers(self, lm: LanguageModel, config: OneMatrixConfig) -> list[int]:
        """The one layer it would edit."""
        return [lm.num_layers // 2 if config.layer is None else config.layer]

    def solve(self, lm: LanguageModel, edits: Sequence[Edit], config: OneMatrixConfig) -> Patch:
        """All edits at once. The weights are never written: each pass is given W + change in W's place."""
        (layer,) = self.layers(lm, config)
        name = lm.weight_name(layer)  # an ArchitectureError here says why a layer cannot be edited
        weight = lm.model.get_parameter(name).detach()
        pairs = [
            (prompt_ids(lm.tokenizer, edit.text), target_ids(lm.tokenizer, edit.text, edit.target_new))
            for edit in edits
        ]
        unit = float(weight.float().square().mean().sqrt())
        with torch.inference_mode(False), torch.enable_grad():
            change = torch.zeros_like(weight, dtype=torch.float32).requires_grad_()
            adam = torch.optim.Adam([change], lr=config.learning_rate * unit)
            for _ in range(config.steps):
                patched = (weight.float() + change).to(weight.dtype)
                loss = torch.stack([_loss(lm, name, patched, *pair) for pair in pairs]).mean()
                if not bool(torch.isfinite(loss)):
                    raise NumericalError("The loss is not a finite number: load the model in float32.")
                if loss.item() < config.stop_loss:
                    break
                (change.grad,) = torch.autograd.grad(loss, [change])
                adam.step()
                with torch.no_grad():
                    change.clamp_(-config.clamp * unit, config.clamp * unit)
        return Patch.create(
            lm,
            [Dense(name, change.detach())],  # in the orientation in which the module stores W
            method=self.info.name,
            config={**config.model_dump(), "layer": layer},
            edits=edits,
            notes={"loss": loss.item()},
        )


def _loss(lm: LanguageModel, name: str, weight: Tensor, prompt: Sequence[int], target: Sequence[int]) -> Tensor:
    """Mean negative log-likelihood of the target's tokens after the prompt."""
    ids = torch.tensor([[*prompt, *target[:-1]]], device=lm.device)
    logits = functional_call(lm.model, {name: weight}, (ids,), {"use_cache": False}).logits[0, len(prompt) - 1 :]
    return torch.nn.functional.cross_entropy(logits.float(), torch.tensor(target, device=logits.device))
