"""The model as a function: what a token may see, and that every way of running it is the same function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.pattern import parse_block
from slmjax.ops import softmax_attention as ops
from slmjax.ops.cross_entropy import token_log_probs
from slmjax.testing import _with_cache

ARCH = Architecture(
    64, 32, 4, 2, 8, 48, (((Block(), parse_block("attention rope=False")), 2),), unroll=False
)
EVERY_OPTION = dataclasses.replace(ARCH, qk_norm=True, output_gate=True, tied=False)
T = 24


@functools.cache
def _params(arch: Architecture) -> dict:
    """Random leaves: unlike lm.init's, no norm's scale is 1."""
    random = np.random.default_rng(0)

    def leaf(path, shape):
        draw = random.normal(size=shape.shape).astype(np.float32)
        return jnp.asarray(1 + 0.2 * draw if path[-1].key == "scale" else 0.2 * draw)

    return jax.tree.map_with_path(
        leaf, jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
    )


def _batch(rows: list[list[list[int]]]) -> dict:
    """Rows of documents (lists of tokens) -> tokens, targets, segments, positions, weights; a document's last token has no target."""
    out = {
        name: np.zeros((len(rows), T), np.int32)
        for name in ("tokens", "targets", "segments", "positions", "weights")
    }
    for r, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents, 1):
            span = slice(start, start + len(document))
            out["tokens"][r, span], out["segments"][r, span], out["positions"][r, span] = (
                document,
                number,
                range(len(document)),
            )
            out["targets"][r, span], out["weights"][r, span] = (
                [*document[1:], 0],
                [1] * (len(document) - 1) + [0],
            )
            start += len(document)
    return {
        name: jnp.asarray(array, jnp.float32 if name == "weights" else jnp.int32)
        for name, array in out.items()
    }


def _document(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 64, length).tolist()


@functools.cache
def _hidden_of(arch: Architecture):
    return jax.jit(lambda params, batch: lm.forward(arch, params, {}, batch)[0])


def _losses(arch: Architecture, params: dict, batch: dict):
    """Nats of each row."""
    hidden = lm.forward(arch, params, {}, batch)[0]
    log_p, _ = token_log_probs(hidden, lm.head(arch, params), batch["targets"], chunks=2)
    return -(log_p * batch["weights"]).sum(1)


@functools.cache
def _value_and_gradients_of(arch: Architecture):
    return jax.jit(jax.value_and_grad(lambda params, batch: _losses(arch, params, batch).sum()))


@pytest.mark.parametrize("kernel, block", [("reference", 512), ("blockwise", 5)])
def test_no_token_sees_a_later_one_or_another_document(kernel, block, monkeypatch):
    """Every position has a token of its own, so the embedding's gradient by rows says what a position has seen: exactly zero elsewhere."""
    monkeypatch.setattr(ops, "BLOCK", block)
    arch = dataclasses.replace(EVERY_OPTION, attention=kernel)
    documents = [list(range(10)), list(range(10, 19))]
    batch, params = _batch([documents]), _params(EVERY_OPTION)

    @jax.jit
    def seen(position):
        gradient = jax.grad(
            lambda p: jnp.sum(
                jnp.sin(lm.logits(arch, p, lm.forward(arch, p, {}, batch)[0])[0, position])
            )
        )(params)
        return jnp.abs(gradient["embedding"]).max(1)

    for document in documents:
        for position in (document[0], document[4], document[-1]):
            found = np.asarray(seen(position))
            visible = np.zeros(64, bool)
            visible[document[0] : position + 1] = True
            assert np.all(found[visible] > 0)
            assert np.all(found[~visible] == 0)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=4), st.integers(0, 2**16))
