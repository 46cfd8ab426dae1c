"""Where a step's time goes on the device: its kernels by kind, from JAX's profiler."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

# A kernel is of the first kind whose pattern is found in its name.
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

    Returns: rows with the kind of kernel, its ms and calls a step, and the slowest kernel's name.
      The last row is the time in which any kernel ran. On a CPU, XLA's operations take the place
      of kernels, and those of several threads overlap.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (file,) = Path(folder).rglob("*.xplane.pb")
        events = list(_events(jax.profiler.ProfileData.from_file(str(file))))
    # {kind: {kernel's name without numbers: [ns of each call]}}
    by_kind: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, start, stop in events:
        by_kind[_kind(name)][re.sub(r"[._]?\d+", "", name)].append(stop - start)
    to_ms = 1 / steps / 1e6  # from nanoseconds of all steps
    rows = []
    for kind, calls in by_kind.items():
        totals = {name: sum(times) for name, times in calls.items()}
        slowest = max(totals, key=totals.__getitem__)
        rows.append(
            {
                "kernels": kind,
                "ms": sum(totals.values()) * to_ms,
                "calls": sum(map(len, calls.values())) / steps,
                "slowest": f"{totals[slowest] * to_ms:.3g} ms {slowest[:50]}",
            }
        )
    rows.sort(key=lambda row: -row["ms"])
    rows.append({"kernels": "any", "ms": _busy(events) * to_ms, "calls": len(events) / steps})
    return rows


def _kind(name: str) -> str:
    for kind, pattern in KINDS:
        if re.search(pattern, name.lower()):
            return kind
    return OTHERS


def _events(data: Any) -> Iterator[tuple[str, float, float]]:
    """Yield (name, start, stop) in ns of every kernel on the first device.

    XLA's operations take their place where the platform's profile has no device.
    """
    planes = {plane.name: plane for plane in data.planes}
    on_devices = [name for name in sorted(planes) if name.startswith("/device:")]
    device = next((planes[name] for name in on_devices if any(planes[name].lines)), None)
    lines = list((device or planes["/host:CPU"]).lines)
    # A GPU's other lines repeat the kernels of its streams.
    lines = [line for line in lines if line.name.startswith("Stream")] or lines
    for line in lines:
        for event in line.events:
            if device or any(name == "hlo_op" for name, _ in event.stats):
                yield event.name, event.start_ns, event.start_ns + event.duration_ns


def _busy(events: list[tuple[str, float, float]]) -> float:
    """Return the nanoseconds that the union of the events covers."""
    covered, end = 0.0, 0.0
    for _, start, stop in sorted(events, key=lambda event: event[1]):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered
