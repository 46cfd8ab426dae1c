"""Where a step's time goes on the device: its kernels by kind, from JAX's profiler."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

KINDS = (
    ("attention", r"sdpa|fmha|flash|attention"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|matmul|(^|_)dot(_|$)"),
    ("copies and transposes", r"copy|transpose|memcpy|memset|concatenate"),
    ("reductions", r"reduce"),
    ("sorts", r"sort"),
)  # the first that a kernel's name holds


def kernels(run: Callable[[], Any], steps: int) -> list[dict[str, Any]]:
    """Rows of what the device did in run(), which takes `steps` steps: kernel kind, ms and calls a step, and the slowest kernel's name.

    The last row is the time in which any kernel ran. On a CPU, XLA's operations stand in for kernels, and those of several threads overlap.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (file,) = Path(folder).rglob("*.xplane.pb")
        events = list(_events(jax.profiler.ProfileData.from_file(str(file))))
    by_kind: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, start, stop in events:
        kind = next(
            (kind for kind, pattern in KINDS if re.search(pattern, name.lower())),
            "elementwise and the rest",
        )
        by_kind[kind][re.sub(r"[._]?\d+", "", name)].append(stop - start)
    rows = []
    for kind, found in by_kind.items():
        slowest = max(found, key=lambda name: sum(found[name]))
        rows.append(
            {
                "kernels": kind,
                "ms": sum(map(sum, found.values())) / steps / 1e6,
                "calls": sum(map(len, found.values())) / steps,
                "slowest": f"{sum(found[slowest]) / steps / 1e6:.3g} ms {slowest[:50]}",
            }
        )
    rows.sort(key=lambda row: -row["ms"])
    return [
        *rows,
        {"kernels": "any", "ms": _busy(events) / steps / 1e6, "calls": len(events) / steps},
    ]


def _events(data: Any) -> Iterator[tuple[str, float, float]]:
    """(name, start, stop) in ns of every kernel on the first device; of XLA's operations where the platform's profile has no device."""
    planes = {plane.name: plane for plane in data.planes}
    device = next(
        (
            planes[name]
            for name in sorted(planes)
            if name.startswith("/device:") and any(planes[name].lines)
        ),
        None,
    )
    lines = list(device.lines if device else planes["/host:CPU"].lines)
    lines = [
        line for line in lines if line.name.startswith("Stream")
    ] or lines  # a GPU's other lines say the same once more
    for line in lines:
        for event in line.events:
            if device or any(name == "hlo_op" for name, _ in event.stats):
                yield event.name, event.start_ns, event.start_ns + event.duration_ns


def _busy(events: list[tuple[str, float, float]]) -> float:
    """Nanoseconds that the union of the events covers."""
    covered, end = 0.0, 0.0
    for _, start, stop in sorted(events, key=lambda event: event[1]):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered
