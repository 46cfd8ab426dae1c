"""The pieces of a training step, each next to its own ceiling: they show where speed is lost.

The ceiling of a piece is the larger of two times: its matrix products at the rate of a large
product on this device, and the bytes that it must at least read and write at the rate of a copy.
"""

from typing import Any

from slmjax.bench.step_pieces import step_pieces
from slmjax.bench.timing import copy_bytes, device_ms, matmul_flops
from slmjax.train.program import Program

LONG = ("stack", "optimizer")  # pieces that take so long that one call is enough


def ladder(program: Program, batch: dict) -> list[dict[str, Any]]:
    """Time every piece of a program's step on one device.

    Args:
      batch: as the train step takes it.
    Returns: rows with piece, times, ms of one run, step_ms (of all its runs in a step), ceiling_ms,
      and reached, the share of the ceiling. The first row names the device's rates.
    """
    # A CPU would need minutes for the sizes at which a GPU reaches its rate.
    small = program.device.platform == "cpu"
    rate = matmul_flops(program.arch.compute, 512 if small else 8192)
    bandwidth = copy_bytes(1 << 24 if small else 1 << 30)
    ceilings = f"ceilings: {rate / 1e12:.3g} TFLOP/s, {bandwidth / 1e12:.3g} TB/s"
    rows = [{"piece": ceilings}]
    for piece in step_pieces(program, batch):
        repeats = 1 if piece.name in LONG else 8
        ms = device_ms(piece.run, *piece.arguments, repeats=repeats)
        least_seconds = max(piece.flops / rate, piece.bytes / bandwidth)
        ceiling_ms = 1e3 * least_seconds
        rows.append(
            {
                "piece": piece.name,
                "times": piece.times,
                "ms": ms,
                "step_ms": ms * piece.times,
                "ceiling_ms": ceiling_ms,
                "reached": ceiling_ms / ms,
            }
        )
    return rows
