"""Passes of the recipe's author: Python that gets the module and gives one back."""

from __future__ import annotations

from typing import Any

import tvm_ffi

from tapml.errors import RecipeError, StageError
from tapml.stage import PythonFunction

from ..compat import tvm
from ..dataflow import rx


def run_pass(mod: Any, function: PythonFunction, field: str) -> Any:
    """What the author's pass makes of `mod`.

    In:     a function `mod -> mod`, a TVM pass, or a class of one, which is made without arguments.
    Raises: StageError when it raises, or its result is no well-formed module with the same `main`.
    """
    found = function.load(field)
    try:
        transform = found() if isinstance(found, type) else found
        made = transform(mod)
    except RecipeError:
        raise
    except Exception as error:  # the user's code: anything may come out of it
        raise function.told(error) from error
    _check(mod, made, f"{function.path}: {function.function}")
    for name, value in (mod.attrs or {}).items():  # what later rooms read, whatever it kept
        made = made.with_attr(name, value)
    main = made["main"]
    for name, value in (mod["main"].attrs or {}).items():
        main = main.with_attr(name, value)
    made.update_func(made.get_global_var("main"), main)
    return made


def _check(before: Any, made: Any, what: str) -> None:
    if not isinstance(made, tvm.IRModule):
        raise StageError(
            message=f"{what} gave back a {type(made).__name__}",
            hint="a pass takes an IRModule and gives one back",
        )
    main: Any = next((f for g, f in made.functions.items() if g.name_hint == "main"), None)
    if not isinstance(main, rx.Function):
        raise StageError(message=f"{what} gave back a module without a Relax function `main`")
    try:
        rx.analysis.well_formed(made)
    except ValueError as error:
        message = f"{what} gave back a module that is not well-formed: {error}"
        raise StageError(message=message) from error
    old, new = (rx.FuncType([p.ty for p in f.params], f.ret_ty) for f in (before["main"], main))
    if not tvm_ffi.structural_equal(old, new, map_free_vars=True):
        raise StageError(message=f"{what} changed the signature of main: {old} became {new}")
