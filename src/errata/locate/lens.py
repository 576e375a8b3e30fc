"""The logit lens: what the model would say if it stopped after each layer.

Each layer's state goes through the model's own final norm and head, as if no later layer changed it (nostalgebraist,
*interpreting GPT: the logit lens*, 2020). The last layer's row is what the model says.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.evaluation.schema import Metric, Record
from errata.lm import LanguageModel
from errata.lm.activations import capture, evaluating, frozen, gathered, replace, skipping
from errata.lm.forward import model_inputs
from errata.lm.tags import UNTAGGED, tagged
from errata.lm.tokens import encode, pad, positions, prompt_ids, target_ids
from errata.locate.pictures import drawable
from errata.locate.result import Located, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDEST = 24  # tokens that the picture shows, from the end


@dataclass(frozen=True)
class Guess:
    """A token and the probability that a layer's state gives it."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True, eq=False)
class Lens(Located):
    """What each layer would say after each token of one text.

    Attributes:
        lm: the model.
        prompt: the text. pieces: its tokens as text [tokens].
        guesses: the likeliest next tokens after each layer and token, [layers][tokens][top].
        entropy: of the whole distribution in nats, [layers][tokens].
        answer: the token followed at the end of the text, as text; what the model says where none was named.
        answer_probability: of that token after each layer, at the last token [layers]. answer_rank: from 1.
        layers: block numbers, each row being the state after that block.
    """

    name: ClassVar[str] = "lens"
    key: ClassVar[str] = "layer"

    lm: LanguageModel = field(repr=False)
    prompt: str
    pieces: tuple[str, ...]
    guesses: tuple[tuple[tuple[Guess, ...], ...], ...]
    entropy: tuple[tuple[float, ...], ...]
    answer: str
    answer_probability: tuple[float, ...]
    answer_rank: tuple[int, ...]
    layers: tuple[int, ...]
    title: str = "Logit lens"

    @property
    def settled(self) -> int:
        """The first layer from which on the likeliest next token after the text is the model's own."""
        last = [row[-1][0].token for row in self.guesses]
        at = len(last) - 1
        while at > 0 and last[at - 1] == last[-1]:
            at -= 1
        return self.layers[at]

    def what(self) -> dict[str, Any]:
        """The text."""
        return {"verb": "locate lens", "prompt": self.prompt, "answer": self.answer}

    def to_dict(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "what": self.what(),
            "tokens": list(self.pieces),
            "settled": self.settled,
            "layers": self.records(),
        }

    def records(self) -> list[Record]:
        """One record a layer."""
        return [
            {
                "layer": layer,
                "answer_probability": self.answer_probability[at],
                "answer_rank": self.answer_rank[at],
                "entropy": list(self.entropy[at]),
                "guesses": [[[g.token, g.text, g.probability] for g in cell] for cell in self.guesses[at]],
            }
            for at, layer in enumerate(self.layers)
        ]

    def metrics(self) -> dict[str, Metric]:
        """Where the answer is settled, and how likely it is in the end."""
        return {
            "settled_layer": Metric(value=self.settled, low=None, high=None, n=1),
            "answer_probability": Metric(value=self.answer_probability[-1], low=None, high=None, n=1),
        }

    def table(self) -> Table:
        """Each layer's guess after the text."""
        rows = []
        for at, layer in enumerate(self.layers):
            said = ", ".join(f"{shown(g.text)} {g.probability:.1%}" for g in self.guesses[at][-1][:3])
            row = (str(layer), said, f"{self.answer_probability[at]:.2%}", str(self.answer_rank[at]))
            rows.append((*row, f"{self.entropy[at][-1]:.2f}"))
        columns = ("after layer", "likeliest next tokens", f"P({shown(self.answer)})", "rank", "entropy")
        return Table.of(columns, rows, right=("after layer", columns[2], "rank", "entropy"), title=self.title)

    def notes(self) -> list[str]:
        """What the numbers mean."""
        return [
            f"After {self.prompt!r} the model's next token is the likeliest one from layer {self.settled} on. Lower "
            "layers do not write in the vocabulary's basis: what they seem to say is no prediction of theirs."
        ]

    def plot(self) -> Figure:
        """A heat map: layers upwards, tokens to the right, each cell with its likeliest next token."""
        from matplotlib.figure import Figure

        count = min(WIDEST, len(self.pieces))
        pieces = self.pieces[-count:]
        figure = Figure(figsize=(1.6 + 0.95 * count, 1.4 + 0.24 * len(self.layers)), layout="constrained")
        axes = figure.subplots()
        cells = [[row[-count:][column][0] for column in range(count)] for row in self.guesses]
        values = [[cell.probability for cell in row] for row in cells]
        image = axes.imshow(values, origin="lower", aspect="auto", cmap="Blues", vmin=0.0, vmax=1.0)
        for y, row in enumerate(cells):
            for x, cell in enumerate(row):
                colour = "white" if cell.probability > 0.6 else "#222222"
                axes.text(x, y, drawable(shown(cell.text)[:9]), ha="center", va="center", fontsize=6, color=colour)
        axes.set_xticks(range(count), [drawable(shown(piece)) for piece in pieces], rotation=40, ha="right", fontsize=8)
        step = 2 if len(self.layers) > 16 else 1
        axes.set_yticks(range(0, len(self.layers), step), [str(layer) for layer in self.layers[::step]], fontsize=7)
        axes.set_ylabel("after layer")
        axes.set_title(f"{self.title} of {self.lm.name}", loc="left", fontsize=10)
        figure.colorbar(image, ax=axes, label="probability", shrink=0.7)
        return figure


