"""The walk of the gated linear recurrence from chunk to chunk, the only part that is sequential.

For each chunk, with S the memory before it:

    new = written - erased S
    S <- whole S + writing^T new

Backward, the memory's gradient D walks from the last chunk to the first by the same two lines, with
three changes: writing and erased swap places, the signs of their products flip, and the gradient of
each chunk's memory is added (`scan_chunks` in reverse). All other gradients are products of what
the two walks return, for all chunks at once. Both walks keep one memory a chunk, in the products'
type.

Axes: N chunks of C tokens, P independent walks (rows times heads), K and V channels; k is K or 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slmjax.ops import triton_walk

# Terms of all chunks, a memory for each chunk, and the memory that a walk carries.
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
      erased: what each token erases along; None: nothing is erased, and `new` equals `written`.
      writing: keys, decayed to the end of the chunk.
      whole: factor by which a whole chunk decays the memory, float32, 1 or K numbers.
      state: memory before the first chunk, float32.

    Source: Yang et al. 2024 (parallelizing linear transformers with the delta rule), section 3.2.
    """
    return _forward(kernel, written, erased, writing, whole, state)[0]


def _forward(kernel, written, erased, writing, whole, state):
    run = _walk_of(kernel)
    added = None  # only the backward walk has it: the gradient of each chunk's memory
    memories, new, state = run(written, erased, writing, whole, added, state, reverse=False)
    return (memories, new, state), (erased, writing, whole, memories, new)


def _backward(kernel, residuals, gradients):
    erased, writing, whole, memories, new = residuals
    d_memories, d_new, d_state = gradients
    dtype = new.dtype
    run = _walk_of(kernel)
    # d_after is D, the gradient of the memory after each chunk.
    if erased is None:
        # No chunk's new values depend on the memory, so D only decays and takes up d_memories.
        d_erased = None
        d_after, _, d_state = run(
            written=None,
            erased=None,
            writing=None,
            whole=whole,
            added=d_memories,
            state=d_state,
            reverse=True,
        )
        d_written = d_new + dot("npck,npkv->npcv", writing, d_after, dtype)
    else:
        d_after, d_written, d_state = run(
            written=d_new,
            erased=writing,
            writing=erased,
            whole=whole,
            added=d_memories,
            state=d_state,
            reverse=True,
        )
        d_erased = -dot("npcv,npkv->npck", d_written, memories, dtype)
    d_writing = dot("npcv,npkv->npck", new, d_after, dtype)
    products = memories.astype(jnp.float32) * d_after.astype(jnp.float32)
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
    """Return (memory before each chunk, new, state after the walk) by lax.scan over the chunks.

    Terms that are None are left out; without `written` there is no `new`. In reverse the walk
    begins at the last chunk, so "before" a chunk means after it in the sequence, and

        new = written + erased S
        S <- whole S + added - writing^T new
    """
    sign = 1.0 if reverse else -1.0  # of the product in `new`; that in S has the opposite sign
    # A reverse walk that erases nothing has no `written`.
    dtype = (added if written is None else written).dtype

    def walk_chunk(state, arrays):
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
    state, (memories, new) = jax.lax.scan(walk_chunk, state, arrays, reverse=reverse)
    return memories, new, state


def dot(spec: str, a: Array, b: Array, dtype: Any = jnp.float32) -> Array:
    """Return the einsum of a and b as `dtype`, with sums of float32."""
    # By default a GPU or TPU rounds float32 operands, to TF32 or bfloat16.
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=dtype)


def _walk_of(kernel: str) -> Callable:
    """Return the function that a kernel's name stands for, with scan_chunks' arguments."""
    if kernel == "scan":
        return scan_chunks
    interpret = {"triton": False, "interpret": True}[kernel]
    return functools.partial(triton_walk.walk, interpret=interpret)
