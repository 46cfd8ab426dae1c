"""Several processes as one program: how they start, agree, and put batches together from rows."""

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import numpy as np

from slmjax.data.rows import Arrays, Field, Fields
from slmjax.errors import UserError, first_line
from slmjax.readable import duration

# Seconds of waiting for other processes: until the first line on stderr, between further lines,
# and until this process gives up.
FIRST_LINE, NEXT_LINE, LIMIT = 5.0, 60.0, 300.0
ESTABLISHED = "01"  # state of a connection in /proc/net/tcp


def check_devices() -> None:
    """Raises: UserError where JAX finds no device of the kind that the environment asks for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        # An AssertionError may have no text; `first_line` then gives its name.
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"JAX finds no device of JAX_PLATFORMS={asked} ({reason}); "
            "leave it unset to take what is here."
        ) from error


def start_processes(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Join the other processes, if there are others; must come before a device is touched.

    The arguments say where the others are. Without arguments the environment does:
    JAX_COORDINATOR_ADDRESS, Slurm, or a TPU pod's metadata, which jax.distributed finds itself.

    Args:
      coordinator: HOST:PORT of process 0.
      processes: how many there are.
      process: number of this one.

    Raises: UserError where only some of the three arguments are given, or joining fails.
    """
    if jax.distributed.is_initialized():
        return
    arguments: tuple = ()
    if coordinator or processes or process >= 0:
        port = _checked_port(coordinator, processes, process)
        arguments = (coordinator, processes, process)
        if process == 0:
            _check_port_is_free(port)
    if arguments or is_one_of_several():
        with waiting_reported():
            # At its own limit JAX aborts with a stack trace; `waiting_reported` gives up before.
            try:
                jax.distributed.initialize(*arguments, initialization_timeout=int(LIMIT) + 60)
            except (RuntimeError, ValueError) as error:
                # Such as a port that is taken, or an environment that says only some of it.
                reason = first_line(error).rstrip(".")
                advice = "give --coordinator=HOST:PORT, --processes=N and --process=I"
                raise UserError(f"the processes cannot be joined: {reason}; {advice}.") from error
    check_devices()


def is_one_of_several() -> bool:
    """True where the environment says that this process may have others next to it."""
    on_slurm = os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_STEP_NODELIST" in os.environ
    if "JAX_COORDINATOR_ADDRESS" in os.environ or on_slurm:
        return True
    names = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if len(names.split(",")) > 1:
        return True
    # A TPU VM may be one of several hosts, which only the metadata server knows; a single host then
    # forms a group of one. Colab's TPU is always one host, has no such server, and may have been
    # used by an earlier cell.
    on_colab = "COLAB_RELEASE_TAG" in os.environ
    has_tpu = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    return has_tpu and not on_colab and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def waiting_reported() -> Iterator[None]:
    """Inside, while jax.distributed waits for other processes, a thread prints where and for whom.

    After LIMIT seconds the thread ends the process with status 2. Ctrl-C ends it at once, by the
    system's own handler: Python's cannot interrupt JAX while it waits.
    """
    joined = threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()
    threading.Thread(target=_report_waiting, args=(joined,), daemon=True).start()
    # Only the main thread may set signal handlers.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL) if in_main_thread else None
    try:
        yield
    finally:
        joined.set()
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


def _report_waiting(joined: threading.Event) -> None:
    """Print lines until `joined` is set; end the process after LIMIT seconds."""
    began = time.monotonic()
    pause = FIRST_LINE
    while not joined.wait(min(pause, LIMIT)):
        waited = time.monotonic() - began
        if waited >= LIMIT:
            _give_up(waited)
        _say(f"{waiting_for()} ({duration(waited)} so far)")
        pause = min(NEXT_LINE, LIMIT - waited)


def _give_up(waited: float) -> NoReturn:
    advice = "start the same command once for each process, with --process=0, 1 and so on"
    _say(f"slmjax: gave up after {duration(waited)}. {waiting_for()}; {advice}.")
    os._exit(2)


