"""What the trials of a search module say of schedules that were not tried yet, of any kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEAST = 12  # trials before which nothing is foretold
FAILED = 2.0  # the logarithm of the time of a schedule that failed, relative to the default's
OPTIONS = {
    "max_depth": 6,
    "eta": 0.2,
    "min_child_weight": 1,
    "subsample": 1.0,
    "nthread": 1,  # more, and the order of sums is no longer a function of the data
    "seed": 0,
    "verbosity": 0,
}
TREES = 60


class CostModel:
    """Boosted trees over the features of schedules, taught the logarithm of their times relative to
    their kernel's default.
    """

    def __init__(self) -> None:
        self._features: list[Sequence[float]] = []
        self._times: list[float] = []

    def add(self, features: Sequence[float], relative: float | None) -> None:
        """One more trial; `relative` is None when it failed."""
        self._features.append([float(one) for one in features])
        self._times.append(FAILED if relative is None else min(math.log(relative), FAILED))

    def predict(self, features: Sequence[Sequence[float]]) -> np.ndarray | None:
        """Logarithms of relative times, or None while too little is known."""
        if len(self._times) < LEAST or not features:
            return None
        import xgboost

        data = xgboost.DMatrix(np.array(self._features, "float32"), np.array(self._times))
        trees = xgboost.train(OPTIONS, data, num_boost_round=TREES)
        rows = [[float(one) for one in row] for row in features]
        return trees.predict(xgboost.DMatrix(np.array(rows, "float32")))
