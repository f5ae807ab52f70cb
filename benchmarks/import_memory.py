"""Peak memory of importing large weights: `benchmarks/import_memory.py [GIB]` (default 2).

A made-up llama of that size, in float32 and in bfloat16, is imported by a process of its own. What
counts is the peak of its resident memory, mapped files included, less that of a model of a few
MiB: TVM, torch and transformers are there anyway.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tapml import host
from tapml.stage import Context, Folder, Inputs

RESULTS = Path(__file__).parent / "results" / "import_memory.json"
WIDTH, VOCABULARY = 2048, 8192


def make(folder: Path, mib: float, dtype: str = "F32") -> int:
    """A folder with a llama of about so many MiB, written one by one; bytes of its weights."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=5504,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_hidden_layers=1,
        tie_word_embeddings=True,
    )
    size = {"F32": 4, "BF16": 2}[dtype]
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    layer = sum(one.numel() for one in model.model.layers[0].parameters()) * size / 2**20
    rest = VOCABULARY * WIDTH * size / 2**20
    config.num_hidden_layers = max(1, round((mib - rest) / layer))
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    config.save_pretrained(folder)
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
    return _write(folder / "model.safetensors", shapes, dtype, size)


def _write(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, size: int) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            bits = values if size == 4 else (values.view(np.uint32) >> 16).astype(np.uint16)
            out.write(bits.tobytes())
    return end


def peak(folder: Path) -> int:
    """Bytes of resident memory at the peak of an import, in a process of its own."""
    command = [sys.executable, __file__, "--import", str(folder)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _import(folder: Path) -> int:
    from tapml_stages.importer.stage import DimBounds, Import, InputSpec

    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        context = Context(Path(work), logging.getLogger("import"), Path(work))
        Import(
            source="huggingface",
            folder=Folder(path=str(folder), files={}),
            signature={"input_ids": InputSpec(shape=(1, "n"), dtype="int64")},
            dims={"n": DimBounds(min=2, max=64)},
        ).run(Inputs({}), context)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if "VmHWM" in line)


def measure(mib: float, dtype: str, folder: Path) -> dict[str, Any]:
    """What an import of so many MiB takes at its peak, over what one of a small model takes."""
    small = folder / "small"
    make(small, 0)
    large = folder / dtype
    size = make(large, mib, dtype)
    before, most = peak(small), peak(large)
    wide = size * (2 if dtype == "BF16" else 1)  # as float32, which they become
    taken = most - before + (small / "model.safetensors").stat().st_size  # float32, held once
    return {
        "dtype": dtype,
        "file_mib": size >> 20,
        "float32_mib": wide >> 20,
        "peak_mib": most >> 20,
        "of_packages_mib": before >> 20,
        "times_float32": round(taken / wide, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gib", type=float, nargs="?", default=2.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--import", type=Path, dest="folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        print(_import(options.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(options.gib * 1024 / (2 if dtype == "BF16" else 1), dtype, Path(folder) / dtype)
            for dtype in ("F32", "BF16")
        ]
    options.out.write_text(json.dumps({"host": host.fingerprint(), "rows": rows}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
