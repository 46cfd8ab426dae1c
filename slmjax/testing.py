"""Checks that users run on their own token mixer before training with it.

The library's mixers pass them in its tests.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.cache import Cache
from slmjax.models.layers import Context
from slmjax.models.mixers import mixer_class
from slmjax.models.pattern import parse_block
from slmjax.parallel.mesh import batch_sharding, make_mesh
from slmjax.parallel.rules import shardings

# Tokens of each document in the packed row. They end at 17, 18, 65, 70 and 100: one document has
# one token, and the last token of the third (64) is alone after the cut between chunks of 64.
DOCUMENTS = (17, 1, 47, 5, 30)
# The pieces in which three rows are decoded: (slots, real tokens of each row). The other slots of a
# row are padding.
PIECES = (
    (66, (66, 60, 1)),
    (8, (8, 3, 0)),
    (1, (1, 1, 0)),
    (1, (0, 1, 1)),
    (1, (1, 0, 1)),
    (1, (1, 1, 1)),
)
# Tokens whose outputs are differentiated: at ends and beginnings of documents and of chunks.
POSITIONS = (0, 16, 17, 18, 40, 63, 64, 65, 80, sum(DOCUMENTS) - 1)
# Largest allowed difference, as a share of the largest value: float32 sums of a few dozen products
# in another order.
NEAR = 1e-4
VOCAB = 64
NOT_SHARDED = (
    "on several devices: not checked, there are fewer than four "
    "(XLA_FLAGS=--xla_force_host_platform_device_count=8 makes some)"
)


def check_mixer(mixer: type | str, *, width: int = 32) -> list[str]:
    """Check a mixer and return a sentence for each property that holds.

    An output depends on no later token and on no other document: those gradients are exactly zero.
    Documents that are packed into one row come out as each alone. Decoding in pieces and token by
    token gives what the forward pass gives, also for prompts of different length. Where there are
    at least four devices, four give what one gives.

    Args:
      mixer: a class that can be imported (or that the notebook itself defines), or a block as in
        config.model.pattern, "gdn heads=2".
      width: of the model; it has four heads, two of them key/value heads.
    Raises: AssertionError that says in a sentence what failed first.
    """
    if isinstance(mixer, str):
        block = parse_block(mixer)
    else:
        block = Block(f"{mixer.__module__}:{mixer.__qualname__}")
    block = dataclasses.replace(block, channel="none")
    arch = Architecture(
        vocab_size=VOCAB,
        width=width,
        heads=4,
        kv_heads=2,
        head_dim=max(2, width // 4),
        ff_width=width,
        stack=(((block,), 1),),
        attention="reference",
    )
    mixer_class(block.mixer)  # a wrong name or class is refused before anything is traced
    init = functools.partial(lm.init, arch)
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = _random(shapes)
    return [
        *_check_causal_and_packed(arch, params),
        _check_decoding(arch, params),
        _check_sharding(arch, params),
    ]


def _check_causal_and_packed(arch: Architecture, params: dict) -> tuple[str, str]:
    """Check gradients between tokens, and packed documents against each alone.

    One compiled program over six rows serves both: the first row holds all documents, and each of
    the others one document alone.
    """
    length = sum(DOCUMENTS)
    singles = [(n,) for n in DOCUMENTS]
    batch = _batch([DOCUMENTS, *singles], length)
    edges = np.cumsum([0, *DOCUMENTS])
    spans = list(itertools.pairwise(edges))
    x = _random_rows(arch, batch, spans)
    run = _outputs_and_gradient(arch, params, x, batch)

    # One output at a time: its gradient says which tokens it sees.
    segments = np.asarray(batch["segments"][0])
    nothing = jnp.zeros(x.shape[:2], bool)
    for position in POSITIONS:
        chosen = nothing.at[0, position].set(True)
        _, gradient = run(chosen)
        packed = np.asarray(gradient[0])
        _check_seen_tokens(packed, position, segments)

    # All tokens but padding, whose outputs may be anything.
    real = batch["segments"] != 0
    outputs, gradients = run(real)
    _check_alone("outputs", outputs, spans)
    _check_alone("gradients", gradients, spans)
    return (
        "causal, and documents apart: gradients to later tokens and other documents are exactly "
        "zero",
        "packed documents are as if alone, gradients included",
    )


def _random_rows(
    arch: Architecture,
    batch: dict,
    spans: list,
) -> Float[Array, "B T D"]:
    """Return activations: a random packed row, then each of its documents in a row of its own.

    Args:
      spans: (start, end) of each document in the packed row.
    """
    packed = _random_activations(arch, batch)[0]
    length = len(packed)
    rows = [packed]
    for start, end in spans:
        document = packed[start:end]
        padding = length - len(document)
        rows.append(jnp.pad(document, ((0, padding), (0, 0))))
    return jnp.stack(rows)


def _outputs_and_gradient(
    arch: Architecture,
    params: dict,
    x: Float[Array, "B T D"],
    batch: dict,
) -> Callable[[Array], tuple[Array, Array]]:
    """Return a compiled function of chosen tokens [B,T], which returns (outputs, gradient).

    The gradient is that of the sum of sin(outputs) over the chosen tokens, with respect to x.
    """

    @jax.jit
    def run(chosen: Bool[Array, "B T"]) -> tuple[Array, Array]:
        def loss(x):
            out = _apply_block(arch, params, x, batch)
            # A sine, so that the gradient depends on the output.
            waves = jnp.where(chosen[..., None], jnp.sin(out), 0.0)
            return jnp.sum(waves), out

        gradient, out = jax.grad(loss, has_aux=True)(x)
        return out, gradient

    return run


def _check_alone(
    what: str,
    values: Float[Array, "B T D"],
    spans: list,
) -> None:
    """Check that each document has the same values in the packed row as in its own.

    Args:
      what: the values in words, for the error.
    """
    for number, (start, end) in enumerate(spans, start=1):
        packed = values[0, start:end]
        alone = values[number, : end - start]
        difference = _relative_difference(packed, alone)
        assert difference < NEAR, (
            f"packed documents are not as if alone: the {what} of document {number} differ by "
            f"{difference:.1e}"
        )


def _check_seen_tokens(
    gradient: Float[np.ndarray, "T D"],
    position: int,
    segments: Int[np.ndarray, "T"],
) -> None:
    """Check which tokens of the packed row the output at `position` depends on.

    Args:
      gradient: of that output, with respect to the row's activations.
    """
    output = f"the output at token {position}"
    assert np.isfinite(gradient).all(), f"the gradient of {output} is not a number everywhere"
    index = np.arange(len(segments))
    # Exactly zero: a masked value that is only small would still leak.
    is_seen = np.abs(gradient).max(-1) != 0
    comes_later = index > position
    seen_later = index[is_seen & comes_later]
    assert not seen_later.size, (
        f"not causal: {output} depends on token {seen_later[0]}, which comes later"
    )
    is_elsewhere = segments != segments[position]
    seen_elsewhere = index[is_seen & is_elsewhere]
    assert not seen_elsewhere.size, (
        f"documents are not apart: {output}, of document {segments[position]}, depends on token "
        f"{seen_elsewhere[0]}, of document {segments[seen_elsewhere[0]]}; see ctx.segments"
    )


def _check_decoding(arch: Architecture, params: dict) -> str:
    """Check decoding in pieces, with rows of unequal length, against one forward pass.

    The first piece is the prompt, the next ones continue it.
    """
    lengths = np.sum([counts for _, counts in PIECES], axis=0)
    # One document a row, as prompts are.
    documents = [(n,) for n in lengths.tolist()]
    batch = _batch(documents)
    forward = jax.jit(functools.partial(lm.forward, arch, params, {}))
    whole, _ = forward(batch)
    decode = jax.jit(functools.partial(_with_cache, arch, params))
    rows = len(lengths)
    cache = lm.init_cache(arch, rows, 96)  # slots: more than the longest row has tokens
    done = np.zeros(rows, int)  # tokens of each row in the cache
    for slots, counts in PIECES:
        slot = np.arange(slots)[None]
        # [B, slots]: each row goes on where it stopped, and padding repeats any token.
        column = np.minimum(done[:, None] + slot, lengths.max() - 1)
        piece = {}
        for name, values in batch.items():
            taken = np.take_along_axis(np.asarray(values), column, axis=1)
            piece[name] = jnp.asarray(taken)
        # A row's real tokens are one document, and padding (segment 0) comes after them.
        is_real = slot < np.array(counts)[:, None]
        piece["segments"] = jnp.asarray(is_real.astype(np.int32))
        out, cache = decode(piece, cache)
        for row, count in enumerate(counts):
            start = done[row]
            end = start + count
            difference = _relative_difference(whole[row, start:end], out[row, :count])
            assert difference < NEAR, (
                f"decoding is not the forward pass: tokens {start} to {end - 1} of row {row}, in a "
                f"piece of {slots}, differ by {difference:.1e}; padding (segment 0) must change "
                "nothing that is kept"
            )
        done += np.array(counts)
    return (
        "decoding in pieces and token by token is the forward pass, also for rows that go on after "
        "padding"
    )


def _check_sharding(arch: Architecture, params: dict) -> str:
    """Check loss and gradients on four devices against those on one, if there are four."""
    if len(jax.devices()) < 4:
        return NOT_SHARDED
    # Four rows of 100 tokens.
    documents = [DOCUMENTS, DOCUMENTS[::-1], (100,), (64, 36)]
    batch = _batch(documents)

    def loss(params, batch):
        hidden = lm.forward(arch, params, {}, batch)[0]
        # Padding has the weight 0.
        weights = batch["segments"][..., None]
        return jnp.sum(jnp.sin(hidden) * weights)

    expected = jax.jit(jax.value_and_grad(loss))(params, batch)
    # The second mesh has more devices than there are key/value heads.
    for sizes in ({"data": 2, "fsdp": 2}, {"data": 1, "tensor": 4}):
        mesh = make_mesh(sizes, jax.devices()[:4])
        with jax.set_mesh(mesh):
            placed = _placed_on_mesh(arch, params, batch, mesh)
            actual = jax.jit(jax.value_and_grad(loss))(*placed)
        expected_leaves = jax.tree.leaves_with_path(expected)
        for (path, on_one), on_four in zip(expected_leaves, jax.tree.leaves(actual)):
            difference = _relative_difference(on_one, on_four)
            # The first key chooses between the loss, which has no further key, and the gradients.
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            name = name or "the loss"
            # A gradient sums over all tokens: more terms than an output has.
            assert difference < 10 * NEAR, (
                f"on {sizes} devices it is not what it is on one: {name} differs by "
                f"{difference:.1e}"
            )
    return "on four devices, by rows and by heads, it is what it is on one, gradients included"


def _placed_on_mesh(
    arch: Architecture,
    params: dict,
    batch: dict,
    mesh: Mesh,
) -> tuple[dict, dict]:
    """Return parameters and batch as training places them on a mesh."""
    places = shardings(lm.declare(arch), mesh)
    params = jax.device_put(params, places)
    batch = jax.device_put(batch, batch_sharding(mesh))
    return params, batch


def _with_cache(
    arch: Architecture,
    params: dict,
    batch: dict,
    cache: Cache,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Return hidden states of the next tokens, and the cache with these tokens in it."""
    hidden, out = lm.forward(arch, params, {}, batch, cache=cache)
    return hidden, out.cache


