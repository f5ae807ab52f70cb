"""Models of the zoo's kinds at the widths of real ones, two layers each, weights random: what their
kernels cost does not depend on the weights.

`MODELS[name]()` gives module, example inputs, dims per input, and the sizes to time at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

FAR = -1e9  # masks a score


@dataclass(frozen=True)
class Model:
    """shapes: of each input, symbolic sizes by name · sizes: what is timed."""

    module: nn.Module
    inputs: dict[str, Tensor]
    shapes: dict[str, tuple[int | str, ...]]
    sizes: dict[str, int]
    dims: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"batch": (1, 16), "n": (2, 512)}
    )


def _made(kind: Any, config: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind._from_config(config, attn_implementation="eager", **options).eval()


def _ids(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))


def _causal(batch: int, n: int) -> Tensor:
    places = torch.arange(n)
    mask = torch.where(places[None, :] <= places[:, None], 0.0, FAR)
    return mask[None, None].expand(batch, 1, n, n)


class Encoder(nn.Module):
    """BERT, mean of the tokens that the mask keeps, unit length: a sentence embedding."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        batch, n = ids.shape
        kept = mask.to(torch.float32)
        hidden = self.inner(
            input_ids=ids,
            attention_mask=((1.0 - kept) * FAR)[:, None, None, :],
            position_ids=torch.arange(n)[None].expand(batch, n),
            token_type_ids=torch.zeros_like(ids),
        ).last_hidden_state
        mean = (hidden * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


class Language(nn.Module):
    """Logits of every position, causal."""

    def __init__(self, inner: nn.Module, kinds: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.inner, self.kinds = inner, kinds

    def forward(self, ids: Tensor) -> Tensor:
        batch, n = ids.shape
        mask: Any = _causal(batch, n)
        mask = dict.fromkeys(self.kinds, mask) if self.kinds else mask
        places = torch.arange(n)[None].expand(batch, n)
        return self.inner(
            input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False
        ).logits


class Seq2Seq(nn.Module):
    """T5: logits of the decoder, given the text of both sides."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor, decoded: Tensor) -> Tensor:
        (batch, n), m = ids.shape, decoded.shape[1]
        open_mask = torch.zeros(batch, 1, 1, n)
        states = self.inner.encoder(input_ids=ids, attention_mask=open_mask).last_hidden_state
        hidden = self.inner.decoder(
            input_ids=decoded,
            attention_mask=_causal(batch, m),
            encoder_hidden_states=states,
            encoder_attention_mask=open_mask,
            use_cache=False,
        ).last_hidden_state
        return self.inner.lm_head(hidden)


class Field(nn.Module):
    """One field of what a model of transformers returns."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.inner(x), self.name)


class UNet(nn.Module):
    """Two levels down and up: GroupNorm, both kinds of transposed convolution, bilinear resize."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Module:
            first = [nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(8, o), nn.SiLU()]
            second = [nn.Conv2d(o, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
            return nn.Sequential(*first, *second)

        self.down = nn.ModuleList([block(3, width), block(width, 2 * width)])
        self.middle = block(2 * width, 4 * width)
        self.near = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.far = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.up = nn.ModuleList([block(4 * width, 2 * width), block(2 * width, width)])
        self.out = nn.Conv2d(5 * width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        large = self.down[0](x)
        half = self.down[1](nn.functional.max_pool2d(large, 2))
        deep = self.middle(nn.functional.max_pool2d(half, 2))
        wide = nn.functional.interpolate(deep, scale_factor=4, mode="bilinear", align_corners=False)
        y = self.up[0](torch.cat([self.near(deep), half], 1))
        y = self.up[1](torch.cat([self.far(y), large], 1))
        return self.out(torch.cat([y, wide], 1)).softmax(1)


class Recurrent(nn.Module):
    """Two LSTM layers over eight frames, and the class of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(80, 256, 2, batch_first=True), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, 7])


