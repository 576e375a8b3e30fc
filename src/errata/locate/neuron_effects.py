"""What silencing or amplifying a fact's neurons does to its answer, beside two controls and the other facts.

As in section 4.2 of Dai et al. (2022), the change is that of the answer's mean probability, relative to what it was.
The controls have as many neurons: the most active ones (the paper's baseline), and random ones of the same layers.
Unlike there the neurons are changed in the weights, so at every position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata import progress
from errata.evaluation.intervals import Estimate, ratio_of_means
from errata.lm import LanguageModel
from errata.lm.scoring import score
from errata.locate.neurons import Grid, Neuron, drawn, scale_neurons

if TYPE_CHECKING:
    from errata.locate.knowledge_result import FactNeurons

ARMS = ("knowledge neurons", "most active neurons", "random neurons")
FACTORS = {"suppress": 0.0, "amplify": 2.0}


@dataclass(frozen=True)
class Effect:
    """One operation on one kind of neurons, over all facts that have any.

    Attributes:
        arm: which neurons. operation: what was done to them. factor: what they were multiplied by.
        before: the mean probability of each fact's answer over its prompts, unchanged. after: with the change.
        others_before: the mean probability of the other facts' answers (first prompts). others_after: with it.
    """

    arm: str
    operation: str
    factor: float
    before: tuple[float, ...]
    after: tuple[float, ...]
    others_before: tuple[float, ...]
    others_after: tuple[float, ...]

    @property
    def change(self) -> Estimate:
        """The relative change of the mean probability, -1 where it is gone, over facts."""
        return _relative(self.before, self.after)

    @property
    def change_of_others(self) -> Estimate:
        """The same of the other facts' answers."""
        return _relative(self.others_before, self.others_after)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "arm": self.arm,
            "operation": self.operation,
            "factor": self.factor,
            "change": self.change.to_dict(),
            "change_of_others": self.change_of_others.to_dict(),
            "before": list(self.before),
            "after": list(self.after),
            "others_before": list(self.others_before),
            "others_after": list(self.others_after),
        }


def measure_effects(
    lm: LanguageModel, facts: Sequence[FactNeurons], grid: Grid, *, fingerprint: str, seed: int = 0
) -> tuple[Effect, ...]:
    """Silence and double each fact's neurons and the controls', one fact at a time; the model is left as it was."""
    usable = [fact for fact in facts if fact.neurons]
    pairs = {fact.fact_id: [(prompt, fact.answer) for prompt in fact.prompts] for fact in facts}
    arms: Mapping[str, list[list[Neuron]]] = {
        ARMS[0]: [[found.neuron for found in fact.neurons] for fact in usable],
        ARMS[1]: [list(fact.most_active) for fact in usable],
        ARMS[2]: [drawn([f.neuron for f in fact.neurons], grid, seed + n) for n, fact in enumerate(usable)],
    }

    def probabilities(fact: FactNeurons) -> tuple[float, float]:
        """Of the fact's own answer, and of the others'."""
        own = pairs[fact.fact_id]
        others = [asked[0] for name, asked in pairs.items() if name != fact.fact_id]
        found = [math.exp(each.total) for each in score(lm, [*own, *others])]
        return sum(found[: len(own)]) / len(own), sum(found[len(own) :]) / max(1, len(others))

    effects = []
    with progress.task("Changing neurons", total=len(usable) * (1 + len(arms) * len(FACTORS))) as bar:
        clean = []
        for fact in usable:
            clean.append(probabilities(fact))
            bar.advance()
        for arm, chosen in arms.items():
            for operation, factor in FACTORS.items():
                changed = []
                for fact, neurons in zip(usable, chosen, strict=True):
                    patch = scale_neurons(lm, neurons, factor, fingerprint=fingerprint)
                    with patch.applied(lm, verify=False):
                        changed.append(probabilities(fact))
                    bar.advance()
                before, others_before = zip(*clean, strict=True) if clean else ((), ())
                after, others_after = zip(*changed, strict=True) if changed else ((), ())
                effects.append(Effect(arm, operation, factor, before, after, others_before, others_after))
    return tuple(effects)


def _relative(before: Sequence[float], after: Sequence[float]) -> Estimate:
    ratio = ratio_of_means(before, after)
    return Estimate(ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.n)
