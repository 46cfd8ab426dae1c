"""Runs set against each other: configs, groups of seeds, and paired held-out scores."""

import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

import numpy as np
from etils import epath

from slmjax.config import FIELDS, as_today
from slmjax.errors import HOW_TO_RESTORE, UserError, first_line, nearest
from slmjax.readable import flatten
from slmjax.record import metrics
from slmjax.record.paired import Difference, Paired, bootstrap, pair
from slmjax.text.remote import work_place

# Config fields that decide nothing about what is learned, except by chance.
REPETITIONS = frozenset(
    field.name for field in FIELDS.values() if field.affects in ("chance", "bookkeeping")
)

# Columns of heldout.npz that a comparison needs, with numpy's letters for the types that each can
# have: u unsigned, i signed, f floating point.
SCORE_KINDS = {"keys": "u", "nats": "f", "bytes": "iu"}

# {source: {column of heldout.npz: one value for each document}}
Scores = dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """One work directory, as a comparison reads it."""

    # The shortest ending of its path that no other compared run has.
    name: str
    # By dotted field names.
    config: dict[str, Any]
    records: metrics.Records
    heldout: Scores


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs with the held-out documents that all of them scored."""

    runs: list[ComparedRun]
    paired: Paired
    # Each group as indices of its runs: those of one config, see `group`.
    groups: list[list[int]]
    # For each source and "total", each group's difference to the first group.
    group_differences: dict[str, list[Difference]]

    @property
    def labels(self) -> list[str]:
        """A name for each group: its first run's, and the number of runs if several."""
        labels = []
        for members in self.groups:
            label = self.runs[members[0]].name
            if len(members) > 1:
                label += f" (mean of {len(members)})"
            labels.append(label)
        return labels

    def names(self, members: Sequence[int]) -> str:
        """Return the names of the runs with these indices, joined by commas."""
        return ", ".join(self.runs[index].name for index in members)


def compare(workdirs: Sequence[str], *, sources: Sequence[str] = (), seed: int = 0) -> Comparison:
    """Read work directories and compare their held-out scores with those of the first.

    Runs that differ only in the seed are one group. If all runs differ only in the seed, each run
    is a group of its own.

    Args:
      sources: whose held-out documents count; empty: all. Leave out a source that only some of
        the runs trained on: its documents would decide the total.
      seed: of the bootstrap.
    Raises: UserError for fewer than two work directories, for one that `load_run` refuses, for a
      source that a run lacks, and where the runs have no document in common.
    """
    if len(workdirs) < 2:
        raise UserError(
            f"compare needs at least two work directories, got {len(workdirs)}: "
            "python -m slmjax.compare RUN RUN [...]"
        )
    runs, configs = [], []
    for workdir, name in zip(workdirs, distinct_names(workdirs), strict=True):
        run = load_run(workdir, name)
        runs.append(run)
        configs.append(run.config)

    paired = pair([_chosen_scores(run, sources) for run in runs])
    groups = group(configs)
    if len(groups) == 1:
        # All runs have one config: only the noise between them can be compared.
        groups = [[index] for index in range(len(runs))]
    return Comparison(runs, paired, groups, bootstrap(paired, groups, seed=seed))


