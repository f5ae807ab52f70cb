"""Passes of the recipe's author: where they run, what they may do, and how their errors read."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from graphs import graph, rx

from tapml.errors import StageError
from tapml.stage import Context, Inputs, PythonFunction
from tapml_stages.dataflow import bindings, op_name
from tapml_stages.program import Program, load
from tapml_stages.relax.stage import RelaxPasses

PASSES = """
from tvm import relax, tirx, transform
from tapml_stages.dataflow import op_name, rewrite

def erf_to_tanh(mod):
    def visit(writer, var, value):
        return relax.op.tanh(value.args[0]) if op_name(value) == "relax.erf" else None
    return rewrite(mod, visit)

@transform.module_pass(opt_level=0)
class AsClass:
    def transform_module(self, mod, ctx):
        return erf_to_tanh(mod)

def forgets(mod):
    main = relax.Function(mod["main"].params, mod["main"].body, mod["main"].ret_ty)
    out = type(mod)({})
    out["main"] = main.with_attr("global_symbol", "main")
    return out

def raises(mod):
    raise ValueError("not today")

def gives_nothing(mod):
    pass

def undefined(mod):
    y = relax.Var("y", relax.TensorType((3,), "float32"))
    body = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(relax.Var("z", y.ty), y)])], y)
    func = relax.Function(mod["main"].params, body, y.ty).with_attr("global_symbol", "main")
    out = type(mod)({})
    out["main"] = func
    return out

def other_signature(mod):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((3,), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(x)
    return builder.get()
"""


def written(folder: Path, name: str) -> PythonFunction:
    path = folder / "passes.py"
    path.write_text(PASSES)
    digest = hashlib.sha256(PASSES.encode()).hexdigest()
    return PythonFunction(path=str(path), function=name, sha256=digest)


def run(folder: Path, name: str) -> tuple[Program, Path]:
    program = graph(
        lambda emit, x, w: rx.op.erf(emit(rx.op.matmul(x, w))), {"x": ("batch", 8)}, {"w": (8, 4)}
    )
    inputs = Inputs({"program": program.save(folder / "in")})
    ctx = Context(folder / "out", logging.getLogger("test"), folder, views=folder / "views")
    outputs = RelaxPasses(passes=(written(folder, name),)).run(inputs, ctx)
    return load(Path(outputs.artifacts["program"])), folder / "views"


@pytest.mark.parametrize("name", ["erf_to_tanh", "AsClass"])
def test_a_pass_runs_before_regions_are_marked_and_is_shown(tmp_path: Path, name: str):
    program, views = run(tmp_path, name)
    region = [op_name(value) for _, value in bindings(program.mod["region_0"])]
    assert region == ["relax.matmul", "relax.tanh"]
    (diff,) = views.glob(f"*-user_{name}.diff")
    lines = diff.read_text().splitlines()
    assert any(line.startswith("-") and "R.erf" in line for line in lines)
    assert any(line.startswith("+") and "R.tanh" in line for line in lines)
    assert [path.name for path in sorted(views.glob("*.diff"))][-1].endswith("mark_regions.diff")


def test_what_a_pass_forgets_of_main_is_put_back(tmp_path: Path):
    program, _ = run(tmp_path, "forgets")
    assert program.mod["main"].attrs["num_input"] == 1
    assert "region_0" in {gvar.name_hint for gvar in program.mod.get_global_vars()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"passes.py: raises\(\) raised ValueError: not today"),
        ("gives_nothing", r"passes.py: gives_nothing gave back a NoneType"),
        ("undefined", r"passes.py: undefined gave back a module that is not well-formed: Var y"),
        ("other_signature", r"passes.py: other_signature changed the signature of main"),
    ],
)
def test_what_a_pass_does_wrong_is_told_with_its_name(tmp_path: Path, name: str, message: str):
    with pytest.raises(StageError, match=message):
        run(tmp_path, name)


def test_the_key_of_the_stage_holds_the_source_of_a_pass(tmp_path: Path):
    one = RelaxPasses(passes=(written(tmp_path, "raises"),))
    other = RelaxPasses(passes=(written(tmp_path, "raises").model_copy(update={"sha256": "0"}),))
    assert one.model_dump() != other.model_dump()
    assert "path" not in one.model_dump()["passes"][0]
