"""What evaluation costs, beside plain code that asks one thing at a time: the same numbers, in less processor time.

    python benchmarks/evaluation.py --cases counterfact.json --out runs/evaluation [--limit 24]

Every case is scored under a patch of its own, as in the single-edit protocol: the log-probabilities of its answers, the
greedy answers up to their natural stop, and the perplexity of 512 held-out tokens. The plain code applies a patch, runs
one pass for each prompt and answer and one ``model.generate`` for each prompt, and reverts the patch. The patches are
rank-one changes drawn at random: what an evaluation costs does not depend on how they were found.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

import errata
from errata.bench.protocols import CHUNK, SINGLE_TOKENS
from errata.datasets import held_out_text, read_cases
from errata.evaluation.editing import ANSWER_TOKENS, Measures, score_cases
from errata.evaluation.schema import CostMeter, Measured, Metric, model_record, versions, write_metrics
from errata.lm import LanguageModel
from errata.lm.decoding import Decoding, Ending
from errata.lm.scoring import perplexity_of, window_nlls_by_tag
from errata.lm.tokens import encode, prompt_ids, target_ids
from errata.patch import LowRank, Patch
from errata.patch.rowwise import applied_by_row, first_block
from errata.records import EditCase

CHANGE = 0.02  # norm of a patch, over that of the weight it changes
WINDOW = 256
Record = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", required=True, help="CounterFact, full or short form, or any other file of cases")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=CHUNK)
    options = parser.parse_args()
    lm = errata.load(options.model)
    with CostMeter() as meter:
        found = measure(lm, read_cases(options.cases, limit=options.limit))
    measured = Measured(
        what={"verb": "benchmark evaluation", "cases": options.cases, "limit": options.limit, "window": WINDOW},
        model=model_record(lm),
        metrics={name: Metric(value=value, low=None, high=None, n=options.limit) for name, value in found.items()},
        cost=meter.cost(),
        versions=versions(),
    )
    write_metrics(options.out, measured)
    for name, value in found.items():
        print(f"{name:36} {value:10.4g}")


def measure(lm: LanguageModel, cases: Sequence[EditCase]) -> dict[str, float]:
    """Evaluate the cases in both ways, each under a patch of its own.

    Half of the cases is done plainly, then all fast, the other half plainly, and all fast again, so that a busy machine
    slows down both alike.

    Returns:
        ``evaluation_ratio``: processor seconds of the plain code over those of Errata's, for scoring and generation
        together; the same for ``scoring`` and ``generation`` alone, for ``perplexity``, and for ``all`` of it;
        processor seconds a case of each; the largest difference between log-probabilities (``largest_difference``),
        the share of equal greedy answers (``same_answers``), the largest relative difference in perplexity; and by how
        many MB (10^6 bytes) the process grew at its peak by either (the fast way's after the plain one's).
    """
    patches = [_patch(lm, case, number) for number, case in enumerate(cases)]
    text = held_out_text()
    _fast(lm, cases[:1], patches[:1], text)  # what is found out about a model once is no part of an evaluation
    begin, half = _peak_mb(), len(cases) // 2
    first, first_seconds = _plain(lm, cases[:half], patches[:half], text)
    plain_grown = _peak_mb() - begin
    records, seconds = _fast(lm, cases, patches, text)
    grown = _peak_mb() - begin
    second, second_seconds = _plain(lm, cases[half:], patches[half:], text)
    again = _fast(lm, cases, patches, text)[1]
    plain_seconds = {name: value + second_seconds[name] for name, value in first_seconds.items()}
    fast_seconds = {name: (value + again[name]) / 2 for name, value in seconds.items()}
    for each in (fast_seconds, plain_seconds):
        each["all"] = each["both"] + each["perplexity"]
    return {
        "evaluation_ratio": plain_seconds["both"] / fast_seconds["both"],
        **{f"evaluation_ratio_{name}": plain_seconds[name] / fast_seconds[name] for name in PARTS},
        **{f"fast_{name}_cpu_seconds": fast_seconds[name] / len(cases) for name in (*PARTS, "both")},
        **{f"plain_{name}_cpu_seconds": plain_seconds[name] / len(cases) for name in (*PARTS, "both")},
        **_differences([*first, *second], records),
        "fast_growth_mb": grown,
        "plain_growth_mb": plain_grown,
    }


PARTS = ("scoring", "generation", "perplexity", "all")


def _patch(lm: LanguageModel, case: EditCase, number: int) -> Patch:
    layer = lm.num_layers // 6
    weight = lm.weight(layer)
    generator = torch.Generator().manual_seed(number)
    left, right = (torch.randn(size, generator=generator) for size in weight.shape)
    left = left * (CHANGE * float(weight.float().norm()) / float(left.norm() * right.norm()))
    update = LowRank(lm.weight_name(layer), left[:, None], right[None], lm.layer(layer).transposed)
    return Patch.create(lm, [update], method="random", config={}, edits=[case.edit], fingerprint="none")


# --- Errata's way ----------------------------------------------------------------------------------------------------


def _fast(
    lm: LanguageModel, cases: Sequence[EditCase], patches: Sequence[Patch], text: str
) -> tuple[list[Record], dict[str, float]]:
    """A record a case, and processor seconds; generation is what both take together, less scoring alone."""
    seconds = dict.fromkeys(("scoring", "generation", "both", "perplexity"), 0.0)
    records: list[Record] = []
    for at in range(0, len(cases), CHUNK):
        some, own = cases[at : at + CHUNK], patches[at : at + CHUNK]
        tags, start = range(len(some)), first_block(lm, own)
        with applied_by_row(lm, own):
            scoring, _ = _timed(lambda c=some, t=tags: score_cases(lm, c, Measures(generation=False), tags=t))
            both, said = _timed(lambda c=some, t=tags: score_cases(lm, c, Measures(), tags=t))
            windows, sums = _timed(
                lambda t=tags, s=start: window_nlls_by_tag(lm, text, t, window=WINDOW, tokens=SINGLE_TOKENS, start=s)
            )
        records += [{**record, "perplexity": perplexity_of(nlls)} for record, nlls in zip(said, sums, strict=True)]
        for name, value in zip(seconds, (scoring, both - scoring, both, windows), strict=True):
            seconds[name] += value
    return records, seconds


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def _peak_mb() -> float:
    return CostMeter().cost().peak_mb or math.nan


# --- The plain way ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def _plain(
    lm: LanguageModel, cases: Sequence[EditCase], patches: Sequence[Patch], text: str
) -> tuple[list[Record], dict[str, float]]:
    """The same records, one prompt and one answer at a time."""
    seconds = dict.fromkeys(("scoring", "generation", "perplexity"), 0.0)
    records = []
    for case, patch in zip(cases, patches, strict=True):
        with patch.applied(lm, verify=False):
            record: Record = {}
            for kind, prompt, new, true, generated in _prompts(case):
                entry: Record = {"prompt": prompt}
                for name, target in (("new", new), ("true", true)):
                    if target is not None:
                        spent, entry[name] = _timed(lambda p=prompt, t=target: plain_score(lm, p, t))
                        seconds["scoring"] += spent
                if generated:
                    spent, entry["answer"] = _timed(lambda p=prompt: plain_answer(lm, p))
                    seconds["generation"] += spent
                record.setdefault(kind, []).append(entry)
            spent, record["perplexity"] = _timed(lambda: plain_perplexity(lm, text))
            seconds["perplexity"] += spent
        records.append(record)
    return records, {**seconds, "both": seconds["scoring"] + seconds["generation"]}


def _prompts(case: EditCase) -> list[tuple[str, str, str, str | None, bool]]:
    """(kind, prompt, new answer, true answer, whether it is also answered freely) of CounterFact's prompts."""
    new, true = case.edit.target_new, case.edit.target_true
    rows = [("rewrite", case.edit.text, new, true, True)]
    rows += [("paraphrases", prompt.rstrip(), new, true, False) for prompt in case.paraphrases]
    rows += [("neighbours", p.prompt.rstrip(), new, p.answers[0] if p.answers else true, True) for p in case.neighbours]
    return rows


