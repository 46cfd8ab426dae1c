"""Several processes as one program: start, agreement on leaving, gathering small arrays."""

import importlib.util
import os

import jax
import numpy as np

from slmjax.errors import UserError


def start(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Join the other processes, if there are others; must come before anything else touches a device.

    Told by arguments, or by the environment: JAX_COORDINATOR_ADDRESS, Slurm, or a TPU pod's metadata (jax.distributed finds those itself).
    Raises: UserError where only some of the three arguments are given.
    """
    if jax.distributed.is_initialized():
        return
    if coordinator or processes or process >= 0:
        if not coordinator or processes < 1 or not 0 <= process < processes:
            raise UserError("--coordinator=HOST:PORT, --processes=N and --process=0..N-1 go together.")
        jax.distributed.initialize(coordinator, processes, process)
        return
    on_slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ
    # A TPU VM knows its slice from the metadata server; on one host the call makes a group of one.
    tpu_vm = (os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")) and importlib.util.find_spec("libtpu") is not None
    on_pod = tpu_vm or len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    if "JAX_COORDINATOR_ADDRESS" in os.environ or on_slurm or on_pod:
        jax.distributed.initialize()


def is_first() -> bool:
    """True on the process that prints and writes."""
    return jax.process_index() == 0


def leaving_together(step: int, asked: bool) -> bool:
    """True at the same step on every process once one of them was asked to leave (SIGTERM); of one process alone, `asked`."""
    if jax.process_count() == 1:
        return asked
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def local_rows(sharding: jax.sharding.Sharding, rows: int, length: int) -> np.ndarray:
    """Sorted numbers of the batch's rows that this process's devices hold."""
    slices = sharding.addressable_devices_indices_map((rows, length)).values()
    return np.unique(np.concatenate([np.arange(rows)[index[0]] for index in slices]))


def global_batch(arrays: dict, sharding: jax.sharding.Sharding, rows: int, held: np.ndarray) -> dict:
    """Device arrays [rows, T] from this process's rows: arrays[name][i] is row held[i] of the batch."""
    place = {int(row): i for i, row in enumerate(held)}

    def one(local):
        def piece(index):
            first, last, _ = index[0].indices(rows)
            start = place[first]
            return local[start : start + last - first][(slice(None), *index[1:])]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, piece)

    return {name: one(local) for name, local in arrays.items()}


def barrier(name: str) -> None:
    """Wait for every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def all_agree(good: bool) -> bool:
    """True where every process says so."""
    if jax.process_count() == 1:
        return good
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(good)).all())


def agree(value: int) -> int:
    """The first process's value, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
