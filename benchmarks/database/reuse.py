"""Claims about reuse: `benchmarks/database/reuse.py [--trials N] [DONOR:SIBLING...]`.

For each pair, from empty databases:
1. the donor is tuned; 2. again: nothing is measured a second time; 3. its sibling is tuned by
itself; 4. the sibling gets the donor's records and 0 new trials.
A sibling shall reach 80 % of its final speed in step 4. Speeds are relative to the default
schedules, timed beside them in the same contests. The script ends with 1 where a claim does not
hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import page
import tuning
from tuning import Model

PAIRS = (
    "minilm@1x64:minilm@1x32",
    "ocr_turn@1x192:ocr_turn@2x192",
    "minilm@~16x128:minilm@~4x64",
)
FLOOR = 0.8  # of the final speed, with 0 new trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", default=PAIRS)
    parser.add_argument("--trials", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--space", nargs="+", default=["tiles", "rules"], help="search modules")
    parser.add_argument("--folder", type=Path, help="keeps programs and databases; resumes")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    rows = [pair(*text.split(":"), folder.resolve(), options) for text in options.pairs]
    titles = (
        "donor",
        "sibling",
        "trials, threads",
        "measured again for the donor",
        "sibling tuned",
        "sibling, 0 trials",
        "of its final speed",
        "of its gain",
    )
    cells = [
        (
            row["donor"],
            row["sibling"],
            f"{row['trials']}, {row['threads']}",
            row["measured_again"],
            f"{row['tuned_speedup']:.2f}x",
            f"{row['reused_speedup']:.2f}x",
            f"{row['share_of_speed']:.0%}",
            f"{row['share_of_gain']:.0%}",
        )
        for row in rows
    ]
    text = tuning.table(titles, cells)
    print(text)
    page.place("tuning-database.md", "reuse", text)
    page.keep(tuning.RESULTS / "database_reuse.json", rows)
    failed = [row for row in rows if row["share_of_speed"] < FLOOR or row["measured_again"] != 0]
    return 1 if failed else 0


def pair(donor: str, sibling: str, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    target = tuning.here(options.threads)
    one, other = Model.of(donor), Model.of(sibling)
    trials, space = options.trials, tuple(options.space)
    given, own_db = (folder / f"db-{model}-{trials}" for model in (one, other))

    def tune(model: Model, db: Path, trials: int, reuse: Path | None = None) -> tuning.Outcome:
        return tuning.tune(model, folder, target, trials=trials, db=db, reuse=reuse, space=space)

    first, again = tune(one, given, trials), tune(one, given, trials)
    own = tune(other, own_db, trials)
    exported = tuning.export([given], folder / f"{one}.jsonl")
    reused = tune(other, folder / "unused", 0, exported)
    for name, done in (("donor", first), ("again", again), ("own", own), ("reused", reused)):
        print(f"{name}: {done.speedup:.2f}x, {done.won} won", *done.notes[:4], sep="\n  ")
    (spent,) = [note for note in again.notes if "measured now" in note]
    return {
        "donor": donor,
        "sibling": sibling,
        "trials": trials,
        "space": space,
        "threads": options.threads,
        "donor_speedup": first.speedup,
        "measured_again": int(spent.partition(": ")[2].partition(" measured")[0]),
        "tuned_speedup": own.speedup,
        "reused_speedup": reused.speedup,
        "share_of_speed": reused.speedup / own.speedup,
        "share_of_gain": (reused.speedup - 1) / (own.speedup - 1) if own.speedup > 1 else 1.0,
    }


if __name__ == "__main__":
    sys.exit(main())
