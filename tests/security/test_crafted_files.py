"""Files that were made to run code, to read other files or to take all memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from safetensors import SafetensorError

import tapml
from tapml import inspection
from tapml.errors import EnvironmentalError, StageError, TapmlError
from tapml.store import Record, Store
from tapml_stages import codec
from tapml_stages.importer.onnx import model as onnx_model


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "pwned"


@pytest.fixture
def trap(mark: Path) -> bytes:
    """A pickle that leaves the mark, which it does when it is loaded."""
    data = pickle.dumps(Trap(mark))
    pickle.loads(data)
    assert mark.exists()
    mark.unlink()
    return data


# --- arrays


def object_array(trap: bytes) -> bytes:
    head = io.BytesIO()
    facts = {"descr": "|O", "fortran_order": False, "shape": (1,)}
    np.lib.format.write_array_header_1_0(head, facts)
    return head.getvalue() + trap


def test_a_pickle_in_an_npz_is_not_loaded(tmp_path: Path, trap: bytes, mark: Path) -> None:
    path = tmp_path / "inputs.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", object_array(trap))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        codec.read_npz(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["inputs.npz", "inputs.npy"])
def test_a_pickle_in_place_of_arrays_is_not_loaded(
    tmp_path: Path, trap: bytes, mark: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(trap)
    with pytest.raises(ValueError, match="allow_pickle"):
        codec.read_npz(tmp_path / name)
    assert not mark.exists()


def test_object_arrays_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        codec.write_npz(tmp_path / "x.npz", {"x": np.array([{}], object)})


@pytest.mark.parametrize("claimed", [10**15, 2**63, 2**64 - 1])
def test_a_header_of_weights_that_claims_much_is_refused(tmp_path: Path, claimed: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(claimed.to_bytes(8, "little") + b"{}")
    with pytest.raises(SafetensorError, match="header"):
        codec.read_weights(path)


def test_weights_cannot_lie_outside_their_file(tmp_path: Path) -> None:
    head = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**12]}}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(SafetensorError):
        codec.read_weights(path)


# --- models


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    """An ONNX model whose weight is said to lie in another file."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "link").symlink_to("../secret")

    def make(location: str) -> Path:
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16])
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", location
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [16]) for n in "xy")
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"], "\x1b[2Jadd")], "g", [x], [y], [weight]
        )
        opset = [helper.make_opsetid("", 17)]
        made = helper.make_model(graph, opset_imports=opset, ir_version=9)
        (folder / "m.onnx").write_bytes(made.SerializeToString())
        return folder / "m.onnx"

    return make


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link", "x/../../secret"])
def test_weights_of_a_model_do_not_come_from_outside_its_folder(
    model: Callable[[str], Path], location: str
) -> None:
    path = model(location)
    with pytest.raises(StageError, match=r"m\.onnx"):
        onnx_model.read(str(path))
    with pytest.raises(StageError, match="is refused"):
        inspection.inspect(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04.", b"\xff" * 1000, b"\x08\x07:\xff\xff\xff\x7f"]
)
def test_what_is_no_model_is_an_error_and_no_traceback(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(TapmlError):
        onnx_model.read(str(path))
    with pytest.raises(TapmlError):
        inspection.inspect(str(path))


# --- bundles


@pytest.fixture
def bundle(tmp_path: Path, mark: Path) -> Path:
    """A bundle whose program leaves the mark when it is loaded."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    program = f"open({str(mark)!r}, 'w').close()\ndef load(folder): return lambda: 'ran'\n"
    (folder / "run.py").write_text(program)
    (folder / "lib.so").write_bytes(b"\x7fELF" + bytes(100))
    write_manifest(folder, {name: digest(folder / name) for name in ("run.py", "lib.so")})
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path, files: object) -> None:
    manifest = {"format": 1, "files": files, "library": "lib.so"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_bundle_is_loaded(bundle: Path, mark: Path) -> None:
    assert tapml.load(bundle)() == "ran"
    assert mark.exists()


def flip(folder: Path) -> None:
    path = folder / "lib.so"
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


def swap_for_link(folder: Path) -> None:
    other = folder.with_name("elsewhere.so")
    (folder / "lib.so").rename(other)
    (folder / "lib.so").symlink_to(other)


SPOILT: dict[str, Callable[[Path], object]] = {
    "a flipped bit of the library": flip,
    "a changed program": lambda folder: (folder / "run.py").write_text("def load(f): ..."),
    "no library": lambda folder: (folder / "lib.so").unlink(),
    "a link in place of the library": swap_for_link,
    "an added library": lambda folder: (folder / "libother.so").write_bytes(b"\x7fELF"),
    "an added module": lambda folder: (folder / "json.py").write_text("x = 1"),
    "a module below": lambda folder: (
        (folder / "tvm").mkdir(),
        (folder / "tvm" / "__init__.py").write_text(""),
    ),
    "no files": lambda folder: write_manifest(folder, {}),
    "a list of files": lambda folder: write_manifest(folder, ["run.py"]),
    "a file outside": lambda folder: write_manifest(
        folder, {"run.py": digest(folder / "run.py"), "../../etc/passwd": "0" * 64}
    ),
    "an absolute file": lambda folder: write_manifest(
        folder,
        {"run.py": digest(folder / "run.py"), "/etc/passwd": digest(Path("/etc/passwd"))},
    ),
    "a library that is not named": lambda folder: write_manifest(
        folder, {"run.py": digest(folder / "run.py")}
    ),
    "a manifest that is cut": lambda folder: (folder / "manifest.json").write_text('{"files": {'),
    "a manifest that is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "a manifest that is a pickle": lambda folder: (folder / "manifest.json").write_bytes(b"\x80."),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_bundle_that_is_not_as_built_runs_nothing(
    bundle: Path, mark: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(bundle)
    with pytest.raises(EnvironmentalError, match="is damaged"):
        tapml.load(bundle)
    assert not mark.exists()


def test_names_in_a_manifest_cannot_draw(bundle: Path) -> None:
    write_manifest(bundle, {"\x1b[2J": "0"} | {f"f{i}": "0" for i in range(10_000)})
    with pytest.raises(EnvironmentalError, match="and 99") as caught:
        tapml.load(bundle)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


def test_compiled_python_beside_a_program_is_not_run(bundle: Path, mark: Path) -> None:
    import importlib.util
    import marshal

    program = bundle / "run.py"
    cached = Path(importlib.util.cache_from_source(str(program)))
    cached.parent.mkdir()
    facts = program.stat()
    code = compile("def load(folder): return lambda: 'swapped'", str(program), "exec")
    head = importlib.util.MAGIC_NUMBER + b"\0" * 4
    stamp = int(facts.st_mtime).to_bytes(4, "little") + facts.st_size.to_bytes(4, "little")
    cached.write_bytes(head + stamp + marshal.dumps(code))
    assert tapml.load(bundle)() == "ran"


# --- the store


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Store, Record]:
    """A store with one record, whose output is a folder with a library."""
    store = Store(tmp_path / "store")
    store.prepare()
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "lib.so").write_bytes(b"\x7fELF" + bytes(100))
    record = Record("build", "a" * 64, {"stage": "build"}, {"bundle": store.put(folder)})
    return store, store.publish(record)


def test_a_flipped_bit_of_a_stored_library_is_never_served(
    stored: tuple[Store, Record], tmp_path: Path
) -> None:
    store, record = stored
    (library,) = (store.tree(record.outputs["bundle"]) or {}).values()
    path = store.blob(library)
    path.chmod(0o644)
    times = path.stat()
    flip_at(path, 50)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # its seal looks whole
    with pytest.raises(EnvironmentalError, match="damaged"):
        Store(store.root).materialise(record.outputs["bundle"], tmp_path / "out")
    assert not (tmp_path / "out" / "lib.so").exists()


def flip_at(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/../../../out", "a/../../x\0"])
def test_names_of_a_stored_folder_stay_in_it(
    stored: tuple[Store, Record], tmp_path: Path, name: str
) -> None:
    store, _ = stored
    content = store.put_bytes(b"x")
    listing = store.put_bytes(b"tapml.tree\0" + json.dumps({name: content}).encode())
    with pytest.raises(EnvironmentalError, match="damaged"):
        store.materialise(listing, tmp_path / "deep" / "er" / "folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": {"bundle": "../../../../etc/passwd"}},
        {"outputs": {"bundle": "A" * 64}},
        {"outputs": {"bundle": 7}},
        {"outputs": []},
        {"outputs": None},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_crafted_record_is_a_miss(stored: tuple[Store, Record], change: dict[str, Any]) -> None:
    store, record = stored
    (path,) = (store.root / "ac" / "build" / record.key).glob("0")
    line = json.dumps({**vars(replace(record)), **change}).encode()
    path.chmod(0o644)
    path.write_bytes(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")
    assert Store(store.root).lookup("build", record.key) is None


@pytest.mark.parametrize("stage", ["../ac", "", ".", "..", "a/b", "\x1b[2J"])
def test_a_name_of_a_stage_is_no_path(stored: tuple[Store, Record], stage: str) -> None:
    with pytest.raises(ValueError, match="name of a stage"):
        stored[0].lookup(stage, "a" * 64)
