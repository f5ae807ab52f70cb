"""ONNX's own tests of its operators, through import and build: right, refused, or wrong.

Each case is a model of a node or a few with inputs and expected outputs, made by the `onnx` wheel.
Where a model takes an operand at run time that a compiler needs to know (axes, shapes, pads),
import refuses it; the case is then tried again with its small operands as constants, which is how
exporters write them. Numbers agree within ONNX's own tolerance of the case, or 2e-6 for float32
(TVM's tanh is a rational function), or 5e-3 for the two-byte floats.

python benchmarks/onnx_conformance.py                writes benchmarks/results/onnx_conformance.json
python benchmarks/onnx_conformance.py --only lstm    cases with this in their name; writes nothing

What was done before is not done again, unless --fresh: the results hold one row for each case.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "onnx_conformance.json"
VERDICTS = ("right", "right with constant operands", "refused", "wrong", "failed")
OPSETS = range(7, 23)  # what from_onnx was written for
SECONDS = 120.0  # for one case
SETTING = 4096  # elements: an operand up to this size may be made a constant


@dataclass(frozen=True)
class Row:
    """What became of one case; `reason` of what is not right."""

    name: str
    opset: int
    operators: tuple[str, ...]
    verdict: str
    reason: str = ""


@cache
def cases() -> dict[str, Any]:
    """ONNX's node tests of the standard operators, by name."""
    import warnings

    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {case.name: case for case in collect_testcases(None)}  # type: ignore[arg-type]
    return {name: case for name, case in found.items() if opset(case.model) in OPSETS}


def opset(model: Any) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def examine(name: str) -> Row:
    """The verdict on one case; never raises."""
    case = cases()[name]
    verdict, reason = _verdict(case, frozen=False)
    if verdict == "refused":
        again, why = _verdict(case, frozen=True)
        if again == "right":
            verdict, reason = "right with constant operands", reason
        elif again != "refused":
            verdict, reason = again, f"operands as constants: {why}"
        elif why != reason:
            reason = f"{reason}; operands as constants: {why}"
    operators = tuple(sorted({node.op_type for node in case.model.graph.node}))
    return Row(name, opset(case.model), operators, verdict, "" if verdict == "right" else reason)


def _verdict(case: Any, *, frozen: bool) -> tuple[str, str]:
    from tapml.errors import TapmlError

    try:
        for inputs, expected in case.data_sets:
            with tempfile.TemporaryDirectory() as folder:
                got = _run(case.model, inputs, Path(folder), frozen=frozen)
            if difference := _difference(got, expected, case.rtol, case.atol):
                return "wrong", difference
    except TapmlError as error:
        return "refused", " ".join(str(error).split())[:300]
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:300]
        return "failed", f"{type(error).__name__}: {text} ({Path(last.filename).name})"
    return "right", ""


def _run(model: Any, inputs: list[Any], folder: Path, *, frozen: bool) -> list[np.ndarray]:
    import logging

    import onnx

    from tapml.stage import Context, File, Inputs
    from tapml_stages import codec, program
    from tapml_stages.compat import tvm
    from tapml_stages.importer.stage import Import

    names = [one.name for one in model.graph.input]
    arrays = {name: _array(one) for name, one in zip(names, inputs, strict=False)}
    if frozen:
        model = _with_constants(model, arrays)
    onnx.save(model, folder / "model.onnx")
    work = folder / "work"
    work.mkdir()
    stage = Import(source="onnx", file=File(path=str(folder / "model.onnx"), sha256="0"))
    context = Context(workdir=work, logger=logging.getLogger("conformance"), database=work)
    paths = stage.run(Inputs({}), context).artifacts
    mine, weights = program.load(paths["program"]), codec.read_weights(paths["weights"])
    rx = tvm.relax
    target = tvm.target.Target("llvm")
    with target:
        built = tvm.compile(rx.get_pipeline("zero")(mine.mod), target)
    machine = rx.VirtualMachine(built, tvm.cpu())
    values = [arrays[one.name] for one in mine.io.inputs]
    values += [weights[one.name] for one in mine.io.params]
    result = machine["main"](*[tvm.runtime.tensor(np.asarray(one, order="C")) for one in values])
    single = hasattr(result, "numpy")
    return [one.numpy() for one in ([result] if single else result)]


