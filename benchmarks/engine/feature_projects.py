"""Four steps, a → b → c and d, as a project of each engine: what `peers_features.py` asks about."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from run import environment

NEEDS = {"a": [], "b": ["a"], "c": ["b"], "d": []}
SALTS = {"a": 1000, "b": 2000, "c": 3000, "d": 4000}
_SHELL = (
    "echo +{name} >> ran.txt; sleep $DELAY; h={number}; for f in {inputs}; do read v < $f; "
    "h=$(( (h * 131 + v + 7) % 1000003 )); done; printf '%-1023d\\n' $h > out/{name}; "
    "echo -{name} >> ran.txt"
)
_PYTHON = """
import os
import time
from pathlib import Path


def step(name, salt, paths):
    say("+" + name)
    time.sleep(float(os.environ.get("DELAY", "0")))
    total = salt // 1000
    for path in paths:
        total = (total * 131 + int(Path(path).read_text()) + 7) % 1000003
    Path("out").mkdir(exist_ok=True)
    Path("out", name).write_text(f"{total:<1023}\\n")
    say("-" + name)


def say(text):
    with open("ran.txt", "a") as ran:
        ran.write(text + "\\n")
"""


def number(name: str, salts: Mapping[str, int]) -> int:
    total = salts[name] // 1000
    for above in NEEDS[name]:
        total = (total * 131 + number(above, salts) + 7) % 1000003
    return total


class Engine:
    """One engine on the four steps, in a folder of its own."""

    name: str
    run: tuple[str, ...]
    parallel: tuple[str, ...] = ()
    dry: tuple[str, ...]
    explain: tuple[str, ...]
    push: tuple[tuple[str, ...], ...] = ()  # fills a cache elsewhere
    pull: tuple[tuple[str, ...], ...] = ()  # takes from it what it can, and runs

    def __init__(self, home: Path, folder: Path) -> None:
        self.home, self.folder = home, folder
        self.salts = dict(SALTS)
        self.told: list[str] = []
        self.shares = False
        (folder / "out").mkdir(parents=True)
        self.begin()
        self.write()

    def begin(self) -> None: ...

    def write(self) -> None:
        raise NotImplementedError

    def change(self, **salts: int) -> None:
        self.salts |= salts
        self.write()

    def environment(self, delay: float = 0.0) -> dict[str, str]:
        return environment() | {"DELAY": str(delay), "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1"}

    def call(self, command: tuple[str, ...], delay: float = 0.0) -> tuple[int, str]:
        """The exit code, and all that it prints."""
        self.told.append(" ".join(command))
        done = subprocess.run(
            [str(self.home / "bin" / command[0]), *command[1:]],
            cwd=self.folder,
            env=self.environment(delay),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    def must(self, *commands: tuple[str, ...]) -> None:
        for command in commands:
            code, told = self.call(command)
            if code:
                raise ValueError(f"{' '.join(command)} ended with {code}: {told[-300:]}")

    def order(self) -> list[str]:
        """`+step` and `-step` for each that began and ended, since this was last asked."""
        path = self.folder / "ran.txt"
        found = path.read_text().split() if path.is_file() else []
        path.unlink(missing_ok=True)
        return found

    def ran(self) -> list[str]:
        """The steps that ran since this was last asked."""
        return sorted(one[1:] for one in self.order() if one.startswith("+"))

    def output(self, name: str) -> Path:
        return self.folder / "out" / name

    def is_right(self) -> bool:
        return all(
            self.output(name).is_file()
            and self.output(name).read_text().strip() == str(number(name, self.salts))
            for name in NEEDS
        )

    def forget_outputs(self) -> None:
        shutil.rmtree(self.folder / "out")


class Tapml(Engine):
    name = "tapml"
    run = ("tapml", "run", "bench.yaml", "--track", "off", "--jobs", "1")
    parallel = ("tapml", "run", "bench.yaml", "--track", "off", "--jobs", "2")
    dry = ("tapml", "plan", "bench.yaml")
    explain = ("tapml", "explain", "bench.yaml", "c")
    push = (run,)  # a shared cache is written behind a run and read through
    pull = (run,)

    def write(self) -> None:
        site = self.folder / "site"
        info = site / "steps-1.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steps\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[tapml.stages]\nstep = steps:Step\n")
        (site / "steps.py").write_text(
            _PYTHON
            + f"""