def test_packed_documents_are_as_if_alone(lengths, seed):
    """One row with all documents, and one row for each: hidden states and loss agree."""
    lengths = [n for n, end in zip(lengths, np.cumsum(lengths)) if end <= T]
    documents = [_document(n, seed + i) for i, n in enumerate(lengths)]
    batch = _batch([documents, *([d] for d in documents), *([[]] * (4 - len(documents)))])
    hidden = np.asarray(_hidden_of(EVERY_OPTION)(_params(EVERY_OPTION), batch))
    start = 0
    for row, document in enumerate(documents, 1):
        np.testing.assert_allclose(
            hidden[0, start : start + len(document)], hidden[row, : len(document)], atol=2e-5
        )
        start += len(document)


def test_packed_documents_train_as_if_alone():
    """The gradient of a packed row is that of its documents, each alone in a row."""
    documents = [_document(n, n) for n in (5, 7, 9)]
    arch, params = EVERY_OPTION, _params(EVERY_OPTION)
    packed, alone = (
        _value_and_gradients_of(arch)(params, b)
        for b in (_batch([documents, [], []]), _batch([[d] for d in documents]))
    )
    assert float(packed[0]) == pytest.approx(float(alone[0]), rel=1e-6)
    _close(packed[1], alone[1], 5e-6)


def test_scanned_is_unrolled_in_value_and_gradients():
    """The same function up to the order of sums: 1e-6 of each parameter's gradient, for a stack of two groups."""
    arch = dataclasses.replace(
        EVERY_OPTION, stack=(((Block(),), 2), ((parse_block("attention rope=False"),), 1))
    )
    params, batch = _params(arch), _batch([[_document(11, 1), _document(9, 2)], [_document(24, 3)]])
    scanned = _value_and_gradients_of(arch)(params, batch)
    unrolled = _value_and_gradients_of(dataclasses.replace(arch, unroll=True))(params, batch)
    assert float(scanned[0]) == pytest.approx(float(unrolled[0]), rel=1e-6)
    _close(unrolled[1], scanned[1], 1e-6)


def test_remat_changes_the_work_and_nothing_else():
    """Products in the program rise as less is kept; value and gradients stay."""
    batch, params = _batch([[_document(11, 1), _document(9, 2)]]), _params(ARCH)
    expected = _value_and_gradients_of(ARCH)(params, batch)
    value, gradients = _value_and_gradients_of(dataclasses.replace(ARCH, remat="query, mixed"))(
        params, batch
    )
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-6)
    _close(expected[1], gradients, 1e-6)
    for unroll in (True, False):
        archs = {
            name: dataclasses.replace(ARCH, unroll=unroll, remat=name)
            for name in ("none", "dots", "query,mixed", "full")
        }
        programs = {
            name: str(_value_and_gradients_of(arch).trace(params, batch).jaxpr)
            for name, arch in archs.items()
        }
        products = {name: program.count("dot_general") for name, program in programs.items()}
        assert products["none"] < products["query,mixed"] < products["full"]
        assert products["dots"] < products["full"]


def test_remat_of_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match=r"remat is 'query,qerys'.*query, key, value, mixed, gate, up"
    ):
        jax.eval_shape(
            _hidden_of(dataclasses.replace(ARCH, remat="query,qerys")),
            _params(ARCH),
            _batch([[[1]]]),
        )


def test_prefill_in_pieces_and_decode_are_the_full_forward_for_prompts_of_unequal_length():
    """Rows of 11 and 6 tokens: two padded prefills of 8 slots, then tokens one by one; each row goes on where it stopped."""
    arch, params = EVERY_OPTION, _params(EVERY_OPTION)
    documents = [_document(T, 1), _document(T, 2)]
    whole = np.asarray(_hidden_of(arch)(params, _batch([[d] for d in documents])))
    done, cache = [0, 0], lm.init_cache(arch, 2, T + 8)
    step = jax.jit(lambda params, batch, cache: _with_cache(arch, params, batch, cache))
    for width, counts in ((8, (8, 6)), (8, (3, 0)), (1, (1, 1)), (1, (0, 1)), (1, (1, 1))):
        batch = {
            name: np.zeros((2, width), np.int32) for name in ("tokens", "segments", "positions")
        }
        for row, count in enumerate(counts):
            span = slice(done[row], done[row] + count)
            batch["tokens"][row, :count], batch["segments"][row, :count] = documents[row][span], 1
            batch["positions"][row, :count] = range(span.start, span.stop)
        hidden, cache = step(params, {k: jnp.asarray(v) for k, v in batch.items()}, cache)
        for row, count in enumerate(counts):
            np.testing.assert_allclose(
                hidden[row, :count], whole[row, done[row] : done[row] + count], atol=2e-5
            )
            done[row] += count
    np.testing.assert_array_equal(cache.length, done)


