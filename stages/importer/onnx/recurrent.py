"""LSTM, GRU and RNN: one matmul over all steps, then one kernel that walks them.

What the input adds to the gates is a matmul of its own, which is tuned and pruned like any other.
The recurrence is a PrimFunc of plain loops: rows of the batch in parallel, steps in turn, the
product of state and weights in vectors. Batch and length may be symbolic; nothing is unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapml.errors import StageError

from ...compat import tvm
from ...opaque import CELL, KERNEL

from tvm.script.ir_builder import IRBuilder  # isort: skip  # after compat
from tvm.script.ir_builder import tirx as T  # isort: skip

rx, tirx = tvm.relax, tvm.tirx
Expr = Any
DTYPE = "float32"
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Cell:
    """What a kernel is made for."""

    kind: str
    hidden: int
    backward: bool
    peepholes: bool = False
    reset_before: bool = True  # GRU: the reset gate scales the state before the matmul

    @property
    def columns(self) -> int:
        return _GATES[self.kind] * self.hidden


def recurrent(kind: str) -> Callable[[Any, Any, Mapping[str, Any], int], Any]:
    """The converter of LSTM, GRU or RNN."""

    def convert(bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
        return _Layer(kind, bb, [*inputs, *[None] * (8 - len(inputs))], attrs).convert()

    return convert


class _Layer:
    def __init__(self, kind: str, bb: Any, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> None:
        self.kind, self.bb, self.attrs = kind, bb, attrs
        self.x, self.w, self.r, self.b, self.lengths, self.h0, self.c0, self.p = inputs
        self.hidden = int(self.r.ty.shape[2])
        self.batch_first = bool(attrs.get("layout", 0))
        direction = attrs.get("direction", b"forward").decode()
        self.backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
            direction
        ]
        self._refuse()

    def _refuse(self) -> None:
        def wrong(why: str) -> StageError:
            return StageError(message=f"{self.kind} {self.attrs['tvm_custom']['name']}: {why}")

        given = [one.decode() for one in self.attrs.get("activations", ())]
        default = [*_DEFAULTS[self.kind]] * len(self.backward)
        if given and [one.lower() for one in given] != [one.lower() for one in default]:
            raise wrong(f"activations {', '.join(given)} are not the default ones")
        for name in ("clip", "input_forget"):
            if self.attrs.get(name):
                raise wrong(f"the attribute {name} is not supported")
        if str(self.x.ty.dtype) != DTYPE:
            raise wrong(f"it computes in {self.x.ty.dtype}, not {DTYPE}")
        if self.lengths is not None:
            steps = self.x.ty.shape[1 if self.batch_first else 0]
            full = isinstance(self.lengths, tvm.ir.GenericConst) and isinstance(steps, tirx.IntImm)
            if not full or not np.all(self.lengths.value.numpy() == int(steps)):
                raise wrong("sequence_lens may be shorter than the input; give no lengths")

    def convert(self) -> Any:
        emit, op = self.bb.emit, rx.op
        x = emit(op.permute_dims(self.x, [1, 0, 2])) if self.batch_first else self.x
        results = [self._direction(x, index) for index in range(len(self.backward))]
        ys, *last = zip(*results, strict=True)
        axis = 2 if self.batch_first else 1
        y = _stacked(self.bb, ys, 1)  # steps, directions, batch, hidden
        if self.batch_first:
            y = emit(op.permute_dims(y, [2, 0, 1, 3]))
        ends = [_stacked(self.bb, one, axis - 1) for one in last]
        return rx.Tuple([y, *ends])

    def _direction(self, x: Any, index: int) -> list[Any]:
        emit, op = self.bb.emit, rx.op
        cell = Cell(
            self.kind,
            self.hidden,
            self.backward[index],
            self.p is not None,
            not self.attrs.get("linear_before_reset", 0),
        )
        steps, batch, _ = x.ty.shape
        gates = emit(op.matmul(x, emit(op.permute_dims(self._of(self.w, index)))))
        biases = self._biases(cell, index)
        if biases is not None:
            gates = emit(op.add(gates, biases[0]))
        arguments = [gates, emit(op.permute_dims(self._of(self.r, index)))]
        states = [self.h0, self.c0] if self.kind == "LSTM" else [self.h0]
        for state in states:
            arguments.append(self._state(state, index, batch))
        if cell.peepholes:
            arguments.append(self._of(self.p, index))
        if not cell.reset_before:
            zero = rx.const(np.zeros(self.hidden, DTYPE))
            arguments.append(zero if biases is None else biases[1])
        end = rx.TensorType([batch, self.hidden], DTYPE)
        types = [rx.TensorType([steps, batch, self.hidden], DTYPE), *[end] * len(states)]
        kernel = self.bb.add_func(_kernel(cell), f"{self.kind.lower()}_steps")
        result = emit(rx.call_tir(kernel, arguments, types))
        return [emit(rx.TupleGetItem(result, field)) for field in range(len(types))]

    def _of(self, weight: Any, index: int) -> Any:
        """The part of one direction."""
        emit, op = self.bb.emit, rx.op
        if len(self.backward) > 1:
            weight = emit(op.strided_slice(weight, [0], [index], [index + 1]))
        return emit(op.squeeze(weight, [0]))

    def _biases(self, cell: Cell, index: int) -> tuple[Any, Any] | None:
        """What is added to the gates at once; and to the hidden gate's product, apart from it."""
        if self.b is None:
            return None
        emit, op = self.bb.emit, rx.op
        both = self._of(self.b, index)
        ours, theirs = (
            emit(op.strided_slice(both, [0], [at], [at + cell.columns])) for at in (0, cell.columns)
        )
        if cell.kind != "GRU" or cell.reset_before:
            return emit(op.add(ours, theirs)), None
        split = 2 * self.hidden
        first = emit(op.strided_slice(theirs, [0], [0], [split]))
        hidden = emit(op.strided_slice(theirs, [0], [split], [cell.columns]))
        padded = emit(op.concat([first, emit(op.zeros_like(hidden))], 0))
        return emit(op.add(ours, padded)), hidden

    def _state(self, state: Any, index: int, batch: Any) -> Any:
        emit, op = self.bb.emit, rx.op
        if state is None:
            return emit(op.zeros([batch, self.hidden], DTYPE))
        axis = 1 if self.batch_first else 0
        if len(self.backward) > 1:
            state = emit(op.strided_slice(state, [axis], [index], [index + 1]))
        return emit(op.squeeze(state, [axis]))