from typing import ClassVar

from tapml.stage import Outputs, Stage


class Step(Stage):
    name: ClassVar[str] = "step"
    version: ClassVar[int] = 1
    inputs: ClassVar = {{"a": "number"}}
    optional: ClassVar = frozenset({{"a"}})
    outputs: ClassVar = {{"number": "number"}}
    called: str = ""
    salt: int = 0

    def run(self, inputs, ctx):
        work = ctx.workdir
        os.chdir({str(self.folder)!r})
        step(self.called, self.salt, inputs.values())
        return Outputs({{"number": Path("out", self.called).rename(work / "number")}})
"""
        )
        rows = [
            f"    {name}: {{stage: step, needs: [{', '.join(above)}],"
            f" with: {{called: {name}, salt: {self.salts[name]}}}}}"
            for name, above in NEEDS.items()
        ]
        (self.folder / "workflows.yaml").write_text("\n".join(["workflows:", "  w:", *rows, ""]))
        (self.folder / "bench.yaml").write_text("version: 1\nname: bench\nworkflow: w\n")

    def environment(self, delay: float = 0.0) -> dict[str, str]:
        return super().environment(delay) | {
            "PYTHONPATH": str(self.folder / "site"),
            "TAPML_STORE": str(self.folder / "artifacts"),
            "TAPML_LOCKS": str(self.folder),
            **({"TAPML_REMOTE": str(self.folder.parent / "there")} if self.shares else {}),
        }

    def forget_outputs(self) -> None:
        shutil.rmtree(self.folder / "artifacts")

    def output(self, name: str) -> Path:
        """The blob that the last run gave for a step."""
        last = max((self.folder / "artifacts" / "runs").iterdir(), key=lambda one: one.name)
        steps = json.loads((last / "run.json").read_text())["steps"]
        digest = next(one for one in steps if one["name"] == name)["outputs"].get("number", "none")
        return self.folder / "artifacts" / "cas" / digest[:2] / digest


class Pytask(Engine):
    name = "pytask"
    run = ("pytask", "-v", "1")
    dry = ("pytask", "--dry-run")
    explain = ("pytask", "--explain", "--dry-run")

    def write(self) -> None:
        (self.folder / "pyproject.toml").write_text("[tool.pytask.ini_options]\n")
        (self.folder / "salts.json").write_text(json.dumps(self.salts))
        (self.folder / "steps.py").write_text(_PYTHON)
        (self.folder / "task_bench.py").write_text(
            f"""
import json
import sys
from pathlib import Path
from typing import Annotated

from pytask import Product, PythonNode, task

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from steps import step

SALTS = json.loads((HERE / "salts.json").read_text())
for name, needs in {NEEDS!r}.items():

    @task(id=name)
    def task_step(
        salt: Annotated[int, PythonNode(value=SALTS[name], hash=True)],
        name: str = name,
        needs: list[Path] = [HERE / "out" / one for one in needs],
        out: Annotated[Path, Product] = HERE / "out" / name,
    ) -> None:
        step(name, salt, needs)
"""
        )


class PytaskParallel(Pytask):
    name = "pytask-parallel"
    parallel = ("pytask", "-n", "2", "--parallel-backend", "threads")


class Dvc(Engine):
    name = "dvc"
    run = ("dvc", "repro")
    dry = ("dvc", "repro", "--dry")
    explain = ("dvc", "status", "c")
    push = (("dvc", "remote", "add", "-d", "there", "../there"), ("dvc", "push"))
    pull = (("dvc", "repro", "--pull"),)

    def begin(self) -> None:
        self.call(("dvc", "init", "--no-scm", "-q"))
        self.told.clear()

    def write(self) -> None:
        (self.folder / "params.yaml").write_text(json.dumps(self.salts))
        stages = {}
        for name, above in NEEDS.items():
            inputs = [f"out/{one}" for one in above]
            line = _SHELL.format(
                name=name, number=f"$(( ${{{name}}} / 1000 ))", inputs=" ".join(inputs)
            )
            # the value is filled in by DVC's own templating from params.yaml
            stages[name] = {"cmd": line, "deps": inputs, "params": [name], "outs": [f"out/{name}"]}
        (self.folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))

    def forget_outputs(self) -> None:
        super().forget_outputs()
        shutil.rmtree(self.folder / ".dvc" / "cache")
        (self.folder / "out").mkdir()


class Snakemake(Engine):
    name = "snakemake"
    run = ("snakemake", "--cores", "1", "all")
    parallel = ("snakemake", "--cores", "2", "all")
    dry = ("snakemake", "--cores", "1", "-n", "all")
    explain = ("snakemake", "--cores", "1", "-n", "all")
    push = (("snakemake", "all", "--cores", "1", "--forceall", "--cache"),)
    pull = (("snakemake", "all", "--cores", "1", "--cache"),)

    def write(self) -> None:
        (self.folder / "config.json").write_text(json.dumps(self.salts))
        line = _SHELL.format(
            name="{wildcards.name}", number="$(( {params.salt} / 1000 ))", inputs="{input}"
        )
        rules = [
            f"""