def waiting_for() -> str:
    """Return where this process waits and how many others are missing, in words."""
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
    """Return the number of open connections to a port of this machine.

    There is one for each process that has joined, this one among them. It is 1 on systems other
    than Linux, which do not say.
    """
    count = 0
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}") as table:
                lines = table.readlines()
        except OSError:  # another system than Linux, or one without IPv6
            continue
        for line in lines:
            # Columns: line number, local address, remote address, state, ...
            _, local_address, _, state, *_ = line.split()
            if local_address.endswith(f":{port:04X}") and state == ESTABLISHED:
                count += 1
    return max(1, count)


def is_first() -> bool:
    """True on the process that prints and writes."""
    return jax.process_index() == 0


def leaving_together(step: int, asked: bool) -> bool:
    """True at the same step on every process, once one of them was asked to leave (SIGTERM).

    Args:
      step: number of the training step.
      asked: whether this process was asked; it decides where there is only one process.
    """
    if jax.process_count() == 1:
        return asked
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def barrier(name: str) -> None:
    """Wait for every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def all_agree(good: bool) -> bool:
    """True where `good` is true on every process."""
    if jax.process_count() == 1:
        return good
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(good)).all())


def agree(value: int) -> int:
    """Return the first process's value, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def agree_text(text: str) -> str:
    """Return the first process's text, on every process."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

    encoded = np.frombuffer(text.encode(), np.uint8)
    # The others must know how long it is.
    length = agree(len(encoded))
    padded = np.zeros(length, np.uint8)
    if is_first():
        padded[:] = encoded
    return multihost_utils.broadcast_one_to_all(padded).tobytes().decode()


def local_rows(sharding: jax.sharding.Sharding, rows: int, length: int) -> np.ndarray:
    """Return the sorted numbers of the batch's rows that this process's devices hold."""
    numbers = np.arange(rows)
    # A device's index into the batch: (its rows, its columns).
    indices = sharding.addressable_devices_indices_map((rows, length)).values()
    return np.unique(np.concatenate([numbers[index[0]] for index in indices]))


def global_batch(arrays: Arrays, fields: Fields, shardings: dict, held: np.ndarray) -> dict:
    """Return device arrays of a batch, from this process's rows.

    Args:
      arrays: arrays[name][i] is row held[i] of the batch. Fields without a batch axis are not among
        them: they are zeros.
      fields: every field of the batch, with its shape over all processes.
      held: the numbers that `local_rows` returns.
    """
    local_row = {int(row): i for i, row in enumerate(held)}  # row of the batch: row of `arrays`
    batch = {}
    for name, field in fields.items():
        if field.by_rows:
            part_at = _rows_at(arrays[name], field, local_row)
        else:
            part_at = _zeros_at(field)
        batch[name] = jax.make_array_from_callback(field.shape, shardings[name], part_at)
    return batch


def _rows_at(array: np.ndarray, field: Field, local_row: dict[int, int]) -> Callable:
    """Return a function from a device's index into the batch to its part of a field with rows."""

    def part_at(index: tuple[slice, ...]) -> np.ndarray:
        first, stop, _ = index[0].indices(field.shape[0])
        # A device holds neighbouring rows, which are neighbours in `array` too.
        start = local_row[first]
        rows = array[start : start + stop - first]
        return rows[(slice(None), *index[1:])]

    return part_at


def _zeros_at(field: Field) -> Callable:
    """Return the same kind of function for a field that is zeros."""
    return lambda index: np.zeros(field.shape, field.dtype)[index]


def _checked_port(coordinator: str, processes: int, process: int) -> int:
    """Return the coordinator's port. Raises: UserError where the three arguments do not fit."""
    has_processes = 0 < processes < 2**31
    if not coordinator or not has_processes or not 0 <= process < processes:
        raise UserError("--coordinator=HOST:PORT, --processes=N and --process=0..N-1 go together.")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator}: expected HOST:PORT, for example host0:8476.")
    return int(port)


def _check_port_is_free(port: int) -> None:
    """Raises: UserError where another program listens at the port.

    JAX would find out too, but its failure may end the process.
    """
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        reason = f"port {port} of this machine is taken ({error.strerror})"
        raise UserError(
            f"the processes cannot be joined: {reason}; give another --coordinator=HOST:PORT."
        ) from error


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
