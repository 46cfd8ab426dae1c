"""SeqIO: the tasks and mixtures that a user's module registers as sources, written seqio://MODULE/NAME or seqio://MODULE/NAME/SPLIT.

The module is imported by name, here and in every process that reads. seqio brings TensorFlow (2 GB, seven seconds to import), so both are
imported only where such a path is used; TensorFlow then leaves accelerators alone and runs its random operations in a fixed order.
"""

import contextlib
import functools
import hashlib
import importlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from slmjax.errors import UserError, nearest
from slmjax.text.records import DAMAGED, Fault, Record, Source, SourceFile

FIRST = 100  # examples whose content is part of a task's version: what shows most changes of a preprocessor, in milliseconds


def split_mixture(source: Source) -> list[Source]:
    """The source as it is where it names tasks, or a source for each task of the mixture that it names.

    They share its weight (1 where it has none) by seqio's rates, nested mixtures included, and have the tasks' names, behind the source's
    own where it has one ("web-de"). As in seqio, tasks without the split or with the rate 0 are left out.
    Raises: UserError for what `read_examples` refuses, rates that cannot be computed, and a mixture with other paths or a held-out set.
    """
    found = {
        path: _provider(path, source.name) for path in source.path if path.startswith("seqio://")
    }
    mixtures = [path for path, (provider, _) in found.items() if hasattr(provider, "get_rate")]
    if not mixtures:
        return [
            source if source.name else replace(source, name=_plain(found[source.path[0]][0].name))
        ]
    if len(source.path) > 1 or source.heldout:
        raise UserError(
            f"data.sources.{source.name}: {mixtures[0]} is a mixture, which takes no other paths and no heldout; "
            "make a source of each of its tasks."
        )
    mixture, split = found[mixtures[0]]
    try:
        rates = {
            task.name: mixture.get_rate(task) for task in mixture.tasks if split in task.splits
        }
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(
            f"{mixtures[0]}: the rates of its tasks cannot be computed: {_first_line(error)}"
        ) from error
    whole, module, prefix = (
        sum(rates.values()),
        mixtures[0].split("/")[2],
        f"{source.name}-" if source.name else "",
    )
    return [
        replace(
            source,
            name=prefix + _plain(task),
            path=(f"seqio://{module}/{task}/{split}",),
            weight=(source.weight or 1) * rate / whole,
        )
        for task, rate in rates.items()
        if rate > 0
    ]


def task_file(path: str, source: Source) -> SourceFile:
    """A task as a file. Its version changes with what can be seen of its content without reading all of it.

    That is: the task's name, split and number of examples; the names, sizes and times of the files it reads; its first 100 examples as they
    are read; seqio's version. Not seen: a preprocessor or vocabulary that changes later examples only, and whatever files and services a
    preprocessor reads. A task whose source names no files (a function) is read from end to end, so all of its content is seen.
    """
    seqio, tf = _import()
    task, split = _task(path, source.name)
    function = isinstance(task.source, seqio.FunctionDataSource)  # its "shards" are names of splits
    files = (
        []
        if function
        else [name for name in task.source.list_shards(split) if tf.io.gfile.exists(name)]
    )
    status = [
        (name, stat.length, stat.mtime_nsec) for name in files for stat in [tf.io.gfile.stat(name)]
    ]
    digest, size = (
        hashlib.sha256(
            repr(
                (task.name, split, task.num_input_examples(split), status, seqio.__version__)
            ).encode()
        ),
        0,
    )
    for item in itertools.islice(read_examples(path, source), FIRST if files else None):
        digest.update(repr(item).encode("utf-8", "surrogateescape"))
        size += 1 + (
            len(item.fields.get(source.field, "").encode()) if isinstance(item, Record) else 0
        )
    return SourceFile(
        path,
        f"{task.name}/{split}",
        sum(length for _, length, _ in status) or size,
        digest.hexdigest(),
    )


