"""Archives of `torch.export.save`, as torch 2.13 writes them: layout, weights, the graph's JSON.

torch's own loader evaluates expressions, resolves dotted names and unpickles objects of the file.
What passes here has none of these but sizes, operators and plain tensors.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

from . import expression
from .archive import Member, members
from .bounded import (
    MAX_TENSORS,
    Tensor,
    listing,
    mapping,
    opened,
    parse_json,
    refuse,
    shown,
    sizes,
    text,
)
from .other import SAFE, refuse_other

ADVICE = "save it again by torch.export.save of a current torch, with plain tensors only"
_MAX_JSON = 256 << 20  # bytes
_MAX_PICKLE = 1 << 20  # bytes of the structure of sample inputs
_EXPANDED = 64 << 20  # bytes that a weight may have beyond what is stored of it
# schema.ScalarType → NumPy's or ml_dtypes' name, bytes
DTYPES: Mapping[int, tuple[str, int]] = {
    1: ("uint8", 1),
    2: ("int8", 1),
    3: ("int16", 2),
    4: ("int32", 4),
    5: ("int64", 8),
    6: ("float16", 2),
    7: ("float32", 4),
    8: ("float64", 8),
    9: ("complex32", 4),
    10: ("complex64", 8),
    11: ("complex128", 16),
    12: ("bool", 1),
    13: ("bfloat16", 2),
    28: ("uint16", 2),
    29: ("float8_e4m3fn", 1),
    30: ("float8_e5m2", 1),
    31: ("float8_e4m3fnuz", 1),
    32: ("float8_e5m2fnuz", 1),
    33: ("float8_e8m0fnu", 1),
    34: ("uint32", 4),
    35: ("uint64", 8),
}
# what torch.save of tensors, and containers of them, refers to
_PLAIN = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch (Size|device)"
    r"|torch \w*(float|int|bool|half|double|complex|long|short)\w*|collections OrderedDict"
    r"|torch\.serialization _get_layout"
)
_HIDDEN = {"STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "INST"}  # ways to a global that are not used
_TARGET = re.compile(
    r"torch\.ops\.(?!load|import|\w*__)[A-Za-z]\w*(\.(?!\w*__)[A-Za-z_]\w*){1,2}"
    r"|torch\.ops\.aten\.__i?(and|or|xor|lshift|rshift)__\.[A-Z]\w*"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|xor|not_"
    r"|getitem|invert|lshift|rshift)"
    r"|torch\._?sym_[a-z0-9_]+|math\.(ceil|floor|trunc|sqrt|pow|log2?|exp)"
)


@dataclass(frozen=True)
class Archive:
    """What a `.pt2` holds.

    tensors:     parameters, buffers and constants by qualified name
    parameters:  names of those that are parameters
    program:     the checked JSON of the exported program
    """

    path: Path
    tensors: Mapping[str, Tensor]
    parameters: frozenset[str]
    program: Mapping[str, Any]


def read(path: Path) -> Archive:
    """A `.pt2` whose loading by torch runs nothing of it. Raises: StageError."""
    refuse_other(path, "archive of torch.export", begins=b"PK")
    with opened(path) as (source, size):
        return _Reader(path, source, size).archive()


class _Reader:
    """Reads members below the archive's one folder, by names without it."""

    def __init__(self, path: Path, source: BinaryIO, size: int) -> None:
        self.path, self.source = path, source
        found = members(path, source, 0, size)
        roots = {name.split("/", 1)[0] for name in found}
        if len(roots) != 1:
            refuse(path, f"{len(roots)} folders at its top: no archive of torch.export")
        self.members = {name.partition("/")[2]: one for name, one in found.items()}

    def archive(self) -> Archive:
        model = self.model()
        self.check_sample_inputs(f"data/sample_inputs/{model}.pt")
        tensors: dict[str, Tensor] = {}
        parameters: set[str] = set()
        for kind, stem in (("weights", "weight_"), ("constants", "tensor_")):
            config = f"data/{kind}/{model}_{kind}_config.json"
            entries = mapping(self.path, self.json(config).get("config"), where=config)
            if len(entries) > MAX_TENSORS:
                refuse(self.path, f"{len(entries)} tensors", where=config)
            for name, entry in entries.items():
                facts = mapping(self.path, entry, where=f"{config}: {shown(name)}")
                tensors[name] = self.tensor(name, facts, f"data/{kind}/", stem)
                if facts.get("is_param") is True:
                    parameters.add(name)
        program = self.json(f"models/{model}.json")
        _check_program(self.path, program)
        return Archive(self.path, tensors, frozenset(parameters), program)

    def model(self) -> str:
        """The name of the one model; nothing that runs code lies beside it."""
        models = [name for name in self.members if name.startswith("models/")]
        if not models:
            if "data.pkl" in self.members:
                refuse(self.path, "it is a pickle of torch.save, which may run code", hint=SAFE)
            what = "it holds no exported program"
            if any(name.startswith("serialized_") for name in self.members):
                what = "it was saved by an old torch, with pickles inside"
            refuse(self.path, what, hint=ADVICE)
        if len(models) > 1 or not (found := re.fullmatch(r"models/([\w.-]+)\.json", models[0])):
            refuse(self.path, f"one model is wanted, not {shown(models)}", hint=ADVICE)
        known = f"data/sample_inputs/{found[1]}.pt"
        for name in self.members:
            if name.startswith("data/aotinductor"):
                refuse(self.path, "compiled code", where=shown(name), hint=ADVICE)
            if name.endswith((".pt", ".pkl")) and name != known:
                refuse(self.path, "a pickle, which may run code", where=shown(name), hint=ADVICE)
        return found[1]

    def json(self, name: str) -> dict[str, Any]:
        if name not in self.members:
            refuse(self.path, "it is missing", where=shown(name), hint=ADVICE)
        data = self.bytes(self.members[name], _MAX_JSON)
        return mapping(self.path, parse_json(self.path, data, where=name), where=name)

    def bytes(self, member: Member, most: int) -> bytes:
        if member.size > most:
            refuse(self.path, f"{member.size} bytes", where=f"member {shown(member.name)}")
        self.source.seek(member.start)
        return self.source.read(member.size)

    def check_sample_inputs(self, name: str) -> None:
        """Raises StageError when the sample inputs, a pickle, hold more than tensors."""
        if name not in self.members or not (size := self.members[name].size):
            return
        inner = members(self.path, self.source, self.members[name].start, size)
        for one, member in inner.items():
            if one.endswith(".pkl"):
                _check_pickle(self.path, self.bytes(member, _MAX_PICKLE), f"{name}: {one}")

    def tensor(self, name: str, entry: dict[str, Any], folder: str, stem: str) -> Tensor:
        """A tensor of a configuration, which must lie in its member."""
        path, where = self.path, f"{folder}: {shown(name)}"
        file = text(path, entry.get("path_name"), where=where)
        if entry.get("use_pickle") is not False or not file.startswith(stem):
            refuse(path, "a pickled object, which may run code", where=where, hint=ADVICE)
        member = self.members.get(f"{folder}{file}")
        if member is None:
            refuse(path, f"its bytes ({shown(file)}) are missing", where=where)
        meta = mapping(path, entry.get("tensor_meta"), where=where)
        dtype, itemsize = dtype_of(path, meta, where)
        shape = _fixed(path, meta.get("sizes"), where)
        strides = _fixed(path, meta.get("strides"), where)
        (offset,) = _fixed(path, [meta.get("storage_offset")], where)
        if len(strides) != len(shape):
            refuse(path, f"{len(shape)} sizes and {len(strides)} strides", where=where)
        nbytes = prod(shape) * itemsize
        reach = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
        if nbytes and (reach * itemsize > member.size or nbytes > member.size + _EXPANDED):
            what = f"{dtype} {list(shape)} (strides {list(strides)}) in {member.size} bytes"
            refuse(path, what, where=where)
        start = member.start + offset * itemsize
        return Tensor(name, dtype, shape, nbytes, start, path.name)


