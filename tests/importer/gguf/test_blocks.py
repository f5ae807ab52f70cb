"""Matrices of a GGUF file that stay integers, from the file to the library."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import assemble, lower

from tapml.stage import Context, File, Inputs
from tapml_stages import codec, program
from tapml_stages.importer.stage import Import
from tapml_stages.program import scales_name
from tapml_stages.quantization import integers_of

pytestmark = [pytest.mark.torch, pytest.mark.slow]
Write = Callable[..., tuple[Path, Any]]
BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}


def imported(path: Path, folder: Path, **options: Any) -> tuple[dict[str, Path], Any]:
    """Artifacts and report of the import of a language model."""
    folder.mkdir()
    stage = Import(
        source="gguf",
        file=File(path=str(path), sha256="0"),
        task="generate",
        context=32,
        **{"blocks": "keep", **options},
    )
    context = Context(workdir=folder, logger=logging.getLogger("test"), database=folder)
    made = stage.run(Inputs({}), context)
    return {name: Path(one) for name, one in made.artifacts.items()}, made.report


def file_integers(path: Path, name: str, kind: str) -> np.ndarray:
    """The integers of a matrix as the file has them: a block is 32 numbers of a row."""
    import gguf

    (tensor,) = [one for one in gguf.GGUFReader(path).tensors if one.name == name]
    blocks = tensor.data.reshape(len(tensor.data), -1, gguf.GGML_QUANT_SIZES[tensor.tensor_type][1])
    if kind == "Q8_0":
        integers = blocks[..., 2:].view(np.int8)
    else:
        nibbles = blocks[..., 2:] if kind == "Q4_0" else blocks[..., 4:]
        integers = np.concatenate([nibbles & 15, nibbles >> 4], -1).astype(np.int8)
        integers -= 8 if kind == "Q4_0" else 0
    return integers.reshape(len(tensor.data), -1)


@pytest.mark.parametrize("kind", BITS)
def test_scales_and_integers_are_those_of_the_file(write: Write, kind: str) -> None:
    from tapml_stages.importer.gguf.model import load

    path, _ = write(kind)
    read = load(path, keep=True)
    held = dict(read.model.named_parameters())
    matrices = {name for name, value in held.items() if value.ndim == 2}
    assert set(read.blocks) == matrices
    name = "model.layers.1.self_attn.q_proj.weight"
    one = read.blocks[name]
    found = integers_of(held[name].numpy(), one.scales, one.minima, one.how)
    # transformers' order of a query's rows is another than llama.cpp's
    own = file_integers(path, "blk.1.attn_q.weight", kind)
    order = np.arange(64).reshape(4, 8, 2).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(found, own[order])
    assert not np.array_equal(found, own)
    name = "model.layers.0.mlp.down_proj.weight"
    one = read.blocks[name]
    found = integers_of(held[name].numpy(), one.scales, one.minima, one.how)
    np.testing.assert_array_equal(found, file_integers(path, "blk.0.ffn_down.weight", kind))


@pytest.mark.parametrize("kind", BITS)
def test_a_library_computes_with_the_integers_what_the_floats_give(
    write: Write, tmp_path: Path, kind: str
) -> None:
    import torch

    path, _ = write(kind, tied=True)
    held, report = imported(path, tmp_path / "import")
    (table,) = [one for one in report.tables if one.title == "Tensors of the file"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows == {"float32": (5, 0, 5), kind.lower(): (15, 15, 0)}
    source = program.load(held["program"])
    weights = codec.read_weights(held["weights"])
    bundle = assemble(lower(source, tmp_path / "rooms"), weights, tmp_path / "rooms")

    from tapml_stages.importer.gguf.model import load

    ids = np.random.default_rng(0).integers(0, 64, (1, 12))
    with torch.inference_mode():
        expected = load(path).model(input_ids=torch.from_numpy(ids)).logits[0].numpy()
    session, position = bundle.session(fill=np.nan), 0
    for count in (7, 1, 1, 3):
        tokens = ids[:, position : position + count]
        place = {"position": np.array([position]), "last": np.array([count - 1])}
        logits = session(input_ids=tokens, **place)["logits"]
        position += count
        span = float(np.ptp(expected))
        assert np.abs(logits[0] - expected[position - 1]).max() <= 2e-5 * span

    # integers, scales and minima of all matrices but nothing else of their size
    values = sum(w.size for name, w in weights.items() if scales_name(name) in weights)
    numbers = 2 if kind == "Q4_1" else 1
    small = values * BITS[kind] // 8 + values // 32 * 2 * numbers
    vectors = sum(w.nbytes for w in weights.values() if w.ndim == 1)
    assert small <= bundle.manifest["params"]["bytes"] <= small + vectors + 1024


def test_blocks_may_be_dequantised(write: Write, tmp_path: Path) -> None:
    path, _ = write("Q4_1")
    held, report = imported(path, tmp_path / "import", blocks="dequantize")
    assert program.load_io(held["program"]).blocks == {}
    assert all(one.dtype == np.float32 for one in codec.read_weights(held["weights"]).values())
    (table,) = [one for one in report.tables if one.title == "Tensors of the file"]
    assert ("q4_1", 16, 0, 16) in table.rows
