"""Small stages for the engine's tests, in a module that worker processes can import."""

import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import networkx as nx
import pytest

from tapml import batch, executor, remote
from tapml import plan as plans
from tapml.settings import RemoteCache
from tapml.store import Store

STAGES = '''
import ctypes, errno, os, signal, subprocess, sys, time
from pathlib import Path
from typing import ClassVar
from tapml.errors import RecipeError
from tapml.stage import Outputs, Report, Resources, Stage


class Text(Stage):
    """Writes its text and counts its runs in a file beside."""

    name: ClassVar[str] = "text"
    version: ClassVar[int] = 1
    outputs: ClassVar = {"out": "text"}
    text: str = "hello"
    counter: str = ""

    def run(self, inputs, ctx):
        if self.counter:
            with open(self.counter, "a") as out:
                out.write("x")
        path = ctx.workdir / "out.txt"
        path.write_text(self.text)
        metrics = {"size/bytes": len(self.text)}
        return Outputs({"out": path}, Report(summary=self.text, metrics=metrics))


class Other(Text):
    """Another text."""

    name: ClassVar[str] = "other"


class Join(Stage):
    """Its inputs, joined, as a file and as a folder; `upper` may be all that differs."""

    name: ClassVar[str] = "join"
    version: ClassVar[int] = 1
    inputs: ClassVar = {"a": "text", "b": "text"}
    optional: ClassVar = frozenset({"b"})
    outputs: ClassVar = {"out": "text", "folder": "folder"}
    suffix: str = ""

    def run(self, inputs, ctx):
        text = "".join(inputs[name].read_text() for name in sorted(inputs)) + self.suffix
        (ctx.workdir / "out").write_text(text)
        (ctx.workdir / "folder" / "deep").mkdir(parents=True)
        (ctx.workdir / "folder" / "deep" / "out").write_text(text)
        print("joined", text)
        ctx.progress(1, 2, "half")
        return Outputs({"out": ctx.workdir / "out", "folder": ctx.workdir / "folder"})


class Constant(Stage):
    """The same bytes whatever it reads."""

    name: ClassVar[str] = "constant"
    version: ClassVar[int] = 1
    inputs: ClassVar = {"a": "text"}
    outputs: ClassVar = {"out": "text"}

    def run(self, inputs, ctx):
        (ctx.workdir / "out").write_text("constant")
        return Outputs({"out": ctx.workdir / "out"})


class Act(Stage):
    """Does what `act` says, the first `times` times, then writes a file."""

    name: ClassVar[str] = "act"
    version: ClassVar[int] = 1
    inputs: ClassVar = {"a": "text"}
    optional: ClassVar = frozenset({"a"})
    outputs: ClassVar = {"out": "text"}
    act: str
    arg: str = ""
    times: int = 1000000
    mark: str = ""

    def run(self, inputs, ctx):
        done = 0
        if self.mark:
            with open(self.mark, "a+") as marks:
                marks.seek(0)
                done = len(marks.read())
                marks.write("x")
        if done < self.times:
            getattr(self, "do_" + self.act)(inputs, ctx)
        (ctx.workdir / "out").write_text("acted")
        return Outputs({"out": ctx.workdir / "out"})

    def do_nothing(self, inputs, ctx): ...

    def do_raise(self, inputs, ctx):
        raise ValueError("the sky fell")

    def do_leak(self, inputs, ctx):
        """Says `arg` in every way that a stage has; raises at its first time."""
        print("printed", self.arg)
        os.system(f"echo a child said '{self.arg}'")
        ctx.logger.info("logged %s", self.arg)
        if self.times == 1:
            raise ValueError(f"no entry with {self.arg}")

    def do_exit(self, inputs, ctx):
        sys.exit(7)

    def do_recipe_error(self, inputs, ctx):
        raise RecipeError(field="model.path", message="is wrong")

    def do_kill(self, inputs, ctx):
        ctx.progress(0, 1, "dying")
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    def do_segfault(self, inputs, ctx):
        print("before the fault", flush=True)
        ctypes.string_at(0)

    def do_abort(self, inputs, ctx):
        buffer = ctypes.create_string_buffer(64)
        ctypes.CDLL(None).free(ctypes.c_void_p(ctypes.addressof(buffer) + 8))

    def do_hoard(self, inputs, ctx):
        """Takes memory until it is killed: by its control group, `arg`, or from outside."""
        if self.arg:
            Path(self.arg, "cgroup.procs").write_text(str(os.getpid()))
        held = bytearray()
        for _ in range(64):
            held += os.urandom(1 << 20) * 8
            time.sleep(0.05)
            ctx.progress(len(held) >> 20, 512, "MiB")
        time.sleep(60)

    def do_limit(self, inputs, ctx):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, -1))
        bytearray(4 << 30)

    def do_sleep(self, inputs, ctx):
        Path(self.arg).write_text(str(os.getpid()))
        time.sleep(60)

    def do_litter(self, inputs, ctx):
        """Children and grandchildren, in sessions of their own, that ignore polite signals."""
        nap = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"
        command = [sys.executable, "-c", nap, self.arg]
        code = (
            "import subprocess, time; "
            f"subprocess.Popen({command!r}, start_new_session=True); time.sleep(300)"
        )
        for _ in range(2):
            subprocess.Popen([sys.executable, "-c", code, self.arg], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            time.sleep(300)
        time.sleep(0.5)
        Path(self.arg).write_text(str(os.getpid()))
        time.sleep(300)

    def do_full_disk(self, inputs, ctx):
        from tapml import disk

        def write_all(descriptor, data):
            raise OSError(int(self.arg), os.strerror(int(self.arg)))

        disk.write_all = write_all

    def do_write_input(self, inputs, ctx):
        with open(inputs["a"], "r+b") as out:
            out.write(b"J")

    def do_memo(self, inputs, ctx):
        def work(path):
            with open(self.arg, "a") as out:
                out.write("x")
            path.write_text("remembered")

        assert ctx.memo("probe", {"n": 1}, {}, work).read_text() == "remembered"

    def do_nap(self, inputs, ctx):
        time.sleep(2)

    def do_span(self, inputs, ctx):
        begin = time.time()
        time.sleep(1)
        with open(self.arg, "a") as out:
            print(self.name, begin, time.time(), file=out)

    def do_threads(self, inputs, ctx):
        Path(self.arg).write_text(os.environ["TVM_NUM_THREADS"] + " " + str(os.getpid()))


class Alone(Act):
    """The same, alone on the machine."""

    name: ClassVar[str] = "alone"
    measures: ClassVar[bool] = True
    resources: ClassVar = Resources(exclusive=True)


class Wide(Act):
    """The same, on two cores."""

    name: ClassVar[str] = "wide"
    resources: ClassVar = Resources(cpu=2)


class Graphic(Act):
    """The same, on a GPU."""

    name: ClassVar[str] = "graphic"
    resources: ClassVar = Resources(gpu=1)


class Fresh(Act):
    """The same, in a process that has run nothing."""

    name: ClassVar[str] = "fresh"
    resources: ClassVar = Resources(fresh_process=True)


class Hasty(Act):
    """The same, with a time limit."""

    name: ClassVar[str] = "hasty"
    resources: ClassVar = Resources(timeout_s=0.5)


class Big(Act):
    """The same, in need of memory."""

    name: ClassVar[str] = "big"
    resources: ClassVar = Resources(memory_mib=300)


class Reader(Stage):
    """Reads whatever it is given."""

    name: ClassVar[str] = "reader"
    version: ClassVar[int] = 1
    inputs: ClassVar = {"a": "any"}
    outputs: ClassVar = {"out": "text"}
    text: str

    def run(self, inputs, ctx):
        path = inputs["a"]
        read = path.read_text() if path.is_file() else (path / "deep" / "out").read_text()
        (ctx.workdir / "out").write_text(read + self.text)
        return Outputs({"out": ctx.workdir / "out"})


class Liar(Stage):
    """Declares what it does not give."""

    name: ClassVar[str] = "liar"
    version: ClassVar[int] = 1
    outputs: ClassVar = {"out": "text", "more": "text"}

    def run(self, inputs, ctx):
        (ctx.workdir / "out").write_text("out")
        return Outputs({"out": ctx.workdir / "out"})


class Lacking(Text):
    """Lacks something on this machine."""

    name: ClassVar[str] = "lacking"

    def check(self):
        from tapml.errors import EnvironmentalError

        raise EnvironmentalError(message="no compiler", hint="apt install gcc")
'''