rule {name}:
    input: {[f"out/{one}" for one in above]}
    output: "out/{name}"
    params: salt=config["{name}"]
    cache: True
    shell: {line.replace("{wildcards.name}", name)!r}
"""
            for name, above in NEEDS.items()
        ]
        head = f'configfile: "config.json"\nrule all:\n    input: {[f"out/{n}" for n in "cd"]}\n'
        (self.folder / "Snakefile").write_text(head + "".join(rules))

    def environment(self, delay: float = 0.0) -> dict[str, str]:
        there = self.folder.parent / "there"
        there.mkdir(exist_ok=True)
        return super().environment(delay) | {"SNAKEMAKE_OUTPUT_CACHE": str(there)}

    def forget_outputs(self) -> None:
        super().forget_outputs()
        shutil.rmtree(self.folder / ".snakemake")


class Redun(Engine):
    """With ContentFile: its default File is told by size and time, and stops no propagation."""

    name = "redun"
    run = ("redun", "--config", "one", "run", "workflow.py", "main")
    parallel = ("redun", "--config", "two", "run", "workflow.py", "main")
    dry = ("redun", "--config", "one", "run", "--dryrun", "workflow.py", "main")
    explain = ("redun", "--config", "one", "run", "--dryrun", "workflow.py", "main")
    _add = ("redun", "--config", "one", "repo", "add", "there", "../there")
    push = (_add, ("redun", "--config", "one", "push", "there"))
    pull = (
        ("redun", "--config", "one", "db", "upgrade"),
        _add,
        ("redun", "--config", "one", "pull", "there"),
        run,
    )

    def begin(self) -> None:
        for name, slots in (("one", 1), ("two", 2), ("../there", 1)):
            (self.folder / name).mkdir()
            root = (self.folder / name).parent.resolve() if name[0] != "." else self.folder.parent
            (self.folder / name / "redun.ini").write_text(
                f"[backend]\ndb_uri = sqlite:///{root}/redun.db\n\n"
                f"[executors.default]\ntype = local\nmax_workers = {slots}\n"
            )

    def write(self) -> None:
        (self.folder / "salts.json").write_text(json.dumps(self.salts))
        (self.folder / "steps.py").write_text(_PYTHON)
        (self.folder / "workflow.py").write_text(
            f"""
import json

from redun import File, task
from redun.file import ContentFile

from steps import step

redun_namespace = "bench"


@task()
def run_step(name: str, salt: int, needs: list) -> ContentFile:
    step(name, salt, [one.path for one in needs])
    return ContentFile("out/" + name)


@task()
def main(salts: File = File("salts.json")) -> list:
    told, made = json.loads(salts.read()), {{}}
    for name, needs in {NEEDS!r}.items():
        made[name] = run_step(name, told[name], [made[one] for one in needs])
    return list(made.values())
"""
        )

    def forget_outputs(self) -> None:
        super().forget_outputs()
        (self.folder / "redun.db").unlink()
        shutil.rmtree(self.folder / "one")
        (self.folder / "one").mkdir()
        shutil.copy(self.folder / "two" / "redun.ini", self.folder / "one")


ENGINES: tuple[type[Engine], ...] = (Tapml, Pytask, PytaskParallel, Dvc, Snakemake, Redun)
