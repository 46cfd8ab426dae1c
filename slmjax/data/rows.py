"""The contract of training data: rows of global batches, as pure functions of (seed, step, row)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

# The arrays of a batch of text, each [B, T].
TEXT = {
    "tokens": "int32",
    "targets": "int32",
    "segments": "int32",
    "positions": "int32",
    "weights": "float32",
}


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
        """Return the global batch of a step: a pure function with few different values.

        All hosts agree on it without reading; a program is compiled for each value. Names and axes
        are the same in all of them.
        """

    def read(self, step: int, rows: Sequence[int]) -> Any:
        """Return some rows of a step's global batch, in a compact form that is quick to send."""

    def unpack(self, compact: Any) -> Arrays:
        """Return the arrays of those rows; each has a leading axis of rows.

        It is called in the trainer's process.
        """

    def fingerprint(self, step: int) -> str:
        """Return a digest of everything that decides the batches before `step`."""


@runtime_checkable
class NamedRows(Rows, Protocol):
    """Rows that can name their documents, for the message about steps that were skipped."""

    def documents(self, step: int) -> list[str]:
        """Return the documents that the global batch of a step holds, in order, each once."""


def text_fields(batch: int, seq_len: int, places: int | None = None) -> Fields:
    """Return the fields of a batch of text.

    tokens, targets [B,T] int32.
    segments [B,T] int32: the document of a token, counted from 1 in each row; 0 is padding, and
      every other token is real. No token sees another segment.
    positions [B,T] int32: from 0 in each document.
    weights [B,T] float32: of the token's loss.

    Args:
      places: documents that a device has to keep places for, in the rows that it holds of a
        microbatch. Only an attention kernel over lists of documents asks, see
        ops/cudnn_attention.py. The field's length is this number; its values mean nothing.
    """
    # Rows are split over devices, tokens of a row are not.
    fields = {name: Field((batch, seq_len), dtype, ("batch", None)) for name, dtype in TEXT.items()}
    if places is not None:
        fields["places"] = Field((places,), "int8", (None,))
    return fields


def shape_key(fields: Fields) -> tuple:
    """Return what a compiled step depends on: the name and shape of each field."""
    return tuple((name, field.shape) for name, field in sorted(fields.items()))