@pytest.fixture(scope="session")
def stage_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    (folder / "engine_stages.py").write_text(STAGES)
    return folder


@pytest.fixture(scope="session")
def stages(stage_folder: Path):
    sys.path.insert(0, str(stage_folder))
    yield importlib.import_module("engine_stages")
    sys.path.remove(str(stage_folder))


@pytest.fixture(autouse=True)
def own_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a test wait for no run outside it."""
    monkeypatch.setenv("TAPML_LOCKS", str(tmp_path_factory.mktemp("locks")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@dataclass
class FakeRecipe:
    """What the executor needs of a recipe."""

    name: str = "test recipe"
    path: Path = Path("recipe.yaml")

    def dotted(self):
        return {"name": self.name}

    def resolved_yaml(self):
        return "version: 1\n"

    def locate(self, error):
        error.where = "recipe.yaml:3:5"
        return error


def make_graph(**nodes) -> nx.DiGraph:
    """A graph from name=(stage, {input: (node, output)})."""
    graph = nx.DiGraph()
    for name, (stage, inputs) in nodes.items():
        graph.add_node(name, stage=stage, inputs=inputs)
        graph.add_edges_from((node, name) for node, _ in inputs.values())
    return graph


class Bench:
    """Plans and runs graphs on one store, and keeps the events."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.events: list = []

    def plan(self, graph: nx.DiGraph, **how) -> plans.Plan:
        return plans.make(graph, self.store, **how)

    def run(self, graph: nx.DiGraph, *, how: dict | None = None, **options) -> executor.Result:
        return self.execute(self.plan(graph, **(how or {})), **options)

    def execute(self, planned: plans.Plan, *, emit=None, **options) -> executor.Result:
        self.events = []
        options.setdefault("jobs", 0)
        return executor.run(
            planned,
            FakeRecipe(),
            self.store,
            executor.Options(**options),
            emit or self.events.append,
        )

    def batch(self, graphs: dict[str, nx.DiGraph], **options) -> dict[str, executor.Result]:
        """Runs several graphs as one plan, by label."""
        merged, steps = batch.merge(list(graphs.values()), list(graphs))
        parts = [
            executor.Part(FakeRecipe(), own, label)
            for own, label in zip(steps, graphs, strict=True)
        ]
        self.events = []
        options = executor.Options(**{"jobs": 0, **options})
        planned = plans.make(merged, self.store)
        done = executor.run_batch(planned, parts, self.store, options, self.events.append)
        return dict(zip(graphs, done, strict=True))

    def text(self, result: executor.Result, step: str, output: str = "out") -> str:
        return self.store.read(result.steps[step].outputs[output]).decode()


