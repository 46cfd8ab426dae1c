"""Checkpoints: save, restore, prune. Used by training and by everything that only reads a model.

A checkpoint `checkpoints/<step>/` holds the items `params`, `buffers` (of a model that has some),
`optimizer` (with step and spike statistics) and `meta` (config, fingerprint of the data plan,
tokenizer hash, parents, digests), so that a model can be read without its optimizer. In format 0
one item `rest` held optimizer, step, spike statistics and the scales of float8.
"""

import abc
import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from slmjax.errors import UserError, first_line
from slmjax.parallel import hosts
from slmjax.text.files import seal_is_broken, sealed

# Orbax logs several lines for each save. When a disk is full, asyncio logs an error for each
# array. Neither is needed: errors are raised as well.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


FORMAT = 1  # number of today's layout of items; a meta item says which one its checkpoint has
ITEMS = ("params", "buffers", "optimizer")
Items = dict[str, Any]  # trees of arrays by name
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written
# The fields, and their types, that a meta item without a seal (older versions) must have.
META = {
    "config": dict,
    "tokenizer": str,
    "fingerprint": str,
    "parents": list,
    "digests": dict,
}
# Held while a run in a thread saves. Orbax counts its writes for the whole process, and of two that
# overlap one waits for ever.
ONE_WRITE = threading.Lock()
LONGEST_FAULT = 200  # most characters that are quoted from an error of the storage


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be read, or that differs from what was saved."""


class RestoredItems(NamedTuple):
    """A checkpoint as read: its items by name."""

    step: int
    meta: dict
    items: Items


class StoredModel(abc.ABC):
    """What a trained model is read from: a run's checkpoints, or an export (exported/).

    root: the folder that holds the arrays.
    """

    root: epath.Path

    @abc.abstractmethod
    def steps(self) -> list[int]:
        """Return the steps that can be read, oldest first."""

    @abc.abstractmethod
    def read_meta(self, step: int) -> tuple[dict, str]:
        """Return (the meta item of a step, ""), or ({}, what is wrong with it)."""

    @abc.abstractmethod
    def restore(self, step: int, shapes: Items) -> RestoredItems:
        """Return items of a step.

        Args:
          shapes: each item's tree of ShapeDtypeStructs, with the shardings to restore to.

        Raises: DamagedCheckpoint where it cannot be read, or a value is not the one that was saved.
        """

    @abc.abstractmethod
    def shapes(self, step: int, item: str, sharding: Any = None) -> Any:
        """Return an item of a step as a tree of ShapeDtypeStructs.

        Args:
          sharding: that every ShapeDtypeStruct gets.
        Raises: DamagedCheckpoint where the item cannot be read.
        """

    @abc.abstractmethod
    def place(self, step: int) -> epath.Path:
        """Return the folder of a step, for messages."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release what reading has opened."""

    def meta(self, step: int) -> dict:
        """Return the meta item of a step; {} where it is damaged or another step's."""
        return self.read_meta(step)[0]

    def newest(
        self, steps: Iterable[int], read: Callable[[int, dict], Any]
    ) -> tuple[Any, list[str]]:
        """Return the result of `read` for the newest checkpoint that it can read on every process.

        Args:
          steps: the checkpoints to choose from.
          read: called with a step and its meta item; raises DamagedCheckpoint where it cannot read.
        Returns: (what `read` returned, None if it could read no checkpoint; the faults of those
          that were passed over, each as "step 30: its fault").
        """
        passed_over = []
        for step in sorted(steps, reverse=True):
            result = None
            meta, fault = self.read_meta(step)
            if not fault:
                try:
                    result = read(step, meta)
                except DamagedCheckpoint as damage:
                    fault = str(damage)
            # All processes must go on from the same step.
            if hosts.all_agree(not fault):
                return result, passed_over
            passed_over.append(f"step {step}: {fault or 'another process cannot read it'}")
        return None, passed_over


