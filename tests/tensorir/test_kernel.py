"""What is read as a kernel: every block a whole store or reduction, in an order that inlining keeps."""

from __future__ import annotations

from typing import Any

import pytest

from tapml_stages.compat import tvm
from tapml_stages.tensorir.kernel import read


def kernel(*blocks: str) -> Any:
    """What is read of a function of A and C, [4, 4] each: blocks under a loop of 4."""
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
def main(A: T.Buffer((4,), "float32"), C: T.Buffer((4,), "float32"), D: T.Buffer((4, 4), "float32")):{nests}
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
