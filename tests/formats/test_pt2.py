from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz import models

from tapml.errors import StageError
from tapml.formats import pt2

Write = Callable[[str, bytes], Path]
Members = dict[str, bytes]
PROGRAM = "small/models/model.json"
WEIGHTS = "small/data/weights/model_weights_config.json"
SAMPLE = "small/data/sample_inputs/model.pt"


def changed(name: str, change: Callable[[Any], object]) -> bytes:
    """A sound archive with the JSON of one member changed."""
    members = models.pt2_members()
    tree = json.loads(members[name])
    change(tree)
    return models.pt2({**members, name: json.dumps(tree).encode()})


def added(**members: bytes) -> bytes:
    return models.pt2(models.pt2_members() | {f"small/{k}": v for k, v in members.items()})


def test_a_sound_archive_gives_weights_and_program() -> None:
    archive = pt2.read(models.PT2)
    found = {name: (one.dtype, one.shape) for name, one in archive.tensors.items()}
    assert found == {
        "conv.weight": ("float32", (8, 3, 3, 3)),
        "conv.bias": ("float32", (8,)),
        "linear.weight": ("float32", (5, 32)),
        "linear.bias": ("float32", (5,)),
        "shift": ("int64", (5,)),
    }
    assert archive.parameters == found.keys() - {"shift"}
    one = archive.tensors["shift"]
    held = np.frombuffer(models.PT2.read_bytes(), one.dtype, one.count, one.start)
    np.testing.assert_array_equal(held, np.arange(5))


@pytest.mark.torch
@pytest.mark.slow
def test_what_torch_saves_here_is_read(tmp_path: Path) -> None:
    import torch

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 6)
            self.wide = torch.nn.Parameter(torch.randn(3, 6))

        def forward(self, x: torch.Tensor, pair: dict[str, torch.Tensor]) -> Any:
            found = self.layer(torch.cat([x, x[:, :-1]], 1))
            return {"y": found @ self.wide.t(), "z": pair["a"].sum().item() + 1}

    dims = ({0: torch.export.Dim("n", min=2, max=9), 1: torch.export.Dim("m", min=3)}, {"a": {}})
    example = (torch.randn(3, 5, 4), {"a": torch.ones(2)})
    exported = torch.export.export(Two().eval(), example, dynamic_shapes=dims)
    torch.export.save(exported, tmp_path / "two.pt2")
    archive = pt2.read(tmp_path / "two.pt2")
    state = exported.state_dict
    assert {k: v.shape for k, v in archive.tensors.items()} == {
        k: tuple(v.shape) for k, v in state.items()
    }


