"""The recipe's own metric, on its real inputs, against the outputs of the original weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapml.errors import StageError
from tapml.stage import PythonFunction

Arrays = Mapping[str, np.ndarray]


def evaluate(
    metric: PythonFunction,
    outputs: Sequence[Arrays],
    reference: Sequence[Arrays],
    inputs: Sequence[Arrays],
) -> dict[str, float]:
    """Value of the metric by name, over all cases joined along their first axis.

    Raises: StageError when the function raises, or gives anything but finite numbers.
    """
    fn = metric.load("validation.metric")
    where = f"{metric.path}: {metric.function}()"
    try:
        value: Any = fn(_joined(outputs), _joined(reference), _joined(inputs))
    except Exception as error:  # the user's code: anything may come out of it
        raise metric.told(error) from error
    named = dict(value) if isinstance(value, Mapping) else {metric.function: value}
    for name, number in named.items():
        if not isinstance(number, int | float | np.number) or not math.isfinite(float(number)):
            raise StageError(
                message=f"{where} gave {name} = {number!r}; a metric is a finite number"
            )
    return {str(name): float(number) for name, number in named.items()}


def _joined(cases: Sequence[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([case[name] for case in cases]) for name in cases[0]}
