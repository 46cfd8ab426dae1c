"""Where a step's time goes on the device: its kernels by kind, from JAX's profiler."""

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

# A kernel is of the first kind whose pattern is in its name. Attention comes first: the name of a
# fused kernel may name its matrix products too.
KINDS = (
    ("attention", r"sdpa|fmha|flash|attention"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|matmul|(^|_)dot(_|$)"),
    ("copies and transposes", r"copy|transpose|memcpy|memset|concatenate"),
    ("reductions", r"reduce"),
    ("sorts", r"sort"),
)
OTHERS = "elementwise and the rest"


def kernels(run: Callable[[], Any], steps: int) -> list[dict[str, Any]]:
    """Profile run(), which takes `steps` steps.

    Returns: a row for each kind of kernel: its ms and calls in a step, and the kernel of this kind
      that takes most time. The last row is the time in which any kernel ran. On a CPU, XLA's
      operations take the place of kernels, and those of several threads overlap.
    """
    events = _profiled(run)
    totals: dict[str, dict[str, float]] = {}  # {kind: {kernel's name without numbers: ns}}
    calls = Counter()
    for name, start, stop in events:
        kind = _kind(name)
        # XLA numbers the copies of a kernel: fusion_3 and fusion_17 count as one.
        unnumbered = re.sub(r"[._]?\d+", "", name)
        kernel_ns = totals.setdefault(kind, defaultdict(float))
        kernel_ns[unnumbered] += stop - start
        calls[kind] += 1
    to_ms = 1 / steps / 1e6  # from ns of all steps to ms of one
    rows = []
    for kind, kernel_ns in totals.items():
        slowest = max(kernel_ns, key=kernel_ns.__getitem__)
        slowest_ms = kernel_ns[slowest] * to_ms
        rows.append(
            {
                "kernels": kind,
                "ms": sum(kernel_ns.values()) * to_ms,
                "calls": calls[kind] / steps,
                "slowest": f"{slowest_ms:.3g} ms {slowest[:50]}",
            }
        )
    rows.sort(key=lambda row: -row["ms"])
    # Less than the sum of the kinds, as kernels of several streams overlap.
    busy_ms = _busy(events) * to_ms
    rows.append({"kernels": "any", "ms": busy_ms, "calls": len(events) / steps})
    return rows


def _profiled(run: Callable[[], Any]) -> list[tuple[str, float, float]]:
    """Return (name, start, stop) in ns of every kernel that run() starts."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            # The profile ends with the block, also for kernels that still run.
            jax.block_until_ready(run())
        (file,) = Path(folder).rglob("*.xplane.pb")  # one for each host, and this is the only one
        data = jax.profiler.ProfileData.from_file(str(file))
        return list(_events(data))


def _kind(name: str) -> str:
    for kind, pattern in KINDS:
        if re.search(pattern, name.lower()):
            return kind
    return OTHERS


def _events(data: Any) -> Iterator[tuple[str, float, float]]:
    """Yield (name, start, stop) in ns of every kernel on the first device.

    Where the profile has no device, as on a CPU, XLA's operations on the host take their place.
    """
    # A plane of the profile is a device or the host; its lines are streams or threads.
    planes = {plane.name: plane for plane in data.planes}
    device = None
    for name in sorted(planes):
        # A platform may list devices on which nothing ran.
        if name.startswith("/device:") and any(planes[name].lines):
            device = planes[name]
            break
    lines = list((device or planes["/host:CPU"]).lines)
    # A GPU's other lines repeat the kernels of its streams.
    streams = [line for line in lines if line.name.startswith("Stream")]
    for line in streams or lines:
        for event in line.events:
            # The host has events of Python and of XLA's runtime too; only operations have hlo_op.
            if device or any(stat == "hlo_op" for stat, _ in event.stats):
                stop = event.start_ns + event.duration_ns
                yield event.name, event.start_ns, stop


def _busy(events: list[tuple[str, float, float]]) -> float:
    """Return the nanoseconds in which at least one event ran."""
    covered, end = 0.0, 0.0
    # In the order of starts, each event adds its part after the latest end so far.
    for _, start, stop in sorted(events, key=lambda event: event[1]):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered
