"""A 768×3072 linear layer, as a transformer's feed-forward block has it, with random weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tvm import relax, tirx

from tapml_stages.importer.operator import Operator

IN_FEATURES, OUT_FEATURES = 768, 3072


def linear() -> Operator:
    """`x @ weight + bias` over a symbolic number of rows `m`."""
    rng = np.random.default_rng(0)
    weights = {
        "weight": rng.standard_normal((IN_FEATURES, OUT_FEATURES), dtype=np.float32) / 28,
        "bias": rng.standard_normal(OUT_FEATURES, dtype=np.float32) / 28,
    }
    x = relax.Var("x", relax.TensorType((tirx.Var("m", "int64"), IN_FEATURES), "float32"))
    weight, bias = (
        relax.Var(name, relax.TensorType(array.shape, "float32")) for name, array in weights.items()
    )
    builder = relax.BlockBuilder()
    with builder.function("main", [x, weight, bias]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(x, weight), "linear")
            result = builder.emit_output(relax.op.add(product, bias), "biased")
        builder.emit_func_output(result)
    return Operator(mod=builder.get(), weights=weights, reference=reference)


def reference(
    inputs: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The same in NumPy; everything comes and goes in float64."""
    return {"output": inputs["x"] @ weights["weight"] + weights["bias"]}
