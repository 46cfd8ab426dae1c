"""What depends on the device: compute type, attention kernel, unrolling. Asked of the mesh, so that ahead-of-time plans agree."""

import re

from jax.sharding import Mesh

from slmjax.config import ModelConfig, PrecisionConfig
from slmjax.errors import UserError
from slmjax.models.architecture import Architecture, vocab_rows
from slmjax.models.mixers import mixer_class
from slmjax.models.pattern import from_config
from slmjax.models.recurrent import RecurrentMixer
from slmjax.ops import softmax_attention as attention
from slmjax.parallel.mesh import DeviceKind, device_kind

FLOAT8_TPU = r"tpu ?v?7x?"  # Google Cloud's page of TPU7x (Ironwood) names fp8; those of v6e and older do not


def resolve(
    model: ModelConfig,
    precision: PrecisionConfig,
    mesh: Mesh,
    tokenizer_size: int,
    deterministic: bool = False,
) -> tuple[Architecture, list[str]]:
    """Return the architecture for these devices, and one line of reason for each choice.

    Args:
      deterministic: only kernels whose gradients do not depend on the order of threads.
    Raises: UserError as from_config and vocab_rows, and for float8 with shared blocks.
    """
    device = device_kind(mesh)
    compute, compute_reason = choose_compute(device, precision.compute)
    chosen = attention.choose(
        device.platform, device.capability, compute, model.head_dim, deterministic
    )
    if model.attention != "auto":
        chosen = attention.KernelChoice(model.attention, "config.model.attention")
    products, products_reason = choose_products(device, precision.products)
    if products == "float8" and model.share_blocks > 1:
        raise UserError(
            "config.precision.products is 'float8', whose scales belong to one place: config.model.share_blocks must be 1."
        )
    walk, walk_reason = choose_recurrence(device)
    unroll, unroll_reason = choose_unroll(device, model.unroll)
    arch = from_config(
        model,
        vocab_rows(model.vocab_size, tokenizer_size),
        compute=compute,
        products=products,
        attention=chosen.kernel,
        recurrence=walk,
        unroll=unroll,
    )
    reasons = [f"compute {compute}: {compute_reason}"]
    reasons += [f"products {products}: {products_reason}"] if products != "compute" else []
    reasons += [f"attention {chosen.kernel}: {chosen.reason}"]
    if any(issubclass(mixer_class(block.mixer), RecurrentMixer) for block in arch.blocks):
        reasons.append(f"recurrence {walk}: {walk_reason}")
    return arch, [*reasons, f"stack {'unrolled' if unroll else 'scanned'}: {unroll_reason}"]


def choose_compute(device: DeviceKind, asked: str) -> tuple[str, str]:
    """(type of matrix products, reason)."""
    if asked != "auto":
        return asked, "config.precision.compute"
    if device.platform == "tpu" or (device.platform == "gpu" and (device.capability or 0) >= 8.0):
        return "bfloat16", f"{device.name} multiplies it natively"
    if device.platform == "gpu" and (device.capability or 0) >= 7.0:
        return (
            "float16",
            f"{device.name} multiplies it natively and has no bfloat16; the loss is scaled",
        )
    return "float32", f"{device.name} has no fast bfloat16"


def choose_products(device: DeviceKind, asked: str) -> tuple[str, str]:
    """(type of the products of projections and MLP, reason).

    Raises: UserError for a device that has no float8; a CPU has none either, but is slow anyway and good for a try.
    """
    if asked == "compute":
        return asked, "config.precision.products"
    if device.platform == "cpu":
        return asked, "config.precision.products; this CPU emulates it, slower than its own types"
    new_gpu = device.platform == "gpu" and (device.capability or 0) >= 8.9
    if not new_gpu and not re.fullmatch(FLOAT8_TPU, device.name.lower()):
        told = f"{device.name}{f' of compute capability {device.capability}' if device.capability else ''}"
        raise UserError(
            f"config.precision.products is '{asked}', but {told} has no float8 products (GPUs have from capability 8.9 on, TPUs from "
            "generation 7 on); use compute."
        )
    return asked, f"{device.name} multiplies it natively"


def choose_recurrence(device: DeviceKind) -> tuple[str, str]:
    """(what recurrent mixers walk over their chunks with, reason)."""
    if device.platform == "gpu" and (device.capability or 0) >= 8.0:
        return (
            "triton",
            f"GPU of compute capability {device.capability}: one kernel walks over all chunks",
        )
    return "scan", f"{device.name}: plain XLA"


def choose_unroll(device: DeviceKind, asked: str) -> tuple[bool, str]:
    """(unrolled, reason)."""
    if asked != "auto":
        return asked == "True", "config.model.unroll"
    if device.hosts > 1 or device.platform == "tpu":
        return False, "fastest to compile"
    return True, "fastest to run on one host"
