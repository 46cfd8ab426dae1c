"""Sizes of an architecture: parameters, FLOPs, bytes, the shape for a parameter budget, and the peak rates of devices."""

import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from slmjax.config import freeze
from slmjax.errors import UserError
from slmjax.models.architecture import Architecture

LARGEST = 10**12  # parameters that --params takes
TOLERANCE = 0.03  # how far a shape's total may be from the budget


class Parameters(NamedTuple):
    """Counts of one model."""

    total: int
    non_embedding: int  # without embedding and head
    matmul: int  # those that every token is multiplied with: all matrices, the head once, no embedding look-up


def parameters(arch: Architecture) -> Parameters:
    """The counts, from the declarations. Shared weights count once in `total`, and in `matmul` each time."""
    import jax

    from slmjax.models import lm

    declared = lm.declare(arch)
    stack = jax.tree.leaves(declared.pop("stack"))
    outside = jax.tree.leaves(declared)
    total = sum(weight.size for weight in stack + outside)
    tables = sum(weight.size for weight in outside if weight.group in ("embedding", "head"))
    matmul = arch.share_blocks * sum(weight.size * weight.uses for weight in stack)
    matmul += sum(weight.size * weight.uses for weight in outside)
    return Parameters(total, total - tables, round(matmul))


def ff_width_for(arch: Architecture, budget: int) -> int:
    """The feed-forward width, a multiple of 8, with which the architecture comes nearest to `budget` parameters.

    Raises: UserError where what is not feed-forward has more already.
    """
    none, eight = (parameters(dataclasses.replace(arch, ff_width=width)).total for width in (0, 8))
    width = 8 * round((budget - none) / (eight - none))
    if width < 8:
        mixers = ", ".join(sorted({block.mixer for block in arch.blocks}))
        raise UserError(
            f"A model with the mixers {mixers} has {none:,} parameters without feed-forward layers, more than {budget:,}."
        )
    return width


def forward_flops_per_token(arch: Architecture, seq_len: int, *, causal: bool = True) -> float:
    """Matmul FLOPs of one token's forward pass, head included: 2 for each parameter of a product, and what its mixers do beside.

    The latter is what each mixer's `flops` says. (Computed in chunks, a recurrence takes more.)

    Args:
      seq_len: T; a token attends over T/2 keys on average, or as many as its window has. Packed documents are counted as if the row were
        one document.
      causal: False counts all T x T products, which is what the dense reference computes.
    """
    from slmjax.models.mixers import mixer_of

    mixing = sum(mixer_of(arch, block).flops(seq_len, causal=causal) for block in arch.applications)
    return 2 * parameters(arch).matmul + mixing


def train_flops_per_token(arch: Architecture, seq_len: int, *, causal: bool = True) -> float:
    """Matmul FLOPs of one token in training, backward twice the forward; recomputation (remat) is not counted.

    For the dense tied decoder 6 N + 6 L D T with N = parameters(arch).matmul and D = heads x head size.
    Source: Chowdhery et al. 2022 (PaLM), appendix B, with the causal half that it leaves out.
    """
    return 3 * forward_flops_per_token(arch, seq_len, causal=causal)


def cache_bytes(arch: Architecture, tokens: float) -> float:
    """Bytes of the decode state of one row that has `tokens` tokens: keys and values, memories, and convolutions' last inputs.

    Numbers of segments are not counted: 16 bytes a layer.
    """
    import jax

    from slmjax.models.mixers import mixer_of

    total = 0
    for block in arch.applications:
        mixer = mixer_of(arch, block)
        kept = jax.eval_shape(lambda mixer=mixer: mixer.empty_cache(1, math.ceil(tokens)))
        floats = [
            leaf
            for leaf in jax.tree.leaves(kept)
            if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        ]
        total += sum(leaf.size * leaf.dtype.itemsize for leaf in floats)
    return total


def cache_bytes_per_token(arch: Architecture) -> float:
    """Bytes that each further token adds to the decode state, where no window is full: its keys and values, in the compute type."""
    return cache_bytes(arch, 1) - cache_bytes(arch, 0)


def decode_bytes(arch: Architecture, batch: int, tokens: float) -> float:
    """Bytes that a decode step has to read from memory: every matrix once (each time it is applied), and each row's decode state.

    A look-up in the embedding reads one row a token, which is left out, as are activations and what the step writes.
    """
    weights = parameters(arch).matmul * np.dtype(_numpy_name(arch.compute)).itemsize
    return weights + batch * cache_bytes(arch, tokens)


def describe(arch: Architecture) -> str:
    """One line for people: sizes and shape."""
    count = parameters(arch)
    kinds = list(dict.fromkeys(block.mixer for block in arch.blocks))
    mixers = (
        ""
        if kinds == ["attention"]
        else " (" + ", ".join(f"{_times(arch, kind)} {kind}" for kind in kinds) + ")"
    )
    repeated = f", each applied {arch.share_blocks} times" if arch.share_blocks > 1 else ""
    return (
        f"{_short(count.total)} parameters ({_short(count.non_embedding)} without embeddings, {_short(count.matmul)} in matrix products): "
        f"{arch.layers} layers{mixers}{repeated} of width {arch.width}, {arch.heads} query and {arch.kv_heads} key/value heads of "
        f"{arch.head_dim}, feed-forward {arch.ff_width}, vocabulary {arch.vocab_size}{', tied' if arch.tied else ''}"
    )


