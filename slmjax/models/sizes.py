"""Sizes of an architecture: parameters, FLOPs and bytes."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from slmjax.errors import UserError
from slmjax.models.architecture import Architecture

# Functions import jax and the model, so that commands which only import this file start at once.


class Parameters(NamedTuple):
    """Counts of one model."""

    total: int
    non_embedding: int  # without embedding and head
    # Those that a token is multiplied with: all matrices and the head, but no look-up.
    matmul: int


def parameters(arch: Architecture) -> Parameters:
    """Return the counts of an architecture, from the declarations of its weights.

    Shared weights count once in `total`, and in `matmul` each time that they are applied.
    """
    import jax

    from slmjax.models import lm

    declared = lm.declare(arch)
    stack = jax.tree.leaves(declared.pop("stack"))
    outside = jax.tree.leaves(declared)
    total, tables = 0, 0
    for weight in stack + outside:
        total += weight.size
        if weight.group in ("embedding", "head"):
            tables += weight.size
    # `uses` may be a fraction, so that the sum is rounded at the end.
    matmul = arch.share_blocks * sum(weight.size * weight.uses for weight in stack)
    matmul += sum(weight.size * weight.uses for weight in outside)
    return Parameters(total, total - tables, round(matmul))


def ff_width_for(arch: Architecture, budget: int) -> int:
    """Return the feed-forward width, a multiple of 8, that comes nearest to `budget` parameters.

    Raises: UserError if the rest of the model has more already.
    """
    without = parameters(dataclasses.replace(arch, ff_width=0)).total
    eight_wide = parameters(dataclasses.replace(arch, ff_width=8)).total
    # The total is linear in the width. Multiples of 8 fill the matrix units of GPUs.
    width = 8 * round((budget - without) / (eight_wide - without))
    if width < 8:
        mixers = ", ".join(sorted({block.mixer for block in arch.blocks}))
        raise UserError(
            f"A model with the mixers {mixers} has {without:,} parameters without feed-forward "
            f"layers, more than {budget:,}."
        )
    return width


def forward_flops_per_token(
    arch: Architecture,
    seq_len: int,
    *,
    causal: bool = True,
) -> float:
    """Return matmul FLOPs of one token's forward pass, head included.

    They are 2 for each parameter that the token is multiplied with, plus those of products without
    parameters, which each mixer's `flops` counts. (A recurrence computed in chunks takes more.)

    Args:
      seq_len: T; a token attends over T/2 keys on average, or as many as its window has. Packed
        documents are counted as if the row were one document.
      causal: False counts all T x T products, as the dense reference computes them.
    """
    from slmjax.models.mixers import mixer_of

    mixers = [mixer_of(arch, block) for block in arch.applications]
    without_parameters = sum(mixer.flops(seq_len, causal=causal) for mixer in mixers)
    return 2 * parameters(arch).matmul + without_parameters


def train_flops_per_token(
    arch: Architecture,
    seq_len: int,
    *,
    causal: bool = True,
) -> float:
    """Return matmul FLOPs of one token in training: the backward pass takes twice the forward's.

    Recomputation (remat) is not counted. For the dense tied decoder they are 6 N + 6 L D T with
    N = parameters(arch).matmul, L layers and D = heads x head size.
    Source: Chowdhery et al. 2022 (PaLM), appendix B, with the causal half that it leaves out.
    """
    return 3 * forward_flops_per_token(arch, seq_len, causal=causal)


def cache_bytes(arch: Architecture, tokens: float) -> float:
    """Return bytes of the decode state of one row that has `tokens` tokens.

    It holds keys and values, recurrent memories, and the last inputs of convolutions. The segments
    in it, 16 bytes a layer, are not counted.
    """
    import jax

    from slmjax.models.mixers import mixer_of

    total = 0
    for block in arch.applications:
        mixer = mixer_of(arch, block)
        size = math.ceil(tokens)
        state = jax.eval_shape(functools.partial(mixer.empty_cache, 1, size))
        # Arrays of whole numbers are segments.
        for leaf in jax.tree.leaves(state):
            if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
                total += leaf.size * leaf.dtype.itemsize
    return total


def cache_bytes_per_token(arch: Architecture) -> float:
    """Return bytes that each further token adds to the decode state, while no window is full.

    They are the token's keys and values, in the compute type.
    """
    return cache_bytes(arch, 1) - cache_bytes(arch, 0)


def decode_bytes(arch: Architecture, batch: int, tokens: float) -> float:
    """Return bytes that a decode step of `batch` rows has to read from memory.

    It reads every matrix, each time that it is applied, and each row's decode state. Activations,
    the look-up in the embedding (one row for each token) and what the step writes are not counted.

    Args:
      tokens: number of tokens in each row.
    """
    itemsize = np.dtype(_numpy_name(arch.compute)).itemsize
    weights = parameters(arch).matmul * itemsize
    return weights + batch * cache_bytes(arch, tokens)


def describe(arch: Architecture) -> str:
    """Return one line that a person can read: parameters, layers, widths, heads and vocabulary."""
    count = parameters(arch)
    total = _short(count.total)
    hidden = _short(count.non_embedding)
    matmul = _short(count.matmul)
    # Shared blocks and a tied head are named only where they are used.
    repeated = ""
    if arch.share_blocks > 1:
        repeated = f", each applied {arch.share_blocks} times"
    tied = ", tied" if arch.tied else ""
    return (
        f"{total} parameters ({hidden} without embeddings, {matmul} in matrix products): "
        f"{arch.layers} layers{_mixer_counts(arch)}{repeated} of width {arch.width}, "
        f"{arch.heads} query and {arch.kv_heads} key/value heads of {arch.head_dim}, "
        f"feed-forward {arch.ff_width}, vocabulary {arch.vocab_size}{tied}"
    )


def _mixer_counts(arch: Architecture) -> str:
    """Return for example " (3 gdn, 1 attention)", or "" where all layers are attention."""
    mixers = [block.mixer for block in arch.blocks]
    names = list(dict.fromkeys(mixers))
    if names == ["attention"]:
        return ""
    counts = ", ".join(f"{mixers.count(name)} {name}" for name in names)
    return f" ({counts})"


def _numpy_name(dtype: str) -> str:
    # numpy has no bfloat16; the size is the same.
    return {"bfloat16": "float16"}.get(dtype, dtype)


def _short(count: int) -> str:
    """Return a count as text, with four digits and k, M or B: 1_234_500 is "1.234M"."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g}{letter}"
    return str(count)