class Graph(nn.Module):
    """Two graph convolutions: gather by edges, scatter by their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 32)

    def forward(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            h = layer(x)
            ends = end[:, None].expand(-1, h.shape[1])
            x = torch.relu(torch.zeros_like(h).scatter_add(0, ends, h[start]))
        return x.argmax(1)


def _images(name: str, module: nn.Module, size: int) -> Model:
    shape = {"x": ("batch", 3, size, size)}
    return Model(
        Field(module, name) if name else module.eval(),
        {"x": torch.randn(2, 3, size, size)},
        shape,
        {"batch": 1},
        {"batch": (1, 16)},
    )


def _language(kind: Any, config: Any, kinds: tuple[str, ...] = (), **options: Any) -> Model:
    module = Language(_made(kind, config, **options), kinds)
    return Model(module, {"ids": _ids(2, 7)}, {"ids": ("batch", "n")}, {"batch": 1, "n": 128})


def bert() -> Model:
    config = hf.BertConfig(
        hidden_size=384, num_hidden_layers=2, num_attention_heads=12, intermediate_size=1536
    )
    module = Encoder(_made(hf.BertModel, config, add_pooling_layer=False))
    inputs = {"ids": _ids(2, 7), "mask": torch.ones(2, 7, dtype=torch.int64)}
    shapes: dict[str, tuple[int | str, ...]] = dict.fromkeys(inputs, ("batch", "n"))
    return Model(module, inputs, shapes, {"batch": 1, "n": 128})


def llama() -> Model:
    config = hf.LlamaConfig(
        vocab_size=8192,
        hidden_size=576,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=1024,
    )
    return _language(hf.LlamaForCausalLM, config)


def gemma2() -> Model:
    config = hf.Gemma2Config(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1536,
        max_position_embeddings=1024,
    )
    return _language(hf.Gemma2ForCausalLM, config, ("full_attention", "sliding_attention"))


def gpt2() -> Model:
    return _language(hf.GPT2LMHeadModel, hf.GPT2Config(n_layer=2, vocab_size=8192))


def mixtral() -> Model:
    config = hf.MixtralConfig(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=512,
        max_position_embeddings=1024,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    return _language(hf.MixtralForCausalLM, config, experts_implementation="batched_mm")


def t5() -> Model:
    config = hf.T5Config(
        vocab_size=8192, num_layers=2, num_decoder_layers=2, d_model=512, d_ff=2048
    )
    module = Seq2Seq(_made(hf.T5ForConditionalGeneration, config))
    return Model(
        module,
        {"ids": _ids(2, 7), "decoded": _ids(2, 5)},
        {"ids": ("batch", "n"), "decoded": ("batch", "m")},
        {"batch": 1, "n": 128, "m": 32},
        {"batch": (1, 16), "n": (2, 512), "m": (2, 128)},
    )


def vit() -> Model:
    config = hf.ViTConfig(
        hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=768
    )
    return _images("logits", _made(hf.ViTForImageClassification, config), 224)


def whisper() -> Model:
    config = hf.WhisperConfig(
        d_model=384,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
    )
    encoder = _made(hf.WhisperModel, config).encoder
    return Model(
        Field(encoder, "last_hidden_state"),
        {"x": torch.randn(2, 80, 3000)},
        {"x": ("batch", 80, 3000)},
        {"batch": 1},
        {"batch": (1, 4)},
    )


def resnet() -> Model:
    config = hf.ResNetConfig(
        layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2]
    )
    return _images("logits", _made(hf.ResNetForImageClassification, config), 224)


def mobilenet() -> Model:
    return _images(
        "logits", _made(hf.MobileNetV2ForImageClassification, hf.MobileNetV2Config()), 224
    )


def efficientnet() -> Model:
    config = hf.EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, image_size=224, hidden_dim=1280
    )
    return _images("logits", _made(hf.EfficientNetForImageClassification, config), 224)


def unet() -> Model:
    torch.manual_seed(0)
    return _images("", UNet().eval(), 96)


def lstm() -> Model:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 80)
    return Model(
        Recurrent().eval(), {"x": x}, {"x": ("batch", 8, 80)}, {"batch": 1}, {"batch": (1, 16)}
    )


def gcn() -> Model:
    torch.manual_seed(0)
    nodes, edges = 1797, 21653
    inputs = {
        "x": torch.randn(nodes, 64),
        "start": torch.randint(0, nodes, (edges,)),
        "end": torch.randint(0, nodes, (edges,)),
    }
    shapes: dict[str, tuple[int | str, ...]] = {k: tuple(v.shape) for k, v in inputs.items()}
    return Model(Graph().eval(), inputs, shapes, {}, {})


MODELS: dict[str, Callable[[], Model]] = {
    one.__name__: one
    for one in (
        bert,
        llama,
        gemma2,
        gpt2,
        mixtral,
        t5,
        vit,
        whisper,
        resnet,
        mobilenet,
        efficientnet,
        unet,
        lstm,
        gcn,
    )
}
