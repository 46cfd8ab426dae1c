"""What training reads: rows of global batches, as pure functions of (seed, step, row)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np


class Field(NamedTuple):
    """An array of a global batch.

    axes: the logical axis of each dimension; "batch" for the first of an array that has one entry
      for each row. An array without it is the same on every device.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]

    @property
    def by_rows(self) -> bool:
        """Whether it has one entry for each row of the batch."""
        return self.axes[:1] == ("batch",)


Fields = Mapping[str, Field]
Arrays = dict[str, np.ndarray]


@runtime_checkable
class Rows(Protocol):
    """Rows for training. It is pickled and read by worker processes, which must not import jax."""

    def shapes(self, step: int) -> Fields:
        """The global batch of a step: a pure function with few different values.

        All hosts agree on it without reading; a program is compiled for each value. Names and axes
        are the same in all of them.
        """

    def read(self, step: int, rows: Sequence[int]) -> Any:
        """Some rows of a step's global batch, in a compact form that is quick to send."""

    def unpack(self, compact: Any) -> Arrays:
        """The arrays of those rows, in the trainer's process; each has a leading axis of rows."""

    def fingerprint(self, step: int) -> str:
        """Digest of everything that decides the batches before `step`."""


@runtime_checkable
class NamedRows(Rows, Protocol):
    """Rows that can name their documents, for the message about steps that were skipped."""

    def documents(self, step: int) -> list[str]:
        """The documents that the global batch of a step holds, in order, each once."""


def text_fields(batch: int, seq_len: int, places: int | None = None) -> Fields:
    """Return the fields of a batch of text.

    tokens, targets [B,T] int32. segments [B,T] int32: the document of a token, counted from 1 in each
    row; 0 is padding, and every other token is real. positions [B,T] int32: from 0 in each document.
    weights [B,T] float32: of the token's loss. No token sees another segment.

    Args:
      places: documents that a device has to keep places for, in the rows that it holds of a
        microbatch. Only an attention kernel over lists of documents asks, see
        ops/cudnn_attention.py. The field's length says it; its values mean nothing.
    """
    kinds = {
        "tokens": "int32",
        "targets": "int32",
        "segments": "int32",
        "positions": "int32",
        "weights": "float32",
    }
    fields = {name: Field((batch, seq_len), kind, ("batch", None)) for name, kind in kinds.items()}
    return fields if places is None else fields | {"places": Field((places,), "int8", (None,))}


def shape_key(fields: Fields) -> tuple:
    """What a compiled step depends on: the name and shape of each field."""
    return tuple((name, field.shape) for name, field in sorted(fields.items()))
