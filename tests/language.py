"""Language models as import writes them, small or of a real one's sizes, and what they compute."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tapml.stage import Context, Inputs, Target
from tapml_stages import codec, records
from tapml_stages.attention import Attention, cache_update, cached_attention
from tapml_stages.codegen.stage import Codegen
from tapml_stages.compat import tvm
from tapml_stages.program import Bounds, Io, Origin, Program, TensorSpec
from tapml_stages.relax.passes import passes
from tapml_stages.tensorir.lower import lower
from tapml_stages.tensorir.schedule import default_records

rx, op = tvm.relax, tvm.relax.op
EPSILON, BASE = 1e-5, 10000.0


@dataclass(frozen=True)
class Llama:
    """Sizes of a model of the llama family, with tied embeddings. `batch` None: symbolic."""

    layers: int = 2
    hidden: int = 24
    heads: int = 4
    kv_heads: int = 2
    inner: int = 40
    vocabulary: int = 50
    context: int = 32
    window: int = 0
    batch: int | None = 1

    @property
    def width(self) -> int:
        return self.hidden // self.heads

    @property
    def attention(self) -> Attention:
        return Attention(self.width**-0.5, window=self.window)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights, by name; matrices as torch holds them, [outputs, inputs]."""
        kv = self.kv_heads * self.width
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocabulary, self.hidden)}
        for k in range(self.layers):
            rows = {"q": self.hidden, "k": kv, "v": kv, "o": self.hidden}
            shapes |= {f"{k}.{name}": (size, self.hidden) for name, size in rows.items()}
            shapes |= {f"{k}.{name}": (self.inner, self.hidden) for name in ("gate", "up")}
            shapes[f"{k}.down"] = (self.hidden, self.inner)
            shapes |= {f"{k}.norm{i}": (self.hidden,) for i in (1, 2)}
        return {**shapes, "norm": (self.hidden,)}

    def weights(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            name: (
                rng.uniform(0.5, 1.5, shape)
                if len(shape) == 1
                else rng.standard_normal(shape) * shape[1] ** -0.5
            ).astype(np.float32)
            for name, shape in self.shapes().items()
        }


def program(model: Llama, buckets: tuple[Mapping[str, int], ...] = ()) -> Program:
    """`main(input_ids [batch, n], position [batch], last [batch], *caches, *weights) -> logits`."""
    n = tvm.tirx.Var("n", "int64")
    batch = tvm.tirx.Var("batch", "int64") if model.batch is None else model.batch
    named_batch = "batch" if model.batch is None else model.batch
    cache = (model.kv_heads, model.context, model.width)
    inputs = {"input_ids": (batch, n), "position": (batch,), "last": (batch,)}
    states = [f"cache.{k}.{what}" for k in range(model.layers) for what in ("key", "value")]
    shapes = model.shapes()
    builder = rx.BlockBuilder()

    def var(name: str, shape: Any, dtype: str) -> Any:
        return rx.Var(name.replace(".", "_"), rx.TensorType(list(shape), dtype))

    given = {name: var(name, shape, "int64") for name, shape in inputs.items()}
    held = {name: var(name, (batch, *cache), "float32") for name in states}
    weights = {name: var(f"w.{name}", shape, "float32") for name, shape in shapes.items()}
    dims = {"n": Bounds(1, model.context)}
    if model.batch is None:
        dims["batch"] = Bounds(1, 4)
    attrs = {
        "num_input": len(given) + len(held),
        "tir_var_lower_bound": {name: bounds.min for name, bounds in dims.items()},
        "tir_var_upper_bound": {name: bounds.max for name, bounds in dims.items()},
    }
    with builder.function("main", [*given.values(), *held.values(), *weights.values()], attrs):
        with builder.dataflow():
            graph = _Graph(builder, model, weights, held, given["position"], batch, n)
            out = builder.emit_output(graph.logits(given["input_ids"], given["last"]))
        builder.emit_func_output(out)
    mod = builder.get()
    values = [binding.var.name for block in mod["main"].body.blocks for binding in block.bindings]
    io = Io(
        inputs=(
            TensorSpec("input_ids", (named_batch, "n"), "int64"),
            TensorSpec("position", (named_batch,), "int64"),
            TensorSpec("last", (named_batch,), "int64"),
        ),
        outputs=(TensorSpec("logits", (named_batch, model.vocabulary), "float32"),),
        params=tuple(TensorSpec(name, shape, "float32") for name, shape in shapes.items()),
        states=tuple(TensorSpec(name, (named_batch, *cache), "float32") for name in states),
        dims=dims,
        buckets=tuple(dict(bucket) for bucket in buckets),
        context=model.context,
    )
    return Program(mod, io, tuple(Origin(value, (f"node/{value}",), "Op") for value in values))


