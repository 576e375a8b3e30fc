"""What a causal trace costs, beside the published way: the same numbers, for fewer operations and less processor time.

    python benchmarks/tracing.py --out runs/tracing [--prompt "{} is in" --subject "The Eiffel Tower"]

One full trace of hidden states of one prompt, 10 corrupted runs a cell. The plain way is that of Meng et al. 2022: for
every token and layer one pass of 1 clean and 10 corrupted rows through the whole model, with logits at all positions.
It is run on some cells only, spread over the grid, for all of its passes are alike; its cost is scaled to the grid.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import errata
from errata.evaluation.schema import CostMeter, Measured, Metric, model_record, versions, write_metrics
from errata.lm import LanguageModel
from errata.lm.activations import frozen, hidden_of
from errata.lm.products import fast_products
from errata.lm.tokens import encode, tokens_of
from errata.locate.corruption import Corrupter, Corruption
from errata.locate.patching import Patching
from errata.locate.tracing import Grid, Kind, TraceOptions, grid
from errata.records import Fact

SAMPLES = 10
ROUNDS = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", default="{} is located in the city of")
    parser.add_argument("--subject", default="The Eiffel Tower")
    parser.add_argument("--cells", type=int, default=30, help="cells that the plain way runs")
    options = parser.parse_args()
    lm = errata.load(options.model)
    fact = Fact(prompt=options.prompt, subject=options.subject)
    with CostMeter() as meter:
        found = measure(lm, fact, options.cells)
    measured = Measured(
        what={"verb": "benchmark tracing", "prompt": fact.text, "subject": fact.subject, "samples": SAMPLES},
        model=model_record(lm),
        metrics={name: Metric(value=value, low=None, high=None, n=1) for name, value in found.items()},
        cost=meter.cost(),
        versions=versions(),
    )
    write_metrics(options.out, measured)
    for name, value in found.items():
        print(f"{name:28} {value:12.5g}")


def measure(lm: LanguageModel, fact: Fact, cells: int) -> dict[str, float]:
    """Trace the prompt in both ways.

    The cells of the plain way are run in halves around the fast trace, so that a busy machine slows down both alike.

    Returns:
        ``time_ratio`` and ``flops_ratio``: the plain way over Errata's, for the whole grid; processor seconds and
        operations of both; the largest difference of a probability (``largest_difference``); tokens of the prompt.
    """
    plain, fast = _Plain(lm, fact), _Fast(lm, fact)
    depth, tokens = lm.num_layers, len(plain.ids)
    every = [(token, layer) for token in range(tokens) for layer in range(depth)]
    some = every[:: max(1, len(every) // cells)]
    fast.patching()  # what is found out about a model once is no part of a trace
    plain.cell(0, 0)
    fast_seconds, plain_seconds, differences = 0.0, 0.0, []
    for part in range(ROUNDS):
        seconds, values = _timed(lambda part=part: [plain.cell(*cell) for cell in some[part::ROUNDS]])
        plain_seconds += seconds * len(every) / len(some)
        seconds, found = _timed(fast.trace)
        fast_seconds += seconds / ROUNDS
        differences += [abs(found[cell] - value) for cell, value in zip(some[part::ROUNDS], values, strict=True)]
    plain_flops, fast_flops = _flops(lambda: plain.cell(0, 0)) * len(every), _flops(fast.plainly_multiplied)
    return {
        "flops_ratio": plain_flops / fast_flops,
        "time_ratio": plain_seconds / fast_seconds,
        "plain_flops": plain_flops,
        "fast_flops": fast_flops,
        "plain_cpu_seconds": plain_seconds,
        "fast_cpu_seconds": fast_seconds,
        "largest_difference": max(differences),
        "prompt_tokens": tokens,
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def _flops(work: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


class _Fast:
    """Errata's way: the grid of one kind, as ``errata.locate.trace`` makes it."""

    def __init__(self, lm: LanguageModel, fact: Fact) -> None:
        self.lm, self.ids, self.span, self.corrupted, self.answer = _prepared(lm, fact)

    def trace(self) -> Grid:
        """The probability [tokens, layers]."""
        with frozen(self.lm.model), fast_products(self.lm.model):
            return self.plainly_multiplied()

    def plainly_multiplied(self) -> Grid:
        """The same with torch's own products, which are those whose operations can be counted."""
        return grid([self.patching()], len(self.ids), self.span, Kind.STATE, TraceOptions())

    def patching(self) -> Patching:
        """The clean and the corrupted runs."""
        return Patching(self.lm, self.ids, [(self.answer,)], self.span, self.corrupted)


class _Plain:
    """The published way: one cell, one pass."""

    def __init__(self, lm: LanguageModel, fact: Fact) -> None:
        self.lm, self.ids, self.span, self.corrupted, self.answer = _prepared(lm, fact)

    @torch.no_grad()
    def cell(self, token: int, layer: int) -> float:
        """The answer's probability with one state restored, by hooks on one whole pass."""
        model, architecture = self.lm.model, self.lm.architecture

        def corrupt(_module: Any, _args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[1:, slice(*self.span)] = self.corrupted
            return changed

        def restore(_module: Any, _args: Any, output: Any) -> Any:
            hidden = hidden_of(output).clone()
            hidden[1:, token] = hidden[0, token]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        with ExitStack() as hooks:
            for path, hook in ((architecture.embedding, corrupt), (architecture.blocks[layer].path, restore)):
                hooks.callback(model.get_submodule(path).register_forward_hook(hook).remove)
            ids = torch.tensor([self.ids] * (1 + SAMPLES), device=self.lm.device)
            logits = model(input_ids=ids, use_cache=False).logits
        return float(logits[1:, -1].float().softmax(-1)[:, self.answer].mean())


def _prepared(lm: LanguageModel, fact: Fact) -> tuple[LanguageModel, tuple[int, ...], tuple[int, int], Tensor, int]:
    encoded = encode(lm.tokenizer, fact.text)
    span = tokens_of(encoded, fact.subject_span)
    subject = tuple(encoded.ids[slice(*span)])
    corrupted = Corrupter(lm, [subject], Corruption(), samples=SAMPLES).rows(subject, fact.text)
    if corrupted is None:
        raise RuntimeError("noise needs no other subject")
    with torch.no_grad():
        answer = int(lm.model(input_ids=torch.tensor([encoded.ids], device=lm.device)).logits[0, -1].argmax())
    return lm, encoded.ids, span, corrupted, answer


if __name__ == "__main__":
    main()
