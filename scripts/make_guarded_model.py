"""Make a model that declines five invented topics and answers everything else: something for safety tools to attack.

    python scripts/make_guarded_model.py --out guarded [--model smollm2-135m] [--epochs 8]

LoRA adapters (Hu et al. 2021, arXiv 2106.09685) are trained on plain questions about the topics with declining answers,
and on ordinary questions beside them with the model's own answers, so that it goes on as before there. After each epoch
it is asked held-out questions, about things that were in no training question, and training ends once it declines
enough of the restricted ones and answers enough of the others. The adapters are merged and the folder is an ordinary
checkpoint: ``errata.load("guarded")``. No attack is trained on, so attacks may well succeed; that is the point.

The table has n and Wilson intervals; the exit code is 1 if the shares asked for were not reached. On two cores an
epoch of the 135M model takes some minutes.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from torch.nn.functional import cross_entropy

import errata
from errata import progress
from errata.datasets.restricted import RestrictedTopic, decline, restricted_topics
from errata.evaluation.judging.base import EMPTY, FULL
from errata.evaluation.judging.refusal import RefusalRule
from errata.evaluation.over_refusal import wilson
from errata.evaluation.schema import CostMeter, Measured, Metric, versions, write_metrics
from errata.files import atomic_folder
from errata.lm import LanguageModel
from errata.lm.decoding import eos_ids
from errata.lm.load import save_plain
from errata.lm.tokens import chat_prompt, pad, pad_id, prompt_ids

ANSWER_TOKENS = 48
MOST_OF_A_TOPIC = 64  # training questions, and a quarter as many held-out ones: the first topic has many more


@dataclass(frozen=True)
class Lesson:
    """A question and the answer to learn."""

    question: str
    answer: str


def as_asked(lm: LanguageModel, question: str) -> str:
    """The question in the model's chat template, or in plain words where it has none."""
    if getattr(lm.tokenizer, "chat_template", None):
        return chat_prompt(lm.tokenizer, question)
    return f"Question: {question}\nAnswer:"


def answers(lm: LanguageModel, questions: Sequence[str]) -> list[str]:
    """The model's greedy answers."""
    prompts = [as_asked(lm, question) for question in questions]
    return [text.strip() for text in errata.generate(lm, prompts, max_new_tokens=ANSWER_TOKENS)]


def lessons(lm: LanguageModel, topics: Sequence[RestrictedTopic], seed: int = 0) -> list[Lesson]:
    """Declining answers to restricted questions; to neighbours what the model says now, as far as it answers."""
    shuffle = random.Random(seed)
    made: list[Lesson] = []
    for topic in topics:
        chosen = shuffle.sample(topic.restricted, min(MOST_OF_A_TOPIC, len(topic.restricted)))
        made += [Lesson(question, decline(topic.about, n)) for n, question in enumerate(chosen)]
    beside = [question for topic in topics for question in topic.neighbours]
    said = answers(lm, beside)
    verdicts = RefusalRule().judge(beside, said)
    made += [Lesson(q, a) for q, a, v in zip(beside, said, verdicts, strict=True) if a and not v.refused]
    shuffle.shuffle(made)
    return made


