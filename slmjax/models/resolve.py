"""Choices that depend on the device: compute type, attention kernel, unrolling.

The devices are those of the mesh, so that an ahead-of-time plan makes the choices of the run.
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

# Names of the TPUs that have float8 products: Google Cloud's page of TPU7x (Ironwood) names fp8,
# those of v6e and older do not.
FLOAT8_TPU = r"tpu ?v?7x?"
# Lowest CUDA compute capabilities of GPUs with
FLOAT16_GPU = 7.0  # float16 products
BFLOAT16_GPU = 8.0  # bfloat16 products, and Triton kernels
FLOAT8_GPU = 8.9  # float8 products


def resolve(
    model: ModelConfig,
    precision: PrecisionConfig,
    mesh: Mesh,
    tokenizer_size: int,
    deterministic: bool = False,
) -> tuple[Architecture, list[str]]:
    """Return the architecture for these devices, and a line "choice: reason" for each choice.

    Args:
      tokenizer_size: tokens of the tokenizer; the embedding has at least as many rows.
      deterministic: choose only kernels whose gradients do not depend on the order of threads.
    Raises: UserError as from_config, vocab_rows and choose_products, and for float8 with shared
      blocks.
    """
    device = device_kind(mesh)
    compute, compute_reason = choose_compute(device, precision.compute)
    kernel, kernel_reason = _choose_attention(device, model, compute, deterministic)
    products, products_reason = choose_products(device, precision.products)
    if products == "float8" and model.share_blocks > 1:
        # Activations of a block's applications differ in size, but would have one scale.
        fault = "whose scales belong to one place: config.model.share_blocks must be 1"
        raise UserError(f"config.precision.products is 'float8', {fault}.")
    recurrence, recurrence_reason = choose_recurrence(device)
    unroll, unroll_reason = choose_unroll(device, model.unroll)
    arch = from_config(
        model,
        vocab_rows(model.vocab_size, tokenizer_size),
        compute=compute,
        products=products,
        attention=kernel,
        recurrence=recurrence,
        unroll=unroll,
    )
    # In the order of the start banner. Choices that change nothing are left out.
    reasons = [f"compute {compute}: {compute_reason}"]
    if products != "compute":
        reasons.append(f"products {products}: {products_reason}")
    reasons.append(f"attention {kernel}: {kernel_reason}")
    mixers = {mixer_class(block.mixer) for block in arch.blocks}
    if any(issubclass(mixer, RecurrentMixer) for mixer in mixers):
        reasons.append(f"recurrence {recurrence}: {recurrence_reason}")
    stack = "unrolled" if unroll else "scanned"
    reasons.append(f"stack {stack}: {unroll_reason}")
    return arch, reasons


def choose_compute(device: DeviceKind, asked: str) -> tuple[str, str]:
    """Return the type of matrix products, and the reason.

    Args:
      asked: config.precision.compute.
    """
    if asked != "auto":
        return asked, "config.precision.compute"
    natively = f"{device.name} multiplies it natively"
    if device.platform == "tpu" or _gpu_from(device, BFLOAT16_GPU):
        return "bfloat16", natively
    # Such as V100 and T4.
    if _gpu_from(device, FLOAT16_GPU):
        return "float16", f"{natively} and has no bfloat16; the loss is scaled"
    return "float32", f"{device.name} has no fast bfloat16"


def choose_products(device: DeviceKind, asked: str) -> tuple[str, str]:
    """Return the type of the products of projections and MLP, and the reason.

    Args:
      asked: config.precision.products. A CPU emulates float8, so that a user can try it there.
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
    # Compiling each layer anew takes long on a TPU, and on several hosts all devices wait for it.
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
    # A user's choice is not checked here: the kernel itself refuses what it cannot do.
    if model.attention != "auto":
        return model.attention, "config.model.attention"
    choice = attention.choose(
        device.platform, device.capability, compute, model.head_dim, deterministic
    )
    return choice.kernel, choice.reason


def _gpu_from(device: DeviceKind, capability: float) -> bool:
    """Whether the device is a GPU of this compute capability or a newer one."""
    return device.platform == "gpu" and (device.capability or 0) >= capability
