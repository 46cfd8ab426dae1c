"""The language model: pure functions of a plain nested dict of parameters.

params = {"embedding" [V,D], "stack": {group: {position: block parameters, each leaf [repeats, ...]}}, "final_norm", ("head" [D,V])}.
Groups are the parts of the pattern that have blocks, numbered from 0; a pattern without bars is one.
The layout is the same whether the stack is unrolled or scanned.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError
from slmjax.models.architecture import Architecture, Block
from slmjax.models.block import DecoderBlock, Out
from slmjax.models.cache import Cache
from slmjax.models.declare import Weight, combined, declarations, keep_channel, unboxed
from slmjax.models.layers import Context, RMSNorm, Term
from slmjax.models.mixers import channel_class, mixer_class, mixer_of
from slmjax.ops import fp8
from slmjax.ops.embedding import embed
from slmjax.parallel.mesh import BATCH, constrain

NAMES = ("query", "key", "value", "mixed", "gate", "up")  # what remat may keep


def init(arch: Architecture, key: Array) -> dict:
    """Initial parameters: embedding and head from a normal of deviation 0.02 x their multiplier, matrices 1/sqrt(fan in)."""
    scales = dict(arch.init_scales)
    k_embedding, k_head, k_stack = jax.random.split(key, 3)

    def normal(k, shape, group):
        return 0.02 * scales.get(group, 1.0) * jax.random.normal(k, shape)

    params = {
        "embedding": normal(k_embedding, (arch.vocab_size, arch.width), "embedding"),
        "final_norm": {"scale": jnp.ones(arch.width)},
    }
    if not arch.tied:
        params["head"] = normal(k_head, (arch.width, arch.vocab_size), "head")
    return params | {"stack": _init_stack(arch, k_stack, "params")}


def init_buffers(arch: Architecture) -> dict:
    """What changes without a gradient, laid out as the stack; {} for a model without buffers."""
    if not declare_buffers(arch):
        return {}
    return {"stack": _init_stack(arch, jax.random.key(0), "buffers")}


def declare(arch: Architecture) -> dict:
    """The declaration of every parameter (declare.Weight), laid out as `init` lays them out."""
    V, D = arch.vocab_size, arch.width
    table = Weight((V, D), ("vocab", "width"), group="embedding", uses=1.0 if arch.tied else 0.0)
    tree = {"embedding": table, "final_norm": {"scale": Weight((D,), (None,))}}
    if not arch.tied:
        tree["head"] = Weight((D, V), ("width", "vocab"), (0,), (1,), "head", 1.0)
    return tree | {"stack": _declared(arch, "params")}


def declare_buffers(arch: Architecture) -> dict:
    """The declaration of every buffer (declare.Buffer), laid out as `init_buffers`; {} without any."""
    stack = _declared(arch, "buffers")
    return {"stack": stack} if jax.tree.leaves(stack) else {}


def forward(
    arch: Architecture, params: dict, buffers: dict, batch: dict, *, cache: Cache | None = None
) -> tuple[Array, Out]:
    """Hidden states [B,T,D] after the final norm, and what else leaves the blocks.

    Args:
      batch: tokens, segments, positions [B,T]; see data/rows.text_fields.
      buffers: as `init_buffers` makes them. Without those of float8, and with a cache, products are
        in the compute type.
      cache: from `init_cache`: the call then appends to it (prefill in pieces, one-token decode) and attends over it.
    Returns: (hidden, Out). out.cache is the cache after these tokens; out.terms and out.seen are
      {group: {position: ...}} as the stack, with leaves [repeats, ...].
    """
    slots = None if cache is None else cache.slots(batch["segments"])
    places = batch["places"].shape[0] if "places" in batch else None
    ctx = Context(batch["segments"], batch["positions"], batch.get("ids"), slots, places)
    x = _embed(arch, params["embedding"], batch["tokens"])
    x = constrain(x, BATCH, "sequence", None)
    carry = x, _zeros_across(arch, *batch["tokens"].shape)
    entries, terms, seen = [], {}, {}
    for g, (_, repeats) in enumerate(arch.stack):
        trees = _variables(arch, params, buffers, g, decoding=cache is not None)
        repeat = functools.partial(_repeat, arch, g, ctx)
        if cache is None and not arch.unroll:
            carry, (_, terms[str(g)], seen[str(g)]) = jax.lax.scan(repeat, carry, trees)
            continue
        layers = {p: unstack(tree, repeats) for p, tree in trees.items()}
        outs = []
        for r in range(repeats):
            kept = None if cache is None else cache.layers[len(entries) :]
            carry, out = repeat(carry, {p: trees[r] for p, trees in layers.items()}, kept)
            entries += out.cache
            outs.append(out[1:])
        terms[str(g)], seen[str(g)] = stack(outs)
    x = RMSNorm(arch).apply({"params": params["final_norm"]}, carry[0])
    return x, Out(None if cache is None else cache.after(tuple(entries), slots), terms, seen)


def init_cache(arch: Architecture, batch: int, size: int) -> Cache:
    """An empty cache for `batch` rows of at most `size` tokens; each entry has its own arrays, so that a donated cache gives back all."""
    layers = tuple(mixer_of(arch, block).empty_cache(batch, size) for block in arch.applications)
    return Cache(
        layers, jnp.zeros((batch, size), jnp.int32), jnp.zeros((batch,), jnp.int32), empty=True
    )


def head(arch: Architecture, params: dict) -> Float[Array, "D V"]:
    """The matrix that turns hidden states into logits, in the compute type, whole on every device along D."""
    matrix = params["embedding"].T if arch.tied else params["head"]
    return constrain(matrix.astype(arch.compute), None, "tensor")


def logits(
    arch: Architecture, params: dict, hidden: Float[Array, "B T D"]
) -> Float[Array, "B T V"]:
    """Return float32 logits. They are large: the loss of training goes through ops.cross_entropy."""
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
    x, ctx = _one_token(arch)
    tree: dict = {}
    for g, p, block, repeats, lent, _ in _walk(arch):
        each = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, g), p), repeats)
        module = DecoderBlock(_without_kernel(arch), block)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), lent)

        def start(k, module=module, zeros=zeros):
            return unboxed(module.init(k, x, zeros, ctx=ctx)).get(collection, {})

        tree.setdefault(str(g), {})[str(p)] = jax.vmap(start)(each)
    return tree


def _declared(arch: Architecture, collection: str) -> dict:
    tree: dict = {}
    for g, p, _, repeats, _, boxed in _walk(arch):
        tree.setdefault(str(g), {})[str(p)] = declarations(boxed.get(collection, {}), repeats)
    return tree


def _walk(arch: Architecture) -> Iterator[tuple]:
    """(group, position, block, repeats, shapes of what it is lent, its boxed variables) of each place in the stack."""
    across = {
        name: of
        for block in arch.blocks
        for name, of in mixer_of(arch, block).lends_across(1, 1).items()
    }
    for g, (pattern, repeats) in enumerate(arch.stack):
        lent = dict(across)
        for p, block in enumerate(pattern):
            alone = dataclasses.replace(
                _without_kernel(arch), stack=(((block,), 1),), init_scales=()
            )
            leaves, structure = jax.tree.flatten(lent)
            classes = (
                mixer_class(block.mixer),
                None if block.channel == "none" else channel_class(block.channel),
            )
            after, boxed = _shapes(alone, classes, structure, tuple(leaves))
            yield g, p, block, repeats, lent, boxed
            lent = after


@functools.lru_cache(maxsize=512)
def _shapes(arch: Architecture, classes: tuple, structure: Any, leaves: tuple) -> tuple[dict, dict]:
    """(what is lent after the one block of `arch`, its boxed variables), as shapes.

    `classes` only tell apart two of the same name, as a notebook makes them.
    """
    x, ctx = _one_token(arch)
    module = DecoderBlock(arch, arch.blocks[0])

    def start(lent):
        return module.init_with_output(jax.random.key(0), x, lent, ctx=ctx)

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        (_, lent, _), boxed = jax.eval_shape(start, jax.tree.unflatten(structure, leaves))
    return lent, boxed


def _one_token(arch: Architecture) -> tuple[Array, Context]:
    ctx = Context(jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))
    return jnp.zeros((1, 1, arch.width), arch.compute), ctx


def _without_kernel(arch: Architecture) -> Architecture:
    """The same without a device's attention kernel, which can neither be vmapped nor take one token."""
    return dataclasses.replace(arch, attention="reference")


def _variables(arch: Architecture, params: dict, buffers: dict, g: int, *, decoding: bool) -> dict:
    """{position: a block's Flax variables} of a stacked group."""
    group, g = params["stack"][str(g)], str(g)
    if not buffers:
        return {p: {"params": tree} for p, tree in group.items()}
    if decoding:
        buffers = keep_channel(declare_buffers(arch), buffers, "forward")

    def weight_scale(
        stacked,
    ):  # here, for all layers at once: a kernel for each matrix of each layer would take longer
        return fp8.scale_for(jax.lax.stop_gradient(stacked), tuple(range(1, stacked.ndim)))

    trees = {}
    for p, tree in group.items():
        trees[p] = {"params": tree, "buffers": buffers.get("stack", {}).get(g, {}).get(p, {})}
        if arch.products == "float8" and not decoding:
            trees[p]["weight_scales"] = jax.tree.map(weight_scale, tree)
    return trees


def _zeros_across(arch: Architecture, batch: int, length: int) -> dict:
    """What blocks lend to later repeats, before the first has."""
    lent = {}
    for block in dict.fromkeys(arch.blocks):
        lent |= mixer_of(arch, block).lends_across(batch, length)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), lent)


def _embed(
    arch: Architecture, table: Float[Array, "V D"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    # The cast table is gathered over fsdp before the look-up: a look-up in a table split along D makes XLA copy the whole batch.
    table = constrain(table.astype(arch.compute), "tensor", None)
    return embed(table, tokens)


def _repeat(
    arch: Architecture,
    g: int,
    ctx: Context,
    carry: tuple[Array, dict],
    trees: dict,
    kept: Sequence | None = None,
) -> tuple[tuple[Array, dict], Out]:
    """One repeat of a group's pattern, as lax.scan runs it.

    Args:
      carry: (x, what is lent across repeats).
      trees: {position: the block's variables}.
      kept: caches of this and later repeats; None in training.
    Returns: (carry, Out with lists of caches, and terms and observations by position).
    """
    pattern = arch.stack[g][0]
    x, lent = carry
    across, out = tuple(lent), Out([], {}, {})
    for p, block in enumerate(pattern):
        later = pattern[p:] if arch.share_blocks > 1 else pattern[p + 1 :]
        wanted = {*across, *(name for other in later for name in mixer_of(arch, other).borrowed())}
        apply = functools.partial(apply_block, arch, block, wanted=frozenset(wanted))
        for _ in range(arch.share_blocks):
            if kept is None:
                x, lent, one = remat(arch.remat)(apply)(trees[str(p)], x, ctx, lent)
                x = constrain(x, BATCH, "sequence", None)
            else:
                x, lent, one = apply(trees[str(p)], x, ctx, lent, kept[len(out.cache)])
                out.cache.append(one.cache)
            if one.terms:
                before = out.terms.get(str(p))
                out.terms[str(p)] = _added(before, one.terms) if before else one.terms
            if one.seen:
                before = out.seen.get(str(p))
                declared = before and declare_buffers(arch)["stack"][str(g)][str(p)]
                out.seen[str(p)] = combined(declared, before, one.seen) if before else one.seen
    return (x, {name: lent[name] for name in across}), out


def _added(one: dict, other: dict) -> dict:
    """The terms of a block that is applied several times."""
    return {name: Term(term.sum + other[name].sum, term.coefficient) for name, term in one.items()}


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
    """One block: (residual stream, what is lent on, Out).

    Args:
      variables: the block's Flax variables.
      lent: {name: value} of what blocks before lend.
      wanted: names that later blocks read; the others are let go, so that nothing is kept for them.
    """
    x, lent, out = DecoderBlock(arch, block).apply(variables, x, lent, ctx=ctx, cache=cache)
    return x, {name: value for name, value in lent.items() if name in wanted}, out


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
            raise UserError(
                f"config.model.remat is '{name}'; it can be none, full, dots, or names among {', '.join(NAMES)}."
            )
        policy = policies.save_only_these_names(*names)
    return functools.partial(jax.checkpoint, policy=policy)


@dataclasses.dataclass(frozen=True)
class Model:
    """The model as a task sees it: its functions, without parameters.

    chunks: pieces along a row whose logits exist at once, see ops/cross_entropy.py.
    """

    arch: Architecture
    chunks: int = 1

    def forward(
        self, params: dict, buffers: dict, batch: dict, *, cache: Cache | None = None
    ) -> tuple[Array, Out]:
        """See `forward`."""
        return forward(self.arch, params, buffers, batch, cache=cache)

    def head(self, params: dict) -> Float[Array, "D V"]:
        """See `head`."""
        return head(self.arch, params)

    def logits(self, params: dict, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """See `logits`."""
        return logits(self.arch, params, hidden)
