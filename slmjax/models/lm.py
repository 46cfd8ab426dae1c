"""The language model: pure functions of a plain nested dict of parameters.

params = {"embedding" [V,D], "stack": {group: {position: block parameters, each leaf [repeats, ...]}}, "final_norm", ("head" [D,V])}.
The layout is the same whether the stack is unrolled or scanned.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError
from slmjax.models.architecture import Architecture, Block
from slmjax.models.block import DecoderBlock
from slmjax.models.cache import Cache, Keys
from slmjax.models.layers import Context, RMSNorm
from slmjax.models.mixers import empty_cache
from slmjax.ops import fp8
from slmjax.ops.embedding import embed
from slmjax.parallel.mesh import BATCH, constrain

NAMES = ("query", "key", "value", "mixed", "gate", "up")  # what remat may keep


def init(arch: Architecture, key: Array) -> dict:
    """Initial parameters: embedding and head from a normal of deviation 0.02 x their multiplier, matrices 1/sqrt(fan in)."""
    scales = dict(arch.init_scales)
    k_embedding, k_head, k_stack = jax.random.split(key, 3)
    dtype = jnp.dtype(arch.params)

    def normal(k, shape, group):
        return (0.02 * scales.get(group, 1.0) * jax.random.normal(k, shape)).astype(dtype)

    params = {
        "embedding": normal(k_embedding, (arch.vocab_size, arch.width), "embedding"),
        "final_norm": {"scale": jnp.ones(arch.width, dtype)},
    }
    if not arch.tied:
        params["head"] = normal(k_head, (arch.width, arch.vocab_size), "head")
    return params | {"stack": _init_stack(arch, k_stack, "params")}


def init_buffers(arch: Architecture) -> dict:
    """What changes without a gradient: the scales of float8 products, laid out as the stack, or nothing."""
    return {"fp8": {"stack": _init_stack(arch, jax.random.key(0), "scales")}} if arch.products == "float8" else {}


def forward(
    arch: Architecture, params: dict, buffers: dict, batch: dict, *, cache: Cache | None = None
) -> tuple[Array, dict, Cache | None]:
    """Hidden states [B,T,D] after the final norm, auxiliary terms, and the cache after these tokens.

    Args:
      batch: tokens, segments, positions [B,T]; see DESIGN's batch contract.
      buffers: as `init_buffers` makes them. Without them, or with a cache, products are in the compute type: the parameters are ordinary.
      cache: from `init_cache`: the call then appends to it (prefill in pieces, one-token decode) and attends over it.
    """
    slots = None if cache is None else cache.slots(batch["segments"])
    ctx = Context(batch["segments"], batch["positions"], batch.get("ids"), slots)
    x = _embed(arch, params["embedding"], batch["tokens"])
    x = constrain(x, BATCH, "sequence", None)
    caches = []
    for g, (pattern, repeats) in enumerate(arch.stack):
        group = params["stack"][str(g)]
        if cache is not None:
            for r in range(repeats):
                shared = _lent(pattern)
                for p, block in enumerate(pattern):
                    one = {"params": jax.tree.map(lambda leaf, r=r: leaf[r], group[str(p)])}
                    for _ in range(arch.share_blocks):
                        kept = cache.layers[len(caches)]
                        x, entry, shared, _ = DecoderBlock(arch, block).apply(one, x, ctx=ctx, cache=kept, shared=shared)
                        caches.append(entry)
        elif arch.unroll:
            layers = {p: unstack(tree, repeats) for p, tree in _variables(group, buffers, g).items()}
            for r in range(repeats):
                x = _pattern(arch, pattern, {p: trees[r] for p, trees in layers.items()}, x, ctx)
        else:
            trees = _variables(group, buffers, g)
            x, _ = jax.lax.scan(lambda x, trees, pattern=pattern: (_pattern(arch, pattern, trees, x, ctx), None), x, trees)
    x = RMSNorm(arch).apply({"params": params["final_norm"]}, x)
    return x, {}, None if cache is None else cache.after(tuple(caches), slots)


def init_cache(arch: Architecture, batch: int, size: int) -> Cache:
    """An empty cache for `batch` rows of at most `size` tokens; each entry has its own arrays, so that a donated cache gives back all."""
    layers = tuple(empty_cache(arch, block, batch, size) for block in arch.applications)
    return Cache(layers, jnp.zeros((batch, size), jnp.int32), jnp.zeros((batch,), jnp.int32), empty=True)


def head(arch: Architecture, params: dict) -> Float[Array, "D V"]:
    """The matrix that turns hidden states into logits, in the compute type, whole on every device along D."""
    matrix = params["embedding"].T if arch.tied else params["head"]
    return constrain(matrix.astype(arch.compute), None, "tensor")


def logits(arch: Architecture, params: dict, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Float32 logits; for generation and tests (training goes through ops.cross_entropy)."""
    return jnp.einsum("btd,dv->btv", hidden, head(arch, params), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(tree, repeats: int) -> list:
    """The trees of the `repeats` layers of a stacked tree; the gradient is one concatenation, not `repeats` sums of full arrays."""
    return [jax.tree.map(lambda leaf, r=r: leaf[r], tree) for r in range(repeats)]


def _unstack_forward(tree, repeats):
    return unstack(tree, repeats), None


def _unstack_backward(repeats, _, gradients):
    return (stack(gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)


def stack(trees: list):
    """One tree with a leading layer axis from the trees of single layers."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _init_stack(arch: Architecture, key: Array, collection: str) -> dict:
    """One collection of the stack's initial variables: {group: {position: a block's, each leaf [repeats, ...]}}."""
    x = jnp.zeros((1, 1, arch.width), arch.compute)
    ctx = Context(jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))
    keys = Keys(*[jnp.zeros((1, 1, arch.kv_heads, arch.head_dim), arch.compute)] * 2)
    stack = {}
    for g, (pattern, repeats) in enumerate(arch.stack):
        stack[str(g)] = {}
        for p, block in enumerate(pattern):
            each = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, g), p), repeats)
            shared = {block.kind_of_keys: keys} if block.borrows else None
            module = DecoderBlock(dataclasses.replace(arch, attention="reference"), block)  # a device's kernel cannot be vmapped
            init = functools.partial(module.init, x=x, ctx=ctx, shared=shared)
            stack[str(g)][str(p)] = jax.vmap(lambda k, init=init: init(k)[collection])(each)
    return stack


def _variables(group: dict, buffers: dict, g: int) -> dict:
    """{position: a block's Flax variables} of a stacked group."""
    if "fp8" not in buffers:
        return {p: {"params": params} for p, params in group.items()}

    def weight_scale(stacked):  # here, for all layers at once: a kernel for each matrix of each layer would take longer
        return fp8.scale_for(jax.lax.stop_gradient(stacked), tuple(range(1, stacked.ndim)))

    scales = buffers["fp8"]["stack"][str(g)]
    return {p: {"params": params, "scales": scales[p], "weight_scales": jax.tree.map(weight_scale, params)} for p, params in group.items()}


def _embed(arch: Architecture, table: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    # The cast table is gathered over fsdp before the look-up: a look-up in a table split along D makes XLA copy the whole batch.
    table = constrain(table.astype(arch.compute), "tensor", None)
    return embed(table, tokens)


def _pattern(arch: Architecture, pattern: tuple[Block, ...], trees: dict, x: Array, ctx: Context) -> Array:
    shared = _lent(pattern)
    for p, block in enumerate(pattern):
        apply = remat(arch.remat)(functools.partial(apply_block, arch, block))
        for _ in range(arch.share_blocks):
            x, shared = apply(trees[str(p)], x, ctx, shared)
            x = constrain(x, BATCH, "sequence", None)
    return x


def apply_block(arch: Architecture, block: Block, variables: dict, x: Array, ctx: Context, shared: Any = None) -> tuple[Array, Any]:
    """(the residual stream after one block, what it and those before lend), from that block's Flax variables."""
    x, _, shared, _ = DecoderBlock(arch, block).apply(variables, x, ctx=ctx, shared=shared)
    return x, shared


def _lent(pattern: tuple[Block, ...]) -> dict | None:
    """What blocks lend, at the start of a pattern; None where none borrows, so that nothing is kept for it."""
    return {} if any(block.borrows for block in pattern) else None


def remat(name: str) -> Callable:
    """What config.model.remat makes of a block's function. Raises: UserError for a name that it cannot be."""
    if name == "none":
        return lambda f: f
    policies = jax.checkpoint_policies
    if name == "full":
        policy = policies.nothing_saveable
    elif name == "dots":
        policy = policies.dots_with_no_batch_dims_saveable
    else:
        names = tuple(part.strip() for part in name.split(","))
        if not set(names) <= set(NAMES):
            raise UserError(f"config.model.remat is '{name}'; it can be none, full, dots, or names among {', '.join(NAMES)}.")
        policy = policies.save_only_these_names(*names)
    return functools.partial(jax.checkpoint, policy=policy)
