"""A checked GGUF header in the shape of the gguf package's reader, which transformers takes.

The package's own reader cuts every string of a vocabulary out of a memory map, one by one, for most
of the half minute that transformers takes for a model of 98 MB. Ours has read and checked them.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import gguf
import numpy as np

from tapml.formats.bounded import Tensor
from tapml.formats.gguf import DTYPES, Header, Value

_TYPES = {name: kind for kind, (name, _, _) in DTYPES.items()}
_AS_TYPE = {  # Python's type of a value → GGUF's
    bool: gguf.GGUFValueType.BOOL,
    int: gguf.GGUFValueType.INT64,
    float: gguf.GGUFValueType.FLOAT64,
    str: gguf.GGUFValueType.STRING,
}


class _Field:
    """A key's value: `types`, and for each index in `data` the part that holds an element."""

    def __init__(self, value: Value) -> None:
        values = value if isinstance(value, tuple) else (value,)
        element = _AS_TYPE[type(values[0])] if values else gguf.GGUFValueType.INT64
        self.types = [gguf.GGUFValueType.ARRAY, element] if isinstance(value, tuple) else [element]
        self.parts = [one.encode() if isinstance(one, str) else (one,) for one in values]
        self.data = range(len(values))


class _Tensor:
    """A tensor whose blocks are mapped from the file."""

    def __init__(self, header: Header, tensor: Tensor) -> None:
        self.name = tensor.name
        self.tensor_type = gguf.GGMLQuantizationType(_TYPES[tensor.dtype])
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, self.tensor_type)
        raw = np.memmap(header.path, np.uint8, "r", tensor.start, (tensor.nbytes,))
        self.data: Any = raw.reshape(shape)
        if tensor.dtype in ("float32", "float16"):
            self.data = self.data.view(tensor.dtype)


class _Part(_Tensor):
    """The float16 numbers that each block of a tensor begins with, the one at `place`."""

    def __init__(self, header: Header, tensor: Tensor, place: int) -> None:
        super().__init__(header, tensor)
        blocks = self.data.reshape(
            *tensor.shape[:-1], -1, gguf.GGML_QUANT_SIZES[self.tensor_type][1]
        )
        start = 2 * place
        numbers = np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)
        self.data = numbers[..., 0]
        self.tensor_type = gguf.GGMLQuantizationType.F16


class _Reader:
    def __init__(self, header: Header, tensors: Sequence[_Tensor]) -> None:
        self.fields = {key: _Field(value) for key, value in header.metadata.items()}
        self.tensors = tensors


@contextmanager
def reading(header: Header, place: int | None = None, only: Container[str] = ()) -> Iterator[None]:
    """Within, whoever asks the gguf package for a reader gets this header; and its table of names,
    which transformers asks for once for every module of a model, is made once.

    In: `place`: tensors are not their elements, but a number of each of their blocks: its scale at
        0, its minimum at 1; of matrices whose types are in `only`
    """
    every = header.tensors.values()
    if place is None:
        tensors = [_Tensor(header, one) for one in every]
    else:
        tensors = [
            _Part(header, one, place) for one in every if one.dtype in only and len(one.shape) == 2
        ]
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = lambda path: _Reader(header, tensors)
    gguf.get_tensor_name_map = cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before
