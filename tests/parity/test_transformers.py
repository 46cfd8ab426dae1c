"""Logits and the gradient of every weight against transformers' own models, at tiny random sizes in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.pattern import parse_block
from slmjax.ops.cross_entropy import token_log_probs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

B, T, V = 2, 40, 97
SIZES = {
    "vocab_size": V,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "attn_implementation": "eager",
}
MODELS = {
    "Llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=False)
    ),
    "Llama, tied": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True)
    ),
    "Qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=False)
    ),
    "SmolLM3": lambda: transformers.SmolLM3ForCausalLM(
        transformers.SmolLM3Config(
            **SIZES,
            no_rope_layer_interval=2,
            tie_word_embeddings=True,
            pad_token_id=None,
            use_sliding_window=False,
        )
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """(their logits and gradients in our tree, our function, our weights, tokens, targets)."""
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    with (
        torch.no_grad()
    ):  # norms start at 1 and initial weights are small: neither would show a missing scale
        for name, parameter in model.named_parameters():
            parameter.copy_(
                1 + 0.2 * torch.randn_like(parameter)
                if "norm" in name
                else 0.15 * torch.randn_like(parameter)
            )
    arch = architecture(model.config)
    tokens, targets = np.random.default_rng(0).integers(0, V, (2, B, T))
    logits = model(torch.tensor(tokens)).logits
    torch.nn.functional.cross_entropy(
        logits.reshape(-1, V), torch.tensor(targets.reshape(-1))
    ).backward()
    tensors = dict(model.named_parameters())
    theirs = our_tree(arch, {name: parameter.grad.numpy() for name, parameter in tensors.items()})
    weights = our_tree(
        arch, {name: parameter.detach().numpy() for name, parameter in tensors.items()}
    )
    return (
        arch,
        jax.tree.map(jnp.asarray, weights),
        _batch(tokens),
        jnp.asarray(targets),
        logits.detach().numpy(),
        theirs,
    )


def _batch(tokens):
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "segments": jnp.ones(tokens.shape, jnp.int32),
        "positions": jnp.tile(jnp.arange(tokens.shape[1])[None], (len(tokens), 1)),
    }


def test_weights_fill_exactly_our_tree(pair):
    arch, weights, *_ = pair
    expected = jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, expected) == jax.tree.map(
        lambda leaf: leaf.shape, weights
    )


def test_logits_are_theirs(pair):
    arch, weights, batch, _, theirs, _ = pair
    found = jax.jit(lambda p: lm.logits(arch, p, lm.forward(arch, p, {}, batch)[0]))(weights)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(found, theirs, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_every_weight_is_theirs(pair):
    """Of the mean cross-entropy, through our hand-written loss."""
    arch, weights, batch, targets, _, theirs = pair

    def loss(params):
        log_p, _ = token_log_probs(
            lm.forward(arch, params, {}, batch)[0], lm.head(arch, params), targets, chunks=2
        )
        return -log_p.mean()

    found = jax.jit(jax.grad(loss))(weights)
    for (path, expected), ours in zip(jax.tree.leaves_with_path(theirs), jax.tree.leaves(found)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.abs(expected).max() > 1e-4, f"{name} has no gradient to compare"
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5, err_msg=name)


def architecture(config) -> Architecture:
    """Ours for a Llama, Qwen3 or SmolLM3 config of transformers."""
    ropes = (
        getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    )  # SmolLM3's list has 1 where rope *is* used
    return Architecture(
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        ff_width=config.intermediate_size,
        stack=((tuple(parse_block(f"attention rope={bool(rope)}") for rope in ropes), 1),),
        rope_theta=config.rope_parameters["rope_theta"],
        qk_norm=config.model_type == "qwen3",
        tied=config.tie_word_embeddings,
        norm_eps=config.rms_norm_eps,
    )


def our_tree(arch: Architecture, tensors: dict) -> dict:
    """Our tree from {transformers' name: numpy array}, for weights and for gradients alike; weights are moved, never derived again."""
    left = dict(tensors)
    D, N, K, H = arch.width, arch.heads, arch.kv_heads, arch.head_dim

    def take(name, shape=None):
        matrix = left.pop(name).T  # torch's Linear holds [out, in]
        return matrix if shape is None else matrix.reshape(shape)

    def block(i):
        at = f"model.layers.{i}."
        mixer = {
            "query": take(at + "self_attn.q_proj.weight", (D, N, H)),
            "key": take(at + "self_attn.k_proj.weight", (D, K, H)),
            "value": take(at + "self_attn.v_proj.weight", (D, K, H)),
            "out": take(at + "self_attn.o_proj.weight", (N, H, D)),
        }
        if arch.qk_norm:
            mixer["query_norm"] = {"scale": take(at + "self_attn.q_norm.weight")}
            mixer["key_norm"] = {"scale": take(at + "self_attn.k_norm.weight")}
        return {
            "mixer_norm": {"scale": take(at + "input_layernorm.weight")},
            "mixer": mixer,
            "channel_norm": {"scale": take(at + "post_attention_layernorm.weight")},
            "channel": {
                name: take(at + f"mlp.{name}_proj.weight") for name in ("gate", "up", "down")
            },
        }

    params = {
        "embedding": left.pop("model.embed_tokens.weight"),
        "stack": {"0": {str(i): _stacked(block(i)) for i in range(arch.layers)}},
        "final_norm": {"scale": take("model.norm.weight")},
    }
    if not arch.tied:
        params["head"] = take("lm_head.weight")
    assert not left, f"not mapped: {sorted(left)}"
    return _contiguous(params)


def _contiguous(tree):
    return (
        {k: _contiguous(v) for k, v in tree.items()}
        if isinstance(tree, dict)
        else np.ascontiguousarray(tree, np.float32)
    )


def _stacked(tree):
    return {k: _stacked(v) for k, v in tree.items()} if isinstance(tree, dict) else tree[None]
