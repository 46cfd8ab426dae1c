"""Checkpoints: save, restore, prune. Used by training and by everything that only reads a model.

A checkpoint `checkpoints/<step>/` holds the items `params`, `buffers` (of a model that has some),
`optimizer` (with step and spike statistics) and `meta` (config, fingerprint of the data plan,
tokenizer hash, parents, digests), so that a model can be read without its optimizer. Until format 1
the item `rest` held optimizer, step, spike statistics and the scales of float8.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from slmjax.errors import UserError, first_line
from slmjax.parallel import hosts
from slmjax.text.files import seal_is_broken, sealed

# Orbax logs each save in several lines and, with asyncio, a full disk once for each array; what goes wrong is raised as well.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


FORMAT = 1  # of the items, in the meta item
ITEMS = ("params", "buffers", "optimizer")
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written


class DamagedCheckpoint(ValueError):
    """A checkpoint that does not read, or not as it was saved."""


class RestoredItems(NamedTuple):
    """A checkpoint as read: its items by name."""

    step: int
    meta: dict
    items: dict[str, Any]


class Checkpoints:
    """The checkpoints of one work directory; saving goes on in the background."""

    def __init__(self, workdir: str | os.PathLike, keep: int = 3):
        folder = epath.Path(workdir)
        folder = folder if "://" in os.fspath(workdir) else _Local(folder.expanduser().absolute())
        self.root = folder / "checkpoints"
        self.keep = keep

    @functools.cached_property
    def manager(self) -> ocp.CheckpointManager:
        """Orbax's manager; made with the first save or look, so that asking an empty folder leaves nothing behind.

        Raises: UserError where what Orbax keeps of a step is damaged, so that it finds none.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=None, enable_async_checkpointing=True)
        try:
            return ocp.CheckpointManager(
                self.root, item_names=(*ITEMS, "rest", "meta"), options=options
            )
        except OSError:
            raise
        except Exception as error:  # Orbax reads the time of every step from a file of its own
            raise UserError(
                f"a _CHECKPOINT_METADATA in '{self.root}' is damaged ({first_line(error)}); "
                "move the folder of that step away, and the step before is used."
            ) from error

    def save(self, step: int, items: dict[str, Any], meta: dict) -> None:
        """Save items (trees of arrays) in the background; returns once the arrays are copied off the device."""
        digests = {name: digest(tree) for name, tree in items.items()}
        meta = sealed({**meta, "format": FORMAT, "step": step, "digests": digests})
        saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self.manager.save(
            step, args=ocp.args.Composite(**saves, meta=ocp.args.JsonSave(meta)), force=True
        )

    def wait(self) -> None:
        """Until everything saved so far is on disk."""
        self.manager.wait_until_finished()

    def prune(self, trunk: int | None) -> None:
        """Delete all but the newest `keep` checkpoints, the one at `trunk`, and those saved as an earlier run's trunk."""
        steps = self.steps()
        for step in steps[: -self.keep]:
            if step != trunk and not self.meta(step).get("trunk"):
                self.manager.delete(step)

    def remove_unfinished(self) -> None:
        """Delete what a kill left of a checkpoint that was being written; only whoever writes here may.

        A bucket has none: there a checkpoint has its name from the start, and counts once it is whole.
        """
        if hosts.is_first() and self.root.exists():
            for place in self.root.iterdir():
                if UNFINISHED in place.name:
                    place.rmtree()
        hosts.barrier("remove_unfinished")  # else another process could be looking at what goes

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, oldest first."""
        return sorted(self.manager.all_steps()) if self.root.exists() else []

    def meta(self, step: int) -> dict:
        """The meta item of a step; {} where it is damaged or another step's."""
        return self.read_meta(step)[0]

    def read_meta(self, step: int) -> tuple[dict, str]:
        """(the meta item of a step, "") or ({}, what is wrong with it)."""
        try:
            meta = json.loads((self.root / str(step) / "meta" / "metadata").read_text())
            fault = meta_fault(meta, step)
        except (OSError, ValueError, RecursionError):  # the last one for deep nesting
            return {}, "its meta item cannot be read"
        return ({}, fault) if fault else (meta, "")

    def newest(
        self, steps: Iterable[int], read: Callable[[int, dict], Any]
    ) -> tuple[Any, list[str]]:
        """What `read` makes of the newest of these checkpoints, and which ones were passed over.

        Args:
          read: called with a step and its meta item; raises Damaged for a checkpoint that it cannot read.
        Returns: (its result, or None where it can read none, ["step 30: what is wrong", ...]).
        """
        passed_over = []
        for step in sorted(steps, reverse=True):
            meta, fault = self.read_meta(step)
            found = None
            if not fault:
                try:
                    found = read(step, meta)
                except DamagedCheckpoint as damage:
                    fault = str(damage)
            if hosts.all_agree(not fault):
                return found, passed_over
            passed_over.append(f"step {step}: {fault or 'another process cannot read it'}")
        return None, passed_over

    def restore(self, step: int, shapes: dict[str, Any]) -> RestoredItems:
        """Items of a step's checkpoint, in the shapes and shardings of trees of ShapeDtypeStructs.

        Raises: Damaged where it does not read, or a value is not the one that was saved.
        """
        meta, fault = self.read_meta(step)
        if fault:
            raise DamagedCheckpoint(fault)
        older = meta.get("format", 0) < 1
        shapes = _as_format_0(shapes) if older else shapes
        items = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        with _damage():
            got = dict(self.manager.restore(step, args=ocp.args.Composite(**items)))
        for name, expected in meta.get("digests", {}).items():
            if name in items and digest(got[name]) != expected:
                raise DamagedCheckpoint(f"values of '{name}' are not those that were saved")
        return RestoredItems(step, meta, _from_format_0(got) if older else got)

    def shapes(self, step: int, item: str, sharding: Any = None) -> Any:
        """An item of a step's checkpoint as a tree of ShapeDtypeStructs. Raises: Damaged."""
        with _damage(), ocp.StandardCheckpointer() as reader:
            found = reader.metadata(self.root / str(step) / item).item_metadata
            if found is None:
                raise DamagedCheckpoint(f"its item '{item}' cannot be read")
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                found.tree,
            )

    def set_aside(self, step: int) -> None:
        """Move the checkpoints of later steps out of the way, to `checkpoints-aside/<step>`: a run goes on from an earlier one."""
        aside = self.root.parent / "checkpoints-aside"
        hosts.barrier("before set_aside")  # else another process could still be reading what moves
        for later in self.steps() if hosts.is_first() else ():
            if later > step:
                aside.mkdir(parents=True, exist_ok=True)
                if (aside / str(later)).exists():
                    (aside / str(later)).rmtree()
                (self.root / str(later)).rename(aside / str(later))
        hosts.barrier("set_aside")
        self.manager.reload()

    def close(self) -> None:
        if "manager" in self.__dict__:
            self.manager.close()


