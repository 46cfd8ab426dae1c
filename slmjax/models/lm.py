"""The language model: pure functions of a plain nested dict of parameters.

    params = {
        "embedding": [V,D],
        "stack": {group: {position: a block's parameters, each leaf [repeats, ...]}},
        "final_norm": {"scale": [D]},
        "head": [D,V],  # unless it is the embedding, transposed
    }

Groups are the parts of the pattern that have blocks, numbered from 0; a pattern without bars is one
group. The layout is the same whether the stack is unrolled or scanned. Buffers, which change
without a gradient, are laid out in the same way.

A token passes `_embed`, `apply_block` for each layer, the final norm, and `head`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.models.architecture import Architecture, Block
from slmjax.models.block import DecoderBlock, Out
from slmjax.models.cache import Cache
from slmjax.models.declare import Weight, combined, keep_channel
from slmjax.models.layers import Context, RMSNorm, Term
from slmjax.models.mixers import mixer_of
from slmjax.models.stack_init import declare_stack, init_stack
from slmjax.models.stacked import remat, stack, unstack
from slmjax.ops import fp8
from slmjax.ops.embedding import embed
from slmjax.parallel.mesh import BATCH, constrain

TABLE_DEVIATION = 0.02  # of the initial embedding and head; Radford et al. 2019 (GPT-2)

# (residual stream [B,T,D], what blocks lend across repeats): what a scan over the stack carries.
Carry = tuple[Array, dict]


@dataclasses.dataclass(frozen=True)
class Model:
    """The model as a task sees it: its functions, without parameters.

    chunks: pieces along a row whose logits exist at once, see ops/cross_entropy.py.
    """

    arch: Architecture
    chunks: int = 1

    def forward(
        self,
        params: dict,
        buffers: dict,
        batch: dict,
        *,
        cache: Cache | None = None,
    ) -> tuple[Array, Out]:
        """See `forward`."""
        return forward(self.arch, params, buffers, batch, cache=cache)

    def head(self, params: dict) -> Float[Array, "D V"]:
        """See `head`."""
        return head(self.arch, params)

    def logits(self, params: dict, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """See `logits`."""
        return logits(self.arch, params, hidden)


def init(arch: Architecture, key: Array) -> dict:
    """Return initial parameters.

    Embedding and head are drawn from a normal distribution of deviation 0.02 times their
    multiplier, matrices of 1/sqrt(fan in). The final norm's gain starts at its multiplier.
    """
    scales = dict(arch.init_scales)
    embedding_key, head_key, stack_key = jax.random.split(key, 3)

    def table(key: Array, shape: tuple[int, int], group: str) -> Array:
        # A group without a multiplier has the factor 1.
        deviation = TABLE_DEVIATION * scales.get(group, 1.0)
        return deviation * jax.random.normal(key, shape)

    gain = scales.get("final_norm", 1.0)
    params = {
        "embedding": table(embedding_key, (arch.vocab_size, arch.width), "embedding"),
        "final_norm": {"scale": jnp.full(arch.width, gain, jnp.float32)},
    }
    if not arch.tied:
        params["head"] = table(head_key, (arch.width, arch.vocab_size), "head")
    return params | {"stack": init_stack(arch, stack_key, "params")}


def init_buffers(arch: Architecture) -> dict:
    """Return the buffers before the first step, laid out as the stack; {} without any."""
    if not declare_buffers(arch):
        return {}
    # No buffer starts at random, so that any key will do.
    return {"stack": init_stack(arch, jax.random.key(0), "buffers")}


def declare(arch: Architecture) -> dict:
    """Return the declaration of every parameter (declare.Weight), laid out as by `init`."""
    V, D = arch.vocab_size, arch.width
    # A tied table is also the head's matrix. An untied one is only looked up.
    uses = 1.0 if arch.tied else 0.0
    table = Weight((V, D), ("vocab", "width"), group="embedding", uses=uses)
    norm = Weight((D,), (None,), group="final_norm")
    tree = {"embedding": table, "final_norm": {"scale": norm}}
    if not arch.tied:
        tree["head"] = Weight(
            (D, V),
            ("width", "vocab"),
            inputs=(0,),
            outputs=(1,),
            group="head",
            uses=1.0,
        )
    return tree | {"stack": declare_stack(arch, "params")}


def declare_buffers(arch: Architecture) -> dict:
    """Return the declaration of every buffer (declare.Buffer), laid out as by `init_buffers`."""
    declared = declare_stack(arch, "buffers")
    return {"stack": declared} if jax.tree.leaves(declared) else {}


def init_cache(arch: Architecture, batch: int, size: int) -> Cache:
    """Return an empty cache for `batch` rows of at most `size` tokens.

    Each entry has its own arrays, so that a donated cache gives back all of its memory.
    """
    layers = []
    for block in arch.applications:
        mixer = mixer_of(arch, block)
        layers.append(mixer.empty_cache(batch, size))
    segments = jnp.zeros((batch, size), jnp.int32)
    length = jnp.zeros((batch,), jnp.int32)
    return Cache(tuple(layers), segments, length, empty=True)


def forward(
    arch: Architecture,
    params: dict,
    buffers: dict,
    batch: dict,
    *,
    cache: Cache | None = None,
) -> tuple[Array, Out]:
    """Return hidden states [B,T,D] after the final norm, and the blocks' other outputs.

    Args:
      batch: tokens, segments, positions [B,T]; see data/rows.text_fields.
      buffers: as `init_buffers` makes them. Products are in the compute type, not in float8, where
        the scales of float8 are missing or a cache is given.
      cache: from `init_cache` or an earlier call; None in training. These tokens are appended to it
        and attend over all of it (prefill in pieces, decoding of single tokens).
    Returns: (hidden, out). out.cache is the cache after these tokens; out.terms and out.seen are
      {group: {position: ...}} as the stack, with leaves [repeats, ...].
    """
    slots = None if cache is None else cache.slots(batch["segments"])
    # A static number: the batch gives it as the length of an array.
    places = batch["places"].shape[0] if "places" in batch else None
    ctx = Context(
        segments=batch["segments"],
        positions=batch["positions"],
        ids=batch.get("ids"),
        slots=slots,
        places=places,
    )
    tokens = batch["tokens"]
    x = _embed(arch, params["embedding"], tokens)
    x = constrain(x, BATCH, "sequence", None)
    carry = x, _zeros_across(arch, *tokens.shape)
    caches, terms, seen = [], {}, {}
    for group in range(len(arch.stack)):
        variables = _variables(arch, params, buffers, group, decoding=cache is not None)
        if cache is None and not arch.unroll:
            repeat = functools.partial(_repeat, arch, group, ctx)
            carry, out = jax.lax.scan(repeat, carry, variables)
        else:
            # With a cache always a loop: each application has an entry of its own, and takes the
            # first of the remaining ones.
            remaining = None if cache is None else cache.layers[len(caches) :]
            carry, out = _unrolled_group(arch, group, ctx, carry, variables, remaining)
        caches += out.cache
        terms[str(group)] = out.terms
        seen[str(group)] = out.seen
    x, _ = carry
    hidden = RMSNorm(arch).apply({"params": params["final_norm"]}, x)
    cache_after = None if cache is None else cache.after(tuple(caches), slots)
    return hidden, Out(cache_after, terms, seen)


def head(arch: Architecture, params: dict) -> Float[Array, "D V"]:
    """Return the matrix from hidden states to logits, in the compute type.

    Devices split it along V only.
    """
    matrix = params["embedding"].T if arch.tied else params["head"]
    # So no sum over D crosses devices: logits are split by rows and by vocabulary.
    return constrain(matrix.astype(arch.compute), None, "tensor")


def logits(
    arch: Architecture,
    params: dict,
    hidden: Float[Array, "B T D"],
) -> Float[Array, "B T V"]:
    """Return float32 logits. They are large: training computes its loss with ops.cross_entropy."""
    return jnp.einsum("btd,dv->btv", hidden, head(arch, params), preferred_element_type=jnp.float32)


def apply_block(
    arch: Architecture,
    block: Block,
    variables: dict,
    x: Float[Array, "B T D"],
    ctx: Context,
    lent: dict | None = None,
    cache: Any = None,
    *,
    wanted: frozenset[str] = frozenset(),
) -> tuple[Float[Array, "B T D"], dict, Out]:
    """Apply one block and return (residual stream, what later blocks are lent, Out).

    Args:
      variables: the block's Flax variables.
      lent: {name: value} of what earlier blocks lend.
      cache: the entry of this application; None in training.
      wanted: names that later blocks read. The others are dropped, so that no memory holds them.
    """
    module = DecoderBlock(arch, block)
    x, lent, out = module.apply(variables, x, lent, ctx=ctx, cache=cache)
    lent_on = {name: value for name, value in lent.items() if name in wanted}
    return x, lent_on, out


def _embed(
    arch: Architecture,
    table: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    # The cast table is gathered over fsdp before the look-up: a look-up in a table that is split
    # along D makes XLA copy the whole batch.
    table = constrain(table.astype(arch.compute), "tensor", None)
    return embed(table, tokens)


def _unrolled_group(
    arch: Architecture,
    group: int,
    ctx: Context,
    carry: Carry,
    variables: dict,
    entries: Sequence | None,
) -> tuple[Carry, Out]:
    """Run all repeats of a group one after the other, and return the same as a scan over them.

    Args:
      variables: {position: the blocks' variables, each leaf [repeats, ...]}.
      entries: caches of this and later groups, one for each application; None in training.
    """
    repeats = arch.stack[group][1]
    # {position: the trees of single layers}.
    layers = {p: unstack(tree, repeats) for p, tree in variables.items()}
    caches, outs = [], []
    for r in range(repeats):
        repeat_variables = {p: trees[r] for p, trees in layers.items()}
        remaining = None if entries is None else entries[len(caches) :]
        carry, out = _repeat(arch, group, ctx, carry, repeat_variables, remaining)
        caches += out.cache
        outs.append((out.terms, out.seen))
    return carry, Out(caches, *stack(outs))


def _repeat(
    arch: Architecture,
    group: int,
    ctx: Context,
    carry: Carry,
    variables: dict,
    entries: Sequence | None = None,
) -> tuple[Carry, Out]:
    """Run one repeat of a group's pattern, as lax.scan calls it.

    Args:
      variables: {position: the block's variables}.
      entries: caches of this and later repeats, one for each application; None in training.
    Returns: (carry, Out with a list of caches, and terms and observations by position).
    """
    pattern = arch.stack[group][0]
    x, lent = carry
    # A scan's carry must keep its structure: what is lent across repeats is never dropped.
    across = tuple(lent)
    out = Out([], {}, {})
    for p, block in enumerate(pattern):
        wanted = {*across, *_borrowed_later(arch, pattern, p)}
        apply = functools.partial(apply_block, arch, block, wanted=frozenset(wanted))
        for _ in range(arch.share_blocks):
            if entries is None:
                rematerialised = remat(arch.remat)(apply)
                x, lent, block_out = rematerialised(variables[str(p)], x, ctx, lent)
                x = constrain(x, BATCH, "sequence", None)
            else:
                # Decoding has no backward pass, so that nothing is rematerialised.
                entry = entries[len(out.cache)]
                x, lent, block_out = apply(variables[str(p)], x, ctx, lent, entry)
                out.cache.append(block_out.cache)
            _collect(arch, group, p, block_out, out)
    return (x, {name: lent[name] for name in across}), out


def _borrowed_later(
    arch: Architecture,
    pattern: tuple[Block, ...],
    position: int,
) -> set[str]:
    """Return the names that blocks after this position read."""
    # A shared block is applied again, and reads what its first application lends.
    first = position if arch.share_blocks > 1 else position + 1
    names: set[str] = set()
    for block in pattern[first:]:
        names.update(mixer_of(arch, block).borrowed())
    return names


def _collect(
    arch: Architecture,
    group: int,
    p: int,
    block_out: Out,
    out: Out,
) -> None:
    """Add the terms and observations of the block at position p to those in `out`."""
    position = str(p)
    # A position that is in `out` already belongs to a shared block, which was applied before.
    if block_out.terms:
        terms = block_out.terms
        if position in out.terms:
            terms = _summed_terms(out.terms[position], terms)
        out.terms[position] = terms
    if block_out.seen:
        seen = block_out.seen
        if position in out.seen:
            declared = declare_buffers(arch)["stack"][str(group)][position]
            seen = combined(declared, out.seen[position], seen)
        out.seen[position] = seen


def _summed_terms(first: dict[str, Term], second: dict[str, Term]) -> dict[str, Term]:
    """Return the sums of the terms of two applications of one block."""
    sums = {}
    for name, term in first.items():
        sums[name] = Term(term.sum + second[name].sum, term.coefficient)
    return sums


def _zeros_across(arch: Architecture, batch: int, length: int) -> dict:
    """Return zeros for what blocks lend to later repeats, as it is before the first block."""
    lent = {}
    # Each different block once, in the order of the stack.
    for block in dict.fromkeys(arch.blocks):
        lent |= mixer_of(arch, block).lends_across(batch, length)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), lent)


def _variables(
    arch: Architecture,
    params: dict,
    buffers: dict,
    group: int,
    *,
    decoding: bool,
) -> dict:
    """Return {position: the blocks' Flax variables, each leaf [repeats, ...]} of a group."""
    group_params = params["stack"][str(group)]
    if not buffers:
        return {p: {"params": tree} for p, tree in group_params.items()}
    if decoding:
        # Without the scales of float8, products are in the compute type.
        buffers = keep_channel(declare_buffers(arch), buffers, "forward")
    # Groups and positions without buffers have no entry.
    stack_buffers = buffers.get("stack", {})
    group_buffers = stack_buffers.get(str(group), {})
    variables = {}
    for p, tree in group_params.items():
        block_buffers = group_buffers.get(p, {})
        variables[p] = {"params": tree, "buffers": block_buffers}
        if arch.products == "float8" and not decoding:
            variables[p]["weight_scales"] = jax.tree.map(_weight_scales, tree)
    return variables


def _weight_scales(stacked: Float[Array, "repeats ..."]) -> Float[Array, "repeats"]:
    """Return the float8 scale of each layer's matrix.

    They are made for all layers at once: a kernel for each matrix of each layer would take longer.
    """
    # A scale is computed from the step's values, but has no gradient.
    values = jax.lax.stop_gradient(stacked)
    matrix_axes = tuple(range(1, stacked.ndim))
    return fp8.scale_for(values, matrix_axes)
