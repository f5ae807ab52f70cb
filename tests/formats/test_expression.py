from __future__ import annotations

import pytest

from tapml.formats import expression

S0 = "Symbol('s0', positive=True, integer=True)"


@pytest.mark.parametrize(
    ("text", "value", "plain"),
    [
        (S0, 6, "s0"),
        ("s0", 6, "s0"),
        (f"Add(Mul(Integer(2), {S0}), Integer(-1))", 11, "2*s0 - 1"),
        (f"Mul(Integer(2), Add({S0}, Integer(1)))", 14, "2*(s0 + 1)"),
        (f"FloorDiv({S0}, Integer(4))", 1, "(s0)//4"),
        (f"Pow({S0}, Integer(2))", 36, "Pow(s0, 2)"),
        (f"Max(Integer(8), {S0})", 8, "Max(8, s0)"),
        (f"Mod({S0}, Integer(4))", 2, "Mod(s0, 4)"),
        ("2*s0 - 1", 11, "2 * s0 - 1"),
        ("Float('1.5', precision=53)", 1, "Float('1.5')"),
    ],
)
def test_a_size_is_what_it_says(text: str, value: int, plain: str) -> None:
    expression.check(text)
    assert expression.size(text, {"s0": 6}) == value
    assert expression.plain(text) == plain


@pytest.mark.parametrize("text", ["s1", f"FloorDiv({S0}, Integer(0))", f"Integer({S0}, {S0})"])
def test_a_size_that_cannot_be_told_is_not_known(text: str) -> None:
    assert expression.size(text, {"s0": 6}) is None


@pytest.mark.parametrize(
    "guard",
    [
        "(L['d']['x'].size()[1] // 2) <= L['d']['x'].size()[0]",
        "4 <= L['args'][0].size()[1] and L['x'].size()[0] != 9",
        "L['x'].stride()[0] == Max(1, L['x'].size()[1])",
    ],
)
def test_a_guard_of_torch_passes(guard: str) -> None:
    expression.check_guard(guard)