class _Graph:
    """The operators, as transformers writes them."""

    def __init__(
        self,
        builder: Any,
        model: Llama,
        weights: Mapping[str, Any],
        held: Mapping[str, Any],
        position: Any,
        batch: Any,
        n: Any,
    ) -> None:
        self.emit, self.builder, self.model = builder.emit, builder, model
        self.weights, self.held, self.position = weights, held, position
        self.batch, self.n = batch, n

    def logits(self, ids: Any, last: Any) -> Any:
        model, emit = self.model, self.emit
        flat = emit(op.reshape(ids, [-1]))
        x = emit(op.take(self.weights["embed"], flat, axis=0))
        x = emit(op.reshape(x, [self.batch, self.n, model.hidden]))
        self.cos, self.sin = self._angles()
        for layer in range(model.layers):
            x = self._layer(layer, x)
        x = emit(op.gather_elements(x, self._index(last), axis=1))
        x = emit(op.reshape(x, [self.batch, model.hidden]))
        return op.matmul(self._norm(x, "norm"), emit(op.permute_dims(self.weights["embed"])))

    def _index(self, last: Any) -> Any:
        index = self.emit(op.reshape(last, [self.batch, 1, 1]))
        return self.emit(op.broadcast_to(index, [self.batch, 1, self.model.hidden]))

    def _angles(self) -> tuple[Any, Any]:
        emit, half = self.emit, self.model.width // 2
        steps = emit(op.arange(0, self.n, 1, "int64"))
        at = emit(op.add(emit(op.expand_dims(self.position, 1)), emit(op.expand_dims(steps, 0))))
        at = emit(op.expand_dims(emit(op.astype(at, "float32")), 2))
        exponents = emit(op.arange(0, half, 1, "float32"))
        scale = rx.const(-np.log(BASE) / half, "float32")
        rates = emit(op.exp(emit(op.multiply(exponents, scale))))
        angles = emit(op.multiply(at, emit(op.reshape(rates, [1, 1, half]))))
        both = emit(op.expand_dims(emit(op.concat([angles, angles], axis=-1)), 1))
        return emit(op.cos(both)), emit(op.sin(both))

    def _layer(self, layer: int, x: Any) -> Any:
        emit, model = self.emit, self.model
        y = self._norm(x, f"{layer}.norm1")
        query = self._rotated(self._heads(self._linear(y, f"{layer}.q"), model.heads))
        key = self._rotated(self._heads(self._linear(y, f"{layer}.k"), model.kv_heads))
        value = self._heads(self._linear(y, f"{layer}.v"), model.kv_heads)
        keys = self._update(f"cache.{layer}.key", key)
        values = self._update(f"cache.{layer}.value", value)
        y = emit(op.reshape(self._attend(query, keys, values), [self.batch, self.n, model.hidden]))
        x = emit(op.add(x, self._linear(y, f"{layer}.o")))
        y = self._norm(x, f"{layer}.norm2")
        gate = emit(op.nn.silu(self._linear(y, f"{layer}.gate")))
        y = emit(op.multiply(gate, self._linear(y, f"{layer}.up")))
        return emit(op.add(x, self._linear(y, f"{layer}.down")))

    def _linear(self, x: Any, name: str) -> Any:
        return self.emit(op.matmul(x, self.emit(op.permute_dims(self.weights[name]))))

    def _norm(self, x: Any, name: str) -> Any:
        emit = self.emit
        square = emit(op.power(x, rx.const(2.0, "float32")))
        mean = emit(op.mean(square, axis=[-1], keepdims=True))
        scale = emit(op.rsqrt(emit(op.add(mean, rx.const(EPSILON, "float32")))))
        return emit(op.multiply(self.weights[name], emit(op.multiply(x, scale))))

    def _heads(self, x: Any, heads: int) -> Any:
        x = self.emit(op.reshape(x, [self.batch, self.n, heads, self.model.width]))
        return self.emit(op.permute_dims(x, [0, 2, 1, 3]))

    def _rotated(self, x: Any) -> Any:
        emit, half = self.emit, self.model.width // 2
        left = emit(op.strided_slice(x, [3], [0], [half]))
        right = emit(op.strided_slice(x, [3], [half], [2 * half]))
        turned = emit(op.concat([emit(op.negative(right)), left], axis=-1))
        kept = emit(op.multiply(x, self.cos))
        return emit(op.add(kept, emit(op.multiply(turned, self.sin))))

    def _update(self, name: str, new: Any) -> Any:
        model, state = self.model, self.held[name]
        func = cache_update(model.batch, model.kv_heads, model.context, model.width)
        gvar = self.builder.add_func(func, "cache_update")
        arguments = rx.Tuple([state, new, self.position])
        return self.emit(op.call_tir_inplace(gvar, arguments, 0, state.ty))

    def _attend(self, query: Any, keys: Any, values: Any) -> Any:
        model = self.model
        func = cached_attention(
            model.batch,
            model.heads,
            model.kv_heads,
            model.context,
            model.width,
            model.width,
            model.attention,
        )
        gvar = self.builder.add_func(func, "cached_attention")
        out = rx.TensorType([self.batch, self.n, model.heads, model.width], "float32")
        arguments = rx.Tuple([query, keys, values, self.position])
        return self.emit(op.call_tir(gvar, arguments, out))


