"""Runs this bundle. Needs the TVM runtime and NumPy only.

python run.py                      one call on random inputs, and how long it takes
python run.py in.npz out.npz       inputs by name from one file, outputs by name to another

from run import load
bundle = load(".")
outputs = bundle(bytes=array)      # name → numpy array
session = bundle.session()         # of a program with states: calls that go on from each other
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class BundleError(ValueError):
    """The bundle cannot be loaded here, or was called with inputs that it was not built for."""


class Bundle:
    """A loaded library with its parameters. `Bundle(**arrays)` runs it; `manifest` says what it
    takes and gives.
    """

    def __init__(
        self, folder: str | Path, *, verify: bool = True, threads: int | None = None
    ) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if verify:
            check_files(self.folder, self.manifest)
        check_cpu(self.manifest)
        self.threads = threads or self.manifest["threads"]
        # read when the first parallel kernel of this process makes the pool; setting it by
        # runtime.config_threadpool costs each parallel launch some microseconds more
        os.environ["TVM_NUM_THREADS"] = str(self.threads)
        runtime, machine = import_runtime()
        self._tensor = runtime.tensor
        library = runtime.load_module(str(self.folder / self.manifest["library"]))
        self._machine = machine(library, runtime.cpu())
        with np.load(self.folder / self.manifest["params"]["file"], allow_pickle=False) as params:
            names = self.manifest["params"]["names"]
            tensors = {name: self._tensor(params[name]) for name in dict.fromkeys(names)}
            self._params = [tensors[name] for name in names]

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, as NumPy arrays. States, where there are any, begin as zeros.

        In: every input by name, with the dtype and shape of the manifest; symbolic dims within
            their bounds.
        Raises: BundleError, saying which input is wrong and what is taken.
        """
        call = self.prepare(**arrays)
        return self._named(call())

    def prepare(self, **arrays: np.ndarray) -> Callable[[], Any]:
        """A call without arguments, on device tensors made once; it returns what the library
        returns.
        """
        sizes = check_inputs(self.manifest, arrays)
        return self._prepared(arrays, self._states(sizes, 0))

    def session(self, *, fill: float = 0, **sizes: int) -> Session:
        """Calls that share states, which hold `fill` at first.

        In: a size for each symbolic dim of the states (`batch=2`); its smallest where left out.
        """
        bounds = self.manifest["dims"]
        return Session(self, {name: one["min"] for name, one in bounds.items()} | sizes, fill)

    def _prepared(self, arrays: Mapping[str, np.ndarray], states: list[Any]) -> Callable[[], Any]:
        names = [spec["name"] for spec in self.manifest["inputs"]]
        tensors = [self._tensor(np.asarray(arrays[name], order="C")) for name in names]
        entry = self._machine[self.manifest["entry"]]
        arguments = (*tensors, *states, *self._params)
        return lambda: entry(*arguments)

    def _states(self, sizes: Mapping[str, int], fill: float) -> list[Any]:
        return [
            self._tensor(np.full(shape_of(spec, sizes), fill, spec["dtype"]))
            for spec in self.manifest["states"]
        ]

    def time(
        self, arrays: Mapping[str, np.ndarray], *, repeats: int = 30, warmup: int = 5
    ) -> list[float]:
        """Milliseconds of each of `repeats` warm calls, after `warmup` calls that are not
        counted.
        """
        call = self.prepare(**arrays)
        for _ in range(warmup):
            call()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return times

    def _named(self, result: Any) -> dict[str, np.ndarray]:
        names = [spec["name"] for spec in self.manifest["outputs"]]
        values = [result] if hasattr(result, "numpy") else list(result)
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}


class Session:
    """Calls of a bundle that go on from each other: it owns the states that they update."""

    def __init__(self, bundle: Bundle, sizes: Mapping[str, int], fill: float = 0) -> None:
        if not bundle.manifest["states"]:
            raise BundleError(f"{bundle.folder} keeps no states from call to call")
        self.bundle, self.sizes, self._fill = bundle, sizes, fill
        self._tensors = bundle._states(sizes, fill)

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """As of a bundle; the states are left as the call leaves them."""
        return self.bundle._named(self.prepare(**arrays)())

    def prepare(self, **arrays: np.ndarray) -> Callable[[], Any]:
        """A call without arguments, which may be called again: on the states as they then are."""
        sizes = check_inputs(self.bundle.manifest, arrays)
        for name in {dim for spec in self.bundle.manifest["states"] for dim in spec["shape"]}:
            if isinstance(name, str) and sizes.get(name, self.sizes[name]) != self.sizes[name]:
                raise BundleError(f"{name} is {sizes[name]}, of this session {self.sizes[name]}")
        return self.bundle._prepared(arrays, self._tensors)

    @property
    def states(self) -> dict[str, np.ndarray]:
        """Copies of the states by name."""
        specs = self.bundle.manifest["states"]
        return {s["name"]: t.numpy() for s, t in zip(specs, self._tensors, strict=True)}

    def reset(self) -> None:
        """Puts the states back to what they were at first."""
        for tensor in self._tensors:
            tensor.copyfrom(np.full(tensor.shape, self._fill, str(tensor.dtype)))


