"""torch models as the importer and the reference take them: a recipe's function, or a `.pt2`.

torch's own loader of `.pt2` unpickles what the file names, evaluates its sizes, and tries again
with full pickle where a safe load fails. Here the file is checked by `tapml.formats.pt2` first, and
within the load nothing can be unpickled but tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tapml.errors import StageError
from tapml.formats import pt2
from tapml.stage import PythonFunction

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def call(function: PythonFunction, field: str = "") -> tuple[nn.Module, dict[str, Any]]:
    """The module that a recipe's function returns, in inference mode, and its example inputs by the
    names of the forward signature, in its order.

    Raises: RecipeError when the file has no such function; StageError when it raises, or returns
            something else, or inputs that forward() does not take.
    """
    from torch import Tensor, nn

    where = f"{function.path}: {function.function}()"
    made = function.load(field)
    try:
        pair = made()
    except Exception as error:  # the user's code: anything may come out of it
        raise function.told(error) from error
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], nn.Module)):
        raise StageError(
            message=f"{where} returned a {type(pair).__name__}",
            hint="return (module, example inputs): a torch.nn.Module, a tuple or dict of tensors",
        )
    module, examples = pair
    args, kwargs = ((), examples) if isinstance(examples, Mapping) else (examples, {})
    args = (args,) if isinstance(args, Tensor) else args
    if not isinstance(args, tuple | list):
        raise StageError(
            message=f"{where} gave example inputs of type {type(examples).__name__}",
            hint="a tuple of tensors in the order of forward(), or a dict by its parameter names",
        )
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise StageError(message=f"{where}: forward() does not take its inputs: {error}") from error
    return module.eval(), dict(bound.arguments)


def load(path: Path) -> ExportedProgram:
    """The program of a `.pt2`; nothing of the file is run. Raises: StageError."""
    pt2.read(path)
    from torch.export.pt2_archive import _package as package

    with _no_pickles():
        try:
            programs = package.load_pt2(str(path)).exported_programs
        except StageError:
            raise
        except Exception as error:  # a schema of another torch, damage that the checks let pass
            raise StageError(
                message=f"{path} cannot be loaded by torch: {type(error).__name__}: {error}",
                hint="save it again by torch.export.save of this torch",
            ) from error
    (program,) = programs.values()
    return program


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Within, torch loads tensors only, and no other pickle."""
    import torch
    from torch.export.pt2_archive import _package as package

    only_tensors = partial(_load_tensors, torch.load)
    patched = [
        (torch, "load", only_tensors),
        (torch._C, "_pickle_load_obj", _refuse),
        (package, "pickle", _NoPickle),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patched]
    for owner, name, ours in patched:
        setattr(owner, name, ours)
    try:
        yield
    finally:
        for owner, name, theirs in before:
            setattr(owner, name, theirs)


def _load_tensors(load: Any, *args: Any, **kwargs: Any) -> Any:
    return load(*args, **{**kwargs, "weights_only": True})


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise StageError(
        message="the .pt2 holds a pickled object, which may run code",
        hint="save it again by torch.export.save of a current torch, with plain tensors only",
    )


class _NoPickle:
    loads = staticmethod(_refuse)
