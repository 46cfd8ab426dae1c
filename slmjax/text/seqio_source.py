"""SeqIO tasks and mixtures as sources, written seqio://MODULE/NAME or seqio://MODULE/NAME/SPLIT.

The user's module MODULE, which registers them, is imported here and in every process that reads.
seqio brings TensorFlow (2 GB, seven seconds to import), so both are imported only where such a path
is used; TensorFlow then leaves accelerators alone and runs its random operations in a fixed order.
"""

import contextlib
import functools
import hashlib
import importlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from slmjax.errors import UserError, nearest
from slmjax.text.records import DAMAGED, SEQIO, Fault, Record, Source, SourceFile

# The first examples, whose content is part of a task's version: most changes of a preprocessor show
# in them, and they take milliseconds to read.
FIRST = 100
# MODULE (with dots), NAME and SPLIT, which may be missing.
_PATH = re.compile(rf"{SEQIO}(\w+(?:\.\w+)*)/([^/]+)(?:/([^/]+))?")


def split_mixture(source: Source) -> list[Source]:
    """Return the source itself where it names tasks, else a source for each task of its mixture.

    A source without a name that names a task gets the task's name.

    The sources of a mixture share the weight of `source` (1 where it has none) by seqio's rates,
    nested mixtures included. Each is named after its task, behind the name of `source` where it has
    one ("web-de"). As in seqio, tasks without the split or with the rate 0 are left out.
    Raises: UserError for what `read_examples` refuses, rates that cannot be computed, and a mixture
      with other paths or a held-out set.
    """
    # {path: (task or mixture, split)}
    providers = {
        path: _provider(path, source.name) for path in source.path if path.startswith(SEQIO)
    }
    mixtures = [path for path, (provider, _) in providers.items() if _is_mixture(provider)]
    if not mixtures:
        if source.name:
            return [source]
        task, _ = providers[source.path[0]]
        return [replace(source, name=_source_name(task.name))]
    path = mixtures[0]
    if len(source.path) > 1 or source.heldout:
        problem = f"{path} is a mixture, which takes no other paths and no heldout"
        advice = "make a source of each of its tasks"
        raise UserError(f"data.sources.{source.name}: {problem}; {advice}.")
    mixture, split = providers[path]
    rates = _rates(mixture, split, path)
    # seqio's rates need not add up to one.
    total = sum(rates.values())
    weight = source.weight or 1
    module = path.split("/")[2]  # of "seqio:", "", "MODULE", ...
    prefix = f"{source.name}-" if source.name else ""
    sources = []
    for task_name, rate in rates.items():
        if rate > 0:
            part = replace(
                source,
                name=prefix + _source_name(task_name),
                path=(f"{SEQIO}{module}/{task_name}/{split}",),
                weight=weight * rate / total,
            )
            sources.append(part)
    return sources


def task_file(path: str, source: Source) -> SourceFile:
    """Return a task as a file, with a version that can be found without reading the whole task.

    The version changes with the task's name, split and number of examples; the names, sizes and
    times of the files that the task reads; its first 100 examples as they are read; seqio's
    version. It does not change with a preprocessor or vocabulary that changes later examples only,
    nor with files and services that a preprocessor reads. A task whose source names no files (a
    function) is read from end to end, so all of its content counts.
    """
    seqio, tf = _import()
    task, split = _task(path, source.name)
    files: list[str] = []
    # The "shards" of a function are names of splits, not files.
    if not isinstance(task.source, seqio.FunctionDataSource):
        shards = task.source.list_shards(split)
        files = [name for name in shards if tf.io.gfile.exists(name)]
    file_versions: list[tuple[str, int, int]] = []  # (name, bytes, time)
    for name in files:
        stat = tf.io.gfile.stat(name)
        file_versions.append((name, stat.length, stat.mtime_nsec))
    identity = (task.name, split, task.num_input_examples(split), file_versions, seqio.__version__)
    digest = hashlib.sha256(repr(identity).encode())
    text_bytes = 0
    for example in itertools.islice(read_examples(path, source), FIRST if files else None):
        digest.update(repr(example).encode("utf-8", "surrogateescape"))
        # 1 for each, so that a task of faults only does not pass for an empty file.
        text_bytes += 1
        if isinstance(example, Record):
            text_bytes += len(example.fields.get(source.field, "").encode())
    file_bytes = sum(length for _, length, _ in file_versions)
    # The size is that of the files, and of the text where there are none.
    return SourceFile(path, f"{task.name}/{split}", file_bytes or text_bytes, digest.hexdigest())


