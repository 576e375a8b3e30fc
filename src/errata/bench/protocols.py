"""The three ways to measure an editor, under the names the field uses.

single       each edit alone, on the unedited model, taken back before the next
batch        all edits in one call
sequential   one batch after another on the same model, none taken back; scored after the last

Most confusion in public trackers comes from not saying which of them a number belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.errors import ErrataError, NumericalError, RequestError
from errata.evaluation.editing import Measures, score_cases
from errata.evaluation.schema import Metric, RecordWriter
from errata.evaluation.summary import perplexity_metrics
from errata.lm.language_model import LanguageModel
from errata.lm.scoring import perplexity, perplexity_of, window_nlls, window_nlls_by_tag
from errata.methods import Method, MethodConfig
from errata.patch import Patch
from errata.patch.rowwise import applied_by_row, first_block, groups
from errata.progress import task
from errata.records import EditCase

CHUNK = 24  # cases solved and scored together: enough to fill a batch, few enough to lose little when killed
WORK = "work"  # what a method keeps of unfinished work, below the run's folder
SINGLE_TOKENS = 512  # of held-out text after every single edit; a batch is measured on all of it


@dataclass(frozen=True)
class Editor:
    """A method, its options, and how many edits a step of a sequence makes."""

    method: Method[Any]
    config: MethodConfig
    batch_size: int = 1

    def solve(self, lm: LanguageModel, cases: Sequence[EditCase], folder: Path | None = None) -> Patch:
        """One patch for all of the cases, in which an edit that several of them ask for stands once.

        A method that can go on from unfinished work keeps it in the folder.
        """
        edits = dict.fromkeys(edit for case in cases for edit in case.edits)
        return self.method.resume(lm, list(edits), self.config, folder=folder)

    def finish(self, lm: LanguageModel, patch: Patch) -> Patch:
        """The method's last word on a run that consists of this patch."""
        return self.method.finish(lm, [patch], self.config) or patch


@dataclass(frozen=True)
class Run:
    """What is measured, on what, and where it is kept."""

    lm: LanguageModel
    cases: Sequence[EditCase]
    records: RecordWriter
    folder: Path
    text: str
    generation: bool
    fluency_cases: int
    seed: int

    def todo(self, phase: str) -> list[EditCase]:
        """The cases whose line of this phase is not written yet."""
        return [case for case in self.cases if (case.case_id, phase) not in self.records.done]

    def score(
        self,
        cases: Sequence[EditCase],
        phase: str,
        notes: Callable[[EditCase], dict[str, Any]] | None = None,
        *,
        tags: Mapping[str, int] | None = None,
    ) -> None:
        """Score the model as it is now on some cases and write their lines; ``tags`` are told to hooks, by case id."""
        sampled = {case.case_id for case in self.cases[: self.fluency_cases]} if self.generation else set()
        for fluency in (True, False):
            chosen = [case for case in cases if (case.case_id in sampled) == fluency]
            if not chosen:
                continue
            measures = Measures(generation=self.generation, fluency=fluency)
            own = [tags[case.case_id] for case in chosen] if tags is not None else None
            for case, said in zip(
                chosen, score_cases(self.lm, chosen, measures, seed=self.seed, tags=own), strict=True
            ):
                self.write(case, phase, said, **(notes(case) if notes else {}))

    def write(self, case: EditCase, phase: str, said: dict[str, Any], **notes: Any) -> None:
        """One line of ``records.jsonl``."""
        edit = case.edit.to_dict() if phase == "base" else {}
        if case.also and phase == "base":
            edit["also"] = [other.to_dict() for other in case.also]
        self.records.write({"case_id": case.case_id, "phase": phase, **edit, "said": said, **notes})

    def base(self) -> None:
        """Score the unedited model on every case, unless an earlier run did."""
        todo = self.todo("base")
        with task("Scoring the unedited model", total=len(todo)) as bar:
            for chunk in chunks(todo, CHUNK):
                self.score(chunk, "base")
                bar.advance(len(chunk))


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items, ``size`` at a time."""
    for at in range(0, len(items), size):
        yield items[at : at + size]


def unedited(run: Run) -> dict[str, Metric]:
    """The model as it is."""
    run.base()
    sums = window_nlls(run.lm, run.text)
    return {"perplexity": perplexity_metrics(sums, sums, seed=run.seed)["perplexity"]}


def single(run: Run, editor: Editor) -> dict[str, Metric]:
    """Each edit alone; edits of a chunk are solved together where the method can share work."""
    run.base()
    todo = run.todo("after")
    before = perplexity(run.lm, run.text, tokens=SINGLE_TOKENS)
    with task(f"Editing and scoring, one at a time ({editor.method.info.name})", total=len(todo)) as bar:
        for chunk in chunks(todo, CHUNK):
            edited: list[_Single] = []
            for case, solved, seconds in _solved(run.lm, editor, chunk):
                notes: dict[str, Any] = {"edit_cpu_seconds": seconds, "base_perplexity": before}
                if isinstance(solved, ErrataError):
                    said = run.records.done[case.case_id, "base"]["said"]
                    run.write(case, "after", said, **notes, error=str(solved), perplexity=before)
                    bar.advance()
                else:
                    norm = solved.describe()["largest_relative_norm"]
                    notes |= {"method_notes": solved.card.notes, "relative_norm": norm}
                    edited.append(_Single(case, solved, notes))
            for group in groups(run.lm, [one.patch for one in edited]):
                _score_singles(run, [edited[i] for i in group])
                bar.advance(len(group))
    return {}


@dataclass(frozen=True)
class _Single:
    """A case, the patch that makes its edit alone, and what its record notes."""

    case: EditCase
    patch: Patch
    notes: dict[str, Any]


def _score_singles(run: Run, singles: Sequence[_Single]) -> None:
    """Score each case under its own patch; several at once, every row of a batch passing through its case's patch."""
    patches, cases = [one.patch for one in singles], [one.case for one in singles]
    notes = {one.case.case_id: one.notes for one in singles}
    if len(singles) == 1:
        with patches[0].applied(run.lm, verify=False):
            after = perplexity(run.lm, run.text, tokens=SINGLE_TOKENS)
            run.score(cases, "after", lambda case: {**notes[case.case_id], "perplexity": after})
        return
    with applied_by_row(run.lm, patches):
        tags = range(len(singles))
        sums = window_nlls_by_tag(run.lm, run.text, tags, tokens=SINGLE_TOKENS, start=first_block(run.lm, patches))
        tag_of = {case.case_id: tag for tag, case in enumerate(cases)}
        run.score(
            cases,
            "after",
            lambda case: {**notes[case.case_id], "perplexity": perplexity_of(sums[tag_of[case.case_id]])},
            tags=tag_of,
        )


