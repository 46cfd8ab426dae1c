"""What the devices decide: compute type, kernel, unrolling, rows of the embedding."""

import pytest

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.models import resolve
from slmjax.models.architecture import vocab_rows
from slmjax.parallel.mesh import DeviceKind, make_mesh

T4 = DeviceKind("gpu", "Tesla T4", 7.5, 15e9, 1)
H100 = DeviceKind("gpu", "NVIDIA H100 80GB HBM3", 9.0, 80e9, 1)
CPU = DeviceKind("cpu", "cpu", None, None, 1)
TPU = DeviceKind("tpu", "TPU v5 lite", None, 16e9, 1)


OLD = DeviceKind("gpu", "Tesla P100", 6.0, 16e9, 1)


@pytest.mark.parametrize(
    "device, compute",
    [(T4, "float16"), (OLD, "float32"), (H100, "bfloat16"), (CPU, "float32"), (TPU, "bfloat16")],
)
def test_the_compute_type_is_the_short_one_that_the_device_multiplies(device, compute):
    chosen, reason = resolve.choose_compute(device, "auto")
    assert chosen == compute and device.name in reason
    assert resolve.choose_compute(device, "float32") == ("float32", "config.precision.compute")


def test_float8_is_taken_where_it_is_asked_for_and_refused_where_the_device_has_none():
    l4, b200 = (
        T4._replace(name="NVIDIA L4", capability=8.9),
        H100._replace(name="NVIDIA B200", capability=10.0),
    )
    ironwood = TPU._replace(name="TPU7x")
    for device in (T4, H100, TPU, CPU):
        assert resolve.choose_products(device, "compute")[0] == "compute"
    for device in (H100, l4, b200, ironwood):
        chosen, reason = resolve.choose_products(device, "float8")
        assert chosen == "float8" and device.name in reason
    assert "emulates" in resolve.choose_products(CPU, "float8")[1]
    a100, amd = (
        T4._replace(name="NVIDIA A100", capability=8.0),
        T4._replace(name="some GPU", capability=None),
    )
    for device in (T4, a100, amd, TPU, TPU._replace(name="TPU v6 lite")):
        with pytest.raises(
            UserError,
            match=rf"precision.products is 'float8', but {device.name}.* has no float8 products .*use compute",
        ):
            resolve.choose_products(device, "float8")


def test_one_host_of_gpus_unrolls_and_a_pod_scans():
    assert resolve.choose_unroll(H100, "auto")[0]
    assert not resolve.choose_unroll(TPU, "auto")[0]
    assert not resolve.choose_unroll(H100._replace(hosts=2), "auto")[0]
    assert resolve.choose_unroll(TPU, "True") == (True, "config.model.unroll")
    assert not resolve.choose_unroll(H100, "False")[0]


def test_recurrent_mixers_walk_in_triton_where_xla_has_it_for_the_gpu():
    for device, kernel in (
        (H100, "triton"),
        (T4, "scan"),
        (OLD, "scan"),
        (CPU, "scan"),
        (TPU, "scan"),
    ):
        assert resolve.choose_recurrence(device)[0] == kernel


def test_the_embedding_has_a_multiple_of_128_rows_unless_it_is_asked_otherwise():
    assert [vocab_rows(0, n) for n in (1, 128, 129, 16384)] == [128, 128, 256, 16384]
    assert vocab_rows(1000, 999) == 1000
    with pytest.raises(UserError, match="vocab_size is 998, but the tokenizer has 999"):
        vocab_rows(998, 999)


def resolved(config):
    frozen = configs.freeze(config)
    return resolve.resolve(frozen.model, frozen.precision, make_mesh({"data": -1}), 1000)


def test_a_config_is_resolved_for_the_devices_of_a_mesh_with_a_reason_for_each_choice():
    arch, reasons = resolved(configs.base())
    assert (arch.vocab_size, arch.compute, arch.attention, arch.unroll) == (
        1024,
        "float32",
        "blockwise",
        True,
    )
    assert [line.split(":")[0] for line in reasons] == [
        "compute float32",
        "attention blockwise",
        "stack unrolled",
    ]
    recurrent = configs.override(configs.base(), ["model.pattern=gdn"])
    assert "recurrence scan" in [line.split(":")[0] for line in resolved(recurrent)[1]]
    config = configs.override(configs.base(), ["precision.products=float8"])
    arch, reasons = resolved(config)
    assert arch.products == "float8" and reasons[1].startswith("products float8: ")
    with pytest.raises(UserError, match="share_blocks must be 1"):
        resolved(configs.override(config, ["model.share_blocks=2"]))


def test_a_kernel_that_is_asked_for_is_taken():
    config = configs.base()
    config.model.attention = "reference"
    arch, reasons = resolved(config)
    assert arch.attention == "reference"
    assert "attention reference: config.model.attention" in reasons
