"""The device mesh, facts about its devices, and how activations are split over it."""

import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence", "expert")
BATCH = ("data", "fsdp")  # the axes that split a batch


class DeviceKind(NamedTuple):
    """The properties of a device that decide about kernels, types and sizes."""

    platform: str  # cpu, gpu, tpu
    name: str  # "NVIDIA H100 80GB HBM3", "TPU v5 lite"
    capability: float | None  # CUDA compute capability
    memory: float | None  # bytes, None where the device does not say
    hosts: int


def make_mesh(sizes: dict[str, int], devices: Sequence | None = None) -> Mesh:
    """Return a mesh with the axes data, fsdp, tensor, sequence, expert (type Auto).

    Args:
      sizes: devices along each axis; one may be -1, for all that are left.
      devices: default all devices of all processes.

    Raises: UserError where the sizes do not multiply to the number of devices.
    """
    if devices is None:
        devices = jax.devices()
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"config.mesh is {dict(sizes)}; sizes are positive, and at most one is -1.")
    given = math.prod(size for size in shape if size != -1)  # devices without the axis of -1
    if -1 in shape and len(devices) % given == 0:
        shape[shape.index(-1)] = len(devices) // given
    if math.prod(shape) != len(devices):
        raise UserError(
            f"config.mesh is {dict(sizes)}, which does not multiply to the {len(devices)} devices "
            "that are here."
        )
    if devices[0].platform == "tpu" and len(devices) > 1:
        # Neighbours in the mesh become neighbouring chips.
        from jax.experimental import mesh_utils

        grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_memory(device: DeviceKind) -> float | None:
    """Return a device's memory in bytes, that of the machine for a CPU; None if not known."""
    if device.memory or device.platform != "cpu":
        return device.memory
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # a system without these names
        return None


def device_kind(mesh: Mesh) -> DeviceKind:
    """Return the properties of the mesh's devices, read from the first one.

    The mesh may hold descriptions instead of devices, as for an ahead-of-time compile.
    """
    device = mesh.devices.flat[0]
    platform = device.platform
    if platform in ("cuda", "rocm"):
        platform = "gpu"
    capability = None
    if platform == "gpu":
        text = getattr(device, "compute_capability", None)
        if text:
            capability = float(text)
    try:
        memory = (device.memory_stats() or {}).get("bytes_limit")
    except (RuntimeError, AttributeError, jax.errors.JaxRuntimeError):  # as from a description
        memory = None
    processes = {other.process_index for other in mesh.devices.flat}
    return DeviceKind(platform, device.device_kind, capability, memory, len(processes))


def constrain(x: jax.Array, *spec) -> jax.Array:
    """Return `x` with its sharding fixed to `spec` on the current mesh; x itself without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*spec))


def ways(*axes: str) -> int:
    """Return the product of the current mesh's sizes along `axes`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    return math.prod(mesh.shape[axis] for axis in axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of rows over data and fsdp."""
    return NamedSharding(mesh, P(BATCH))


def per_device_heads(kernel: Callable) -> Callable:
    """Return `kernel` so that it runs on each device's own rows and heads.

    Rows are split over data and fsdp, heads over tensor. Where the tensor axis does not divide K,
    each device holds all key/value heads and uses the one that its query heads share. Without a
    mesh the kernel runs as it is.

    Args:
      kernel: function of query [B,T,N,H], key [B,T,K,H], value [B,T,K,H] and segments [B,T].
    """

    def run(
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        segments: Int[Array, "B T"],
    ) -> Float[Array, "B T N H"]:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return kernel(query, key, value, segments)
        N, K = query.shape[2], key.shape[2]
        splits_kv_heads = K % mesh.shape["tensor"] == 0
        heads = P(BATCH, None, "tensor", None)
        kv_heads = heads if splits_kv_heads else P(BATCH, None, None, None)

        def run_on_device(q, k, v, s):
            if not splits_kv_heads:
                # N // K query heads share a key/value head.
                first_query_head = jax.lax.axis_index("tensor") * q.shape[2]
                kv_head = first_query_head // (N // K)
                k, v = _one_head(k, kv_head), _one_head(v, kv_head)
            return kernel(q, k, v, s)

        in_specs = (heads, kv_heads, kv_heads, P(BATCH, None))
        sharded = jax.shard_map(run_on_device, in_specs=in_specs, out_specs=heads, check_vma=False)
        return sharded(query, key, value, segments)

    return run


def _one_head(x: Float[Array, "B T K H"], head: Int[Array, ""]) -> Float[Array, "B T 1 H"]:
    return jax.lax.dynamic_slice_in_dim(x, head, 1, axis=2)
