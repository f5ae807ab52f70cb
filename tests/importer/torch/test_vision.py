"""Image networks, tiny and random, right at every batch from one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = [pytest.mark.torch, pytest.mark.slow]

BATCHES = ({"batch": 1}, {"batch": 2}, {"batch": 5})


class Logits(nn.Module):
    """The model of a transformers configuration, by the outputs that matter."""

    def __init__(self, model: Any, *outputs: str) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.model(pixel_values=x)
        return {name: found[name] for name in self.outputs}


class UNet(nn.Module):
    """Down, up, and the joints between them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = nn.functional.silu(self.down(x))
        coarse = self.norm(self.middle(fine))
        wide = nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
        return self.out(torch.cat([fine, self.up(coarse), wide[:, ::2]], dim=1))


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return Logits(ResNetForImageClassification(config), "logits")


def efficientnet() -> nn.Module:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        width_coefficient=0.1, depth_coefficient=0.1, image_size=32, hidden_dim=128
    )
    return Logits(EfficientNetForImageClassification(config), "logits")


def mobilenet() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.1, image_size=32)
    return Logits(MobileNetV2ForImageClassification(config), "logits")


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    return Logits(ViTForImageClassification(config), "logits")


def detector() -> nn.Module:
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=3,
    )
    return Logits(YolosForObjectDetection(config), "logits", "pred_boxes")


@pytest.mark.parametrize("make", [UNet, resnet, efficientnet, mobilenet, vit, detector])
def test_an_image_network_is_right_at_every_batch(
    same_as_torch: Callable[..., Any], make: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    for buffer in module.buffers():  # batch norms that norm nothing would hide mistakes
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    images = {"x": torch.randn(2, 3, 32, 32)}
    same_as_torch(module, images, {"x": ("batch", 3, 32, 32)}, {"batch": (1, 8)}, BATCHES)
