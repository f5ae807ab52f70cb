"""Engine settings: the environment goes before the file. Where they are wrong it is exit 2."""

import sys

import pytest
from pydantic import ValidationError

from tapml.errors import EnvironmentalError, RecipeError
from tapml.settings import Dask, Engine, Joblib, Local, with_environment


@pytest.mark.parametrize(
    ("text", "executor"),
    [
        ("local", Local()),
        ("joblib", Joblib()),
        ("joblib:threading", Joblib(backend="threading")),
        ("tcp://127.0.0.1:8786", Dask(address="tcp://127.0.0.1:8786")),
        ("tls://box:1", Dask(address="tls://box:1")),
        (
            '{"kind": "joblib", "backend": "ray", "register_with": "ray.util.joblib:register_ray"}',
            Joblib(backend="ray", register_with="ray.util.joblib:register_ray"),
        ),
    ],
)
def test_the_environment_names_the_executor(monkeypatch, text, executor):
    monkeypatch.setenv("TAPML_EXECUTOR", text)
    assert with_environment(Engine(executor=Joblib())).executor == executor


def test_without_the_environment_the_file_counts(monkeypatch):
    monkeypatch.delenv("TAPML_EXECUTOR", raising=False)
    monkeypatch.delenv("TAPML_JOBS", raising=False)
    engine = Engine(executor=Joblib(), jobs=3)
    assert with_environment(engine) == engine


def test_the_environment_names_the_number_of_processes(monkeypatch):
    monkeypatch.setenv("TAPML_JOBS", "2")
    assert with_environment(Engine(jobs=3, store="there")) == Engine(jobs=2, store="there")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TAPML_JOBS", "many"),
        ("TAPML_JOBS", "-1"),
        ("TAPML_JOBS", '1, "store": "x'),
        ("TAPML_EXECUTOR", "slurm"),
        ("TAPML_EXECUTOR", "dask"),
        ("TAPML_EXECUTOR", "local:2"),
        ("TAPML_EXECUTOR", '{"kind": "dask"'),
    ],
)
def test_a_variable_that_says_nothing_is_named(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    with pytest.raises(RecipeError, match=f"{name}: ") as caught:
        with_environment(Engine())
    assert caught.value.hint


def test_a_registering_function_is_named_with_its_module():
    with pytest.raises(ValidationError, match="pattern"):
        Joblib(register_with="no function")


def test_without_dask_the_package_to_install_is_named(bench, chain, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EnvironmentalError, match="dask is not installed") as caught:
        bench.run(chain(), executor=Dask(address="tcp://127.0.0.1:1"), jobs=None)
    assert caught.value.hint == "pip install 'tapml[dask]'"
