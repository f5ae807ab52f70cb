"""Layouts and cells beside onnxruntime: groups that cut blocks, plain pools, NHWC, volumes, RNNs.

    python benchmarks/tensorir/layouts.py [--threads 1] [--seconds 0.5] [--only WORD] [--no-keep]

Every row is a small ONNX model with random weights, imported and built by the default rules for
this machine. Blocks of calls take turns with onnxruntime's, so what else the machine does hits
both; a figure is the fastest block's mean. The outputs are compared too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parents[2] / "tests")]

import page  # noqa: E402  # benchmarks/ is no package
from int8 import alternating  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results" / "layouts.json"
HEAD = "| model | rules | ours, ms | onnxruntime, ms | onnxruntime / ours |"


@dataclass(frozen=True)
class Row:
    """A model, the rules that took its kernels, and the milliseconds of a call."""

    model: str
    rules: tuple[str, ...]
    ms: dict[str, float]

    def text(self) -> str:
        ours, theirs = self.ms["ours"], self.ms["onnxruntime"]
        cells = [self.model, ", ".join(self.rules), f"{ours:.3f}", f"{theirs:.3f}"]
        return "| " + " | ".join([*cells, f"{theirs / ours:.2f}"]) + " |"


class Graph:
    """An ONNX model in the making; a node's one output is named after it."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.nodes, self.weights = shape, [], {}
        self.rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        scale = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        self.weights[name] = (self.rng.standard_normal(shape) * scale).astype("float32")
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def model(self, result: str) -> tuple[Any, tuple[int, ...]]:
        from quantised import model

        self.node("Identity", result)
        self.nodes[-1].output[0] = "y"
        return model(self.nodes, {"x": (self.shape, "float32")}, self.weights), self.shape


