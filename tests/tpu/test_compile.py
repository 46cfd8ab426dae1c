"""The launcher's own train step, compiled ahead of time for a TPU slice that is not here."""

import math

import jax
import pytest

from slmjax import config as configs
from slmjax.parallel.mesh import make_mesh
from slmjax.tasks.language_modeling import LanguageModeling
from slmjax.train.program import make_program
from tests.train.small import FixedRows

pytest.importorskip(
    "libtpu",
    reason="no libtpu; pip install 'slmjax[tpu]' compiles for TPUs on any machine",
    exc_type=ImportError,
)

pytestmark = pytest.mark.tpu_compile

# libtpu looks for no metadata server, writes no log folder and does not mind a second process that compiles.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
SIZES = {"data": 2, "fsdp": 2, "tensor": 2}
BATCH, LENGTH = 16, 256


HYBRID = ("ssm", "gdn", "kda", "attention window=128")


@pytest.fixture(scope="module", params=[("attention",), HYBRID], ids=["attention", "hybrid"])
def compiled(request):
    """(program, its state with shardings, reasons of the device's choices, pattern) for eight chips of v5e on two hosts."""
    from jax.experimental import topologies

    config = configs.base()
    config.model.update(
        {"width": 256, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 64, "ff_width": 512}
    )
    config.model.pattern, config.model.layers = request.param, 2 * len(request.param)
    config.data.seq_len, config.train.batch, config.train.microbatches = LENGTH, BATCH, 2
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        mesh = make_mesh(
            SIZES, topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
        )
        program = make_program(configs.freeze(config), mesh, 1000)
        step = program.compile(LanguageModeling(FixedRows(BATCH, LENGTH)))
    return step, program.shapes, program.reasons, request.param


def test_the_step_for_a_tpu_slice_runs_splash_attention_in_bfloat16_forward_and_backward(compiled):
    program, _, reasons, pattern = compiled
    text = program.as_text()
    recurrence = ["recurrence scan"] if pattern == HYBRID else []
    assert [reason.partition(":")[0] for reason in reasons] == [
        "compute bfloat16",
        "attention splash",
        *recurrence,
        "stack scanned",
    ]
    # One kernel forward and two backward (queries; keys and values): the scan holds each once.
    assert text.count('custom_call_target="tpu_custom_call"') >= 3
    assert all(f"splash_mqa_{part}" in text for part in ("fwd", "dq", "dkv"))


def test_each_chip_of_a_tpu_slice_holds_its_quarter_of_the_state_and_the_step_fits(compiled):
    program, state, *_ = compiled
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    batch = 5 * 4 * BATCH * LENGTH / (SIZES["data"] * SIZES["fsdp"])
    memory = program.memory_analysis()
    # Norms and counters are whole on every chip, what has no heads (a hybrid's low ranks) is split two ways, and TPU layouts pad.
    assert held == pytest.approx(whole / (SIZES["fsdp"] * SIZES["tensor"]), rel=0.06)
    assert memory.argument_size_in_bytes == pytest.approx(held + batch, rel=0.05)
    assert memory.alias_size_in_bytes == pytest.approx(
        held, rel=0.05
    )  # donated: the new state takes the old one's place
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 16 * 2**30  # of a v5e chip
