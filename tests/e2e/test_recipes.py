"""The shipped recipes through the whole line, and what a second run re-runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_models import RECIPE, write_mlp

from tapml_stages import codec

pytestmark = pytest.mark.e2e
MAGIKA = Path("recipes/magika.yaml")
# where no time is looked at
BRIEF = ("--set", "tuning.trials=0", "--set", "validation.repeats=5")
SYMBOLIC = ("--set", "model.buckets=[]")
SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    ("recipe", "changed"),
    [
        pytest.param("operator_sparse", (), id="operator_sparse"),
        pytest.param("ocr_detect", SYMBOLIC, id="ocr_detect for all sizes alike"),
        pytest.param("ocr_detect", (), id="ocr_detect", marks=pytest.mark.slow),
        pytest.param("magika_sparse", (), id="magika_sparse", marks=pytest.mark.slow),
    ],
)
def test_a_shipped_recipe_passes_its_gates_untuned(
    tapml: Callable, recipe: str, changed: tuple[str, ...]
) -> None:
    answer = tapml("run", f"recipes/{recipe}.yaml", *BRIEF, *changed)
    assert answer.code == 0, answer.stderr
    assert answer.facts["error"]["passed"]
    assert answer.facts["carve"]["failed"] == []
    assert answer.bundle.is_dir()


@pytest.mark.slow  # a minute of torch's convolutions in float64
@pytest.mark.torch
def test_a_torch_module_recognises_real_photos_at_every_batch(tapml: Callable) -> None:
    answer = tapml("run", "recipes/efficientnet_lite0.yaml", "--set", "tuning.trials=0")
    assert answer.code == 0, answer.stderr
    assert answer.facts["metric"]["recognised"] == 1.0
    assert answer.facts["error"]["passed"]
    assert answer.facts["carve"]["failed"] == []


LARGER = [
    pytest.param(one, marks=pytest.mark.slow) for one in ("ocr_line", "ocr_turn", "centerface")
]


@pytest.mark.parametrize("recipe", ["silero_vad", *LARGER])
def test_a_model_with_real_weights_does_its_work(tapml: Callable, recipe: str) -> None:
    """Reads the words, tells which way up they are, finds the face, hears the speech."""
    answer = tapml("run", f"recipes/{recipe}.yaml", "--set", "tuning.trials=0")
    assert answer.code == 0, answer.stderr
    assert answer.facts["error"]["passed"]
    assert list(answer.facts["metric"].values()) == [1.0]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SHIPPED)
def test_no_kernel_of_a_shipped_recipe_allocates_more_than_scratch_of_a_chunk(
    tapml: Callable, recipe: str
) -> None:
    """Codegen looks at every PrimFunc as LLVM gets it (stages/codegen/scratch.py)."""
    changed = ("--set", "matrix=", "--set", "tuning.trials=0")
    answer = tapml("run", f"recipes/{recipe}.yaml", *changed, "--to", "codegen")
    assert answer.code == 0, answer.stderr


def test_the_points_of_a_matrix_share_what_does_not_differ(tapml: Callable) -> None:
    recipe, fixed = "recipes/operator_formats.yaml", ("--set", "sparsity.prune.density=0.1")
    assert len(tapml("plan", recipe).data["recipes"]) == 4
    answer = tapml("run", recipe, *fixed)
    assert answer.code == 0, answer.stderr
    rows = answer.data["runs"]
    assert [row["label"] for row in rows] == ["format=csr", "format=bsr-16x16"]

    def keys(stage: str) -> set[str]:
        return {row["stages"][stage]["key"] for row in rows}

    assert [len(keys(name)) for name in ("import", "prune", "reference", "codegen")] == [1, 1, 1, 2]
    planned = tapml("plan", recipe, *fixed)
    assert set(planned.states.values()) == {"hit"}


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(
            ("tuning.trials=16", "model.buckets=[{batch: 16}]", "validation.repeats=5"), id="less"
        ),
        pytest.param((), id="as it is shipped", marks=pytest.mark.slow),
    ],
)
def test_magika_is_tuned_and_the_second_run_runs_nothing(
    tapml: Callable, changed: tuple[str, ...]
) -> None:
    options = [word for one in changed for word in ("--set", one)]
    first = tapml("run", MAGIKA, *options)
    assert first.code == 0, first.stderr
    assert first.states["metaschedule"] == first.states["validation"] == "ran"
    assert first.facts["metric"]["same_label"] >= 0.995
    second = tapml("run", MAGIKA, *options)
    assert second.code == 0
    assert set(second.states.values()) == {"hit"}


def test_more_trials_re_run_metaschedule_and_what_follows_as_planned(
    tapml: Callable, tmp_path: Path
) -> None:
    recipe = write_mlp(tmp_path)
    assert tapml("run", recipe, cwd=tmp_path).code == 0
    changed = ("--set", "tuning.trials=65")
    planned = tapml("plan", recipe, *changed, cwd=tmp_path).states
    assert planned["metaschedule"] == "run"
    assert {name for name, state in planned.items() if state != "hit"} == {
        "metaschedule",
        "codegen",
        "validation",
    }
    explained = tapml("explain", recipe, "metaschedule", *changed, cwd=tmp_path)
    assert "trials" in str(explained.data)
    assert "65" in str(explained.data)


def test_another_format_keeps_prune_and_reference(tapml: Callable) -> None:
    recipe = "recipes/operator_sparse.yaml"
    assert tapml("run", recipe, *BRIEF).code == 0
    other = "sparsity.format={kind: bsr, block: [8, 8]}"
    planned = tapml("plan", recipe, *BRIEF, "--set", other).states
    assert planned["prune"] == planned["reference"] == "hit"
    assert planned["sparsetir"] == "run"


@pytest.mark.slow  # the whole of magika again; the small model shows exit code 4 in `make test`
def test_too_much_pruning_fails_the_quality_gate(tapml: Callable) -> None:
    changed = ("--set", "sparsity.prune.density=0.1", "--set", "tuning.trials=0")
    answer = tapml("run", "recipes/magika_sparse.yaml", *changed)
    assert answer.code == 4
    again = tapml("run", "recipes/magika_sparse.yaml", *changed)
    assert again.code == 4
    assert set(again.states.values()) == {"hit"}


def test_the_sparse_operator_is_chosen_over_its_dense_form(tapml: Callable, store: Path) -> None:
    answer = tapml("run", "recipes/operator_sparse.yaml", *BRIEF)
    manifest = codec.read_json(answer.bundle / "manifest.json")
    buckets = [row for row in manifest["regions"] if row["clone"] != "main_dyn"]
    assert len(buckets) == 2
    assert all(row["chosen"] != "dense" for row in buckets)


@pytest.mark.parametrize(
    ("layers", "choose", "sparse"),
    [
        pytest.param("[hidden, out]", "sparse", 2, id="all sparse", marks=pytest.mark.slow),
        pytest.param("[hidden, out]", "dense", 0, id="all dense"),
        pytest.param("[hidden]", "sparse", 1, id="mixed"),
    ],
)
def test_forced_choices_go_through_codegen_and_validation(
    tapml: Callable, tmp_path: Path, layers: str, choose: str, sparse: int
) -> None:
    section = (
        f"sparsity:\n  layers: {layers}\n  prune: {{method: magnitude, density: 0.3}}\n"
        f"  format: {{kind: csr}}\n  choose: {choose}\n"
    )
    recipe = write_mlp(tmp_path, RECIPE + section)
    answer = tapml("run", recipe, cwd=tmp_path)
    assert answer.code == 0, answer.stderr
    manifest = codec.read_json(answer.bundle / "manifest.json")
    chosen = {row["region"] for row in manifest["regions"] if row["chosen"] != "dense"}
    assert len(chosen) == sparse
    assert answer.facts["carve"]["failed"] == []


def test_a_changed_gate_or_comment_re_runs_nothing(tapml: Callable, tmp_path: Path) -> None:
    recipe = write_mlp(tmp_path)
    assert tapml("run", recipe, cwd=tmp_path).code == 0
    recipe.write_text(
        RECIPE.replace("validation: {", "validation: {gates: {bundle_mib: 50.0}, ")
        + "# a comment\n"
    )
    again = tapml("run", recipe, cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert set(again.states.values()) == {"hit"}


def test_new_weights_with_the_same_mask_re_tune_nothing(tapml: Callable, tmp_path: Path) -> None:
    section = "sparsity:\n  layers: [hidden]\n  prune: {method: magnitude, density: 0.3}\n"
    recipe = write_mlp(tmp_path, RECIPE + section)
    assert tapml("run", recipe, cwd=tmp_path).code == 0
    import onnx
    from onnx import numpy_helper

    model = onnx.load(tmp_path / "mlp.onnx")
    for tensor in model.graph.initializer:
        doubled = numpy_helper.to_array(tensor) * np.float32(2)
        tensor.CopyFrom(numpy_helper.from_array(doubled, tensor.name))
    onnx.save(model, tmp_path / "mlp.onnx")
    again = tapml("run", recipe, cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert again.states["import"] == again.states["codegen"] == "ran"
    assert again.states["tensorir"] == again.states["metaschedule"] == "hit"


FLOATS = 4 * 768 * 3072  # bytes of the layer's weight


def test_a_quantized_layer_is_a_quarter_of_the_bytes_and_passes_its_gates(tapml: Callable) -> None:
    answer = tapml("run", "recipes/operator_quantized.yaml")
    assert answer.code == 0, answer.stderr
    manifest = codec.read_json(answer.bundle / "manifest.json")
    # 8 bits and a float per 32 weights, against 32 bits
    assert manifest["params"]["bytes"] < 0.3 * FLOATS
    # the numbers are compared with the rounded weights, the metric with the original ones
    assert answer.facts["error"]["relative"] < 1e-5
    assert 0.9999 < answer.facts["metric"]["cosine"] < 0.999999


@pytest.mark.slow
def test_the_same_layer_not_quantized_differs_from_its_original_by_nothing(tapml: Callable) -> None:
    answer = tapml("run", "recipes/operator_quantized.yaml", "--set", "relax.quantize=null")
    assert answer.code == 0, answer.stderr
    manifest = codec.read_json(answer.bundle / "manifest.json")
    assert manifest["params"]["bytes"] >= FLOATS
    assert answer.facts["metric"]["cosine"] > 0.999999


@pytest.mark.slow
def test_minilm_ranks_sentences_as_torch_does_and_brings_its_tokenizer(tapml: Callable) -> None:
    answer = tapml("run", "recipes/minilm.yaml")
    assert answer.code == 0, answer.stderr
    assert answer.facts["metric"]["spearman"] >= 0.999
    assert answer.facts["error"]["passed"]
    manifest = codec.read_json(answer.bundle / "manifest.json")
    assert "tokenizer.json" in manifest["files"]
    assert (answer.bundle / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("density", "code"), [(0.4, 0), (0.1, 4)])
def test_pruned_minilm_ships_while_it_ranks_sentences_alike(
    tapml: Callable, density: float, code: int
) -> None:
    chosen = f"sparsity.prune.density={density}"
    answer = tapml("run", "recipes/minilm_sparse.yaml", "--set", "matrix=", "--set", chosen)
    assert answer.code == code, answer.stderr
    assert (answer.facts["metric"]["spearman"] >= 0.95) == (code == 0)
    assert answer.facts["error"]["passed"]  # beside torch with the same pruned weights


@pytest.mark.slow
def test_smollm2_decodes_as_transformers_does_and_writes(tapml: Callable) -> None:
    answer = tapml("run", "recipes/smollm2.yaml")
    assert answer.code == 0, answer.stderr
    assert answer.facts["error"]["passed"]
    assert len(answer.facts["error"]["cases"]) == 71
    assert answer.facts["carve"]["failed"] == []
    prompt = "The capital of France is"
    written = tapml("generate", answer.bundle, prompt, "--max-tokens", "8")
    assert "Paris" in written.data["text"]
    assert written.data["decode"]["tokens"] == 7
