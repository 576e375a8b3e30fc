"""The privacy neurons that were found: as numbers, a table and a picture, and as the patch that silences them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from errata.datasets import held_out_text
from errata.datasets.locating import PrivateValue
from errata.errors import ConfigError
from errata.evaluation.intervals import paired_difference
from errata.evaluation.schema import Metric, Record
from errata.lm import LanguageModel
from errata.lm.scoring import perplexity, score
from errata.locate.neurons import Grid, Neuron, drawn, scale_neurons
from errata.locate.pictures import neurons_by_layer
from errata.locate.result import Located, Table
from errata.patch import Patch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 20
TOKENS = 2000  # of the held-out text, for its perplexity


@dataclass(frozen=True)
class PrivacyNeuron:
    """One neuron: how many texts it is large in, and its mean attribution as a share of each text's largest."""

    neuron: Neuron
    votes: int
    strength: float


@dataclass(frozen=True)
class Forgetting:
    """What silencing neurons does: mean log-probability per token of each value, and ordinary text's perplexity."""

    arm: str
    log_probabilities: tuple[float, ...]
    perplexity: float


@dataclass(frozen=True, eq=False)
class PrivacyNeurons(Located):
    """The neurons that many private values share.

    Attributes:
        lm: the model.
        values: what was looked for; only the names of these are ever written.
        tokens: of how many tokens each consists. detected: how many neurons each had on its own.
        neurons: the kept ones, the most votes first.
        options: how they were chosen. ratio: the share of texts that had to agree, after any adjustment.
        grid: which layers were looked at. error_share: the median over tokens of the worst error of a
            layer's integral, as a share of the largest effect that a layer has.
        effects: bare, silenced and random, where :meth:`with_effects` measured it.
    """

    name: ClassVar[str] = "privacy"
    key: ClassVar[str] = "value_id"

    lm: LanguageModel = field(repr=False)
    values: tuple[PrivateValue, ...] = field(repr=False)
    tokens: tuple[int, ...]
    detected: tuple[int, ...]
    neurons: tuple[PrivacyNeuron, ...]
    options: dict[str, Any]
    ratio: float
    grid: Grid
    error_share: float
    effects: tuple[Forgetting, ...] = ()
    title: str = "Privacy neurons"

    def what(self) -> dict[str, Any]:
        """The options."""
        return {"verb": "locate privacy", "values": len(self.values), **self.options, "ratio_used": self.ratio}

    def to_dict(self) -> dict[str, Any]:
        """All numbers; no prompt and no value."""
        return {
            "what": self.what(),
            "layers": list(self.grid.layers),
            "error_share": self.error_share,
            "neurons": [
                {"layer": n.neuron.layer, "index": n.neuron.index, "votes": n.votes, "strength": n.strength}
                for n in self.neurons
            ],
            "perplexity": {effect.arm: effect.perplexity for effect in self.effects},
            "values": self.records(),
        }

    def records(self) -> list[Record]:
        """One record a value, by its name."""
        return [
            {
                "value_id": value.value_id,
                "group": value.group,
                "tokens": self.tokens[at],
                "detected": self.detected[at],
                "log_probability": {effect.arm: effect.log_probabilities[at] for effect in self.effects},
            }
            for at, value in enumerate(self.values)
        ]

    def metrics(self) -> dict[str, Metric]:
        """How many there are and, where measured, what silencing them does beside as many random ones."""
        count = Metric(value=len(self.neurons), low=None, high=None, n=len(self.values))
        found = {"neurons": count}
        bare = next(iter(self.effects), None)
        for effect in self.effects[1:]:
            name = effect.arm.replace(" ", "_")
            before = bare.log_probabilities if bare else ()
            found[f"log_probability_change_{name}"] = Metric.of(paired_difference(before, effect.log_probabilities))
            base = bare.perplexity if bare else None
            found[f"perplexity_{name}"] = Metric(value=effect.perplexity, low=None, high=None, n=TOKENS, base=base)
        return found

    def table(self) -> Table:
        """The neurons with the most votes."""
        rows = [
            (f"{n.neuron.layer}:{n.neuron.index}", f"{n.votes} of {len(self.values)}", f"{n.strength:.3f}")
            for n in self.neurons[:SHOWN]
        ]
        columns = ("layer:index", "texts", "mean share")
        return Table.of(columns, rows, right=columns[1:], title=f"{self.title}: {len(self.neurons)}")

    def notes(self) -> list[str]:
        """What the numbers mean."""
        lines = [
            f"{len(self.neurons)} neurons are large in at least {self.ratio:.0%} of the texts of a group. Silencing "
            "them takes away whatever else they carry: see the perplexity, and try other prompts.",
            f"Attributions add up to what silencing a layer does with an error of {self.error_share:.2%} (median over "
            "tokens of the worst layer).",
        ]
        for effect in self.effects[1:]:
            before = self.effects[0]
            moved = paired_difference(before.log_probabilities, effect.log_probabilities)
            lines.append(
                f"With {effect.arm} neurons silenced the values' log-probability per token changes by "
                f"{moved.value:+.2f} [{moved.low:+.2f}, {moved.high:+.2f}] (n = {moved.n}), and the perplexity of "
                f"ordinary text goes from {before.perplexity:.2f} to {effect.perplexity:.2f}."
            )
        return lines

    def plot(self) -> Figure:
        """How many neurons each layer has, and which."""
        points = [(n.neuron, n.strength) for n in self.neurons]
        title = f"{self.title} of {len(self.values)} values in {self.lm.name}"
        return neurons_by_layer(points, self.grid, title, size="mean share")

    # Patches.

    @cached_property
    def fingerprint(self) -> str:
        """Of the model as it is when this is first asked."""
        return self.lm.fingerprint()

    def erase(self, factor: float = 0.0, count: int | None = None) -> Patch:
        """A patch that silences the neurons, or damps them by a factor, at every position of every text.

        Raises:
            ConfigError: there are none.
        """
        return self._scaled([n.neuron for n in self.neurons[:count]], factor)

    def random(self, *, seed: int = 0) -> list[Neuron]:
        """As many others of the same layers, for comparison."""
        return drawn([n.neuron for n in self.neurons], self.grid, seed)

    def with_effects(self, *, seed: int = 0) -> PrivacyNeurons:
        """The same, with what silencing these and random neurons does to the values and to ordinary text.

        Raises:
            ConfigError: there are no neurons.
        """
        if not self.neurons:
            raise ConfigError("There are no neurons to silence: lower the threshold or the ratio.")
        pairs = [(value.prompt, value.value) for value in self.values]
        text = held_out_text()

        def measured(arm: str) -> Forgetting:
            logs = tuple(each.log_probability for each in score(self.lm, pairs))
            return Forgetting(arm, logs, perplexity(self.lm, text, tokens=TOKENS))

        effects = [measured("none")]
        for arm, patch in (("privacy", self.erase()), ("random", self._scaled(self.random(seed=seed), 0.0))):
            with patch.applied(self.lm, verify=False):
                effects.append(measured(arm))
        return replace(self, effects=tuple(effects))

    def by_layer(self) -> dict[int, int]:
        """How many neurons each layer has."""
        counts = Counter(n.neuron.layer for n in self.neurons)
        return {layer: counts[layer] for layer in self.grid.layers}

    def _scaled(self, neurons: Sequence[Neuron], factor: float) -> Patch:
        config = {"operation": "erase", **self.options, "ratio_used": self.ratio}
        return scale_neurons(
            self.lm, neurons, factor, method="privacy-neurons", config=config, fingerprint=self.fingerprint
        )
