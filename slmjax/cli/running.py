"""How a command runs and ends: exit statuses, one sentence for each mistake, and Ctrl-C."""

import contextlib
import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from slmjax.cli.arguments import check_utf8
from slmjax.errors import UserError, first_line, line_of_the_user

# Exit status after a mistake of the user or of the machine.
MISTAKE = 2
# Exit status after Ctrl-C: shells count 128 + the signal.
INTERRUPTED = 128 + signal.SIGINT
# Seconds that the program has to clean up after Ctrl-C.
UNWINDING = 5.0
# Most characters of an error's sentence on the terminal.
LONGEST = 1500
# The words of glibc and of the storage of checkpoints for a full disk.
NO_SPACE = "No space left on device"
# Errors of the system that only a program that writes can meet.
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EEXIST)


def entry(command: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command on the words of its command line.

    Returns: the exit status: 0 done, 2 a mistake of the user or of the machine (one sentence on
      stderr), 128 + signal where it was asked to leave.
    Raises: SystemExit after --help; every other exception, which is a fault of the library.
    """
    if argv is None:
        argv = sys.argv[1:]
    words = list(argv)
    _escape_what_the_terminal_lacks()
    try:
        check_utf8(words)
        return command(words) or 0
    except KeyboardInterrupt:  # before or after the training loop, which has its own way to leave
        return INTERRUPTED
    except SystemExit as error:  # from argparse after --help, from rich, or from the user's code
        # rich turns a broken pipe into SystemExit.
        if isinstance(error.__context__, BrokenPipeError):
            return _after_broken_pipe()
        place = line_of_the_user(error)
        if not place:  # argparse's, after --help
            raise
        file, line = place
        sentence = f"'{file}', line {line}: it ends the program (exit {error.code})."
        return _fail(_printable(sentence))
    except BrokenPipeError:
        return _after_broken_pipe()
    except Exception as error:
        sentence = explain(error)
        if not sentence:
            raise
        return _fail(_printable(sentence))


def script(main: Callable[[], int]) -> NoReturn:
    """Run `main` as a process of its own and end the process with its status.

    Files, names and streams are UTF-8 whatever the locale says. After Ctrl-C the process ends
    within a few seconds and skips Python's shutdown, which would wait for XLA: nothing stops its
    compiling threads.
    """
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        # Python reads this only as it starts. The option holds for this process, also under -E and
        # -I, which ignore the variable; the variable holds for the processes that it starts.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the process
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open to the end)
            setattr(sys, name, nowhere)
    # A log file gets each line when it is printed.
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _unraisable_hook(sys.unraisablehook)
    status = main()
    if status == INTERRUPTED:
        _end(status)
    sys.exit(status)


def explain(error: Exception) -> str:
    """Return one sentence for an error that is not the library's own fault, "" for any other."""
    if isinstance(error, UserError):
        return str(error)
    if place := line_of_the_user(error):
        file, line = place
        return f"'{file}', line {line}: {type(error).__name__}: {first_line(error)}"
    if isinstance(error, OSError) and error.errno:
        return _system_sentence(error)
    text = str(error)
    if sentence := _storage_sentence(text):
        return sentence
    if text == "Could not determine home directory.":  # as pathlib says it
        return (
            "a path begins with ~ and a name that no user of this machine has; "
            "write the folder out."
        )
    # XLA's words for a full memory, of the host or of a device.
    out_of_memory = "RESOURCE_EXHAUSTED" in text or "Out of memory" in text
    if isinstance(error, MemoryError) or out_of_memory:
        return f"there is not enough memory: {first_line(error)}"
    return ""


def _system_sentence(error: OSError) -> str:
    """Return a sentence on a file that the operating system refuses."""
    name = "a file"
    if isinstance(error.filename, str | bytes):
        name = f"'{os.fsdecode(error.filename)}'"
    action = "written" if error.errno in WRITING else "used"
    return f"{name} cannot be {action}: {os.strerror(error.errno)}."


def _storage_sentence(text: str) -> str:
    """Return a sentence on an error of the storage of checkpoints, which raises no OSError."""
    code = re.search(r"\[os_error_code='(\d+)'", text)
    if code is None:
        if NO_SPACE not in text:
            return ""
        return f"the work directory cannot be written: {NO_SPACE}."
    # A failed write is worded "Failed to write" or "Error writing".
    action = "written" if "writ" in text else "used"
    return f"the work directory cannot be {action}: {os.strerror(int(code[1]))}."


def _fail(sentence: str) -> int:
    """Print the sentence on a mistake and return the exit status."""
    print(f"slmjax: {sentence}", file=sys.stderr)
    return MISTAKE


def _after_broken_pipe() -> int:
    """Silence stdout, whose reader (such as `head`) has left, and return the exit status."""
    # Python flushes stdout when it ends, and would complain about the pipe once more.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _printable(sentence: str) -> str:
    """Return a sentence as one line of bounded length: a file that it quotes may hold anything."""
    characters = []
    for character in sentence:
        # Such as a control sequence of the terminal, or half a surrogate pair.
        if not character.isprintable():
            character = character.encode("unicode_escape", "surrogatepass").decode()
        characters.append(character)
    line = "".join(characters)
    if len(line) <= LONGEST:
        return line
    # Both ends: the place comes first, the advice last.
    return f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def _escape_what_the_terminal_lacks() -> None:
    """Print characters that a stream cannot encode as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _unraisable_hook(usual_hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a hook for exceptions that nobody can catch, such as those of a callback.

    Args:
      usual_hook: reports the exceptions that this hook does not know.
    """

    def hook(problem: Any) -> None:
        if isinstance(problem.exc_value, KeyboardInterrupt):  # Ctrl-C during a callback
            _end(INTERRUPTED)
        # After one array has failed, tensorstore calls back for the others when their event loop
        # is closed. That is noise: the failure itself is raised in the usual way.
        if str(problem.exc_value) != "Event loop is closed":
            usual_hook(problem)

    return hook


def _interrupt(number: int, frame: Any) -> NoReturn:
    """Handle Ctrl-C: raise, and end the process if it still runs UNWINDING seconds later."""
    # The exception may be caught by the user's code, or wait for minutes until XLA has compiled.
    timer = threading.Timer(UNWINDING, _end, (128 + number,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _end(status: int) -> NoReturn:
    """End the process at once, threads and children included."""
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)
