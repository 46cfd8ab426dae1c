"""Write an export: pieces first, params.json last; see read_export.py for the layout."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from slmjax.checkpoint import RestoredItems, checkpoint_hash, named
from slmjax.errors import UserError
from slmjax.exported.read_export import (
    EXPORT_FORMAT,
    MANIFEST,
    TYPES,
    little_endian,
    read_export_manifest,
)
from slmjax.exported.tokenizer_files import TOKENIZER_NAMES, write_tokenizer_files
from slmjax.text.files import sealed, write_atomic
from slmjax.text.pieces import MOST_PIECES, PIECE_NAME, PieceWriter
from slmjax.text.tokenizer import Tokenizer

# Files of an export apart from its pieces; .lock is there while a process writes.
OWN_NAMES = (MANIFEST, "config.json", *TOKENIZER_NAMES, ".lock")


def write_export(
    folder: epath.Path,
    restored: RestoredItems,
    tokenizer: Tokenizer | None,
    dtype: str,
    limit: int,
) -> dict:
    """Write an export and return its manifest, the content of params.json.

    A folder that holds the same export keeps it; a file that is missing or damaged there is
    written again.

    Args:
      folder: where to; new, empty, or with the same export, finished or not.
      restored: the checkpoint, with the items to write.
      tokenizer: of the run; None where its task has none.
      dtype: of float32 parameters, one of float32 and bfloat16.
      limit: most bytes of a piece.
    Raises: UserError where the folder holds something else, for an array of an unknown type, and
      for a value that bfloat16 cannot hold; then the folder is as it was.
    """
    meta = restored.meta
    if "parents" in meta:
        # First, for people who look into the file. The order does not change the meta item's hash.
        meta = {"parents": meta["parents"], **meta}
    head = {
        "format": EXPORT_FORMAT,
        "step": restored.step,
        "dtype": dtype,
        "limit": limit,
        "meta": meta,
    }
    was_finished = check_vacant(folder, head)
    arrays = describe_arrays(restored.items, dtype)
    size = sum(array["bytes"] for array in arrays)
    if size > limit * MOST_PIECES:
        least = -(-size // MOST_PIECES)  # rounded up
        raise UserError(
            f"--pieces={limit}: {size:,} bytes would be more than {MOST_PIECES:,} pieces; "
            f"expected at least {least:,} bytes."
        )
    writer = PieceWriter(folder, limit)
    try:
        for content in _contents(restored.items, arrays):
            writer.write(content)
        pieces = writer.close()
        if tokenizer:
            write_tokenizer_files(folder, tokenizer)
        write_atomic(folder / "config.json", meta["config"])
        _remove(folder, keep={piece["file"] for piece in pieces} | set(OWN_NAMES))
        manifest = sealed({**head, "arrays": arrays, "pieces": pieces})
        # Last: a folder without it is unfinished.
        write_atomic(folder / MANIFEST, manifest)
    except BaseException:
        # Also at Ctrl-C. The files of an export that was finished before are still right.
        if not was_finished:
            _remove(folder, keep={".lock"})
        raise
    return manifest


def check_vacant(folder: epath.Path, head: dict) -> bool:
    """Return whether a folder holds the same export, finished; False where none is finished.

    Args:
      head: what says which export it is: format, step, dtype, limit and meta.
    Raises: UserError where it holds another export or files that are not of an export.
    """
    for file in folder.iterdir():
        # A killed process may have left a file that it had not finished.
        is_own = file.name in OWN_NAMES or file.name.startswith(".tmp-")
        if not is_own and not PIECE_NAME.fullmatch(file.name):
            raise UserError(
                f"--out={folder} holds '{file.name}', which is not of an export; "
                "choose a new folder."
            )
    if not (folder / MANIFEST).exists():
        return False
    try:
        present = _in_words(read_export_manifest(folder))
    except UserError as error:
        reason = str(error).partition(";")[0]
        raise UserError(
            f"--out={folder}: {reason}; delete the folder, or choose another."
        ) from None
    wanted = _in_words(head)
    if present == wanted:
        return True
    raise UserError(
        f"--out={folder} holds another export: {present}; asked for: {wanted}; choose another "
        "folder."
    )


def describe_arrays(items: dict, dtype: str) -> list[dict]:
    """Return the manifest's description of each array, in the order of the stream.

    Parameters of float32 get the type `dtype`; all others, and buffers, keep theirs.

    Raises: UserError for an array of a type that an export does not hold.
    """
    arrays = []
    offset = 0
    for name, leaf in named(items).items():
        saved_as = str(leaf.dtype)
        if saved_as not in TYPES:
            known = ", ".join(TYPES)
            raise UserError(f"the array '{name}' is of type {saved_as}; an export holds {known}.")
        stored = saved_as
        if name.startswith("params/") and saved_as == "float32":
            stored = dtype
        size = leaf.size * TYPES[stored].itemsize
        arrays.append(
            {
                "name": name,
                "shape": list(leaf.shape),
                "dtype": stored,
                "saved_as": saved_as,
                "offset": offset,
                "bytes": size,
            }
        )
        offset += size
    return arrays


def _contents(items: dict, arrays: list[dict]) -> Iterator[memoryview]:
    """Yield the bytes of each array, as `arrays` describes them."""
    leaves = named(items)
    for array in arrays:
        values = np.asarray(leaves[array["name"]])
        if array["dtype"] != array["saved_as"]:
            values = as_bfloat16(values, array["name"])
        # reshape, so that an array without dimensions has bytes to view.
        flat = np.ascontiguousarray(values).reshape(-1)
        yield memoryview(little_endian(flat).view(np.uint8))


def as_bfloat16(values: np.ndarray, name: str) -> np.ndarray:
    """Return float32 values as bfloat16, rounded to the nearest, ties to even.

    Infinities and values that are not numbers stay what they are.

    Raises: UserError that names the array where a finite value becomes infinite.
    """
    with np.errstate(over="ignore"):
        rounded = values.astype(jnp.bfloat16)
    lost = np.isinf(rounded) & np.isfinite(values)
    if lost.any():
        largest: Any = np.abs(values[lost]).max()
        raise UserError(
            f"the array '{name}' holds {largest:.4g}, which bfloat16 cannot hold; "
            "export it with --dtype=float32."
        )
    return rounded


def _remove(folder: epath.Path, keep: set[str]) -> None:
    """Remove an export's files, but for those in `keep`."""
    for file in folder.iterdir():
        is_own = file.name in OWN_NAMES or PIECE_NAME.fullmatch(file.name)
        if not is_own or file.name in keep:
            continue
        if file.is_dir():
            file.rmtree()
        else:
            file.unlink()


def _in_words(head: dict) -> str:
    """Return which export a manifest is of; two with the same words are the same."""
    run = checkpoint_hash(head["meta"])
    return f"step {head['step']} of {run} as {head['dtype']} in pieces of {head['limit']:,} bytes"
