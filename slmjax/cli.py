"""The command line of every command: recipe and options, exit statuses, one sentence for each mistake, Ctrl-C."""

import argparse
import contextlib
import dataclasses
import errno
import itertools
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from slmjax import config as configs
from slmjax.errors import UserError, first_line, line_of_the_user, nearest
from slmjax.text.remote import work_place
from slmjax.text.sources import parse_sources

UNWINDING = 5.0  # seconds that the program has to clean up after Ctrl-C
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EEXIST)  # what only writing can meet
LONGEST = 1500  # characters of a sentence
NO_SPACE = "No space left on device"


def entry(command: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command on the words of its command line.

    Returns: the exit status: 0 done, 2 a mistake of the user or of the machine's (one sentence on
      stderr), 128 + signal when told to leave.
    Raises: every other exception, which is a fault of the library.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _escape_what_the_terminal_lacks()
    try:
        check_utf8(words)
        return command(words) or 0
    except KeyboardInterrupt:  # before or after the training loop, which has its own way to leave
        return 128 + signal.SIGINT
    except SystemExit as error:  # of argparse, after --help; of rich; of the user's own code
        if isinstance(error.__context__, BrokenPipeError):
            return _unread()
        place = line_of_the_user(error)
        if not place:
            raise
        file, line = place
        print(
            f"slmjax: '{file}', line {line}: it ends the program (exit {error.code}).",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        sentence = explain(error)
        if not sentence:
            raise
        print(f"slmjax: {_printable(sentence)}", file=sys.stderr)
        return 2


def _unread() -> int:
    """The exit status where the reader of a pipe, such as `head`, has seen enough."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def explain(error: Exception) -> str:
    """One sentence for an error that is not the library's own fault, "" for any other."""
    if isinstance(error, UserError):
        return str(error)
    if place := line_of_the_user(error):
        file, line = place
        return f"'{file}', line {line}: {type(error).__name__}: {first_line(error)}"
    if isinstance(error, OSError) and error.errno:
        named = isinstance(error.filename, str | bytes)
        name = f"'{os.fsdecode(error.filename)}'" if named else "a file"
        return f"{name} cannot be {'written' if error.errno in WRITING else 'used'}: {os.strerror(error.errno)}."
    text = str(error)
    stored = re.search(r"\[os_error_code='(\d+)'", text)  # as the checkpoint storage says it
    if stored or NO_SPACE in text:
        reason = os.strerror(int(stored[1])) if stored else NO_SPACE
        return f"the work directory cannot be {'written' if 'writ' in text or not stored else 'used'}: {reason}."
    if text == "Could not determine home directory.":  # as pathlib says it
        return "a path begins with ~ and a name that no user of this machine has; write the folder out."
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return f"there is not enough memory: {first_line(error)}"
    return ""


def _printable(sentence: str) -> str:
    """A sentence as one line of bounded length: what it quotes of a file may hold anything."""
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in sentence
    )
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def check_utf8(words: Sequence[str]) -> None:
    """Raises: UserError for a word of the command line that is not UTF-8."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise UserError(f"the argument '{shown}' is not UTF-8.") from None


def shown(words: Sequence[Any]) -> str:
    """A command that can be pasted into a shell, whatever its words hold."""
    return shlex.join(map(str, words))


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UserErrors, with the nearest option."""

    def __init__(self, *, may_be_empty: Sequence[str] = (), **how: Any):
        super().__init__(allow_abbrev=False, **how)
        self.may_be_empty = may_be_empty

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        self._check_empty(list(sys.argv[1:] if args is None else args))
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"{name}: there is no such option.{nearest(name, known)}")
        return options

    def _check_empty(self, words: list[str]) -> None:
        for word, following in itertools.zip_longest(words, words[1:], fillvalue="--"):
            name, equals, value = word.partition("=")
            empty = not (value if equals else following).strip()
            if empty and name in self._option_string_actions and name not in self.may_be_empty:
                raise UserError(
                    f"{name}= is empty; give it a value or leave it out (is a shell variable not set?)."
                )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options.")


def script(main: Callable[[], int]) -> NoReturn:
    """Run `main` as a process of its own and end the process with its status.

    Files, names and streams are UTF-8 whatever the locale says. After Ctrl-C the process ends
    in a few seconds, and without Python's own ending: XLA may still be compiling in threads
    that neither an exception nor the interpreter's end can stop.
    """
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
    sys.stdout.reconfigure(
        line_buffering=True
    )  # also in a log file each line is there when it is said
    signal.signal(signal.SIGINT, _interrupt)
    before = sys.unraisablehook

    def unraisable(problem: Any) -> None:
        if isinstance(problem.exc_value, KeyboardInterrupt):  # raised in a callback, which loses it
            _end(128 + signal.SIGINT)
        # Where reading or writing one array fails, tensorstore's callbacks for others find their
        # loop closed; the failure itself is an exception.
        if str(problem.exc_value) != "Event loop is closed":
            before(problem)

    sys.unraisablehook = unraisable
    status = main()
    if status == 128 + signal.SIGINT:
        _end(status)
    sys.exit(status)


