"""No kernel with more than 1 % of a model's time is left scalar, or to the last rule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tapml_stages.tensorir.schedule import ORDER

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "model_kernels.py"
MODELS = (
    "bert",
    "llama",
    "gemma2",
    "gpt2",
    "mixtral",
    "t5",
    "vit",
    "whisper",
    "resnet",
    "mobilenet",
    "efficientnet",
    "unet",
    "lstm",
)


RECIPES = [  # those that extend another have its kernels, or sparse ones
    "centerface",
    "efficientnet_lite0",
    "magika",
    "minilm",
    "ocr_detect",
    "ocr_line",
    "ocr_turn",
    "operator_quantized",
    "operator_sparse",
    "silero_vad",
    "smollm2",
]


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("model", [*MODELS, *RECIPES])
def test_every_kernel_that_counts_has_a_rule_and_vectors(model: str, tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    command = [sys.executable, str(SCRIPT), model, "--seconds", "0.02", "--out", str(out)]
    for _ in range(2):  # a neighbour can make a small kernel look large, hardly the same one twice
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["models"][model]["kernels"]
    for clone in {row["clone"] for row in found}:
        assert sum(row["share"] for row in found if row["clone"] == clone) > 0.95
    rules = {row["rule"] for row in found if row["share"] > 0.01}
    assert rules <= {*ORDER, "its own"} - {"fallback"}  # its own: the importer's recurrent kernels