class Canary:
    """A pickle of it leaves a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def pickled(mark: Path) -> bytes:
    import pickle

    return pickle.dumps(Canary(mark), protocol=2)


def test_no_pickle_is_ever_loaded(write: Write, mark: Path) -> None:
    code = pickled(mark)
    sample = models.pt2({"model/data.pkl": code, "model/version": b"3\n"})
    entry = {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": None}
    opaque = {**entry, "path_name": "opaque_obj_0"}
    constants = json.dumps({"config": {"c": opaque}}).encode()
    cases = {
        "in sample inputs": (added(**{"data/sample_inputs/model.pt": sample}), "open"),
        "as a weight": (changed(WEIGHTS, lambda t: t["config"].update(w=entry)), "pickled object"),
        "as an object": (
            added(
                **{
                    "data/constants/model_constants_config.json": constants,
                    "data/constants/opaque_obj_0": code,
                }
            ),
            "pickled object",
        ),
        "as weights of old": (added(**{"data/weights/model.pt": code}), "a pickle, which may run"),
        "of torch.save": (models.pt2({"m/data.pkl": code, "m/version": b"3"}), "of torch.save"),
    }
    for name, (data, match) in cases.items():
        with pytest.raises(StageError, match=match):
            pt2.read(write(f"{name}.pt2", data))
    assert not mark.exists()


HIDDEN = {  # ways to `os.system` in a pickle
    "by the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "by an old opcode": b"(S'x'\nios\nsystem\n.",
    "by its name": b"cos\nsystem\n.",
    "by torch": b"ctorch\nload\n.",
    "by a table": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("code", HIDDEN.values(), ids=HIDDEN)
def test_a_pickle_that_names_anything_but_tensors_is_refused(write: Write, code: bytes) -> None:
    sample = models.pt2({"model/data.pkl": code})
    with pytest.raises(StageError, match="would run"):
        pt2.read(write("m.pt2", added(**{"data/sample_inputs/model.pt": sample})))


RUN = "__import__('os').system('touch pwned')"


@pytest.mark.parametrize(
    "text",
    [
        RUN,
        f"Symbol({RUN})",
        "Symbol('s0').__class__",
        "(lambda: 1)()",
        "exit()",
        "Pow(Integer(10), Pow(Integer(10), Integer(10)))",
        "Pow(Pow(Integer(9), Integer(16)), Integer(16))",
        "10**10**10",
        "1+" * 4000 + "1",
        "(" * 3000 + ")" * 3000,
        "Symbol('x; import os')",
        "s0 if s1 else s2",
        "[1][0]",
    ],
)
def test_a_size_that_torch_would_run_is_refused(write: Write, text: str) -> None:
    def change(tree: Any) -> None:
        values = tree["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    with pytest.raises(StageError, match="would be run as Python"):
        pt2.read(write("m.pt2", changed(PROGRAM, change)))


@pytest.mark.parametrize(
    "guard", [RUN, "L['x'].size()[0] < 3, " + RUN, "L['x'].__class__", "L[" + RUN + "]", "f'{L}'"]
)
def test_a_guard_that_torch_would_run_is_refused(write: Write, guard: str) -> None:
    with pytest.raises(StageError, match="would be run as Python"):
        pt2.read(write("m.pt2", changed(PROGRAM, lambda t: t.update(guards_code=[guard]))))


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.load_library.__call__",
        "torch.ops.import_module.x",
        "torch.ops.aten.add.__class__",
        "torch.ops.x.__init__.y",
        "_operator.call",
        "math.__loader__",
        "#extension:x",
        "os.system",
    ],
)
def test_a_node_that_is_no_operator_is_refused(write: Write, target: str) -> None:
    def change(tree: Any) -> None:
        tree["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(StageError, match="no operator"):
        pt2.read(write("m.pt2", changed(PROGRAM, change)))


def test_a_factory_among_the_inputs_is_refused(write: Write) -> None:
    context = {"default_factory_module": "os", "default_factory_name": "abort", "dict_context": []}
    spec = [1, {"type": "collections.d\u0065faultdict", "context": json.dumps(context)}]

    def change(tree: Any) -> None:
        tree["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(spec)

    with pytest.raises(StageError, match="factory"):
        pt2.read(write("m.pt2", changed(PROGRAM, change)))


def meta(**changes: object) -> bytes:
    return changed(WEIGHTS, lambda t: t["config"]["conv.bias"]["tensor_meta"].update(changes))


TENSORS: dict[str, tuple[bytes, str]] = {
    "larger than its bytes": (meta(sizes=[{"as_int": 9}]), "in 32 bytes"),
    "beyond its bytes": (meta(storage_offset={"as_int": 1}), "in 32 bytes"),
    "of 2^62 elements": (meta(sizes=[{"as_int": 2**62}] * 2, strides=[{"as_int": 0}] * 2), "more"),
    "of one element 2^40 times": (
        meta(sizes=[{"as_int": 2**40}], strides=[{"as_int": 0}]),
        "in 32 bytes",
    ),
    "with a stride below 0": (meta(strides=[{"as_int": -1}]), "size from 0"),
    "with strides for another rank": (meta(strides=[]), "1 sizes and 0 strides"),
    "of an unknown dtype": (meta(dtype=99), "unknown dtype"),
    "of a size that is an expression": (meta(sizes=[{"as_expr": {"expr_str": "s0"}}]), "size from"),
    "whose bytes are missing": (
        changed(WEIGHTS, lambda t: t["config"]["conv.bias"].update(path_name="weight_99")),
        "are missing",
    ),
    "whose bytes are elsewhere": (
        changed(WEIGHTS, lambda t: t["config"]["conv.bias"].update(path_name="../../etc/passwd")),
        "pickled object",
    ),
}


@pytest.mark.parametrize(("data", "match"), TENSORS.values(), ids=TENSORS)
def test_a_weight_that_lies_is_refused(write: Write, data: bytes, match: str) -> None:
    with pytest.raises(StageError, match=match):
        pt2.read(write("m.pt2", data))


def bomb() -> bytes:
    """A member of 10 GB of zeros, packed, as its listing says."""
    data = bytearray(
        models.pt2(models.pt2_members() | {"small/zeros": bytes(1 << 16)}, zipfile.ZIP_DEFLATED)
    )
    at = data.index(b"PK\1\2", data.rindex(b"small/zeros") - 46)
    data[at + 24 : at + 28] = (0xFFFFFFFE).to_bytes(4, "little")
    return bytes(data)


def listed_twice() -> bytes:
    """Two members of the same bytes."""
    data = bytearray(models.pt2({"a/x": bytes(50), "a/y": bytes(50)}))
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = bytes(4)
    return bytes(data)


def other_name() -> bytes:
    return models.pt2({"a/x": b"1"}).replace(b"a/x", b"a/z", 1)


def linked() -> bytes:
    import io

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        one = zipfile.ZipInfo("a/x")
        one.external_attr = 0o120777 << 16
        archive.writestr(one, "/etc/passwd")
    return out.getvalue()


ZIPS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no zip archive"),
    "no zip": (b"PK\3\4" + bytes(100), "no zip archive"),
    "10 GB of zeros": (bomb(), "unpack to"),
    "a path out of it": (models.pt2({"a/../../x": b""}), "leads out"),
    "an absolute path": (models.pt2({"/etc/passwd": b""}), "leads out"),
    "a path of Windows": (models.pt2({"a\\..\\x": b""}), "leads out"),
    "a link": (linked(), "a link"),
    "two members of the same bytes": (listed_twice(), "overlap|another one"),
    "another name inside": (other_name(), "another one"),
    "a listing of 16 MB": (
        models.pt2({"a": b""})[:-22] + bytes(16 << 20) + b"PK\5\6" + bytes(4) + b"\1\0\1\0"
        + (16 << 20).to_bytes(4, "little") + bytes(6),
        "no zip archive",
    ),
    "two folders at its top": (models.pt2({"a/x": b"", "b/x": b""}), "2 folders"),
    "no program": (models.pt2({"a/x": b""}), "no exported program"),
    "two programs": (added(**{"models/other.json": b"{}"}), "one model is wanted"),
    "compiled code": (added(**{"data/aotinductor/m/a.so": b"\x7fELF"}), "compiled code"),
    "no weights": (
        models.pt2({k: v for k, v in models.pt2_members().items() if k != WEIGHTS}),
        "is missing",
    ),
    "bytes before it": (b"x" + models.PT2.read_bytes(), "no zip archive|before its first"),
    "bytes behind it": (models.PT2.read_bytes() + b"x", "no zip archive"),
    "a zip inside it alone": (models.PT2.read_bytes()[:-30], "no zip archive"),
    "cut off": (models.PT2.read_bytes()[:-30], "no zip archive"),
    "a program that is no JSON": (added(**{"models/model.json": b"{"}), "no JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "match"), ZIPS.values(), ids=ZIPS)
def test_an_archive_that_lies_is_refused(write: Write, data: bytes, match: str) -> None:
    path = write("m.pt2", data)
    with pytest.raises(StageError, match=match) as caught:
        pt2.read(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("data", [one for one, _ in (*ZIPS.values(), *TENSORS.values())])
def test_what_lies_is_refused_within_5_s_and_1_gb(write: Write, data: bytes) -> None:
    outcome = models.inspected(write("model.pt2", data).parent, "pt2")
    assert outcome.problems == ()
    assert outcome.codes == (1,)
