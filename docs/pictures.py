"""Takes the pictures of README and docs from real runs, with headless Chromium.

python docs/pictures.py RUN [STORE]     the run's report, and MLflow's comparing view of all runs
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

IMAGES = Path(__file__).with_name("images")
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


def screenshot(url: str, picture: Path, size: str, wait_s: int) -> None:
    """Writes what Chromium shows after `wait_s` seconds of the page's own time."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                "chromium",
                *FLAGS,
                f"--user-data-dir={profile}",
                f"--window-size={size}",
                f"--virtual-time-budget={wait_s * 1000}",
                f"--screenshot={picture}",
                url,
            ],
            check=True,
            capture_output=True,
        )


def comparison(store: Path) -> str:
    """Path of MLflow's page that compares the runs of the newest experiment."""
    with sqlite3.connect(store / "mlflow" / "mlflow.db") as database:
        rows = database.execute(
            "select run_uuid, experiment_id from runs where experiment_id = "
            "(select experiment_id from runs order by start_time desc limit 1) order by start_time"
        ).fetchall()
    runs, experiments = json.dumps([row[0] for row in rows]), json.dumps([str(rows[0][1])])
    query = f"runs={runs}&experiments={experiments}&workflowType=machine_learning"
    return f"#/compare-runs?{quote(query, safe='=&')}"


def main(run: str, store: str = "artifacts") -> None:
    IMAGES.mkdir(exist_ok=True)
    report = (Path(store) / "runs" / run / "report.html").resolve()
    screenshot(report.as_uri(), IMAGES / "report.png", "1200,1500", 2)
    tapml = [sys.executable, "-m", "tapml", "ui", "--store", store]
    with subprocess.Popen(tapml, stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None
        try:
            url = next(
                found[0] for line in ui.stdout if (found := re.search(r"http://\S+?/", line))
            )
            time.sleep(40)  # the server needs a while to come up
            screenshot(url + comparison(Path(store)), IMAGES / "mlflow.png", "1600,1000", 60)
        finally:
            ui.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
