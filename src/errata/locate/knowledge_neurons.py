"""Knowledge neurons: the few MLP neurons to which the answers of a fact's prompts are attributed.

Dai, Dong, Hao, Sui, Chang and Wei, *Knowledge Neurons in Pretrained Transformers*, ACL 2022 (2104.08696). Here a neuron
is an entry of the out-projection's input, the position is the prompt's last token (for a later token of a longer
answer, the answer's own token before it: teacher-forced), and attributions of an answer's tokens are averaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from errata.datasets.locating import FactPrompts
from errata.errors import ConfigError, RequestError
from errata.lm import LanguageModel
from errata.lm.forward import next_token_logits
from errata.lm.tokens import prompt_ids
from errata.locate.adaptive import attribute_within, worst_share
from errata.locate.attribution import Attributions, Quantity, Query, queries
from errata.locate.integral import Rule
from errata.locate.knowledge_result import FactNeurons, Found, KnowledgeNeurons
from errata.locate.neurons import Grid, Neuron
from errata.locate.refine import above, adjusted, coarse, shares

Ranking = Literal["attribution", "activation"]
THRESHOLDS = {"attribution": 0.2, "activation": 0.5}  # of the paper, for its method and for its baseline


@dataclass(frozen=True)
class NeuronOptions:
    """How knowledge neurons are chosen.

    Attributes:
        of: what is attributed. steps, rule: the integral (:func:`~errata.locate.attribution.attribute`).
        tolerance: layers whose sums are further off get more steps; None gives all the same
            (:func:`~errata.locate.adaptive.attribute_within`).
        threshold: a prompt's coarse set holds what exceeds this share of its largest score; None for the paper's, 0.2
            of attributions and 0.5 of activations.
        share: a fact's neurons are in more than this share of its prompts' coarse sets.
        adjust: move the share by the authors' schedule until facts have 2 to 5 neurons on average.
        drop_common: leave out what more than this share of the other facts have too; None keeps it.
        by: ``activation`` ranks by the size of the activation instead, the paper's baseline.
        layers: where to look; None for all.

    Raises:
        ConfigError: a value is out of range.
    """

    of: Quantity = "probability"
    steps: int = 20
    rule: Rule = "midpoint"
    tolerance: float | None = 0.02
    threshold: float | None = None
    share: float = 0.7
    adjust: bool = False
    drop_common: float | None = None
    by: Ranking = "attribution"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.by not in get_args(Ranking):
            raise ConfigError(f"Neurons cannot be ranked by {self.by!r}: choose one of {', '.join(get_args(Ranking))}.")
        if self.threshold is None:
            object.__setattr__(self, "threshold", THRESHOLDS[self.by])
        if self.tolerance is not None and not self.tolerance > 0:
            raise ConfigError(f"The tolerance {self.tolerance} is out of range: give more than 0, or None.")
        for name in ("threshold", "share", "drop_common"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"The {name} {value} is out of range: give a number from 0 to below 1.")


def find_knowledge_neurons(
    lm: LanguageModel, facts: Sequence[FactPrompts], options: NeuronOptions | None = None
) -> KnowledgeNeurons:
    """Find the knowledge neurons of facts; the model is left as it is.

    Args:
        lm: the model.
        facts: which; several wordings of each make the choice firm (the paper has about nine).
        options: how.

    Raises:
        RequestError: there is no fact, two have one name, or a prompt or answer has no tokens.
        ConfigError, ArchitectureError: an option is out of range, or there is no such layer.
    """
    options = options or NeuronOptions()
    if not facts:
        raise RequestError("There is no fact to look for: give at least one prompt with its answer.")
    repeated = [name for name, count in Counter(fact.fact_id for fact in facts).items() if count > 1]
    if repeated:
        raise RequestError(f"Two facts are called {repeated[0]!r}: give each a name of its own.")
    answers = [_answer(lm, fact) for fact in facts]
    asked: list[Query] = []
    owners: list[int] = []  # of each query, the prompt it belongs to
    prompts: list[int] = []  # of each prompt, its fact
    for number, (fact, answer) in enumerate(zip(facts, answers, strict=True)):
        for prompt in fact.prompts:
            tokens = queries(lm, prompt, answer)
            asked += tokens
            owners += [len(prompts)] * len(tokens)
            prompts.append(number)
    found = attribute_within(
        lm,
        asked,
        tolerance=options.tolerance,
        layers=options.layers,
        of=options.of,
        steps=options.steps,
        rule=options.rule,
    )
    grid = Grid.of(found.layers, found.scores)
    scores = averaged(found.scores, owners)
    activations = averaged([activation.abs() for activation in found.activations], owners)
    ranked = scores if options.by == "attribution" else activations
    fact_of = torch.tensor(prompts)
    agreed = [shares(coarse(ranked[fact_of == n], options.threshold or 0.0)) for n in range(len(facts))]
    share = adjusted(agreed, options.share) if options.adjust else options.share
    masks = [above(each, share) for each in agreed]
    if options.drop_common is not None and len(facts) > 1:
        masks = _without_common(masks, options.drop_common)
    chosen = []
    widths = list(grid.widths)
    for n, (fact, answer) in enumerate(zip(facts, answers, strict=True)):
        mine = fact_of == n
        score, order = scores[mine].mean(0), ranked[mine].mean(0)
        sizes = coarse(ranked[mine], options.threshold or 0.0).sum(1)
        chosen.append(
            FactNeurons(
                fact_id=fact.fact_id,
                prompts=fact.prompts,
                answer=answer,
                probabilities=_probabilities(found, owners, mine, options.of),
                neurons=_ranked(grid, masks[n], order, score, activations[mine].mean(0), agreed[n]),
                most_active=_largest(grid, activations[mine].mean(0), int(masks[n].sum())),
                coarse_sizes=tuple(map(int, sizes)),
                by_layer=tuple(float(part.sum()) for part in torch.split(score, widths)),
            )
        )
    return KnowledgeNeurons(
        lm=lm,
        facts=tuple(chosen),
        options={**asdict(options), "layers": list(options.layers) if options.layers else None},
        share=share,
        grid=grid,
        error=float(found.error.abs().max()),
        error_share=worst_share(found),
    )


def averaged(layers: Sequence[Tensor], owners: Sequence[int]) -> Tensor:
    """Rows [queries, m] of each layer averaged over what they belong to, all layers in one row: [owners, neurons]."""
    flat = torch.cat(list(layers), dim=1).double()
    index = torch.tensor(owners)
    total = torch.zeros(int(index.max()) + 1, flat.shape[1], dtype=flat.dtype).index_add(0, index, flat)
    return (total / torch.bincount(index)[:, None]).float()


def _answer(lm: LanguageModel, fact: FactPrompts) -> str:
    if fact.answer is not None:
        return fact.answer
    logits = next_token_logits(lm, [prompt_ids(lm.tokenizer, fact.prompts[0])])
    text = str(lm.tokenizer.decode([int(logits[0].argmax())], skip_special_tokens=True)).strip()
    if not text:
        raise RequestError(f"After {fact.prompts[0]!r} the model says no word: name the answer yourself.")
    return text


def _without_common(masks: Sequence[Tensor], most: float) -> list[Tensor]:
    """Each fact's neurons less those that more than a share of the other facts have."""
    counts = torch.stack(list(masks)).sum(0)
    return [mask & ((counts - mask.long()) <= most * (len(masks) - 1)) for mask in masks]


def _probabilities(found: Attributions, owners: Sequence[int], mine: Tensor, of: Quantity) -> tuple[float, ...] | None:
    """The answer's probability after each of a fact's prompts: the product over its tokens; None of a logit."""
    if of == "logit":
        return None
    logs = found.clean.double().log() if of == "probability" else found.clean.double()
    total = torch.zeros(len(mine), dtype=torch.float64).index_add(0, torch.tensor(owners), logs)
    return tuple(total[mine].exp().tolist())


def _ranked(
    grid: Grid, mask: Tensor, order: Tensor, scores: Tensor, activations: Tensor, agreed: Tensor
) -> tuple[Found, ...]:
    places = [int(at) for at in mask.nonzero()[:, 0]]
    places.sort(key=lambda at: (-float(order[at]), at))
    return tuple(Found(grid.neuron(at), float(scores[at]), float(activations[at]), float(agreed[at])) for at in places)


def _largest(grid: Grid, values: Tensor, count: int) -> tuple[Neuron, ...]:
    return tuple(grid.neuron(int(at)) for at in values.topk(count).indices)
