"""Float8 products against numpy in float64 with ml_dtypes' casts: values, gradients, what is cut off, and scales that find their place."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.ops import fp8

SCALES = {"input": jnp.float32(2.0**-4), "gradient": jnp.float32(2.0**-12)}
DTYPES = [
    (jnp.float32, 1e-6),
    (jnp.bfloat16, 2.0**-8),
]  # of a result: sums of a few dozen terms, or one rounding to 8 bits


def _inputs(dtype, T=24, widths=(48, 16), spread=1.0):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(3, T, 32)) * spread, dtype)
    weights = tuple(jnp.asarray(0.2 * random.normal(size=(32, n)), dtype) for n in widths)
    gradients = tuple(jnp.asarray(spread * random.normal(size=(3, T, n)), dtype) for n in widths)
    return x, weights, gradients


def _rounded(x, scale, to):
    """What a float8 tensor stands for, in float64."""
    types = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}
    wide = np.asarray(x, np.float64) / float(scale)
    return np.clip(wide, -to.largest, to.largest).astype(types[jnp.dtype(to.dtype).name]).astype(
        np.float64
    ) * float(scale)


def _of_weights(weights):
    return tuple(fp8.scale_for(w, (0, 1)) for w in weights)


def _pulled(x, weights, gradients, scales=SCALES):
    out, pull = jax.vjp(
        lambda x, w, s: fp8.products(x, w, s, _of_weights(weights)), x, weights, scales
    )
    return out, *pull(gradients)


@pytest.mark.parametrize("spread", [1.0, 1e3], ids=["in range", "cut off"])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_rounded_operands(dtype, tolerance, spread):
    x, weights, gradients = _inputs(dtype, spread=spread)
    out, dx, dws, _ = jax.jit(_pulled)(x, weights, gradients)
    wide_x = _rounded(x, SCALES["input"], fp8.INPUT)
    wide_w = [_rounded(w, s, fp8.INPUT) for w, s in zip(weights, _of_weights(weights))]
    wide_g = [_rounded(g, SCALES["gradient"], fp8.GRADIENT) for g in gradients]
    parts = [g @ w.T for g, w in zip(wide_g, wide_w)]
    expected = [
        *(wide_x @ w for w in wide_w),
        sum(parts),
        *(np.einsum("bti,bto->io", wide_x, g) for g in wide_g),
    ]
    # Each element may be off by its own rounding and those of the parts that cancelled in it.
    sizes = [*expected[:2], 2 * sum(map(np.abs, parts)), *expected[3:]]
    for found, right, size in zip([*out, dx, *dws], expected, sizes, strict=True):
        assert found.dtype == dtype and found.shape == right.shape
        room = tolerance * np.abs(size) + 1e-6 * np.abs(right).max()
        assert np.all(np.abs(np.asarray(found, np.float64) - right) <= room)


@pytest.mark.parametrize("to", [fp8.INPUT, fp8.GRADIENT], ids=["e4m3", "e5m2"])
def test_a_cast_rounds_to_the_nearest_and_cuts_off_at_the_largest_value(to):
    scale = jnp.float32(2.0**-7)
    x = jnp.asarray(
        np.random.default_rng(1).normal(size=5000) * np.logspace(-9, 9, 5000), jnp.float32
    )
    found = np.asarray(fp8.quantize(x, scale, to).astype(jnp.float32), np.float64) * float(scale)
    np.testing.assert_array_equal(found, _rounded(x, scale, to))
    assert np.isfinite(found).all() and np.abs(found).max() == to.largest * float(scale)
    assert np.isnan(
        np.asarray(fp8.quantize(jnp.float32([jnp.nan]), scale, to).astype(jnp.float32))
    ).all()  # a fault is not hidden


def test_the_largest_magnitudes_come_back_in_place_of_the_scales_gradient():
    x, weights, gradients = _inputs(jnp.bfloat16)
    seen = _pulled(x, weights, gradients)[3]
    assert set(seen) == {"input", "gradient"}
    for name, tensors, to in (("input", [x], fp8.INPUT), ("gradient", gradients, fp8.GRADIENT)):
        looked_at = [np.abs(_rounded(t[:, :: fp8.EVERY], SCALES[name], to)).max() for t in tensors]
        assert float(seen[name]) * float(SCALES[name]) == max(looked_at)


@given(st.floats(-25, 25), st.floats(-25, 25))
def test_scales_find_any_magnitude_in_a_few_steps_and_then_rest(input_log, gradient_log):
    """Growing by 4 and halving, from a start that is off by up to 2^35."""
    random = np.random.default_rng(0)
    x, g = (
        jnp.asarray(2.0**log * random.uniform(-1, 1, (64, 8)), jnp.float32)
        for log in (input_log, gradient_log)
    )
    weights, scales, changed = (jnp.eye(8),), fp8.initial_scales(), 0
    run = jax.jit(lambda scales: fp8.next_scales(scales, _pulled(x, weights, (g,), scales)[3]))
    for step in range(50):
        following = run(scales)
        changed = step + 1 if following != scales else changed
        scales = following
    assert changed <= 40
    for name, tensor, to in (("input", x, fp8.INPUT), ("gradient", g, fp8.GRADIENT)):
        assert float(np.log2(scales[name])).is_integer()
        assert (
            to.low / 1.1 < np.abs(tensor).max() / scales[name] < 2 * to.high
        )  # rounding, and what the sample did not see


def test_what_is_cut_off_grows_the_scale_faster_and_what_is_no_number_leaves_it():
    seen = {
        name: jnp.float32([of.largest, of.high * 1.5, of.low * 1.5, of.low / 2, 0, jnp.nan])
        for name, of in _FORMATS.items()
    }
    scales = {name: jnp.full(6, 0.25) for name in _FORMATS}
    tree = {"stack": {"0": scales}, "other": scales}
    following = fp8.next_scales(
        tree, {"stack": {"0": seen}, "other": jax.tree.map(jnp.zeros_like, seen)}
    )
    for name in _FORMATS:
        np.testing.assert_array_equal(
            following["stack"]["0"][name], [1, 0.5, 0.25, 0.125, 0.125, 0.25]
        )
        np.testing.assert_array_equal(following["other"][name], [0.125] * 6)


_FORMATS = {"input": fp8.INPUT, "gradient": fp8.GRADIENT}


def test_the_present_scale_of_weights_is_the_power_of_two_that_they_fit_into():
    stacked = jnp.asarray(
        np.random.default_rng(0).normal(size=(5, 6, 7)) * 10.0 ** np.arange(-3, 2)[:, None, None],
        jnp.bfloat16,
    )
    scales = np.asarray(fp8.scale_for(stacked, (1, 2)))
    largest = np.abs(np.asarray(stacked, np.float32)).max((1, 2)) / scales / fp8.INPUT.largest
    assert np.all((largest >= 0.5) & (largest < 1)) and np.all(np.log2(scales) % 1 == 0)
    assert float(fp8.scale_for(jnp.zeros((2, 3)), (0, 1))) == 1


def test_an_input_of_several_products_is_cast_once_and_one_byte_of_each_element_is_kept():
    x, weights, _ = _inputs(jnp.bfloat16)
    run = lambda x, w: fp8.products(x, w, SCALES, _of_weights(weights))
    program = str(jax.make_jaxpr(run)(x, weights))
    assert program.count("new_dtype=float8_e4m3fn") == 1 + len(weights)
    kept = jax.tree.leaves(jax.vjp(run, x, weights)[1])
    assert sum(leaf.nbytes for leaf in kept if leaf.ndim) == x.size + sum(w.size for w in weights)