def dtype_of(path: Path, meta: Mapping[str, Any], where: str) -> tuple[str, int]:
    """Name and bytes of an element, by a tensor's description."""
    code = meta.get("dtype")
    if type(code) is not int or code not in DTYPES:
        refuse(path, f"unknown dtype {shown(code)}", where=where)
    return DTYPES[code]


def _fixed(path: Path, value: object, where: str) -> tuple[int, ...]:
    rows = [
        mapping(path, one, where=where).get("as_int") for one in listing(path, value, where=where)
    ]
    return sizes(path, rows, where=where)


def _check_pickle(path: Path, data: bytes, where: str) -> None:
    """Raises StageError when a pickle names anything but tensors; it is read, not loaded."""
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in _HIDDEN or (
                code.name == "GLOBAL" and not _PLAIN.fullmatch(str(argument))
            ):
                refuse(
                    path, f"it would run {shown(argument or code.name)}", where=where, hint=ADVICE
                )
    except (ValueError, UnicodeError, OverflowError) as error:
        refuse(path, f"a damaged pickle: {shown(error)}", where=where)


# --- the program


def _check_program(path: Path, program: dict[str, Any]) -> None:
    """Raises StageError at the first thing that torch's loader would run."""
    for guard in listing(path, program.get("guards_code", []), where="guards_code"):
        _check_text(path, guard, expression.check_guard, "guards_code")
    todo: list[Any] = [program]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += cast("list[Any]", value)
        elif isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            todo += fields.values()
            for key in fields.keys() & _CHECKS.keys():
                _CHECKS[key](path, fields[key])


def _check_text(path: Path, value: object, check: Callable[[str], None], where: str) -> None:
    try:
        check(text(path, value, where=where))
    except expression.UnsafeError as error:
        what = f"{shown(value)} would be run as Python ({error})"
        refuse(path, what, where=where, hint=ADVICE)


def _check_target(path: Path, value: object) -> None:
    if isinstance(value, dict):  # a tensor's or a symbol's name, where metadata says `target`
        return
    target = text(path, value, where="a node's target")
    if not _TARGET.fullmatch(target):
        refuse(path, f"{shown(target)} is no operator", where="a node's target", hint=ADVICE)


def _check_spec(path: Path, value: object) -> None:
    """The nesting of inputs or outputs: JSON in a text, which names types that torch looks up."""
    where = "a tree of inputs or outputs"
    todo = [parse_json(path, text(path, value, where=where).encode(), where=where)]
    while todo:
        one = todo.pop()
        if isinstance(one, list):
            todo += cast("list[Any]", one)
        elif isinstance(one, dict):
            fields = cast("dict[str, Any]", one)
            todo += fields.values()
            if "default" in str(fields.get("type")):
                refuse(path, "a factory of values, which may be anything", where=where, hint=ADVICE)


def _check_object(path: Path, value: object) -> None:
    if value:
        refuse(path, "an object that is no tensor", where=shown(value), hint=ADVICE)


def _check_size(path: Path, value: object) -> None:
    _check_text(path, value, expression.check, "a size")


_CHECKS: Mapping[str, Callable[[Path, object], None]] = {
    "expr_str": _check_size,
    "target": _check_target,
    "as_operator": _check_target,
    "in_spec": _check_spec,
    "out_spec": _check_spec,
    "as_custom_obj": _check_object,
    "custom_obj": _check_object,
    "custom_obj_values": _check_object,
}