def read_examples(path: str, source: Source) -> Iterator[Record | Fault]:
    """Yield every example of a task once, in the same order each time.

    A record holds the example's strings and numbers, and its text under the name `source.field`.
    This is also the name of the output feature that gives the text; where the task has no feature
    "text", that name stands for inputs and targets, with a line break between them. The record of
    an example without text lacks the field.

    An output feature's text is what the task tokenized ("targets_pretokenized", which
    seqio.preprocessors.tokenize keeps), since decoding loses what the vocabulary cannot write.
    Where that is missing, it is the feature's tokens, decoded by the task's vocabulary.
    Raises: UserError for a path of another form, without the extra, for a module, task, split or
      feature that does not exist, and for an example that cannot be read.
    """
    _, tf = _import()
    task, split = _task(path, source.name)
    features = _text_features(task, source)
    # Not get_dataset's argument `seed`, which a FunctionDataSource may refuse.
    tf.random.set_seed(0)
    line = 0  # number of the last example
    try:
        dataset = task.get_dataset(None, split, shuffle=False, num_epochs=1, try_in_mem_cache=False)
        for line, example in enumerate(dataset.as_numpy_iterator(), 1):
            yield _record(example, line, task, features, source.field)
    except tf.errors.DataLossError as error:
        yield Fault(line + 1, DAMAGED, _first_line(error))
    except (tf.errors.OpError, OSError, ValueError) as error:
        problem = f"cannot read example {line + 1} of {path}: {_first_line(error)}"
        raise UserError(f"data.sources.{source.name}: {problem}") from error


def _record(
    example: Mapping[str, Any], line: int, task: Any, features: Sequence[str], field: str
) -> Record | Fault:
    """Return an example as a record, with the text of `features` under the name `field`."""
    texts = []
    try:
        for name in features:
            text = _text_of_feature(example, name, task)
            if text is not None:
                texts.append(text)
    except UnicodeDecodeError as error:
        return Fault(line, "invalid UTF-8", f"byte {error.start + 1} of the text")
    strings: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for name, value in example.items():
        if isinstance(value, bytes):
            strings[name] = value.decode(errors="replace")
        elif isinstance(value, np.number | np.bool_):
            numbers[name] = value.item()
    # Always strings first, as a task's version depends on the order.
    fields = strings | numbers
    # An example may have another feature of that name, which is not the text.
    fields.pop(field, None)
    if texts:
        fields[field] = "\n".join(filter(None, texts))
    return Record(fields, line)


def _text_of_feature(example: Mapping[str, Any], feature: str, task: Any) -> str | None:
    """Return the text of one output feature; None where the example has none."""
    pretokenized = example.get(f"{feature}_pretokenized")
    if isinstance(pretokenized, bytes):
        return pretokenized.decode()
    value = example.get(feature)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "i":
        text = task.output_features[feature].vocabulary.decode(value.tolist())
        # A vocabulary that passes tokens through returns no string.
        return text if isinstance(text, str) else None
    return None


