"""``errata edit``: change facts, look at what changed, keep the patch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options
from errata.cli.conflicts import warn
from errata.cli.edit_report import body, document
from errata.cli.edit_request import read_request
from errata.cli.output import Output


def run(
    model: options.Model,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text with {} where the subject stands.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What the fact is about.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="What shall follow the prompt from now on.")] = None,
    true: Annotated[str | None, typer.Option("--true", help="What followed it before, where known.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Edits in .jsonl, .json or .csv, instead of the four above.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="See `errata methods`; by default r-rome for one edit, memit for several."),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", help="The layer to edit, counted from 0; 'auto' tries some on a few known facts."),
    ] = None,
    settings: options.Settings = None,
    corpus: options.CorpusSpec = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the patch; by default one under patches/.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a patch that stands in --out.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Folder for unfinished work: the same command goes on after an interruption."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write the answers before and after as a page.")
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Change one fact, or all those of a file, and show the answers before and after.

    Exits with 1 where an edit did not take (the patch is kept all the same).
    """
    say = Output(as_json=as_json, quiet=quiet)
    seconds: dict[str, float] = {}
    with say.working():
        request = read_request(
            prompt=prompt, subject=subject, target=target, true=true, file=file, method=method, layer=layer,
            settings=settings, corpus=corpus, out=out, replace=replace, html=html, resume=resume,
        )  # fmt: skip
        start = time.perf_counter()
        lm = options.load_model(say, model, device, dtype)
        request.check_targets(lm)
        seconds["load"] = time.perf_counter() - start

        from errata.bench.preview import before_after
        from errata.methods import edit

        conflicts = request.conflicts(lm)
        warn(say, conflicts)
        start = time.perf_counter()
        patch = edit(lm, request.edits, method=request.method, config=request.config, resume=resume)
        seconds["edit"] = time.perf_counter() - start
        # Kept before it is looked at: an interruption from here on costs nobody the work.
        patch.save_pretrained(request.folder, replace=replace)
        start = time.perf_counter()
        preview = before_after(lm, patch)
        seconds["check"] = time.perf_counter() - start
        if html is not None:
            from errata.web.page import write_before_after

            write_before_after(
                html, preview=preview, patch=patch, model_name=lm.name, quantised_origin=lm.quantised_origin,
                folder=request.folder,
            )  # fmt: skip
    say.report(
        document(patch, preview, conflicts, folder=request.folder, html=html, seconds=seconds),
        str(request.folder),
        *body(patch, preview, model=model, folder=request.folder, html=html, seconds=seconds),
    )
    if not preview.took:
        raise typer.Exit(1)
