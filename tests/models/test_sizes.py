"""Closed forms against what they describe: the initial tree, the compiler's count, datasheets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.models import choose_shape, lm, sizes
from slmjax.models.architecture import Architecture, Block
from slmjax.models.pattern import from_config, parse_block
from slmjax.parallel import devices
from slmjax.parallel.rules import flatten_tree

# One of each recurrent mixer, which take ten times as long to trace as attention.
RECURRENT = Architecture(
    7,
    11,
    2,
    1,
    4,
    5,
    (
        (tuple(map(parse_block, ("ssm heads=3 key_dim=2 value_dim=5", "gla+none"))), 2),
        (tuple(map(parse_block, ("gdn+none heads=2 key_dim=3 value_dim=4", "kda"))), 1),
    ),
    share_blocks=2,
)


@st.composite
def architectures(draw, recurrent=True):
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = st.integers(1, 9)

    def block(mixer, **options):
        def make(channel, **chosen):
            return Block(mixer, channel, tuple(sorted(chosen.items())))

        return st.builds(make, channel=st.sampled_from(["mlp", "none"]), **options)

    blocks = block("attention", rope=st.booleans(), window=st.integers(0, 30))
    for mixer in ("ssm", "gla", "gdn", "kda") if recurrent else ():
        blocks |= block(mixer, heads=size, key_dim=size, value_dim=size)
        blocks |= block(mixer) if mixer != "ssm" else st.nothing()
    blocks |= st.just(Block("tests.models.own:Mean"))
    stack = draw(
        st.lists(
            st.tuples(st.lists(blocks, min_size=1, max_size=2).map(tuple), st.integers(1, 3)),
            min_size=1,
            max_size=2,
        )
    )
    if draw(st.booleans()):
        lenders = dict.fromkeys(
            block.options for block in stack[0][0] if block.mixer == "attention"
        )
        stack[0] = (
            stack[0][0]
            + tuple(Block(options=(("borrows", True), *options)) for options in lenders),
            stack[0][1],
        )
    small = st.integers(1, 40)
    return Architecture(
        vocab_size=draw(small),
        width=draw(small),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        ff_width=draw(small),
        stack=tuple(stack),
        qk_norm=draw(st.booleans()),
        output_gate=draw(st.booleans()),
        tied=draw(st.booleans()),
        compute=draw(st.sampled_from(["float32", "bfloat16"])),
        share_blocks=draw(st.integers(1, 2)),
    )


@given(architectures(recurrent=False))
@example(RECURRENT)
@settings(max_examples=8)
def test_parameters_are_the_sizes_of_the_initial_tree(arch):
    tree = jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
    total = sum(leaf.size for leaf in jax.tree.leaves(tree))
    tables = sum(tree[name].size for name in ("embedding", "head") if name in tree)
    names = flatten_tree(tree)
    declared = flatten_tree(lm.declare(arch))
    assert {name: leaf.shape for name, leaf in names.items()} == {
        name: known.shape for name, known in declared.items()
    }
    vectors = sum(
        leaf.size
        for name, leaf in names.items()
        if declared[name].group in ("vector", "final_norm")
    )
    count = sizes.parameters(arch)
    assert count.total == total
    assert count.non_embedding == total - tables
    assert count.matmul == (total - vectors - tables) * arch.share_blocks + tree["embedding"].size


@given(architectures(), st.integers(1, 64))
@settings(max_examples=10)
def test_cache_bytes_are_those_of_the_cache(arch, length):
    cache = jax.eval_shape(lambda: lm.init_cache(arch, 3, length))
    held = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(cache.layers)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    assert held == 3 * sizes.cache_bytes(arch, length)


@pytest.mark.parametrize(
    "layers, kv_heads, head_dim, published",
    [(80, 8, 128, 327_680), (126, 8, 128, 516_096), (30, 3, 64, 23_040), (32, 5, 64, 40_960)],
    ids=["Qwen2.5-72B", "Llama-3.1-405B", "MobileLLM-125M", "MobileLLM-350M"],
)
def test_cache_bytes_are_the_published_ones(layers, kv_heads, head_dim, published):
    """DeepSeek 2025 (arXiv 2505.09343), table 1, and the models' configs; bfloat16."""
    arch = Architecture(
        8, 8, kv_heads, kv_heads, head_dim, 8, (((Block(),), layers),), compute="bfloat16"
    )
    assert sizes.cache_bytes_per_token(arch) == published


