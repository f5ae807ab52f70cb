"""Values of operators that TVM's own converters get wrong, or cannot do at symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tapml.errors import StageError

pytestmark = [pytest.mark.torch, pytest.mark.slow]

SHAPES = {"x": ("batch", 4, 6), "y": ("batch", 4, 6), "i": ("batch", 4, 6), "m": ("batch", 4, 6)}
SIZES = ({"batch": 1}, {"batch": 2}, {"batch": 7})
Group = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]


class Computes(nn.Module):
    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor, y: Tensor, i: Tensor, m: Tensor) -> dict[str, Tensor]:
        return self.group(x, y, i, m)


def selects(x: Tensor, y: Tensor, i: Tensor, m: Tensor) -> dict[str, Tensor]:
    return {
        "last": x[:, -1],
        "last but one": x[..., -2],
        "last of the batch": x[-1],
        "unbound": x.unbind(1)[-1] + y.unbind(1)[0],
        "from the end": x[:, -2:],
        "to the end": x[:, :-1],
        "between": x[:, 1:-1, -3:-1],
        "beyond both ends": x[:, -100:100],
        "every third": x[..., 1::3],
        "side by side": x.repeat(2, 1, 3),
        "side by side by the batch": x[:1].repeat(x.shape[0], 2, 1, 1),
        "last of the batch, kept": x[-1:],
        "a table by the batch": torch.arange(100.0)[x.shape[0] : 2 * x.shape[0]],
    }


def indices(x: Tensor, y: Tensor, i: Tensor, m: Tensor) -> dict[str, Tensor]:
    rows = torch.arange(x.shape[0])
    return {
        "negative": x[:, :, [-2, 1]],
        "zipped": x[:, [0, -1, 2], [1, 2, -3]],
        "apart": x[[0], :, [1]],
        "of two axes": x[:, torch.tensor([[0, 1], [-1, 2]])],
        "broadcast": x[:, torch.tensor([[0], [1]]), torch.tensor([2, -1])],
        "int32": x[:, torch.tensor([1, -1], dtype=torch.int32)],
        "by data": x[rows, i[:, 0, 0].clamp(max=3)],
        "by negative data": x[rows, i[:, 0, 0] % 4 - 4],
        "last that holds": x[rows, m[:, :, 0].sum(-1) - 1],
        "flat": x.take(i[:1] * (x.shape[0] - 1)),
        "gathered": x.gather(2, i),
        "embedded": F.embedding(i, torch.arange(18.0).view(6, 3)),
    }


def writes(x: Tensor, y: Tensor, i: Tensor, m: Tensor) -> dict[str, Tensor]:
    def put(change: Callable[[Tensor], object]) -> Tensor:
        copy = x.clone()
        change(copy)
        return copy

    rows = torch.arange(x.shape[0])
    return {
        "scatter": x.scatter(2, torch.arange(6).flip(0).expand(x.shape[0], 4, 6), y),
        "scatter_add": x.scatter_add(2, i, y),
        "scatter_add in a corner": x.scatter_add(2, i[:, :2, :3], y),
        "largest": x.scatter_reduce(2, i, y, reduce="amax"),
        "mean without itself": x.scatter_reduce(2, i, y, reduce="mean", include_self=False),
        "index_add": x.index_add(1, torch.tensor([0, 2, 2, 1]), y, alpha=2),
        "index_copy": x.index_copy(1, torch.tensor([2, 0]), y[:, :2]),
        "by a mask": x.masked_scatter(m, y),
        "rows by a mask": x.masked_scatter(m[:, :, :1], y),
        "by a mask for all rows": x.masked_scatter(m[0], y),
        "by one flag": x.masked_scatter(m[:1, :1, :1], y),
        "slice": put(lambda to: to[:, 1:3].copy_(y[:, :2])),
        "steps": put(lambda to: to[..., ::2].copy_(y[..., :3])),
        "from the end": put(lambda to: to[:, -2:].copy_(y[:, :2])),
        "last": put(lambda to: to[:, -1].add_(1)),
        "negative index": put(
            lambda to: to.index_put_((rows[:, None], torch.tensor([[-1, 0]])), y[:, :2])
        ),
        "zipped": put(lambda to: to.__setitem__((slice(None), [0, -1], [1, -2]), y[:, :2, 0])),
        "by data": put(lambda to: to.__setitem__((rows, i[:, 0, 0].clamp(max=3)), 2.0)),
        "where a mask holds": put(lambda to: to.__setitem__(m, -1.0)),
        "rows where a mask holds": put(lambda to: to.__setitem__(m[:, :, 0], -1.0)),
    }


def numbers(x: Tensor, y: Tensor, i: Tensor, m: Tensor) -> dict[str, Tensor]:
    return {
        "add times": torch.add(x, y, alpha=2),
        "sub times": torch.sub(x, y, alpha=3),
        "rsub times": torch.rsub(x, y, alpha=2),
        "int + float": i + 1.5,
        "int * float": i * 0.5,
        "int / int": i / 4,
        "int > float": i > 2.5,
        "bool + bool": m + m,
        "bool + int": m + 1,
        "float power of int": 1.5**i,
        "int power of int": 2**i,
        "clamped ints": i.clamp(max=3),
        "selu": F.selu(x),
        "celu": F.celu(x, alpha=0.5),
        "finite": torch.isfinite(x / (x > 0)),
        "not a number": torch.nan_to_num(x.sqrt(), 1.0),
        "the number of two": torch.fmax(x.sqrt(), y) - torch.fmin(y, x.sqrt()),
        "running sum of bools": m.cumsum(-1),
        "running sum of the batch": x.cumsum(0),
        "sum of bools": m.sum(-1),
        "max and where": x.max(-1).values + x.max(-1).indices,
        "variance": x.var(1),
        "variance of all": x.var((0, 1), correction=0),
        "infinite mask": torch.full((4, 4), float("-inf")).triu(1).exp(),
        "of the size": x / x.shape[0],
        "tiled": x.repeat(2, 1, 3),
        "rolled": x.roll(1, 0),
        "joined": torch.cat([x, i], 1),
        "cut and padded": F.pad(x, (-1, 2), value=3.0),
    }


def images(x: Tensor, y: Tensor, i: Tensor, m: Tensor) -> dict[str, Tensor]:
    image = (x[:, :, :, None] * y[:, :, None]).view(x.shape[0], 4, 6, 6)
    return {
        "nearest, smaller": F.interpolate(image, size=(4, 5)),
        "nearest, larger": F.interpolate(image, scale_factor=2),
        "bilinear": F.interpolate(image, scale_factor=1.5, mode="bilinear"),
        "corners": F.interpolate(image, size=(9, 7), mode="bilinear", align_corners=True),
        "bicubic": F.interpolate(image, size=(9, 7), mode="bicubic"),
        "divided": F.avg_pool2d(image, 2, divisor_override=3),
        "outside not counted": F.avg_pool2d(image, 3, 2, 1, count_include_pad=False),
        "windows": image.unfold(2, 3, 2),
        "normed by the batch": F.instance_norm(image),
        "attended": F.scaled_dot_product_attention(image, image, image, is_causal=True),
        "grouped": F.scaled_dot_product_attention(
            image, image[:, :2], image[:, :2], enable_gqa=True
        ),
        "masked": F.scaled_dot_product_attention(
            image, image, image, (image > 0)[:, :1] | torch.eye(6, dtype=torch.bool)
        ),
        "a row sees nothing": F.scaled_dot_product_attention(
            image, image, image, torch.arange(6)[:, None] > torch.arange(6)
        ),
        "a row sees nothing by a sum": F.scaled_dot_product_attention(
            image, image, image, torch.full((6, 6), float("-inf")).triu().to(image)
        ),
        "upwards": F.conv_transpose2d(
            image,
            torch.arange(72.0).view(4, 2, 3, 3).sin().to(image),
            stride=2,
            padding=1,
            output_padding=1,
        ),
    }


@pytest.mark.parametrize("group", [selects, indices, writes, numbers, images])
def test_values_are_torchs_at_every_size(same_as_torch: Callable[..., Any], group: Group) -> None:
    torch.manual_seed(0)
    arguments = {
        "x": torch.randn(2, 4, 6),
        "y": torch.randn(2, 4, 6),
        "i": torch.tensor([0, 5]).repeat(24).view(2, 4, 6),
        "m": torch.ones(2, 4, 6, dtype=torch.bool),
    }
    same_as_torch(Computes(group), arguments, SHAPES, {"batch": (1, 8)}, SIZES)


def test_a_grid_samples_as_torch_does_inside_and_outside(
    same_as_torch: Callable[..., Any],
) -> None:
    settings = (
        ("bilinear", "zeros", False),
        ("bilinear", "reflection", True),
        ("nearest", "border", False),
        ("bicubic", "reflection", False),
    )

    class Samples(nn.Module):
        def forward(self, x: Tensor, grid: Tensor) -> dict[str, Tensor]:
            return {
                f"{method} {padding} {corners}": F.grid_sample(x, grid, method, padding, corners)
                for method, padding, corners in settings
            }

    torch.manual_seed(0)
    arguments = {"x": torch.randn(2, 3, 5, 6), "grid": torch.randn(2, 4, 7, 2)}
    shapes = {"x": ("batch", 3, 5, 6), "grid": ("batch", 4, 7, 2)}
    same_as_torch(Samples(), arguments, shapes, {"batch": (1, 8)}, SIZES)


def test_positions_of_a_table_have_the_inputs_size(same_as_torch: Callable[..., Any]) -> None:
    """BERT's: a slice of a buffer as long as the input, added to it."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(512, 4)
            self.ids = nn.Buffer(torch.arange(512)[None], persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table(self.ids[:, : x.shape[1]])

    sizes = ({"length": 1}, {"length": 512})
    shapes, dims = {"x": (2, "length", 4)}, {"length": (1, 512)}
    same_as_torch(Positions(), {"x": torch.randn(2, 3, 4)}, shapes, dims, sizes)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[x > 0], "its size depends on data"),
        (lambda x: x.nonzero(), "its size depends on data"),
        (lambda x: x + torch.randn_like(x), "take the random numbers as an input"),
        (lambda x: F.interpolate(x[None], size=3, mode="bilinear", antialias=True), "antialiasing"),
        (lambda x: F.interpolate(x[None], scale_factor=1.7, mode="bilinear"), "no whole size"),
        (lambda x: torch.fft.rfft(x).abs(), "_fft_r2c"),
        (lambda x: torch.view_as_real(torch.polar(x.abs(), x)), "there are no complex numbers"),
        (
            lambda x: F.avg_pool2d(x[None], 3, 2, 1, ceil_mode=True, divisor_override=5),
            "divisor_override together with ceil_mode=True",
        ),
    ],
)
def test_what_would_be_another_number_is_refused(
    imported: Callable[..., Any], function: Callable[[Tensor], Tensor], message: str
) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    with pytest.raises(StageError, match=message):
        imported(One(), {"x": torch.randn(3, 8, 8)})
