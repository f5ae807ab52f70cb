"""Architectures that transformers lacks: `unet`, a torch module, and `gcn`, an ONNX graph."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn.functional import interpolate

NODES, FEATURES, HIDDEN, CLASSES = 24, 16, 32, 5


class Block(nn.Sequential):
    """Two convolutions with their norms."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(
            nn.Conv2d(inner, outer, 3, padding=1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, padding=1),
            nn.GroupNorm(4, outer),
            nn.SiLU(),
        )


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015), two levels: one is scaled up by a transposed convolution,
    one bilinearly. Image, float32[batch, 3, 64, 64] → float32[batch, 4, 64, 64].
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = Block(3, 8), Block(8, 16), Block(16, 32)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.decode_middle, self.decode_fine = Block(32, 16), Block(24, 8)
        self.classify = nn.Conv2d(8, 4, 1)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        fine = self.fine(pixel_values)
        middle = self.middle(self.pool(fine))
        coarse = self.coarse(self.pool(middle))
        middle = self.decode_middle(torch.cat([middle, self.up(coarse)], dim=1))
        wide = interpolate(middle, scale_factor=2, mode="bilinear", align_corners=False)
        return {"logits": self.classify(self.decode_fine(torch.cat([fine, wide], dim=1)))}


def unet() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    module = UNet().eval()
    for name, value in module.named_buffers():  # a norm that norms nothing would hide mistakes
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
    return module, {"pixel_values": torch.zeros(1, 3, 64, 64)}


def gcn() -> onnx.ModelProto:
    """Graph convolutions (Kipf and Welling, 2017) over any number of edges: what the neighbours
    say is gathered at their starts and added up at their ends.

    x float32[24, 16], start and end int64[edges, 1] → logits float32[24, 5]
    """
    rng = np.random.default_rng(0)
    widths = (FEATURES, HIDDEN, CLASSES)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    state = "x"
    for layer, (inner, outer) in enumerate(pairwise(widths)):
        name = f"layer{layer}"
        weight = rng.standard_normal((inner, outer)) / np.sqrt(inner)
        zeros = np.zeros((NODES, outer), np.float32)
        weights += [
            numpy_helper.from_array(weight.astype(np.float32), f"{name}.weight"),
            numpy_helper.from_array(rng.standard_normal(outer).astype(np.float32), f"{name}.bias"),
            numpy_helper.from_array(zeros, f"{name}.zeros"),
        ]
        last = layer == len(widths) - 2
        result = "logits" if last else f"{name}.out"
        nodes += [
            helper.make_node("MatMul", [state, f"{name}.weight"], [f"{name}.own"]),
            helper.make_node("GatherND", [f"{name}.own", "start"], [f"{name}.said"]),
            helper.make_node(
                "ScatterND",
                [f"{name}.zeros", "end", f"{name}.said"],
                [f"{name}.heard"],
                reduction="add",
            ),
            helper.make_node("Add", [f"{name}.own", f"{name}.heard"], [f"{name}.sum"]),
            helper.make_node(
                "Add", [f"{name}.sum", f"{name}.bias"], [result if last else f"{name}.all"]
            ),
        ]
        if not last:
            nodes.append(helper.make_node("Relu", [f"{name}.all"], [result]))
        state = result
    edges = [
        helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["edges", 1])
        for name in ("start", "end")
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [NODES, FEATURES])
    out = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [NODES, CLASSES])
    graph = helper.make_graph(nodes, "gcn", [x, *edges], [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model, full_check=True)
    return model