def load_run(workdir: str, name: str) -> ComparedRun:
    """Read one work directory.

    Args:
      name: what the comparison calls the run.
    Raises: UserError where it is not a work directory, is damaged, or has no held-out scores;
      OSError where the disk fails.
    """
    folder = epath.Path(work_place(workdir, "RUN"))
    config_file, scores_file = folder / "config.json", folder / "heldout.npz"
    records = metrics.read(folder)
    if not config_file.exists():
        _refuse_without_config(workdir, records)
    if not scores_file.exists():
        _refuse_without_scores(workdir, records)
    try:
        config = _read_config(config_file.read_text("utf-8"))
        heldout = read_scores(scores_file.read_bytes())
    except OSError:
        # The disk failed, which is no damage; the command reports it itself.
        raise
    except Exception as error:  # a damaged archive raises many kinds
        raise UserError(
            f"{workdir} cannot be read: config.json or heldout.npz is damaged "
            f"({first_line(error)})."
        ) from error
    if not heldout:
        raise UserError(_nothing_held_out(workdir))
    return ComparedRun(name, config, records, heldout)


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the config fields in which runs differ, with the value of each run.

    The value is None where a run does not have the field.
    """
    names = set()
    for config in configs:
        names.update(config)
    differing = {}
    for name in sorted(names):
        values = [config.get(name) for config in configs]
        # As JSON, since True == 1 in Python.
        texts = set(map(json.dumps, values))
        if len(texts) > 1:
            differing[name] = values
    return differing


def group(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Return one list of run indices for each config; the first run's group is first.

    Runs of one config differ in `REPETITIONS` only.
    """
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        deciding = dict(config)
        for name in REPETITIONS:
            deciding.pop(name, None)
        key = json.dumps(deciding, sort_keys=True)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def distinct_names(workdirs: Sequence[str]) -> list[str]:
    """Return the shortest endings of the paths that differ; equal paths are numbered."""
    paths = []
    for workdir in workdirs:
        if "://" not in workdir:
            # A relative path such as "." has no name of its own.
            workdir = os.path.abspath(workdir)
        paths.append(PurePosixPath(workdir).parts)
    longest = max(map(len, paths))
    for depth in range(1, longest + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    # A work directory was given twice: even whole paths are equal.
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _chosen_scores(run: ComparedRun, sources: Sequence[str]) -> Scores:
    """Return the run's scores of the named sources, of all its sources where none is named.

    Raises: UserError for a source that the run lacks.
    """
    for name in sources:
        if name not in run.heldout:
            hint = nearest(name, run.heldout)
            raise UserError(f"{run.name} has no held-out text '{name}'.{hint}")
    return {name: run.heldout[name] for name in sources or run.heldout}


def _read_config(text: str) -> dict[str, Any]:
    saved = json.loads(text)
    if not isinstance(saved, dict):
        raise ValueError("config.json holds no object")
    return flatten(as_today(saved))


def read_scores(archive: bytes) -> Scores:
    """Return the columns of heldout.npz. Raises: many kinds of errors for a damaged archive."""
    # The archive names an array "source/column"; a source's name may have slashes too.
    columns: Scores = {}
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        for name in arrays.files:
            source, field = name.rsplit("/", 1)
            columns.setdefault(source, {})[field] = arrays[name]
    scores = {}
    for source, fields in columns.items():
        scores[source] = {field: fields[field] for field in SCORE_KINDS}
    for source, fields in scores.items():
        documents = fields["keys"].size
        for field, kinds in SCORE_KINDS.items():
            column = fields[field]
            if column.shape != (documents,) or column.dtype.kind not in kinds:
                raise ValueError(f"the scores of {source} are not columns of numbers")
    return scores


def _refuse_without_config(workdir: str, records: metrics.Records) -> NoReturn:
    if metrics.events(records, "finish"):
        raise UserError(f"{workdir} has lost its config.json; {HOW_TO_RESTORE}.")
    raise UserError(f"{workdir} is not a work directory: it has no config.json.")


def _refuse_without_scores(workdir: str, records: metrics.Records) -> NoReturn:
    if _held_out_nothing(records):
        raise UserError(_nothing_held_out(workdir))
    if metrics.events(records, "finish"):
        raise UserError(f"{workdir} has lost its heldout.npz; {HOW_TO_RESTORE}.")
    raise UserError(
        f"{workdir} has no heldout.npz: train it to its first evaluation (eval.every), "
        "which scores each held-out document."
    )


def _held_out_nothing(records: metrics.Records) -> bool:
    """Return True where the run recorded its sources and none has held-out documents."""
    sources = metrics.last_event(records, "data").get("sources", {})
    for facts in sources.values():
        if facts.get("heldout_documents"):
            return False
    # A run that recorded no sources is not known to hold out nothing.
    return bool(sources)


def _nothing_held_out(workdir: str) -> str:
    return (
        f"{workdir} has no held-out text to compare on: a source of a single document, such as one "
        ".txt file, keeps all of it for training. Cut the file into several, or name a held-out "
        "file with data.sources.NAME.heldout=FILE, and train again."
    )