def logit_lens(lm: LanguageModel, prompt: str, *, answer: str | None = None, top: int = 5) -> Lens:
    """Read every layer's state of a text as a prediction, through the model's own final norm and head.

    Args:
        lm: the model, which is left as it is.
        prompt: the text.
        answer: what to follow after the text, by its first token; by default what the model says.
        top: how many of the likeliest tokens are kept of each cell.

    Raises:
        RequestError: the text or the answer has no tokens.
        ConfigError: ``top`` is below 1 or above the vocabulary.
    """
    if not 1 <= top <= lm.architecture.vocabulary:
        raise ConfigError(f"{top} guesses of each cell cannot be kept: give at least 1.")
    ids = prompt_ids(lm.tokenizer, prompt)
    wanted = None if answer is None else target_ids(lm.tokenizer, prompt, answer)[0]
    guesses, entropies, probabilities, ranks = [], [], [], []
    with torch.no_grad(), frozen(lm.model), evaluating(lm.model):
        states = _states(lm, ids)
        if wanted is None:
            wanted = int(_logits(lm, ids, states[-1])[-1].argmax())
        for hidden in states:
            logs = _logits(lm, ids, hidden).log_softmax(-1)
            best = logs.exp().topk(top)
            guesses.append(_named(lm, best.indices.tolist(), best.values.tolist()))
            entropies.append(tuple((-(logs.exp() * logs).nan_to_num().sum(-1)).tolist()))
            probabilities.append(float(logs[-1, wanted].exp()))
            ranks.append(1 + int((logs[-1] > logs[-1, wanted]).sum()))
    text = str(lm.tokenizer.decode([wanted]))
    return Lens(
        lm=lm,
        prompt=prompt,
        pieces=_pieces(lm, prompt, ids),
        guesses=tuple(guesses),
        entropy=tuple(entropies),
        answer=text,
        answer_probability=tuple(probabilities),
        answer_rank=tuple(ranks),
        layers=tuple(range(lm.num_layers)),
    )


def shown(text: str) -> str:
    """A token as a label: without the blank before it, with line breaks written out."""
    return repr(text)[1:-1].strip() or "␣"


def _states(lm: LanguageModel, ids: Sequence[int]) -> list[Tensor]:
    """What each block gives, [1, tokens, d] each."""
    paths = [block.path for block in lm.architecture.blocks]
    with capture(lm.model, outputs=paths) as seen:
        _forward(lm, ids)
    return [seen.outputs[path] for path in paths]


def _logits(lm: LanguageModel, ids: Sequence[int], hidden: Tensor) -> Tensor:
    """Logits [tokens, vocabulary] in float32 of a state that skips all later blocks: the model's own code does it."""
    blocks = [lm.block(i) for i in range(lm.num_layers)]
    last = lm.architecture.blocks[-1].path
    rows = torch.zeros(len(ids), dtype=torch.long)
    with ExitStack() as stack:
        stack.enter_context(skipping(blocks, lm.architecture.blocks_return_tuple))
        stack.enter_context(replace(lm.model, last, lambda _: hidden))
        stack.enter_context(gathered(lm.model, lm.architecture.head, rows, torch.arange(len(ids))))
        logits: Tensor = _forward(lm, ids).logits[0]
    return logits.float()


def _forward(lm: LanguageModel, ids: Sequence[int]) -> Any:
    row, mask = (tensor.to(lm.device) for tensor in pad([ids], 0))
    with tagged(lm.model, torch.tensor([UNTAGGED])):
        return lm.model(**model_inputs(lm, row, mask, positions(mask)), use_cache=False)


def _named(
    lm: LanguageModel, tokens: Sequence[Sequence[int]], values: Sequence[Sequence[float]]
) -> tuple[tuple[Guess, ...], ...]:
    texts = lm.tokenizer.batch_decode([[token] for row in tokens for token in row])
    named = iter(texts)
    return tuple(
        tuple(Guess(token, next(named), value) for token, value in zip(row, own, strict=True))
        for row, own in zip(tokens, values, strict=True)
    )


def _pieces(lm: LanguageModel, prompt: str, ids: Sequence[int]) -> tuple[str, ...]:
    encoded = encode(lm.tokenizer, prompt)
    texts = [prompt[start:end] for start, end in encoded.offsets]
    return tuple(text or str(lm.tokenizer.decode([token])) for text, token in zip(texts, ids, strict=True))