def test_positions_matter_to_blocks_with_rope_only():
    batch = _batch([[_document(T, 1)]])
    moved = batch | {"positions": batch["positions"][:, ::-1] * 2}
    for rope in (False, True):
        arch = dataclasses.replace(ARCH, stack=(((parse_block(f"attention rope={rope}"),), 2),))
        one, other = (_hidden_of(arch)(_params(arch), b) for b in (batch, moved))
        assert bool(jnp.all(one == other)) is not rope


def test_an_output_gate_of_zeros_halves_the_mixer():
    arch = dataclasses.replace(ARCH, stack=(((Block(),), 2),))
    gated = dataclasses.replace(arch, output_gate=True)
    plain, params, batch = _params(arch), _params(gated), _batch([[_document(T, 1)]])
    mixer = params["stack"]["0"]["0"]["mixer"]
    halved = {
        **plain["stack"]["0"]["0"]["mixer"],
        "out": plain["stack"]["0"]["0"]["mixer"]["out"] / 2,
    }
    params = _with_mixer(
        plain, halved | {"gate": jnp.zeros_like(mixer["gate"]), "out": 2 * halved["out"]}
    )
    expected = _hidden_of(arch)(_with_mixer(plain, halved), batch)
    np.testing.assert_allclose(_hidden_of(gated)(params, batch), expected, atol=1e-6)


def test_qk_norm_makes_attention_blind_to_the_scale_of_queries_and_keys():
    batch = _batch([[_document(T, 1)]])
    for qk_norm in (True, False):
        arch = dataclasses.replace(ARCH, stack=(((Block(),), 2),), qk_norm=qk_norm, norm_eps=1e-12)
        params = _params(arch)
        mixer = params["stack"]["0"]["0"]["mixer"]
        scaled = _with_mixer(params, mixer | {"query": 3 * mixer["query"], "key": 5 * mixer["key"]})
        change = np.abs(_hidden_of(arch)(params, batch) - _hidden_of(arch)(scaled, batch)).max()
        assert bool(change < 2e-5) is qk_norm


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not():
    hidden = jax.random.normal(jax.random.key(1), (1, 3, 32))
    for arch, matrix in (
        (ARCH, _params(ARCH)["embedding"].T),
        (EVERY_OPTION, _params(EVERY_OPTION)["head"]),
    ):
        np.testing.assert_allclose(
            lm.logits(arch, _params(arch), hidden), hidden @ matrix, atol=1e-6
        )
    assert "head" not in _params(ARCH)


def test_compute_in_bfloat16_keeps_float32_parameters_and_logits():
    arch = dataclasses.replace(ARCH, compute="bfloat16")
    params, batch = _params(ARCH), _batch([[_document(T, 1)]])
    hidden = _hidden_of(arch)(params, batch)
    assert hidden.dtype == jnp.bfloat16
    assert {
        leaf.dtype.name
        for leaf in jax.tree.leaves(
            jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
        )
    } == {"float32"}
    assert lm.logits(arch, params, hidden).dtype == jnp.float32
    wide = np.asarray(_hidden_of(ARCH)(params, batch))
    assert np.linalg.norm(np.float32(hidden) - wide) < 0.03 * np.linalg.norm(wide)


