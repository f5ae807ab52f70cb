"""What cannot decode with states is refused, never decoded wrongly."""

from __future__ import annotations

from typing import Any

import pytest
from families import CONTEXT, make

from tapml.errors import StageError

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def check(model: Any, context: int = CONTEXT) -> dict[str, tuple[int, ...]]:
    from tapml_stages.importer.huggingface import generate

    return generate.check(model, context, "here")


def test_the_states_are_a_key_and_a_value_for_each_layer() -> None:
    shape = (1, 2, CONTEXT, 16)
    names = [f"cache.{layer}.{what}" for layer in (0, 1) for what in ("key", "value")]
    assert check(make("llama")) == dict.fromkeys(names, shape)


def test_an_unknown_argument_of_attention_is_named() -> None:
    model = make("llama")
    layer = model.model.layers[0].self_attn
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs, position_bias=3)
    with pytest.raises(StageError, match="LlamaAttention attends with position_bias"):
        check(model)


def test_attention_to_both_sides_is_refused() -> None:
    model = make("llama", is_causal=False)
    with pytest.raises(StageError, match="tokens see others than the last ones before them"):
        check(model)


def test_chunked_attention_is_refused_unless_the_context_fits_a_chunk() -> None:
    from tapml_stages.importer.huggingface.attention import mask
    from tapml_stages.importer.huggingface.states import States

    torch = pytest.importorskip("torch")
    from transformers.masking_utils import chunked_causal_mask_function

    chunked = chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.int64))
    model = make("llama")
    zero = torch.tensor([0])
    with States({}, zero, zero, 8, checking=True).serving(model):
        marker = mask(mask_function=chunked)
        assert marker is not None
        assert marker.item() == 0
    with (
        States({}, zero, zero, 12, checking=True).serving(model),
        pytest.raises(StageError, match="chunks, or both sides"),
    ):
        mask(mask_function=chunked)


def test_a_window_that_the_attention_does_not_know_of_is_refused() -> None:
    model = make("mistral")
    for layer in model.model.layers:
        layer.self_attn.forward = _without_window(layer.self_attn)
    with pytest.raises(StageError, match="window of 0, but is given a window of 4"):
        check(model)


def _without_window(attention: Any) -> Any:
    forward = type(attention).forward
    config = type(attention.config)(**{**attention.config.to_dict(), "sliding_window": None})

    def run(*args: Any, **kwargs: Any) -> Any:
        config._attn_implementation = attention.config._attn_implementation
        before, attention.config = attention.config, config
        try:
            return forward(attention, *args, **kwargs)
        finally:
            attention.config = before

    return run


def test_attention_of_its_own_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "codegen", vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64, rotary_dim=8
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(StageError, match="layer 0 stores keys and never attends through us"):
        check(model)


def test_a_recurrence_of_its_own_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "state_size": 8, "num_heads": 8}
    config = AutoConfig.for_model("mamba2", vocab_size=256, head_dim=16, n_groups=1, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(StageError, match="layer 0 goes from token to token by code of its own"):
        check(model)


def test_a_model_that_keeps_tensors_itself_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model("recurrent_gemma", vocab_size=256, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(StageError, match=r"keeps .*rg_lru\.recurrent_states.* itself"):
        check(model)


def test_a_model_without_a_known_cache_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("rwkv", vocab_size=256, hidden_size=64, num_hidden_layers=2)
    with pytest.raises(StageError, match="RwkvForCausalLM takes no cache that we know"):
        check(AutoModelForCausalLM.from_config(config).eval())


def test_alibi_that_is_rounded_is_refused() -> None:
    with pytest.raises(StageError, match="ALiBi is rounded to bfloat16"):
        check(make("falcon", alibi=True))


def test_a_model_that_forgets_its_positions_is_refused() -> None:
    model = make("gpt2")
    forward = model.transformer.forward
    model.transformer.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(StageError, match=r"logits differ by .* of their range at token 5"):
        check(model)


def test_the_model_is_left_as_it_was() -> None:
    model = make("bloom")
    before = sorted(model.state_dict()), [dict(vars(one)) for one in model.modules()]
    check(model)
    after = sorted(model.state_dict()), [dict(vars(one)) for one in model.modules()]
    assert before[0] == after[0]
    assert [set(one) for one in before[1]] == [set(one) for one in after[1]]
    assert model.config._attn_implementation == "eager"
