"""Choices that depend on the device: compute type, attention kernel, unrolling.

They are read from the mesh, so that an ahead-of-time plan makes the same ones.
"""

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

# Google Cloud's page of TPU7x (Ironwood) names fp8; those of v6e and older do not.
FLOAT8_TPU = r"tpu ?v?7x?"
# CUDA compute capabilities from which on a GPU has a type of products, and Triton kernels.
TENSOR_CORES, BFLOAT16_GPU, FLOAT8_GPU = 7.0, 8.0, 8.9


def resolve(
    model: ModelConfig,
    precision: PrecisionConfig,
    mesh: Mesh,
    tokenizer_size: int,
    deterministic: bool = False,
) -> tuple[Architecture, list[str]]:
    """Return the architecture for these devices, and one line of reason for each choice.

    Args:
      tokenizer_size: tokens of the tokenizer; the embedding has at least as many rows.
      deterministic: only kernels whose gradients do not depend on the order of threads.
    Raises: UserError as from_config and vocab_rows, and for float8 with shared blocks.
    """
    device = device_kind(mesh)
    compute, compute_reason = choose_compute(device, precision.compute)
    kernel, kernel_reason = _choose_attention(device, model, compute, deterministic)
    products, products_reason = choose_products(device, precision.products)
    if products == "float8" and model.share_blocks > 1:
        # Two applications have activations of different size.
        fault = "whose scales belong to one place: config.model.share_blocks must be 1"
        raise UserError(f"config.precision.products is 'float8', {fault}.")
    walk, walk_reason = choose_recurrence(device)
    unroll, unroll_reason = choose_unroll(device, model.unroll)
    arch = from_config(
        model,
        vocab_rows(model.vocab_size, tokenizer_size),
        compute=compute,
        products=products,
        attention=kernel,
        recurrence=walk,
        unroll=unroll,
    )
    # In the order of the start banner. Choices that change nothing are left out.
    reasons = [f"compute {compute}: {compute_reason}"]
    if products != "compute":
        reasons.append(f"products {products}: {products_reason}")
    reasons.append(f"attention {kernel}: {kernel_reason}")
    mixers = {mixer_class(block.mixer) for block in arch.blocks}
    if any(issubclass(mixer, RecurrentMixer) for mixer in mixers):
        reasons.append(f"recurrence {walk}: {walk_reason}")
    reasons.append(f"stack {'unrolled' if unroll else 'scanned'}: {unroll_reason}")
    return arch, reasons


def choose_compute(device: DeviceKind, asked: str) -> tuple[str, str]:
    """Return the type of matrix products, and the reason.

    Args:
      asked: config.precision.compute.
    """
    if asked != "auto":
        return asked, "config.precision.compute"
    # V100 and T4 have float16 only; A100, H100 and TPUs have bfloat16.
    natively = f"{device.name} multiplies it natively"
    if device.platform == "tpu" or _gpu_from(device, BFLOAT16_GPU):
        return "bfloat16", natively
    if _gpu_from(device, TENSOR_CORES):
        return "float16", f"{natively} and has no bfloat16; the loss is scaled"
    return "float32", f"{device.name} has no fast bfloat16"


def choose_products(device: DeviceKind, asked: str) -> tuple[str, str]:
    """Return the type of the products of projections and MLP, and the reason.

    A CPU emulates float8, so that a user can try it there.

    Args:
      asked: config.precision.products.
    Raises: UserError for a GPU or TPU that has no float8.
    """
    if asked == "compute":
        return asked, "config.precision.products"
    if device.platform == "cpu":
        return asked, "config.precision.products; this CPU emulates it, slower than its own types"
    tpu = re.fullmatch(FLOAT8_TPU, device.name.lower())
    if tpu or _gpu_from(device, FLOAT8_GPU):
        return asked, f"{device.name} multiplies it natively"
    # Only NVIDIA GPUs have a capability.
    name = device.name
    if device.capability:
        name = f"{name} of compute capability {device.capability}"
    raise UserError(
        f"config.precision.products is '{asked}', but {name} has no float8 products (GPUs have "
        "from capability 8.9 on, TPUs from generation 7 on); use compute."
    )


def choose_recurrence(device: DeviceKind) -> tuple[str, str]:
    """Return how recurrent mixers walk over their chunks, and the reason."""
    if _gpu_from(device, BFLOAT16_GPU):
        gpu = f"GPU of compute capability {device.capability}"
        return "triton", f"{gpu}: one kernel walks over all chunks"
    return "scan", f"{device.name}: plain XLA"


def choose_unroll(device: DeviceKind, asked: str) -> tuple[bool, str]:
    """Return whether the stack is unrolled, and the reason.

    Args:
      asked: config.model.unroll.
    """
    if asked != "auto":
        return asked == "True", "config.model.unroll"
    # On a TPU, and where many hosts wait for it, compiling a list of layers takes too long.
    if device.hosts > 1 or device.platform == "tpu":
        return False, "fastest to compile"
    return True, "fastest to run on one host"


def _choose_attention(
    device: DeviceKind,
    model: ModelConfig,
    compute: str,
    deterministic: bool,
) -> tuple[str, str]:
    """Return the attention kernel, and the reason."""
    # A user's choice is checked where the kernel runs.
    if model.attention != "auto":
        return model.attention, "config.model.attention"
    choice = attention.choose(
        device.platform, device.capability, compute, model.head_dim, deterministic
    )
    return choice.kernel, choice.reason


def _gpu_from(device: DeviceKind, capability: float) -> bool:
    """Whether the device is a GPU of this compute capability or a newer one."""
    return device.platform == "gpu" and (device.capability or 0) >= capability
