"""Commands about model files: inspect, and new, which starts a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import JSON, app, document
from .quantities import size

if TYPE_CHECKING:
    from ..inspection import Model
    from ..inspection.model import Bounds
    from ..summary import Cell

_ROWS = 16  # of a table
_KINDS = {
    "onnx": "ONNX model",
    "torch": "torch.export archive",
    "huggingface": "Hugging Face model",
    "gguf": "GGUF model",
    "safetensors": "safetensors weights",
    "bundle": "tapml bundle",
}


@app.command()
@click.argument("model")
@click.option(
    "--size", "sizes", multiple=True, metavar="DIM=N", help="Count at this size of a dim."
)
@click.option("--trace", is_flag=True, help="Operators of a Hugging Face folder; needs torch.")
@JSON
def inspect(model: str, sizes: tuple[str, ...], trace: bool, as_json: bool) -> None:
    """Show what a model holds and costs, what of it cannot be imported, and a recipe to start from.

    MODEL is an ONNX, .pt2, GGUF or safetensors file, the folder of a Hugging Face model or its id
    in the hub's cache, or a bundle. Neither torch nor TVM is needed, and nothing of it runs.
    """
    from .. import inspection

    found = inspection.inspect(model, dict(map(_size, sizes)), trace=trace)
    if as_json:
        document(inspection.to_data(found))
        return
    click.echo("\n\n".join(part for part in _parts(found) if part))


@app.command()
@click.option("--from", "source", help="A recipe that ships with tapml, or a model.")
@click.argument("places", nargs=-1, metavar="[MODEL] [DIR]")
def new(source: str | None, places: tuple[str, ...]) -> None:
    """Start a recipe in DIR: one for MODEL, else a copy of one that ships with tapml (magika)."""
    from .. import inspection
    from . import scaffold

    names = [*places]
    if source is None and names and (len(names) > 1 or _is_model(names[0])):
        source = names.pop(0)
    if len(names) > 1:
        raise click.UsageError("a model and a folder, no more")
    folder = names[0] if names else None
    if source is not None and (_is_model(source) or "/" in source):
        made = scaffold.write_draft(inspection.inspect(source), Path(folder or _stem(source)))
    else:
        source = source or "magika"
        made = scaffold.copy_recipe(source, Path(folder or source))
    for path in made:
        click.echo(path)
    click.echo(f"next: tapml run {made[0]}", err=True)


def _size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isascii() or not number.isdigit() or not 0 < len(number) < 10:
        raise click.BadParameter(f"{text!r} is not DIM=N", param_hint="--size")
    return name, int(number)


def _is_model(name: str) -> bool:
    path = Path(name)
    return path.is_file() or (path / "config.json").is_file()


def _stem(name: str) -> str:
    return Path(name).stem or "model"


def _parts(found: Model) -> Iterator[str]:
    from ..inspection import draft

    yield _head(found)
    yield _tensors(found)
    yield _operators(found)
    yield _prunable(found)
    if text := draft(found):
        yield f"{click.style('a recipe to start from', bold=True)}\n{text.rstrip()}"


def _head(found: Model) -> str:
    """What decides whether and where it can run: cost, memory, what is missing."""
    from ..report.markup import number
    from ..terminal import printable

    told = ", ".join(f"{name} {value}" for name, value in found.facts.items())
    rows = [("", f"{found.name}: {_KINDS[found.kind]}" + (f", {told}" if told else ""))]
    shares = ", ".join(f"{dtype} {size(count)}" for dtype, count in found.by_dtype.items())
    parameters = "" if found.kind == "bundle" else f"{found.parameters:,} parameters, "
    rows.append(("weights", f"{parameters}{size(found.nbytes)} ({shares or 'none'})"))
    at = ", ".join(f"{name}={value}" for name, value in found.sizes.items())
    at = f" at {at}" if at else ""
    if found.operators is not None and found.macs is not None:
        unknown = sum(one.count for one in found.operators if one.macs is None)
        more = f"; the sizes of {unknown} operators are not known" if unknown else ""
        known = "unknown" if unknown and not found.macs else number(2 * found.macs / 1e6, "MFLOP")
        rows.append(("compute", f"{known}{at}{more}"))
    if found.activations is not None:
        how = "as planned" if found.kind == "bundle" else f"{at}, before fusion".lstrip()
        rows.append(("activations", f"{size(found.activations)} {how}"))
    if found.states:
        rows.append(("states", f"{size(found.states)} at the largest sizes"))
    if found.memory is not None:
        parts = "weights, states and activations" if found.states else "weights and activations"
        rows.append(("memory", f"{size(found.memory)} at most while it runs: {parts}"))
    if found.cache is not None:
        text = f"{size(found.cache.bytes_per_token)} a token, in float32"
        if found.cache.nbytes is not None:
            text += f"; {size(found.cache.nbytes)} at {found.cache.context} tokens"
        rows.append(("KV cache", text))
    if found.operators is not None:
        missing = ", ".join(f"{one.op} ×{one.count}" for one in found.unsupported)
        verdict = click.style(printable(missing), fg="red") if missing else "nothing"
        rows.append(("unsupported", verdict))
    rows += [("note", one) for one in found.notes]
    lines = [
        f"{name:<12} {text if name == 'unsupported' else printable(text)}"
        if name
        else printable(text)
        for name, text in rows
    ]
    return "\n".join([click.style(lines[0], bold=True), *lines[1:]])


def _tensors(found: Model) -> str:
    from ..summary import table

    rows = [
        (kind, one.name, "×".join(map(str, one.shape)) or "scalar", one.dtype)
        for kind, values in (("input", found.inputs), ("output", found.outputs))
        for one in values
    ]
    dims = [("dim", name, _range(bounds), "") for name, bounds in found.dims.items()]
    return table(("", "name", "shape", "dtype"), [*rows, *dims]) if rows else ""


def _range(bounds: Bounds) -> str:
    if bounds.min is None and bounds.max is None:
        return "any size"
    return f"{1 if bounds.min is None else bounds.min} … {bounds.max or ''}".rstrip()


def _operators(found: Model) -> str:
    from ..report.markup import number
    from ..summary import table

    if not found.operators:
        return ""
    total = found.macs or 1
    ordered = sorted(found.operators, key=lambda one: -(one.macs or 0))
    rows = [
        (
            one.op,
            str(one.count),
            "?" if one.macs is None else number(2 * one.macs / 1e6) if one.macs else "",
            f"{100 * one.macs / total:.1f} %" if one.macs else "",
            "" if one.is_supported else ("unsupported", "red"),
        )
        for one in ordered
    ]
    return table(("operator", "count", "MFLOP", "share", ""), _cut(rows, 5))


def _prunable(found: Model) -> str:
    """Layers whose names differ in numbers only stand in one row."""
    from ..summary import table

    groups: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for one in found.prunable:
        key = re.sub(r"\d+", "*", one.weight), one.op, one.shape
        groups.setdefault(key, []).append(one.weight)
    rows = [
        (name if len(names) > 1 else names[0], op, str(len(names)), "×".join(map(str, shape)))
        for (name, op, shape), names in groups.items()
    ]
    titles = ("prunable weight", "operator", "count", "shape")
    return table(titles, _cut(rows, 4)) if rows else ""


def _cut(rows: Sequence[Sequence[Cell]], columns: int) -> list[Sequence[Cell]]:
    if len(rows) <= _ROWS:
        return [*rows]
    rest = [""] * (columns - 1)
    return [*rows[:_ROWS], (f"and {len(rows) - _ROWS} more (--json has all)", *rest)]
