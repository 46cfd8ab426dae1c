"""Several processes as one program: start, agreement on leaving, gathering small arrays."""

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np

from slmjax.data.rows import Arrays, Field, Fields
from slmjax.errors import UserError, first_line
from slmjax.readable import duration

# Seconds of waiting for other processes: until the first line that says so, from line to line, and
# until this process gives up.
FIRST_LINE, NEXT_LINE, LIMIT = 5.0, 60.0, 300.0


def check_devices() -> None:
    """Raises: UserError where JAX finds no device of the kind that the environment asks for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of an empty AssertionError the name
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device of JAX_PLATFORMS={asked} ({first_line(error).rstrip('.')}); leave it unset to take what is here."
        ) from error


def start_processes(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Join the other processes, if there are others; must come before anything else touches a device.

    Told by arguments, or by the environment: JAX_COORDINATOR_ADDRESS, Slurm, or a TPU pod's metadata (jax.distributed finds those itself).
    Raises: UserError where only some of the three arguments are given.
    """
    if jax.distributed.is_initialized():
        return
    given: tuple = ()
    if coordinator or processes or process >= 0:
        if not coordinator or not 0 < processes < 2**31 or not 0 <= process < processes:
            raise UserError(
                "--coordinator=HOST:PORT, --processes=N and --process=0..N-1 go together."
            )
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(
                f"--coordinator={coordinator}: expected HOST:PORT, for example host0:8476."
            )
        given = (coordinator, processes, process)
        if process == 0:
            _check_port(int(port))
    if given or is_one_of_several():
        with waiting_is_said():
            # JAX itself aborts with a stack trace; the sentence comes before.
            try:
                jax.distributed.initialize(*given, initialization_timeout=int(LIMIT) + 60)
            except (
                RuntimeError,
                ValueError,
            ) as error:  # a port that is taken, half of an environment
                advice = "give --coordinator=HOST:PORT, --processes=N and --process=I"
                raise UserError(
                    f"the processes cannot be joined: {first_line(error).rstrip('.')}; {advice}."
                ) from error
    check_devices()


def is_one_of_several() -> bool:
    """True where the environment says that this process may have others next to it."""
    on_slurm = os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_STEP_NODELIST" in os.environ
    if "JAX_COORDINATOR_ADDRESS" in os.environ or on_slurm:
        return True
    names = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if len(names.split(",")) > 1:
        return True
    # A TPU VM knows its slice from the metadata server; on one host the call makes a group of one.
    # Colab's TPU is always one host, has no such server, and may have been used by an earlier cell.
    on_colab = "COLAB_RELEASE_TAG" in os.environ
    has_tpu = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    return has_tpu and not on_colab and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def waiting_is_said() -> Iterator[None]:
    """Inside, jax.distributed waits for all processes; a thread says where and for how many.

    After LIMIT seconds it ends the process with status 2, as Ctrl-C ends it at once: what JAX does
    there can be interrupted in no other way.
    """
    joined = threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()

    def follow() -> None:
        began, pause = time.monotonic(), FIRST_LINE
        while not joined.wait(min(pause, LIMIT)):
            waited = time.monotonic() - began
            if waited >= LIMIT:
                advice = (
                    "start the same command once for each process, with --process=0, 1 and so on"
                )
                _say(f"slmjax: gave up after {duration(waited)}. {waiting_for()}; {advice}.")
                os._exit(2)
            _say(f"{waiting_for()} ({duration(waited)} so far)")
            pause = min(NEXT_LINE, LIMIT - waited)

    threading.Thread(target=follow, daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL) if in_main_thread else None
    try:
        yield
    finally:
        joined.set()
        if in_main_thread:
            signal.signal(signal.SIGINT, before)


def waiting_for() -> str:
    """Where this process waits and how many others are missing, in words."""
    from jax._src.distributed import global_state as state  # knows what Slurm or a pod said

    if state.coordinator_address is None:
        return "This process waits to be told of the others"
    me = f"Process {state.process_id} of {state.num_processes}"
    host, _, port = state.coordinator_address.rpartition(":")
    if state.process_id == 0:
        missing = max(1, state.num_processes - connections(int(port)))
        return f"{me} waits at {host}:{port} until all have joined: {missing} missing"
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return f"{me} waits for process 0, which does not answer at {host}:{port}"
    return f"{me} has reached process 0 at {host}:{port} and waits until all have joined"


def connections(port: int) -> int:
    """Open connections to a port of this machine: one for each process that has joined, this one among them."""
    count = 0
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}") as table:
                rows = [line.split() for line in table]
        except OSError:  # another system than Linux
            return 1
        count += sum(
            row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows
        )  # 01: established
    return count


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def is_first() -> bool:
    """True on the process that prints and writes."""
    return jax.process_index() == 0


def leaving_together(step: int, asked: bool) -> bool:
    """True at the same step on every process once one of them was asked to leave (SIGTERM); of one process alone, `asked`."""
    if jax.process_count() == 1:
        return asked
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def _check_port(port: int) -> None:
    """Raises: UserError where another program listens there; JAX's own attempt may end the process."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        reason = f"port {port} of this machine is taken ({error.strerror})"
        raise UserError(
            f"the processes cannot be joined: {reason}; give another --coordinator=HOST:PORT."
        ) from error


def local_rows(sharding: jax.sharding.Sharding, rows: int, length: int) -> np.ndarray:
    """Sorted numbers of the batch's rows that this process's devices hold."""
    slices = sharding.addressable_devices_indices_map((rows, length)).values()
    return np.unique(np.concatenate([np.arange(rows)[index[0]] for index in slices]))


def global_batch(arrays: Arrays, fields: Fields, shardings: dict, held: np.ndarray) -> dict:
    """Device arrays of a batch from this process's rows: arrays[name][i] is row held[i] of the batch.

    Fields without a batch axis are not among `arrays`: they are zeros.
    """
    place = {int(row): i for i, row in enumerate(held)}

    def one(name: str, field: Field):
        def piece(index):
            first, last, _ = index[0].indices(field.shape[0])
            start = place[first]
            return arrays[name][start : start + last - first][(slice(None), *index[1:])]

        def zeros(index):
            return np.zeros(field.shape, field.dtype)[index]

        return jax.make_array_from_callback(
            field.shape, shardings[name], piece if field.by_rows else zeros
        )

    return {name: one(name, field) for name, field in fields.items()}


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
