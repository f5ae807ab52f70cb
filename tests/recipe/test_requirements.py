"""`requires` and masking."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tapml import requirements
from tapml.errors import EnvironmentalError
from tapml.mask import is_secret, is_secret_name, mask
from tapml.requirements import Requires


def test_a_package_that_is_there_is_fine() -> None:
    requirements.check(Requires(packages=("numpy>=1", "pyyaml"), devices=("cpu",)))


def test_a_missing_package_is_told_with_what_installs_it() -> None:
    with pytest.raises(EnvironmentalError, match=r"requires: no-such-package>=2\n") as caught:
        requirements.check(Requires(packages=("no-such-package>=2",)))
    assert caught.value.hint == "pip install 'no-such-package>=2'"


def test_an_older_package_is_told_with_its_version() -> None:
    with pytest.raises(EnvironmentalError, match=r"numpy>=999 \(.* is installed\)"):
        requirements.check(Requires(packages=("numpy>=999",)))


def test_a_requirement_of_another_system_is_none() -> None:
    requirements.check(Requires(packages=("no-such-package; sys_platform == 'win32'",)))


def test_everything_missing_is_told_at_once() -> None:
    wanted = Requires(packages=("no-such-a[x]>1 ; python_version > '3'", "numpy", "no-such-b"))
    with pytest.raises(EnvironmentalError, match="no-such-a>1; no-such-b") as caught:
        requirements.check(wanted)
    assert caught.value.hint == "pip install 'no-such-a[x]>1' no-such-b"


def test_what_is_no_requirement_is_refused_in_one_line() -> None:
    with pytest.raises(ValidationError, match="'two words' is no requirement") as caught:
        Requires(packages=("two words",))
    assert "^" not in caught.value.errors()[0]["msg"]


def test_a_gpu_is_required_where_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_has_cuda", lambda: False)
    with pytest.raises(EnvironmentalError, match="a CUDA device") as caught:
        requirements.check(Requires(devices=("cuda",), packages=("no-such-a",)))
    assert "pip install no-such-a" in caught.value.hint
    assert "nvidia-smi" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "AKIAABCDEFGHIJKLMNOP",
        "ghp_abcdefghijklmnopqrstuvwxyz0123",
        "hf_abcdefghijklmnopqrstuv",
        "xoxb-1234567890-abc",
        "s3://user:pass@host/bucket",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc",
    ],
)
def test_a_key_is_seen_and_blotted_out(text: str) -> None:
    assert is_secret(text)
    assert text not in mask(f"it says {text} here")


def test_what_is_assigned_to_a_secret_name_is_blotted_out() -> None:
    assert "hunter2hunter2" not in mask("api_key=hunter2hunter2 and more")
    assert mask("api_key=hunter2hunter2 and more").endswith("and more")
    assert is_secret_name("MY_API_KEY")
    assert not is_secret_name("MODEL_PATH")


@pytest.mark.parametrize(
    "piece", ["-eyJ", "-----BEGIN A", "://a:", "token ", "sk-", "ghp_", " ", "xoxb-", "-AKIA", "a"]
)
def test_no_text_takes_long_to_mask(piece: str) -> None:
    start = time.perf_counter()
    mask(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - start < 5  # what is quadratic takes minutes


@given(st.text("abc =:/.@-_0", max_size=60))
def test_masking_twice_changes_nothing(text: str) -> None:
    assert mask(mask(text)) == mask(text)
