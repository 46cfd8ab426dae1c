"""The gated linear recurrence in chunks and in steps, against one token after the other in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.ops.recurrence import LEAST, Memory, empty_memory, recurrence, span

B, G, H, K, V = 2, 2, 4, 8, 6
KINDS = [
    (decay, erase) for decay in ("number", "channels") for erase in (None, "number", "channels")
]


def reference(query, key, value, decay, erase, segments, state, segment):
    """The recurrence as the module's docstring has it, one token after the other, with an ordinary if for documents and padding."""
    repeat = value.shape[2] // query.shape[2]

    def wide(gate):
        return gate[..., None] if gate.ndim == 2 else gate

    def token(carry, xs):
        state, before = carry
        q, k, v, d, e, now = xs
        q, k = (jnp.repeat(x, repeat, axis=1) for x in (q, k))
        real = now != 0
        old = (
            jnp.where((now == before)[:, None, None, None], state, 0.0)
            * jnp.exp(wide(jnp.maximum(d, LEAST)))[..., None]
        )
        told = v if e is None else v - jnp.einsum("bhkv,bhk->bhv", old, wide(e) * k)
        new = old + k[..., None] * told[..., None, :]
        out = jnp.where(real[:, None, None], jnp.einsum("bhkv,bhk->bhv", new, q), 0.0)
        return (jnp.where(real[:, None, None, None], new, state), jnp.where(real, now, before)), out

    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (query, key, value, decay, erase, segments))
    (state, segment), out = jax.lax.scan(token, (state, segment), xs)
    return jnp.moveaxis(out, 0, 1), state, segment


def inputs(T, kind, seed=0, strength=1.0):
    """Arrays in float64: keys of length one, as mixers have them, decays from almost none to all, erasing between 0 and 1."""
    random = np.random.default_rng(seed)
    decays, erases = (None if of is None else () if of == "number" else (K,) for of in kind)
    query, key = random.normal(size=(2, B, T, G, K))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    decay = -np.exp(random.normal(-2, 2 * strength, (B, T, H, *decays)))
    erase = None if erases is None else 1 / (1 + np.exp(-random.normal(0, 2, (B, T, H, *erases))))
    return query, key, random.normal(size=(B, T, H, V)), decay, erase


def documents(T, seed):
    """Segments with edges at random places, some documents of one token, and padding behind and in between."""
    random = np.random.default_rng(seed)
    segments = np.cumsum(random.random((B, T)) < 0.08, axis=1) + 1
    segments[:, T - T // 9 :] = 0
    return np.where(random.random((B, T)) < 0.05, 0, segments).astype(np.int32)


def before(seed=3):
    """A memory that comes in: the first row's is of the row's first document, the second's of another."""
    return np.random.default_rng(seed).normal(size=(B, H, K, V)), np.array([1, 99], np.int32)


def exact(arrays, segments, memory=None):
    state, segment = memory or (np.zeros((B, H, K, V)), np.zeros(B, np.int32))
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray,
            jax.jit(reference)(*map(_array, arrays), segments, jnp.asarray(state), segment),
        )


def run(arrays, segments, memory=None, dtype=jnp.float32, chunk=16):
    query, key, value, decay, erase = arrays
    short = (jnp.asarray(x, dtype) for x in (query, key, value))
    gates = (
        jnp.asarray(decay, jnp.float32),
        None if erase is None else jnp.asarray(erase, jnp.float32),
    )
    given = (
        None
        if memory is None
        else Memory(jnp.asarray(memory[0], jnp.float32), jnp.asarray(memory[1]))
    )
    return _run(*short, *gates, jnp.asarray(segments), given, chunk)


@functools.partial(jax.jit, static_argnums=7)
def _run(query, key, value, decay, erase, segments, memory, chunk):
    out, after = recurrence(
        query, key, value, decay, erase=erase, segments=segments, memory=memory, chunk=chunk
    )
    return out, after.state, after.segment


def _array(x):
    return None if x is None else jnp.asarray(x)


