"""What the recurrent mixers share: short convolutions, decays as Mamba-2 starts them, the recurrence by devices, decode state."""

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
    """A mixer whose heads each keep a matrix of `key_dim` x `value_dim`.

    heads, key_dim, value_dim: 0 stands for the mixer's usual size, see `sizes`.
    """

    heads: int = 0
    key_dim: int = 0
    value_dim: int = 0

    reads: ClassVar[int] = 2  # products with the state that a token takes part in

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(heads H, key channels K, value channels V of a head).

        By default those of attention, so that mixers can be exchanged.
        """
        arch = self.arch
        return (
            self.heads or arch.heads,
            self.key_dim or arch.head_dim,
            self.value_dim or arch.head_dim,
        )

    def channels(self) -> dict[str, int]:
        """Channels of each short convolution by name."""
        H, K, V = self.sizes
        return {"query": H * K, "key": H * K, "value": H * V}

    def empty_cache(self, batch: int, size: int) -> "RecurrentCache":
        """Its size does not depend on the tokens."""
        return empty_cache(batch, *self.sizes, self.channels(), self.arch.compute)

    def flops(self, seq_len: int, *, causal: bool = True) -> float:
        """A step writes an outer product into the state and reads it, once more where it erases."""
        H, K, V = self.sizes
        return 2 * H * K * V * self.reads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecurrentCache:
    """One layer's memory, and the last inputs of its short convolutions: of a size that does not grow with the tokens."""

    memory: ops.Memory
    tails: Any  # {name: [B,TAPS-1,C]}
    tail_segments: Any  # [B,TAPS-1]


def empty_cache(
    batch: int, heads: int, key: int, value: int, channels: dict[str, int], dtype: Any
) -> RecurrentCache:
    """Before the first token; `channels` of each convolution by name."""
    tails = {name: jnp.zeros((batch, TAPS - 1, count), dtype) for name, count in channels.items()}
    return RecurrentCache(
        ops.empty_memory(batch, heads, key, value), tails, jnp.zeros((batch, TAPS - 1), jnp.int32)
    )


def convolved(
    module: nn.Module,
    streams: dict[str, Float[Array, "B T n c"]],
    ctx: Context,
    cache: RecurrentCache | None,
    *,
    bias: bool = False,
    unit: tuple[str, ...] = (),
) -> tuple[list[Array], RecurrentCache | None]:
    """silu(short convolution) of each stream, with weights of its own and of length 1 where `unit` names it; the cache with new tails."""
    kernel = module.arch.recurrence
    out, tails, tail_segments = [], {}, None
    for name, x in streams.items():
        heads = x.shape[2:]
        split = {"group": "vector", "axes": (None, "kv_heads", None)}
        taps = weight(module, f"conv_{name}", (TAPS, *heads), init=_uniform(TAPS**-0.5), **split)
        shift = None
        if bias:
            split["axes"] = ("kv_heads", None)
            shift = weight(module, f"conv_{name}_bias", heads, init=nn.initializers.zeros, **split)
        if cache is None:
            run = functools.partial(activated, unit=name in unit, kernel=kernel)
            rows, of = P(BATCH), _split(heads[0])
            specs = (P(BATCH, None, of), P(None, of), None if shift is None else P(of), rows)
            out.append(_by_device(run, specs, specs[0], len(x))(x, taps, shift, ctx.segments))
            continue
        flat = x.reshape(*x.shape[:2], -1)
        state = {"tail": cache.tails[name], "tail_segments": cache.tail_segments}
        y, tails[name], tail_segments = short_conv(
            flat, taps.reshape(TAPS, -1), ctx.segments, **state
        )
        out.append(activation(y.reshape(x.shape), shift, unit=name in unit))
    return out, None if cache is None else dataclasses.replace(
        cache, tails=tails, tail_segments=tail_segments
    )


def decay_of(module: nn.Module, steps: Float[Array, "B T H ..."]) -> Float[Array, "B T H ..."]:
    """-exp(decay_log) * steps, float32: a rate for each head, between 1 and 16 at the start.

    Source: Dao and Gu 2024 (Mamba-2), section 8 and its code; Yang et al. 2024 (gated DeltaNet).
    """

    def start(key, shape, dtype):
        return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1.0, 16.0)).astype(dtype)

    log = weight(module, "decay_log", steps.shape[2:3], init=start, group="vector").astype(
        jnp.float32
    )
    return -jnp.exp(log).reshape(1, 1, -1, *[1] * (steps.ndim - 3)) * steps


def step_sizes(
    module: nn.Module, name: str, x: Float[Array, "B T H ..."]
) -> Float[Array, "B T H ..."]:
    """softplus(x + bias), float32; of x = 0 it is between 0.001 and 0.1 at the start, evenly in its logarithm. Source: as `decay_of`."""

    def start(key, shape, dtype):
        size = jnp.exp(jax.random.uniform(key, shape, jnp.float32, jnp.log(1e-3), jnp.log(1e-1)))
        return (size + jnp.log(-jnp.expm1(-size))).astype(dtype)

    bias = weight(module, name, x.shape[2:], init=start, group="vector").astype(jnp.float32)
    return jax.nn.softplus(x.astype(jnp.float32) + bias[None, None])


def run_recurrence(
    arch: Architecture, query, key, value, decay, erase, ctx: Context, cache: RecurrentCache | None
) -> tuple[Array, RecurrentCache | None]:
    """(outputs, cache with the new memory) of ops.recurrence: each device its own rows and, over the tensor axis, its own heads."""
    memory = (
        ops.empty_memory(len(value), value.shape[2], key.shape[3], value.shape[3])
        if cache is None
        else cache.memory
    )

    def local(query, key, value, decay, erase, segments, memory):
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

    split = _split(value.shape[2])
    heads, rows = P(BATCH, None, split), P(BATCH)
    shared = heads if key.shape[2] == value.shape[2] else rows
    where = ops.Memory(P(BATCH, split), rows)
    local = _by_device(
        local, (shared, shared, heads, heads, heads, rows, where), (heads, where), len(value)
    )
    out, memory = local(query, key, value, decay, erase, ctx.segments, memory)
    return out, None if cache is None else dataclasses.replace(cache, memory=memory)


def _split(heads: int) -> str | None:
    """The axis that heads lie on."""
    return "tensor" if heads % ways("tensor") == 0 else None


def _by_device(f: Callable, specs: tuple, outs: Any, rows: int) -> Callable:
    """`f` of each device's part, where there are several devices and they divide the rows."""
    if ways(*BATCH, "tensor") == 1 or rows % ways(*BATCH):
        return f
    return jax.shard_map(f, in_specs=specs, out_specs=outs, check_vma=False)


def _uniform(most: float):
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -most, most)
