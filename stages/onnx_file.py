"""ONNX models on disk: read with their weights left in the files, written with them beside.

`Model` is the small message and the mapped data of its large tensors, which never pass through
protobuf: its limit is 2 GB and it copies. `write` gives `model.onnx` and `weights.bin`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from tapml.errors import StageError
from tapml.formats import onnx_wire
from tapml.formats.bounded import inside

WEIGHTS = "weights.bin"
_ALIGN = 64


class Data:
    """Bytes that tensors of a model point to: in its own file, and in files beside it."""

    def __init__(self, path: Path, own: onnx_wire.Buffer) -> None:
        self._path, self._own = path, own
        self._files: dict[str, onnx_wire.Buffer] = {}

    def array(self, tensor: TensorProto) -> np.ndarray:
        """What a tensor holds; of mapped data a view.

        Raises: StageError naming tensor and file when its data are not there, whole and inside
                the model's folder.
        """
        if tensor.data_location != TensorProto.EXTERNAL:
            return self._inline(tensor)
        entries = {one.key: one.value for one in tensor.external_data}
        location = "" if onnx_wire.HERE in entries else entries.get("location", "")
        buffer = self._map(tensor, location) if onnx_wire.HERE not in entries else self._own
        offset, length = self._place(tensor, entries, len(buffer))
        where = location or self._path.name
        try:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        except KeyError as error:
            raise self._refused(tensor, where, f"of unknown type {error}") from error
        if dtype.hasobject:
            raise self._refused(tensor, where, "texts cannot lie there")
        if not 0 <= offset <= offset + length <= len(buffer):
            span = f"bytes {offset} to {offset + length}"
            raise self._refused(tensor, where, f"it has {len(buffer)} bytes, not {span}")
        if tensor.data_type in _PACKED:
            whole = TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
            whole.raw_data = buffer[offset : offset + length]
            return self._inline(whole)
        if (
            length != (wanted := math.prod(tensor.dims) * dtype.itemsize)
            or min(tensor.dims, default=0) < 0
        ):
            shape = f"{dtype}{list(tensor.dims)}"
            raise self._refused(tensor, where, f"{length} bytes there, {wanted} in {shape}")
        return np.frombuffer(buffer, dtype, math.prod(tensor.dims), offset).reshape(tensor.dims)

    def _inline(self, tensor: TensorProto) -> np.ndarray:
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            where = self._path.name
            raise self._refused(tensor, where, f"its data do not fit its shape: {error}") from error

    def _place(self, tensor: TensorProto, entries: Mapping[str, str], size: int) -> tuple[int, int]:
        try:
            if (here := entries.get(onnx_wire.HERE)) is not None:
                offset, length = here.split()
                return int(offset), int(length)
            offset = int(entries.get("offset") or 0)
            return offset, int(entries.get("length") or size - offset)
        except ValueError as error:
            where = entries.get("location", "")
            raise self._refused(tensor, where, f"its place is no number: {error}") from error

    def _map(self, tensor: TensorProto, location: str) -> onnx_wire.Buffer:
        if location in self._files:
            return self._files[location]
        try:
            self._files[location] = onnx_wire.mapped(inside(self._path.parent, location))
        except StageError as error:
            raise self._refused(tensor, location, error.message) from error
        return self._files[location]

    def _refused(self, tensor: TensorProto, file: str, why: str) -> StageError:
        return StageError(
            message=f"{self._path}: tensor {tensor.name!r} has its data in {file!r}: {why}",
            hint=onnx_wire.ADVICE,
        )


@dataclass(frozen=True)
class Model:
    """A model's message, and what its tensors point to."""

    proto: ModelProto
    data: Data

    def array(self, tensor: TensorProto) -> np.ndarray:
        return self.data.array(tensor)


def read(path: Path) -> Model:
    """The model in a file; large weights are mapped.

    Raises: StageError naming the file when it is broken; naming the tensor when its data are.
    """
    buffer = onnx_wire.mapped(path)
    try:
        proto = ModelProto.FromString(onnx_wire.skeleton(path, buffer))
    except (DecodeError, ValueError) as error:
        raise StageError(
            message=f"{path} is no readable ONNX model: {error}",
            hint=f"the file has {len(buffer)} bytes: is it truncated?",
        ) from error
    model = Model(proto, Data(path, buffer))
    for graph in (proto.graph, *proto.functions):
        for tensor in tensors(graph):
            model.array(tensor)  # raises when they do not fit
    return model


def write(model: Model, folder: Path, weights: Mapping[str, np.ndarray] | None = None) -> Path:
    """`model.onnx` in a new folder, its large initializers streamed into a file beside it.

    In: `weights`: by name of an initializer, what it shall hold instead; other names are skipped
    """
    folder.mkdir()
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    with (folder / WEIGHTS).open("wb") as out:
        for tensor in tensors(proto.graph):
            array = (weights or {}).get(tensor.name)
            outside = tensor.data_location == TensorProto.EXTERNAL
            if array is None and not outside:
                continue
            array = model.array(tensor) if array is None else array
            if array.nbytes < onnx_wire.LARGE or tensor.data_type in _PACKED:
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, order="C"), tensor.name))
                continue
            out.write(b"\0" * (-out.tell() % _ALIGN))
            _point(tensor, array, out.tell())
            np.ascontiguousarray(array).tofile(out)
        empty = not out.tell()
    if empty:
        (folder / WEIGHTS).unlink()
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def tensors(graph: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """Initializers and tensors in attributes, those of subgraphs included."""
    if isinstance(graph, GraphProto):
        yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from tensors(inner)


def _point(tensor: TensorProto, array: np.ndarray, offset: int) -> None:
    """Makes a tensor one of `array`'s type whose data lie at an offset of `WEIGHTS`."""
    place = {"location": WEIGHTS, "offset": str(offset), "length": str(array.nbytes)}
    pointed = TensorProto(
        name=tensor.name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in place.items():
        pointed.external_data.add(key=key, value=value)
    tensor.CopyFrom(pointed)


_PACKED = {
    getattr(TensorProto, name)  # less than a byte an element
    for name in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
    if hasattr(TensorProto, name)
}