def conv(
    graph: Graph,
    x: str,
    inner: int,
    outer: int,
    taps: Sequence[int],
    groups: int = 1,
    stride: int = 1,
    dilation: int = 1,
) -> str:
    """A convolution that keeps the size (but for its stride), with a bias and a relu."""
    rank = len(taps)
    pads = [dilation * (size // 2) for size in taps] * 2
    w, b = graph.weight(outer, inner // groups, *taps), graph.weight(outer)
    y = graph.node(
        "Conv",
        x,
        w,
        b,
        pads=pads,
        group=groups,
        strides=[stride] * rank,
        dilations=[dilation] * rank,
    )
    return graph.node("Relu", y)


def grouped(channels: int, outer: int, groups: int, size: int, taps: int = 3) -> Any:
    graph = Graph(1, channels, size, size)
    y = conv(graph, "x", channels, channels, (1, 1))
    y = conv(graph, y, channels, outer, (taps, taps), groups)
    return graph.model(conv(graph, y, outer, channels, (1, 1)))


def alone(channels: int, groups: int, *sizes: int, taps: int = 3, dilation: int = 1) -> Any:
    """One convolution and nothing else."""
    graph = Graph(1, channels, *sizes)
    window = (taps,) * len(sizes)
    return graph.model(conv(graph, "x", channels, channels, window, groups, dilation=dilation))


def pool(kind: str, channels: int, size: int, window: int = 3, stride: int = 2) -> Any:
    graph = Graph(1, channels, size, size)
    pads = [window // 2] * 4
    shape = {"kernel_shape": [window] * 2, "strides": [stride] * 2, "pads": pads}
    return graph.model(graph.node(kind, "x", **shape))


def channels_last(channels: int, size: int, depth: int = 4) -> Any:
    """As tf2onnx writes it: a transpose before and after every convolution and pool."""
    graph, y, inner = Graph(1, size, size, 3), "x", 3
    for k in range(depth):
        y = graph.node("Transpose", y, perm=[0, 3, 1, 2])
        groups = channels if k == 1 else 1
        w, b = graph.weight(channels, inner // groups, 3, 3), graph.weight(channels)
        y = graph.node("Conv", y, w, b, pads=[1] * 4, group=groups)
        y = graph.node("Transpose", y, perm=[0, 2, 3, 1])
        y = graph.node("Relu", graph.node("Add", y, graph.weight(channels)))
        inner = channels
        if k == 2:
            y = graph.node("Transpose", y, perm=[0, 3, 1, 2])
            y = graph.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
            y = graph.node("Transpose", y, perm=[0, 2, 3, 1])
    return graph.model(y)


def cell(kind: str, hidden: int, tokens: int = 32, both: bool = False, reset: int = 0) -> Any:
    graph, ways = Graph(tokens, 1, hidden), 2 if both else 1
    gates = 4 if kind == "LSTM" else 3
    scale = [graph.weight(ways, gates * hidden, hidden) for _ in range(2)]
    bias = graph.weight(ways, 2 * gates * hidden)
    attributes: dict[str, Any] = {"hidden_size": hidden}
    if both:
        attributes["direction"] = "bidirectional"
    if kind == "GRU":
        attributes["linear_before_reset"] = reset
    for name in (*scale, bias):
        graph.weights[name] /= np.float32(np.sqrt(gates))
    return graph.model(graph.node(kind, "x", *scale, bias, **attributes))


CASES: dict[str, Any] = {
    "groups of 6, 24 channels @56": lambda: grouped(24, 24, 4, 56),
    "ResNeXt 32x4d, 128 @56": lambda: grouped(128, 128, 32, 56),
    "ResNeXt 32x8d, 256 @28": lambda: grouped(256, 256, 32, 28),
    "ResNeXt 32x4d, 512 @14": lambda: grouped(512, 512, 32, 14),
    "groups of 16, 64 @56": lambda: grouped(64, 64, 4, 56),
    "groups of 32, 128 @28": lambda: grouped(128, 128, 4, 28),
    "ShuffleNet 1x1, 240 in 3 @28": lambda: grouped(240, 240, 3, 28, 1),
    "depthwise x2, 32 -> 64 @56": lambda: grouped(32, 64, 32, 56),
    "groups alone, 32x4d, 128 @56": lambda: alone(128, 32, 56, 56),
    "MaxPool 3x3/2, 64 @112": lambda: pool("MaxPool", 64, 112),
    "AveragePool 3x3/2, 64 @112": lambda: pool("AveragePool", 64, 112),
    "MaxPool 3x3/1, 256 @14": lambda: pool("MaxPool", 256, 14, 3, 1),
    "AveragePool 2x2/2, 10 @57": lambda: pool("AveragePool", 10, 57, 2, 2),
    "NHWC chain, 32 @56": lambda: channels_last(32, 56),
    "conv1d groups, 128 in 32 @512": lambda: alone(128, 32, 512),
    "conv1d dilated 4, 64 @512": lambda: alone(64, 1, 512, dilation=4),
    "conv3d 3x3x3, 16 @16": lambda: alone(16, 1, 16, 16, 16),
    "conv3d 3x3x3, depthwise 32 @16": lambda: alone(32, 32, 16, 16, 16),
    "GRU 64": lambda: cell("GRU", 64),
    "GRU 256": lambda: cell("GRU", 256, reset=1),
    "LSTM 64, both ways": lambda: cell("LSTM", 64, both=True),
    "LSTM 256, both ways": lambda: cell("LSTM", 256, both=True),
}


def measure(name: str, threads: int, seconds: float) -> Row:
    import onnxruntime
    import quantised

    from tapml.target import TargetSection, resolve
    from tapml_stages.compat import tvm

    made, shape = CASES[name]()
    feed = {"x": np.random.default_rng(1).standard_normal(shape).astype("float32")}
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = quantised.save(made, Path(folder, "model.onnx"))
        built = quantised.build(path, resolve(TargetSection()), {})
        session = onnxruntime.InferenceSession(path, options)
    expected, (found, *_) = np.asarray(session.run(None, feed)[0]), built.call(feed)
    if not np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max():
        raise SystemExit(f"{name}: differs from onnxruntime")
    calls = {"ours": built.timed(feed), "onnxruntime": lambda: session.run(None, feed)}
    rules = tuple(dict.fromkeys(built.rules.values()))
    return Row(name, rules, alternating(calls, seconds))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="of calls, for each")
    parser.add_argument("--only", default="", help="rows whose name contains it")
    parser.add_argument("--no-keep", action="store_true", help="write neither JSON nor table")
    options = parser.parse_args(argv)
    rows = []
    print(HEAD, "|" + " --- |" * 5, sep="\n")
    for name in CASES:
        if options.only in name:
            rows.append(measure(name, options.threads, options.seconds))
            print(rows[-1].text(), flush=True)
    if not options.no_keep and not options.only:
        page.keep(RESULTS, [asdict(row) for row in rows])
        table = "\n".join([HEAD, "|" + " --- |" * 5, *(row.text() for row in rows)])
        threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
        text = (
            f"\nms of a call, {threads}; each the fastest of blocks that take turns.\n\n{table}\n"
        )
        page.place("tensorir.md", "layouts", text)


if __name__ == "__main__":
    main()
