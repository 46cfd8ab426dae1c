"""Triton kernels (through Pallas) of the gated linear recurrence on NVIDIA GPUs: the walk over chunks and the inverse inside a chunk.

XLA gives each step of a scan kernels of its own, and the steps are too small for that: here one program walks over all chunks of a head
with the memory in its registers. The inverse is forward substitution, a row a step, which XLA would spread over as many kernels.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

MULTIPROCESSORS = 132  # of an H100 or H200: the walk is cut into at least as many programs where value channels allow it
LEAST = 16  # a side of the smallest product in Triton
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


def walk(written, erased, writing, whole, added, state, *, reverse: bool, interpret: bool = False):
    """(memories, new, state); arguments and results as of ops/chunk_walk.scan. C, K and V are powers of two, at least 16."""
    P, K, V = state.shape
    N = whole.shape[0]
    dtype = (added if written is None else written).dtype
    block = min(V, 64)
    while P * (V // block) < MULTIPROCESSORS and block > LEAST:
        block //= 2
    given = {
        "written": written,
        "erased": erased,
        "writing": writing,
        "whole": whole,
        "added": added,
        "state": state,
    }
    given = {name: x for name, x in given.items() if x is not None}
    found = {"memories": (N, P, K, V), "state": state.shape} | (
        {} if erased is None else {"new": written.shape}
    )

    def spec(name, shape):  # of one walk, and of some of its value channels
        sizes = {"P": None, "V": block}
        return pl.BlockSpec(
            tuple(sizes.get(axis, size) for axis, size in zip(AXES[name], shape)),
            lambda p, v: tuple({"P": p, "V": v}.get(axis, 0) for axis in AXES[name]),
        )

    out = pl.pallas_call(
        functools.partial(_walk, chunks=N, reverse=reverse, dtype=dtype),
        grid=(P, V // block),
        in_specs=[{name: spec(name, x.shape) for name, x in given.items()}],
        out_specs={name: spec(name, shape) for name, shape in found.items()},
        out_shape={
            name: jax.ShapeDtypeStruct(shape, jnp.float32 if name == "state" else dtype)
            for name, shape in found.items()
        },
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(given)
    return out["memories"], out.get("new", written), out["state"]


def _walk(given, out, *, chunks, reverse, dtype):
    sign = 1.0 if reverse else -1.0

    def one(number, state):
        n = chunks - 1 - number if reverse else number
        memory = state.astype(dtype)
        out["memories"][n] = memory
        new = given["written"][n] if "written" in given else None
        if "erased" in given:
            new = (new.astype(jnp.float32) + sign * dot(given["erased"][n], memory)).astype(dtype)
            out["new"][n] = new
        state = given["whole"][n][:, None] * state
        if "writing" in given:
            state -= sign * dot(given["writing"][n].T, new)
        if "added" in given:
            state += given["added"][n].astype(jnp.float32)
        return state

    out["state"][...] = jax.lax.fori_loop(0, chunks, one, given["state"][...])


def unit_inverse(below, *, interpret: bool = False):
    """(I + below)^-1 of strictly lower triangular [M,C,C] float32, by forward substitution. C is a power of two."""
    M, C, _ = below.shape
    matrix = pl.BlockSpec((None, C, C), lambda m: (m, 0, 0))
    return pl.pallas_call(
        _unit_inverse,
        grid=(M,),
        in_specs=[matrix],
        out_specs=matrix,
        out_shape=jax.ShapeDtypeStruct(below.shape, jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=4 if C > 64 else 2, num_stages=1),
        interpret=interpret,
    )(below)


def _unit_inverse(below, out):
    size = below.shape[0]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))

    def one(i, inverse):
        change = jnp.sum(below[i][:, None] * inverse, axis=0)
        return inverse - jnp.where(row == i, change[None, :], 0.0)

    out[...] = jax.lax.fori_loop(1, size, one, (row == column).astype(jnp.float32))


def dot(a, b):
    """A product of matrices inside a kernel, with sums of float32, of float32 operands not in a shorter type."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)
