"""Products with weights kept as small integers, beside float32: one row, and prompts.

    python benchmarks/weight_only.py [--rows 1 16 64] [--threads 1] [--rounds 15] [--check]
        [--no-docs] [--bundles KEPT FLOATS]

The shapes are SmolLM2's. A model reads every weight once a step, so a kernel cycles through copies
of its weight that together are larger than the caches (equally many for each storage). Rounds of
all storages take turns, so what else the machine does hits all; a figure is the median of rounds.
Every kernel is compared with float64 first. `--check` demands twice the speed of float32 at one
row, and its speed (within a fifth) at more. `--bundles` times two bundles of one language model
instead (`tapml run smollm2`, and with `--set model.blocks=dequantize`), a token and a prompt of 64.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import decode_speed  # noqa: E402  # benchmarks/ is no package
import page  # noqa: E402
from rules.kernels import build, dense, lower_typed  # noqa: E402
from rules.test_weight_only import Weight, multiply  # noqa: E402

from tapml import bundle as bundles  # noqa: E402
from tapml.target import TargetSection, resolve  # noqa: E402
from tapml_stages.compat import tvm  # noqa: E402
from tapml_stages.quantization import Scheme  # noqa: E402
from tapml_stages.tensorir.schedule import schedule  # noqa: E402
from tapml_stages.tensorir.te_ops import PANEL  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "weight_only.json"
SHAPES = ((576, 1536), (1536, 576), (576, 576), (576, 192), (576, 49152))  # K, N
SCHEMES = {
    "Q8_0": Scheme(8, 32, 1),
    "Q4_0": Scheme(4, 32, 1),
    "Q4_1": Scheme(4, 32, 1, minima=True),
}
BYTES = 128 << 20  # of float32 that a round reads at least
HEAD = "".join(["| M x K x N | float32 µs | GB/s |", *(f" {one} µs | speed |" for one in SCHEMES)])
RULE = "|" + " --- |" * (3 + 2 * len(SCHEMES))


@dataclass(frozen=True)
class Row:
    """A product, and microseconds of a call by how its weight is stored."""

    shape: tuple[int, int, int]
    us: dict[str, float]
    bytes: dict[str, int]

    def speed(self, storage: str) -> float:
        return self.us["float32"] / self.us[storage]

    def text(self) -> str:
        base = self.us["float32"]
        cells = [" x ".join(map(str, self.shape)), f"{base:.1f}"]
        cells.append(f"{self.bytes['float32'] / base / 1e3:.1f}")
        for name in SCHEMES:
            cells += [f"{self.us[name]:.1f}", f"{self.speed(name):.2f}x"]
        return "| " + " | ".join(cells) + " |"


def measure(rows: int, depth: int, columns: int, target: Any, rounds: int) -> Row:
    x = np.random.default_rng(0).standard_normal((rows, depth)).astype(np.float32)
    calls: dict[str, list[Callable[[], Any]]] = {}
    sizes: dict[str, int] = {}
    copies = max(2, BYTES // (4 * depth * columns))
    for name, how in {"float32": None, **SCHEMES}.items():
        weight = Weight(columns, depth, how or SCHEMES["Q8_0"], "float16", 0)
        arguments = weight.arguments
        if how is None:
            arguments = [_panels(weight.values)]
            types = [(x.shape, "float32"), (arguments[0].shape, "float32")]
            func = lower_typed(lambda builder, a, w: dense(builder, a, w, columns), *types)
        else:
            func = multiply(how, columns, x.shape, weight)
        kernel = build(schedule(func, target)[0], target)
        sizes[name] = sum(one.nbytes for one in arguments)
        out = tvm.runtime.tensor(np.full((rows, columns), np.nan, np.float32))
        given = tvm.runtime.tensor(x)
        held = [[tvm.runtime.tensor(one.copy()) for one in arguments] for _ in range(copies)]
        kernel(given, *held[0], out)
        expected = x.astype(np.float64) @ weight.values.T
        if not np.abs(out.numpy() - expected).max() <= 1e-5 * np.abs(expected).max():
            raise SystemExit(f"{name} at {rows} x {depth} x {columns} differs from float64")
        calls[name] = [partial(kernel, given, *one, out) for one in held]
    return Row((rows, depth, columns), alternating(calls, rounds), sizes)


def _panels(matrix: np.ndarray) -> np.ndarray:
    """[N, K] → [N/P, K, P]"""
    panels = matrix.astype(np.float32).reshape(-1, PANEL, matrix.shape[1])
    return np.ascontiguousarray(panels.transpose(0, 2, 1))


def alternating(calls: dict[str, list[Callable[[], Any]]], rounds: int) -> dict[str, float]:
    """Microseconds of a call, the median of rounds over all copies that take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, every in calls.items():
            start = time.perf_counter()
            for call in every:
                call()
            times[name].append((time.perf_counter() - start) / len(every) * 1e6)
    return {name: float(np.median(one)) for name, one in times.items()}


def whole(folders: Sequence[Path], threads: int, rounds: int) -> None:
    """Prints what a token and a prompt take in two bundles, and how far their logits are apart."""
    loaded = [
        bundles.module(one, "run.py").load(one, verify=False, threads=threads) for one in folders
    ]
    names = ("kept", "floats")
    for name, bundle in zip(names, loaded, strict=True):
        print(f"{name}: {bundle.manifest['params']['bytes'] / 2**20:.1f} MiB of parameters")
    for tokens in (1, 64):
        calls, logits = {}, []
        for name, bundle in zip(names, loaded, strict=True):
            call = decode_speed.prepared(bundle.session(fill=0), tokens, 100)
            logits.append(call().numpy().copy())
            calls[name] = [call]
        ms = {name: one / 1e3 for name, one in alternating(calls, rounds).items()}
        apart = np.abs(logits[0] - logits[1]).max() / np.ptp(logits[1])
        print(
            f"{tokens} tokens: {ms['kept']:.1f} ms kept, {ms['floats']:.1f} ms floats, "
            f"{ms['floats'] / ms['kept']:.2f}x; logits {apart:.1e} of their range apart"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--no-docs", action="store_true")
    parser.add_argument("--bundles", type=Path, nargs=2, metavar=("KEPT", "FLOATS"))
    options = parser.parse_args(argv)
    tvm.get_global_func("runtime.config_threadpool")(1, options.threads)
    if options.bundles:
        whole(options.bundles, options.threads, options.rounds)
        return
    target = resolve(TargetSection())
    rows = []
    print(HEAD, RULE, sep="\n")
    for count in options.rows:
        for depth, columns in SHAPES:
            rows.append(measure(count, depth, columns, target, options.rounds))
            print(rows[-1].text(), flush=True)
    if not options.no_docs:
        page.keep(RESULTS, [{**asdict(row), "threads": options.threads} for row in rows])
        table = "\n".join([HEAD, RULE, *(row.text() for row in rows)])
        page.place("benchmarks.md", "weight-only", f"\n{options.threads} thread\n\n{table}\n")
    wanted = {1: 2.0}
    slow = [
        f"{name} at {row.shape}"
        for row in rows
        for name in SCHEMES
        if row.speed(name) < wanted.get(row.shape[0], 0.8)
    ]
    if options.check and slow:
        raise SystemExit(f"too slow beside float32: {', '.join(slow)}")


if __name__ == "__main__":
    main()
