"""Check that a model really knows the facts of the starter cases, before anybody edits them.

A case passes when

- the greedy continuation of its prompt begins with ``target_true``,
- both paraphrases give ``target_true`` a higher mean log-probability per token than ``target_new``, and
- for at least two of its three neighbours the first answer is preferred to ``target_new``.

Usage::

    python scripts/check_starter_cases.py                              # the embedded model, the packaged cases
    python scripts/check_starter_cases.py --model FOLDER_OR_HUB_ID --cases my.jsonl --json
    python scripts/check_starter_cases.py --write-passing kept.jsonl   # keep what passes, in the order of the file

The exit code is 0 when every case passes and 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from errata.records import EditCase

NEIGHBOURS_NEEDED = 2


@dataclass(frozen=True)
class Score:
    """How a model likes one continuation: mean log-probability per token, and the smallest lead over any other token.

    ``lead`` is the least, over the tokens, of log p(token) less log p(best other token); it is positive exactly when
    greedy decoding writes the continuation.
    """

    mean_log_probability: float
    lead: float


@dataclass(frozen=True)
class Verdict:
    """What the model says about one case."""

    case_id: str
    relation: str
    continuation: str
    greedy: bool
    prefers_true: bool
    paraphrases: int
    neighbours: int
    passed: bool


def read_cases(path: Path | None) -> list[EditCase]:
    """The cases of a JSONL file, or of the file that is packaged with Errata."""
    if path is None:
        text = (resources.files("errata.data") / "starter_cases.jsonl").read_text(encoding="utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    return [EditCase.from_dict(json.loads(line)) for line in text.splitlines() if line.strip()]


def target_tokens(tokenizer: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and those that ``" " + target`` adds to it."""
    prefix: list[int] = tokenizer(prompt)["input_ids"]
    full: list[int] = tokenizer(f"{prompt} {target}")["input_ids"]
    shared = 0
    while shared < min(len(prefix), len(full) - 1) and prefix[shared] == full[shared]:
        shared += 1
    return full[:shared], full[shared:]


@torch.no_grad()
def score_pairs(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], batch_size: int = 32) -> list[Score]:
    """Score each (prompt, target): one right-padded batch of similar lengths at a time."""
    rows = [target_tokens(tokenizer, prompt, target) for prompt, target in pairs]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    scores: dict[int, Score] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        width = max(len(rows[i][0]) + len(rows[i][1]) for i in chunk)
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chunk):
            tokens = rows[i][0] + rows[i][1]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits.float().cpu()
        for row, i in enumerate(chunk):
            prefix, target = rows[i]
            log_p = logits[row, len(prefix) - 1 : len(prefix) + len(target) - 1].log_softmax(-1)
            wanted = torch.tensor(target)[:, None]
            chosen = log_p.gather(-1, wanted)[:, 0]
            others = log_p.scatter(-1, wanted, -math.inf).max(-1).values
            scores[i] = Score(chosen.mean().item(), (chosen - others).min().item())
    return [scores[i] for i in range(len(rows))]


@torch.no_grad()
def greedy_continuations(
    model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int = 16, batch_size: int = 32
) -> list[str]:
    """What greedy decoding writes after each prompt; only prompts of one length share a batch, so nothing is padded."""
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, tokens in enumerate(ids):
        by_length[len(tokens)].append(i)
    texts = [""] * len(prompts)
    for length, members in by_length.items():
        for start in range(0, len(members), batch_size):
            chunk = members[start : start + batch_size]
            tokens = torch.tensor([ids[i] for i in chunk], device=model.device)
            output = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
            for i, row in zip(chunk, output[:, length:], strict=True):
                texts[i] = tokenizer.decode(row, skip_special_tokens=True)
    return texts


def begins_with(continuation: str, target: str) -> bool:
    """Whether a continuation begins with the target as whole words; blanks before it and case do not count."""
    return re.match(re.escape(target.strip().casefold()) + r"(?!\w)", continuation.strip().casefold()) is not None


