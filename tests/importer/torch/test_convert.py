from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tapml.errors import StageError

pytestmark = [pytest.mark.torch, pytest.mark.slow]


class Tied(nn.Module):
    """Embedding, positions, attention, batch norm, and a head that shares the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(8)
        self.position = nn.Buffer(torch.randn(512, 8))
        self.scale = torch.tensor([1.5, 2.0])

    def forward(self, ids: Tensor) -> dict[str, Any]:
        x = self.embed(ids) + self.position[: ids.shape[1]]
        heads = x.view(*x.shape[:2], 2, 4).transpose(1, 2)
        x = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        x = x.transpose(1, 2).reshape(ids.shape[0], ids.shape[1], 8) * self.scale[-1]
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return {"logits": self.head(x), "ends": (x[:, -1], x[:, :, [-2]])}


DIMS = {"batch": (1, 8), "length": (1, 64)}
IDS = {"ids": torch.arange(10).repeat(2, 1)}


def test_one_program_runs_at_every_batch_and_length(same_as_torch: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    sizes = tuple({"batch": b, "length": n} for b, n in ((1, 1), (3, 7), (2, 64)))
    program = same_as_torch(Tied(), IDS, {"ids": ("batch", "length")}, DIMS, sizes)
    assert [one.shape for one in program.io.outputs] == [
        ("batch", "length", 10),
        ("batch", 8),
        ("batch", "length", 1),
    ]
    assert [one.name for one in program.io.outputs] == ["logits", "ends.0", "ends.1"]


def test_weights_have_their_names_once_and_share_torchs_memory(
    imported: Callable[..., Any],
) -> None:
    module = Tied()
    program, weights = imported(module, IDS, {"ids": ("batch", "length")}, DIMS)
    names = [one.name for one in program.io.params]
    assert len(set(names)) == len(names)
    assert sum(name in ("embed.weight", "head.weight") for name in names) == 1
    assert np.shares_memory(weights["embed.weight"], module.embed.weight.detach().numpy())
    linear = next(row for row in program.provenance if row.op == "linear" and row.weights)
    assert linear.weights == ("embed.weight",)


def test_a_buffer_that_is_written_to_is_refused_by_name(imported: Callable[..., Any]) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = nn.Buffer(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(x)
            return x * self.seen

    with pytest.raises(StageError, match=r"writes to buffer 'seen'"):
        imported(Counts(), {"x": torch.ones(3)})


def test_a_parameter_that_is_written_to_is_refused_by_name(imported: Callable[..., Any]) -> None:
    class Learns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            self.weight.add_(1)
            return x * self.weight

    with pytest.raises(StageError, match=r"writes to parameter 'weight'"):
        imported(Learns(), {"x": torch.ones(3)})


def test_an_input_that_is_written_to_is_refused_by_name(imported: Callable[..., Any]) -> None:
    class Overwrites(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    with pytest.raises(StageError, match=r"writes to input 'x'"):
        imported(Overwrites(), {"x": torch.ones(3)})


def test_every_unsupported_operator_is_told_with_its_line(imported: Callable[..., Any]) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(x).sum() + torch.special.bessel_j0(x)

    with pytest.raises(StageError, match="2 operators cannot be imported") as told:
        imported(Odd(), {"x": torch.ones(3, 3)})
    assert "special_bessel_j0.default ×1" in str(told.value)
    assert "test_convert.py:" in str(told.value)
