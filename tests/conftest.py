"""What every test tier shares: in CI (`TAPML_REQUIRE_ALL=1`) a skipped test is a failure."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Generator
from functools import cache
from itertools import chain, combinations
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression
from hypothesis import settings

settings.register_profile("tapml", deadline=None)  # machines are shared: time says nothing
settings.register_profile("plain", deadline=None, max_examples=25)


def pytest_configure(config: pytest.Config) -> None:
    """Where slow tests are not wanted, Hypothesis tries fewer examples too."""
    plain = _never(config.option.markexpr, frozenset({"slow"}))
    settings.load_profile("plain" if plain else "tapml")


# Bytecode is kept, whatever the environment says: else each of some hundred child processes
# compiles tapml anew, and each run all tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_MARKS = re.compile(rb"^pytestmark = (.*)$", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file whose `pytestmark` keeps it out of the run is not imported: torch and transformers
    take seconds, in every worker.
    """
    if not collection_path.name.startswith("test_") or collection_path.suffix != ".py":
        return None
    named = (config.invocation_params.dir / one.partition("::")[0] for one in config.args)
    if collection_path in named or not (found := _MARKS.search(collection_path.read_bytes())):
        return None
    marks = frozenset(re.findall(r"mark\.(\w+)", found[1].decode()))
    return True if _never(config.option.markexpr, marks) else None


@cache
def _never(expression: str, marks: frozenset[str]) -> bool:
    """Whether `-m expression` takes no test with these marks, whatever else it is marked with."""
    if not expression:
        return False
    others = {*re.findall(r"\w+", expression)} - marks
    every = chain.from_iterable(combinations(others, count) for count in range(len(others) + 1))
    wanted = Expression.compile(expression)
    return not any(_takes(wanted, marks.union(one)) for one in every)


def _takes(wanted: Expression, marks: frozenset[str]) -> bool:
    return wanted.evaluate(lambda name, /, **_: name in marks)


def pytest_collection_finish() -> None:
    """What was imported stays to the end: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("TAPML_REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, and TAPML_REQUIRE_ALL=1 allows no skip: {report.longrepr}"
    return report
