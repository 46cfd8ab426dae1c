"""Counts, durations and nested configs as text, and a line where work takes long."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping

# Seconds that work may take without a line; after them a person wants to know what goes on.
SILENCE = 3.0

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(value: float, digits: int = 3) -> str:
    """Return a number with a letter: 304_123_456 -> "304M", 1.5e12 -> "1.5T"; B is 1e9.

    "-" where the value is not finite.
    """
    if not math.isfinite(value):
        return "-"
    for size, letter in _PREFIXES:
        # Rounded first, so that 999.6 is 1k and not 1000.
        if float(f"{abs(value):.{digits}g}") < size:
            continue
        scaled = value / size
        # Format g would turn many digits before the point into an exponent.
        if abs(scaled) >= 10 ** (digits - 1):
            return f"{scaled:.0f}{letter}"
        return f"{scaled:.{digits}g}{letter}"
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Return seconds as a person says them.

    "0.4 s", "48 s", "2 min 05 s", "3 h 12 min", "2 d 04 h"; "-" where not finite.
    """
    if not math.isfinite(seconds):
        return "-"
    if seconds < 9.95:  # more would be rounded to 10.0
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def percent(share: float, digits: int = 1) -> str:
    """Return a share of one as "97.3 %"; "-" where it is not finite."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "-"


def flatten(config: Mapping, prefix: str = "") -> dict[str, object]:
    """Return a nested config as {"model.layers": 12, ...}; empty mappings stay as values."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        # An empty mapping would vanish, and with it that the field is empty.
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


@contextlib.contextmanager
def said_if_long(
    what: str, *, active: bool = True, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Print that `what` is being done if the block takes more than SILENCE seconds."""

    def print_line() -> None:
        # Where nobody reads any more, the work itself meets the error when it prints.
        with contextlib.suppress(OSError):
            say(f"{what} ...")

    timer = threading.Timer(SILENCE, print_line)
    # The program must not wait for it at its end.
    timer.daemon = True
    if active:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
