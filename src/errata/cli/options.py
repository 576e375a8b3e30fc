"""Flags that several verbs share, and the step from their text to values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.output import Output
from errata.errors import ConfigError

if TYPE_CHECKING:
    from errata.lm import LanguageModel
    from errata.methods import Registered

Model = Annotated[
    str, typer.Option("--model", "-m", help="smollm2-135m (the embedded one), a hub id, a folder, or a .gguf file.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...; by default a GPU where there is one.")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; by default the checkpoint's own.")
]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables: only the essential line.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="An option of the method, such as steps=30 or layers=[3,4]; repeatable."
    ),
]
CorpusSpec = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        help="Ordinary text for the second moments: self (the default), a path, hub:<dataset>, or identity for none.",
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="A new folder.")]


def load_model(out: Output, name: str, device: str | None = None, dtype: str | None = None) -> LanguageModel:
    """``errata.load``, with a word on the terminal while it takes its seconds."""
    import errata

    with out.step(f"Loading {name}"):
        return errata.load(name, device=device, dtype=dtype)


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """``["steps=30", "layers=[2,3]", "corpus=self"]`` as a dictionary: a value is JSON where it parses, else text.

    Raises:
        ConfigError: an entry without ``=``, without a key, or a key given twice.
    """
    parsed: dict[str, Any] = {}
    for setting in settings or ():
        key, mark, text = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not mark or not key:
            raise ConfigError(f"--set {setting!r} is not KEY=VALUE: write for instance --set steps=30.")
        if key in parsed:
            raise ConfigError(f"--set gives {key!r} twice: keep one of them.")
        parsed[key] = _value(text.strip())
    return parsed


AUTO = "auto"  # for a layer found by trying


def method_options(
    method: Registered[Any], settings: Sequence[str] | None, *, corpus: str | None = None, layer: str | None = None
) -> dict[str, Any]:
    """The options of a method from all the flags that set them, checked before any model is loaded.

    Raises:
        ConfigError: an unknown option, a value out of range, an option given by two flags, or no such corpus.
    """
    options = all_settings(settings, corpus=corpus)
    if layer is not None:
        fields = method.Config.model_fields
        if layer != AUTO and not layer.isdecimal():
            raise ConfigError(f"--layer is a number counted from 0, or 'auto', and not {layer!r}.")
        one: int | str = layer if layer == AUTO else int(layer)
        if "layer" in fields:
            _put(options, "layer", one, "--layer")
        elif "layers" in fields:
            _put(options, "layers", one if one == AUTO else [one], "--layer")
        else:
            raise ConfigError(f"{method.info.name} edits no single layer: leave --layer out.")
    method.configure(options)
    return options


def all_settings(settings: Sequence[str] | None, *, corpus: str | None = None) -> dict[str, Any]:
    """The options of ``--set`` and ``--corpus`` together.

    Raises:
        ConfigError: an option given by both flags, or no such corpus.
    """
    options = parse_settings(settings)
    if corpus is not None:
        _put(options, "corpus", corpus, "--corpus")
    _check_corpus(options.get("corpus"))
    return options


def _put(options: dict[str, Any], key: str, value: Any, flag: str) -> None:
    if key in options:
        raise ConfigError(f"{flag} and --set both give {key!r}: keep one of them.")
    options[key] = value


def _check_corpus(spec: Any) -> None:
    # Opening a corpus reads no more than its beginning, and tells a wrong path before a model is loaded for it.
    from errata.methods.locate_then_edit.config import IDENTITY
    from errata.statistics import open_corpus

    if isinstance(spec, str) and spec != IDENTITY:
        open_corpus(spec)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
