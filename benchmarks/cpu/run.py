"""Whole models against onnxruntime, one and two threads, default schedules and tuned.

    python benchmarks/cpu/run.py [MODEL ...] [--columns untuned,tuned] [--again] [--keep ROOMS]

Each model is built by `tapml run` from its recipe in this folder and timed beside onnxruntime, all
optimisations on: each in a process of its own with the same threads, blocks of calls in turn while
the other process is stopped. Rows go to benchmarks/results/cpu.json as they are made; a row stays
until a file of the rooms that decide it (tensorir, metaschedule, codegen) changes, or the one that
shares loops out. Where such a change reaches no kernel of a model, `--keep` says so: what an
untuned row timed is built again, and if it is the same bundle, byte for byte, the row stays. A
search is no build: tuned rows are always measured again, each from an empty tuning database.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import peers
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

import tapml
from tapml import host
from tapml_stages import latency
from tapml_stages.platforms.runner import Runner

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
ROOMS = ("tensorir", "metaschedule", "codegen")
REPEATS = 40
MOST_WRONG = 1e-3  # of an output's largest magnitude; float32 sums in other orders are below 1e-4
POSITION = 100  # tokens in the cache of a decode step
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Size:
    """Inputs of ours and of the peer at one size.

    exact:  the recipe has a bucket for it
    before: inputs of the call that ours goes on from; the peer reads the same tokens first
    """

    label: str
    ours: Arrays
    theirs: Arrays
    exact: bool = True
    before: Arrays | None = None


@dataclass(frozen=True)
class Model:
    """A recipe, what writes the peer's file, and the sizes that are timed."""

    recipe: Path
    peer: Callable[[Path], None]
    sizes: Callable[[], Sequence[Size]]


def same(label: str, exact: bool = True, **arrays: np.ndarray) -> Size:
    return Size(label, arrays, arrays, exact)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def minilm() -> Sequence[Size]:
    def size(batch: int, tokens: int, exact: bool) -> Size:
        ids = np.random.default_rng(0).integers(1000, 30000, (batch, tokens))
        return same(f"{batch} x {tokens}", exact, input_ids=ids, attention_mask=np.ones_like(ids))

    return [size(3, 32, True), size(1, 128, True), size(5, 77, False)]


def images(name: str, height: int, width: int, *batches: int) -> Callable[[], Sequence[Size]]:
    return lambda: [
        same(str(batch), batch == 1, **{name: normal(batch, 3, height, width)}) for batch in batches
    ]


def magika() -> Sequence[Size]:
    def size(batch: int) -> Size:
        values = np.random.default_rng(0).integers(0, 256, (batch, 2048), dtype=np.int32)
        return same(str(batch), batch in (1, 16), bytes=values)

    return [size(1), size(16), size(5)]


def smollm2() -> Sequence[Size]:
    def tokens(new: int, old: int) -> Arrays:
        ids = np.random.default_rng(new).integers(0, 49000, (1, new))
        return {"input_ids": ids, "position": np.array([old]), "last": np.array([new - 1])}

    def theirs(ours: Arrays) -> Arrays:
        past = np.zeros((1, 3, 0, 64), np.float32)  # it has read nothing yet
        return {"input_ids": ours["input_ids"], **{f"past.{k}": past for k in range(60)}}

    prompt, one = tokens(64, 0), tokens(1, POSITION)
    before = tokens(POSITION, 0)
    return [
        Size("prefill 64", prompt, theirs(prompt)),
        Size("decode", one, theirs(one), before=before),
    ]


