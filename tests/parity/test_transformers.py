"""Logits and the gradient of every weight against transformers' own models, at tiny random sizes in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models import lm
from slmjax.ops.cross_entropy import token_log_probs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

B, T, V = 2, 40, 97
SIZES = {
    "vocab_size": V, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "max_position_embeddings": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "attn_implementation": "eager",
}  # fmt: skip
MODELS = {
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=False)),
    "Llama, tied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True)),
    "Qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=False)),
    "SmolLM3": lambda: transformers.SmolLM3ForCausalLM(
        transformers.SmolLM3Config(**SIZES, no_rope_layer_interval=2, tie_word_embeddings=True, pad_token_id=0, use_sliding_window=False)
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """(their logits and gradients in our tree, our function, our weights, tokens, targets)."""
    from tests.parity.mapping import architecture, ours

    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    with torch.no_grad():  # norms start at 1 and initial weights are small: neither would show a missing scale
        for name, parameter in model.named_parameters():
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter) if "norm" in name else 0.15 * torch.randn_like(parameter))
    arch = architecture(model.config)
    tokens, targets = np.random.default_rng(0).integers(0, V, (2, B, T))
    logits = model(torch.tensor(tokens)).logits
    torch.nn.functional.cross_entropy(logits.reshape(-1, V), torch.tensor(targets.reshape(-1))).backward()
    tensors = {name: parameter for name, parameter in model.named_parameters()}
    theirs = ours(arch, {name: parameter.grad.numpy() for name, parameter in tensors.items()})
    weights = ours(arch, {name: parameter.detach().numpy() for name, parameter in tensors.items()})
    return arch, jax.tree.map(jnp.asarray, weights), _batch(tokens), jnp.asarray(targets), logits.detach().numpy(), theirs


def _batch(tokens):
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "segments": jnp.ones(tokens.shape, jnp.int32),
        "positions": jnp.tile(jnp.arange(tokens.shape[1])[None], (len(tokens), 1)),
    }


def test_weights_fill_exactly_our_tree(pair):
    arch, weights, *_ = pair
    expected = jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, expected) == jax.tree.map(lambda leaf: leaf.shape, weights)


def test_logits_are_theirs(pair):
    arch, weights, batch, _, theirs, _ = pair
    found = jax.jit(lambda p: lm.logits(arch, p, lm.forward(arch, p, {}, batch)[0]))(weights)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(found, theirs, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_every_weight_is_theirs(pair):
    """Of the mean cross-entropy, through our hand-written loss."""
    arch, weights, batch, targets, _, theirs = pair

    def loss(params):
        log_p, _ = token_log_probs(lm.forward(arch, params, {}, batch)[0], lm.head(arch, params), targets, chunks=2)
        return -log_p.mean()

    found = jax.jit(jax.grad(loss))(weights)
    for (path, expected), ours in zip(jax.tree.leaves_with_path(theirs), jax.tree.leaves(found)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.abs(expected).max() > 1e-4, f"{name} has no gradient to compare"
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5, err_msg=name)