def named(tree: Any) -> dict[str, Any]:
    """Each leaf of a tree by its name, such as "stack/0/0/mixer/query"."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Inside, whatever the storage raises is Damaged, unless it is the memory that does not suffice."""
    try:
        yield
    except Exception as error:  # storage raises many kinds
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise DamagedCheckpoint(first_line(error)[:200]) from error


def meta_fault(meta: Any, step: int) -> str:
    """What is wrong with the meta item of a step's checkpoint; "" for nothing.

    Checkpoints of versions without a seal are judged by their keys alone.
    """
    if not isinstance(meta, dict):
        return "its meta item holds no object"
    if meta.get("step", step) != step:
        return f"its meta item is that of step {meta['step']}"
    if seal_is_broken(meta):
        return "its meta item is not the one that was saved"
    if "seal" in meta:
        return ""
    wrong = [name for name, kind in META.items() if not isinstance(meta.get(name), kind)]
    if not wrong and not isinstance(meta["config"].get("train"), dict):
        wrong = ["config"]
    return f"its meta item has no valid '{wrong[0]}'" if wrong else ""


def _as_format_0(items: dict[str, Any]) -> dict[str, Any]:
    """Items as checkpoints of format 0 have them; buffers are read together with the optimizer only."""
    if "optimizer" not in items:
        return {"params": items["params"]}
    rest = dict(items["optimizer"])
    if "buffers" in items:
        rest["buffers"] = {"fp8": items["buffers"]}
    return {"params": items["params"], "rest": rest}


def _from_format_0(items: dict[str, Any]) -> dict[str, Any]:
    if "rest" not in items:
        return items
    rest = dict(items["rest"])
    buffers = rest.pop("buffers", {})
    found = {"params": items["params"], "optimizer": rest}
    return found | ({"buffers": buffers["fp8"]} if buffers else {})


META = {"config": dict, "tokenizer": str, "fingerprint": str, "parents": list, "digests": dict}


class _Local(type(epath.Path("/"))):
    """A local path whose own name is no pattern: Orbax finds the parts of a checkpoint by glob, in which "[" stands for more."""

    def glob(self, pattern: str) -> Iterator["_Local"]:
        for path in pathlib.Path(os.fspath(self)).glob(pattern):
            yield self._new(os.fspath(path))


def digest(tree: Any) -> str:
    """Of every bit of a tree's arrays, however they are spread over devices: the storage notices a cut file, but not a flipped bit."""
    sums = [int(n) for n in jax.device_get(_sums(jax.tree.leaves(tree)))]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


@jax.jit
def _sums(leaves: list) -> list:
    """Each array's bits, summed as integers: exact in any order."""
    kinds = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    return [
        jnp.sum(jax.lax.bitcast_convert_type(x, kinds[x.dtype.itemsize]), dtype=jnp.uint32)
        for x in map(jnp.asarray, leaves)
    ]