def _text_features(task: Any, source: Source) -> list[str]:
    """Return the output features that make the text.

    Raises: UserError where the task has no feature of the name `source.field`.
    """
    names = list(task.output_features)
    if source.field in names:
        return [source.field]
    features: list[str] = []
    if source.field == "text":
        features = [name for name in ("inputs", "targets") if name in names]
    if not features:
        problem = f"the task '{task.name}' has no output feature '{source.field}'"
        close = nearest(source.field, names)
        raise UserError(
            f"data.sources.{source.name}.field: {problem} (features: {', '.join(names)}).{close}"
        )
    return features


def _task(path: str, name: str) -> tuple[Any, str]:
    """Return the task and the split that a path names, for the source `name`.

    Raises: UserError for a mixture, and for what `_provider` refuses.
    """
    provider, split = _provider(path, name)
    if _is_mixture(provider):
        tasks = ", ".join(task.name for task in provider.tasks)
        problem = f"{path} is a mixture; expected a task here ({tasks})"
        raise UserError(f"data.sources.{name}: {problem}.")
    return provider, split


def _is_mixture(provider: Any) -> bool:
    return hasattr(provider, "get_rate")  # tasks have none


def _rates(mixture: Any, split: str, path: str) -> dict[str, float]:
    """Return the rate of each task of a mixture that has the split.

    Raises: UserError where a rate is a function that fails.
    """
    try:
        return {task.name: mixture.get_rate(task) for task in mixture.tasks if split in task.splits}
    except (AssertionError, TypeError, ValueError) as error:
        problem = f"the rates of its tasks cannot be computed: {_first_line(error)}"
        raise UserError(f"{path}: {problem}") from error


def _provider(path: str, name: str) -> tuple[Any, str]:
    """Return the task or mixture and the split that a path names.

    Args:
      name: the source's name, for messages; "": it has none.
    Raises: UserError for a path of another form, and for a module, task, mixture or split that does
      not exist.
    """
    where = f"data.sources.{name}" if name else "data.sources"
    match = _PATH.fullmatch(path)
    if not match:
        expected = "expected seqio://MODULE/NAME or seqio://MODULE/NAME/SPLIT"
        raise UserError(f"{where}: '{path}' names no task; {expected}.")
    module, task, split = match[1], match[2], match[3] or "train"
    seqio, _ = _import()
    try:
        importlib.import_module(module)
    except ImportError as error:
        advice = "it must lie in the current folder or on PYTHONPATH"
        raise UserError(f"{where}: cannot import {module} ({error}); {advice}.") from error
    tasks, mixtures = seqio.TaskRegistry.names(), seqio.MixtureRegistry.names()
    if task in tasks and task in mixtures:
        raise UserError(f"{where}: '{task}' is both a task and a mixture; rename one of them.")
    if task not in tasks and task not in mixtures:
        problem = f"{module} is imported, but no task or mixture '{task}' is registered"
        raise UserError(f"{where}: {problem}.{nearest(task, [*tasks, *mixtures])}")
    provider = seqio.get_mixture_or_task(task)
    if split not in provider.splits:
        splits = sorted(provider.splits)
        problem = f"'{task}' has no split '{split}' (splits: {', '.join(splits)})"
        raise UserError(f"{where}: {problem}.{nearest(split, splits)}")
    return provider, split


@functools.cache
def _import() -> tuple[ModuleType, ModuleType]:
    """Return the modules seqio and tensorflow. Raises: UserError where the extra is missing."""
    # 3: fatal errors only, as TensorFlow logs an error on every machine without a GPU.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import seqio
        import tensorflow as tf
    except ImportError as error:
        advice = "install it with: pip install -e '.[seqio]'"
        raise UserError(f"data.sources: seqio:// needs seqio ({error}); {advice}.") from error
    # RuntimeError: TensorFlow runs already, as the user has set it up, and stays as it is.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    tf.config.experimental.enable_op_determinism()
    return seqio, tf


def _source_name(task_name: str) -> str:
    """Return a source's name made of a task's, in which seqio allows ":" and "."."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", task_name)


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message; its repr where the message is empty."""
    message = str(error).strip()
    return message.splitlines()[0] if message else repr(error)
