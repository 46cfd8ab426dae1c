"""A model that `slmjax.export` wrote: parameters in hashed pieces, read as checkpoints are.

An export holds `config.json`, `tokenizer.json` (of a task with text), `params-00000.bin` and so on,
and `params.json`, which is written last and sealed:

  format                       number of this layout
  step                         of the checkpoint
  dtype, limit                 --dtype and --pieces (in bytes) of the export
  meta                         the checkpoint's own meta item, with config and parents
  arrays                       name, shape, dtype, saved_as (its type in the run), offset and bytes
                               in the stream of all arrays, little-endian, in C order
  pieces                       file, bytes and sha256 of each part of that stream
"""

import functools
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from slmjax.checkpoint import (
    Checkpoints,
    DamagedCheckpoint,
    Items,
    RestoredItems,
    StoredModel,
    meta_fault,
    named,
)
from slmjax.errors import UserError
from slmjax.text.files import seal_is_broken
from slmjax.text.pieces import PIECE_NAME, DamagedPiece, PieceReader, piece_name

EXPORT_FORMAT = 1  # number of the layout of params.json
MANIFEST = "params.json"
# Types of arrays by name. An export may be somebody else's, so no other name is accepted.
_FLOATS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
_INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32")
TYPES = {name: jax.numpy.dtype(name) for name in (*_FLOATS, *_INTEGERS)}
AGAIN = "export the run again, or fetch the folder anew"  # ends a message about damage


def checkpoints_of(workdir: str | os.PathLike) -> StoredModel:
    """Return the checkpoints of a work directory, or the model of an export's folder."""
    return Export(workdir) if is_export(workdir) else Checkpoints(workdir)


def is_export(workdir: str | os.PathLike) -> bool:
    """Return whether a folder is that of an export, finished or not; a run's is not."""
    folder = epath.Path(workdir).expanduser()
    if (folder / "checkpoints").exists():
        return False
    if (folder / MANIFEST).exists():
        return True
    if not folder.is_dir():
        return False
    try:
        names = [file.name for file in folder.iterdir()]
    except OSError:  # a folder that may not be listed
        return False
    return any(map(PIECE_NAME.fullmatch, names))


class Export(StoredModel):
    """The one step of an export, with the interface of a run's checkpoints."""

    def __init__(self, workdir: str | os.PathLike):
        self.root = epath.Path(workdir).expanduser()

    @functools.cached_property
    def manifest(self) -> dict:
        """The content of params.json. Raises: UserError where it is missing or damaged."""
        return read_export_manifest(self.root)

    def steps(self) -> list[int]:
        """Return the one step. Raises: UserError where the export is unfinished or damaged."""
        return [self.manifest["step"]]

    def read_meta(self, step: int) -> tuple[dict, str]:
        """Return (the exported checkpoint's meta item, ""), or ({}, what is wrong with it)."""
        try:
            manifest = self.manifest
        except UserError as error:
            return {}, str(error).rstrip(".")
        if step != manifest["step"]:
            return {}, f"the export '{self.root}' is of step {manifest['step']}"
        fault = meta_fault(manifest["meta"], step)
        if fault:
            return {}, fault
        return manifest["meta"], ""

    def shapes(self, step: int, item: str, sharding: Any = None) -> Any:
        """Return an item as a nested dict of ShapeDtypeStructs, with the types of the run.

        Raises: DamagedCheckpoint where it has no such item.
        """
        tree: dict = {}
        for array in self.manifest["arrays"]:
            # "params/blocks/0/w" is the leaf "w" of the item "params".
            first, *folders, leaf = array["name"].split("/")
            if first != item:
                continue
            branch = tree
            for folder in folders:
                branch = branch.setdefault(folder, {})
            dtype, shape = TYPES[array["saved_as"]], tuple(array["shape"])
            branch[leaf] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        if not tree:
            raise DamagedCheckpoint(f"the export '{self.root}' has no item '{item}'")
        return tree

    def restore(self, step: int, shapes: Items) -> RestoredItems:
        """Return items of the export, in the types of `shapes`. See StoredModel.

        At any time memory holds the result so far, one array and one piece.

        Raises: DamagedCheckpoint that names a piece that is missing or not what was written, or an
          array that the export lacks or has in another shape.
        """
        meta, fault = self.read_meta(step)
        if fault:
            raise DamagedCheckpoint(fault)
        if meta.get("format", 0) < 1:
            # Before format 1 a model was read without buffers, as Checkpoints.restore still does.
            shapes = {"params": shapes["params"]}
        wanted = named(shapes)
        self._check_arrays(wanted)
        reader = PieceReader(self.root, self.manifest["pieces"])
        leaves = {}
        # In the order of the stream, not of the tree, so that each piece is read once.
        for array in self.manifest["arrays"]:
            if array["name"] in wanted:
                leaves[array["name"]] = _array(reader, array, wanted[array["name"]])
        in_order = [leaves[name] for name in wanted]
        return RestoredItems(step, meta, jax.tree.unflatten(jax.tree.structure(shapes), in_order))

    def place(self, step: int) -> epath.Path:
        """Return the folder of the export, for messages."""
        return self.root

    def close(self) -> None:
        """Nothing stays open."""

    def _check_arrays(self, wanted: Mapping[str, Any]) -> None:
        """Raises: DamagedCheckpoint for an array that is missing or has another shape."""
        shapes = {array["name"]: list(array["shape"]) for array in self.manifest["arrays"]}
        for name, leaf in wanted.items():
            expected = list(leaf.shape)
            if name not in shapes:
                raise DamagedCheckpoint(f"its array '{name}' is missing; expected {expected}")
            if shapes[name] != expected:
                raise DamagedCheckpoint(
                    f"its array '{name}' is {shapes[name]}; expected {expected}"
                )


