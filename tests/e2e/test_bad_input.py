"""Bad input: one clear error, the right exit code, soon, and nothing lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Ended, finished, limit_s, nothing_is_lost, tapml
from onnx import TensorProto, helper, numpy_helper
from small_models import RECIPE, write_mlp

pytestmark = pytest.mark.e2e

Ran = Callable[..., Ended]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    return finished(tmp_path_factory.mktemp("good"))


@pytest.fixture
def run(made: tuple[Path, Ended], tmp_path: Path) -> Ran:
    """`tapml run` of a changed recipe or other files, on a store with a good run."""
    store, good = made

    def call(
        recipe: str = RECIPE,
        files: dict[str, str | bytes | None] | None = None,
        *arguments: str,
        env: dict[str, str] | None = None,
    ) -> Ended:
        write_mlp(tmp_path, recipe)
        for name, content in (files or {}).items():
            if content is None:
                (tmp_path / name).unlink()
            else:
                data = content.encode() if isinstance(content, str) else content
                (tmp_path / name).write_bytes(data)
        done = tapml(tmp_path, "run", "recipe.yaml", *arguments, store=store, env=env)
        assert "Traceback" not in done.out + done.err
        assert nothing_is_lost(store, good)
        return done

    return call


def refused(done: Ended, code: int, *parts: str) -> None:
    """It ended before any stage ran, with one error that has these parts."""
    assert done.code == code, done.err
    assert done.events == ()
    assert done.out == ""
    assert done.err.count("error: ") == 1
    for part in parts:
        assert part in done.err
    print(f"{done.seconds:.1f} s")
    assert done.seconds < limit_s()


def failed(done: Ended, stage: str, code: int, *parts: str) -> None:
    """The stage failed, soon after its start, with one error that has these parts.

    Its first line is told at once; what does not depend on the stage still runs.
    """
    assert done.code == code, done.err
    assert done.states[stage] == "failed"
    assert list(done.states.values()).count("failed") == 1
    assert done.err.count("error: ") == 1
    for part in (f"error: {stage}: ", *parts):
        assert part in done.err
    print(f"{done.seconds_until_told(stage):.1f} s from the start of {stage}")
    assert done.seconds_until_told(stage) < limit_s()


# --- before any stage runs


def changed(old: str, new: str) -> str:
    assert old in RECIPE
    return RECIPE.replace(old, new)


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        pytest.param(RECIPE + "tags: [a, b\n", ["recipe.yaml:14:1", "broken YAML"], id="broken"),
        pytest.param(RECIPE + "\ttags: 1\n", ["recipe.yaml:13:1", "broken YAML", "^"], id="tab"),
        pytest.param("", ["recipe.yaml:1:1", "empty"], id="empty"),
        pytest.param(
            changed("trials: 0", "trails: 0"),
            ["recipe.yaml:11:10: tuning.trails: unknown key", "did you mean 'trials'?", "^^^^^^"],
            id="unknown key",
        ),
        pytest.param(
            changed("tuning:", "tunning:"),
            ["recipe.yaml:11:1: tunning: unknown key", "did you mean 'tuning'?"],
            id="unknown section",
        ),
        pytest.param(
            RECIPE + "tuning: {trials: 4}\n",
            ["recipe.yaml:13:1: tuning: duplicate key (first at line 11)"],
            id="duplicate key",
        ),
        pytest.param(
            changed("max: 8}", "max: 8.5}").replace("trials: 0", "trials: many"),
            [
                "recipe.yaml:8:31: model.dims.batch.max: expected an integer, not 8.5",
                "recipe.yaml:11:18: tuning.trials: expected an integer, not the string 'many'",
            ],
            id="wrong types",
        ),
        pytest.param(
            RECIPE + "x-note: !!python/object/apply:os.system [exit]\n",
            ["recipe.yaml:13:9: x-note: tag", "is not allowed"],
            id="tag",
        ),
        pytest.param(
            changed("mlp.onnx", "mpl.onnx"),
            ["recipe.yaml:6:9: model.path: no file 'mpl.onnx'", "did you mean 'mlp.onnx'?"],
            id="missing model",
        ),
        pytest.param(
            changed("{x: {", "{xx: {"),
            ["recipe.yaml:7:12: model.inputs.xx", "no input 'xx'", "did you mean 'x'?"],
            id="input that the model lacks",
        ),
        pytest.param(
            changed("preset: cpu", "preset: cpux"),
            ["recipe.yaml:10:18: target.preset: unknown preset 'cpux'", "did you mean 'cpu'?"],
            id="unknown preset",
        ),
        pytest.param(
            changed("preset: cpu", "kind: metal"),
            ["recipe.yaml:10:16: target.kind: unknown value 'metal'", "llvm"],
            id="unknown target",
        ),
        pytest.param(
            changed("preset: cpu", "kind: llvm, mcpu: skylak"),
            ["recipe.yaml:10:28: target.mcpu: unknown CPU 'skylak'", "did you mean 'skylake'?"],
            id="unknown mcpu",
        ),
        pytest.param(
            changed("[batch, 16]", "[batch, n]"),
            ["recipe.yaml:7:31: model.inputs.x.shape.1: dim 'n' has no bounds", "model.dims"],
            id="unknown dim",
        ),
        pytest.param(
            changed("workflow: deploy", "workflow: deplyo"),
            ["recipe.yaml:3:11: workflow: unknown workflow 'deplyo'", "did you mean 'deploy'?"],
            id="unknown workflow",
        ),
    ],
)
def test_a_mistake_in_the_recipe_is_told_with_its_place(
    run: Ran, recipe: str, parts: list[str]
) -> None:
    done = run(recipe)
    refused(done, 2, *parts)


@pytest.mark.parametrize(
    ("field", "python", "parts"),
    [
        ("inputs", None, ["no file 'own.py'", "looked in"]),
        ("inputs", "def same():\n    return 1\n", ["no function 'some'", "did you mean 'same'?"]),
        ("metric", "def same():\n    return 1\n", ["no function 'some'", "did you mean 'same'?"]),
        ("inputs", "def some(:\n", ["'own.py', line 1: invalid syntax"]),
    ],
    ids=["no file", "no input function", "no metric function", "no Python"],
)
def test_python_that_is_not_there_is_told_before_any_stage_runs(
    run: Ran, field: str, python: str | None, parts: list[str]
) -> None:
    recipe = changed("repeats", f"{field}: {{python: 'own.py:some'}}, repeats")
    done = run(recipe, {} if python is None else {"own.py": python})
    refused(done, 2, f"recipe.yaml:12:31: validation.{field}.python: ", *parts)


def test_a_package_that_is_not_installed_is_told_with_the_command_that_mends_it(run: Ran) -> None:
    recipe = changed("path: mlp.onnx", "path: ${package:no_such_package}/model.onnx")
    refused(run(recipe), 3, "recipe.yaml:6:9", "not installed", "pip install 'no_such_package'")


HIDDEN = """\
import importlib.metadata, importlib.util
version, find_spec = importlib.metadata.version, importlib.util.find_spec
def no_version(name):
    if name == "onnxruntime":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = no_version
