"""Validation of a language model: calls that go on from each other, kernels that write in place."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import language
import numpy as np
import pytest
from small_programs import HOST

from tapml.errors import StageError
from tapml.stage import Context, Inputs
from tapml_stages import codec, program, records
from tapml_stages.codegen.stage import Codegen
from tapml_stages.compat import load_json, tvm
from tapml_stages.program import Bounds
from tapml_stages.reference import cases, sequences
from tapml_stages.validation.stage import Validation

MODEL = language.Llama(layers=1, batch=None, context=80)


def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The reference: whole sequences, row by row."""
    weights = MODEL.weights()
    return {"logits": np.stack([language.logits(MODEL, weights, r) for r in inputs["input_ids"]])}


def test_chains_begin_with_a_prompt_and_go_on_token_by_token() -> None:
    io = language.program(MODEL, buckets=({"n": 16}, {"n": 1})).io
    made = sequences.chains(sequences.make(io, None))
    assert [chain[0].sizes["n"] for chain in made] == [5, 37, 80, 16]
    assert [len(chain) for chain in made] == [65, 3, 1, 3]
    first = made[0]
    assert all(after.after == case.id for case, after in pairwise(first))
    assert [int(case.inputs["position"][0]) for case in first] == [0, *range(5, 69)]
    ragged = made[1][0].inputs
    assert list(ragged["last"]) == [36, 35, 34]
    assert list(ragged["input_ids"][2, 35:]) == [0, 0]


def test_real_sequences_are_prompted_and_then_forced() -> None:
    io = language.program(MODEL).io
    tokens = np.arange(70)[None] % 50
    chain = sequences.make(io, cases.Real("here", None, {"input_ids": tokens}))[:65]
    assert chain[0].kind == "real"
    assert [case.sizes["n"] for case in chain] == [6] + [1] * 64
    with pytest.raises(StageError, match=r"tokens outside 0\.\.49"):
        sequences.make(io, cases.Real("here", None, {"input_ids": tokens + 1}))
    with pytest.raises(StageError, match="the context is 80"):
        sequences.make(io, cases.Real("here", None, {"input_ids": np.zeros((1, 81), int)}))


@pytest.mark.parametrize(
    ("rows", "taken"),
    [
        (None, [range(4), range(4, 6)]),
        (Bounds(3, 4), [range(4), range(3, 6)]),
        (4, [range(4), range(2, 6)]),
        (6, [range(6)]),
        (1, [range(row, row + 1) for row in range(6)]),
    ],
)
def test_every_real_sequence_is_taken_in_batches_that_fit(
    rows: int | Bounds | None, taken: list[range]
) -> None:
    model = language.Llama(layers=1, batch=rows if isinstance(rows, int) else None, context=80)
    io = language.program(model).io
    if not isinstance(rows, int):
        io = replace(io, dims={**io.dims, "batch": rows or Bounds(1, 4)})
    tokens = np.arange(6)[:, None] + np.arange(8)
    made = sequences.make(io, cases.Real("here", None, {"input_ids": tokens}))
    first = [case for case in made if case.kind == "real" and not case.after]
    assert [list(case.inputs["input_ids"][:, 0]) for case in first] == [list(one) for one in taken]


def test_fewer_real_sequences_than_the_batch_has_rows_are_refused() -> None:
    io = language.program(language.Llama(layers=1, batch=8, context=80)).io
    with pytest.raises(StageError, match="gave 6 sequences, the batch has 8"):
        sequences.make(io, cases.Real("here", None, {"input_ids": np.ones((6, 8), int)}))


def test_a_source_comes_with_the_first_call_of_a_chain_alone() -> None:
    io = language.program(MODEL).io
    length = program.TensorSpec("source_length", ("batch",), "int64")
    tokens = program.TensorSpec("source", ("batch", "m"), "int64")
    features = program.TensorSpec("source", ("s", 4, 6), "float32")
    for more, name in (((tokens, length), "m"), ((features,), "s")):
        bounds = {**io.dims, name: program.Bounds(0, 4 if name == "s" else 80)}
        made = sequences.make(replace(io, inputs=io.inputs + more, dims=bounds), None)
        first, *rest = sequences.chains(made)[1]
        assert first.sizes[name] == (3 if name == "s" else 11)
        assert {case.sizes[name] for case in rest} == {0}
        assert all(case.inputs["source"].size == 0 for case in rest)
        given: list[dict[str, np.ndarray]] = []

        def seen(inputs: dict[str, np.ndarray], given: list[Any] = given) -> dict[str, np.ndarray]:
            given.append(inputs)
            return run(inputs)

        sequences.answers(seen, [first, *rest], "logits")
        np.testing.assert_array_equal(given[0]["source"], first.inputs["source"])
    assert list(made[0].inputs["source"].shape) == [1, 4, 6]


