"""Looks at test sets: a journal that says which runs' test figures were seen, and how many.

Each look at a test set is a chance to choose a run by it. The best of n looks at equal models is
better than any of them by luck alone, so a reported figure should stand next to its number of
looks. The journal is a JSONL file with one look a line.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np

from slmjax.errors import UserError
from slmjax.text.files import writable

try:
    import fcntl
except ImportError:  # not on Windows, where the journal is not locked
    fcntl = None


@dataclasses.dataclass(frozen=True)
class Look:
    """One figure of a test set that somebody has seen.

    Attributes:
      date: of the look, in ISO 8601.
      run: the work directory or export.
      parameters: hash of the parameters that were evaluated, see `parameters_hash`.
      family: the runs among which one is chosen, such as all runs of a study.
      set: name of the evaluation set, such as "gsm8k_test".
      figure: name of the figure, with its settings, such as "accuracy, greedy, 8-shot".
      value: the figure.
    """

    date: str
    run: str
    parameters: str
    family: str
    set: str
    figure: str
    value: float


FIELDS = tuple(field.name for field in dataclasses.fields(Look))


def now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def parameters_hash(params: dict) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a parameter tree.

    Trees with the same names, shapes, types and bits have the same hash.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def append_look(journal: str | Path, look: Look) -> None:
    """Add a look to a journal, which is created where it is missing.

    Several processes may write to one journal. The line is on the disk when the function returns.
    Raises: UserError if the journal cannot be written.
    """
    path = Path(journal)
    line = json.dumps(dataclasses.asdict(look), allow_nan=False) + "\n"
    with writable(path.parent, "the journal of looks"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file, _locked_file(file):
            # A process that was killed may have left half a line.
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def read_looks(journal: str | Path) -> list[Look]:
    """Return the looks of a journal in order; none where there is no such file.

    Raises: UserError naming the first line that is no look. Counting fewer looks than there were
      would flatter the figures.
    """
    path = Path(journal)
    if not path.exists():
        return []
    looks = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            looks.append(_look_of(line, f"{path}, line {number}"))
    return looks


def count_looks(looks: Iterable[Look]) -> dict[tuple[str, str], int]:
    """Return {(set, family): number of looks}.

    The same figure of the same parameters is one look, however often it was computed.
    """
    counts: Counter[tuple[str, str]] = Counter()
    seen = {(look.set, look.family, look.parameters, look.figure) for look in looks}
    for test_set, family, _, _ in seen:
        counts[test_set, family] += 1
    return dict(sorted(counts.items()))


def _look_of(line: bytes, place: str) -> Look:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is no JSON ({error}); expected a look at a test set.") from None
    if not isinstance(values, dict) or set(values) != set(FIELDS):
        expected = f"expected an object with {', '.join(FIELDS)}"
        raise UserError(f"{place} is no look at a test set; {expected}.")
    for name in FIELDS:
        kind = (int, float) if name == "value" else str
        if not isinstance(values[name], kind):
            raise UserError(f"{place}: {name} is {values[name]!r}, which is no {_name_of(name)}.")
    return Look(**values)


def _name_of(field: str) -> str:
    return "number" if field == "value" else "text"


@contextlib.contextmanager
def _locked_file(file) -> Iterator[None]:
    """Hold the lock of an open file; the system releases it when the file is closed."""
    # Some file systems have no locks; a line is one write there, too.
    with contextlib.suppress(OSError):
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
    yield
