"""Map our decoder to transformers' Llama or Qwen3: config, names of weights, and weights.

Qwen3 is Llama with a norm on the queries and keys of each head (config.model.qk_norm).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.rope_scaling import parse_rope_scaling
from slmjax.parallel.rules import flatten_tree

# {Llama's name of a weight inside a layer: our path inside a layer}
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
# What Qwen3 has besides.
HEAD_NORMS = {
    "self_attn.q_norm": "mixer/query_norm/scale",
    "self_attn.k_norm": "mixer/key_norm/scale",
}


def llama_config(arch: Architecture, seq_len: int, attention: str = "sdpa") -> Any:
    """Return the LlamaConfig of an architecture.

    Args:
      attention: transformers' attn_implementation.
    Raises: UserError where the architecture has something that Llama lacks.
    """
    from transformers import LlamaConfig

    _check_layout(arch, ("qk_norm", "output_gate"), "Llama")
    return LlamaConfig(**_settings(arch, seq_len, attention))


def llama_or_qwen(arch: Architecture, seq_len: int, attention: str = "sdpa") -> Any:
    """Return a model of transformers with the architecture's layout and weights of its own.

    It is a Qwen3ForCausalLM where queries and keys have norms, else a LlamaForCausalLM.

    Args:
      attention: transformers' attn_implementation.
    Raises: UserError where the architecture has something that both lack.
    """
    from transformers import LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    if not arch.qk_norm:
        return LlamaForCausalLM(llama_config(arch, seq_len, attention))
    _check_layout(arch, ("output_gate",), "Qwen3")
    return Qwen3ForCausalLM(Qwen3Config(**_settings(arch, seq_len, attention)))


def _check_layout(arch: Architecture, fields: Sequence[str], model: str) -> None:
    """Check that transformers' model has all that an architecture asks for.

    Args:
      fields: of config.model, that the model lacks.
    Raises: UserError if not.
    """
    lacking = [name for name in fields if getattr(arch, name)]
    # The default block is plain attention and an MLP.
    if set(arch.blocks) != {Block()}:
        lacking.append("pattern")
    if arch.share_blocks > 1:
        lacking.append("share_blocks")
    if lacking:
        raise UserError(
            f"config.model.{lacking[0]} asks for what {model} does not have; "
            "the peer needs plain attention+mlp blocks."
        )


def _settings(arch: Architecture, seq_len: int, attention: str) -> dict[str, Any]:
    """Return the arguments that LlamaConfig and Qwen3Config share."""
    return {
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.width,
        "intermediate_size": arch.ff_width,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "rms_norm_eps": arch.norm_eps,
        # Both libraries rotate dimension i with i + head_dim/2: weights need no permutation.
        "rope_parameters": _rope_parameters(arch),
        "tie_word_embeddings": arch.tied,
        "max_position_embeddings": seq_len,
        "use_cache": False,
        # Ids of special tokens matter to `generate` only, and ours are not its defaults.
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": attention,
    }


def _rope_parameters(arch: Architecture) -> dict[str, Any]:
    """Return transformers' words for the positions; these blocks have no windows."""
    scaling = parse_rope_scaling(arch.rope_scaling)
    theta = scaling.theta or arch.rope_theta
    if scaling.factor == 1:
        return {"rope_type": "default", "rope_theta": theta}
    return {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.trained,
    }


def llama_names(arch: Architecture) -> Iterator[tuple[str, str, int | None]]:
    """Yield (name in transformers, our path, index on our "layers" axis) of every parameter.

    The index is None for a weight that is not stacked. A tied head is not a parameter of its own.
    """
    yield "model.embed_tokens.weight", "embedding", None
    parts = PARTS | HEAD_NORMS if arch.qk_norm else PARTS
    layer = 0
    # Our weights at one position of a group's pattern are stacked over its repeats.
    for group, (pattern, repeats) in enumerate(arch.stack):
        for repeat in range(repeats):
            for position in range(len(pattern)):
                for theirs, ours in parts.items():
                    path = f"stack/{group}/{position}/{ours}"
                    yield f"model.layers.{layer}.{theirs}.weight", path, repeat
                layer += 1
    yield "model.norm.weight", "final_norm/scale", None
    if not arch.tied:
        yield "lm_head.weight", "head", None


def llama_weights(arch: Architecture, params: dict) -> dict[str, np.ndarray]:
    """Return our parameters as a complete state dict of the model of `llama_or_qwen`.

    Its matrices are [outputs, inputs]. A tied head appears under its own name too.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in flatten_tree(params).items()}
    declared = flatten_tree(lm.declare(arch))
    weights = {}
    for name, path, index in llama_names(arch):
        weight = arrays[path] if index is None else arrays[path][index]
        input_axes = len(declared[path].inputs)
        if input_axes:
            # Our input axes come first; [D, N, H] becomes [N*H, D].
            matrix = weight.reshape(math.prod(weight.shape[:input_axes]), -1)
            weight = np.ascontiguousarray(matrix.T)
        weights[name] = weight
    if arch.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights
