"""A tensorized int8 GEMM against the same search without the intrinsic.

    python benchmarks/tensorir/int8_search.py [--seconds 12] [--quick] [--no-docs]

Every row is one MatMulInteger with a constant weight, at sizes of MiniLM's layers. It is lowered
twice for this machine, with all the intrinsics that its CPU has and with none, and each is searched
by the same modules (those of `tuning.space`) for the same seconds, from an empty database. Then the
default and the tuned schedules of both, onnxruntime on the same node, and a loop of nothing but dot
products in registers take turns on one thread; a figure is the fastest block's mean. All results
are compared with a product in 64 bits.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parents[2] / "tests")]

import int8  # noqa: E402  # benchmarks/ is no package
import page  # noqa: E402
import quantised  # noqa: E402

from tapml.stage import Context, Target  # noqa: E402
from tapml.target import TargetSection, resolve  # noqa: E402
from tapml_stages.compat import tvm  # noqa: E402
from tapml_stages.measure import Bench  # noqa: E402
from tapml_stages.metaschedule.contest import baseline  # noqa: E402
from tapml_stages.metaschedule.kernels import find_kernels  # noqa: E402
from tapml_stages.metaschedule.stage import Tuning  # noqa: E402
from tapml_stages.metaschedule.tune import tune  # noqa: E402
from tapml_stages.target import tvm_target  # noqa: E402
from tapml_stages.tensorir.loops import lanes, local, loop, scheduled, seq, store  # noqa: E402
from tapml_stages.tensorir.tensorize.intrinsic import Intrinsic  # noqa: E402
from tapml_stages.tensorir.tensorize.packing import Instructions  # noqa: E402

tirx = tvm.tirx

RESULTS = Path(__file__).resolve().parents[1] / "results" / "int8_search.json"
PRODUCTS = ((1, 384, 1536), (32, 384, 1536), (128, 384, 1536), (128, 1536, 384))
HEAD = (
    "| M x K x N | intrinsics: default | tuned | trials | none: default | tuned | trials "
    "| tuned, none to intrinsics | of the instruction's peak | onnxruntime | of that peak |"
)


@dataclass(frozen=True)
class Row:
    """A product: milliseconds of a call by who runs it, and the trials of both searches."""

    shape: tuple[int, int, int]
    instructions: str
    ms: dict[str, float]
    trials: dict[str, int]

    def text(self) -> str:
        ms, (m, k, n) = self.ms, self.shape
        cells = [f"{m}x{k}x{n}"]
        for label in ("all", "none"):
            cells += [f"{ms[f'{label} {which}']:.4f}" for which in ("default", "tuned")]
            cells += [str(self.trials[label])]
        cells += [f"{ms['none tuned'] / ms['all tuned']:.1f}x", self._share("all tuned")]
        cells += [f"{ms['onnxruntime']:.4f}", self._share("onnxruntime")]
        return "| " + " | ".join(cells) + " |"

    def _share(self, name: str) -> str:
        return f"{self.ms['peak'] / self.ms[name]:.0%}" if "peak" in self.ms else "–"


def searched(
    model: quantised.Lowered, target: Target, seconds: float, folder: Path
) -> tuple[list[Any], int]:
    """Tuned records of a model's kernels, and the trials that it took."""
    folder.mkdir()
    context = Context(folder, logging.getLogger("search"), folder / "database")
    kernels = find_kernels(model.program, model.defaults)
    with Bench(target) as bench:
        defaults = baseline(bench, kernels, context)
        tuning = Tuning(trials=100_000, max_seconds=seconds)
        found = tune(bench, kernels, defaults, tuning, target, context)
    return [record for ones in found.records.values() for record in ones[:1]], found.trials


def exact(made: Any, x: np.ndarray) -> np.ndarray:
    """What the one MatMulInteger of a model gives, by sums in 64 bits."""
    from onnx import numpy_helper

    weights = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    zeros = [weights[name].astype("int64") for name in ("xz", "wz")]
    return (x.astype("int64") - zeros[0]) @ (weights["w"].astype("int64") - zeros[1])


