"""How counts, durations and nested configs read as text, and a line where work takes long; shared by all that prints."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping

SILENCE = 3.0
"""Seconds that work may take without a line; after them a person wants to know what goes on."""

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(value: float, digits: int = 3) -> str:
    """A number with a letter: 304_123_456 -> "304M", 1.5e12 -> "1.5T"; B is 1e9. "-" where the value is not finite."""
    if not math.isfinite(value):
        return "-"
    for size, letter in _PREFIXES:
        if float(f"{abs(value):.{digits}g}") >= size:
            scaled = value / size
            return (
                f"{scaled:.0f}" if abs(scaled) >= 10 ** (digits - 1) else f"{scaled:.{digits}g}"
            ) + letter
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "0.4 s", "48 s", "2 min 05 s", "3 h 12 min", "2 d 04 h"; "-" where not finite."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 9.95:
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
    """A share of one as "97.3 %"; "-" where it is not finite."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "-"


def flatten(config: Mapping, prefix: str = "") -> dict[str, object]:
    """A nested config as {"model.layers": 12, ...}; an empty mapping stays as a value, so that it is not lost."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


@contextlib.contextmanager
def said_if_long(
    what: str, *, active: bool = True, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Inside, `what` is done; it is said where it takes more than SILENCE seconds."""

    def line() -> None:
        with contextlib.suppress(
            OSError
        ):  # nobody reads any more; the work itself finds out when it prints
            say(f"{what} ...")

    timer = threading.Timer(SILENCE, line)
    timer.daemon = True
    if active:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
