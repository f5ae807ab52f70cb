"""The engines: how each is installed, how a project for it is written, started, and emptied.

Each has its own best mode: steps in the cheapest form that it offers (Python in its own process
where there is one, else one shell command without a further process), quiet, no telemetry, and as
many slots as are asked for where it has any.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphs import Shape, expected, text

SITE = Path(__file__).resolve().parent / "site"
Salts = Mapping[str, int]
_WORKER = "a Python stage in a worker process"

# the fold of graphs.py in the shell's own words; `%d` pads to the 1 KB
_SHELL = (
    "h={salt}; for f in {inputs}; do read v < $f; h=$(( (h * 131 + v + 7) % 1000003 )); done; "
    "printf '%-1023d\\n' $h > {output}"
)


@dataclass(frozen=True)
class Tool:
    """One engine.

    slots:     the numbers of parallel steps that it can be asked for
    scenarios: those in which it is measured
    """

    name: str
    packages: tuple[str, ...]
    body: str
    slots: tuple[int, ...] = (1, 2)
    scenarios: tuple[str, ...] = ("cold", "warm", "leaf", "root")

    def write(self, folder: Path, shape: Shape, salts: Salts) -> None:
        """Writes or rewrites the project for these salts."""
        raise NotImplementedError

    def command(self, home: Path, slots: int) -> list[str]:
        raise NotImplementedError

    def environment(self, folder: Path) -> dict[str, str]:
        return {}

    def begin(self, home: Path, folder: Path) -> None:
        """What a new project of this engine needs once, before its first run."""

    def given(self, folder: Path, shape: Shape, salts: Salts) -> str:
        """The first step whose result is wrong, or ''."""
        numbers = expected(shape, salts)
        for name in shape.sinks:
            path = folder / "out" / name
            if not path.is_file() or path.read_text() != text(numbers[name]):
                return name
        return ""

    def install(self, cache: Path) -> Path:
        """Its own virtual environment in `cache`, made when it is not there."""
        home = cache / "-".join(one.replace("==", "-") for one in self.packages)
        if not (home / "ready").is_file():
            shutil.rmtree(home, ignore_errors=True)
            venv.create(home, with_pip=True)
            pip = [str(home / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *self.packages], check=True, stderr=subprocess.DEVNULL)
            (home / "ready").touch()
        return home


@dataclass(frozen=True)
class Tapml(Tool):
    track: str = "off"
    durability: str = "group"

    def install(self, cache: Path) -> Path:
        return Path(sys.executable).parent.parent

    def write(self, folder: Path, shape: Shape, salts: Salts) -> None:
        lines = [f"engine: {{durability: {self.durability}}}"] if self.durability != "group" else []
        lines += ["workflows:", f"  {shape.name}:"]
        for name, above in shape.needs.items():
            stage = "join" if len(above) > 2 else "fold"
            inputs = (f"i{index:05}" for index in range(len(above))) if len(above) > 2 else "ab"
            needs = ", ".join(f"{key}: {one}" for key, one in zip(inputs, above, strict=False))
            lines.append(
                f"    {name}: {{stage: {stage}, needs: {{{needs}}}, with: {{salt: {salts[name]}}}}}"
            )
        (folder / "workflows.yaml").write_text("\n".join(lines) + "\n")
        (folder / "bench.yaml").write_text(f"version: 1\nname: bench\nworkflow: {shape.name}\n")

    def command(self, home: Path, slots: int) -> list[str]:
        program = str(home / "bin" / "tapml")
        return [program, "run", "bench.yaml", "--jobs", str(slots), "--track", self.track]

    def environment(self, folder: Path) -> dict[str, str]:
        return {
            "PYTHONPATH": str(SITE),
            "TAPML_LOCKS": str(folder),
            "TAPML_STORE": str(folder / "artifacts"),
        }

    def given(self, folder: Path, shape: Shape, salts: Salts) -> str:
        numbers = expected(shape, salts)
        for name in shape.sinks:
            data = text(numbers[name]).encode()
            digest = hashlib.sha256(data).hexdigest()
            path = folder / "artifacts" / "cas" / digest[:2] / digest
            if not path.is_file() or path.read_bytes() != data:
                return name
        return ""


class Pytask(Tool):
    def write(self, folder: Path, shape: Shape, salts: Salts) -> None:
        (folder / "out").mkdir(exist_ok=True)
        (folder / "pyproject.toml").write_text("[tool.pytask.ini_options]\n")
        (folder / "graph.json").write_text(
            json.dumps({"needs": dict(shape.needs), "salts": dict(salts)})
        )
        (folder / "task_bench.py").write_text(
            """import json
from pathlib import Path
from typing import Annotated

from pytask import Product, PythonNode, task

HERE = Path(__file__).parent
GRAPH = json.loads((HERE / "graph.json").read_text())
OUT = HERE / "out"

for name, needs in GRAPH["needs"].items():

    @task(id=name)
    def task_fold(
        salt: Annotated[int, PythonNode(value=GRAPH["salts"][name], hash=True)],
        needs: list[Path] = [OUT / one for one in needs],
        out: Annotated[Path, Product] = OUT / name,
    ) -> None:
        total = salt
        for path in needs:
            total = (total * 131 + int(path.read_text()) + 7) % 1000003
        out.write_text(f"{total:<1023}\\n")
