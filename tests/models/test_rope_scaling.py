"""config.model.rope_scaling: which layers it changes, what it refuses, and transformers' models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.pattern import from_config
from slmjax.models.rope_scaling import RopeScaling, parse_rope_scaling, scaled_frequencies

FIELDS = ["width=32", "layers=2", "heads=4", "kv_heads=2", "head_dim=8", "ff_width=48"]
YARN = "yarn factor=4 trained=16"


def arch_of(pattern, scaling, **fields):
    config = configs.override(configs.base(), [f"model.{field}" for field in FIELDS])
    config.model.pattern = pattern
    config.model.rope_scaling = scaling
    config.model.layers = 2
    return dataclasses.replace(
        from_config(configs.freeze(config).model, 128), attention="reference", **fields
    )


def hidden(arch, params, tokens):
    length = tokens.shape[1]
    batch = {
        "tokens": jnp.asarray(tokens),
        "segments": jnp.ones_like(tokens),
        "positions": jnp.broadcast_to(jnp.arange(length), tokens.shape),
    }
    return np.asarray(lm.forward(arch, params, {}, batch)[0])


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 128, (2, 48))


def initial(arch):
    return lm.init(arch, jax.random.key(0))


def test_a_text_is_parsed_or_refused():
    assert parse_rope_scaling("") == RopeScaling()
    assert parse_rope_scaling("theta=4e4") == RopeScaling(theta=4e4)
    assert parse_rope_scaling(YARN) == RopeScaling(factor=4.0, trained=16)
    for text in (
        "yarn",
        "yarn factor=4",
        "yarn factor=0.5 trained=16",
        "yarn factor=4 trained=1.5",
        "yarn factor=x trained=16",
        "theta=1",
        "theta=1e4 theta=2e4",
        "linear factor=2",
        "yarn factor=4 trained=16 theta=1e4",
    ):
        with pytest.raises(UserError, match=r"config\.model\.rope_scaling is '"):
            parse_rope_scaling(text)
    with pytest.raises(UserError, match=r"config\.model\.rope_scaling is 'ntk'"):
        arch_of(("attention",), "ntk")


@pytest.mark.parametrize("scaling", [YARN, "theta=40000"])
def test_windows_and_layers_without_positions_are_as_they_were(tokens, scaling):
    for pattern in (("attention window=8",), ("attention rope=False",)):
        plain, scaled = arch_of(pattern, ""), arch_of(pattern, scaling)
        params = initial(plain)
        np.testing.assert_array_equal(hidden(plain, params, tokens), hidden(scaled, params, tokens))
    plain, scaled = arch_of(("attention",), ""), arch_of(("attention",), scaling)
    params = initial(plain)
    assert np.abs(hidden(plain, params, tokens) - hidden(scaled, params, tokens)).max() > 1e-3
    same = arch_of(("attention",), "yarn factor=1 trained=16")
    np.testing.assert_array_equal(hidden(plain, params, tokens), hidden(same, params, tokens))


def test_another_base_is_that_of_a_model_with_this_base(tokens):
    scaled = arch_of(("attention",), "theta=40000")
    other = dataclasses.replace(arch_of(("attention",), ""), rope_theta=40000.0)
    params = initial(other)
    np.testing.assert_array_equal(hidden(scaled, params, tokens), hidden(other, params, tokens))
    frequencies, scale = scaled_frequencies(8, 10000.0, "theta=40000")
    assert scale == 1 and float(frequencies[1]) == pytest.approx(40000 ** (-1 / 4))


@pytest.mark.parity
@pytest.mark.parametrize("scaling", [YARN, "theta=40000"])
def test_a_model_agrees_with_transformers_beyond_its_trained_length(tokens, scaling):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from slmjax.bench.peers.llama_weights import llama_or_qwen, llama_weights

    arch = arch_of(("attention",), scaling)
    params = initial(arch)
    model = llama_or_qwen(arch, 64).eval()
    weights = {name: torch.from_numpy(array) for name, array in llama_weights(arch, params).items()}
    model.load_state_dict(weights)
    with torch.inference_mode():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    ours = np.asarray(lm.logits(arch, params, jnp.asarray(hidden(arch, params, tokens))))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
