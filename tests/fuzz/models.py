"""Hostile model files from seeds: small sound ones, mutated in their bytes and in their fields.

python tests/fuzz/models.py --count 200      of every format, by `tapml inspect`, in warm processes
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import run

FORMATS = ("safetensors", "gguf", "pt2", "huggingface", "onnx")
LIMIT_MIB = 1024.0
PT2 = Path(__file__).parents[1] / "formats" / "data" / "small.pt2"
NUMBERS = (0, 1, -1, 7, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *NUMBERS, 10**30, 1.5, 1e308, True, None, "", "x", "../x", "/etc/passwd", "a\0b", "\x1b[2J",
    "x" * 5000, [], {}, [[]], [None], [2**40, 2**40], {"as_int": 2**62}, {"as_expr": {}},
    {"as_expr": {"expr_str": "__import__('os').system('touch pwned')"}}, list(range(3000)),
)  # fmt: skip


def safetensors(header: object, data: bytes = b"") -> bytes:
    """A safetensors file; `header` is JSON's text, or what becomes it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def gguf(
    tensors: Sequence[tuple[str, tuple[int, ...], int, int]] = (),
    metadata: Sequence[tuple[str, int, bytes]] = (),
    data: bytes = b"",
    *,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file. Tensors: name, shape (fastest axis first), type, offset. Metadata: key, type
    and packed value.
    """
    out = io.BytesIO()
    out.write(b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(tensors), len(metadata)))))
    for key, kind, value in metadata:
        out.write(string(key) + struct.pack("<I", kind) + value)
    for name, shape, kind, offset in tensors:
        out.write(string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        out.write(struct.pack("<IQ", kind, offset))
    out.write(bytes(-out.tell() % 32))
    return out.getvalue() + data


def string(text: str) -> bytes:
    """A string as GGUF writes it."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def pt2(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def pt2_members() -> dict[str, bytes]:
    """The members of a sound archive, by torch 2.13."""
    with zipfile.ZipFile(PT2) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sound(kind: str) -> dict[str, bytes]:
    """The files of a sound model."""
    tensors = {
        "a": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [32, 38]},
    }
    weights = safetensors({"__metadata__": {"format": "pt"}, **tensors}, bytes(38))
    match kind:
        case "safetensors":
            return {"model.safetensors": weights}
        case "gguf":
            metadata = [
                ("general.architecture", 8, string("llama")),
                ("llama.block_count", 4, struct.pack("<I", 2)),
                ("llama.embedding_length", 4, struct.pack("<I", 64)),
                ("llama.attention.head_count", 4, struct.pack("<I", 4)),
                ("llama.context_length", 4, struct.pack("<I", 128)),
                ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + string("a") * 3),
                ("tokenizer.ggml.scores", 9, struct.pack("<IQ3f", 6, 3, 1, 2, 3)),
            ]
            rows = [("token_embd.weight", (64, 4), 8, 0), ("blk.0.ffn_up.weight", (32, 2), 0, 288)]
            return {"model.gguf": gguf(rows, metadata, bytes(288 + 256))}
        case "pt2":
            return {"model.pt2": PT2.read_bytes()}
        case "huggingface":
            config = {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "vocab_size": 256,
            }
            index = {"metadata": {}, "weight_map": dict.fromkeys("ab", "model-1.safetensors")}
            return {
                "config.json": json.dumps(config).encode(),
                "model.safetensors.index.json": json.dumps(index).encode(),
                "model-1.safetensors": weights,
            }
        case _:
            return {"model.onnx": _onnx()}


def _onnx() -> bytes:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((4, 300), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("Shape", ["h"], ["s"]),
        helper.make_node("Reshape", ["h", "s"], ["r"]),
        helper.make_node("Gemm", ["r", "w"], ["y"], transB=1),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4]) for n in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def case(kind: str, seed: int) -> dict[str, bytes]:
    """The files of a seed."""
    rng = random.Random(f"{kind} {seed}")
    files = sound(kind)
    name = rng.choice(sorted(files))
    if rng.random() < 0.5:
        files[name] = _fields(rng, name, files[name])
    for _ in range(rng.choice((0, 1, 1, 3))):
        name = rng.choice(sorted(files))
        files[name] = _bytes(rng, files[name])
    return files


