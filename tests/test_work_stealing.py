"""Turns of parallel loops run once each, whoever takes them, and none waits for a slow core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rules.kernels import BASELINE

from tapml_stages.compat import tvm
from tapml_stages.target import tvm_target
from tapml_stages.tensorir.loops import loop, parallel, scheduled, store
from tapml_stages.work_stealing import PIPELINE, TAKE

te, tirx = tvm.te, tvm.tirx
INDEX = "int64"


def kernel(count: Any, turn: Any) -> Any:
    """A function of (n,) → (n,), both int64, that runs `turn(input, output, i)` in parallel."""
    x = te.placeholder((count,), INDEX, "x")
    func = te.create_prim_func([x, te.compute((count,), lambda i: x[i], "y")])
    source, output = func.params
    extent = source.ty.shape[0]
    body = parallel([extent], lambda at: turn(source, output, at[0]), INDEX)
    return scheduled(func, body).with_attr("global_symbol", "main")


def build(func: Any, cores: int = 2) -> Any:
    target = BASELINE.model_copy(update={"cores": cores})
    mod = tvm.IRModule({"main": func})
    return tvm.compile(mod, tvm_target(target), tir_pipeline=PIPELINE)


def call(built: Any, x: np.ndarray) -> np.ndarray:
    y = tvm.runtime.tensor(np.full(x.shape, -1, INDEX))
    built["main"](tvm.runtime.tensor(x), y)
    return y.numpy()


def counted(source: Any, output: Any, i: Any) -> Any:
    """Adds to what is there, so that a turn that runs twice shows."""
    return store(output, [i], tirx.BufferLoad(output, [i]) + tirx.BufferLoad(source, [i]))


@pytest.mark.parametrize("cores", [2, 3, 11])
def test_each_turn_runs_once(cores: int) -> None:
    built = build(kernel(tirx.Var("n", INDEX), counted), cores)
    for count in (0, 1, 2, 3, 7, 22, 1000):
        for _ in range(20):
            x = np.arange(count) * 3 + 5
            assert (call(built, x) == x - 1).all()


def test_a_loop_of_a_serial_loop_starts_anew() -> None:
    def often(source: Any, output: Any) -> Any:
        def again(_: Any) -> Any:
            return parallel([source.ty.shape[0]], lambda at: counted(source, output, at[0]), INDEX)

        return loop("again", 5, again)

    func = kernel(64, counted)
    source, output = func.params
    built = build(scheduled(func, often(source, output)))
    assert (call(built, np.arange(64)) == 5 * np.arange(64) - 1).all()


def threads_of_turns() -> list[int]:
    """Who took each of 40 turns, of which the first 20, one core's by right, last 5 ms each."""

    def turn(source: Any, output: Any, i: Any) -> Any:
        sleep = tirx.Evaluate(tirx.call_extern("int32", "usleep", tirx.BufferLoad(source, [i])))
        who = store(output, [i], tirx.call_extern("int32", "gettid").astype(INDEX))
        return tirx.SeqStmt([sleep, who])

    return call(build(kernel(40, turn)), np.where(np.arange(40) < 20, 5000, 0)).tolist()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_a_core_without_work_takes_turns_of_the_other() -> None:
    here = str(Path(__file__).parent)
    env = os.environ | {"TVM_NUM_THREADS": "2", "PYTHONPATH": here}  # read once by a process
    lines = "import json, test_work_stealing as t; print(json.dumps(t.threads_of_turns()))"
    told = subprocess.run(
        [sys.executable, "-c", lines], env=env, capture_output=True, text=True, check=True
    )
    assert len(set(json.loads(told.stdout)[:20])) == 2


@pytest.mark.parametrize(("count", "cores"), [(100, 1), (2, 2)])
def test_where_nothing_can_be_taken_the_loop_is_left_alone(count: int, cores: int) -> None:
    assert TAKE not in build(kernel(count, counted), cores).mod.inspect_source("ll")
    assert TAKE in build(kernel(100, counted)).mod.inspect_source("ll")
