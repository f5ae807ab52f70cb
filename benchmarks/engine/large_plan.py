"""One plan of a chain of many stages, in a process of its own: what `run.py` times.

    python benchmarks/engine/large_plan.py STORE STEPS fill | plan | changed

`fill` stores a result for every stage, without running one; `plan` plans the chain; `changed` plans
it with another salt in its root, so that all wait for that. The time of `plan` includes the
imports and making the graph.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "site"))

from fold_stages import Fold
from graphs import chain, expected, text

from tapml import keys, plan
from tapml.graph import Graph
from tapml.store import Record, Store, now


def graph(steps: int, salt: int = 0) -> Graph:
    made = Graph()
    for number, (name, above) in enumerate(chain(steps).needs.items()):
        inputs = {"a": (above[0], "number")} if above else {}
        made.add(name, Fold(salt=number + salt * (number == 0)), inputs)
    return made


def fill(store: Store, steps: int) -> None:
    """A record for every stage, as if each had run."""
    store.prepare()
    shape = chain(steps)
    numbers = expected(shape, {name: number for number, name in enumerate(shape.needs)})
    made = graph(steps)
    given: dict[str, str] = {}
    for name, node in made.nodes.items():
        above = {key: given[source] for key, (source, _) in node["inputs"].items()}
        preimage = keys.preimage(node["stage"], above)
        given[name] = store.put_bytes(text(numbers[name]).encode())
        outputs = {"number": given[name]}
        store.publish(Record("fold", keys.digest(preimage), preimage, outputs, made_at=now()))


def main() -> None:
    root, steps, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    store = Store(root.resolve())
    if what == "fill":
        fill(store, steps)
        return
    made = plan.make(graph(steps, salt=int(what == "changed")), store)
    print(dict(Counter(step.state for step in made)))


if __name__ == "__main__":
    main()