def _times(arch: Architecture, kind: str) -> int:
    return sum(block.mixer == kind for block in arch.blocks)


def parse_params(text: str | int | float) -> int:
    """50_000_000 from "50m", "0.05b", "50e6" or the number itself.

    Raises: UserError where it is no positive number with k, m or b after it.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:e[0-9]+)?)\s*([kmb]?)\s*", str(text).lower())
    value = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2]] if match else 0
    if not 1 <= value <= LARGEST:
        raise UserError(
            f"--params={text}: expected a number of parameters such as 50m or 1b, {LARGEST:.0e} at most."
        )
    return round(value)


def reshape(config: ConfigDict, params: int) -> dict[str, int]:
    """Give config.model the shape for `params` parameters in all; returns the fields that it sets.

    The shape is that of `shape_for`, with as many layers as its pattern divides. Where other
    mixers or an untied head change the total, the feed-forward width makes up for it.
    Raises: UserError where no shape comes near.
    """
    vocab_size = config.model.vocab_size or config.data.vocab_size
    shape = shape_for(params, vocab_size)
    from slmjax.models.pattern import from_config, parts

    start, repeated, end = map(len, parts(config.model.pattern))
    repeats = max(1, round((shape["layers"] - start - end) / repeated))
    shape["layers"] = start + repeats * repeated + end
    config.model.update(shape)

    arch = from_config(freeze(config).model, vocab_size)
    if abs(parameters(arch).total / params - 1) > TOLERANCE:
        shape["ff_width"] = config.model.ff_width = ff_width_for(arch, params)
        total = parameters(dataclasses.replace(arch, ff_width=shape["ff_width"])).total
        if abs(total / params - 1) > TOLERANCE:
            raise UserError(
                f"--params={params}: with config.model.pattern the nearest model has {total:,} parameters; choose the shape by hand."
            )
    return shape


def shape_for(params: int, vocab_size: int) -> dict[str, int]:
    """Model fields (width, layers, heads, kv_heads, head_dim, ff_width) of a tied decoder of about `params` parameters in all.

    Deep and thin: about 30 layers at 125M, growing with the fourth root of the budget, which follows the models of MobileLLM (Liu et al.
    2024: 30 layers at 125M, 32 at 350M, 40 at 600M, 54 at 1B). Heads of 128 from 100M, 64 below and 32 below 5M; heads x head size is the
    width; feed-forward 8/3 of the width (Shazeer 2020); three or four query heads for a key/value head where they divide.
    Raises: UserError where no shape is within 3 %: the vocabulary is too large for the budget.
    """
    head_dim = 128 if params >= 100e6 else 64 if params >= 5e6 else 32
    multiple = 128 if params >= 100e6 else 64
    depth = 30 * (params / 125e6) ** 0.25
    shapes = []
    for heads in range(1, 33):
        kv_heads = _kv_heads(heads)
        if heads / kv_heads > 5:
            continue  # 7 or 11 heads leave only one key/value head or as many as there are queries
        middle = round(8 / 3 * heads * head_dim / multiple)
        for ff_width in (multiple * f for f in (middle - 1, middle, middle + 1) if f > 0):
            arch = Architecture(
                vocab_size, heads * head_dim, heads, kv_heads, head_dim, ff_width, ()
            )
            layers = max(
                1,
                round(
                    (params - decoder_parameters(arch, 0))
                    / (decoder_parameters(arch, 1) - decoder_parameters(arch, 0))
                ),
            )
            off = abs(decoder_parameters(arch, layers) / params - 1)
            # Depth decides; an unusual feed-forward width or a total that is off must be worth a fifth of the depth.
            cost = (
                abs(math.log(layers / depth))
                + 0.2 * (ff_width != middle * multiple)
                + 0.2 * (off > TOLERANCE / 2)
            )
            if off <= TOLERANCE:
                fields = {
                    "width": arch.width,
                    "layers": layers,
                    "heads": heads,
                    "kv_heads": kv_heads,
                    "head_dim": head_dim,
                }
                shapes.append((cost, off, fields | {"ff_width": ff_width}))
    if not shapes:
        raise UserError(
            f"--params={params}: no shape is within {TOLERANCE:.0%} with {vocab_size} tokens; take a smaller vocabulary."
        )
    return min(shapes, key=lambda shape: shape[:2])[2]


def decoder_parameters(arch: Architecture, layers: int) -> int:
    """Parameters of a tied decoder of so many plain blocks, attention and SwiGLU, in closed form.

    `parameters` counts any model; this one serves a search over many shapes.
    """
    D, N, K, H = arch.width, arch.heads, arch.kv_heads, arch.head_dim
    block = D * H * (2 * N + 2 * K) + 3 * D * arch.ff_width + 2 * D
    return arch.vocab_size * D + D + layers * block


def _kv_heads(heads: int) -> int:
    divisors = [k for k in range(1, heads + 1) if heads % k == 0]
    return min(divisors, key=lambda k: abs(math.log(heads / k / 3.5)))


def _numpy_name(dtype: str) -> str:
    return {"bfloat16": "float16"}.get(dtype, dtype)  # numpy has no bfloat16; the size is the same


def _short(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g}{letter}"
    return str(count)