@pytest.fixture
def bench(store: Store) -> Bench:
    return Bench(store)


@pytest.fixture
def graph():
    return make_graph


@pytest.fixture
def chain(stages: ModuleType):
    """text, other → join → last."""

    def make(text: str = "hello", suffix: str = "!", **last) -> nx.DiGraph:
        return make_graph(
            text=(stages.Text(text=text), {}),
            other=(stages.Other(text="other"), {}),
            join=(stages.Join(suffix=suffix), {"a": ("text", "out"), "b": ("other", "out")}),
            last=(stages.Act(**{"act": "nothing"} | last), {"a": ("join", "out")}),
        )

    return make


@pytest.fixture
def script(stage_folder: Path, tmp_path: Path):
    """Starts a run in a process of its own: code that defines `graph` from `S` (the stages)."""
    started: list[subprocess.Popen] = []

    def start(code: str, store: Path, **options) -> subprocess.Popen:
        path = tmp_path / f"script{len(started)}.py"
        path.write_text(
            "import sys\n"
            f"sys.path[:0] = [{str(stage_folder)!r}, {str(Path(__file__).parent)!r}]\n"
            "if __name__ == '__main__':\n"
            "    from pathlib import Path\n"
            "    import engine_stages as S\n"
            "    from conftest import FakeRecipe, make_graph\n"
            "    from tapml import executor, plan\n"
            "    from tapml.settings import Dask, Joblib\n"
            "    from tapml.store import Store\n"
            f"    graph = make_graph({code})\n"
            f"    store = Store(Path({str(store)!r}))\n"
            "    def emit(event):\n"
            "        print(event, flush=True)\n"
            f"    options = executor.Options(**{options!r})\n"
            "    planned = plan.make(graph, store)\n"
            "    result = executor.run(planned, FakeRecipe(), store, options, emit)\n"
            "    print({name: one.state for name, one in result.steps.items()})\n"
            "    sys.exit(result.exit_code)\n"
        )
        process = subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Machine(Bench):
    """A bench that shares a cache, and the warnings that it was given."""

    def __init__(self, root: Path, settings: RemoteCache | None, patience_s: float) -> None:
        self.warnings: list[str] = []
        warn = self.warnings.append
        super().__init__(Store(root, remote=remote.connect(settings, root, warn, patience_s)))


class Machines:
    """Makes machines with stores of their own that share `folder`."""

    def __init__(self, base: Path) -> None:
        self.base, self.folder = base, base / "shared"

    def __call__(
        self,
        name: str,
        url: str | None = "",
        mode: str = "read-write",
        patience_s: float = 60.0,  # the server may share a busy machine with us
    ) -> Machine:
        """`url`: another place than the folder; None: no shared cache."""
        settings = None if url is None else RemoteCache(url=url or str(self.folder), mode=mode)
        return Machine(self.base / name, settings, patience_s)


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)