def _stacked(bb: Any, values: Sequence[Any], axis: int) -> Any:
    rows = [bb.emit(rx.op.expand_dims(one, axis)) for one in values]
    return rows[0] if len(rows) == 1 else bb.emit(rx.op.concat(rows, axis))


def _kernel(cell: Cell) -> Any:
    """The PrimFunc that walks the steps: (gates of the input, weights, states…) → (y, states…)."""
    hidden, columns = cell.hidden, cell.columns
    steps, batch = tirx.Var("steps", "int64"), tirx.Var("batch", "int64")

    def given(name: str, *shape: Any) -> Any:
        return T.arg(name, T.buffer(shape, DTYPE))

    def scratch(size: int) -> Any:
        return T.alloc_buffer((size,), DTYPE, scope="local")

    with IRBuilder() as builder:
        with T.prim_func(is_private=True):
            T.func_name(f"{cell.kind.lower()}_steps")
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, KERNEL: CELL})
            x = given("x", steps, batch, columns)
            r = given("r", hidden, columns)
            states = ("h", "c") if cell.kind == "LSTM" else ("h",)
            starts = [given(f"{name}0", batch, hidden) for name in states]
            peep = given("p", 3 * hidden) if cell.peepholes else None
            bias = None if cell.reset_before else given("b", hidden)
            y = given("y", steps, batch, hidden)
            ends = [given(name, batch, hidden) for name in states]
            with T.parallel(0, batch) as row:
                gates = scratch(columns)
                now = [scratch(hidden) for _ in states]
                extra = scratch(hidden)  # GRU: the state times the reset gate, or its product
                for start, state in zip(starts, now, strict=True):
                    _copy(state, lambda j, start=start: start[row, j], hidden)
                with T.serial(0, steps) as turn:
                    step = steps - 1 - turn if cell.backward else turn
                    _copy(gates, lambda j, step=step: x[step, row, j], columns)
                    _advance(cell, gates, now, extra, r, peep, bias)
                    _copy(y, lambda j: now[0][j], hidden, step, row)
                for end, state in zip(ends, now, strict=True):
                    _copy(end, lambda j, state=state: state[j], hidden, row)
        return builder.get()


