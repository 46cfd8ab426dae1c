"""The walk of the gated linear recurrence from chunk to chunk, the only part that is sequential.

For each chunk, with the memory S that came before it:

    new = written - erased S
    S <- whole S + writing^T new

Backward, the memory's gradient D walks the other way by two lines alike: writing and erased are in
each other's place, the signs are flipped, and each chunk's own gradient is added (`scan_chunks`).
All other gradients are products of what the two walks leave behind, at once for all chunks. Both
walks keep one memory a chunk, in the products' type.

Axes: N chunks of C tokens, P independent walks (rows times heads), K and V channels; k is K or 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slmjax.ops import triton_walk

# Shapes of the terms of all chunks, and of one memory for each walk.
Values = Float[Array, "N P C V"]
Keys = Float[Array, "N P C K"]
Decays = Float[Array, "N P k"]
Memories = Float[Array, "N P K V"]
State = Float[Array, "P K V"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def walk(
    kernel: str,
    written: Values,
    erased: Keys | None,
    writing: Keys,
    whole: Decays,
    state: State,
) -> tuple[Memories, Values, State]:
    """Return (memories before each chunk, new values, memory after the last chunk).

    Args:
      kernel: "scan" (plain XLA), "triton" (a GPU) or "interpret" (Triton's kernel, anywhere).
      written: values before erasing; its type is that of the products, memories and new values.
      erased: what each token erases along; None: nothing is erased, and new is written.
      writing: keys, decayed to the end of the chunk.
      whole: decay of a whole chunk, float32, 1 or K numbers.
      state: float32, before the first chunk.

    Source: Yang et al. 2024 (parallelizing linear transformers with the delta rule), section 3.2.
    """
    return _forward(kernel, written, erased, writing, whole, state)[0]


def _forward(kernel, written, erased, writing, whole, state):
    run = _walk_of(kernel)
    added = None  # only the backward walk has it: the gradient of each chunk's memory
    memories, new, state = run(written, erased, writing, whole, added, state, reverse=False)
    return (memories, new, state), (erased, writing, whole, memories, new)


def _backward(kernel, kept, gradients):
    erased, writing, whole, memories, new = kept
    d_memories, d_new, d_state = gradients
    dtype = new.dtype
    run = _walk_of(kernel)
    # `later` holds the gradient of the memory after each chunk, D.
    d_erased = None
    if erased is None:
        later, _, d_state = run(
            written=None,
            erased=None,
            writing=None,
            whole=whole,
            added=d_memories,
            state=d_state,
            reverse=True,
        )
        # Without erasing no chunk's new values depend on the memory.
        d_written = d_new + dot("npck,npkv->npcv", writing, later, dtype)
    else:
        later, d_written, d_state = run(
            written=d_new,
            erased=writing,
            writing=erased,
            whole=whole,
            added=d_memories,
            state=d_state,
            reverse=True,
        )
        d_erased = -dot("npcv,npkv->npck", d_written, memories, dtype)
    d_writing = dot("npcv,npkv->npck", new, later, dtype)
    products = memories.astype(jnp.float32) * later.astype(jnp.float32)
    d_whole = jnp.sum(products, axis=-1)
    if whole.shape[-1] == 1:  # one decay for all K channels
        d_whole = d_whole.sum(-1, keepdims=True)
    return d_written, d_erased, d_writing, d_whole, d_state


walk.defvjp(_forward, _backward)


def scan_chunks(
    written: Values | None,
    erased: Keys | None,
    writing: Keys | None,
    whole: Decays,
    added: Memories | None,
    state: State,
    *,
    reverse: bool,
) -> tuple[Memories, Values | None, State]:
    """Return (memories, new, state) by lax.scan over the chunks. Terms that are None are left out.

    In reverse, new = written + erased S and S <- whole S + added - writing^T new.
    """
    # Forward: new = written - ..., S += ...; in reverse both signs flip.
    sign = 1.0 if reverse else -1.0
    # A reverse walk that erases nothing has no `written`.
    dtype = (added if written is None else written).dtype

    def chunk(state, arrays):
        written, erased, writing, whole, added = arrays
        memory = state.astype(dtype)  # products take the shorter type, the carry stays float32
        new = written
        if erased is not None:
            new = written + sign * dot("pck,pkv->pcv", erased, memory)
            new = new.astype(dtype)
        state = whole[..., None] * state
        if writing is not None:
            state -= sign * dot("pck,pcv->pkv", writing, new)
        if added is not None:
            state += added
        return state, (memory, new)

    arrays = (written, erased, writing, whole, added)
    state, (memories, new) = jax.lax.scan(chunk, state, arrays, reverse=reverse)
    return memories, new, state


def dot(spec: str, a: Array, b: Array, dtype: Any = jnp.float32) -> Array:
    """Return an einsum with sums of float32, rounded to `dtype`; float32 operands stay float32."""
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=dtype)


def _walk_of(kernel: str) -> Callable:
    if kernel == "scan":
        return scan_chunks
    interpret = {"triton": False, "interpret": True}[kernel]
    return functools.partial(triton_walk.walk, interpret=interpret)
