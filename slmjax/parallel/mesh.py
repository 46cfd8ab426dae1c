"""The device mesh, what its devices can do, and the helpers through which activations meet it."""

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence", "expert")
BATCH = ("data", "fsdp")  # the axes that split a batch


class DeviceKind(NamedTuple):
    """What the rest of the library asks of a device."""

    platform: str  # cpu, gpu, tpu
    name: str  # "NVIDIA H100 80GB HBM3", "TPU v5 lite"
    capability: float | None  # CUDA compute capability
    memory: float | None  # bytes, None where the device does not say
    hosts: int


def make_mesh(sizes: dict[str, int], devices: list | None = None) -> Mesh:
    """A mesh with the axes data, fsdp, tensor, sequence, expert (type Auto); one size may be -1.

    Args:
      sizes: devices along each axis.
      devices: default all devices of all processes.
    Raises: UserError where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"config.mesh is {dict(sizes)}; sizes are positive, and at most one is -1.")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise UserError(
            f"config.mesh is {dict(sizes)}, which does not multiply to the {len(devices)} devices that are here."
        )
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils

        grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_memory(device: DeviceKind) -> float | None:
    """Bytes of memory of a device: what it says, or this machine's for a CPU; None where neither is known."""
    if device.memory or device.platform != "cpu":
        return device.memory
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # another system
        return None


def device_kind(mesh: Mesh) -> DeviceKind:
    """What the mesh's devices are; works for the described devices of an ahead-of-time compile too."""
    device = mesh.devices.flat[0]
    platform = "gpu" if device.platform in ("gpu", "cuda", "rocm") else device.platform
    capability = None
    if platform == "gpu":
        text = getattr(device, "compute_capability", None)
        capability = float(text) if text else None
    try:
        memory = (device.memory_stats() or {}).get("bytes_limit")
    except (RuntimeError, AttributeError, jax.errors.JaxRuntimeError):
        memory = None
    return DeviceKind(
        platform,
        device.device_kind,
        capability,
        memory,
        len({d.process_index for d in mesh.devices.flat}),
    )


def constrain(x: jax.Array, *spec) -> jax.Array:
    """`x` with its sharding fixed to `spec` on the mesh in force; x itself where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*spec))


def ways(*axes: str) -> int:
    """Devices along these axes together of the mesh in force; 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp."""
    return NamedSharding(mesh, P(BATCH))


def per_device_heads(kernel: Callable) -> Callable:
    """A kernel(query [B,T,N,H], key [B,T,K,H], value, segments [B,T]) that runs on each device's own rows and heads.

    Rows are split over data and fsdp, heads over tensor; where the tensor axis exceeds K, each device takes the one key/value head of its
    queries. Without a mesh, the kernel itself.
    """

    def run(query, key, value, segments):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return kernel(query, key, value, segments)
        tensor, K = mesh.shape["tensor"], key.shape[2]
        split = K % tensor == 0
        heads = P(BATCH, None, "tensor", None)
        kv = heads if split else P(BATCH, None, None, None)

        def local(q, k, v, s):
            if not split:
                first = jax.lax.axis_index("tensor") * q.shape[2] // (query.shape[2] // K)
                k, v = (jax.lax.dynamic_slice_in_dim(a, first, 1, axis=2) for a in (k, v))
            return kernel(q, k, v, s)

        return jax.shard_map(
            local, in_specs=(heads, kv, kv, P(BATCH, None)), out_specs=heads, check_vma=False
        )(query, key, value, segments)

    return run
