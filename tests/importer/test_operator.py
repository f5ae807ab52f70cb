from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tapml.errors import RecipeError, StageError
from tapml.stage import Context, Inputs, Outputs, PythonFunction
from tapml_stages import codec, program
from tapml_stages.compat import tvm
from tapml_stages.importer.stage import DimBounds, Import, InputSpec

HEADER = """
import numpy as np
from tapml_stages.importer.operator import Operator, from_te
from tvm import relax, te, tirx

WEIGHT = np.arange(12, dtype="float32").reshape(4, 3)

def reference(inputs, weights):
    return {"output": inputs["x"] @ weights["weight"]}

def matmul(constant=False):
    x = relax.Var("x", relax.TensorType((tirx.Var("m", "int64"), 4), "float32"))
    weight = relax.Var("weight", relax.TensorType((4, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x] if constant else [x, weight]):
        factor = relax.const(WEIGHT) if constant else weight
        builder.emit_func_output(builder.emit(relax.op.matmul(x, factor), "product"))
    return builder.get()
"""
RELAX = "def fn(): return Operator(matmul(), {'weight': WEIGHT}, reference)"
CONSTANT = "def fn(): return Operator(matmul(constant=True), {}, reference)"
TE = """
def fn():
    m = te.var("m", "int64")
    x = te.placeholder((m, 4), name="x")
    weight = te.placeholder((4, 3), name="weight")
    k = te.reduce_axis((0, 4))
    product = te.compute((m, 3), lambda i, j: te.sum(x[i, k] * weight[k, j], axis=k))
    return Operator(from_te([x], [product], [weight]), {"weight": WEIGHT}, reference)
"""

ImportOperator = Callable[..., Outputs]


@pytest.fixture
def import_operator(tmp_path: Path, context: Context) -> ImportOperator:
    def run(body: str, dims: tuple[str, ...] = ("m",), **signature: InputSpec) -> Outputs:
        path = tmp_path / "recipe" / "operator_.py"
        path.parent.mkdir()
        path.write_text(HEADER + body)
        digest = hashlib.sha256(body.encode()).hexdigest()
        return Import(
            source="operator",
            python=PythonFunction(path=str(path), function="fn", sha256=digest),
            signature=signature,
            dims={name: DimBounds(min=1, max=8) for name in dims},
        ).run(Inputs({}), context)

    return run


def evaluate(outputs: Outputs, x: np.ndarray) -> np.ndarray:
    imported = program.load(outputs.artifacts["program"])
    weights = codec.read_weights(outputs.artifacts["weights"])
    rx = tvm.relax
    built = tvm.compile(rx.get_pipeline("zero")(imported.mod), tvm.target.Target("llvm"))
    arrays = [x, *(weights[param.name] for param in imported.io.params)]
    vm = rx.VirtualMachine(built, tvm.cpu())
    return vm["main"](*[tvm.runtime.tensor(array) for array in arrays]).numpy()


@pytest.mark.parametrize("body", [RELAX, CONSTANT, TE], ids=["relax", "constant", "te"])
def test_an_operator_computes_what_its_author_wrote(
    import_operator: ImportOperator, body: str
) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_allclose(evaluate(import_operator(body), x), x @ weight, rtol=1e-5)


def test_a_constant_becomes_a_weight_that_its_node_reads(import_operator: ImportOperator) -> None:
    paths = import_operator(CONSTANT).artifacts
    assert list(codec.read_weights(paths["weights"])) == ["constant.0"]
    (row,) = program.load_provenance(paths["program"])
    assert (row.nodes, row.op, row.weights) == (("product",), "relax.matmul", ("constant.0",))


def test_the_source_holds_the_file_and_the_signature(import_operator: ImportOperator) -> None:
    source = import_operator(RELAX).artifacts["source"]
    facts = codec.read_json(source / "source.json")
    assert (facts["kind"], facts["function"]) == ("operator", "fn")
    assert (source / facts["module"]).read_text().startswith(HEADER)
    assert [one["shape"] for one in facts["io"]["inputs"]] == [["m", 4]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def fn(): return 3", "returned a int"),
        ("def fn(): raise KeyError('oh')", "raised KeyError: 'oh'"),
        ("def fn(): return Operator(matmul(), {'wait': WEIGHT}, reference)", "no parameter 'wait'"),
        ("def fn(): return Operator(matmul(), {'weight': WEIGHT.T}, reference)", "main takes"),
        (
            "def fn(): return Operator(matmul(), {'weight': WEIGHT}, reference, ('a', 'b'))",
            r"operator_\.py: fn\(\): main gives 1 outputs, 2 are named",
        ),
    ],
)
def test_a_function_that_gives_no_operator_is_named(
    import_operator: ImportOperator, body: str, message: str
) -> None:
    with pytest.raises(StageError, match=message):
        import_operator(body)


def test_inputs_must_fit_the_recipe(import_operator: ImportOperator) -> None:
    with pytest.raises(RecipeError, match=r"takes float32\[m, 4\], the recipe says") as caught:
        import_operator(RELAX, x=InputSpec(shape=("m", 5), dtype="float32"))
    assert caught.value.field == "model.inputs.x"


def test_a_dim_without_bounds_is_a_mistake_of_the_recipe(import_operator: ImportOperator) -> None:
    with pytest.raises(RecipeError, match="'m' has no bounds") as caught:
        import_operator(RELAX, dims=("mm",))
    assert caught.value.hint == "did you mean 'mm'?"
