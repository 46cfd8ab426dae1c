"""Our decoder and transformers' LlamaForCausalLM as one model: the names that correspond, the weights of one as the other's."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.parallel.rules import flatten_tree

PARTS = {
    "input_layernorm": "mixer_norm/scale",
    "self_attn.q_proj": "mixer/query",
    "self_attn.k_proj": "mixer/key",
    "self_attn.v_proj": "mixer/value",
    "self_attn.o_proj": "mixer/out",
    "post_attention_layernorm": "channel_norm/scale",
    "mlp.gate_proj": "channel/gate",
    "mlp.up_proj": "channel/up",
    "mlp.down_proj": "channel/down",
}


def llama_config(arch: Architecture, seq_len: int, attention: str = "sdpa") -> Any:
    """The LlamaConfig of an architecture; `attention` is transformers' attn_implementation.

    Raises: UserError where the architecture has something that Llama has not.
    """
    from transformers import LlamaConfig

    other = [name for name in ("qk_norm", "output_gate") if getattr(arch, name)]
    other += ["pattern"] if set(arch.blocks) != {Block()} else []
    if other:
        raise UserError(
            f"config.model.{other[0]} asks for what Llama does not have; the peer needs plain attention+mlp blocks."
        )
    return LlamaConfig(
        vocab_size=arch.vocab_size,
        hidden_size=arch.width,
        intermediate_size=arch.ff_width,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        rms_norm_eps=arch.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope_theta},
        tie_word_embeddings=arch.tied,
        max_position_embeddings=seq_len,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )


def llama_names(arch: Architecture) -> Iterator[tuple[str, str, int | None]]:
    """(name in LlamaForCausalLM, our path, index into our stacked axis or None) of every parameter; a tied head is not one."""
    yield "model.embed_tokens.weight", "embedding", None
    layer = 0
    for g, (pattern, repeats) in enumerate(arch.stack):
        for r in range(repeats):
            for p in range(len(pattern)):
                for theirs, ours in PARTS.items():
                    yield f"model.layers.{layer}.{theirs}.weight", f"stack/{g}/{p}/{ours}", r
                layer += 1
    yield "model.norm.weight", "final_norm/scale", None
    if not arch.tied:
        yield "lm_head.weight", "head", None


def llama_weights(arch: Architecture, params: dict) -> dict[str, np.ndarray]:
    """Our parameters as a whole state dict of LlamaForCausalLM: matrices as [outputs, inputs], a tied head a second time under its name."""
    flat, out = {path: np.asarray(leaf) for path, leaf in flatten_tree(params).items()}, {}
    declared = flatten_tree(lm.declare(arch))
    for name, path, row in llama_names(arch):
        leaf = flat[path] if row is None else flat[path][row]
        inputs = len(declared[path].inputs)
        out[name] = (
            np.ascontiguousarray(leaf.reshape(math.prod(leaf.shape[:inputs]), -1).T)
            if inputs
            else leaf
        )
    if arch.tied:
        out["lm_head.weight"] = out["model.embed_tokens.weight"]
    return out