def import_runtime() -> tuple[Any, Any]:
    """TVM's runtime and its virtual machine; of TVM only the small runtime library is loaded.

    The environment is put back: processes started later may need the compiler.
    """
    before = os.environ.get("TVM_USE_RUNTIME_LIB")
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    try:
        from tvm import runtime
        from tvm.runtime.vm import VirtualMachine
    finally:
        del os.environ["TVM_USE_RUNTIME_LIB"]
        if before is not None:
            os.environ["TVM_USE_RUNTIME_LIB"] = before
    return runtime, VirtualMachine


def load(folder: str | Path, *, verify: bool = True, threads: int | None = None) -> Bundle:
    """The bundle in a folder. `verify`: compare every file with its digest first."""
    return Bundle(folder, verify=verify, threads=threads)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: it has no manifest.json")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != 1:
        raise BundleError(
            f"{path}: bundle format {manifest.get('format')!r}; this loader reads format 1"
        )
    return manifest


def check_files(folder: str | Path, manifest: Mapping[str, Any]) -> None:
    for name, digest in manifest["files"].items():
        path = Path(folder) / name
        if not path.is_file():
            raise BundleError(f"{path} is missing; build or copy the bundle again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise BundleError(
                f"{path} is damaged (its digest is not the manifest's); copy the bundle again"
            )


def check_cpu(manifest: Mapping[str, Any]) -> None:
    """Raises BundleError on a machine that lacks what the library was compiled for."""
    wanted = manifest["machine"]
    if platform.machine() != wanted:
        raise BundleError(f"built for {wanted}, but this machine is {platform.machine()}")
    missing = sorted(set(manifest["cpu_features"]) - cpu_flags())
    if missing:
        raise BundleError(
            f"built for {manifest['target']['mcpu']}, but this CPU has no {', '.join(missing)}; "
            "build it again with a target that this CPU has"
        )


def cpu_flags() -> set[str]:
    """Names of the CPU's features as Linux gives them."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def shape_of(spec: Mapping[str, Any], sizes: Mapping[str, int]) -> list[int]:
    """The shape of a tensor of the manifest."""
    return [dim if isinstance(dim, int) else sizes[dim] for dim in spec["shape"]]


def check_inputs(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes of the dims in `arrays`. Raises BundleError unless these are the inputs of the
    manifest, with sizes within its bounds.
    """
    specs = {spec["name"]: spec for spec in manifest["inputs"]}
    if set(arrays) != set(specs):
        raise BundleError(
            f"inputs are {', '.join(sorted(specs))}; got {', '.join(sorted(arrays)) or 'none'}"
        )
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        array, shape = arrays[name], spec["shape"]
        if not isinstance(array, np.ndarray):
            raise BundleError(f"{name}: takes a NumPy array, got a {type(array).__name__}")
        if str(array.dtype) != spec["dtype"]:
            raise BundleError(f"{name}: dtype is {spec['dtype']}, got {array.dtype}")
        if array.ndim != len(shape):
            raise BundleError(f"{name}: shape is {shape}, got {list(array.shape)}")
        for dim, size in zip(shape, array.shape, strict=True):
            if isinstance(dim, int):
                if size != dim:
                    raise BundleError(f"{name}: shape is {shape}, got {list(array.shape)}")
            elif dim in manifest["dims"]:
                bounds = manifest["dims"][dim]
                if not bounds["min"] <= size <= bounds["max"]:
                    raise BundleError(
                        f"{name}: {dim} is {bounds['min']}..{bounds['max']}, got {size}"
                    )
                if sizes.setdefault(dim, size) != size:
                    raise BundleError(
                        f"{name}: {dim} is {size} here, but {sizes[dim]} in an input before"
                    )
    return sizes


def random_inputs(
    manifest: Mapping[str, Any], sizes: Mapping[str, int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs of the manifest's dtypes: standard normal floats, integers 0 and 1."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for spec in manifest["inputs"]:
        shape = shape_of(spec, sizes)
        floating = np.dtype(spec["dtype"]).kind == "f"
        values = rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)
        arrays[spec["name"]] = values.astype(spec["dtype"])
    return arrays


def main(arguments: list[str]) -> int:
    try:
        bundle = load(Path(__file__).resolve().parent)
        if len(arguments) == 2:
            with np.load(arguments[0], allow_pickle=False) as data:
                outputs = bundle(**{name: data[name] for name in data.files})
            np.savez(arguments[1], allow_pickle=False, **outputs)
            return 0
        sizes = {name: bounds["min"] for name, bounds in bundle.manifest["dims"].items()}
        times = np.array(bundle.time(random_inputs(bundle.manifest, sizes)))
        print(
            f"{bundle.manifest['name']} {sizes}: {np.median(times):.3f} ms (median of {len(times)})"
        )
        return 0
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