def assert_near(found, expected, tolerance):
    """Relative to the largest magnitude: sums over keys cancel."""
    for one, other in zip(found, expected, strict=True):
        assert np.abs(np.float64(one) - other).max() <= tolerance * max(1.0, np.abs(other).max())


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("T", "chunk"), [(150, 64), (48, 16)])
def test_chunks_are_the_recurrence_with_documents_padding_and_a_memory_that_comes_in(
    kind, T, chunk
):
    arrays, segments = inputs(T, kind), documents(T, 1)
    assert_near(
        run(arrays, segments, before(), chunk=chunk), exact(arrays, segments, before()), 2e-5
    )
    assert_near(run(arrays, segments, chunk=chunk), exact(arrays, segments), 2e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_of_every_argument_are_those_of_the_recurrence(kind):
    T = 70
    arrays, segments, (state, segment) = inputs(T, kind), documents(T, 2), before()
    random = np.random.default_rng(5)
    of_out, of_state = random.normal(size=(B, T, H, V)), random.normal(size=(B, H, K, V))

    def loss(f, arrays, state, weights):
        out, after, *_ = f(arrays, state)
        return (out * weights[0]).sum() + (after * weights[1]).sum()

    def plain(arrays, state):
        return reference(*arrays, segments, state, segment)

    def ours(arrays, state):
        query, key, value, decay, erase = arrays
        memory = Memory(state, jnp.asarray(segment))
        out, after = recurrence(
            query,
            key,
            value,
            decay,
            erase=erase,
            segments=jnp.asarray(segments),
            memory=memory,
            chunk=32,
        )
        return out, after.state

    with jax.enable_x64(True):
        weights = jnp.asarray(of_out), jnp.asarray(of_state)
        slow = jax.jit(jax.grad(functools.partial(loss, plain), argnums=(0, 1)))(
            tuple(map(_array, arrays)), jnp.asarray(state), weights
        )
        expected = [np.asarray(leaf) for leaf in jax.tree.leaves(slow)]
    short = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (arrays, state, (of_out, of_state)))
    found = jax.jit(jax.grad(functools.partial(loss, ours), argnums=(0, 1)))(*short)
    assert_near(jax.tree.leaves(found), expected, 2e-5)


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    edges=st.lists(st.integers(1, 39), max_size=12),
    strength=st.sampled_from([0.0, 1.0, 3.0]),
    least=st.sampled_from([None, -1e4, -1e30]),
)
def test_any_place_of_edges_and_extreme_gates(seed, kind, edges, strength, least):
    """On and off the edges of chunks of 16, next to each other; decays of almost nothing, of everything, and far below float32's exp."""
    T = 40
    segments = np.broadcast_to(
        np.searchsorted(np.unique(edges), np.arange(T), "right") + 1, (B, T)
    ).astype(np.int32)
    query, key, value, decay, erase = inputs(T, kind, seed, strength)
    if least is not None:
        decay = np.where(np.random.default_rng(seed).random(decay.shape) < 0.2, least, decay)
    arrays = query, key, value, decay, erase
    assert_near(run(arrays, segments), exact(arrays, segments), 5e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_steps_and_pieces_with_the_memory_between_are_the_whole(kind):
    T = 37
    arrays, segments = inputs(T, kind), documents(T, 4)
    whole = run(arrays, segments, before())
    for edges in (range(T + 1), (0, 5, 6, 30, T)):
        memory, outs = before(), []
        for start, stop in itertools.pairwise(edges):
            part = slice(start, stop)
            out, *memory = run(
                [None if x is None else x[:, part] for x in arrays], segments[:, part], memory
            )
            outs.append(out)
        assert_near((np.concatenate(outs, axis=1), *memory), jax.tree.map(np.float64, whole), 1e-5)


def test_a_packed_row_is_each_document_alone():
    arrays = inputs(64, ("channels", "number"))
    segments = np.repeat(np.array([[1, 2, 2, 3]] * B, np.int32), 16, axis=1)
    packed, state, _ = run(arrays, segments)
    for number, part in ((1, slice(0, 16)), (2, slice(16, 48)), (3, slice(48, 64))):
        alone, own, _ = run(
            [x[:, part] for x in arrays], np.full((B, part.stop - part.start), number, np.int32)
        )
        assert_near((packed[:, part],), (np.float64(alone),), 1e-6)
    assert_near((state,), (np.float64(own),), 1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_output_or_gradient_sees_a_later_token_or_another_document(kind):
    T, at = 48, 29
    segments = np.where(np.arange(T) < 20, 1, 2)[None].repeat(B, 0).astype(np.int32)
    query, key, value, decay, erase = (
        None if x is None else jnp.asarray(x, jnp.float32) for x in inputs(T, kind)
    )

    def one(key, value, decay, erase):
        out, _ = recurrence(
            query, key, value, decay, erase=erase, segments=jnp.asarray(segments), chunk=16
        )
        return out[:, at].sum()

    of = (0, 1, 2) if erase is None else (0, 1, 2, 3)
    for gradient in jax.jit(jax.grad(one, argnums=of))(key, value, decay, erase):
        sizes = np.abs(gradient).reshape(B, T, -1).sum(-1)
        assert (
            not sizes[:, :20].any() and not sizes[:, at + 1 :].any() and sizes[:, 21 : at + 1].all()
        )


def test_decays_that_are_the_same_in_every_channel_are_one_number_and_erasing_nothing_is_no_erase():
    query, key, value, decay, erase = inputs(50, ("number", "number"))
    segments = documents(50, 6)
    gated = run((query, key, value, decay, erase), segments)
    tied = run(
        (query, key, value, np.repeat(decay[..., None], K, -1), np.repeat(erase[..., None], K, -1)),
        segments,
    )
    assert_near(tied, jax.tree.map(np.float64, gated), 1e-5)
    assert_near(
        run((query, key, value, decay, 0 * erase), segments),
        jax.tree.map(np.float64, run((query, key, value, decay, None), segments)),
        1e-5,
    )


def test_mamba_2_is_the_recurrence_with_its_step_sizes_in_values_and_decays():
    """y_t = C_t . h_t, h_t = exp(dt A) h_(t-1) + dt B x: as the sum over all pairs that its paper calls the dual form (section 3)."""
    random, T = np.random.default_rng(0), 40
    B_, C = random.normal(size=(2, B, T, G, K))
    x, dt, A = (
        random.normal(size=(B, T, H, V)),
        random.uniform(0.01, 0.5, (B, T, H)),
        -random.uniform(1, 16, H),
    )
    total = np.cumsum(dt * A, axis=1)
    pairs = (
        np.exp(np.minimum(total[:, :, None] - total[:, None], 0))
        * np.tril(np.ones((T, T)))[:, :, None]
    )
    scores = np.einsum("bigk,bjgk->bijg", C, B_).repeat(H // G, axis=-1)
    expected = np.einsum("bijh,bijh,bjh,bjhv->bihv", scores, pairs, dt, x)
    assert_near(
        run((C, B_, dt[..., None] * x, dt * A, None), np.ones((B, T), np.int32))[:1],
        [expected],
        2e-5,
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_in_bfloat16_values_are_near_and_gradients_finite_also_under_extreme_gates(kind):
    T = 64
    arrays, segments = inputs(T, kind, strength=2.0), documents(T, 8)
    found, expected = run(arrays, segments, dtype=jnp.bfloat16, chunk=32), exact(arrays, segments)
    assert found[0].dtype == jnp.bfloat16 and found[1].dtype == jnp.float32
    for one, other in zip(found[:2], expected):
        assert np.linalg.norm(np.float64(one) - other) < 2e-2 * np.linalg.norm(other)

    def loss(query, key, value, decay, erase):
        out, after = recurrence(
            query, key, value, decay, erase=erase, segments=jnp.asarray(segments), chunk=32
        )
        return jnp.square(out.astype(jnp.float32)).sum() + jnp.square(after.state).sum()

    query, key, value, decay, erase = arrays
    short = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    gates = jnp.asarray(
        np.where(np.arange(T)[:, None] % 5, -1e-6, -1e4) * np.ones((B, T, H)), jnp.float32
    )
    gates = jnp.broadcast_to(gates[..., None], (B, T, H, K)) if decay.ndim == 4 else gates
    of = (0, 1, 2, 3) if erase is None else (0, 1, 2, 3, 4)
    gradients = jax.jit(jax.grad(loss, argnums=of))(
        *short, gates, None if erase is None else jnp.ones_like(erase, jnp.float32)
    )
    assert all(np.isfinite(np.float32(gradient)).all() for gradient in gradients)


def test_the_backward_pass_keeps_the_arguments_only_and_walks_over_chunks_not_tokens():
    T = 256
    query, key, value, decay, erase = (
        jnp.asarray(x, jnp.float32) for x in inputs(T, ("number", "number"))
    )
    segments = jnp.ones((B, T), jnp.int32)

    def of(*arrays):
        return recurrence(*arrays[:4], erase=arrays[4], segments=segments)[0]

    arguments = (query, key, value, decay, erase)
    kept = jax.eval_shape(lambda *a: jax.vjp(of, *a)[1], *arguments)
    size = sum(leaf.size for leaf in jax.tree.leaves(kept))
    assert size <= 1.1 * (sum(x.size for x in arguments) + segments.size + B * H * K * V)
    text = str(jax.make_jaxpr(jax.grad(lambda *a: of(*a).sum()))(*arguments))
    assert f"length={T // 64}" in text and f"length={T}" not in text


@pytest.mark.parametrize("kind", [("number", None), ("channels", "number")], ids=str)
def test_a_span_is_a_linear_map_of_the_memory_that_comes_in(kind):
    T = 40
    (query, key, value, decay, erase), segments, (state, segment) = (
        inputs(T, kind),
        documents(T, 9),
        before(),
    )
    single = [
        None if x is None else jnp.asarray(x, jnp.float32)
        for x in (query, key, value, decay, erase)
    ]
    made = span(
        *single[:4],
        erase=single[4],
        segments=jnp.asarray(segments),
        segment=jnp.asarray(segment),
        chunk=16,
    )
    out = made.out + np.einsum("bhkv,bthk->bthv", state, made.readout)
    after = made.state + np.einsum("bhkl,bhlv->bhkv", made.transition, state)
    assert_near(
        (out, after), exact((query, key, value, decay, erase), segments, (state, segment))[:2], 2e-5
    )


def test_an_empty_memory_is_none():
    arrays, segments = inputs(20, ("number", "number")), documents(20, 1)
    for one, other in zip(run(arrays, segments), run(arrays, segments, empty_memory(B, H, K, V))):
        np.testing.assert_array_equal(one, other)
