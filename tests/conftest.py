"""What every test tier shares: in CI (`TAPML_REQUIRE_ALL=1`) a skipped test is a failure."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

settings.register_profile("tapml", deadline=None)  # machines are shared: time says nothing
settings.load_profile("tapml")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("TAPML_REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, and TAPML_REQUIRE_ALL=1 allows no skip: {report.longrepr}"
    return report
