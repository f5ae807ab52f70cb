"""Operators from the recipe's own Python: a Relax function or TE graph, and a NumPy reference.

# recipes/my_operator.py
def linear() -> Operator:
    weight = np.random.default_rng(0).standard_normal((768, 3072)).astype("float32")
    builder = relax.BlockBuilder()
    ...                                            # symbolic dims carry the names of model.dims
    return Operator(mod=builder.get(), weights={"weight": weight}, reference=in_float64)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tapml.errors import RecipeError, StageError, nearest
from tapml.stage import Context, PythonFunction

from ..compat import tvm
from ..dataflow import bindings
from ..program import Bounds, Program
from .finish import Node, finish, outputs_of, shape_of
from .source import Imported
from .stage import Import

rx = tvm.relax
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Operator:
    """What a recipe's `model.python` function returns.

    mod:        IRModule whose `main` is a Relax function; parameters named in `weights` are
                weights, the others inputs. Float constants with dimensions become weights too.
    weights:    arrays by parameter name
    reference:  (inputs, weights) → outputs by name, all float64 (integers as they are): the truth
                that the library is checked against
    outputs:    names of the outputs, in order
    """

    mod: Any
    weights: Arrays
    reference: Callable[[Arrays, Arrays], Arrays]
    outputs: tuple[str, ...] = ("output",)


def from_te(inputs: Sequence[Any], results: Sequence[Any], weights: Sequence[Any] = ()) -> Any:
    """IRModule with a Relax `main` around a TE graph, for `Operator.mod`.

    In:     placeholders of inputs and weights (named as the operator's are), and the results.
    """
    placeholders = [*inputs, *weights]
    params = [rx.Var(one.op.name, rx.TensorType(one.shape, one.dtype)) for one in placeholders]
    prim = tvm.te.create_prim_func([*placeholders, *results])
    builder = rx.BlockBuilder()
    name = builder.add_func(prim.without_attr("global_symbol"), "compute")
    types = [rx.TensorType(one.shape, one.dtype) for one in results]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(
                rx.call_tir(name, params, types[0] if len(types) == 1 else types)
            )
        builder.emit_func_output(out)
    return builder.get()


def load(stage: Import, ctx: Context) -> Imported:
    """Program, weights and facts of the source; writes the `source` folder.

    Raises: RecipeError when inputs and dims do not fit the function's; StageError when it returns
            no Operator.
    """
    assert stage.python is not None
    operator = call(stage.python)
    where = f"{stage.python.path}: {stage.python.function}()"
    program, weights = finished(stage, operator.mod, operator.weights, operator.outputs, where)
    return Imported(program, weights, write_source(stage.python, ctx.workdir / "source"))


def finished(
    stage: Import, mod: Any, weights: Arrays, outputs: Sequence[str], where: str
) -> tuple[Program, dict[str, np.ndarray]]:
    """Program and weights of a module whose `main` takes inputs, and parameters that `weights`
    names.

    Raises: RecipeError when the recipe's inputs and dims do not fit; StageError when weights do
            not, and for a `main` that is no graph from tensors to tensors.
    """
    func = mod["main"]
    _check_main(func, outputs, where)
    inputs = {param.name: param for param in func.params if param.name not in weights}
    _check_weights(weights, func)
    _check_signature(stage, inputs)
    return finish(
        mod,
        inputs=list(inputs),
        outputs=outputs,
        weights=weights,
        params={name: name for name in weights},
        sources={var.name: Node(var.name, _op(value)) for var, value in bindings(func)},
        dims={name: Bounds(bounds.min, bounds.max) for name, bounds in stage.dims.items()},
        buckets=stage.buckets,
        where=where,
    )


def call(function: PythonFunction) -> Operator:
    """What the recipe's function returns. StageError when it raises, or returns something else."""
    made = function.load("model.python")
    try:
        operator = made()
    except Exception as error:  # the user's code: anything may come out of it
        raise function.told(error) from error
    if not isinstance(operator, Operator):
        raise StageError(
            message=f"{function.path}: {function.function}() returned a {type(operator).__name__}",
            hint="return tapml_stages.importer.operator.Operator(mod=…, weights=…, reference=…)",
        )
    return operator


def write_source(function: PythonFunction, folder: Path) -> dict[str, str]:
    """Copies the Python file, the modules beside it and what it reads, so that the reference can
    call it.
    """
    folder.mkdir()
    path = Path(function.path)
    beside = [path.parent / name for name in function.files]
    for file in sorted({*path.parent.glob("*.py"), *filter(Path.is_file, beside)}):
        if file.is_relative_to(path.parent) and ".." not in file.parts:
            copy = folder / file.relative_to(path.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    return {"kind": "operator", "module": path.name, "function": function.function}


def _op(value: Any) -> str:
    if isinstance(value, rx.Call):
        if isinstance(value.op, tvm.ir.Op):
            callee = value.args[0] if value.op.name == "relax.call_tir" else None
            return f"call_tir.{callee.name_hint}" if callee is not None else value.op.name
        return getattr(value.op, "name_hint", type(value.op).__name__)
    return type(value).__name__


def _check_main(func: Any, outputs: Sequence[str], where: str) -> None:
    """Raises StageError naming all of `main` that is not of tensors, or that branches."""
    given = outputs_of(func)
    wrong = [
        f"parameter {one.name!r} is {kind}" for one in func.params if (kind := _no_tensor(one.ty))
    ]
    wrong += [
        f"output {index} is a tuple in a tuple"
        for index, ty in enumerate(given)
        if isinstance(ty, rx.TupleType)
    ]
    wrong += [
        f"{var.name!r} is an `if`" for var, value in bindings(func) if isinstance(value, rx.If)
    ]
    if wrong:
        raise StageError(
            message=f"{where}: main is no graph from tensors to tensors: {'; '.join(wrong)}",
            hint="take and give tensors of known shapes, and choose between values with where",
        )
    if len(outputs) != len(given):
        raise StageError(
            message=f"{where}: main gives {len(given)} outputs, {len(outputs)} are named"
        )
    names = [var.name for var, _ in bindings(func)]
    if shared := sorted({name for name in names if names.count(name) > 1}):
        raise StageError(message=f"{where}: bindings of main share names: {shared}")


def _no_tensor(ty: Any) -> str:
    """What a value is instead of a tensor of known shape and type; "" if it is one."""
    match ty:
        case rx.TensorType(shape=rx.ShapeExpr()):
            return "" if ty.dtype else "of unknown type"
        case rx.TensorType():
            return "of unknown shape"
        case rx.TupleType():
            return "a tuple"
        case rx.ShapeType():
            return "a shape"
    return "no tensor"


def _check_weights(weights: Arrays, func: Any) -> None:
    params = {param.name: param.ty for param in func.params}
    for name, array in weights.items():
        if name not in params:
            hint = nearest(name, list(params), noun="parameters")
            raise StageError(message=f"main has no parameter {name!r}", hint=hint)
        ty = params[name]
        shape, dtype = shape_of(ty), str(ty.dtype)
        if (array.shape, str(array.dtype)) != (shape, dtype):
            raise StageError(
                message=f"weight {name!r} is {array.dtype}{list(array.shape)}, "
                f"main takes {dtype}[{', '.join(map(str, shape))}]"
            )


def _check_signature(stage: Import, inputs: Mapping[str, Any]) -> None:
    """Raises RecipeError where the recipe's inputs or dims differ from the function's."""
    there = {name: (shape_of(param.ty), str(param.ty.dtype)) for name, param in inputs.items()}
    for name, spec in stage.signature.items():
        field = f"model.inputs.{name}"
        if name not in there:
            hint = nearest(name, list(there), noun="inputs")
            raise RecipeError(field=field, message=f"the operator has no input {name!r}", hint=hint)
        if there[name] != (spec.shape, spec.dtype):
            shape, dtype = there[name]
            has = f"{dtype}[{', '.join(map(str, shape))}]"
            want = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
            message = f"the operator takes {has}, the recipe says {want}"
            raise RecipeError(field=field, message=message)
    symbols = sorted({dim for shape, _ in there.values() for dim in shape if isinstance(dim, str)})
    for name in symbols:
        if name not in stage.dims:
            hint = nearest(name, list(stage.dims), noun="dims")
            message = f"the operator's dim {name!r} has no bounds"
            raise RecipeError(field="model.dims", message=message, hint=hint)
    for name in stage.dims:
        if name not in symbols:
            hint = nearest(name, symbols, noun="its dims")
            message = f"the operator has no dim {name!r}"
            raise RecipeError(field=f"model.dims.{name}", message=message, hint=hint)