def test_a_call_is_answered_by_the_sequence_so_far() -> None:
    io = language.program(MODEL).io
    chain = sequences.chains(sequences.make(io, None))[1]
    found = sequences.answers(run, chain, "logits")
    third = chain[-1].inputs
    tokens = chain[0].inputs["input_ids"][1, :36].tolist()
    tokens += [int(case.inputs["input_ids"][1, 0]) for case in chain[1:]]
    expected = language.logits(MODEL, MODEL.weights(), np.array(tokens))[-1]
    assert int(third["position"][1]) == len(tokens) - 1
    np.testing.assert_allclose(found[-1]["logits"][1], expected, rtol=1e-12)


def validated(folder: Path, inputs: Inputs) -> dict[str, dict[str, object]]:
    io = program.load_io(inputs["program"])
    every = sequences.make(io, None)
    reference = folder / "reference"
    reference.mkdir()
    answers = {}
    for chain in sequences.chains(every):
        for case, given in zip(chain, sequences.answers(run, chain, "logits"), strict=True):
            answers[f"{case.id}/logits"] = given["logits"].astype("float32")
    for kind in ("original", "pruned", "unoptimized"):
        codec.write_npz(reference / f"outputs_{kind}.npz", answers)
    cases.save(reference, every)
    codec.write_json(reference / "meta.json", {"peer": None, "model": None})
    work = folder / "validation"
    work.mkdir()
    stage = Validation(target=HOST, metric=None, repeats=3, max_seconds=2.0)
    context = Context(work, logging.getLogger("test"), work)
    outputs = stage.run(Inputs({**inputs, "reference": reference}), context)
    return json.loads(outputs.artifacts["facts"].read_text())


@pytest.mark.slow
def test_prefill_and_every_step_are_compared_carved_and_timed(tmp_path: Path) -> None:
    facts = validated(tmp_path, language.stages(MODEL, tmp_path, HOST))
    assert facts["error"]["passed"]
    assert facts["error"]["relative"] < 1e-5
    assert len(facts["error"]["cases"]) == 69
    assert facts["carve"]["failed"] == []
    assert facts["carve"]["checked"] >= 30
    timed = [row["sizes"]["n"] for row in facts["latency"]]
    assert timed[0] == 1
    assert max(timed) > 1


@pytest.mark.slow
def test_an_update_that_writes_one_slot_late_is_named(tmp_path: Path) -> None:
    inputs = dict(language.stages(MODEL, tmp_path, HOST))
    shipped = records.load(inputs["records"])
    [right] = [one for one in shipped if one.kernel == "cache_update"]

    def late(store: tvm.tirx.BufferStore) -> tvm.tirx.BufferStore:
        row, head, token, lane = store.indices
        return tvm.tirx.BufferStore(store.buffer, store.value, [row, head, (token + 1) % 80, lane])

    import tvm_ffi

    func = load_json(right.func)["cache_update"]
    faulty = func.with_body(tvm_ffi.structural_map(func.body, (tvm.tirx.BufferStore, late)))
    source = program.load(inputs["program"]).mod["cache_update"]
    wrong = records.make("cache_update", source, faulty, kind="default", rule="seeded fault")
    kept = [one for one in shipped if one is not right]
    records.save(inputs["records"], [*kept, wrong])
    kernels = (records.KernelChoice(one.kernel, one.id, ()) for one in (*kept, wrong))
    records.Choices(tuple(kernels)).save(inputs["choices"])
    (tmp_path / "again").mkdir()
    context = Context(tmp_path / "again", logging.getLogger("test"), tmp_path)
    stage = Codegen(target=HOST, opt_level=2, recipe_name="language")
    inputs["bundle"] = stage.run(Inputs(inputs), context).artifacts["bundle"]
    with pytest.raises(StageError) as error:
        validated(tmp_path, Inputs(inputs))
    assert "NaN" in error.value.message
    assert "cache_update" in error.value.hint