def _advance(
    cell: Cell, gates: Any, now: Sequence[Any], extra: Any, r: Any, peep: Any, bias: Any
) -> None:
    """One step: `gates` holds what the input adds; `now` is replaced by the next states."""
    size, h = cell.hidden, now[0]
    one = tirx.const(1.0, DTYPE)
    if cell.kind == "RNN":
        _multiply(gates, h, r, 0, size, size)
        _copy(h, lambda j: tirx.tanh(gates[j]), size)
        return
    if cell.kind == "LSTM":
        c = now[1]
        _multiply(gates, h, r, 0, 4 * size, size)

        def gate(index: int, j: Expr, looks_at: Any) -> Expr:
            value = gates[index * size + j]  # i, o, f in W, R and P alike
            return value if peep is None else value + peep[index * size + j] * looks_at

        with _each(size) as j:
            keep = tirx.sigmoid(gate(2, j, c[j])) * c[j]
            new = tirx.sigmoid(gate(0, j, c[j])) * tirx.tanh(gates[3 * size + j])
            T.buffer_store(c, keep + new, [j])
            T.buffer_store(h, tirx.sigmoid(gate(1, j, c[j])) * tirx.tanh(c[j]), [j])
        return
    _multiply(gates, h, r, 0, 2 * size, size)  # z and r
    if cell.reset_before:
        _copy(extra, lambda j: tirx.sigmoid(gates[size + j]) * h[j], size)
        _multiply(gates, extra, r, 2 * size, size, size)
        candidate = lambda j: tirx.tanh(gates[2 * size + j])  # noqa: E731
    else:
        _copy(extra, lambda j: bias[j], size)
        _multiply(extra, h, r, 2 * size, size, size, into=0)
        candidate = lambda j: tirx.tanh(  # noqa: E731
            gates[2 * size + j] + tirx.sigmoid(gates[size + j]) * extra[j]
        )
    with _each(size) as j:
        z = tirx.sigmoid(gates[j])
        T.buffer_store(h, (one - z) * candidate(j) + z * h[j], [j])


def _copy(target: Any, value: Callable[[Expr], Expr], size: int, *before: Expr) -> None:
    with _each(size) as j:
        T.buffer_store(target, value(j), [*before, j])


@contextmanager
def _each(size: int) -> Iterator[Expr]:
    """Loops over `size` elements in vectors."""
    lanes = _lanes(size)
    with T.serial(0, size // lanes) as part, T.vectorized(0, lanes) as lane:
        yield part * lanes + lane


def _lanes(size: int) -> int:
    return next(lanes for lanes in (16, 8, 4, 2, 1) if size % lanes == 0)


def _multiply(
    gates: Any, state: Any, r: Any, first: int, columns: int, size: int, into: int | None = None
) -> None:
    """gates[into + j] += Σ state[k]·r[k, first + j]: a tile of columns stays in registers."""
    into = first if into is None else into
    lanes = _lanes(columns)
    tile = next(count for count in (8, 4, 2, 1) if columns % (lanes * count) == 0)
    with T.serial(0, columns // (lanes * tile)) as block:
        sums = T.alloc_buffer((tile * lanes,), DTYPE, scope="local")

        def each(value: Callable[[Expr], Expr], target: Any, at: Callable[[Expr], Expr]) -> None:
            with T.unroll(0, tile) as part, T.vectorized(0, lanes) as lane:
                index = part * lanes + lane
                T.buffer_store(target, value(index), [at(index)])

        base = block * (lanes * tile)
        each(lambda i: gates[into + base + i], sums, lambda i: i)
        with T.serial(0, size) as k:
            each(lambda i: sums[i] + state[k] * r[k, first + base + i], sums, lambda i: i)
        each(lambda i: sums[i], gates, lambda i: into + base + i)
