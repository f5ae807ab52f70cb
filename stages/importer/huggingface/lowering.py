"""Operators that write to states (attention.py, recurrence.py) as calls of kernels, in place."""

from __future__ import annotations

from typing import Any

import torch
import tvm_ffi

from tapml.errors import StageError

from ...attention import Attention, cache_update, cached_attention
from ...compat import tvm
from ...recurrence import recurrence
from .attention import attend
from .recurrence import recur

rx = tvm.relax


def writes_to_states(node: torch.fx.Node, importer: Any) -> Any:
    """What an operator gives, and its states after it.

    Source: `auto_functionalized_v2`, what torch makes of an operator that writes to its arguments
    """
    operator: Any = node.args[0]
    if (lowered := _LOWERED.get(operator)) is None:
        raise StageError(message=f"{operator} writes to its arguments")
    return lowered(_Given(node, importer), importer.block_builder)


class _Given:
    """Arguments of the operator by name."""

    def __init__(self, node: torch.fx.Node, importer: Any) -> None:
        self._values: dict[str, Any] = dict(node.kwargs)
        self._env = importer.env

    def option(self, name: str) -> Any:
        return self._values[name]

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        return [self._env[one] for one in value] if isinstance(value, list) else self._env[value]

    def state(self, name: str) -> Any:
        """One that is written to."""
        return self["_all_bases"][self._values[f"_{name}_base_index"]]


def _attend(given: _Given, builder: Any) -> tuple[Any, Any, Any]:
    """Two updates in place, and an attention that reads what they gave."""
    query, position = given["query"], given["position"]
    extra = {name: given[name] for name in ("bias", "sinks") if given.option(name) is not None}
    options = Attention(
        **{name: given.option(name) for name in ("scale", "softcap", "window", "across")},
        **dict.fromkeys(extra, True),
    )

    def update(state: Any, new: Any) -> Any:
        rows, heads, context, width = (_size(dim) for dim in state.ty.shape.values)
        some = not tvm_ffi.structural_equal(state.ty.shape.values[0], new.ty.shape.values[0])
        kernel = builder.add_func(cache_update(rows, heads, context, width, some), "cache_update")
        start = builder.emit(rx.op.zeros_like(position)) if options.across else position
        args = rx.Tuple([state, new, start])
        return builder.emit(rx.op.call_tir_inplace(kernel, args, 0, state.ty))

    keys = update(given.state("keys"), given["key"])
    values = update(given.state("values"), given["value"])
    rows, heads, n, width = query.ty.shape.values
    _, held, context, value_width = (_size(dim) for dim in values.ty.shape.values)
    func = cached_attention(
        _size(rows), _size(heads), held, context, _size(width), value_width, options
    )
    kernel = builder.add_func(func, "cached_attention")
    out = rx.TensorType([rows, n, heads, value_width], "float32")
    args = rx.Tuple([query, keys, values, position, *extra.values()])
    return builder.emit(rx.op.call_tir(kernel, args, out)), keys, values


def _recur(given: _Given, builder: Any) -> tuple[Any, Any]:
    """One kernel that gives both."""
    state, inputs = given.state("state"), given["inputs"]
    rows, held, channels = (_size(dim) for dim in state.ty.shape.values)
    kind = given.option("kind")
    kernel = builder.add_func(recurrence(kind, rows, channels, held), kind)
    args = rx.Tuple([state, given["position"], given["last"], *inputs])
    both = builder.emit(rx.op.call_tir_inplace(kernel, args, [0, -1], [state.ty, inputs[0].ty]))
    return builder.emit(rx.TupleGetItem(both, 1)), builder.emit(rx.TupleGetItem(both, 0))


_LOWERED = {attend._opoverload: _attend, recur._opoverload: _recur}


def _size(dim: Any) -> int | None:
    return int(dim) if isinstance(dim, tvm.tirx.IntImm) else None