def read_examples(path: str, source: Source) -> Iterator[Record | Fault]:
    """Every example of a task, once and in the same order each time: its strings and numbers, and under `source.field` its text.

    An output feature's text is what the task tokenized ("targets_pretokenized", which seqio.preprocessors.tokenize keeps), since decoding
    loses what the vocabulary cannot write; else its tokens, decoded by the task's vocabulary. The field "text" stands for inputs and
    targets, with a line break between them; any other names one output feature. A record of an example without text lacks the field.
    Raises: UserError for a path of another form, without the extra, and for a module, task, split or feature that is not there.
    """
    _, tf = _import()
    task, split = _task(path, source.name)
    features = _features(task, source)
    tf.random.set_seed(0)  # and not get_dataset's seed, which a FunctionDataSource may refuse
    line = 0
    try:
        dataset = task.get_dataset(None, split, shuffle=False, num_epochs=1, try_in_mem_cache=False)
        for line, example in enumerate(dataset.as_numpy_iterator(), 1):
            yield _record(example, line, task, features, source.field)
    except tf.errors.DataLossError as error:
        yield Fault(line + 1, DAMAGED, _first_line(error))
    except (tf.errors.OpError, OSError, ValueError) as error:
        raise UserError(
            f"data.sources.{source.name}: cannot read example {line + 1} of {path}: {_first_line(error)}"
        ) from error


def _record(
    example: Mapping[str, Any], line: int, task: Any, features: list[str], field: str
) -> Record | Fault:
    try:
        texts = [text for name in features if (text := _text(example, name, task)) is not None]
    except UnicodeDecodeError as error:
        return Fault(line, "invalid UTF-8", f"byte {error.start + 1} of the text")
    fields = {
        name: value.decode(errors="replace")
        for name, value in example.items()
        if isinstance(value, bytes)
    }
    fields |= {
        name: value.item()
        for name, value in example.items()
        if isinstance(value, np.number | np.bool_)
    }
    fields.pop(field, None)
    return Record({**fields, **({field: "\n".join(filter(None, texts))} if texts else {})}, line)


def _text(example: Mapping[str, Any], feature: str, task: Any) -> str | None:
    for value in (example.get(f"{feature}_pretokenized"), example.get(feature)):
        if isinstance(value, bytes):
            return value.decode()
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "i":
        text = task.output_features[feature].vocabulary.decode(value.tolist())
        return text if isinstance(text, str) else None
    return None


def _features(task: Any, source: Source) -> list[str]:
    names = list(task.output_features)
    found = (
        [source.field]
        if source.field in names
        else [n for n in ("inputs", "targets") if n in names and source.field == "text"]
    )
    if not found:
        raise UserError(
            f"data.sources.{source.name}.field: the task '{task.name}' has no output feature '{source.field}' "
            f"(features: {', '.join(names)}).{nearest(source.field, names)}"
        )
    return found


def _task(path: str, name: str) -> tuple[Any, str]:
    provider, split = _provider(path, name)
    if hasattr(provider, "get_rate"):
        raise UserError(
            f"data.sources.{name}: {path} is a mixture; expected a task here ({', '.join(t.name for t in provider.tasks)})."
        )
    return provider, split


def _provider(path: str, name: str) -> tuple[Any, str]:
    """(task or mixture, split) that a path names."""
    where = f"data.sources.{name}" if name else "data.sources"
    form = re.fullmatch(r"seqio://(\w+(?:\.\w+)*)/([^/]+)(?:/([^/]+))?", path)
    if not form:
        raise UserError(
            f"{where}: '{path}' names no task; expected seqio://MODULE/NAME or seqio://MODULE/NAME/SPLIT."
        )
    module, task, split = form[1], form[2], form[3] or "train"
    seqio, _ = _import()
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{where}: cannot import {module} ({error}); it must lie in the current folder or on PYTHONPATH."
        ) from error
    tasks, mixtures = seqio.TaskRegistry.names(), seqio.MixtureRegistry.names()
    if task in tasks and task in mixtures:
        raise UserError(f"{where}: '{task}' is both a task and a mixture; rename one of them.")
    if task not in tasks and task not in mixtures:
        near = nearest(task, [*tasks, *mixtures])
        raise UserError(
            f"{where}: {module} is imported, but no task or mixture '{task}' is registered.{near}"
        )
    provider = seqio.get_mixture_or_task(task)
    if split not in provider.splits:
        splits = sorted(provider.splits)
        raise UserError(
            f"{where}: '{task}' has no split '{split}' (splits: {', '.join(splits)}).{nearest(split, splits)}"
        )
    return provider, split


@functools.cache
def _import() -> tuple[ModuleType, ModuleType]:
    """(seqio, tensorflow)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # without a GPU it calls that an error
    try:
        import seqio
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            f"data.sources: seqio:// needs seqio ({error}); install it with: pip install -e '.[seqio]'."
        ) from error
    with contextlib.suppress(
        RuntimeError
    ):  # where the user's own session has set TensorFlow up, it stays as it is
        tf.config.set_visible_devices([], "GPU")
    tf.config.experimental.enable_op_determinism()
    return seqio, tf


def _plain(name: str) -> str:
    """A task's name as a source's: seqio allows ":" and "." in it."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
