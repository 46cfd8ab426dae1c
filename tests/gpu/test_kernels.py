"""What only a GPU can run, against references: `JAX_PLATFORMS=cuda python -m pytest tests/gpu`. Skipped elsewhere."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.ops import fp8
from slmjax.ops.softmax_attention import attention

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "gpu" or float(jax.devices()[0].compute_capability) < 9.0,
    reason="needs a GPU of capability 9.0 or newer",
)


@pytest.mark.parametrize("heads", [(6, 2, 64), (4, 4, 32), (8, 2, 128)], ids=str)
@pytest.mark.parametrize(
    "each, window", [(12, 0), (9, 0), (9, 100)], ids=["a place each", "fewer places", "window"]
)
def test_packed_cudnn_attention_is_the_reference_forward_and_backward(each, window, heads):
    """Random documents, padding, an empty row and full rows; in float32 the reference is far nearer the truth than bfloat16 can be."""
    N, K, H = heads
    random, B, T, most = np.random.default_rng(0), 8, 512, 12
    segments = np.zeros((B, T), np.int32)
    for row in range(1, B):
        inner = np.sort(
            random.choice(np.arange(1, T - 40), random.integers(0, most), replace=False)
        ).tolist()
        ends = [*inner, T - 40 * (row % 2)]
        for number, (start, end) in enumerate(zip([0, *ends], ends), start=1):
            segments[row, start:end] = number
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    query, key, value, cotangent = (
        jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in shapes
    )
    assert np.maximum(segments.max(1), 1).sum() <= 9 * B
    segments = jnp.asarray(segments)
    real = np.asarray(segments > 0)[:, :, None, None]
    cotangent = jnp.where(real, cotangent, 0)

    def run(kernel, dtype):
        call = functools.partial(
            attention,
            query_segments=segments,
            key_segments=segments,
            kernel=kernel,
            places=each * B,
            window=window,
        )
        out, pull = jax.jit(lambda *qkv: jax.vjp(call, *qkv))(
            *(x.astype(dtype) for x in (query, key, value))
        )
        return [np.where(real, np.float32(out), 0), *map(np.float32, pull(cotangent.astype(dtype)))]

    for one, other in zip(run("reference", jnp.float32), run("cudnn", jnp.bfloat16), strict=True):
        assert np.linalg.norm(other - one) < 1e-2 * np.linalg.norm(one)


@pytest.mark.parametrize("outputs", [(256,), (256, 128)], ids=str)
def test_float8_products_run_in_float8_and_are_those_of_the_rounded_operands(outputs):
    x, *weights = (
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
        for i, shape in enumerate([(4, 64, 128), *((128, o) for o in outputs)])
    )
    scales = {"input": jnp.float32(2.0**-5), "gradient": jnp.float32(2.0**-8)}
    of_weights = tuple(fp8.scale_for(w, (0, 1)) for w in weights)
    gradients = tuple(
        jax.random.normal(jax.random.key(9 + i), (4, 64, o), jnp.bfloat16)
        for i, o in enumerate(outputs)
    )

    def both(x, weights):
        out, pull = jax.vjp(lambda x, w: fp8.products(x, w, scales, of_weights), x, weights)
        return out, pull(gradients)

    options = {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_dot_merger_threshold_mb": 0,
    }  # small products would be made one, in bfloat16
    compiled = jax.jit(both, compiler_options=options).lower(x, tuple(weights)).compile()
    targets = re.findall(r'custom_call_target="([^"]+)"', compiled.as_text())
    assert targets.count("__cublas$lt$matmul$f8") == 3 * len(outputs), targets
    out, (dx, dws) = compiled(x, tuple(weights))

    def rounded(a, scale, to):
        return np.float64(fp8.quantize(a, scale, to).astype(jnp.float32)) * float(scale)

    wide = rounded(x, scales["input"], fp8.INPUT)
    wide_w = [rounded(w, s, fp8.INPUT) for w, s in zip(weights, of_weights)]
    wide_g = [rounded(g, scales["gradient"], fp8.GRADIENT) for g in gradients]
    expected = [
        *(wide @ w for w in wide_w),
        sum(g @ w.T for g, w in zip(wide_g, wide_w)),
        *(np.einsum("bti,bto->io", wide, g) for g in wide_g),
    ]
    for one, other in zip(expected, [*out, dx, *dws], strict=True):
        assert np.linalg.norm(np.float64(other.astype(jnp.float32)) - one) < 1e-2 * np.linalg.norm(
            one
        )