importlib.util.find_spec = lambda name, *rest: None if name == "onnxruntime" else find_spec(name)
"""


def test_a_package_that_a_stage_needs_is_told_before_any_stage_runs(
    run: Ran, tmp_path: Path
) -> None:
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = run(RECIPE, {"sitecustomize.py": HIDDEN}, env={"PYTHONPATH": path})
    refused(done, 3, "'onnxruntime' is not installed", "pip install onnxruntime")


def test_a_gate_without_its_metric_says_what_it_needs(run: Ran) -> None:
    done = run(changed("repeats", "gates: {metric: {min: 0.9}}, repeats"))
    assert done.code == 4
    assert "metric no figure, limit ≥ 0.9; it needs `validation.metric`" in done.err


def test_a_missing_compiler_is_told_before_any_stage_runs(run: Ran, tmp_path: Path) -> None:
    done = run(env={"PATH": str(tmp_path), "CXX": "", "CC": ""})
    refused(done, 3, "no C compiler on PATH", "apt-get install")


def test_a_recipe_that_is_not_there_is_told(made: tuple[Path, Ended], tmp_path: Path) -> None:
    refused(tapml(tmp_path, "run", "none.yaml", store=made[0]), 2, "none.yaml: no such file")


def test_a_mistake_on_the_command_line_is_told_with_the_nearest_name(run: Ran) -> None:
    refused(run(RECIPE, {}, "--set", "tuning.trails=3"), 2, "did you mean 'trials'?")


# --- when the import meets it


def value(name: str, *shape: int | str) -> object:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(*nodes: tuple, weights: dict[str, np.ndarray] | None = None) -> bytes:
    """A model from `x` to `y`; a node is (operator, inputs, output, name, [domain])."""
    graph = helper.make_graph(
        [
            helper.make_node(op, ins, [out], name, domain=domain[0] if domain else "")
            for op, ins, out, name, *domain in nodes
        ],
        "small",
        [value("x", "batch", 16)],
        [value("y", "batch", 8)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_model_is_told(run: Ran, tmp_path: Path, part: float) -> None:
    write_mlp(tmp_path)
    whole = (tmp_path / "mlp.onnx").read_bytes()
    done = run(files={"mlp.onnx": whole[: int(part * len(whole))]})
    failed(done, "import", 1, "mlp.onnx", "truncated", "import.log")


def test_every_unsupported_operator_is_told_at_once_with_count_and_nodes(run: Ran) -> None:
    nodes = [("Foo", ["x"], "a", "first"), ("Foo", ["a"], "b", "second")]
    nodes += [("Relu", ["b"], "c", "fine"), ("Bar", ["c"], "y", "third", "acme")]
    done = run(files={"mlp.onnx": model(*nodes)})
    failed(done, "import", 1, "2 operators", "Foo ×2: first, second", "acme.Bar ×1: third")
    assert "fine" not in done.err


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("[batch, 16]", "[batch, 17]", ["model.inputs.x.shape", "dim 1 is 16 in the model"]),
        ("[batch, 16]", "[batch, 16, 1]", ["model.inputs.x.shape", "has 2 dims, not 3"]),
        ("dtype: float32", "dtype: int32", ["7:43: model.inputs.x.dtype", "is float32, not int32"]),
    ],
    ids=["size", "rank", "dtype"],
)
def test_an_input_that_does_not_fit_the_model_is_told_with_its_place(
    run: Ran, old: str, new: str, parts: list[str]
) -> None:
    done = run(changed(old, new))
    failed(done, "import", 2, "recipe.yaml:7:", *parts)


@pytest.mark.parametrize(
    ("node", "parts"),
    [
        (("MatMul", ["x", "w"], "y", "odd"), ["node odd (MatMul)", "16", "12"]),
        (("MatMul", ["x", "gone"], "y", "odd"), ["no valid ONNX model", "'gone'", "name: odd"]),
    ],
    ids=["sizes", "missing value"],
)
def test_a_model_that_makes_no_sense_is_told_with_its_node(
    run: Ran, node: tuple, parts: list[str]
) -> None:
    weights = {"w": np.ones((12, 8), np.float32)}
    failed(run(files={"mlp.onnx": model(node, weights=weights)}), "import", 1, *parts)


# --- when prune, reference and validation meet it


def test_a_pattern_that_matches_nothing_is_told_with_the_nearest_and_all_layers(run: Ran) -> None:
    done = run(RECIPE + "sparsity:\n  layers: [out, hiden]\n")
    places = ["recipe.yaml:14:17: sparsity.layers.1: pattern 'hiden' matches no layer"]
    layers = ["nearest: hidden", "hidden: w1 [16, 32]", "out: w2 [32, 8]"]
    failed(done, "prune", 2, *places, *layers)


def own(python: str, *fields: str) -> tuple[str, dict[str, str | bytes | None]]:
    """The recipe with functions of the file `own.py`."""
    refs = ", ".join(f"{field}: {{python: 'own.py:{field}'}}" for field in fields)
    recipe = changed("repeats", f"{refs}, repeats")
    return recipe, {"own.py": "import numpy as np\n" + python}


@pytest.mark.parametrize(
    ("body", "code", "parts"),
    [
        ("open('photo.png')", 1, ["FileNotFoundError", "photo.png", "own.py:4 in deeper"]),
        ("import no_such_package", 3, ["no_such_package", "pip install no_such_package"]),
        ("return {'x': np.full((4, 16), np.nan, 'float32')}", 1, ["'x'", "64 NaN"]),
        ("return {'xx': np.ones((4, 16), 'float32')}", 1, ["['xx']", "['x']"]),
        ("return {'x': np.ones((4, 17), 'float32')}", 1, ["float32[4, 17]", "[batch, 16]"]),
        ("return {'x': np.ones((4, 16))}", 1, ["float64[4, 16]", "float32[batch, 16]"]),
        ("return {'x': np.ones((0, 16), 'float32')}", 1, ["no samples"]),
        ("return {'x': [[1.0] * 16]}", 1, ["{'x': list}", "NumPy array"]),
        ("return None", 1, ["NoneType", "NumPy array"]),
    ],
    ids=["raises", "imports", "NaN", "name", "shape", "dtype", "empty", "list", "none"],
)
def test_an_input_function_that_fails_is_told_with_file_and_function(
    run: Ran, body: str, code: int, parts: list[str]
) -> None:
    python = f"def deeper():\n    import os\n    {body}\ndef inputs():\n    return deeper()\n"
    done = run(*own(python.replace("    import os\n", "    \n"), "inputs"))
    failed(done, "reference", code, "own.py", *parts)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("return outputs['z'].mean()", ["KeyError: 'z'", "own.py:5 in metric"]),
        ("return float('nan')", ["metric = nan", "finite"]),
        ("return 'good'", ["metric = 'good'", "finite number"]),
    ],
    ids=["raises", "NaN", "text"],
)
def test_a_metric_that_fails_is_told_with_file_and_function(
    run: Ran, body: str, parts: list[str]
) -> None:
    inputs = "def inputs():\n    return {'x': np.ones((4, 16), 'float32')}\n"
    python = f"{inputs}def metric(outputs, reference, inputs):\n    {body}\n"
    done = run(*own(python, "inputs", "metric"))
    failed(done, "validation", 1, "own.py", *parts)


def test_a_model_that_gives_nan_never_passes(run: Ran) -> None:
    nodes = [("MatMul", ["x", "w"], "h", "product"), ("Log", ["h"], "y", "logarithm")]
    done = run(files={"mlp.onnx": model(*nodes, weights={"w": np.ones((16, 8), np.float32)})})
    failed(done, "reference", 1, "onnxruntime", "'y'", "NaN", "validation")
    assert done.states["validation"] == "cancelled"


def test_a_failed_gate_is_4_each_time_and_runs_nothing_the_second(run: Ran) -> None:
    python = (
        "def inputs():\n    return {'x': np.ones((4, 16), 'float32')}\n"
        "def metric(outputs, reference, inputs):\n    return {'same': 0.5}\n"
    )
    recipe, files = own(python, "inputs", "metric")
    recipe = recipe.replace("repeats", "gates: {metric: {min: 0.9}}, repeats")
    first, second = run(recipe, files), run(recipe, files)
    for done in (first, second):
        assert done.code == 4
        assert "metric.same 0.5, limit ≥ 0.9" in done.err
        assert "1 of 2 gates failed" in done.err
    assert first.states["validation"] == "ran"
    assert set(second.states.values()) == {"hit"}


def test_after_all_of_this_a_good_run_has_nothing_to_do(run: Ran) -> None:
    done = run()
    assert done.code == 0
    assert set(done.states.values()) == {"hit"}
    assert "nothing to do" in done.out
