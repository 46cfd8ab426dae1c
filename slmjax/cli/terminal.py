"""Talk with a person or a program: their lines, text that streams, lines on stderr, Ctrl-C."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from slmjax.errors import UserError

ASK = "> "  # where a person types
BYTE_ORDER_MARK = "\ufeff"  # some editors put it before a text
DIM, PLAIN = "\x1b[2m", "\x1b[0m"  # escape codes of terminals


def typed_lines() -> Iterator[str]:
    """Yield what a person types in a terminal."""
    # A terminal of another encoding may send bytes that are no UTF-8: they do not end the session.
    sys.stdin.reconfigure(errors="replace")
    edited = sys.stdout.isatty()
    if edited:
        # For `input`: lines can be edited and called back with the arrow keys. Not all Pythons
        # have the module.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    while True:
        if edited:
            try:
                yield input(ASK)
                continue
            except EOFError:
                line = ""
            except KeyboardInterrupt:
                # So that the next output begins on a line of its own.
                print(file=sys.stderr)
                raise
        else:
            # stdout is a file or a pipe, which holds answers only.
            print(ASK, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        yield line.rstrip("\r\n")


def piped_lines() -> Iterator[str]:
    """Yield the lines of stdin, which is UTF-8 in every locale.

    Raises: UserError naming a line that is not UTF-8.
    """
    if sys.stdin is None:  # closed by whoever started the process
        return
    # Tests and notebooks replace stdin by a stream of text without a buffer of bytes.
    lines = getattr(sys.stdin, "buffer", sys.stdin)
    end = lines.read(0)  # "" or b"", as readline returns at the end
    # readline, since a loop over the stream would wait until a buffer is full.
    for number, line in enumerate(iter(lines.readline, end), 1):
        try:
            text = line.decode("utf-8") if isinstance(line, bytes) else line
        except UnicodeDecodeError as error:
            place = f"line {number} of stdin"
            raise UserError(f"{place} is not UTF-8 (byte {error.start}).") from None
        if number == 1:
            text = text.removeprefix(BYTE_ORDER_MARK)
        yield text.rstrip("\r\n")


def show(text: str) -> None:
    """Print a piece of an answer; for a terminal, control characters are escaped."""
    if sys.stdout.isatty():
        characters = []
        for character in text:
            if not (character.isprintable() or character in "\n\t"):
                character = character.encode("unicode_escape").decode()
            characters.append(character)
        text = "".join(characters)
    print(text, end="", flush=True)


def say(text: str) -> None:
    """Print a line about the session to stderr, dim on a terminal."""
    # See no-color.org.
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        text = f"{DIM}{text}{PLAIN}"
    print(text, file=sys.stderr)


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yield a list to which the first Ctrl-C adds an entry; a second one acts as usual."""
    interrupts: list[int] = []
    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    usual = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        interrupts.append(number)
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, stop)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, usual)
