"""What a model takes, and what the recipe says that it takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from tapml.errors import RecipeError, RecipeErrors

from .source import no_input


class Wanted(NamedTuple):
    """One input as the recipe wants it, or as the model has it (None: a size that may differ)."""

    shape: Sequence[int | str | None]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if one is None else str(one) for one in self.shape)}]"


def match_inputs(
    there: Mapping[str, Wanted],
    wanted: Mapping[str, Wanted],
    *,
    what: str = "the model",
    dims: Collection[str] = (),
    examples: bool = False,
    free: Collection[str] = (),
    hint: str = "",
) -> dict[str, Wanted]:
    """Every input, in the model's order, as the recipe wants it; without `wanted` as it is there.

    In:     `what`: what the model is called; `dims`: those of the recipe; `examples`: sizes there
            are of an example, a dim may stand for one; `free`: inputs whose sizes there do not
            count; `hint`: for a fixed size that is another
    Raises: RecipeError(s): unknown or missing names, other ranks, dtypes or fixed sizes.
    """
    errors = [no_input(name, there) for name in wanted if name not in there]

    def wrong(field: str, message: str, hint: str = "") -> None:
        errors.append(RecipeError(field=field, message=message, hint=hint))

    def differs(size: int | str | None, want: int | str | None, name: str) -> bool:
        is_fixed = isinstance(size, int) and name not in free
        return is_fixed and size != want and not (examples and isinstance(want, str))

    result: dict[str, Wanted] = {}
    for name, has in there.items():
        result[name] = want = wanted.get(name, has)
        field = f"model.inputs.{name}"
        if 0 in has.shape:
            wrong("model.inputs", f"input {name!r} has a dim of size 0 in {what}")
        if name not in wanted:
            open_ = any(not isinstance(dim, int) and dim not in dims for dim in has.shape)
            if wanted or open_:
                wrong("model.inputs", f"input {name!r} ({has}) has no shape in the recipe")
            continue
        if want.dtype != has.dtype:
            wrong(f"{field}.dtype", f"input {name!r} of {what} is {has.dtype}, not {want.dtype}")
        if len(want.shape) != len(has.shape):
            counts = f"{len(has.shape)} dims, not {len(want.shape)}"
            wrong(f"{field}.shape", f"input {name!r} of {what} has {counts}")
        elif fixed := [
            f"dim {axis} is {size} in {what}, not {other}"
            for axis, (size, other) in enumerate(zip(has.shape, want.shape, strict=True))
            if differs(size, other, name)
        ]:
            wrong(f"{field}.shape", f"input {name!r}: {'; '.join(fixed)}", hint)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise RecipeErrors(errors=tuple(errors), message=f"{len(errors)} mistakes in model.inputs")
    return result