MODELS = {
    "minilm": Model(HERE / "minilm.yaml", peers.minilm, minilm),
    "efficientnet_lite0": Model(
        HERE / "efficientnet_lite0.yaml",
        lambda path: peers.of_module(ROOT / "recipes/efficientnet_lite0.py", "classifier", path),
        images("image", 224, 224, 1, 3),
    ),
    "ocr_detect": Model(
        HERE / "ocr_detect.yaml",
        lambda path: peers.rapidocr("ch_PP-OCRv4_det_infer.onnx", path),
        images("x", 192, 384, 1, 3),
    ),
    "ocr_line": Model(
        HERE / "ocr_line.yaml",
        lambda path: peers.rapidocr("ch_PP-OCRv4_rec_infer.onnx", path),
        images("x", 48, 320, 1, 3),
    ),
    "centerface": Model(HERE / "centerface.yaml", peers.centerface, images("input.1", 512, 512, 1)),
    "magika": Model(ROOT / "recipes" / "magika.yaml", peers.magika, magika),
    "smollm2": Model(HERE / "smollm2.yaml", peers.smollm2, smollm2),
    "smollm2, its 4-bit blocks": Model(ROOT / "recipes/smollm2.yaml", peers.smollm2, smollm2),
    "vit_tiny": Model(
        HERE / "vit_tiny.yaml",
        lambda path: peers.of_module(HERE / "vit_tiny.py", "vit", path),
        images("image", 224, 224, 1, 3),
    ),
}
COLUMNS: Mapping[str, Sequence[str]] = {
    "untuned": ("tuning.trials=0",),
    "tuned": ("tuning.trials=100000",),
    "tuned again": ("tuning.trials=100000", "tuning.seed=1"),
    "untuned with libraries": ("tuning.trials=0", "tuning.library=true"),
    "tuned with libraries": ("tuning.trials=100000", "tuning.library=true"),
}


def build(model: Model, threads: int, overrides: Sequence[str], store: Path) -> tuple[Path, Any]:
    """The bundle of a model, and the run that made it. What was tuned before is forgotten."""
    shutil.rmtree(store / "tuning", ignore_errors=True)
    result = tapml.run(
        model.recipe,
        set=(*overrides, f"target.device.threads={threads}"),
        to=["codegen"],
        store=store,
        track="off",
    )
    assert result.bundle is not None
    return result.bundle, result


