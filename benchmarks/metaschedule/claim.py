"""What the scripts here share: a table whose rows are measured one by one, kept, and placed in
docs/metaschedule.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import page

from tapml.stage import Target
from tapml.target import TargetSection, resolve

RESULTS = Path(__file__).resolve().parents[1] / "results"
Row = dict[str, Any]
Measure = Callable[[str, Target, int, Path], Row]  # name, target, trials, a folder to work in


def main(
    doc: str | None,
    mark: str,
    names: Sequence[str],
    measure: Measure,
    table: Callable[[Sequence[Row]], str],
    *,
    trials: int,
    quick: int,
) -> int:
    """Measures the rows that are not kept yet; all of them with --fresh, `quick` trials and nothing
    kept with --quick.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="rows (default: all)")
    parser.add_argument("--trials", type=int, default=trials, help="of each search")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help=f"{quick} trials, kept nowhere")
    parser.add_argument("--fresh", action="store_true", help="measures again what was kept")
    options = parser.parse_args()
    found = resolve(TargetSection())
    device = found.device.model_copy(update={"threads": options.threads})
    target = found.model_copy(update={"device": device})
    results = RESULTS / f"metaschedule_{mark}.json"
    kept: dict[str, Row] = {}
    if results.exists() and not options.fresh and not options.quick:
        kept = {row["name"]: row for row in json.loads(results.read_text())["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or names:
            if name in kept:
                continue
            count = quick if options.quick else options.trials
            place = Path(folder) / name.replace(" ", "_")
            kept[name] = {"name": name, **measure(name, target, count, place)}
            print(table([kept[name]]).splitlines()[-1], flush=True)
            if not options.quick:
                page.keep(results, list(kept.values()))
    text = table([kept[name] for name in names if name in kept])
    print(text)
    if not options.quick:
        page.place("metaschedule.md", mark, text)
    return 0
