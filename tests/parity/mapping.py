"""transformers' parameter names and layouts <-> ours: weights are moved, never derived again."""

import numpy as np

from slmjax.models.architecture import Architecture, Block


def architecture(config) -> Architecture:
    """Ours for a Llama, Qwen3 or SmolLM3 config of transformers."""
    ropes = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers  # SmolLM3's list has 1 where rope *is* used
    return Architecture(
        vocab_size=config.vocab_size, width=config.hidden_size, heads=config.num_attention_heads, kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads, ff_width=config.intermediate_size,
        stack=((tuple(Block(rope=bool(rope)) for rope in ropes), 1),), rope_theta=config.rope_parameters["rope_theta"],
        qk_norm=config.model_type == "qwen3", tied=config.tie_word_embeddings, norm_eps=config.rms_norm_eps,
    )  # fmt: skip


def ours(arch: Architecture, tensors: dict) -> dict:
    """Our tree from {transformers' name: numpy array}, for weights and for gradients alike.

    Raises: ValueError where a tensor is left over.
    """
    left = dict(tensors)
    D, N, K, H = arch.width, arch.heads, arch.kv_heads, arch.head_dim

    def take(name, shape=None):
        matrix = left.pop(name).T  # torch's Linear holds [out, in]
        return matrix if shape is None else matrix.reshape(shape)

    def block(i):
        at = f"model.layers.{i}."
        mixer = {
            "query": take(at + "self_attn.q_proj.weight", (D, N, H)), "key": take(at + "self_attn.k_proj.weight", (D, K, H)),
            "value": take(at + "self_attn.v_proj.weight", (D, K, H)), "out": take(at + "self_attn.o_proj.weight", (N, H, D)),
        }  # fmt: skip
        if arch.qk_norm:
            mixer["query_norm"] = {"scale": take(at + "self_attn.q_norm.weight")}
            mixer["key_norm"] = {"scale": take(at + "self_attn.k_norm.weight")}
        return {
            "mixer_norm": {"scale": take(at + "input_layernorm.weight")},
            "mixer": mixer,
            "channel_norm": {"scale": take(at + "post_attention_layernorm.weight")},
            "channel": {name: take(at + f"mlp.{name}_proj.weight") for name in ("gate", "up", "down")},
        }

    params = {
        "embedding": left.pop("model.embed_tokens.weight"),
        "stack": {"0": {str(i): _stacked(block(i)) for i in range(arch.layers)}},
        "final_norm": {"scale": take("model.norm.weight")},
    }
    if not arch.tied:
        params["head"] = take("lm_head.weight")
    if left:
        raise ValueError(f"transformers' model has parameters that were not mapped: {sorted(left)}")
    return _contiguous(params)


def _contiguous(tree):
    return {k: _contiguous(v) for k, v in tree.items()} if isinstance(tree, dict) else np.ascontiguousarray(tree, np.float32)


def _stacked(tree):
    return {k: _stacked(v) for k, v in tree.items()} if isinstance(tree, dict) else tree[None]