def _fields(rng: random.Random, name: str, data: bytes) -> bytes:
    """The file with a value of another kind in its JSON, the rest of it sound."""
    if name.endswith(".json"):
        return _json(rng, data)
    if name.endswith(".safetensors"):
        (length,) = struct.unpack("<Q", data[:8])
        return safetensors(_json(rng, data[8 : 8 + length]), data[8 + length :])
    if name.endswith(".pt2"):
        members = pt2_members()
        chosen = rng.choice([one for one in members if one.endswith(".json")])
        members[chosen] = _json(rng, members[chosen])
        if rng.random() < 0.2:
            members[rng.choice(("x/../../y", "/etc/passwd", "small/data/weights/weight_0"))] = b"x"
        return pt2(members, rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,)))
    return _bytes(rng, data)


def _json(rng: random.Random, data: bytes) -> bytes:
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        spot, depth = tree, rng.randrange(1, 12)
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = rng.choice(keys)
            depth -= 1
            if depth > 0 and isinstance(spot[key], dict | list) and spot[key]:
                spot = spot[key]
                continue
            if rng.random() < 0.15:
                del spot[key]
            else:
                spot[key] = rng.choice(VALUES)
            break
    text = json.dumps(tree)
    if rng.random() < 0.1:
        text = text.replace(":", rng.choice((': NaN, "x":', ":" + "[" * 5000, ': 1, "a":')), 1)
    return text.encode()


def _bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes cut, doubled, flipped, or with a number of theirs at its limits."""
    out = bytearray(data)
    at = min(int(rng.expovariate(1 / 60)), max(len(out) - 1, 0)) if rng.random() < 0.6 else 0
    at = at or rng.randrange(len(out) or 1)
    match rng.randrange(6):
        case 0:
            del out[at:]
        case 1:
            out[at:at] = out[at : at + rng.choice((1, 8, 64))] * rng.choice((1, 1, 1000))
        case 2:
            width = rng.choice((4, 8))
            out[at : at + width] = (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(
                width, "little"
            )
        case 3:
            del out[at : at + rng.choice((1, 4, 8, 32))]
        case _:
            for _ in range(rng.choice((1, 2, 8))):
                if out:
                    out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def examine(which: tuple[str, int]) -> run.Outcome:
    """What `tapml inspect` makes of a case, in a folder of its own below the working one."""
    kind, seed = which
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for name, data in case(kind, seed).items():
            Path(folder, name).write_bytes(data)
        return inspected(Path(folder), kind, seed)


def inspected(folder: Path, kind: str, seed: int = 0) -> run.Outcome:
    """What `tapml inspect` makes of a folder's model; of a file by its name."""
    target = folder if kind == "huggingface" else folder / f"model.{kind}"
    run.forget_peak()
    before = run.peak_mib()
    start = time.process_time()
    code, out, err = run.call("inspect", str(target), "--json")
    seconds = time.process_time() - start
    problems = list(run.judged(code, out, err, seconds, codes=(0, 1, 2)))
    if "bug of tapml" in err:
        problems.append(err.strip().rpartition("\n")[2][:300])
    mib = run.peak_mib() - before
    if mib > LIMIT_MIB:
        problems.append(f"{mib:.0f} MiB")
    if Path("pwned").exists():
        problems.append("something of the file ran")
    return run.Outcome(seed, (code,), round(seconds, 3), round(mib, 1), tuple(problems))


def sweep(cases: Sequence[tuple[str, int]], jobs: int) -> Iterator[run.Outcome]:
    """The outcomes of many cases, in order, from warm processes of bounded memory."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, start) as pool:
        yield from pool.imap(examine, cases, chunksize=10)
        pool.close()
        pool.join()


def start() -> None:
    """Makes a folder to work in, and bounds what this process can take of the machine."""
    os.environ |= {"NO_COLOR": "1"}
    stack = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tapml-fuzz-"))
    os.chdir(folder)
    multiprocessing.util.Finalize(stack, stack.close, exitpriority=1)
    examine(("onnx", 0))  # warm: what is imported is imported
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = held + (int(LIMIT_MIB) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    failed = 0
    for kind in options.format or FORMATS:
        cases = [(kind, seed) for seed in range(options.first, options.first + options.count)]
        done = list(sweep(cases, options.jobs))
        bad = [one for one in done if one.problems]
        for one in bad:
            print(f"{kind} {one.seed}: {one.problems}")
        failed += len(bad)
        read = sum(one.codes == (0,) for one in done)
        worst, most = max(one.seconds for one in done), max(one.mib for one in done)
        told = f"{len(done)} cases, {read} read, {len(done) - read} refused, {len(bad)} wrong"
        print(f"{kind}: {told}; at most {worst:.2f} s, {most:.0f} MiB", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
