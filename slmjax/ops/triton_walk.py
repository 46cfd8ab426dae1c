"""Triton kernels (through Pallas) of the gated linear recurrence, for NVIDIA GPUs.

`walk` goes over the chunks, `unit_inverse` inverts a matrix of each chunk. XLA starts new kernels
for each step of a scan, which costs more than such small steps do. Here one program walks over all
chunks of a head with the memory in its registers. The inverse is forward substitution, one row of
the matrix a step, which XLA would spread over as many kernels.

Axes as in ops/chunk_walk.py; M matrices.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

MULTIPROCESSORS = 132  # of an H100 or H200
LEAST = 16  # the smallest side of a matrix in Triton's products
CHANNELS = 64  # value channels of one program, at most
# Of the arrays of `walk`, by name; K is 1 in "whole" where all channels have one decay.
AXES = {
    "written": "NPCV",
    "erased": "NPCK",
    "writing": "NPCK",
    "whole": "NPK",
    "added": "NPKV",
    "memories": "NPKV",
    "new": "NPCV",
    "state": "PKV",
}

# Shapes of the terms of all chunks, of one memory for each walk, and of one matrix for each chunk.
Values = Float[Array, "N P C V"]
Keys = Float[Array, "N P C K"]
Decays = Float[Array, "N P k"]
Memories = Float[Array, "N P K V"]
State = Float[Array, "P K V"]
Matrices = Float[Array, "M C C"]
Specs = dict[str, pl.BlockSpec]


def walk(
    written: Values | None,
    erased: Keys | None,
    writing: Keys | None,
    whole: Decays,
    added: Memories | None,
    state: State,
    *,
    reverse: bool,
    interpret: bool = False,
) -> tuple[Memories, Values | None, State]:
    """Return (memories, new, state) as chunk_walk.scan_chunks does.

    C, K and V are powers of two, at least 16.
    """
    P, K, V = state.shape
    N = whole.shape[0]
    dtype = (added if written is None else written).dtype
    block = _channels_of_a_program(P, V)
    arrays = {
        "written": written,
        "erased": erased,
        "writing": writing,
        "whole": whole,
        "added": added,
        "state": state,
    }
    inputs = {name: x for name, x in arrays.items() if x is not None}
    # Without `erased` there is no output "new": new is `written`, see below.
    outputs = {
        "memories": jax.ShapeDtypeStruct((N, P, K, V), dtype),
        "state": jax.ShapeDtypeStruct(state.shape, jnp.float32),
    }
    if erased is not None:
        outputs["new"] = jax.ShapeDtypeStruct(written.shape, dtype)
    out = pl.pallas_call(
        functools.partial(_walk, chunks=N, reverse=reverse, dtype=dtype),
        grid=(P, V // block),
        in_specs=[_specs(inputs, block)],
        out_specs=_specs(outputs, block),
        out_shape=outputs,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(inputs)
    return out["memories"], out.get("new", written), out["state"]


def _channels_of_a_program(walks: int, channels: int) -> int:
    """Return the value channels of one program: few enough that all multiprocessors have work.

    Programs can share out value channels because each has its own column of the memory.
    """
    block = min(channels, CHANNELS)
    while walks * (channels // block) < MULTIPROCESSORS and block > LEAST:
        block //= 2
    return block


def _specs(arrays: dict[str, Any], block: int) -> Specs:
    """Return the part of each array that the program of walk p and value channels v sees."""
    specs = {}
    for name, x in arrays.items():
        specs[name] = _spec(AXES[name], x.shape, block)
    return specs


def _spec(axes: str, shape: tuple[int, ...], block: int) -> pl.BlockSpec:
    """Return the part of one array: one p, `block` value channels, and all other axes whole."""
    part_sizes = {"P": None, "V": block}  # None: the axis falls away
    part = []
    for axis, size in zip(axes, shape, strict=True):
        part.append(part_sizes.get(axis, size))

    def place(p, v):
        places = {"P": p, "V": v}
        return tuple(places.get(axis, 0) for axis in axes)

    return pl.BlockSpec(tuple(part), place)


def _walk(inputs, out, *, chunks, reverse, dtype):
    """Do one walk over all chunks, for a program's value channels, as chunk_walk.scan_chunks does.

    `inputs` and `out` are dicts of references, with names of AXES.
    """
    sign = 1.0 if reverse else -1.0  # of the product in `new`; that in `state` has the opposite

    def walk_chunk(step, state):
        n = chunks - 1 - step if reverse else step  # fori_loop only counts up
        memory = state.astype(dtype)  # [K,V]; the state stays float32
        out["memories"][n] = memory
        new = inputs["written"][n] if "written" in inputs else None
        if "erased" in inputs:
            new = new.astype(jnp.float32) + sign * dot(inputs["erased"][n], memory)
            new = new.astype(dtype)
            out["new"][n] = new
        state = inputs["whole"][n][:, None] * state
        if "writing" in inputs:
            state -= sign * dot(inputs["writing"][n].T, new)
        if "added" in inputs:
            state += inputs["added"][n].astype(jnp.float32)
        return state

    start = inputs["state"][...]
    out["state"][...] = jax.lax.fori_loop(0, chunks, walk_chunk, start)


def unit_inverse(below: Matrices, *, interpret: bool = False) -> Matrices:
    """Return (I + below)^-1 by forward substitution.

    Args:
      below: strictly lower triangular, float32; C is a power of two.
    """
    M, C, _ = below.shape
    warps = 4 if C > 64 else 2
    matrix = pl.BlockSpec((None, C, C), lambda m: (m, 0, 0))
    return pl.pallas_call(
        _unit_inverse,
        grid=(M,),
        in_specs=[matrix],
        out_specs=matrix,
        out_shape=jax.ShapeDtypeStruct(below.shape, jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
    )(below)


def _unit_inverse(below, out):
    """Invert one matrix [C,C]: row i is that of I, less below[i] times the rows before it."""
    size, _ = below.shape
    row = jax.lax.broadcasted_iota(jnp.int32, below.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, below.shape, 1)

    def substitute(i, inverse):
        change = jnp.sum(below[i][:, None] * inverse, axis=0)
        return inverse - jnp.where(row == i, change[None, :], 0.0)

    unit = (row == column).astype(jnp.float32)
    # Row 0 is that of I already.
    out[...] = jax.lax.fori_loop(1, size, substitute, unit)


def dot(a: Array, b: Array) -> Array:
    """Return a @ b inside a kernel, with sums of float32."""
    # By default a GPU rounds float32 operands to TF32.
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)