def _apply_block(
    arch: Architecture,
    params: dict,
    x: Float[Array, "B T D"],
    batch: dict,
) -> Float[Array, "B T D"]:
    """Return the residual stream after the only block."""
    # The first block of the first group's pattern, without the axis of its repeats.
    stacked = params["stack"]["0"]["0"]
    layer = jax.tree.map(lambda leaf: leaf[0], stacked)
    ctx = Context(batch["segments"], batch["positions"])
    block = arch.blocks[0]
    out, _, _ = lm.apply_block(arch, block, {"params": layer}, x, ctx)
    return out


def _random_activations(arch: Architecture, batch: dict) -> Float[Array, "B T D"]:
    """Return random activations [B,T,D] for a batch."""
    shape = (*batch["tokens"].shape, arch.width)
    random = np.random.default_rng(2)
    return jnp.asarray(random.normal(size=shape), jnp.float32)


def _batch(rows: list[tuple[int, ...]], length: int = 0) -> dict:
    """Return a batch of random tokens; row i holds documents of the lengths rows[i], then padding.

    Args:
      length: of a row; 0: that of the longest.
    """
    length = length or max(map(sum, rows))
    segments = np.zeros((len(rows), length), np.int32)
    for row, lengths in zip(segments, rows):
        numbers = np.arange(1, len(lengths) + 1)
        row[: sum(lengths)] = np.repeat(numbers, lengths)
    # [B,T]: the column at which each token's document begins.
    starts = np.zeros_like(segments)
    for row_starts, row in zip(starts, segments):
        row_starts[:] = [np.argmax(row == number) for number in row]
    positions = np.arange(length)[None] - starts
    random = np.random.default_rng(1)
    tokens = random.integers(0, VOCAB, segments.shape)
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "segments": jnp.asarray(segments, jnp.int32),
        "positions": jnp.asarray(positions, jnp.int32),
    }