def stages(
    model: Llama, folder: Path, target: Target, weights: Mapping[str, np.ndarray] | None = None
) -> Inputs:
    """Everything from the program to the bundle, default schedules, as the rooms write it."""
    source = program(model)
    mod = source.mod
    for _, transform in passes():
        mod = transform(mod)
    lowered = lower(source.with_mod(mod), target)
    shipped = default_records(lowered.mod, target)
    kernels = tuple(records.KernelChoice(one.kernel, one.id, ()) for one in shipped)
    codec.write_weights(folder / "weights.safetensors", weights or model.weights())
    inputs = {
        "program": lowered.save(folder / "program"),
        "records": records.save(folder / "records.jsonl", shipped),
        "choices": records.Choices(kernels).save(folder / "choices.json"),
        "weights": folder / "weights.safetensors",
    }
    (folder / "codegen").mkdir()
    context = Context(folder / "codegen", logging.getLogger("test"), folder)
    stage = Codegen(target=target, opt_level=2, recipe_name="language")
    inputs["bundle"] = stage.run(Inputs(inputs), context).artifacts["bundle"]
    return Inputs(inputs)


def logits(model: Llama, weights: Mapping[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits [n, vocabulary] of one sequence, whole and without a cache, in float64."""
    wide = {name: value.astype(np.float64) for name, value in weights.items()}
    count, half = len(tokens), model.width // 2
    angles = np.arange(count)[:, None] * BASE ** (-np.arange(half) / half)
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))
    distance = np.arange(count)[:, None] - np.arange(count)
    seen = (distance >= 0) & (distance < (model.window or count))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * wide[name]

    def rotated(x: np.ndarray) -> np.ndarray:
        return x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin

    x = wide["embed"][tokens]
    for k in range(model.layers):
        y = norm(x, f"{k}.norm1")
        query, key, value = ((y @ wide[f"{k}.{name}"].T) for name in "qkv")
        split = [one.reshape(count, -1, model.width) for one in (query, key, value)]
        query, key, value = rotated(split[0]), rotated(split[1]), split[2]
        key, value = (np.repeat(one, model.heads // model.kv_heads, 1) for one in (key, value))
        scores = np.einsum("ihd,jhd->hij", query, key) * model.width**-0.5
        scores = np.where(seen, scores, -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        y = np.einsum("hij,jhd->ihd", share, value).reshape(count, model.hidden)
        x = x + y @ wide[f"{k}.o"].T
        y = norm(x, f"{k}.norm2")
        gate = y @ wide[f"{k}.gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ wide[f"{k}.up"].T)) @ wide[f"{k}.down"].T
    return norm(x, "norm") @ wide["embed"].T
