"""Takes the pictures of README and docs from real runs of shipped recipes.

python docs/pictures.py [STORE]    runs two recipes of one layer where STORE lacks them

What a command prints becomes an SVG. Report and MLflow's view become PNGs by headless Chromium;
without one they are left out, which is said.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).with_name("images")
ROOT = Path(__file__).parents[1]
RECIPE, MATRIX = "recipes/operator_sparse.yaml", "recipes/operator_formats.yaml"
WIDTH, LARGEST = 124, 200_000  # columns; bytes of a picture
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _BROWSERS)), "")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


def said(*arguments: str, store: Path, folder: Path = ROOT) -> str:
    """What `tapml …` prints into a terminal, with its colours; progress as lines."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TAPML_STORE": str(store), "COLUMNS": str(WIDTH), "TERM": "xterm"}
    live = arguments[0] == "run"  # a display that is redrawn is no picture: its log is
    with subprocess.Popen(
        [sys.executable, "-m", "tapml", *arguments],
        cwd=folder,
        env=environment,
        stdout=theirs,
        stderr=subprocess.PIPE if live else theirs,
    ) as process:
        os.close(theirs)
        log = process.stderr.read().decode() if process.stderr else ""
        pieces = io.BytesIO()
        while piece := _read(ours):
            pieces.write(piece)
    os.close(ours)
    return log + pieces.getvalue().decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def picture(name: str, *commands: tuple[str, ...], store: Path, folder: Path = ROOT) -> None:
    """Writes an SVG of what some commands print, one below the other."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for command in commands:
        text = said(*command, store=store, folder=folder)
        console.print(Text.assemble(("$ ", "bold green"), (f"tapml {' '.join(command)}", "bold")))
        console.print(
            Text.from_ansi(text.replace(f"{ROOT}/", "").replace(str(store), "…/artifacts"))
        )
    console.save_svg(str(IMAGES / f"{name}.svg"), title="tapml", font_aspect_ratio=0.61)


def screenshot(url: str, path: Path, size: str, wait_s: int) -> None:
    """Writes what Chromium shows after `wait_s` seconds of the page's own time."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
                f"--window-size={size}",
                f"--virtual-time-budget={wait_s * 1000}",
                f"--screenshot={path}",
                url,
            ],
            check=True,
            capture_output=True,
        )


def mlflow(store: Path, sweep: str) -> None:
    """Writes a picture of the view that compares the runs of a sweep."""
    tapml = [sys.executable, "-m", "tapml", "ui", sweep, "--store", str(store)]
    with subprocess.Popen(tapml, stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None
        try:
            links = (re.search(r"http://\S+/compare-runs\S+", line) for line in ui.stdout)
            url = next(found[0] for found in links if found)
            time.sleep(40)  # the server needs a while to come up
            screenshot(url, IMAGES / "mlflow.png", "1600,1000", 60)
        finally:
            ui.terminate()


def main(folder: str = "") -> int:
    store = Path(folder or tempfile.mkdtemp(prefix="tapml-pictures-")).resolve()
    IMAGES.mkdir(exist_ok=True)
    other = "--set=sparsity.prune.density=0.3"
    picture("run", ("run", RECIPE), ("run", RECIPE), store=store)
    said("run", RECIPE, "--set=sparsity.prune.density=0.5", store=store)
    picture("plan", ("plan", RECIPE, other), store=store)
    picture("explain", ("explain", RECIPE, "prune", other), store=store)
    with tempfile.TemporaryDirectory() as wrong:
        text = (ROOT / RECIPE).read_text()
        for right, typo in (("trials", "trails"), ("kind: auto", "kind: bsrr"), (": 0.1", ": 10")):
            assert right in text
            text = text.replace(right, typo)
        (Path(wrong) / "recipe.yaml").write_text(text)
        picture("error", ("validate", "recipe.yaml"), store=store, folder=Path(wrong))
    runs = sorted(path.name for path in (store / "runs").iterdir())
    picture("compare", ("compare", runs[0], runs[-1]), ("runs",), store=store)
    said("run", MATRIX, store=store)
    (sweep,) = (store / "runs").glob("*.html")
    picture("matrix", ("run", MATRIX), store=store)
    if CHROMIUM:
        report = store / "runs" / runs[0] / "report.html"
        screenshot(report.as_uri(), IMAGES / "report.png", "1200,1400", 2)
        screenshot(sweep.as_uri(), IMAGES / "sweep.png", "1300,1580", 2)
        mlflow(store, sweep.stem)
    else:
        print("no Chromium: the PNGs are left as they are", file=sys.stderr)
    large = [path for path in IMAGES.iterdir() if path.stat().st_size > LARGEST]
    for path in sorted(IMAGES.iterdir()):
        print(f"{path.stat().st_size / 1000:6.0f} kB  {path.relative_to(ROOT)}")
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
