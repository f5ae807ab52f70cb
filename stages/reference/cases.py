"""Inputs of the reference: the recipe's real ones in chunks, random ones at every size."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tapml.errors import RecipeError, StageError, nearest
from tapml.stage import File, PythonFunction

from .. import codec
from ..program import Bounds, Io, TensorSpec, concrete_shape, io_from_json

Arrays = dict[str, np.ndarray]
Kind = Literal["real", "random"]


@dataclass(frozen=True)
class Case:
    """Arrays for one call, and the sizes of the dims in them.

    after: the case, just before, whose states the call goes on from; "" where it begins anew
    """

    id: str
    kind: Kind
    sizes: dict[str, int]
    inputs: Arrays
    after: str = ""


@dataclass(frozen=True)
class Real:
    """Real inputs and who gave them. `batches`: each is one call; else `samples` to split."""

    origin: str
    batches: list[Arrays] | None
    samples: Arrays | None


def real_inputs(function: PythonFunction | None, file: File | None) -> Real | None:
    """The recipe's real inputs; its function is called once.

    Raises: StageError naming file and function when it raises or returns something else.
    """
    if file is not None:
        if not zipfile.is_zipfile(file.path):  # a truncated one has lost its directory
            raise StageError(message=f"{file.path} is no readable .npz")
        try:
            return Real(file.path, None, codec.read_npz(Path(file.path)))
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise StageError(message=f"{file.path} is no readable .npz: {error}") from error
    if function is None:
        return None
    origin = f"{function.path}: {function.function}()"
    call = function.load("validation.inputs.python")
    try:
        value = call()
    except Exception as error:  # the user's code: anything may come out of it
        raise function.told(error) from error
    match value:
        case dict() if all(isinstance(one, np.ndarray) for one in value.values()):
            return Real(origin, None, value)
        case [*batches] if batches and all(isinstance(one, dict) for one in batches):
            return Real(origin, batches, None)
    has = f"a {type(value).__name__}"
    if isinstance(value, dict):
        has = f"{{{', '.join(f'{name!r}: {type(one).__name__}' for name, one in value.items())}}}"
    raise StageError(
        message=f"{origin} returned {has}",
        hint="return {input: NumPy array}, or a list of such dicts",
    )


def make(
    io_facts: Mapping[str, Any], real: Real | None, ranges: Mapping[str, tuple[float, float]]
) -> list[Case]:
    """Real cases, then random ones.

    Raises: StageError when real arrays do not fit the signature or hold NaN; RecipeError when
            `ranges` names no input, or is needed.
    """
    io = io_from_json({**io_facts, "params": []})
    names = [spec.name for spec in io.inputs]
    for name in ranges:
        if name not in names:
            hint = nearest(name, names, noun="inputs")
            message = f"the model has no input {name!r}"
            raise RecipeError(field=f"validation.random.{name}", message=message, hint=hint)
    cases = list(_real_cases(io, real)) if real else []
    seen = {name: _range([one.inputs[name] for one in cases]) for name in names} if cases else {}
    for index, sizes in enumerate(sizes_to_try(io.dims, io.buckets)):
        rng = np.random.default_rng([0, index])
        arrays = {spec.name: _random(rng, spec, sizes, ranges, seen) for spec in io.inputs}
        cases.append(Case(f"random/{index}", "random", sizes, arrays))
    return cases


def one_by_one(run: Callable[[Arrays], Arrays], case: Case, io_facts: Mapping[str, Any]) -> Arrays:
    """Outputs of a case computed sample by sample, where every input and output has the same
    leading
    dim; else in one call. Libraries sum in another order for another batch.
    """
    io = io_from_json({**io_facts, "params": []})
    leading = {spec.shape[0] if spec.shape else None for spec in (*io.inputs, *io.outputs)}
    if len(leading) != 1 or not isinstance(dim := leading.pop(), str):
        return run(case.inputs)
    samples = [
        run({name: array[index : index + 1] for name, array in case.inputs.items()})
        for index in range(case.sizes[dim])
    ]
    return {name: np.concatenate([one[name] for one in samples]) for name in samples[0]}


def sizes_to_try(
    dims: Mapping[str, Bounds], buckets: Sequence[Mapping[str, int]]
) -> list[dict[str, int]]:
    """Every bucket, and two other sizes: the largest, and one like 5. `[{}]` without dims."""
    pairs = {name: _others(bounds, name, buckets) for name, bounds in dims.items()}
    largest, odd = ({name: pair[index] for name, pair in pairs.items()} for index in (0, 1))
    tried = [*({**odd, **bucket} for bucket in buckets), largest, odd]
    return [dict(one) for one in dict.fromkeys(tuple(sorted(sizes.items())) for sizes in tried)]


def _others(bounds: Bounds, name: str, buckets: Sequence[Mapping[str, int]]) -> tuple[int, int]:
    """The largest size that is no bucket, and one like 5, if there are so many."""
    taken = {bucket.get(name) for bucket in buckets}
    free = [size for size in range(bounds.max, bounds.min - 1, -1) if size not in taken]
    free = free or [bounds.max]
    return free[0], min(free[1:], key=lambda size: abs(size - 5), default=free[0])


def _range(arrays: Sequence[np.ndarray]) -> tuple[Any, Any]:
    return min(one.min() for one in arrays), max(one.max() for one in arrays)


def demand_finite(what: str, value: np.ndarray, hint: str = "") -> None:
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        bad = int((~np.isfinite(value)).sum())
        raise StageError(message=f"{what} holds {bad} NaN or infinite values", hint=hint)


def save(folder: Path, cases: Sequence[Case]) -> None:
    """inputs.npz and cases.json."""
    arrays = {f"{case.id}/{name}": array for case in cases for name, array in case.inputs.items()}
    codec.write_npz(folder / "inputs.npz", arrays)
    rows = [
        {
            "id": case.id,
            "kind": case.kind,
            "sizes": case.sizes,
            "after": case.after,
            "inputs": {name: f"{case.id}/{name}" for name in case.inputs},
        }
        for case in cases
    ]
    codec.write_json(folder / "cases.json", rows)


def _real_cases(io: Io, real: Real) -> Iterator[Case]:
    if real.batches is not None:
        batches = real.batches
    else:
        assert real.samples is not None
        _demand_names(io, real.origin, real.samples)
        batches = list(_split(io, real.origin, real.samples))
    for index, arrays in enumerate(batches):
        origin = real.origin if len(batches) == 1 else f"{real.origin}, batch {index}"
        _demand_names(io, origin, arrays)
        sizes = _fit(io, origin, arrays)
        ordered = {spec.name: np.asarray(arrays[spec.name], order="C") for spec in io.inputs}
        yield Case(f"real/{index}", "real", sizes, ordered)


def _demand_names(io: Io, origin: str, arrays: Mapping[str, Any]) -> None:
    names = [spec.name for spec in io.inputs]
    if set(arrays) != set(names):
        message = f"{origin} gave inputs {sorted(arrays)}, the model takes {names}"
        raise StageError(message=message)


def _fit(io: Io, origin: str, arrays: Arrays) -> dict[str, int]:
    """Sizes of the dims in a call's arrays. StageError for a wrong dtype, rank, size, or NaN."""
    sizes: dict[str, int] = {}
    for spec in io.inputs:
        array = np.asarray(arrays[spec.name])
        has, want = _written(array.dtype, array.shape), _written(spec.dtype, spec.shape)
        what = f"{origin}: input {spec.name!r}"
        if str(array.dtype) != spec.dtype or array.ndim != len(spec.shape):
            raise StageError(message=f"{what} is {has}, the model takes {want}")
        for dim, size in zip(spec.shape, array.shape, strict=True):
            if size != (sizes.setdefault(dim, size) if isinstance(dim, str) else dim):
                raise StageError(message=f"{what} is {has}, the model takes {want}")
        demand_finite(what, array)
    for name, size in sizes.items():
        bounds = io.dims[name]
        if not bounds.min <= size <= bounds.max:
            message = f"{origin}: {name} is {size}, outside {bounds.min}..{bounds.max}"
            raise StageError(message=message)
    return sizes


