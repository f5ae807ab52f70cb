"""Language models through the rooms to a bundle, and decoding held against transformers' model run
whole, without a cache.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from small_programs import HOST as PLAIN

from tapml.stage import Context, Inputs
from tapml_stages import codec, records
from tapml_stages.codegen.stage import Codegen
from tapml_stages.program import Bounds, Program
from tapml_stages.relax.stage import RelaxPasses
from tapml_stages.tensorir.stage import TensorIR

HOST = PLAIN.model_copy(update={"vector_bits": 256, "vector_registers": 16})


def lower(program: Program, folder: Path) -> dict[str, Path]:
    """Artifacts of tensorir, in `folder`."""
    folder.mkdir(exist_ok=True)
    held = {"program": program.save(folder / "imported")}
    for stage in (RelaxPasses(), TensorIR(target=HOST)):
        held = dict(stage.run(Inputs(held), _context(folder / stage.name)).artifacts)
    return {name: Path(path) for name, path in held.items()}


def build(program: Program, weights: dict[str, np.ndarray], folder: Path) -> Any:
    """The loaded bundle, its kernels scheduled by rules alone."""
    return assemble(lower(program, folder), weights, folder)


def assemble(lowered: dict[str, Path], weights: dict[str, np.ndarray], folder: Path) -> Any:
    """The loaded bundle of what tensorir made in `folder`."""
    held, shipped = dict(lowered), records.load(lowered["records"])
    choices = tuple(records.KernelChoice(one.kernel, one.id, ()) for one in shipped)
    held["choices"] = records.Choices(choices).save(folder / "choices.json")
    held["weights"] = folder / "weights.safetensors"
    codec.write_weights(held["weights"], weights)
    stage = Codegen(target=HOST, opt_level=2, recipe_name="decoder")
    made = Path(stage.run(Inputs(held), _context(folder / "codegen")).artifacts["bundle"])
    spec = importlib.util.spec_from_file_location("bundle_run", made / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(made)


def _context(folder: Path) -> Context:
    folder.mkdir()
    return Context(folder, logging.getLogger("test"), folder / "database")


@dataclass(frozen=True)
class Answer:
    """What a call gave for one row: the token that it ends with, and its logits."""

    row: int
    token: int
    logits: np.ndarray


def decode(
    bundle: Any,
    tokens: np.ndarray,
    prompts: Sequence[int],
    steps: int,
    *,
    shift: int = 0,
    forgotten: int = 0,
    wiped: bool = False,
    fill: float = np.nan,
    sources: Sequence[np.ndarray] = (),
) -> Iterator[Answer]:
    """Teacher-forced: prompts of the rows' lengths in one call, padded, then `steps` tokens.

    In: `tokens` [rows, n]; ways to do it wrong: `shift` of the positions after the prompt, tokens
        `forgotten` at its end, `wiped` states after it; `fill`: what the states hold at first;
        `sources`: tokens that the encoder reads for each row, in the first call
    """
    rows = len(prompts)
    batch = {"batch": rows} if "batch" in bundle.manifest["dims"] else {}
    session = bundle.session(fill=fill, **batch)
    position, widths = np.zeros(rows, np.int64), np.array(prompts, np.int64)
    for step in range(steps + 1):
        ids = np.zeros((rows, widths.max()), np.int64)
        for row, (start, width) in enumerate(zip(position, widths, strict=True)):
            ids[row, :width] = tokens[row, start : start + width]
        at = position + (shift if step else 0)
        last = widths - 1 - (0 if step else forgotten)
        read = padded(sources[:rows], empty=step > 0) if sources else {}
        logits = session(input_ids=ids, position=at, last=last, **read)["logits"]
        position, widths = position + widths, np.ones(rows, np.int64)
        for row in range(rows):
            yield Answer(row, int(position[row]) - 1, logits[row])
        if wiped and not step:
            session = bundle.session(fill=0, **batch)


def padded(sources: Sequence[np.ndarray], empty: bool = False) -> dict[str, np.ndarray]:
    """The inputs of an encoder; `empty`: of a call that goes on with what it has read before."""
    if sources[0].ndim > 1:
        return {"source": np.stack(sources)[: 0 if empty else None]}
    length = np.array([len(one) for one in sources])
    source = np.zeros((len(sources), 0 if empty else length.max()), np.int64)
    if not empty:
        for row, one in zip(source, sources, strict=True):
            row[: len(one)] = one
    return {"source": source, "source_length": length}


TOLERANCE = 2e-5  # of the logits' range; seen: 3e-6
# tokens of each row's prompt → calls of one token after it
SOURCES = (11, 6)  # tokens that an encoder reads for each row
PROMPTS: dict[tuple[int, ...], int] = {(5,): 64, (1,): 8, (16,): 8, (7, 3): 8, (1, 1): 4}


@dataclass(frozen=True)
class Family:
    """A bundle of a family's tiny model with a free batch, and the model's own logits.

    tokens [2, n]; expected [2, n, vocabulary]; sources of the two, where it has an encoder
    """

    bundle: Any
    tokens: np.ndarray
    expected: np.ndarray
    sources: tuple[np.ndarray, ...] = ()

    def compare(self, prompts: Sequence[int], steps: int, **wrong: Any) -> Comparison:
        answers = decode(
            self.bundle, self.tokens, prompts, steps, **{"sources": self.sources, **wrong}
        )
        return compare(answers, self.expected, TOLERANCE)

    def controls(self) -> dict[str, float]:
        """Errors of what is done wrong on purpose: they must be large. Without a cache there are no
        positions to get wrong, but a token may be missing.
        """
        has_cache = self.bundle.manifest["context"] is not None
        off: dict[str, Any] = {"shift": 1, "fill": 0} if has_cache else {"forgotten": 1}
        wrong = {"off by one": off, "wiped states": {"wiped": True}}
        return {name: self.compare((7,), 4, **how).error for name, how in wrong.items()}


def family(name: str, folder: Path) -> Family:
    import torch
    from families import CONTEXT, make

    from tapml_stages.importer.huggingface.adapters import features
    from tapml_stages.importer.huggingface.generate import decoder

    model = make(name)
    program, weights = decoder(model, CONTEXT, Bounds(1, 4), where=name)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(256, (2, CONTEXT), generator=generator)
    bundle, sources = build(program, dict(weights), folder), ()
    if model.config.is_encoder_decoder:
        read = model.main_input_name
        if read == "input_ids":
            sources = tuple(torch.randint(256, (n,), generator=generator) for n in SOURCES)
        else:
            sources = tuple(torch.randn(2, *features(model), generator=generator))
        pairs = zip(sources, tokens, strict=True)
        alone = [model(**{read: a[None], "decoder_input_ids": b[None]}) for a, b in pairs]
        expected = torch.cat([one.logits for one in alone])
    else:
        expected = model(input_ids=tokens, use_cache=False).logits
    return Family(bundle, tokens.numpy(), expected.numpy(), tuple(one.numpy() for one in sources))


@dataclass(frozen=True)
class Comparison:
    """error: the largest difference, of the logits' range; missed: greedy tokens that differ where
    the reference's two best logits are further apart than `tolerance` of the range on both sides.
    """

    error: float
    missed: int
    answers: int


def compare(answers: Iterator[Answer], expected: np.ndarray, tolerance: float) -> Comparison:
    """In: `expected` [rows, n, vocabulary]"""
    span = float(expected.max() - expected.min())
    errors, missed = [], 0
    for one in answers:
        truth = expected[one.row, one.token]
        errors.append(np.abs(one.logits - truth).max() / span)
        best, second = np.sort(truth)[-1:-3:-1]
        missed += bool(
            best - second > 2 * tolerance * span and one.logits.argmax() != truth.argmax()
        )
    worst = float(np.max(errors)) if np.isfinite(errors).all() else float("inf")
    return Comparison(worst, missed, len(errors))
