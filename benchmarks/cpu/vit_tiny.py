"""ViT-Ti/16 of Touvron et al. (2021): 12 layers, width 192, 3 heads; no package ships weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification


class Classifier(nn.Module):
    """Image, float32[batch, 3, 224, 224] → logits of 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(
            hidden_size=192,
            num_hidden_layers=12,
            num_attention_heads=3,
            intermediate_size=768,
            num_labels=1000,
        )
        self.network = ViTForImageClassification(config)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(image).logits}


def vit() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return Classifier(), {"image": torch.zeros(1, 3, 224, 224)}
