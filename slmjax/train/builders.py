"""From config.task to the task of a run: the library's own by name, a user's as module:Name."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slmjax.config import Config
from slmjax.config.base import literal
from slmjax.config.run_phases import RunPhase, run_phases
from slmjax.errors import UserError, imported, nearest, users_error
from slmjax.tasks.task import Task, TaskBuilder
from slmjax.train.program import Program

TASKS = {
    "lm": "slmjax.train.text:TextBuilder",
    "orpo": "slmjax.train.pairs:PairBuilder",
    "recall": "slmjax.tasks.recall:RecallBuilder",
}
# Attributes that a user's objects must have, and the class that describes them.
BUILDER = ("vocab_size", "tokenizer", "task", "facts"), "TaskBuilder of slmjax/tasks/task.py"
TASK = ("rows", "evaluations", "totals", "loss"), "Task of slmjax/tasks/task.py"
ROWS = ("shapes", "read", "unpack", "fingerprint"), "Rows of slmjax/data/rows.py"


def builder_of(config: Config, workdir: str, init_from: str) -> TaskBuilder:
    """Return the builder of the task that config.task names.

    Raises: UserError for an unknown name, and where the user's own code fails or lacks an
      attribute.
    """
    name, options = parse_task(config.task)
    if name not in TASKS and ":" not in name:
        raise UserError(
            f"config.task is '{name}'; it can be {', '.join(TASKS)}, or module:Name of your own."
            f"{nearest(name, TASKS)}"
        )
    # The user's own recipe or command line names the code; the launcher has checked --trust.
    make = imported(TASKS.get(name, name), "config.task names")
    with _explained(name, "cannot be made"):
        _check_options(name, options, make)
        builder = make(config, workdir, init_from, **options)
    _check_parts(name, builder, *BUILDER)
    if not isinstance(builder.vocab_size, int) or builder.vocab_size < 1:
        raise UserError(
            f"config.task: the vocab_size of '{name}' is {builder.vocab_size!r}; expected a whole "
            "number of tokens."
        )
    return builder


def task_of(builder: TaskBuilder, program: Program) -> Task:
    """Return the builder's task for a program.

    Raises: UserError where the user's own code fails, lacks an attribute, or has batches of another
      number of rows than config.train.batch.
    """
    name, _ = parse_task(program.config.task)
    with _explained(name, "makes no task"):
        task = builder.task(program)
    _check_parts(name, task, *TASK)
    _check_parts(name, task.rows, *ROWS)
    config = program.config
    for phase in run_phases(config.data, config.train):
        _check_rows(name, task, phase, config)
    return task


def _check_rows(name: str, task: Task, phase: RunPhase, config: Config) -> None:
    """Raises: UserError where the batches of a phase have another number of rows than it says.

    So have those of a task that does not read config.data.phases, and other lengths of a row.
    """
    with _explained(name, "has no shapes"):
        fields = task.rows.shapes(phase.first)
    where = "config.train.batch"
    if phase.batch != config.train.batch:
        where = f"that of the phase from step {phase.first} on"
    for field, (shape, _, axes) in fields.items():
        # A field without a batch axis, such as "places" of `text_fields`, may have any length.
        if axes[:1] == ("batch",) and shape[0] != phase.batch:
            raise UserError(
                f"config.task: the field '{field}' of '{name}' has {shape[0]} rows; "
                f"{where} is {phase.batch}."
            )
    tokens = fields.get("tokens")
    if phase.seq_len != config.data.seq_len and tokens and tokens.shape[1:] != (phase.seq_len,):
        raise UserError(
            f"config.task: '{name}' has no rows of another length in the phase from step "
            f"{phase.first} on, whose seq_len is {phase.seq_len}."
        )


def parse_task(text: str) -> tuple[str, dict[str, Any]]:
    """Return (name, options) of "name [option=value ...]".

    Values that are no Python literals stay texts.
    Raises: UserError for a word without "=".
    """
    # An empty text has an empty name, which `builder_of` refuses.
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
    # Code that takes **options checks them itself.
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            known_options = f"there is {', '.join(known)}" if known else "there are none"
            near = nearest(option, known)
            raise UserError(
                f"config.task: '{name}' has no option '{option}'; {known_options}.{near}"
            )


def _check_parts(name: str, made: Any, parts: Sequence[str], contract: str) -> None:
    """Raises: UserError where an object that a user's code made lacks one of `parts`."""
    missing = [part for part in parts if not hasattr(made, part)]
    if missing:
        raise UserError(
            f"config.task: '{name}' made a {type(made).__name__} without '{missing[0]}'; see "
            f"{contract}."
        )


@contextlib.contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """Context manager: an error of a user's own code in its block becomes a UserError.

    Args:
      name: the task's; errors of the library's own tasks stay as they are.
      what: says in the error what failed, such as "cannot be made".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        if name in TASKS:
            raise
        raise UserError(f"config.task: '{name}' {what}: {users_error(error)}.") from error