def _interrupt(number: int, frame: Any) -> NoReturn:
    timer = threading.Timer(UNWINDING, _end, (128 + number,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _end(status: int) -> NoReturn:
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def _escape_what_the_terminal_lacks() -> None:
    """Print characters that a stream cannot encode as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


FLAGS = (
    "config",
    "workdir",
    "init_from",
    "trust",
    "params",
    "coordinator",
    "processes",
    "process",
    "help",
)


def read_options(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """({flag: value}, ["model.layers=12", ...]) of command-line words; both --a=b and --a b are read.

    Raises: UserError for an unknown flag or one without a value.
    """
    options, assignments, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(
                f"'{word}' is not an option; options begin with --.{nearest('--' + word, ['--' + f for f in FLAGS])}"
            )
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"--{name} needs a value: --{name}=VALUE.")
            value = words.pop(0)
            if value.startswith("--"):
                raise UserError(
                    f"--{name} needs a value, and '{value}' is the next option: --{name}=VALUE."
                )
        if name in FLAGS and not value.strip():
            raise UserError(
                f"--{name}= is empty; give it a value or leave it out (is a shell variable not set?)."
            )
        if name.startswith("config."):
            assignments.append(f"{name.removeprefix('config.')}={value}")
        elif name == "trust" and name in options:  # may be given several times
            options[name] += f",{value}"
        elif name in FLAGS:
            options[name] = value
        else:
            raise UserError(f"there is no option --{name}.{nearest(name, FLAGS)}")
    if "config" not in options:
        raise UserError("--config is missing; for example --config=configs/tiny.py.")
    for name in ("processes", "process"):
        if name in options and not re.fullmatch(r"-?[0-9]+", options[name]):
            raise UserError(f"--{name}={options[name]}: expected a whole number.")
    return options, assignments


def trusted(options: dict[str, str]) -> tuple[str, ...]:
    """The names of --trust=NAME,NAME."""
    return tuple(filter(None, options.get("trust", "").split(",")))


def work_directory(options: dict[str, str]) -> str:
    """--workdir, or the one that is named after the recipe."""
    recipe = options["config"].partition(":")[0]
    return work_place(options.get("workdir") or f"runs/{Path(recipe).stem}", "--workdir")


def parent(options: dict[str, str]) -> str:
    """The work directory of --init_from; "" where it is not given."""
    return work_place(options["init_from"], "--init_from") if "init_from" in options else ""


def apply_overrides(config: ConfigDict, assignments: Sequence[str]) -> ConfigDict:
    """Apply "a.b=value" assignments; data.sources has a short form, "name:weight=path,..." """
    return configs.override(config, assignments, {"data.sources": _sources})


def _sources(text: str) -> dict[str, dict]:
    entries = map(dataclasses.asdict, parse_sources(configs.quoted_literal(text)))
    return {entry.pop("name"): entry for entry in entries}


def make_config(options: dict[str, str], assignments: list[str]) -> configs.Config:
    """Return the recipe with --params and the overrides applied, checked."""
    config = apply_overrides(configs.load_recipe(options["config"], trusted(options)), assignments)
    if "params" in options:
        from slmjax.models.choose_shape import parse_params, reshape

        params = parse_params(options["params"])
        decided = reshape(params, configs.freeze(config).model, config.data.vocab_size)
        config.model.update(decided)
        given = [word.partition("=")[0] for word in assignments]
        if both := [name for name in given if name.removeprefix("model.") in decided]:
            raise UserError(
                f"--params={options['params']} decides config.{both[0]}, which is given too; leave one of the two out."
            )
    if config.stage not in configs.STAGES:
        raise UserError(
            f"config.stage is '{config.stage}'; it can be {', '.join(configs.STAGES)}.{nearest(config.stage, configs.STAGES)}"
        )
    for word in assignments:
        group = word.partition(".")[0]
        of = configs.STAGE_OF.get(group, config.stage)
        if of != config.stage:
            raise UserError(
                f"--config.{word.partition('=')[0]}: only the stage {of} reads it; this is {config.stage}."
            )
    return configs.freeze(config)