class Checkpoints(StoredModel):
    """The checkpoints of one work directory; saving goes on in the background.

    Args:
      background: False for runs in several threads, which must save one after another.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 3, *, background: bool = True):
        folder = epath.Path(workdir)
        if "://" not in os.fspath(workdir):
            folder = _Local(folder.expanduser().absolute())
        self.root = folder / "checkpoints"
        self.keep = keep
        self.background = background

    @functools.cached_property
    def manager(self) -> ocp.CheckpointManager:
        """Orbax's manager, made when it is first needed.

        It creates the folder of checkpoints, which a mere look at a work directory must not do.

        Raises: UserError where one step's _CHECKPOINT_METADATA is damaged: Orbax then lists no
          step at all.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=None, enable_async_checkpointing=True)
        names = (*ITEMS, "rest", "meta")
        try:
            return ocp.CheckpointManager(self.root, item_names=names, options=options)
        except OSError:  # no access, or a full disk: not damage
            raise
        except Exception as error:  # of whatever kind: Orbax parses the metadata of every step
            raise UserError(
                f"a _CHECKPOINT_METADATA in '{self.root}' is damaged ({first_line(error)}); "
                "move the folder of that step away, and the step before is used."
            ) from error

    def save(self, step: int, items: Items, meta: dict) -> None:
        """Save items (trees of arrays) in the background.

        It returns once the arrays are copied off the device.
        """
        digests, saves = {}, {}
        for name, tree in items.items():
            digests[name] = digest(tree)
            saves[name] = ocp.args.StandardSave(tree)
        meta = sealed({**meta, "format": FORMAT, "step": step, "digests": digests})
        args = ocp.args.Composite(**saves, meta=ocp.args.JsonSave(meta))
        # Orbax has an interval of its own; `force` saves at any step.
        if self.background:
            self.manager.save(step, args=args, force=True)
            return
        with ONE_WRITE:
            self.manager.save(step, args=args, force=True)
            self.manager.wait_until_finished()

    def wait(self) -> None:
        """Return when everything saved so far is on disk."""
        self.manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Return the steps with a finished checkpoint, oldest first."""
        if not self.root.exists():  # the manager would create it
            return []
        return sorted(self.manager.all_steps())

    def read_meta(self, step: int) -> tuple[dict, str]:
        """Return (the meta item of a step, ""), or ({}, what is wrong with it)."""
        try:
            file = self._folder(step) / "meta" / "metadata"
            meta = json.loads(file.read_text())
            fault = meta_fault(meta, step)
        except (OSError, ValueError, RecursionError):  # RecursionError from deep nesting
            return {}, "its meta item cannot be read"
        return ({}, fault) if fault else (meta, "")

    def restore(self, step: int, shapes: Items) -> RestoredItems:
        """Return items of a step's checkpoint, see StoredModel."""
        meta, fault = self.read_meta(step)
        if fault:
            raise DamagedCheckpoint(fault)
        is_format_0 = meta.get("format", 0) < 1  # the first format had no number
        if is_format_0:
            shapes = _as_format_0(shapes)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        with _errors_as_damage():
            restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        restored = dict(restored)
        # Orbax compares no values. Older checkpoints may have no digests.
        for name, expected in meta.get("digests", {}).items():
            if name in items and digest(restored[name]) != expected:
                raise DamagedCheckpoint(f"values of '{name}' are not those that were saved")
        if is_format_0:
            restored = _from_format_0(restored)
        return RestoredItems(step, meta, restored)

    def shapes(self, step: int, item: str, sharding: Any = None) -> Any:
        """Return an item of a step's checkpoint, see StoredModel."""
        with _errors_as_damage(), ocp.StandardCheckpointer() as reader:
            saved = reader.metadata(self._folder(step) / item).item_metadata
            if saved is None:
                raise DamagedCheckpoint(f"its item '{item}' cannot be read")

            def shape_of(leaf):
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

            return jax.tree.map(shape_of, saved.tree)

    def prune(self, trunk: int | None) -> None:
        """Delete all but the newest `keep` checkpoints and the trunks.

        A trunk is a checkpoint whose learning rate is not decayed yet, from which a longer run may
        go on: that of step `trunk`, and those that earlier runs saved as theirs.
        """
        steps = self.steps()
        for step in steps[: -self.keep]:
            if step != trunk and not self.meta(step).get("trunk"):
                self.manager.delete(step)

    def remove_unfinished(self) -> None:
        """Delete incomplete checkpoints, whose writer was killed; only a writer may call it.

        In a bucket there is nothing to delete: a checkpoint has its final name from the start, and
        counts only once it is complete.
        """
        if hosts.is_first() and self.root.exists():
            for folder in self.root.iterdir():
                if UNFINISHED in folder.name:
                    folder.rmtree()
        # No process goes on while the folders are still there.
        hosts.barrier("remove_unfinished")

    def set_aside(self, step: int) -> None:
        """Move checkpoints of later steps to `checkpoints-aside/`: a run goes on from `step`.

        Checkpoints of the same steps that were set aside before are replaced.
        """
        # No process may still be reading a checkpoint that moves.
        hosts.barrier("before set_aside")
        if hosts.is_first():
            aside = self.root.parent / "checkpoints-aside"
            for later in self.steps():
                if later > step:
                    _replace(self._folder(later), aside / str(later))
        hosts.barrier("set_aside")
        self.manager.reload()  # the manager keeps a list of steps, which is outdated now

    def place(self, step: int) -> epath.Path:
        """Return the folder of a step's checkpoint, for messages."""
        return self._folder(step)

    def close(self) -> None:
        """Close Orbax's manager, where there is one."""
        if "manager" in self.__dict__:  # reading the property would make one
            self.manager.close()

    def _folder(self, step: int) -> epath.Path:
        return self.root / str(step)