def _with_constants(model: Any, arrays: dict[str, Any]) -> Any:
    """The model with every input but the first, and small integers, as initializers."""
    import onnx

    other = onnx.ModelProto()
    other.CopyFrom(model)
    kept = []
    for index, value in enumerate(model.graph.input):
        array = arrays.get(value.name)
        small = isinstance(array, np.ndarray | np.generic) and np.size(array) <= SETTING
        if index and small and array is not None:
            tensor = onnx.numpy_helper.from_array(np.asarray(array), value.name)
            other.graph.initializer.append(tensor)
        else:
            kept.append(value)
    del other.graph.input[:]
    other.graph.input.extend(kept)
    return other


def _difference(got: list[np.ndarray], expected: list[Any], rtol: float, atol: float) -> str:
    """How the outputs differ from what ONNX says; empty when they do not."""
    if len(got) != len(expected):
        return f"{len(got)} outputs, not {len(expected)}"
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        theirs = np.asarray(_array(theirs))
        if ours.shape != theirs.shape:
            return f"output {index}: shape {list(ours.shape)}, not {list(theirs.shape)}"
        if ours.dtype != theirs.dtype:
            return f"output {index}: {ours.dtype}, not {theirs.dtype}"
        if ours.dtype.kind not in "biu":
            coarse = ours.dtype.itemsize == 2
            least_rtol, least_atol = (5e-3, 4e-3) if coarse else (rtol, 2e-6)
            rtol, atol = max(rtol, least_rtol), max(atol, least_atol)
            ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        if not np.allclose(ours, theirs, rtol=rtol, atol=atol, equal_nan=True):
            wide = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
            return f"output {index}: differs by {np.nanmax(wide):.3g}"
    return ""


def _array(value: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _serve(connection: Any) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115 - TVM prints what it raises
    while (name := connection.recv()) is not None:
        connection.send(examine(name))


class Worker:
    """A warm process that examines cases; one that dies or hangs is replaced."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def examine(self, name: str) -> Row:
        case = cases()[name]
        operators = tuple(sorted({node.op_type for node in case.model.graph.node}))
        self._connection.send(name)
        try:
            if self._connection.poll(SECONDS):
                return self._connection.recv()
            reason = f"no end after {SECONDS:.0f} s"
        except (EOFError, ConnectionResetError):
            self._process.join()
            reason = f"the process died ({self._process.exitcode})"
        self._process.kill()
        self._process.join()
        self._start()
        return Row(name, opset(case.model), operators, "failed", reason)


def rows(names: list[str]) -> Iterator[Row]:
    worker = Worker()
    for name in names:
        yield worker.examine(name)


def summary(done: list[Row]) -> dict[str, Any]:
    """Counts by verdict, and what operators never work."""

    def counts(rows: list[Row]) -> dict[str, int]:
        there = Counter(row.verdict for row in rows)
        return {verdict: there[verdict] for verdict in VERDICTS}

    def operators(*verdicts: str) -> list[str]:
        return sorted({op for row in done for op in row.operators if row.verdict in verdicts})

    right = set(operators(*VERDICTS[:2]))
    return {
        "cases": len(done),
        **counts(done),
        "operators with a right case": len(right),
        "operators always refused": [op for op in operators("refused") if op not in right],
    }


def main() -> int:
    import onnx

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="cases with this in their name; writes nothing")
    parser.add_argument("--again", nargs="*", default=(), help="verdicts to examine again")
    parser.add_argument("--fresh", action="store_true", help="examine all cases again")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    known: dict[str, Row] = {}
    if options.out.exists() and not options.fresh and not options.only:
        rows_before = json.loads(options.out.read_text())["rows"]
        before = [Row(**{**row, "operators": tuple(row["operators"])}) for row in rows_before]
        known = {row.name: row for row in before if row.verdict not in options.again}
    names = [name for name in sorted(cases()) if options.only in name and name not in known]
    start = time.perf_counter()
    for count, row in enumerate(rows(names), start=1):
        known[row.name] = row
        if options.only or row.verdict in ("wrong", "failed"):
            print(f"{row.name}: {row.verdict} {row.reason}", flush=True)
        if not options.only and (count % 50 == 0 or count == len(names)):
            done = [known[name] for name in sorted(known)]
            facts = {"onnx": onnx.__version__, **summary(done), "rows": [asdict(r) for r in done]}
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(summary(list(known.values())), indent=1))
    print(f"{len(names)} cases in {time.perf_counter() - start:.0f} s")
    return 1 if any(row.verdict in ("wrong", "failed") for row in known.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