def read_export_manifest(folder: epath.Path) -> dict:
    """Return the content of an export's params.json.

    Raises: UserError where it is missing, damaged or of a newer version.
    """
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"'{folder}' is an unfinished export: it has no {MANIFEST}, which is written last; "
            f"{AGAIN}."
        ) from None
    except (OSError, ValueError, RecursionError):  # the parser recurses into nested lists
        raise UserError(f"'{file}' cannot be read as JSON; {AGAIN}.") from None
    if not isinstance(manifest, dict) or "seal" not in manifest or seal_is_broken(manifest):
        raise UserError(f"'{file}' is not what was written; {AGAIN}.")
    number = manifest.get("format")
    if number != EXPORT_FORMAT:
        raise UserError(
            f"'{file}' has the format {number!r}; this version of slmjax reads {EXPORT_FORMAT}, so "
            "it was written by another one."
        )
    try:
        fault = _layout_fault(manifest)
    except (KeyError, TypeError, AttributeError):
        fault = "lacks a field, or has one of another kind"
    if fault:
        raise UserError(f"'{file}' {fault}; {AGAIN}.")
    return manifest


def little_endian(values: np.ndarray) -> np.ndarray:
    """Return the bits of an array, in the byte order of an export, as unsigned integers.

    It is its own inverse: given bits in that order it returns them in the machine's.
    """
    bits = values.view(f"u{values.dtype.itemsize}")
    if sys.byteorder == "big":
        return bits.byteswap()
    return bits


def _array(reader: PieceReader, array: Mapping, wanted: Any) -> jax.Array:
    """Return one array of an export.

    Args:
      array: its description in the manifest.
      wanted: a ShapeDtypeStruct; the result has its type and sharding.
    Raises: DamagedCheckpoint that names a piece that is missing or not what was written.
    """
    stored = TYPES[array["dtype"]]
    try:
        content = reader.read(array["offset"], array["bytes"])
    except DamagedPiece as error:
        raise DamagedCheckpoint(f"{error}; {AGAIN}") from error
    bits = little_endian(content.view(f"u{stored.itemsize}"))
    values = bits.view(stored).reshape(array["shape"])
    if wanted.sharding is None:
        return jax.numpy.asarray(values.astype(wanted.dtype))

    def part(index: tuple[slice, ...]) -> np.ndarray:
        # Each device's own part gets its type here, so that no second whole copy exists.
        return values[index].astype(wanted.dtype)

    return jax.make_array_from_callback(tuple(array["shape"]), wanted.sharding, part)


def _layout_fault(manifest: Mapping) -> str:
    """Return what is wrong in a manifest, as the end of a sentence about it; "" for nothing.

    Damage has broken the seal. This is for a file that some other program has written.

    Raises: KeyError, TypeError or AttributeError where a field is missing or of another type.
    """
    end = 0
    for array in manifest["arrays"]:
        # Either raises a KeyError where the type is unknown.
        stored, _ = TYPES[array["dtype"]], TYPES[array["saved_as"]]
        sizes = array["shape"]
        are_sizes = all(type(size) is int and size >= 0 for size in sizes)
        *folders, own_name = array["name"].split("/")
        if not are_sizes or not folders or not own_name:
            return f"describes no array as '{array['name']}'"
        if array["offset"] != end or array["bytes"] != math.prod(sizes) * stored.itemsize:
            return f"contradicts itself on the bytes of '{array['name']}'"
        end += array["bytes"]
    names = [array["name"] for array in manifest["arrays"]]
    # "a/b/c" is in the folders "a" and "a/b": no array may be called like one of them.
    folders_of_arrays = set()
    for name in names:
        for slash in re.finditer("/", name):
            folders_of_arrays.add(name[: slash.start()])
    if len(set(names)) < len(names) or folders_of_arrays & set(names):
        return "names an array twice"
    held = 0
    for number, piece in enumerate(manifest["pieces"]):
        # Any other name could lead out of the folder.
        if piece["file"] != piece_name(number) or type(piece["bytes"]) is not int:
            return f"names '{piece['file']}' as piece {number}"
        if piece["bytes"] < 1 or not isinstance(piece["sha256"], str):
            return f"says nothing of the content of '{piece['file']}'"
        held += piece["bytes"]
    if held != end:
        return f"has {held:,} bytes in pieces and {end:,} in arrays"
    numbers = manifest["step"], manifest["limit"]
    if any(type(number) is not int for number in numbers) or not isinstance(manifest["meta"], dict):
        return "does not say which checkpoint it is of"
    return ""
