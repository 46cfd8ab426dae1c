"""The walk of the gated linear recurrence from chunk to chunk: the only part that one chunk must wait for another with.

For each chunk, with the memory S that came before it:

    new = written - erased S
    S <- whole S + writing^T new

Backward, the memory's gradient D walks the other way by the same two lines, with writing and erased in each other's place; all other
gradients are products of what the two walks leave behind, at once for all chunks. Both keep one memory a chunk, in the products' type.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slmjax.ops import triton_walk


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def walk(
    kernel: str,
    written: Float[Array, "N P C V"],
    erased: Float[Array, "N P C K"] | None,
    writing: Float[Array, "N P C K"],
    whole: Float[Array, "N P k"],
    state: Float[Array, "P K V"],
) -> tuple[Float[Array, "N P K V"], Float[Array, "N P C V"], Float[Array, "P K V"]]:
    """(memories before each chunk, new values, memory after the last), of P independent walks over N chunks of C tokens.

    Args:
      kernel: "scan" (plain XLA), "triton" (a GPU) or "interpret" (the latter in Pallas' interpreter).
      written: its type is that of the products, of the memories and of the new values.
      erased: None: nothing is erased; new is then written.
      whole: float32, 1 or K numbers for each chunk.
      state: float32, before the first chunk.
    Source: Yang et al. 2024 (parallelizing linear transformers with the delta rule), section 3.2.
    """
    return _forward(kernel, written, erased, writing, whole, state)[0]


def _forward(kernel, written, erased, writing, whole, state):
    run = _walk_of(kernel)
    memories, new, state = run(written, erased, writing, whole, None, state, reverse=False)
    return (memories, new, state), (erased, writing, whole, memories, new)


def _backward(kernel, kept, gradients):
    erased, writing, whole, memories, new = kept
    of_memories, of_new, of_state = gradients
    dtype = new.dtype
    run = _walk_of(kernel)
    of_erased = None
    if erased is None:
        later, _, of_state = run(None, None, None, whole, of_memories, of_state, reverse=True)
        of_written = of_new + dot("npck,npkv->npcv", writing, later, dtype)
    else:
        later, of_written, of_state = run(
            of_new, writing, erased, whole, of_memories, of_state, reverse=True
        )
        of_erased = -dot("npcv,npkv->npck", of_written, memories, dtype)
    of_writing = dot("npcv,npkv->npck", new, later, dtype)
    of_whole = jnp.sum(memories.astype(jnp.float32) * later.astype(jnp.float32), axis=-1)
    of_whole = of_whole if whole.shape[-1] > 1 else of_whole.sum(-1, keepdims=True)
    return of_written, of_erased, of_writing, of_whole, of_state


walk.defvjp(_forward, _backward)


def scan_chunks(written, erased, writing, whole, added, state, *, reverse: bool):
    """(memories, new, state) by lax.scan over the chunks; in reverse, new = written + erased S and S <- whole S + added - writing^T new.

    What is None is left out.
    """
    sign = 1.0 if reverse else -1.0
    dtype = (added if written is None else written).dtype

    def one(state, xs):
        written, erased, writing, whole, added = xs
        memory, new = state.astype(dtype), written
        if erased is not None:
            new = (written + sign * dot("pck,pkv->pcv", erased, memory)).astype(dtype)
        state = whole[..., None] * state
        if writing is not None:
            state -= sign * dot("pck,pcv->pkv", writing, new)
        if added is not None:
            state += added
        return state, (memory, new)

    state, (memories, new) = jax.lax.scan(
        one, state, (written, erased, writing, whole, added), reverse=reverse
    )
    return memories, new, state


def _walk_of(kernel: str) -> Any:
    return {
        "scan": scan_chunks,
        "triton": triton_walk.walk,
        "interpret": functools.partial(triton_walk.walk, interpret=True),
    }[kernel]


def dot(spec: str, a: Array, b: Array, to: Any = jnp.float32) -> Array:
    """A product with sums of float32, of float32 operands not in a shorter type, rounded to the type `to`."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=to)