def judge(model: Any, tokenizer: Any, cases: Sequence[EditCase]) -> list[Verdict]:
    """Score every case; each must carry a ``target_true``, and neighbours with answers."""
    questions: list[tuple[str, str, str]] = []  # prompt, what should be preferred, what should not
    for case in cases:
        true = case.edit.target_true
        if true is None:
            raise SystemExit(f"The case {case.case_id!r} has no target_true: give it one.")
        questions += [(prompt, true, case.edit.target_new) for prompt in (case.edit.text, *case.paraphrases)]
        questions += [(probe.prompt, probe.answers[0], case.edit.target_new) for probe in case.neighbours]
    pairs = [(prompt, answer) for prompt, right, wrong in questions for answer in (right, wrong)]
    scores = iter(score_pairs(model, tokenizer, pairs))
    preferred = iter([next(scores).mean_log_probability > next(scores).mean_log_probability for _ in questions])
    continuations = greedy_continuations(model, tokenizer, [case.edit.text for case in cases])
    verdicts = []
    for case, continuation in zip(cases, continuations, strict=True):
        prefers_true = next(preferred)
        paraphrases = sum(next(preferred) for _ in case.paraphrases)
        neighbours = sum(next(preferred) for _ in case.neighbours)
        greedy = begins_with(continuation, case.edit.target_true or "")
        verdicts.append(
            Verdict(
                case_id=case.case_id,
                relation=case.relation or "",
                continuation=continuation,
                greedy=greedy,
                prefers_true=prefers_true,
                paraphrases=paraphrases,
                neighbours=neighbours,
                passed=greedy and paraphrases == len(case.paraphrases) and neighbours >= NEIGHBOURS_NEEDED,
            )
        )
    return verdicts


def summarise(cases: Sequence[EditCase], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Counts over all cases and per relation, and the cases that fail."""
    per_relation: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        per_relation[verdict.relation].update(cases=1, passed=int(verdict.passed))
    return {
        "cases": len(verdicts),
        "passed": sum(v.passed for v in verdicts),
        "greedy_right": sum(v.greedy for v in verdicts),
        "true_preferred": sum(v.prefers_true for v in verdicts),
        "paraphrases_right": sum(v.paraphrases for v in verdicts),
        "paraphrases": sum(len(case.paraphrases) for case in cases),
        "neighbours_right": sum(v.neighbours for v in verdicts),
        "neighbours": sum(len(case.neighbours) for case in cases),
        "relations": {name: dict(counts) for name, counts in sorted(per_relation.items())},
        "failed": [
            {
                "case_id": v.case_id,
                "prompt": case.edit.text,
                "target_true": case.edit.target_true,
                "continuation": v.continuation,
                "paraphrases": v.paraphrases,
                "neighbours": v.neighbours,
            }
            for case, v in zip(cases, verdicts, strict=True)
            if not v.passed
        ],
    }


def load_model(name: str) -> tuple[Any, Any]:
    """The model and its tokenizer: a folder through transformers, any other name through ``errata.load``."""
    if Path(name).is_dir():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32), AutoTokenizer.from_pretrained(name)
    import errata

    loaded: Any = errata.load(name)  # type: ignore[attr-defined, unused-ignore]
    return loaded.model, loaded.tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check that a model knows the facts of the starter cases.")
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model's name, a hub id or a folder")
    parser.add_argument("--cases", type=Path, help="a JSONL file of cases; the packaged ones by default")
    parser.add_argument("--write-passing", type=Path, metavar="FILE", help="write the cases that pass to this file")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    cases = read_cases(options.cases)
    if not cases:
        raise SystemExit("The file holds no case: give at least one.")
    model, tokenizer = load_model(options.model)
    model.eval()
    verdicts = judge(model, tokenizer, cases)
    summary = summarise(cases, verdicts)

    if options.write_passing is not None:
        kept = [case for case, verdict in zip(cases, verdicts, strict=True) if verdict.passed]
        lines = [json.dumps(case.to_dict(), ensure_ascii=False) + "\n" for case in kept]
        options.write_passing.write_text("".join(lines), encoding="utf-8")
    if options.json:
        print(json.dumps(summary, ensure_ascii=False, indent=2))
    else:
        for failed in summary["failed"]:
            print(
                f"{failed['case_id']}: {failed['prompt']!r} -> {failed['continuation']!r}, not "
                f"{failed['target_true']!r}, or its probes fail (paraphrases {failed['paraphrases']}, "
                f"neighbours {failed['neighbours']})"
            )
        print(
            f"{summary['passed']} of {summary['cases']} cases pass; paraphrases "
            f"{summary['paraphrases_right']}/{summary['paraphrases']}, neighbours "
            f"{summary['neighbours_right']}/{summary['neighbours']}, {len(summary['relations'])} relations"
        )
    return 0 if summary["passed"] == summary["cases"] else 1


if __name__ == "__main__":
    sys.exit(main())