def rows(
    name: str,
    column: str,
    threads: int,
    seconds: float,
    known: Sequence[dict[str, Any]],
    store: Path,
) -> Iterator[dict[str, Any]]:
    """One row per size of a model that is not known yet. `seconds`: of a search."""
    model = MODELS[name]
    where = {"model": name, "column": column, "threads": threads, "rooms": rooms_digest()}
    sizes = [size for size in model.sizes() if size.exact or not column.startswith("tuned")]
    have = {row["size"] for row in known if where.items() <= row.items()}
    if not (missing := [size for size in sizes if size.label not in have]):
        return
    folder = store / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    original = folder / f"{name.partition(',')[0]}.onnx"
    if not original.exists():
        model.peer(original)
    start = time.monotonic()
    limit = (f"tuning.max_seconds={seconds:g}",) if column.startswith("tuned") else ()
    bundle, result = build(model, threads, (*COLUMNS[column], *limit), store)
    built_s = time.monotonic() - start
    for size in missing:
        size = _with_past(original, size, threads)
        fixed = _fixed(original, size.theirs)
        with Runner("bundle", bundle, threads) as ours, Runner("onnx", fixed, threads) as theirs:
            if size.before is not None:
                ours.outputs(size.before)
            found = ours.outputs(size.ours, goes_on=size.before is not None)
            error = _error(found, theirs.outputs(size.theirs))
            theirs.pause()
            ours.pause()
            timed = _timed(ours, theirs, size)
        yield {
            **where,
            "size": size.label,
            "exact": size.exact,
            "error": error,
            **timed,
            "build_s": round(built_s, 1),
            "search": _search(result) if limit else "",
            "kernels": _kernels(result),
            "stages_s": {step.name: round(step.seconds, 1) for step in result.steps},
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _search(result: tapml.RunResult) -> str:
    """How the search went, in the stage's own words."""
    (step,) = [step for step in result.steps if step.name == "metaschedule"]
    return "; ".join(step.report.notes[:2])


def _with_past(model: Path, size: Size, threads: int) -> Size:
    """The size with what the peer keeps of the tokens before, which it reads now."""
    if size.before is None:
        return size
    with Runner("onnx", model, threads) as peer:
        read = peer.outputs({**size.theirs, "input_ids": size.before["input_ids"]})
    past = {f"past.{name.removeprefix('present.')}": v for name, v in read.items() if "." in name}
    return replace(size, theirs={**size.theirs, **past})


def _kernels(result: tapml.RunResult) -> int:
    """How many distinct kernels were built."""
    (step,) = [step for step in result.steps if step.name == "tensorir"]
    return int(step.report.metrics["program/kernels"])


def _timed(ours: Runner, theirs: Runner, size: Size) -> dict[str, Any]:
    times: dict[str, list[float]] = {"ours": [], "onnxruntime": []}
    runners = {"ours": (ours, size.ours), "onnxruntime": (theirs, size.theirs)}
    for runner, arrays in runners.values():
        runner.resume()
        runner.prepare(arrays, before=size.before if runner is ours else None)
        runner.pause()
    blocks = []
    for _ in range(latency.BLOCKS):
        block = {}
        for name, (runner, _arrays) in runners.items():
            runner.resume()
            taken = runner.time(REPEATS // latency.BLOCKS + 1)[1:]
            runner.pause()
            times[name] += taken
            block[name] = statistics.median(taken)
        blocks.append(block["ours"] / block["onnxruntime"])
    for runner, _arrays in runners.values():
        runner.resume()
    spreads = {name: latency.spread(taken) for name, taken in times.items()}
    return {
        "ratio": spreads["ours"].p50 / spreads["onnxruntime"].p50,
        "ratio_of_blocks": statistics.median(blocks),
        "ratio_of_best": min(times["ours"]) / min(times["onnxruntime"]),
        **{
            f"{name}_ms": [round(one.p50, 4), round(one.low, 4), round(one.high, 4)]
            for name, one in spreads.items()
        },
        "repeats": spreads["ours"].n,
    }


def _error(ours: Arrays, theirs: Arrays) -> float:
    """The largest relative error over outputs that both have, in the order of both."""
    worst = 0.0
    for one, other in zip(ours.values(), theirs.values(), strict=False):
        one, other = one.reshape(-1), other.reshape(-1)
        scale = float(np.max(np.abs(other))) or 1.0
        error = float(np.max(np.abs(one[-other.size :] - other))) / scale
        if not error <= MOST_WRONG:  # NaN too
            raise SystemExit(f"outputs differ by {error:.1e}: nothing is timed")
        worst = max(worst, error)
    return worst


def _fixed(path: Path, arrays: Arrays) -> Path:
    """The peer's file with the sizes of these inputs written into it: its best mode."""
    label = hashlib.sha256(repr({n: a.shape for n, a in arrays.items()}).encode()).hexdigest()[:8]
    fixed = path.with_name(f"{path.stem}-{label}.onnx")
    if fixed.exists():
        return fixed
    model = onnx.load(str(path))
    sizes: dict[str, int] = {}
    for value in model.graph.input:
        if value.name in arrays:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, arrays[value.name].shape, strict=True):
                if dim.dim_param:
                    sizes[dim.dim_param] = size
                elif not dim.dim_value or dim.dim_value < 0:
                    dim.dim_value = size
    for name, size in sizes.items():
        make_dim_param_fixed(model.graph, name, size)
    onnx.save(model, str(fixed), save_as_external_data=True, location=f"{fixed.name}.data")
    return fixed


def rooms_digest() -> str:
    """Of the files that decide how fast a kernel is."""
    digest = hashlib.sha256()
    files = [file for room in ROOMS for file in sorted((ROOT / "stages" / room).rglob("*.py"))]
    for file in [*files, ROOT / "stages" / "work_stealing.py"]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def own_store(rooms: str) -> Path:
    """Where results of these rooms are kept: of others the engine would know no better."""
    return Path(tempfile.gettempdir()) / f"tapml-bench-cpu-{rooms}"


def builds_the_same(name: str, column: str, threads: int, rooms: str) -> bool:
    """Whether the bundle of an untuned column is, byte for byte, the one that older rooms built.
    TVM writes some shape functions in the order of addresses: a difference by chance is gone when
    these rooms' store is removed and it is tried again.

    Raises: click.ClickException for a tuned column, and when the older rooms' store is gone.
    """
    if column.startswith("tuned"):
        raise click.ClickException(f"{column!r} is a search: it has to be measured again")
    if not (before := own_store(rooms)).exists():
        raise click.ClickException(f"{before} is gone: the rows have to be measured again")
    found: list[dict[str, str]] = []
    for store in (before, own_store(rooms_digest())):
        bundle, _ = build(MODELS[name], threads, COLUMNS[column], store)
        files = sorted(path for path in bundle.rglob("*") if path.is_file())
        found.append(
            {
                str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in files
            }
        )
    return found[0] == found[1]


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty=+dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def write(table: Sequence[dict[str, Any]]) -> None:
    text = json.dumps({"host": host.fingerprint(), "rows": table}, indent=1)
    RESULTS.write_text(text + "\n")


def show(table: Sequence[dict[str, Any]]) -> None:
    form = "{:<20} {:<20} {:>2} {:<11} {:>9} {:>9} {:>6} {:>6} {:>8}"
    print(
        form.format("model", "column", "T", "size", "ours ms", "ort ms", "ratio", "best", "error")
    )
    for row in table:
        print(
            form.format(
                row["model"],
                row["column"],
                row["threads"],
                row["size"] + ("" if row["exact"] else " *"),
                f"{row['ours_ms'][0]:.3f}",
                f"{row['onnxruntime_ms'][0]:.3f}",
                f"{row['ratio']:.2f}",
                f"{row['ratio_of_best']:.2f}",
                f"{row['error']:.0e}",
            )
        )
    groups: dict[tuple[str, int, bool], list[float]] = {}
    for row in table:
        groups.setdefault((row["column"], row["threads"], row["exact"]), []).append(row["ratio"])
    for (column, threads, exact), ratios in groups.items():
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        which = "" if exact else ", sizes outside of the buckets"
        print(
            f"{column}, {threads} threads{which}: geomean {mean:.3f} of {len(ratios)}, "
            f"worst {max(ratios):.2f}"
        )


@click.command()
@click.argument("models", nargs=-1)
@click.option("--columns", default="untuned,tuned")
@click.option("--threads", default="2,1")
@click.option("--seconds", default=75.0, help="of a search, for the tuned columns")
@click.option("--again", is_flag=True, help="measure rows that are there already")
@click.option(
    "--keep", metavar="ROOMS", help="keep untuned rows of these older rooms where bundles are equal"
)
def main(
    models: tuple[str, ...],
    columns: str,
    threads: str,
    seconds: float,
    again: bool,
    keep: str | None,
) -> None:
    """Times MODELS (default: all), then prints the table."""
    store = own_store(rooms_digest())
    names = models or tuple(MODELS)
    table = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    if keep is not None:
        for column, count, name in product(columns.split(","), map(int, threads.split(",")), names):
            same = builds_the_same(name, column, count, keep)
            told = "the same bundle" if same else "another bundle"
            print(f"{name}, {column}, {count} threads: {told}", flush=True)
            of = {"model": name, "column": column, "threads": count, "rooms": keep}
            for row in table if same else ():
                if of.items() <= row.items():
                    row["rooms"] = rooms_digest()
        write(table)
        return
    for column in columns.split(","):
        for count in map(int, threads.split(",")):
            for name in names:
                for row in rows(name, column, count, seconds, [] if again else table, store):
                    key = ("model", "column", "threads", "size")
                    table = [r for r in table if any(r[k] != row[k] for k in key)] + [row]
                    write(table)
                    show([row])
    show([row for row in table if row["model"] in names])


if __name__ == "__main__":
    main()