def _written(dtype: object, shape: Sequence[int | str]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _split(io: Io, origin: str, samples: Arrays) -> Iterator[Arrays]:
    """Chunks along the leading dim that every input shares; the whole where there is none."""
    leading = {spec.shape[0] if spec.shape else None for spec in io.inputs}
    counts = {len(array) if array.ndim else 0 for array in samples.values()}
    (dim, *more) = leading
    if more or not isinstance(dim, str):
        yield samples
        return
    if counts == {0}:
        raise StageError(message=f"{origin} gave no samples: {dim} is 0")
    if len(counts) != 1 or not (count := counts.pop()):
        shapes = {name: list(array.shape) for name, array in samples.items()}
        raise StageError(message=f"{origin} gave arrays without a shared leading dim: {shapes}")
    for start, size in chunks(count, dim, io.dims[dim], io.buckets):
        yield {name: array[start : start + size] for name, array in samples.items()}


def chunks(
    count: int, dim: str, bounds: Bounds, buckets: Sequence[Mapping[str, int]]
) -> list[tuple[int, int]]:
    """(start, size) that cover `count` samples: each bucket and two other sizes once, as far as the
    samples go, then the largest bucket again and again. The last may overlap to be large enough.
    """
    sizes = [bucket[dim] for bucket in buckets if dim in bucket]
    usual = max(sizes, default=min(bounds.max, 16))
    plan = list(dict.fromkeys([*sizes, *_others(bounds, dim, buckets)]))
    rows: list[tuple[int, int]] = []
    start = 0
    while start < count:
        fitting = [size for size in plan if size <= count - start]
        size = fitting[0] if fitting else min(usual, count - start)
        if fitting:
            plan.remove(size)
        if size < bounds.min <= count:
            start, size = count - bounds.min, bounds.min
        rows.append((start, size))
        start += size
    return rows


def _random(
    rng: np.random.Generator,
    spec: TensorSpec,
    sizes: dict[str, int],
    ranges: Mapping[str, tuple[float, float]],
    seen: Mapping[str, tuple[Any, Any]],
) -> np.ndarray:
    """Random values: standard normal or in the given range; integers as in the real inputs."""
    shape, dtype = concrete_shape(spec, sizes), np.dtype(spec.dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "f":
        if spec.name in ranges:
            return rng.uniform(*ranges[spec.name], shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)
    if spec.name not in ranges and spec.name not in seen:
        raise RecipeError(
            field="validation",
            message=f"input {spec.name!r} is {spec.dtype}: which values are valid?",
            hint=f"give real `inputs`, or `random: {{{spec.name}: [least, largest]}}`",
        )
    low, high = ranges.get(spec.name) or seen[spec.name]
    return rng.integers(int(low), int(high), shape, endpoint=True).astype(dtype)
