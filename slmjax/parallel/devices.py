"""Peak FLOP/s and memory bandwidth of devices, from datasheets."""

import re
from typing import NamedTuple


def mfu(tokens_per_second: float, flops_per_token: float, peak: float | None) -> float | None:
    """Return model FLOPs utilisation, a share of 1; None where the peak is not known.

    Args:
      peak: FLOP/s of all devices together: peak_flops times their number.
    """
    if not peak:
        return None
    return tokens_per_second * flops_per_token / peak


class Peak(NamedTuple):
    """Dense FLOP/s of one JAX device.

    pattern: matches the whole device_kind in lower case.
    half: bfloat16, or float16 where there is no bfloat16; sums in float32.
    single: XLA's default for float32: TF32 from Ampere on, one bfloat16 pass on TPU.
    """

    pattern: str
    half: float
    single: float


# Without sparsity (from Ampere on, datasheets print twice that for sparse matrices). The first
# match counts, so narrower patterns come first.
PEAKS = (
    Peak(r".*\bb200\b.*", 2250e12, 1125e12),  # NVIDIA HGX B200 datasheet, one of eight GPUs
    Peak(r".*\bh[12]00 nvl\b.*", 835.5e12, 417.5e12),  # NVIDIA H100 and H200 datasheets, NVL column
    Peak(r".*\bh200\b.*", 989.4e12, 494.7e12),  # NVIDIA H200 datasheet, SXM column
    Peak(r".*\bh100 pcie\b.*", 756.5e12, 378e12),  # NVIDIA H100 datasheet of 2022, PCIe column
    Peak(r".*\bh100\b.*", 989.4e12, 494.7e12),  # NVIDIA H100 datasheet, SXM column
    Peak(r".*\ba100\b.*", 312e12, 156e12),  # NVIDIA A100 datasheet
    Peak(r".*\bl40s\b.*", 362.05e12, 183e12),  # NVIDIA L40S datasheet
    Peak(r".*\bl4\b.*", 121e12, 60e12),  # NVIDIA L4 datasheet
    Peak(r".*\ba10\b.*", 125e12, 62.5e12),  # NVIDIA A10 datasheet
    Peak(r".*\brtx 4090", 165.2e12, 82.6e12),  # NVIDIA Ada architecture whitepaper, appendix A
    # V100 and T4: float16, no TF32.
    Peak(r".*\bv100-pcie\b.*", 112e12, 14e12),  # NVIDIA V100 datasheet, PCIe column
    Peak(r".*\bv100\b.*", 125e12, 15.7e12),  # NVIDIA V100 datasheet, SXM2 column
    Peak(r".*\bt4\b.*", 65e12, 8.1e12),  # NVIDIA T4 datasheet
    # Google Cloud's page of each TPU gives a chip's rate. On v2, v3 and 7x a JAX device is one of a
    # chip's two cores.
    Peak(r"tpu v2", 45e12 / 2, 45e12 / 2),
    Peak(r"tpu v3", 123e12 / 2, 123e12 / 2),
    Peak(r"tpu v4", 275e12, 275e12),
    Peak(r"tpu v5( lite|e)", 197e12, 197e12),
    Peak(r"tpu v5p?", 459e12, 459e12),
    Peak(r"tpu v6( lite|e)", 918e12, 918e12),
    Peak(r"tpu ?(v7x|7x)", 2307e12 / 2, 2307e12 / 2),
)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return the peak FLOP/s of dense matrix products on one JAX device.

    It is None for devices that are not in the table, such as CPUs.

    Args:
      device_kind: as jax.Device.device_kind says, e.g. "NVIDIA H100 80GB HBM3", "TPU v5 lite".
      dtype: "bfloat16", "float16" or "float32".
    """
    if _is_slice(device_kind):
        return None
    for peak in PEAKS:
        if re.fullmatch(peak.pattern, device_kind.lower()):
            return peak.single if dtype == "float32" else peak.half
    return None


# (pattern of the device_kind, bytes a second of its memory); the first match counts.
BANDWIDTHS = (
    (r".*\bb200\b.*", 8.0e12),  # NVIDIA HGX B200 datasheet, an eighth of it
    (r".*\bh200\b.*", 4.8e12),  # NVIDIA H200 datasheet
    (r".*\bh100 nvl\b.*", 3.9e12),  # NVIDIA H100 datasheet, NVL column
    (r".*\bh100 pcie\b.*", 2.0e12),  # NVIDIA H100 datasheet of 2022, PCIe column
    (r".*\bh100\b.*", 3.35e12),  # NVIDIA H100 datasheet, SXM column
    (r".*\ba100-sxm\w*-80gb", 2.039e12),  # NVIDIA A100 datasheet, as the two below
    (r".*\ba100[- ]80gb pcie", 1.935e12),
    (r".*\ba100[- ].*40gb", 1.555e12),
    (r".*\bl4\b.*", 0.3e12),  # NVIDIA L4 datasheet
    (r".*\bt4\b.*", 0.32e12),  # NVIDIA T4 datasheet
    (r"tpu v5( lite|e)", 0.819e12),  # Google Cloud's page of each TPU, as below
    (r"tpu v5p?", 2.765e12),
    (r"tpu v6( lite|e)", 1.64e12),
)


def memory_bandwidth(device_kind: str) -> float | None:
    """Return the bytes a second that one JAX device reads from its memory at best.

    It is None for devices that are not in the table, such as CPUs.

    Args:
      device_kind: as jax.Device.device_kind says.
    """
    if _is_slice(device_kind):
        return None
    for pattern, rate in BANDWIDTHS:
        if re.fullmatch(pattern, device_kind.lower()):
            return rate
    return None


def _is_slice(device_kind: str) -> bool:
    """True for a slice of a GPU (MIG), to which the numbers of the whole GPU do not apply."""
    return " mig " in device_kind.lower()
