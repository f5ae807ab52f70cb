"""The last rule: never declines."""

from __future__ import annotations

from typing import Any

from tapml.stage import Target

from ..kernel import Kernel, Unfit, key, read
from ..loops import scheduled, seq
from ..nests import elementwise, in_memory, reduction


def fallback(func: Any, target: Target) -> Any:
    """Parallel and, where elementwise, vectorised loops, step by step; `func` itself when its
    blocks are opaque.
    """
    kernel = read(func)
    if kernel is None:
        return func
    try:
        return step_by_step(kernel, target)
    except Unfit:
        return func


def step_by_step(kernel: Kernel, target: Target) -> Any:
    """Reductions, steps that are no function of their position, and outputs go to memory; the
    others are inlined.
    """
    held: dict[int, Any] = {}
    outputs = {key(step.buffer) for step in kernel.outputs}
    body, buffers = [], []
    for step in kernel.steps:
        is_output = key(step.buffer) in outputs
        if not (step.reduce or is_output or not step.is_identity):
            continue
        if step.reduce:
            body.append(reduction(kernel, step, held, target))
        else:
            body.append(elementwise(kernel, step, held, target))
        held[key(step.buffer)] = in_memory(step)
        if not is_output:
            buffers.append(step.buffer)
    return scheduled(kernel.func, seq(body), buffers)