def test_initial_deviations_are_the_documented_ones_times_their_multipliers():
    """Within 5 %: a matrix of 64 x 64 has 4096 draws, whose deviation is known to 1.1 %."""
    arch = Architecture(512, 64, 2, 2, 32, 128, (((Block(),), 2),), tied=False)
    scaled = dataclasses.replace(
        arch, init_scales=(("embedding", 3.0), ("head", 0.5), ("matrix", 2.0))
    )
    residual = (2 * 2) ** -0.5
    expected = {
        "query": 1 / 8,
        "key": 1 / 8,
        "value": 1 / 8,
        "out": residual / 8,
        "gate": 1 / 8,
        "up": 1 / 8,
        "down": residual * 128**-0.5,
    }
    for of, matrix, embedding, head in ((arch, 1, 1, 1), (scaled, 2, 3, 0.5)):
        params = jax.jit(lm.init, static_argnums=0)(of, jax.random.key(0))
        block = params["stack"]["0"]["0"]
        for name, leaf in {**block["mixer"], **block["channel"]}.items():
            assert float(leaf.std()) == pytest.approx(expected[name] * matrix, rel=0.05)
        assert float(params["embedding"].std()) == pytest.approx(0.02 * embedding, rel=0.05)
        assert float(params["head"].std()) == pytest.approx(0.02 * head, rel=0.05)
        assert bool(jnp.all(block["mixer_norm"]["scale"] == 1))
    assert not np.allclose(block["mixer"]["query"][0], block["mixer"]["query"][1])


def test_stacking_undoes_unstacking():
    tree = {"a": jnp.arange(6.0).reshape(3, 2), "b": {"c": jnp.arange(3.0)}}
    back = lm.stack(lm.unstack(tree, 3))
    assert jax.tree.all(jax.tree.map(lambda one, other: bool(jnp.all(one == other)), tree, back))


def _with_mixer(params: dict, mixer: dict) -> dict:
    return params | {"stack": {"0": {"0": params["stack"]["0"]["0"] | {"mixer": mixer}}}}


def _close(expected, found, tolerance: float) -> None:
    """Each leaf within `tolerance` of the expected one, measured by its norm."""
    for (path, one), other in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found)):
        off = np.linalg.norm(np.asarray(one) - np.asarray(other)) / np.linalg.norm(one)
        assert off <= tolerance, f"{jax.tree_util.keystr(path)}: {off:.2g}"


@pytest.mark.parametrize(
    "dtype, near", [("float32", 2e-6), ("bfloat16", 3e-2)], ids=["float32", "bfloat16"]
)
def test_query_key_and_value_in_one_product_are_those_of_three(monkeypatch, dtype, near):
    """Weights side by side, as without a tensor axis, against a product each, as with one: values and every gradient."""
    arch = dataclasses.replace(ARCH, compute=dtype)
    params = lm.init(arch, jax.random.key(0))
    batch = _batch([[[1, 2, 3, 4, 5], [6, 7, 8]], [[9, 10, 11, 12, 13, 14, 15, 16]]])

    def run(ways):
        monkeypatch.setattr("slmjax.models.layers.ways", lambda *_: ways)

        def loss(params):
            hidden = lm.forward(arch, params, {}, batch)[0].astype(jnp.float32)
            return (
                hidden * jnp.cos(jnp.arange(hidden.size, dtype=jnp.float32)).reshape(hidden.shape)
            ).sum(), hidden

        text = jax.jit(jax.grad(loss, has_aux=True)).lower(params).as_text()
        return jax.jit(jax.grad(loss, has_aux=True))(params), text.count("stablehlo.dot_general")

    (gradients, hidden), products = run(1)
    (separate, plain), more = run(2)
    assert (
        products == more - 3 * 2 * 2
    )  # forward and two backward, one instead of three, in each of the two blocks that are scanned
    for one, other in zip(
        jax.tree.leaves((separate, plain)), jax.tree.leaves((gradients, hidden)), strict=True
    ):
        assert np.linalg.norm(np.float32(other) - np.float32(one)) <= near * np.linalg.norm(
            np.float32(one)
        )
