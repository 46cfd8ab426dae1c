"""From config.task to the task of a run: the library's own by name, a user's as module:Name."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slmjax.config import Config
from slmjax.config.base import literal
from slmjax.errors import UserError, imported, nearest, users_error
from slmjax.tasks.task import Task, TaskBuilder
from slmjax.train.program import Program

TASKS = {"lm": "slmjax.train.text:TextBuilder", "recall": "slmjax.tasks.recall:RecallBuilder"}


def builder_of(config: Config, workdir: str, init_from: str) -> TaskBuilder:
    """Return what makes the task of a run, see TaskBuilder.

    Raises: UserError for an unknown name, and where the user's own code fails or has not all parts.
    """
    name, options = parse_task(config.task)
    if name not in TASKS and ":" not in name:
        known = ", ".join(TASKS)
        raise UserError(
            f"config.task is '{name}'; it can be {known}, or module:Name of your own.{nearest(name, TASKS)}"
        )
    make = imported(TASKS.get(name, name), "config.task names")
    with _explained(name, "cannot be made"):
        _check_options(name, options, make)
        builder = make(config, workdir, init_from, **options)
    parts = ("vocab_size", "tokenizer", "task", "facts")
    _check_parts(name, builder, parts, "TaskBuilder of slmjax/tasks/task.py")
    if not isinstance(builder.vocab_size, int) or builder.vocab_size < 1:
        raise UserError(
            f"config.task: the vocab_size of '{name}' is {builder.vocab_size!r}; expected a whole number of tokens."
        )
    return builder


def task_of(builder: TaskBuilder, program: Program) -> Task:
    """Return the builder's task for a program.

    Raises: UserError where the user's own code fails, has not all parts, or has batches of another
      number of rows than config.train.batch.
    """
    name, _ = parse_task(program.config.task)
    batch = program.config.train.batch
    with _explained(name, "makes no task"):
        task = builder.task(program)
    _check_parts(
        name, task, ("rows", "evaluations", "totals", "loss"), "Task of slmjax/tasks/task.py"
    )
    _check_parts(
        name, task.rows, ("shapes", "read", "unpack", "fingerprint"), "Rows of slmjax/data/rows.py"
    )
    with _explained(name, "has no shapes"):
        fields = task.rows.shapes(0)
    for field, (shape, _, axes) in fields.items():
        if axes[:1] == ("batch",) and shape[0] != batch:
            raise UserError(
                f"config.task: the field '{field}' of '{name}' has {shape[0]} rows; config.train.batch is {batch}."
            )
    return task


def parse_task(text: str) -> tuple[str, dict[str, Any]]:
    """(name, options) of "name [option=value ...]"; values are Python literals, or else texts.

    Raises: UserError for a word that is no option.
    """
    name, *words = text.split() or [""]
    options = {}
    for word in words:
        option, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"config.task: '{word}' in '{text}' is no option=value.")
        options[option] = literal(value)
    return name, options


def _check_options(name: str, options: dict[str, Any], make: Callable) -> None:
    """Raises: UserError for an option that is not among the keyword-only parameters of `make`."""
    parameters = inspect.signature(make).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            there = f"there is {', '.join(known)}" if known else "there are none"
            raise UserError(
                f"config.task: '{name}' has no option '{option}'; {there}.{nearest(option, known)}"
            )


def _check_parts(name: str, made: Any, parts: Sequence[str], contract: str) -> None:
    """Raises: UserError where something that a user's code made has not all parts of a contract."""
    missing = [part for part in parts if not hasattr(made, part)]
    if missing:
        raise UserError(
            f"config.task: '{name}' made a {type(made).__name__} without '{missing[0]}'; see {contract}."
        )


@contextlib.contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """Inside runs the code of a task: an error of a user's own becomes one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        if name in TASKS:
            raise
        raise UserError(f"config.task: '{name}' {what}: {users_error(error)}.") from error
