"""Words for a reader: counts, durations and shares as text, and a line while work takes long.

Also `flatten`, which gives nested configs dotted names.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping

# Seconds after which `said_if_long` prints its line, as a person then wants to know what goes on.
SILENCE = 3.0

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(value: float, digits: int = 3) -> str:
    """Return a number with a letter for its size: 304_123_456 -> "304M", 1.5e9 -> "1.5B".

    Args:
      digits: significant digits.
    Returns: "-" where the value is not finite.
    """
    if not math.isfinite(value):
        return "-"
    for size, letter in _PREFIXES:
        # The rounded value decides, so that 999.6 is 1k and not 1000.
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

    Returns: such as "0.4 s", "48 s", "2 min 05 s", "3 h 12 min", "2 d 04 h"; "-" where `seconds` is
      not finite.
    """
    if not math.isfinite(seconds):
        return "-"
    if seconds < 9.95:  # from here on one decimal would give "10.0 s"
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
    """Return a nested config as {"model.layers": 12, ...}; empty mappings stay as values.

    Args:
      prefix: put before each name.
    """
    flat: dict[str, object] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        # Flattened, an empty mapping would leave no trace of its field.
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


@contextlib.contextmanager
def said_if_long(
    what: str, *, active: bool = True, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Inside, print "<what> ..." if more than SILENCE seconds pass.

    Args:
      what: the work, such as "reading the model".
      active: False never prints.
      say: prints the line.
    """

    def print_line() -> None:
        # A closed pipe is not this timer's matter: the work itself meets it when it prints.
        with contextlib.suppress(OSError):
            say(f"{what} ...")

    timer = threading.Timer(SILENCE, print_line)
    # The program must not wait for the timer when it ends.
    timer.daemon = True
    if active:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