"""
        )

    def command(self, home: Path, slots: int) -> list[str]:
        parallel = ["-n", str(slots), "--parallel-backend", "threads"] if slots > 1 else []
        return [str(home / "bin" / "pytask"), "-v", "0", *parallel]


class Dvc(Tool):
    """Every step that ran rewrites the lock file of its dvc.yaml, which takes quadratic time in one
    file of many stages: ten stages in a folder each.
    """

    def begin(self, home: Path, folder: Path) -> None:
        dvc = str(home / "bin" / "dvc")
        env = {**os.environ, **self.environment(folder)}
        subprocess.run([dvc, "init", "--no-scm", "-q"], cwd=folder, env=env, check=True)
        for name in ("core.analytics", "core.check_update"):
            subprocess.run([dvc, "config", name, "false"], cwd=folder, env=env, check=True)

    def write(self, folder: Path, shape: Shape, salts: Salts) -> None:
        (folder / "out").mkdir(exist_ok=True)
        files: dict[Path, dict[str, Any]] = {}
        for number, (name, above) in enumerate(shape.needs.items()):
            inputs = [f"out/{one}" for one in above]
            line = _SHELL.format(salt=salts[name], inputs=" ".join(inputs), output=f"out/{name}")
            stage = {"cmd": line, "wdir": "..", "deps": inputs, "outs": [f"out/{name}"]}
            files.setdefault(folder / f"part-{number // 10:03}" / "dvc.yaml", {})[name] = stage
        for path, stages in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"stages": stages}, indent=1))  # is YAML too

    def command(self, home: Path, slots: int) -> list[str]:
        return [str(home / "bin" / "dvc"), "repro", "--all-pipelines", "--quiet"]

    def environment(self, folder: Path) -> dict[str, str]:
        return {"DVC_NO_ANALYTICS": "1", "SHELL": "/bin/sh"}


class Snakemake(Tool):
    def write(self, folder: Path, shape: Shape, salts: Salts) -> None:
        (folder / "graph.json").write_text(
            json.dumps({"needs": dict(shape.needs), "salts": dict(salts)})
        )
        line = _SHELL.format(salt="{params.salt}", inputs="{input}", output="{output}")
        (folder / "Snakefile").write_text(
            f"""import json

GRAPH = json.load(open("graph.json"))

rule all:
    input: {[f"out/{name}" for name in shape.sinks]}

rule fold:
    input: lambda w: ["out/" + one for one in GRAPH["needs"][w.name]]
    output: "out/{{name}}"
    params: salt=lambda w: GRAPH["salts"][w.name]
    shell: {line!r}
"""
        )

    def command(self, home: Path, slots: int) -> list[str]:
        program = str(home / "bin" / "snakemake")
        return [program, "--cores", str(slots), "--quiet", "all", "--scheduler", "greedy"]


class Redun(Tool):
    """Steps are lazy expressions. An expression is hashed with a copy of all that it needs, which
    takes exponential time in layers and quadratic in chains, so that parts of those are tasks.
    """

    def write(self, folder: Path, shape: Shape, salts: Salts) -> None:
        (folder / "out").mkdir(exist_ok=True)
        (folder / "graph.json").write_text(
            json.dumps({"parts": shape.parts(), "salts": dict(salts)})
        )
        (folder / "workflow.py").write_text(
            """import json

from redun import File, task

redun_namespace = "bench"


@task()
def fold(name: str, salt: int, needs: list) -> File:
    total = salt
    for one in needs:
        total = (total * 131 + int(one.read()) + 7) % 1000003
    out = File("out/" + name)
    out.write(f"{total:<1023}\\n")
    return out


@task()
def part(salts: dict, needs: dict, above: dict) -> dict:
    made = dict(above)
    for name, row in needs.items():
        made[name] = fold(name, salts[name], [made[one] for one in row])
    return {name: made[name] for name in needs}


@task()
def main(graph: File = File("graph.json")) -> dict:
    told = json.loads(graph.read())
    made = {}
    for needs in told["parts"]:
        made = part({name: told["salts"][name] for name in needs}, needs, made)
    return made
"""
        )

    def command(self, home: Path, slots: int) -> list[str]:
        return [
            str(home / "bin" / "redun"),
            "--config",
            f"redun-{slots}",
            "run",
            "workflow.py",
            "main",
        ]

    def begin(self, home: Path, folder: Path) -> None:
        for slots in self.slots:
            config = folder / f"redun-{slots}"
            config.mkdir()
            (config / "redun.ini").write_text(
                f"[backend]\ndb_uri = sqlite:///{folder}/redun.db\n\n"
                f"[executors.default]\ntype = local\nmax_workers = {slots}\n"
            )


TOOLS: tuple[Tool, ...] = (
    Tapml("tapml", (), _WORKER),
    Tapml("tapml, tracked", (), _WORKER, slots=(1,), track="auto"),
    Tapml("tapml, fsync each", (), _WORKER, (1,), scenarios=("cold", "root"), durability="each"),
    Pytask("pytask", ("pytask==0.6.0",), "a Python function in its process", slots=(1,)),
    Pytask(
        "pytask-parallel",
        ("pytask==0.6.0", "pytask-parallel==0.5.5"),
        "a Python function in a thread of its process",
        slots=(2,),
    ),
    Dvc("dvc", ("dvc==3.67.1",), "one shell command", slots=(1,)),
    Snakemake("snakemake", ("snakemake==9.27.1",), "one shell command"),
    Redun("redun", ("redun==0.44.1",), "a Python function in a thread of its process"),
)