def named(tree: Any) -> Items:
    """Return each leaf of a tree by its name, such as "stack/0/0/mixer/query"."""
    by_name = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        by_name[name] = leaf
    return by_name


def checkpoint_hash(meta: dict) -> str:
    """Return the hash of a checkpoint's meta item, by which its descendants name it."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


def ancestors(init_from: str, step: int, meta: dict) -> list[dict]:
    """Return work directory, step and hash of a checkpoint, then those of its ancestors."""
    parent = {"workdir": init_from, "step": step, "hash": checkpoint_hash(meta)}
    return [parent, *meta.get("parents", [])]


def meta_fault(meta: Any, step: int) -> str:
    """Return what is wrong with the meta item of a step's checkpoint; "" for nothing.

    A meta item without a seal, of an older version, is judged by its keys and their types alone.
    """
    if not isinstance(meta, dict):
        return "its meta item holds no object"
    if meta.get("step", step) != step:
        return f"its meta item is that of step {meta['step']}"
    if seal_is_broken(meta):
        return "its meta item is not the one that was saved"
    if "seal" in meta:
        return ""
    for name, kind in META.items():
        if not isinstance(meta.get(name), kind):
            return f"its meta item has no valid '{name}'"
    if not isinstance(meta["config"].get("train"), dict):
        return "its meta item has no valid 'config'"
    return ""


def digest(tree: Any) -> str:
    """Return a digest of every bit of a tree's arrays, however they are spread over devices.

    The storage notices a file that is cut short, but not a flipped bit.
    """
    sums = jax.device_get(_sums(jax.tree.leaves(tree)))
    text = json.dumps([int(number) for number in sums])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@jax.jit
def _sums(leaves: list) -> list:
    """Return the sum of each array's bits, read as unsigned integers, modulo 2**32.

    Unlike a sum of floats it is the same in any order.
    """
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    sums = []
    for leaf in leaves:
        x = jnp.asarray(leaf)
        bits = jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize])
        sums.append(jnp.sum(bits, dtype=jnp.uint32))
    return sums


@contextlib.contextmanager
def _errors_as_damage() -> Iterator[None]:
    """Inside, every error but a lack of memory becomes a DamagedCheckpoint."""
    try:
        yield
    except Exception as error:  # the storage raises many kinds
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise DamagedCheckpoint(first_line(error)[:LONGEST_FAULT]) from error


def _replace(folder: epath.Path, target: epath.Path) -> None:
    """Move a folder to `target`, which may exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rmtree()
    folder.rename(target)


def _as_format_0(items: Items) -> Items:
    """Return items as format 0 laid them out. Without the optimizer, buffers are left out."""
    # Both are in the item `rest`, which can only be read as a whole.
    if "optimizer" not in items:
        return {"params": items["params"]}
    rest = dict(items["optimizer"])
    if "buffers" in items:
        rest["buffers"] = {"fp8": items["buffers"]}
    return {"params": items["params"], "rest": rest}


def _from_format_0(items: Items) -> Items:
    """Return the items of format 0 as today's."""
    if "rest" not in items:
        return items
    # Buffers are those of float8, the only ones that format 0 had.
    rest = dict(items["rest"])
    buffers = rest.pop("buffers", {})
    newer = {"params": items["params"], "optimizer": rest}
    if buffers:
        newer["buffers"] = buffers["fp8"]
    return newer


class _Local(type(epath.Path("/"))):
    """A local path whose `glob` takes the path's own name literally.

    Orbax lists the parts of a checkpoint with `glob`. That of epath reads a "[" in a work
    directory's name as part of the pattern.
    """

    def glob(self, pattern: str) -> Iterator["_Local"]:
        for path in pathlib.Path(os.fspath(self)).glob(pattern):
            yield type(self)(os.fspath(path))