def _solved(
    lm: LanguageModel, editor: Editor, cases: Sequence[EditCase]
) -> Iterator[tuple[EditCase, Patch | ErrataError, float]]:
    """Each case with its patch, or with the reason why there is none."""
    started = time.process_time()
    together = [case for case in cases if not case.also]
    alone = [case for case in cases if case.also]  # edits that hold together are one patch of their own
    try:
        patches: list[Patch | ErrataError] = list(
            editor.method.solve_each(lm, [case.edit for case in together], editor.config) if together else []
        )
        patches = [editor.finish(lm, patch) if isinstance(patch, Patch) else patch for patch in patches]
        share = (time.process_time() - started) / max(1, len(together))
        yield from ((case, patch, share) for case, patch in zip(together, patches, strict=True))
    except (RequestError, NumericalError):
        alone = list(cases)  # one bad request must not cost the others theirs
    for case in alone:
        started = time.process_time()
        try:
            solved: Patch | ErrataError = editor.finish(lm, editor.solve(lm, [case]))
        except (RequestError, NumericalError) as error:
            solved = error
        yield case, solved, time.process_time() - started


def batch(run: Run, editor: Editor) -> dict[str, Metric]:
    """All edits in one call; the patch is kept in the run's folder, so a resumed run does not solve again."""
    run.base()
    before = window_nlls(run.lm, run.text)
    place, seconds = run.folder / "patch", None
    if place.is_dir():
        patch = Patch.from_pretrained(place)
    else:
        started = time.process_time()
        patch = editor.finish(run.lm, editor.solve(run.lm, run.cases, run.folder / WORK))
        seconds = (time.process_time() - started) / len(run.cases)
        patch.save_pretrained(place)
    with patch.applied(run.lm):
        return _score_all(run, before, seconds)


def sequential(run: Run, editor: Editor) -> dict[str, Metric]:
    """Batch after batch on the same model; each step's patch is kept, so a resumed run starts where it stopped."""
    run.base()
    before = window_nlls(run.lm, run.text)
    steps = list(chunks(run.cases, editor.batch_size))
    seconds, solved = 0.0, 0
    patches: list[Patch] = []
    with ExitStack() as stack, task(f"Editing in sequence ({editor.method.info.name})", total=len(steps)) as bar:
        for number, cases in enumerate(steps):
            place = run.folder / "patches" / f"{number:05d}"
            if place.is_dir():
                patch = Patch.from_pretrained(place)
                stack.enter_context(patch.applied(run.lm))
            else:
                started = time.process_time()
                patch = editor.solve(run.lm, cases, run.folder / WORK)
                seconds, solved = seconds + time.process_time() - started, solved + len(cases)
                patch.save_pretrained(place)
                stack.enter_context(patch.applied(run.lm, verify=False))
            patches.append(patch)
            bar.advance()
        finished = editor.method.finish(run.lm, patches, editor.config)
        if finished is not None:
            stack.close()  # its steps come off: it stands in for all of them
            stack.enter_context(finished.applied(run.lm))
        return _score_all(run, before, seconds / solved if solved else None)


def _score_all(run: Run, before: list[tuple[float, int]], seconds: float | None) -> dict[str, Metric]:
    """Score every case on the model as it is now, and the held-out text."""
    todo = run.todo("after")
    with task("Scoring the edited model", total=len(todo)) as bar:
        for chunk in chunks(todo, CHUNK):
            run.score(chunk, "after", lambda _: {"edit_cpu_seconds": seconds})
            bar.advance(len(chunk))
    return perplexity_metrics(before, window_nlls(run.lm, run.text), seed=run.seed)
