"""Checks that a user runs on an own token mixer before training with it; the library's mixers pass them in its tests."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.cache import Cache
from slmjax.models.layers import Context
from slmjax.models.mixers import mixer_class
from slmjax.models.pattern import parse_block
from slmjax.parallel.mesh import batch_sharding, make_mesh
from slmjax.parallel.rules import shardings

DOCUMENTS = (
    17,
    1,
    47,
    5,
    30,
)  # lengths: one token, an edge at 64 and 65 where recurrences cut, and more than one cut
PIECES = (
    (66, (66, 60, 1)),
    (8, (8, 3, 0)),
    (1, (1, 1, 0)),
    (1, (0, 1, 1)),
    (1, (1, 0, 1)),
    (1, (1, 1, 1)),
)  # (slots, tokens in each row)
NEAR = 1e-4  # of the largest value: float32 sums in another order, through products of a few dozen terms


def check_mixer(mixer: type | str, *, width: int = 32) -> list[str]:
    """Check a mixer, and say what held; the first that does not hold ends it.

    A token sees no later one and no other document, in gradients exactly; documents packed into one row come out as each alone; decoding in
    pieces and token by token is the forward pass, also for prompts of different length; on several devices (where there are several) it is
    the same as on one.

    Args:
      mixer: a class that can be imported (or stands in the notebook itself), or a block as in config.model.pattern, "gdn heads=2".
      width: of the model; it has four heads, two of them key/value heads.
    Raises: AssertionError that says in a sentence what failed.
    """
    block = (
        parse_block(mixer)
        if isinstance(mixer, str)
        else Block(f"{mixer.__module__}:{mixer.__qualname__}")
    )
    block = dataclasses.replace(block, channel="none")
    arch = Architecture(
        64, width, 4, 2, max(2, width // 4), width, (((block,), 1),), attention="reference"
    )
    mixer_class(block.mixer)
    params = _random(jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0)))
    return [*_causal_and_packed(arch, params), _decoded(arch, params), _sharded(arch, params)]


def _causal_and_packed(arch: Architecture, params: dict) -> tuple[str, str]:
    """Both are read from one program over six rows: all documents packed into the first, and each alone in a row."""
    length = sum(DOCUMENTS)
    batch = _batch([DOCUMENTS, *((n,) for n in DOCUMENTS)], length)
    starts = np.cumsum([0, *DOCUMENTS])
    spans = list(itertools.pairwise(starts))
    packed = _hidden(arch, batch)[0]
    x = jnp.stack(
        [packed, *(jnp.pad(packed[a:b], ((0, length - b + a), (0, 0))) for a, b in spans)]
    )

    @jax.jit
    def pulled(chosen):
        """(outputs, gradient with respect to x of the sum of sin(outputs) where `chosen` is true)."""

        def loss(x):
            out = _block(arch, params, x, batch)
            return jnp.sum(jnp.where(chosen[..., None], jnp.sin(out), 0.0)), out

        gradient, out = jax.grad(loss, has_aux=True)(x)
        return out, gradient

    at, segments = np.arange(length), np.asarray(batch["segments"][0])
    for position in (0, 16, 17, 18, 40, 63, 64, 65, 80, length - 1):
        gradient = np.asarray(pulled(jnp.zeros(x.shape[:2], bool).at[0, position].set(True))[1][0])
        assert np.isfinite(gradient).all(), (
            f"the gradient of the output at token {position} is not a number everywhere"
        )
        seen = np.abs(gradient).max(-1)
        later = (at > position) & (seen != 0)
        assert not later.any(), (
            f"not causal: the output at token {position} depends on token {at[later][0]}, which comes later"
        )
        other = (segments != segments[position]) & (seen != 0)
        assert not other.any(), (
            f"documents are not apart: the output at token {position}, of document {segments[position]}, depends on token {at[other][0]}, "
            f"of document {segments[other][0]}; see ctx.segments"
        )

    for what, rows in zip(("outputs", "gradients"), pulled(batch["segments"] != 0)):
        for number, (a, b) in enumerate(spans, start=1):
            off = _off(rows[0, a:b], rows[number, : b - a])
            assert off < NEAR, (
                f"packed documents are not as if alone: the {what} of document {number} differ by {off:.1e}"
            )
    return (
        "causal, and documents apart: gradients to later tokens and other documents are exactly zero",
        "packed documents are as if alone, gradients included",
    )


def _decoded(arch: Architecture, params: dict) -> str:
    lengths = np.sum([counts for _, counts in PIECES], axis=0)
    batch = _batch([(n,) for n in lengths.tolist()])
    whole = jax.jit(lambda batch: lm.forward(arch, params, {}, batch)[0])(batch)
    step = jax.jit(lambda batch, cache: _with_cache(arch, params, batch, cache))
    cache, done = lm.init_cache(arch, len(lengths), 96), np.zeros(len(lengths), int)
    for piece, counts in PIECES:
        place = np.minimum(done[:, None] + np.arange(piece)[None], lengths.max() - 1)
        taken = {
            name: np.take_along_axis(np.asarray(of), place, axis=1) for name, of in batch.items()
        }
        taken["segments"] = (np.arange(piece)[None] < np.array(counts)[:, None]).astype(np.int32)
        out, cache = step({name: jnp.asarray(of) for name, of in taken.items()}, cache)
        for row, n in enumerate(counts):
            off = _off(out[row, :n], whole[row, done[row] : done[row] + n])
            assert off < NEAR, (
                f"decoding is not the forward pass: tokens {done[row]} to {done[row] + n - 1} of row {row}, in a piece of {piece}, differ "
                f"by {off:.1e}; padding (segment 0) must change nothing that is kept"
            )
        done += np.array(counts)
    return "decoding in pieces and token by token is the forward pass, also for rows that go on after padding"


def _sharded(arch: Architecture, params: dict) -> str:
    if len(jax.devices()) < 4:
        return "on several devices: not checked, there are fewer than four (XLA_FLAGS=--xla_force_host_platform_device_count=8 makes some)"
    batch = _batch([DOCUMENTS, DOCUMENTS[::-1], (100,), (64, 36)])

    def loss(params, batch):
        hidden = lm.forward(arch, params, {}, batch)[0]
        return jnp.sum(jnp.sin(hidden) * batch["segments"][..., None])

    expected = jax.jit(jax.value_and_grad(loss))(params, batch)
    for sizes in (
        {"data": 2, "fsdp": 2},
        {"data": 1, "tensor": 4},
    ):  # the second has more devices than key/value heads
        mesh = make_mesh(sizes, jax.devices()[:4])
        with jax.set_mesh(mesh):
            there = (
                jax.device_put(params, shardings(lm.declare(arch), mesh)),
                jax.device_put(batch, batch_sharding(mesh)),
            )
            found = jax.jit(jax.value_and_grad(loss))(*there)
        for (path, one), other in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found)):
            off = _off(one, other)
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/") or "the loss"
            assert off < 10 * NEAR, (
                f"on {sizes} devices it is not what it is on one: {name} differs by {off:.1e}"
            )
    return "on four devices, by rows and by heads, it is what it is on one, gradients included"


def _with_cache(
    arch: Architecture, params: dict, batch: dict, cache: Cache
) -> tuple[jax.Array, Cache]:
    hidden, out = lm.forward(arch, params, {}, batch, cache=cache)
    return hidden, out.cache


def _block(arch: Architecture, params: dict, x: jax.Array, batch: dict) -> jax.Array:
    variables = {"params": jax.tree.map(lambda leaf: leaf[0], params["stack"]["0"]["0"])}
    return lm.apply_block(
        arch, arch.blocks[0], variables, x, Context(batch["segments"], batch["positions"])
    )[0]


def _hidden(arch: Architecture, batch: dict) -> jax.Array:
    return jnp.asarray(
        np.random.default_rng(2).normal(size=(*batch["tokens"].shape, arch.width)), jnp.float32
    )


def _batch(rows: list[tuple[int, ...]], length: int = 0) -> dict:
    """Rows of documents of these lengths, padding behind."""
    length = length or max(map(sum, rows))
    segments = np.zeros((len(rows), length), np.int32)
    for row, lengths in zip(segments, rows):
        row[: sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    first = np.array([[np.argmax(row == number) for number in row] for row in segments])
    tokens = np.random.default_rng(1).integers(0, 64, segments.shape)
    arrays = {"tokens": tokens, "segments": segments, "positions": np.arange(length)[None] - first}
    return {name: jnp.asarray(of, jnp.int32) for name, of in arrays.items()}


def _random(shapes: dict) -> dict:
    """Parameters of which none is zero: what starts at zero or one (biases, norms) would hide a mistake."""
    random = np.random.default_rng(0)

    def leaf(path, shape):
        draw = random.normal(size=shape.shape)
        fan_in = int(np.prod(shape.shape[1:-1])) if shape.ndim > 2 else 1
        near_one = path[-1].key in ("scale", "skip")
        return jnp.asarray(
            1 + 0.2 * draw if near_one else draw * min(0.5, fan_in**-0.5), shape.dtype
        )

    return jax.tree.map_with_path(leaf, shapes)


@jax.jit
def _difference(one, other):
    return jnp.abs(one - other).max(initial=0.0), jnp.abs(one).max(initial=0.0)


def _off(one, other) -> float:
    """Largest difference over the largest value."""
    difference, most = (float(x) for x in _difference(one, np.asarray(other)))
    return (
        difference / max(most, 1e-30) if difference else 0.0 if np.isfinite(most) else float("inf")
    )