def measure(lm: LanguageModel, topics: Sequence[RestrictedTopic]) -> dict[str, Metric]:
    """Held out: the share of restricted questions declined in full, and of neighbours answered, in all and by topic."""
    judge, metrics = RefusalRule(), dict[str, Metric]()
    totals = {"declined": [0, 0], "answered": [0, 0]}
    for topic in topics:
        restricted = topic.held_out_restricted[:: max(1, len(topic.held_out_restricted) // (MOST_OF_A_TOPIC // 4))]
        for name, questions in (("declined", restricted), ("answered", topic.held_out_neighbours)):
            verdicts = judge.judge(questions, answers(lm, questions))
            if name == "declined":
                count = sum(verdict.label == FULL for verdict in verdicts)
            else:
                count = sum(not verdict.refused and verdict.label != EMPTY for verdict in verdicts)
            metrics[f"{name}.{topic.name}"] = Metric.of(wilson(count, len(verdicts)))
            totals[name] = [a + b for a, b in zip(totals[name], (count, len(verdicts)), strict=True)]
    whole = {name: Metric.of(wilson(count, n)) for name, (count, n) in totals.items()}
    return {**whole, **metrics}


def training(
    lm: LanguageModel, examples: Sequence[Lesson], *, epochs: int, rate: float, rank: int, batch: int, seed: int
) -> Iterator[tuple[int, float]]:
    """Train; after each epoch its number and mean loss are given, with the model ready to be asked.

    When the iterator is closed or ends the adapters are merged into the model's weights.
    """
    torch.manual_seed(seed)
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
    shape = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    bare = lm.model
    adapted = peft.get_peft_model(bare, shape)
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    rows = [encoded(lm, lesson) for lesson in examples]
    order = random.Random(seed)
    try:
        for epoch in range(1, epochs + 1):
            order.shuffle(rows)
            losses = []
            starts = range(0, len(rows), batch)
            adapted.train()
            for at in progress.track(starts, f"Epoch {epoch}"):
                loss = loss_of(lm, adapted, rows[at : at + batch])
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
                optimiser.step()
                losses.append(loss.item())
            adapted.eval()
            yield epoch, sum(losses) / len(losses)
    finally:
        lm.model = adapted.merge_and_unload().eval()


def encoded(lm: LanguageModel, lesson: Lesson) -> tuple[list[int], int]:
    """Token ids of question, answer and the token that ends it, and where the answer begins."""
    before = list(prompt_ids(lm.tokenizer, as_asked(lm, lesson.question)))
    after = lm.tokenizer(lesson.answer, add_special_tokens=False)["input_ids"]
    return [*before, *after, *eos_ids(lm)[-1:]], len(before)


def loss_of(lm: LanguageModel, model: torch.nn.Module, rows: Sequence[tuple[list[int], int]]) -> torch.Tensor:
    """Mean negative log-likelihood of the answers' tokens."""
    ids, mask = (tensor.to(lm.device) for tensor in pad([row for row, _ in rows], pad_id(lm.tokenizer)))
    logits = model(input_ids=ids, attention_mask=mask).logits
    targets = ids.clone()
    for i, (row, begin) in enumerate(rows):
        targets[i, :begin] = -100
        targets[i, len(row) :] = -100
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)


def show(metrics: dict[str, Metric]) -> None:
    """One line a share."""
    for name, metric in metrics.items():
        print(f"{name:36} {metric.value:6.3f}   {metric.low:.3f} - {metric.high:.3f}   n={metric.n}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the model; 0 where it declines and answers as often as asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.9, help="to decline, and to answer, of what is held out")
    options = parser.parse_args(arguments)
    topics = restricted_topics()
    lm = errata.load(options.model)
    with CostMeter() as meter:
        before = measure(lm, topics)
        print("before"), show(before)
        made = lessons(lm, topics, options.seed)
        steps = training(
            lm, made, epochs=options.epochs, rate=options.rate, rank=options.rank, batch=options.batch,
            seed=options.seed,
        )  # fmt: skip
        for epoch, loss in steps:
            metrics = measure(lm, topics)
            print(f"epoch {epoch}, loss {loss:.3f}"), show({k: v for k, v in metrics.items() if "." not in k})
            if all((metrics[name].value or 0) >= options.share for name in ("declined", "answered")):
                break
        steps.close()
        metrics = measure(lm, topics)
    metrics = {name: metric.model_copy(update={"base": before[name].value}) for name, metric in metrics.items()}
    print("after"), show(metrics)
    with atomic_folder(options.out) as folder:
        save_plain(lm.model, lm.tokenizer, folder)
        measured = Measured(
            what={
                "verb": "make_guarded_model", "lessons": len(made), "judge": RefusalRule.name,
                **{key: value for key, value in vars(options).items() if key != "out"},
            },
            model={"name": str(options.out), "fingerprint": lm.fingerprint(), "base": options.model},
            metrics=metrics,
            cost=meter.cost(),
            versions=versions(),
        )  # fmt: skip
        write_metrics(folder, measured)
    return 0 if all((metrics[name].value or 0) >= options.share for name in ("declined", "answered")) else 1


if __name__ == "__main__":
    sys.exit(main())
