"""What is read as a kernel: every block a whole store or reduction, in an order that inlining
keeps.
"""

from __future__ import annotations

from typing import Any

import pytest

from tapml_stages.compat import tvm
from tapml_stages.tensorir.intrinsics import vectorizable
from tapml_stages.tensorir.kernel import has_guard, read

ARGUMENTS = ", ".join(
    f'{name}: T.Buffer({shape}, "float32")'
    for name, shape in (("A", (4,)), ("C", (4,)), ("D", (4, 4)))
)


def kernel(*blocks: str) -> Any:
    """What is read of a function of A [4], C [4] and D [4, 4]: blocks under loops of 4."""
    nests = "".join(
        f"""
    for i in range(4):
        with T.sblock("b{k}"):
            {block}"""
        for k, block in enumerate(blocks)
    )
    return read(
        tvm.script.from_source(f"""
@T.prim_func(private=True, s_tir=True)
def main({ARGUMENTS}):{nests}
""")
    )


def lines(*each: str) -> str:
    return "\n            ".join(each)


WHOLE = lines("v = T.axis.spatial(4, i)", "C[v] = A[v] * T.float32(2)")


def test_whole_stores_are_read_in_order() -> None:
    after = lines("v = T.axis.spatial(4, i)", "D[v, 0] = C[v]")
    found = kernel(WHOLE, after)
    assert found is not None
    assert [step.name for step in found.steps] == ["b0", "b1"]


@pytest.mark.parametrize(
    "block",
    [
        lines('v, w = T.axis.remap("SS", [i, i])', "D[v, w] = A[v]"),
        lines("v = T.axis.spatial(4, i)", "w = T.axis.spatial(4, 0)", "D[v, w] = A[v]"),
        lines("v = T.axis.spatial(8, i)", "C[v // 2] = A[v // 2]"),
        lines("v = T.axis.spatial(1, 0)", "C[v] = A[v]"),
    ],
    ids=["a diagonal", "one column", "half of a domain", "a loop that binds nothing"],
)
def test_an_iteration_over_part_of_its_domain_is_none(block: str) -> None:
    assert kernel(block) is None


@pytest.mark.parametrize(
    "blocks",
    [
        (WHOLE, lines("v = T.axis.spatial(4, i)", "A[v] = C[v] + T.float32(1)")),
        (lines("v = T.axis.spatial(4, i)", "C[v] = C[3 - v]"),),
    ],
    ids=["by a later step", "by itself"],
)
def test_a_step_that_reads_what_is_overwritten_is_none(blocks: tuple[str, ...]) -> None:
    assert kernel(*blocks) is None


def test_a_guarded_value_that_is_read_twice_stays_behind_its_guard() -> None:
    guarded = "D[v, 0] = T.if_then_else(v < 2, C[v] + C[v], T.float32(0))"
    found = kernel(WHOLE, lines("v = T.axis.spatial(4, i)", guarded))
    assert found is not None
    value = found.inline(found.steps[1].value, {})
    assert has_guard(value)
    assert not isinstance(value, tvm.tirx.Let)  # nothing is computed before the test


def test_a_clip_that_becomes_an_integer_is_no_chain_of_selections() -> None:
    """TVM's simplifier takes time exponential in how many selections follow each other."""
    x = tvm.tirx.Var("x", "float32")
    low, high = (tvm.tirx.const(value, "float32") for value in (0, 255))
    most = tvm.tirx.Select(high < x, high, x)
    clip = tvm.tirx.Select(most < low, low, most)
    assert "Select" not in str(vectorizable(tvm.tirx.Cast("uint8", clip)))
    assert "Select" in str(vectorizable(clip))  # as a float it keeps NaN
    other = tvm.tirx.Select(most < low, high, most)
    assert "Select" in str(vectorizable(tvm.tirx.Cast("uint8", other)))
