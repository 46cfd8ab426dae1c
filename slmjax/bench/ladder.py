"""The pieces of a training step, each next to its own ceiling: they show where speed is lost.

The ceiling of a piece is the shortest time that this device allows. It is the larger of two: the
time of its matrix products at the FLOP/s of a large product, and the time in which the bytes that
it must read and write could be copied.
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
    Returns: rows with piece, times (runs in a step), ms of one run, step_ms of all runs in a step,
      ceiling_ms of one run, and reached, which is ceiling_ms / ms. The first row names the device's
      FLOP/s and bandwidth.
    """
    matrix_size = 8192
    copied_bytes = 1 << 30
    if program.device.platform == "cpu":
        # A CPU would need minutes for the sizes at which a GPU reaches its full speed.
        matrix_size = 512
        copied_bytes = 1 << 24
    flops_per_second = matmul_flops(program.arch.compute, matrix_size)
    bytes_per_second = copy_bytes(copied_bytes)
    tera_flops = flops_per_second / 1e12
    tera_bytes = bytes_per_second / 1e12
    ceilings = f"ceilings: {tera_flops:.3g} TFLOP/s, {tera_bytes:.3g} TB/s"
    rows = [{"piece": ceilings}]
    for piece in step_pieces(program, batch):
        repeats = 1 if piece.name in LONG else 8
        ms = device_ms(piece.run, *piece.arguments, repeats=repeats)
        least_seconds = max(piece.flops / flops_per_second, piece.bytes / bytes_per_second)
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