def _random(shapes: dict) -> dict:
    """Return parameters none of which is zero.

    Those that start at zero or one (biases, norms) would hide a mistake.
    """
    random = np.random.default_rng(0)

    def leaf(path, shape):
        draw = random.normal(size=shape.shape)
        # A stacked matrix is [layers, ...inputs, output].
        fan_in = 1
        if shape.ndim > 2:
            fan_in = int(np.prod(shape.shape[1:-1]))
        values = draw * min(0.5, fan_in**-0.5)  # 0.5 for vectors, which have no fan-in
        if path[-1].key in ("scale", "skip"):  # parameters that start at one
            values = 1 + 0.2 * draw
        return jnp.asarray(values, shape.dtype)

    return jax.tree.map_with_path(leaf, shapes)


@jax.jit
def _difference(expected: ArrayLike, actual: ArrayLike) -> tuple[Array, Array]:
    """Return the largest absolute difference, and the largest absolute value expected."""
    difference = jnp.abs(expected - actual).max(initial=0.0)
    largest = jnp.abs(expected).max(initial=0.0)
    return difference, largest


def _relative_difference(expected: ArrayLike, actual: ArrayLike) -> float:
    """Return the largest difference over the largest value expected; 0 where both are equal."""
    # Through numpy, as the two arrays may lie on different devices.
    difference, largest = _difference(expected, np.asarray(actual))
    difference, largest = float(difference), float(largest)
    if difference:
        return difference / max(largest, 1e-30)
    # A nan or an infinity in both is no agreement.
    return 0.0 if np.isfinite(largest) else float("inf")