def peak(intrinsic: Intrinsic, target: Target, operations: float) -> Callable[[], Any] | None:
    """A call that spends as many operations on nothing but the instruction, in registers, in as
    many chains as there are registers for; None for an intrinsic of several instructions.
    """
    if intrinsic.cost != 1.0:
        return None
    chains = target.vector_registers - 4
    types = [([*map(int, one.ty.shape)], str(one.ty.dtype)) for one in intrinsic.params]
    a, b, _ = params = [
        tirx.decl_buffer(*one, name) for one, name in zip(types, "ABC", strict=True)
    ]
    shape, dtype = types[2]
    out = tirx.decl_buffer([chains, *shape], dtype, "out")
    acc = local("acc", [chains, *shape], dtype)
    start = [[tirx.const(0, "int64")] * len(one.ty.shape) for one in params]
    rows = [tirx.const(row, "int64") for row in range(chains)]

    def each(body: Callable[[Any, Any], Any]) -> Any:
        return seq(lanes(shape[0], lambda lane, row=row: body(row, lane)) for row in rows)

    def step(_: Any) -> Any:
        places = [(a, start[0]), (b, start[1])]
        return seq(intrinsic.at([*places, (acc, [row, *start[2]])]) for row in rows)

    steps = max(1, round(operations / (2 * intrinsic.size * chains)))
    body = seq(
        [
            tirx.AllocBuffer(acc),
            each(lambda row, lane: store(acc, [row, lane], tirx.const(0, dtype))),
            loop("step", steps, step),
            each(lambda row, lane: store(out, [row, lane], tirx.BufferLoad(acc, [row, lane]))),
        ]
    )
    func = scheduled(tirx.PrimFunc([a, b, out], body), body).with_attrs(
        {"tirx.noalias": True, "global_symbol": "peak"}
    )
    built = tvm.compile(tvm.IRModule({"peak": func}), tvm_target(target))["peak"]
    arrays = [np.ones(*one) for one in types[:2]] + [np.zeros([chains, *shape], dtype)]
    tensors = [tvm.runtime.tensor(one) for one in arrays]
    built(*tensors)
    if not (tensors[-1].numpy() == steps * intrinsic.size // shape[0]).all():
        raise SystemExit(f"{intrinsic.name}: wrong sums")
    return lambda: built(*tensors)


def measure(shape: tuple[int, int, int], own: Target, seconds: float) -> Row:
    import onnxruntime

    name, made, _, inputs, operations = int8.product(*shape)
    feed = {"x": inputs["int8"]}
    calls: dict[str, Callable[[], Any]] = {}
    trials = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = quantised.save(made, folder / "product.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options)
        expected = exact(made, feed["x"])
        results = {"onnxruntime": np.asarray(session.run(None, feed)[0])}
        targets = {"all": own, "none": own.model_copy(update={"features": ()})}
        for label, target in targets.items():
            model = quantised.lowered(path, target, {})
            tuned, trials[label] = searched(model, target, seconds, folder / label)
            for which, records in (("default", []), ("tuned", tuned)):
                if which == "default" or records:  # else the default is what ships
                    built = quantised.built(model, target, records)
                    results[f"{label} {which}"] = built.call(feed)[0]
                    calls[f"{label} {which}"] = built.timed(feed)
        for label, found in results.items():
            if not np.array_equal(found, expected):
                raise SystemExit(f"{name}: {label} is wrong")
        calls["onnxruntime"] = lambda: session.run(None, feed)
        known = Instructions.of(own).known
        if known and (alone := peak(known[0], own, operations)) is not None:
            calls["peak"] = alone
        ms = int8.alternating(calls, min(seconds / 10, 1.0))
        for label in targets:
            ms.setdefault(f"{label} tuned", ms[f"{label} default"])
    return Row(shape, known[0].name if known else "none", ms, trials)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each search")
    parser.add_argument("--quick", action="store_true", help="two products, 3 s each, kept nowhere")
    parser.add_argument("--no-docs", action="store_true")
    options = parser.parse_args(argv)
    seconds = 3.0 if options.quick else options.seconds
    found = resolve(TargetSection())
    own = found.model_copy(update={"device": found.device.model_copy(update={"threads": 1})})
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    rule = "|" + " --- |" * (HEAD.count("|") - 1)
    rows = []
    print(HEAD, rule, sep="\n")
    for shape in PRODUCTS[:2] if options.quick else PRODUCTS:
        rows.append(measure(shape, own, seconds))
        print(rows[-1].text(), flush=True)
    if not options.no_docs and not options.quick:
        page.keep(RESULTS, [asdict(row) for row in rows])
        table = "\n".join([HEAD, rule, *(row.text() for row in rows)])
        words = f"ms of a call, 1 thread, {rows[0].instructions}; {seconds:g} s for each search."
        page.place("tensorir.md", "int8-search", f"\n{words}\n\n{table}\n")


if __name__ == "__main__":
    main()
