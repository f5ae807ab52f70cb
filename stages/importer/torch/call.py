"""One call in a torch graph, its arguments by the names of the operator's schema."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from ...compat import tvm

rx = tvm.relax


def name_of(node: fx.Node) -> str:
    """`aten.add.Tensor` is "add.Tensor", as in TVM's table; others have their library before it."""
    name = getattr(node.target, "__name__", str(node.target))
    namespace = getattr(node.target, "namespace", "aten")
    return name if namespace in ("aten", "higher_order") else f"{namespace}.{name}"


def is_number(value: Any) -> bool:
    """Whether a node's value is a number, torch's symbolic ones included: it is no code of ours."""
    return isinstance(value, int | float | torch.SymInt | torch.SymFloat | torch.SymBool)


class Call:
    """What a converter works on: arguments, torch's shapes of them, and where to emit."""

    def __init__(self, node: fx.Node, importer: Any) -> None:
        self.node, self.importer = node, importer
        self.args: dict[str, Any] = dict(node.kwargs)
        if (schema := getattr(node.target, "_schema", None)) is not None:
            names = [argument.name for argument in schema.arguments]
            defaults = {a.name: a.default_value for a in schema.arguments}
            self.args = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}

    def __getitem__(self, name: str) -> Any:
        """The argument as torch has it: a node, a number, a list."""
        return self.args[name]

    def value(self, name: str) -> Any:
        """The Relax expression of a tensor argument; None if it is left out."""
        return self.of(self.args[name])

    def of(self, node: Any) -> Any:
        return None if node is None else self.importer.env[node]

    def meta(self, name: str) -> torch.Tensor:
        """Torch's idea of a tensor argument: shape and dtype."""
        return self.args[name].meta["val"]

    def number(self, name: str) -> Any:
        """An argument that is a number: int, or torch's symbolic one."""
        return self.plain(self.args[name])

    def axis(self, name: str = "dim", of: str = "self") -> int:
        """An axis, counted from the start."""
        return self.args[name] % max(self.meta(of).dim(), 1)

    @property
    def pair(self) -> tuple[Any, Any]:
        """The first two arguments: sides of a binary operator."""
        left, right, *_ = self.args.values()
        return left, right

    def plain(self, arg: Any) -> Any:
        """A number, or torch's symbolic one, of an argument that may be a node."""
        return arg.meta["val"] if isinstance(arg, fx.Node) else arg

    def operand(self, arg: Any, dtype: str) -> Any:
        """A tensor or a number of the graph, as a tensor of `dtype`."""
        if isinstance(arg, fx.Node) and isinstance(arg.meta["val"], torch.Tensor):
            return self.cast(self.of(arg), dtype)
        return self.scalar(self.plain(arg), dtype)

    @property
    def out(self) -> torch.Tensor:
        """Torch's idea of the result."""
        return self.node.meta["val"]

    @property
    def shape(self) -> list[Any]:
        return self.sizes(self.out.shape)

    @property
    def dtype(self) -> str:
        return dtype_of(self.out.dtype)

    def emit(self, expr: Any) -> Any:
        return self.importer.block_builder.emit(expr)

    def size(self, size: Any) -> Any:
        return self.importer.sizes.size(size)

    def sizes(self, shape: Any) -> list[Any]:
        return self.importer.sizes.shape(shape)

    def same(self, left: Any, right: Any) -> bool:
        """Whether two sizes are equal whatever the dims are."""
        return self.importer.sizes.same(left, right)

    def scalar(self, size: Any, dtype: str) -> Any:
        """A number or size as a 0-d tensor."""
        if isinstance(size, torch.SymFloat | torch.SymBool):
            raise NotImplementedError(f"a number computed from dims: {size}")
        value = self.size(size) if isinstance(size, torch.SymInt) else size
        if isinstance(value, int | float | bool):
            return rx.const(value, dtype)
        return self.importer._prim_value_to_scalar_tensor(value, dtype)

    def cast(self, value: Any, dtype: str) -> Any:
        return value if str(value.ty.dtype) == dtype else self.emit(rx.op.astype(value, dtype))

    def from_start(self, index: fx.Node, extent: Any) -> Any:
        """An index tensor as int64, negative ones counted from the end."""
        if index.meta["val"].dtype in (torch.bool, torch.uint8):
            raise NotImplementedError("a mask as index gives a size that depends on data")
        value = self.cast(self.of(index), "int64")
        if isinstance(value, tvm.ir.GenericConst):
            known = value.value.numpy()
            if (known >= 0).all():
                return value
            if isinstance(extent, int):
                return rx.const(np.where(known < 0, known + extent, known), "int64")
        end = self.emit(rx.op.add(value, self.scalar(extent, "int64")))
        return self.emit(
            rx.op.where(self.emit(rx.op.less(value, self.scalar(0, "int64"))), end, value)
        )


def dtype_of(dtype: torch.dtype) -> str:
    """ "float32" of `torch.float32`."""
    return str(dtype).removeprefix("torch.")
