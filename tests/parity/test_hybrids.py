"""Recurrent mixers inside models: logits and the gradient of every weight against transformers' Mamba-2, Granite hybrid, Qwen3-Next, Kimi.

Weights are moved, never derived again, but for Qwen3-Next's norms, which hold scale - 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.mixers import mixer_of
from slmjax.models.pattern import parse_block
from slmjax.ops.cross_entropy import token_log_probs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

B, T, V, D, F = 2, 90, 97, 32, 48  # two chunks of the recurrence, the second not full
SIZES = {
    "vocab_size": V,
    "hidden_size": D,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
HEADS = {"num_attention_heads": 4, "intermediate_size": F, "num_hidden_layers": 4}
THREE_AND_ONE = ["linear_attention"] * 3 + ["full_attention"]
ROPE = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 1.0}


def ours(pattern, **more):
    return Architecture(
        V,
        D,
        4,
        more.pop("kv_heads", 2),
        8,
        F,
        ((tuple(pattern), 1),),
        rope_theta=5000.0,
        tied=False,
        **more,
    )


def mamba2():
    config = transformers.Mamba2Config(
        **SIZES,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        state_size=16,
        n_groups=1,
        chunk_size=16,
    )
    return transformers.Mamba2ForCausalLM(config), ours(
        [parse_block("ssm+none key_dim=16")] * 2, norm_eps=1e-5
    )


def granite():
    config = transformers.GraniteMoeHybridConfig(
        **SIZES,
        **HEADS,
        num_key_value_heads=2,
        attention_multiplier=8**-0.5,
        layer_types=THREE_AND_ONE,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=16,
        mamba_chunk_size=16,
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=F,
        position_embedding_type="rope",
        rope_parameters=ROPE,
    )
    return transformers.GraniteMoeHybridForCausalLM(config), ours(
        [parse_block("ssm key_dim=16")] * 3 + [Block()]
    )


def qwen3_next():
    config = transformers.Qwen3NextConfig(
        **SIZES,
        **HEADS,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=16,
        mlp_only_layers=[0, 1, 2, 3],
        num_experts=0,
        layer_types=THREE_AND_ONE,
        rope_parameters=ROPE,
    )
    return transformers.Qwen3NextForCausalLM(config), ours(
        [parse_block("gdn value_dim=16")] * 3 + [Block()], qk_norm=True, output_gate=True
    )


def kimi():
    """Its full attention (MLA) is not ours: a zero output projection takes it out of the sum, on both sides."""
    config = transformers.KimiLinearConfig(
        **SIZES,
        **HEADS,
        num_key_value_heads=4,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=THREE_AND_ONE,
        mlp_layer_types=["dense"] * 4,
    )
    return transformers.KimiLinearForCausalLM(config), ours(
        [Block("kda")] * 3 + [Block()], kv_heads=4, norm_eps=1e-5
    )


@pytest.fixture(
    scope="module", params=[mamba2, granite, qwen3_next, kimi], ids=lambda make: make.__name__
)
def pair(request):
    """(their logits and gradients in our tree, our architecture, weights, batch, targets)."""
    torch.manual_seed(0)
    model, arch = request.param()
    with (
        torch.no_grad()
    ):  # what starts at zero or one would hide a mistake; decays of a few to a few hundred tokens
        for name, p in model.eval().named_parameters():
            draw = torch.randn_like(p)
            if "A_log" in name:
                p.copy_(0.5 + 0.5 * draw)
            elif "dt_bias" in name:
                p.copy_(-3 + draw)
            elif "norm" in name or name.endswith(".D"):
                p.copy_(
                    0.2 * draw
                    + (0 if request.param is qwen3_next and "linear_attn.norm" not in name else 1)
                )
            else:  # with 0.15, Qwen3-Next's own logits in float32 are 2e-5 from those in float64
                p.copy_((0.5 if "conv1d" in name else 0.08) * draw)
            if request.param is kimi and "layers.3.self_attn.o_proj" in name:
                p.zero_()
    tokens, targets = np.random.default_rng(0).integers(0, V, (2, B, T))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), use_cache=False).logits.numpy()
    logits = model.double()(
        torch.tensor(tokens), use_cache=False
    ).logits  # Qwen3-Next's own gradients are 2e-5 from these in float32
    torch.nn.functional.cross_entropy(
        logits.reshape(-1, V), torch.tensor(targets.reshape(-1))
    ).backward()
    tensors = dict(model.named_parameters())
    one = 1.0 if request.param is qwen3_next else 0.0
    gradients = _ours(
        arch,
        {
            name: p.grad.numpy() if p.grad is not None else np.zeros(p.shape)
            for name, p in tensors.items()
        },
        0.0,
    )
    weights = _ours(arch, {name: p.detach().float().numpy() for name, p in tensors.items()}, one)
    return (
        arch,
        jax.tree.map(jnp.asarray, weights),
        _batch(tokens),
        jnp.asarray(targets),
        theirs,
        gradients,
    )


def _batch(tokens):
    at = jnp.tile(jnp.arange(tokens.shape[1])[None], (len(tokens), 1))
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "segments": jnp.ones_like(at),
        "positions": at,
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
    """Of the mean cross-entropy; the embedding's is that of the inputs.

    Qwen3-Next's largest gradient is 0.96, and 4e-6 off as users compile it. XLA's older code
    generator, which tests compile with (tests/conftest.py), rounds more: 1.8e-5 off.
    """
    arch, weights, batch, targets, _, theirs = pair

    def loss(params):
        log_p, _ = token_log_probs(
            lm.forward(arch, params, {}, batch)[0], lm.head(arch, params), targets, chunks=2
        )
        return -log_p.mean()

    found = jax.jit(jax.grad(loss))(weights)
    for (path, expected), mine in zip(jax.tree.leaves_with_path(theirs), jax.tree.leaves(found)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if arch.blocks[0].mixer == "kda" and name.startswith("stack/0/3/mixer"):
            continue  # the attention that is not ours
        assert np.abs(expected).max() > 1e-5, f"{name} has no gradient to compare"
        np.testing.assert_allclose(mine, expected, atol=2.5e-5, rtol=1e-5, err_msg=name)


def _ours(arch: Architecture, tensors: dict, one: float) -> dict:
    """Our tree from {transformers' name: numpy array}; `one` is added to the norms that hold scale - 1."""
    left = {name.replace("backbone.", "model."): tensor for name, tensor in tensors.items()}
    left = {
        name.replace(".self_attn.conv1d", ".kda.conv1d"): tensor for name, tensor in left.items()
    }
    N, K, H = arch.heads, arch.kv_heads, arch.head_dim

    def take(name, shape=None):
        matrix = left.pop(name).T  # torch's Linear holds [out, in]
        return matrix if shape is None else matrix.reshape(shape)

    def norm(name, more=0.0):
        return {"scale": left.pop(name) + more}

    def convs(name, widths):
        """{conv_name: [taps, heads, channels]} of a convolution over streams that lie side by side; torch holds the oldest tap first."""
        weight = left.pop(f"{name}.weight")[:, 0, ::-1].T
        bias = left.pop(f"{name}.bias", None)
        found, start = {}, 0
        for stream, shape in widths.items():
            stop = start + shape[0] * shape[1]
            found[f"conv_{stream}"] = weight[:, start:stop].reshape(-1, *shape)
            found |= (
                {} if bias is None else {f"conv_{stream}_bias": bias[start:stop].reshape(shape)}
            )
            start = stop
        return found

    def ssm(at, H, K, V):
        parts = np.split(left.pop(f"{at}in_proj.weight").T, np.cumsum([H * V, H * V, K, K]), axis=1)
        shapes = {"gate": (H, V), "value": (H, V), "write": (1, K), "read": (1, K)}
        return {
            name: part.reshape(D, *shape) for (name, shape), part in zip(shapes.items(), parts)
        } | {
            **convs(f"{at}conv1d", {"value": (H, V), "write": (1, K), "read": (1, K)}),
            "step": parts[4],
            "step_bias": left.pop(f"{at}dt_bias"),
            "decay_log": left.pop(f"{at}A_log"),
            "skip": left.pop(f"{at}D"),
            "out_norm": norm(f"{at}norm.weight"),
            "out": take(f"{at}out_proj.weight", (H, V, D)),
        }

    def gdn(at, H, K, V):
        """Their rows lie head by head: query, key, value, gate of the first, then of the second; erase and decay alike."""
        wide = left.pop(f"{at}in_proj_qkvz.weight").reshape(H, 2 * K + 2 * V, D).transpose(2, 0, 1)
        narrow = left.pop(f"{at}in_proj_ba.weight").reshape(H, 2, D).transpose(2, 0, 1)
        streams = {"query": (H, K), "key": (H, K), "value": (H, V)}
        return dict(
            zip(("query", "key", "value", "gate"), np.split(wide, np.cumsum([K, K, V]), axis=2))
        ) | {
            **convs(f"{at}conv1d", streams),
            "erase": narrow[:, :, 0],
            "decay": narrow[:, :, 1],
            "decay_log": left.pop(f"{at}A_log"),
            "decay_bias": left.pop(f"{at}dt_bias"),
            "out_norm": norm(f"{at}norm.weight"),
            "out": take(f"{at}out_proj.weight", (H, V, D)),
        }

    def kda(at, H, K, V):
        conv = convs(
            at.replace("self_attn.", "kda.") + "conv1d",
            {"query": (H, K), "key": (H, K), "value": (H, V)},
        )
        return {
            name: take(f"{at}{name[0]}_proj.weight", (D, H, -1))
            for name in ("query", "key", "value")
        } | {
            **conv,
            "erase": take(f"{at}b_proj.weight"),
            "decay_down": take(f"{at}forget_gate.f_a_proj.weight"),
            "decay_up": take(f"{at}forget_gate.f_b_proj.weight", (V, H, K)),
            "decay_log": left.pop(f"{at}forget_gate.A_log").reshape(H),
            "decay_bias": left.pop(f"{at}forget_gate.dt_bias").reshape(H, K),
            "gate_down": take(f"{at}g_a_proj.weight"),
            "gate_up": take(f"{at}g_b_proj.weight", (V, H, V)),
            "out_norm": norm(f"{at}o_norm.weight"),
            "out": take(f"{at}o_proj.weight", (H, V, D)),
        }

    def attention(at):
        if f"{at}kv_b_proj.weight" in left:
            for name in [name for name in left if name.startswith(at)]:
                left.pop(name)
            return {
                "query": np.ones((D, N, H)),
                "key": np.ones((D, K, H)),
                "value": np.ones((D, K, H)),
                "out": np.zeros((N, H, D)),
            }
        query = take(f"{at}q_proj.weight", (D, N, -1))
        found = {
            "query": query[..., :H],
            "key": take(f"{at}k_proj.weight", (D, K, H)),
            "value": take(f"{at}v_proj.weight", (D, K, H)),
        }
        found |= {"gate": query[..., H:]} if arch.output_gate else {}
        found |= (
            {f"{n}_norm": norm(f"{at}{n[0]}_norm.weight", one) for n in ("query", "key")}
            if arch.qk_norm
            else {}
        )
        return found | {"out": take(f"{at}o_proj.weight", (N, H, D))}

    def block(i, kind):
        at = f"model.layers.{i}."
        places = {
            "ssm": "mixer." if kind.channel == "none" else "mamba.",
            "gdn": "linear_attn.",
            "kda": "self_attn.",
        }
        mixers = {"ssm": ssm, "gdn": gdn, "kda": kda}
        if kind.mixer == "attention":
            mixer = attention(f"{at}self_attn.")
        else:
            mixer = mixers[kind.mixer](at + places[kind.mixer], *mixer_of(arch, kind).sizes)
        if kind.channel == "none":
            return {"mixer_norm": norm(f"{at}norm.weight"), "mixer": mixer}
        if f"{at}shared_mlp.input_linear.weight" in left:
            gate, up = np.split(take(f"{at}shared_mlp.input_linear.weight"), 2, axis=1)
            channel = {"gate": gate, "up": up, "down": take(f"{at}shared_mlp.output_linear.weight")}
        else:
            channel = {name: take(f"{at}mlp.{name}_proj.weight") for name in ("gate", "up", "down")}
        return {
            "mixer_norm": norm(f"{at}input_layernorm.weight", one),
            "mixer": mixer,
            "channel_norm": norm(f"{at}post_attention_layernorm.weight", one),
            "channel": channel,
        }

    names = {
        "embedding": ("model.embed_tokens.weight", "model.embeddings.weight"),
        "norm": ("model.norm.weight", "model.norm_f.weight"),
    }
    embedding, final = (
        next(name for name in names[what] if name in left) for what in ("embedding", "norm")
    )
    params = {
        "embedding": left.pop(embedding),
        "head": take("lm_head.weight"),
        "final_norm": norm(final, one),
        "stack": {
            "0": {
                str(i): jax.tree.map(lambda leaf: leaf[None], block(i, kind))
                for i, kind in enumerate(arch.blocks)
            }
        },
    }
    assert not left, f"not mapped: {sorted(left)}"
    return jax.tree.map(lambda leaf: np.ascontiguousarray(leaf, np.float32), params)
