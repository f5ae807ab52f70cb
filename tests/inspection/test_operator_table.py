from __future__ import annotations

import pytest

from tapml.inspection.supported import supported, table


@pytest.mark.torch
@pytest.mark.slow
def test_the_table_of_operators_is_that_of_the_importers_here() -> None:
    """Else: `python -m tapml_stages.importer.operator_table`."""
    from tapml_stages.importer import operator_table

    assert operator_table.table() == table()


def test_the_table_has_what_every_model_needs() -> None:
    assert {"Conv", "MatMul", "Gemm", "Reshape"} <= supported("onnx")
    assert {"linear.default", "conv2d.default", "softmax.int"} <= supported("torch")
    assert "If" not in supported("onnx")
