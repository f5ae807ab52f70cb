"""Relax files, run by TVM's own pipeline without any of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .runner import Arrays, Run


class RelaxRunner:
    """The module as the file has it, built by TVM for this machine; "unoptimized": nothing fused,
    no vector code.
    """

    def __init__(
        self, path: Path, params: tuple[str, ...], outputs: tuple[str, ...], threads: int
    ) -> None:
        from ...compat import load_json, tvm

        text = path.read_text(encoding="utf-8")
        self._mod = tvm.script.from_source(text) if path.suffix == ".py" else load_json(text)
        self._params, self._outputs = params, outputs
        self.meta: dict[str, Any] = {
            "kind": "relax",
            "peer": None,
            "model": None,
            "threads": threads,
        }

    def __call__(self, weights: Arrays, *, optimize: bool) -> Run:
        from ...compat import tvm

        relax = tvm.relax
        target = tvm.target.Target({"kind": "llvm", "opt-level": 3 if optimize else 0})
        mod = relax.get_pipeline("zero")(self._mod) if optimize else self._mod
        machine = relax.VirtualMachine(relax.build(mod, target), tvm.cpu())

        def run(inputs: Arrays) -> dict[str, np.ndarray]:
            held = {**weights, **inputs}
            arguments = [np.asarray(held[name], order="C") for name in self._params]
            result = machine["main"](*map(tvm.runtime.tensor, arguments))
            values = [result] if hasattr(result, "numpy") else list(result)
            return {name: value.numpy() for name, value in zip(self._outputs, values, strict=True)}

        return run

    def save(self, weights: Arrays, folder: Path) -> None:
        """Nothing: TVM's own pipeline is no peer that anyone would time."""