def plain_score(lm: LanguageModel, prompt: str, target: str) -> float:
    """Mean log-probability a token, from one pass over the prompt and the target."""
    ids, wanted = prompt_ids(lm.tokenizer, prompt), target_ids(lm.tokenizer, prompt, target)
    logits = lm.model(input_ids=torch.tensor([[*ids, *wanted]], device=lm.device)).logits[0].float()
    likely = logits[len(ids) - 1 : -1].log_softmax(-1)
    return float(likely.gather(1, torch.tensor(wanted, device=lm.device)[:, None]).mean())


class _Stop(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, lm: LanguageModel, prompt: int) -> None:
        self._ending, self._prompt, self._said = Ending(lm, Decoding(ANSWER_TOKENS, "natural")), prompt, False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        done, self._said = self._ending.after(input_ids[0, self._prompt :].tolist(), self._said)
        return torch.tensor([done], device=input_ids.device)


def plain_answer(lm: LanguageModel, prompt: str) -> str:
    """The greedy answer up to its natural stop, by the model's own ``generate``."""
    ids = torch.tensor([prompt_ids(lm.tokenizer, prompt)], device=lm.device)
    out = lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([_Stop(lm, ids.shape[1])]),
    )
    return str(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def plain_perplexity(lm: LanguageModel, text: str) -> float:
    """exp of the mean loss over the windows of the text, one pass each."""
    ids = encode(lm.tokenizer, text).ids[:SINGLE_TOKENS]
    sums = []
    for at in range(0, len(ids), WINDOW):
        window = torch.tensor([ids[at : at + WINDOW]], device=lm.device)
        loss = torch.nn.functional.cross_entropy(lm.model(input_ids=window).logits[0, :-1].float(), window[0, 1:])
        sums.append((float(loss) * (window.shape[1] - 1), window.shape[1] - 1))
    return perplexity_of(sums)


def _differences(plain: Sequence[Record], fast: Sequence[Record]) -> dict[str, float]:
    rows = [
        (a, b)
        for p, f in zip(plain, fast, strict=True)
        for kind in ("rewrite", "paraphrases", "neighbours")
        for a, b in zip(p.get(kind, []), f.get(kind, []), strict=True)
    ]
    answers = [(a["answer"], b["answer"]) for a, b in rows if "answer" in a]
    return {
        "largest_difference": max(abs(a[name] - b[name]) for a, b in rows for name in ("new", "true") if name in a),
        "same_answers": sum(a == b for a, b in answers) / len(answers),
        "largest_relative_perplexity_difference": max(
            abs(p["perplexity"] / f["perplexity"] - 1) for p, f in zip(plain, fast, strict=True)
        ),
    }


if __name__ == "__main__":
    main()
