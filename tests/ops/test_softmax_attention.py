"""Every attention kernel that runs here against the dense reference, and the choice of a kernel per device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.ops import cudnn_attention
from slmjax.ops import softmax_attention as ops
from slmjax.ops.softmax_attention import KernelChoice, attention, choose
from slmjax.ops.splash_attention import splash_attention


def _inputs(T, N, K, H, dtype=jnp.float32, B=2):
    random = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    return tuple(jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)


def _segments(T, *rows):
    """Rows of document lengths -> segments; what is left of a row is padding."""
    out = np.zeros((len(rows), T), np.int32)
    for row, lengths in zip(out, rows):
        numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        row[: len(numbers)] = numbers
    return jnp.array(out)


def _value_and_gradients(run, query, key, value, cotangent):
    out, pull = jax.vjp(run, query, key, value)
    return out, *pull(cotangent)


def _slow(query, key, value, segments, window):
    """Numpy, one query at a time, float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    B, T, N, H = query.shape
    group, out = N // key.shape[2], np.zeros(query.shape)
    for b in range(B):
        for t in range(T):
            seen = [
                s
                for s in range(max(0, t + 1 - window), t + 1)
                if segments[b, s] == segments[b, t] != 0
            ]
            for n in range(N if seen else 0):
                scores = key[b, seen, n // group] @ query[b, t, n] / H**0.5
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights @ value[b, seen, n // group] / weights.sum()
    return out


@pytest.mark.parametrize("N, K, window", [(2, 2, 0), (4, 2, 0), (3, 1, 3), (2, 1, 1)])
def test_the_reference_is_attention(N, K, window):
    T = 12
    query, key, value, _ = _inputs(T, N, K, 8)
    segments = _segments(T, [5, 4], [12])
    out = jax.jit(functools.partial(ops.reference, window=window))(
        query, key, value, segments, segments
    )
    np.testing.assert_allclose(out, _slow(query, key, value, segments, window or T), atol=2e-6)


# T below a block, a multiple, no multiple; several blocks in a prefix group, with a last group that is shorter.
@pytest.mark.parametrize(
    "T, block, window, dtype, tolerance",
    [
        (7, 8, 3, jnp.float32, 3e-6),
        (32, 16, 0, jnp.float32, 3e-6),
        (50, 8, 0, jnp.float32, 3e-6),
        (50, 8, 11, jnp.float32, 3e-6),
        (50, 8, 1, jnp.float32, 3e-6),
        (50, 8, 0, jnp.bfloat16, 3e-2),
        (50, 8, 11, jnp.bfloat16, 3e-2),
    ],
    ids=[
        "below",
        "multiple",
        "no multiple",
        "window",
        "itself alone",
        "bfloat16",
        "window, bfloat16",
    ],
)
def test_blockwise_is_the_reference_in_value_and_gradients(
    T, block, window, dtype, tolerance, monkeypatch
):
    """Tolerances are a few roundings of sums of order one: 2^-24 and 2^-8."""
    monkeypatch.setattr(ops, "BLOCK", block)
    monkeypatch.setattr(ops, "GROUPS", 2)
    inputs = _inputs(T, 4, 2, 8, dtype)
    segments = _segments(T, [T // 3, T // 2], [T])
    runs = (
        functools.partial(run, query_segments=segments, key_segments=segments, window=window)
        for run in (ops.reference, ops.blockwise)
    )
    expected, found = (
        jax.jit(functools.partial(_value_and_gradients, run))(*inputs) for run in runs
    )
    for one, other in zip(expected, found):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_allclose(
            np.float32(one), np.float32(other), atol=tolerance, rtol=tolerance
        )


@functools.cache
def _both():
    """Reference and blockwise with blocks of five queries, compiled once."""
    query, key, value, _ = _inputs(24, 2, 1, 4, B=1)

    def run(segments):
        return ops.reference(query, key, value, segments, segments), ops.blockwise(
            query, key, value, segments, segments
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "BLOCK", 5)
        return jax.jit(run).lower(_segments(24, [])).compile()


@given(st.lists(st.integers(1, 9), max_size=6))
def test_blockwise_is_the_reference_for_any_documents(lengths):
    kept = [n for n, end in zip(lengths, np.cumsum(lengths)) if end <= 24]
    expected, found = _both()(_segments(24, kept))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    "kernel, block", [("reference", 512), ("blockwise", 512), ("blockwise", 3)]
)
def test_queries_at_given_slots_of_a_longer_cache_see_what_the_whole_row_sees(
    kernel, block, monkeypatch
):
    """Decode: row 0 asks for its slots 5..9 and row 1 for its slots 2..6; the slots behind them hold rubbish of the same segment."""
    monkeypatch.setattr(ops, "BLOCK", block)
    T, first, count = 16, np.array([5, 2]), 5
    query, key, value, _ = _inputs(T, 4, 2, 8)
    segments = _segments(T, [4, 12], [16])
    whole = jax.jit(ops.reference)(query, key, value, segments, segments)
    slots = first[:, None] + np.arange(count)
    rows = np.arange(2)[:, None]
    query, key, value, segments = (np.asarray(x) for x in (query, key, value, segments))
    later = np.arange(T)[None, :, None, None] > slots[:, -1:, None, None]
    asked = [
        jnp.asarray(x)
        for x in (query[rows, slots], np.where(later, 1e4, key), np.where(later, 1e4, value))
    ]
    found = jax.jit(functools.partial(attention, kernel=kernel))(
        *asked,
        query_segments=jnp.asarray(segments[rows, slots]),
        key_segments=jnp.asarray(segments),
        query_index=jnp.asarray(slots),
    )
    np.testing.assert_allclose(found, whole[rows, slots], atol=2e-6)


@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
def test_padding_comes_out_as_zero_and_gives_no_gradient(kernel):
    T = 10
    inputs = _inputs(T, 2, 1, 4)
    segments = _segments(T, [6], [])
    run = functools.partial(
        attention, query_segments=segments, key_segments=segments, kernel=kernel
    )
    for x in jax.jit(functools.partial(_value_and_gradients, run))(*inputs):
        assert np.all(np.isfinite(x))
        assert np.all(np.asarray(x)[np.asarray(segments) == 0] == 0)


def test_blockwise_never_holds_the_scores_of_a_whole_row(monkeypatch):
    """The largest array of the compiled gradient is far below B x N x T x T scores."""
    T, N = 2048, 4
    monkeypatch.setattr(ops, "BLOCK", 64)
    monkeypatch.setattr(ops, "GROUPS", 2)
    segments = jnp.ones((1, T), jnp.int32)

    def program(run):
        loss = lambda *x: jnp.sum(run(*x, segments, segments))
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in _inputs(T, N, N, 8, B=1)[:3]]
        return (
            jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            .lower(*shapes)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    scores = N * T * T * 4
    assert program(ops.reference) > scores
    assert program(ops.blockwise) < scores / 4


@pytest.mark.parametrize("T, N, K, window", [(128, 2, 2, 0), (256, 4, 2, 0), (256, 2, 1, 37)])
def test_splash_is_the_reference_in_value_and_gradients(T, N, K, window):
    """Interpreted, on the CPU; padding stands at the end, as the row plan puts it."""
    *inputs, cotangent = _inputs(T, N, K, 64, B=2)
    segments = _segments(T, [T // 2, T // 4, 20], [T])
    cotangent = jnp.where((segments != 0)[:, :, None, None], cotangent, 0.0)
    splash = functools.partial(splash_attention, segments=segments, window=window, interpret=True)
    plain = functools.partial(
        ops.reference, query_segments=segments, key_segments=segments, window=window
    )
    expected, found = (
        jax.jit(functools.partial(_value_and_gradients, run))(*inputs, cotangent)
        for run in (plain, splash)
    )
    for one, other in zip(expected, found):
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_splash_refuses_a_length_that_its_blocks_do_not_divide():
    query, key, value, _ = _inputs(100, 2, 1, 8)
    with pytest.raises(ValueError, match="multiple of 128"):
        splash_attention(query, key, value, jnp.ones((2, 100), jnp.int32))


@given(st.lists(st.lists(st.integers(1, 6), max_size=7), min_size=1, max_size=3))
def test_the_segment_list_says_where_each_document_lies(rows):
    """Longest first; padding belongs to a row's last document, and an empty row is one document."""
    T, most = 20, 4
    rows = [[n for n, end in zip(row, np.cumsum(row)) if end <= T][:most] for row in rows]
    lengths, starts = cudnn_attention.segment_list(_segments(T, *rows), most * len(rows))
    expected = []
    for number, row in enumerate(rows):
        edges = [0, *np.cumsum(row).tolist()][: max(1, len(row))]
        expected += [
            (end - start, number * T + start) for start, end in zip(edges, [*edges[1:], T])
        ]
    found = list(zip(lengths.tolist(), starts.tolist()))
    assert sorted(found[: len(expected)]) == sorted(expected)
    assert found[len(expected) :] == [(0, len(rows) * T)] * (most * len(rows) - len(expected))
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)


def _of_list(window, q, k, v, lengths, starts):
    """What cuDNN computes from the list, and statistics of the shape that JAX gives them; tokens of no listed segment are not numbers."""
    B, T = q.shape[:2]
    token = jnp.arange(B * T)[None]
    inside = (token >= starts[:, None]) & (token < (starts + lengths)[:, None])
    segments = jnp.where(inside.any(0), inside.argmax(0) + 1, 0).reshape(B, T)
    out = ops.reference(q, k, v, segments, segments, window=window)
    return jnp.where((segments > 0)[:, :, None, None], out, jnp.nan), jnp.zeros(
        (len(lengths), q.shape[2], T)
    )


@pytest.mark.parametrize(
    "dtype, near", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(
    "places, window", [(6, 0), (7, 0), (18, 5)], ids=lambda number: str(number)
)
def test_the_packed_call_computes_every_segment(monkeypatch, places, window, dtype, near):
    """Both primitives are played by the reference; 6 documents in two rows, with as many places and with more."""

    def backward(window, q, k, v, lengths, starts, out, statistics, gradient):
        assert statistics.shape[0] == len(lengths)
        return jax.vjp(lambda *qkv: _of_list(window, *qkv, lengths, starts)[0], q, k, v)[1](
            gradient
        )

    monkeypatch.setattr(cudnn_attention, "_bind_forward", _of_list)
    monkeypatch.setattr(cudnn_attention, "_bind_backward", backward)
    T = 24
    segments = _segments(T, (7, 3, 6, 4, 2), (24,))
    query, key, value, cotangent = _inputs(T, 4, 2, 8, dtype)
    cotangent = jnp.where((segments > 0)[:, :, None, None], cotangent, 0)

    def run(kernel):
        call = functools.partial(
            attention,
            query_segments=segments,
            key_segments=segments,
            kernel=kernel,
            places=places,
            window=window,
        )
        return jax.jit(functools.partial(_value_and_gradients, call))(query, key, value, cotangent)

    expected, found = run("reference"), run("cudnn")
    real = np.asarray(segments > 0)
    np.testing.assert_allclose(np.float32(found[0])[real], np.float32(expected[0])[real], atol=near)
    for one, other in zip(expected[1:], found[1:]):
        np.testing.assert_allclose(np.float32(other), np.float32(one), atol=near)


# One line for each row of the table in ops/attention.choose.
@pytest.mark.parametrize(
    "device, arguments, kernel, reason",
    [
        ("TPU v5e", ("tpu", None, "bfloat16", 128), "splash", "TPU"),
        ("CPU", ("cpu", None, "float32", 64), "blockwise", "cpu"),
        ("T4", ("gpu", 7.5, "float32", 64), "blockwise", "7.5"),
        ("unknown GPU", ("gpu", None, "bfloat16", 64), "blockwise", "9.0"),
        ("A100", ("gpu", 8.0, "bfloat16", 64), "blockwise", "8.0"),
        ("H100", ("gpu", 9.0, "bfloat16", 128), "cudnn", "9.0"),
        ("B200", ("gpu", 10.0, "bfloat16", 128), "cudnn", "10.0"),
        ("H100 in float32", ("gpu", 9.0, "float32", 128), "blockwise", "float32"),
        ("H100, head size 256", ("gpu", 9.0, "bfloat16", 256), "blockwise", "256"),
        ("H100, head size 36", ("gpu", 9.0, "bfloat16", 36), "blockwise", "36"),
        ("H100, deterministic", ("gpu", 9.0, "bfloat16", 128, True), "blockwise", "deterministic"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kernel_of_a_device(device, arguments, kernel, reason):
    chosen = choose(*arguments)
    assert isinstance(chosen, KernelChoice) and chosen.kernel == kernel
    assert reason in chosen.reason


def test_an_unknown_kernel_is_refused_by_name():
    query, key, value, _ = _inputs(4, 2, 1, 4)
    segments = jnp.ones((2, 4), jnp.int32)
    with pytest.raises(ValueError, match="no kernel 'flash'"):
        attention(query, key, value, query_segments=segments, key_segments=segments, kernel="flash")
