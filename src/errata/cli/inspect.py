"""``errata inspect``: the detected map of a model, and where the methods would edit it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from errata.cli import options
from errata.cli.output import Output, facts, table

if TYPE_CHECKING:
    from errata.lm import BlockMap, LanguageModel


def run(
    model: options.Model,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show where a model's blocks, MLPs, attention, norms and head are, and which layers can be edited."""
    say = Output(as_json=as_json, quiet=quiet)
    with say.working():
        lm = options.load_model(say, model, device, dtype)
        layers = default_layers(lm)
    editable = sum(block.refusal is None for block in lm.architecture.blocks)
    document = {
        "model": lm.name,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "quantised_origin": lm.quantised_origin,
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "num_layers": lm.num_layers,
        "editable_layers": editable,
        "default_layers": layers,
        "architecture": lm.architecture.to_dict(),
    }
    say.report(document, f"{lm.name}: {editable} of {lm.num_layers} layers can be edited", *_body(lm, document))


def default_layers(lm: LanguageModel) -> dict[str, list[int] | str]:
    """For each method its default layers on this model, or the sentence that says why there are none."""
    from errata.errors import ErrataError
    from errata.methods import get_registered, method_names

    found: dict[str, list[int] | str] = {}
    for name in method_names():
        method = get_registered(name)
        try:
            if layers := method.layers(lm, method.configure()):
                found[name] = layers
        except ErrataError as error:
            found[name] = str(error)
    return found


def _body(lm: LanguageModel, document: dict[str, Any]) -> list[RenderableType]:
    map_ = lm.architecture
    about = [
        ("model", lm.name + (f" (weights expanded from {lm.quantised_origin})" if lm.quantised_origin else "")),
        ("parameters", f"{document['parameters']:,}, {document['dtype']}, on {document['device']}"),
        ("map", map_.source),
        ("embedding", map_.embedding),
        ("final norm", map_.final_norm or "none"),
        ("head", map_.head + (" (tied to the embedding)" if map_.tied else "")),
        ("hidden size", str(map_.hidden_size)),
        ("vocabulary", str(map_.vocabulary)),
        ("attention and MLP", "parallel" if map_.parallel else "one after the other"),
    ]
    blocks = table("layers", "part", "where", title=f"{lm.num_layers} blocks")
    for first, last in _runs(map_.blocks):
        block = map_.blocks[first]
        label = str(first) if first == last else f"{first} to {last}"
        for part, where in _parts(block):
            blocks.add_row(label, part, where)
            label = ""
        blocks.add_section()
    defaults = table("method", "default layers", title="Where the methods edit")
    for name, layers in document["default_layers"].items():
        defaults.add_row(name, layers if isinstance(layers, str) else ", ".join(map(str, layers)))
    return [facts(about), "", blocks, defaults]


def _parts(block: BlockMap) -> list[tuple[str, str]]:
    def inside(path: str | None) -> str:
        return "(in the block itself)" if path is None else path.removeprefix(f"{block.path}.")

    stored = "(keys, values), as in Conv1D" if block.transposed else "(values, keys)"
    return [
        ("block", f"{block.path.rpartition('.')[0]}.N"),
        ("MLP", inside(block.mlp)),
        ("out-projection", f"{inside(block.out_projection)}, {block.key_width} keys wide, stored as {stored}"),
        ("attention", inside(block.attention)),
        ("attention output", inside(block.attention_output)),
        ("norms", ", ".join(inside(norm) for norm in block.norms) or "none"),
        ("MLP output", "is added to the stream as it is" if block.additive else "passes a norm before it is added"),
        ("editable", "yes" if block.refusal is None else f"no: {block.refusal}"),
    ]


def _runs(blocks: tuple[BlockMap, ...]) -> list[tuple[int, int]]:
    """Spans of neighbouring blocks that are alike but for their number."""
    runs: list[tuple[int, int]] = []
    for index, block in enumerate(blocks):
        if runs and _parts(blocks[runs[-1][0]]) == _parts(block):
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs
