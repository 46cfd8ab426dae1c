"""The base of recurrent mixers: short convolutions, Mamba-2's decays, and the decode state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture
from slmjax.models.declare import weight
from slmjax.models.layers import Context, TokenMixer
from slmjax.ops import recurrence as ops
from slmjax.ops.short_conv import activated, activation, short_conv
from slmjax.parallel.mesh import BATCH, ways

TAPS = 4  # of the short convolutions; Dao and Gu 2024, Yang et al. 2024


class RecurrentMixer(TokenMixer):
    """The base class of mixers whose heads each keep a matrix of `key_dim` x `value_dim`.

    A subclass computes the arguments of `run_recurrence` from x; `convolved`, `step_sizes` and
    `decay_of` help. It multiplies the outputs with an output matrix that it declares itself.
    models/ssm.py is the shortest example.

    heads, key_dim, value_dim: 0 takes the mixer's usual size, see `sizes`.
    """

    heads: int = 0
    key_dim: int = 0
    value_dim: int = 0

    # Products of a token with the state: a write and a read; one more where it also erases.
    state_products: ClassVar[int] = 2

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(heads H, key channels K of a head, value channels V of a head).

        They are those of attention by default, so that mixers can be exchanged.
        """
        arch = self.arch
        heads = self.heads or arch.heads
        return heads, self.key_dim or arch.head_dim, self.value_dim or arch.head_dim

    def channels(self) -> dict[str, int]:
        """Return {stream: its channels, of all heads} of the short convolutions."""
        H, K, V = self.sizes
        return {"query": H * K, "key": H * K, "value": H * V}

    def empty_cache(self, batch: int, size: int) -> "RecurrentCache":
        """Return the state before the first token. Its size does not depend on `size`."""
        return empty_cache(batch, *self.sizes, self.channels(), self.arch.compute)

    def flops(self, seq_len: int, *, causal: bool = True) -> float:
        """Return FLOPs of the recurrence for one token.

        A step writes an outer product into the state and reads the state, twice where it erases.
        """
        H, K, V = self.sizes
        # 2 for a multiplication and an addition.
        return 2 * H * K * V * self.state_products


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecurrentCache:
    """One layer's decode state, of a size that does not grow with the tokens."""

    memory: ops.Memory  # the state after the last token, and its segment
    tails: Any  # {stream: [B,TAPS-1,C]}, the last inputs of its short convolution
    tail_segments: Any  # [B,TAPS-1], the segments of these inputs


def empty_cache(
    batch: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    channels: dict[str, int],
    dtype: Any,
) -> RecurrentCache:
    """Return the state before the first token.

    Args:
      channels: {stream: channels of its short convolution}.
      dtype: of the convolutions' inputs; the memory has its own.
    """
    tails = {}
    for name, count in channels.items():
        tails[name] = jnp.zeros((batch, TAPS - 1, count), dtype)
    memory = ops.empty_memory(batch, heads, key_dim, value_dim)
    # Segment 0 is padding: no tap sees it.
    tail_segments = jnp.zeros((batch, TAPS - 1), jnp.int32)
    return RecurrentCache(memory, tails, tail_segments)


def convolved(
    module: nn.Module,
    streams: dict[str, Float[Array, "B T _ _"]],
    ctx: Context,
    cache: RecurrentCache | None,
    *,
    has_bias: bool = False,
    unit: tuple[str, ...] = (),
) -> tuple[list[Array], RecurrentCache | None]:
    """Return silu(short convolution) of each stream [B,T,H,C], and the cache with new tails.

    Args:
      streams: inputs by name. Each has a convolution with weights of its own.
      has_bias: add a bias before the silu.
      unit: streams in which the vector of each head is divided by its length.
    """
    outputs, tails = [], {}
    tail_segments = None  # the same for all streams
    for name, x in streams.items():
        taps, bias = _conv_weights(module, name, x.shape[2:], has_bias)
        if cache is None:
            # Training: rows begin here.
            y = _convolved_rows(module.arch, x, taps, bias, ctx, unit=name in unit)
        else:
            # Generation: the tail holds the inputs before these. [B,T,H,C] -> [B,T,HC], as a tail
            # has no heads.
            y, tails[name], tail_segments = short_conv(
                x.reshape(*x.shape[:2], -1),
                taps.reshape(TAPS, -1),
                ctx.segments,
                tail=cache.tails[name],
                tail_segments=cache.tail_segments,
            )
            y = activation(y.reshape(x.shape), bias, unit=name in unit)
        outputs.append(y)
    if cache is not None:
        cache = dataclasses.replace(cache, tails=tails, tail_segments=tail_segments)
    return outputs, cache


def _conv_weights(
    module: nn.Module,
    name: str,
    head_shape: tuple[int, int],
    has_bias: bool,
) -> tuple[Float[Array, "W H C"], Float[Array, "H C"] | None]:
    """Return a stream's taps (W of them), and its bias or None.

    Args:
      head_shape: (H, C), heads and channels of a head.
    """

    def start(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        # As PyTorch starts a depthwise convolution; its fan in is the number of taps.
        bound = TAPS**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    # "kv_heads" is whole on every device where it has fewer heads than devices; two of ssm's
    # streams have one head.
    axes = (None, "kv_heads", None)
    shape = (TAPS, *head_shape)
    taps = weight(
        module,
        f"conv_{name}",
        shape,
        init=start,
        group="vector",
        axes=axes,
    )
    if not has_bias:
        return taps, None
    bias = weight(
        module,
        f"conv_{name}_bias",
        head_shape,
        init=nn.initializers.zeros,
        group="vector",
        axes=axes[1:],
    )
    return taps, bias


def _convolved_rows(
    arch: Architecture,
    x: Float[Array, "B T H C"],
    taps: Float[Array, "W H C"],
    bias: Float[Array, "H C"] | None,
    ctx: Context,
    *,
    unit: bool,
) -> Float[Array, "B T H C"]:
    """Return silu(convolution) of whole rows, where each device computes its own rows and heads.

    Args:
      unit: whether vectors are divided by their length.
    """
    convolve = functools.partial(activated, unit=unit, kernel=arch.recurrence)
    heads_axis = _axis_of_heads(x.shape[2])
    # Rows are split over the batch's axes, heads over the tensor axis.
    stream_spec = P(BATCH, None, heads_axis)
    taps_spec = P(None, heads_axis)
    bias_spec = None if bias is None else P(heads_axis)
    specs = (stream_spec, taps_spec, bias_spec, P(BATCH))
    convolve = _by_device(convolve, specs, stream_spec, len(x))
    return convolve(x, taps, bias, ctx.segments)


def decay_of(module: nn.Module, steps: Float[Array, "B T H ..."]) -> Float[Array, "B T H ..."]:
    """Return the logarithms of decays: -rate * steps, float32.

    The rate of each head is exp(decay_log), a parameter. It is between 1 and 16 at the start.
    Source: Dao and Gu 2024 (Mamba-2), section 8 and its code; Yang et al. 2024 (gated DeltaNet).
    """

    def start(key, shape, dtype):
        rate = jax.random.uniform(key, shape, jnp.float32, 1.0, 16.0)
        return jnp.log(rate).astype(dtype)

    decay_log = weight(
        module,
        "decay_log",
        steps.shape[2:3],
        init=start,
        group="vector",
    )
    rate = jnp.exp(decay_log.astype(jnp.float32))
    # [H] -> [1,1,H,...], with the dimensions that steps have.
    channel_dims = [1] * (steps.ndim - 3)
    rate = rate.reshape(1, 1, -1, *channel_dims)
    return -rate * steps


def step_sizes(
    module: nn.Module,
    name: str,
    x: Float[Array, "B T H ..."],
) -> Float[Array, "B T H ..."]:
    """Return softplus(x + bias), float32.

    At the start, x = 0 gives values from 0.001 to 0.1, evenly spread in their logarithm.
    Source: as `decay_of`.

    Args:
      name: of the bias, a parameter of the module.
    """

    def start(key, shape, dtype):
        least, most = jnp.log(1e-3), jnp.log(1e-1)
        size = jnp.exp(jax.random.uniform(key, shape, jnp.float32, least, most))
        # The inverse of softplus, in a form that is exact for small sizes.
        inverse = size + jnp.log(-jnp.expm1(-size))
        return inverse.astype(dtype)

    bias = weight(
        module,
        name,
        x.shape[2:],
        init=start,
        group="vector",
    )
    bias = bias.astype(jnp.float32)[None, None]  # [H,...] -> [1,1,H,...]
    return jax.nn.softplus(x.astype(jnp.float32) + bias)


def run_recurrence(
    arch: Architecture,
    query: Float[Array, "B T G K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T H V"],
    decay: Float[Array, "B T H ..."],
    erase: Float[Array, "B T H ..."] | None,
    ctx: Context,
    cache: RecurrentCache | None,
) -> tuple[Float[Array, "B T H V"], RecurrentCache | None]:
    """Return the outputs of ops.recurrence, and the cache with the new memory.

    Each device of the batch's axes computes its own rows, each of the tensor axis its own heads.
    ops/recurrence.py describes the arguments.
    """
    if cache is None:
        B, _, H, V = value.shape
        memory = ops.empty_memory(B, H, key.shape[3], V)
    else:
        memory = cache.memory

    # On one device's rows and heads.
    def recurrence_on_device(query, key, value, decay, erase, segments, memory):
        return ops.recurrence(
            query,
            key,
            value,
            decay,
            erase=erase,
            segments=segments,
            memory=memory,
            kernel=arch.recurrence,
        )

    key_heads, value_heads = key.shape[2], value.shape[2]
    heads_axis = _axis_of_heads(value_heads)
    if 1 < key_heads < value_heads:
        # Several value heads share a key head: a device would pair its own with the wrong one.
        heads_axis = None
    heads_spec = P(BATCH, None, heads_axis)  # of [B,T,H,...]
    rows_spec = P(BATCH)
    # A single query/key head, which serves all value heads, is whole on every device.
    keys_spec = heads_spec if key_heads == value_heads else rows_spec
    memory_spec = ops.Memory(P(BATCH, heads_axis), rows_spec)
    # In the order of the arguments of `recurrence_on_device`.
    specs = (
        keys_spec,
        keys_spec,
        heads_spec,
        heads_spec,
        heads_spec,
        rows_spec,
        memory_spec,
    )
    run = _by_device(recurrence_on_device, specs, (heads_spec, memory_spec), len(value))
    out, memory = run(query, key, value, decay, erase, ctx.segments, memory)
    if cache is not None:
        cache = dataclasses.replace(cache, memory=memory)
    return out, cache


def _axis_of_heads(heads: int) -> str | None:
    """Return the mesh axis that splits `heads` heads.

    None: it does not divide them, so that each device has all of them.
    """
    return "tensor" if heads % ways("tensor") == 0 else None


def _by_device(
    function: Callable,
    in_specs: tuple,
    out_specs: Any,
    rows: int,
) -> Callable:
    """Return a function split over the devices, or as it is.

    It is split where there are several devices and they divide the rows. XLA cannot split a custom
    kernel, so the split is explicit.
    """
    if ways(*BATCH, "tensor") == 1 or rows % ways(*BATCH):
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)