def test_states_are_the_published_ones_and_a_hybrids_cache_is_a_quarter():
    """Mamba-2 at 340M (flame): 32 x 64 x 128 numbers a layer; KDA with 15 heads of 64: 61,440; the convolutions' last inputs beside."""
    ssm, kda = parse_block("ssm value_dim=64 key_dim=128"), Block("kda")
    for block, numbers, channels in ((ssm, 262_144, 2048 + 256), (kda, 61_440, 3 * 960)):
        arch = Architecture(
            8, 1024 if block is ssm else 960, 15, 5, 64, 8, (((block,), 1),), compute="bfloat16"
        )
        assert (
            sizes.cache_bytes(arch, 16_384)
            == 4 * numbers + 3 * 2 * channels
            == sizes.cache_bytes(arch, 4)
        )
    dense, hybrid = (
        Architecture(8, 1024, 16, 4, 64, 8, ((pattern, 24 // len(pattern)),), compute="bfloat16")
        for pattern in ((Block(),), (Block("gdn"),) * 3 + (Block(),))
    )
    states = sizes.cache_bytes(hybrid, 0)
    assert sizes.cache_bytes(hybrid, 16_384) - states == sizes.cache_bytes(dense, 16_384) / 4


@pytest.mark.parametrize(
    "share, tokens, expected", [(1, 100, 12 * 100), (2, 100, 6 * 100), (3, 100, 4 * 100)]
)
def test_keys_and_values_that_layers_share_are_kept_once(share, tokens, expected):
    config = configs.base()
    config.model.layers, config.model.share_kv = 12, share
    arch = from_config(configs.freeze(config).model, 256)
    assert sizes.cache_bytes(arch, tokens) == expected * 2 * 2 * 64 * 4


def test_a_windows_cache_stops_growing_and_its_products_are_counted_by_the_pairs():
    arch = Architecture(8, 16, 2, 1, 8, 8, (((parse_block("attention window=10"),), 1),))
    assert [sizes.cache_bytes(arch, n) for n in (5, 10, 1000)] == [
        2 * 8 * 4 * n for n in (5, 10, 10)
    ]
    pairs = np.mean(
        [min(t + 0.5, 10) for t in range(50)]
    )  # a token counts half of itself, as in the causal half
    mixing = sizes.forward_flops_per_token(arch, 50) - 2 * sizes.parameters(arch).matmul
    assert mixing == pytest.approx(4 * 16 * pairs, rel=0.02)


@given(architectures(), st.integers(1, 4096))
def test_training_flops_of_a_dense_tied_decoder_are_6n_plus_6ldt(arch, length):
    arch = dataclasses.replace(
        arch, stack=(((Block(), parse_block("attention rope=False")), 2),), share_blocks=1
    )
    expected = (
        6 * sizes.parameters(arch).matmul + 6 * arch.layers * arch.heads * arch.head_dim * length
    )
    assert sizes.train_flops_per_token(arch, length) == pytest.approx(expected, rel=1e-12)
    assert sizes.train_flops_per_token(arch, length) == 3 * sizes.forward_flops_per_token(
        arch, length
    )


def test_flops_are_the_compilers_count_within_five_percent():
    """The reference computes all T x T scores, so the compiler is compared with the count without the causal half.

    The compiler also counts additions, norms and softmax: 1.4 % here. At this length the causal half would be 14 % off.
    """
    B, T = 1, 512
    arch = Architecture(
        512,
        256,
        4,
        2,
        64,
        704,
        (((Block(),), 2),),
        qk_norm=True,
        output_gate=True,
        attention="reference",
    )
    params = jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
    batch = {
        name: jax.ShapeDtypeStruct((B, T), jnp.int32)
        for name in ("tokens", "segments", "positions")
    }

    def loss(params, batch):
        logits = lm.logits(arch, params, lm.forward(arch, params, {}, batch)[0])
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1))

    for program, closed in (
        (loss, sizes.forward_flops_per_token),
        (jax.grad(loss), sizes.train_flops_per_token),
    ):
        counted = jax.jit(program).lower(params, batch).compile().cost_analysis()["flops"] / (B * T)
        assert counted == pytest.approx(closed(arch, T, causal=False), rel=0.05)
        assert counted != pytest.approx(closed(arch, T), rel=0.05)


@given(
    st.floats(6, 9).map(lambda e: round(10**e)),
    st.sampled_from([256, 1024, 4096, 16384, 32768, 50304, 131072]),
)
@settings(max_examples=150)
def test_a_shape_is_within_three_percent_of_its_budget(params, vocab):
    try:
        shape = choose_shape.shape_for(params, vocab)
    except UserError:
        assert vocab * 192 > params, "only a vocabulary that eats most of the budget may be refused"
        return
    arch = _architecture(shape, vocab)
    assert sizes.parameters(arch).total == pytest.approx(params, rel=0.03)
    assert arch.heads % arch.kv_heads == 0 and arch.heads * arch.head_dim == arch.width
    assert arch.head_dim == (128 if params >= 100e6 else 64 if params >= 5e6 else 32)
    assert arch.ff_width % (128 if params >= 100e6 else 64) == 0


def test_the_closed_form_that_a_search_uses_is_the_count():
    arch = _architecture(choose_shape.shape_for(10_000_000, 4096), 4096)
    assert choose_shape.decoder_parameters(arch, arch.layers) == sizes.parameters(arch).total


def test_shapes_of_the_ladder_are_deep_and_thin():
    """MobileLLM has 30 layers of 576 at 125M and 54 of 1280 at 1B: a width of less than 30 times the depth."""
    for name in ("10m", "50m", "100m", "300m", "1b"):
        shape = choose_shape.shape_for(choose_shape.parse_params(name), 16384)
        assert shape["width"] < 30 * shape["layers"]
        assert shape["heads"] / shape["kv_heads"] <= 5


def test_a_vocabulary_too_large_for_the_budget_is_refused():
    with pytest.raises(UserError, match="smaller vocabulary"):
        choose_shape.shape_for(1_000_000, 128_000)


@pytest.mark.parametrize(
    "text, count",
    [
        ("50m", 50e6),
        ("1b", 1e9),
        ("0.3B", 3e8),
        ("200k", 2e5),
        ("50_000_000", 5e7),
        ("5e7", 5e7),
        (12345, 12345),
    ],
)
def test_a_budget_is_read_in_the_usual_ways(text, count):
    assert choose_shape.parse_params(text) == count


@pytest.mark.parametrize("text", ["", "big", "-5m", "50mm", "0", "m", "nan", "1e99", "2e12"])
def test_a_budget_that_is_no_number_is_refused(text):
    with pytest.raises(UserError, match="such as 50m"):
        choose_shape.parse_params(text)


def test_the_description_names_all_three_counts():
    text = sizes.describe(_architecture(choose_shape.shape_for(300_000_000, 16384), 16384))
    assert text.startswith(
        "302.1M parameters (289.5M without embeddings, 302M in matrix products): 46 layers of width 768"
    )
    assert "\n" not in text


# Datasheet values in TFLOP/s, dense: (device_kind as JAX prints it, bfloat16 or float16, float32).
DATASHEETS = [
    ("NVIDIA A100-SXM4-80GB", 312, 156),
    ("NVIDIA A100-PCIE-40GB", 312, 156),
    ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
    ("NVIDIA H100 PCIe", 756.5, 378),
    ("NVIDIA H100 NVL", 835.5, 417.5),
    ("NVIDIA H200", 989.4, 494.7),
    ("NVIDIA B200", 2250, 1125),
    ("NVIDIA L4", 121, 60),
    ("NVIDIA L40S", 362.05, 183),
    ("NVIDIA A10", 125, 62.5),
    ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
    ("Tesla V100-SXM2-16GB", 125, 15.7),
    ("Tesla V100-PCIE-16GB", 112, 14),
    ("Tesla T4", 65, 8.1),
    ("TPU v2", 22.5, 22.5),  # half a chip
    ("TPU v3", 61.5, 61.5),  # half a chip
    ("TPU v4", 275, 275),
    ("TPU v5 lite", 197, 197),
    ("TPU v5e", 197, 197),
    ("TPU v5", 459, 459),
    ("TPU v5p", 459, 459),
    ("TPU v6 lite", 918, 918),
    ("TPU v6e", 918, 918),
    ("TPU7x", 1153.5, 1153.5),  # half a chip
    ("cpu", None, None),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
    ("NVIDIA A10G", None, None),
    ("TPU v4 lite", None, None),
]


@pytest.mark.parametrize("kind, half, single", DATASHEETS)
def test_peak_rates_are_the_datasheets(kind, half, single):
    for dtype, rate in (("bfloat16", half), ("float16", half), ("float32", single)):
        assert devices.peak_flops(kind, dtype) == (rate and pytest.approx(rate * 1e12))


def test_every_row_of_the_peak_table_is_tested():
    tested = {devices.peak_flops(kind, "bfloat16") for kind, *_ in DATASHEETS}
    assert {peak.half for peak in devices.PEAKS} <= tested


# Bytes a second by the vendors' datasheets, in TB/s.
MEMORIES = [
    ("NVIDIA B200", 8.0),
    ("NVIDIA H200", 4.8),
    ("NVIDIA H200 NVL", 4.8),
    ("NVIDIA H100 80GB HBM3", 3.35),
    ("NVIDIA H100 NVL", 3.9),
    ("NVIDIA H100 PCIe", 2.0),
    ("NVIDIA A100-SXM4-80GB", 2.039),
    ("NVIDIA A100 80GB PCIe", 1.935),
    ("NVIDIA A100-SXM4-40GB", 1.555),
    ("NVIDIA A100-PCIE-40GB", 1.555),
    ("NVIDIA L4", 0.3),
    ("Tesla T4", 0.32),
    ("TPU v5 lite", 0.819),
    ("TPU v5e", 0.819),
    ("TPU v5", 2.765),
    ("TPU v5p", 2.765),
    ("TPU v6 lite", 1.64),
    ("TPU v6e", 1.64),
    ("cpu", None),
    ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
]


@pytest.mark.parametrize("kind, rate", MEMORIES)
def test_memory_bandwidths_are_the_datasheets(kind, rate):
    assert devices.memory_bandwidth(kind) == (rate and pytest.approx(rate * 1e12))


def test_every_row_of_the_bandwidth_table_is_tested():
    assert {rate for _, rate in devices.BANDWIDTHS} <= {
        devices.memory_bandwidth(kind) for kind, _ in MEMORIES
    }


def test_mfu_is_achieved_over_peak():
    """PaLM 540B (Chowdhery et al. 2022, table 3): 238.3k tokens/s on 6144 TPU v4 chips are 46.2 % with attention."""
    parameters, layers, heads, head_dim, length = 540.35e9, 118, 48, 256, 2048
    per_token = 6 * parameters + 12 * layers * heads * head_dim * length
    assert devices.mfu(
        238.3e3, per_token, 6144 * devices.peak_flops("TPU v4", "bfloat16")
    ) == pytest.approx(0.462, abs=5e-4)
    assert devices.mfu(1.0, 1.0, None) is None


def _architecture(shape: dict, vocab: int) -> Architecture:
    return Architecture(
        vocab_size=vocab,
        stack=(((Block(),), shape["layers"]),),
        **{k: v for k, v in shape.items() if k != "layers"},
    )
