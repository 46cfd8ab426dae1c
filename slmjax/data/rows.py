"""The contract of training data: rows of global batches, as pure functions of (seed, step, row)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

# The arrays of a batch of text and their types, each [B, T].
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
    """Training data by rows. Worker processes unpickle and read it, and must not import jax."""

    def shapes(self, step: int) -> Fields:
        """Return the fields of a step's global batch. This is a pure function of the step.

        All hosts compute the same fields without reading data. A program is compiled for each
        different result, so there should be few. Names and axes are the same at every step.
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
    weights [B,T] float32: factor of the token's loss.

    Args:
      places: how many documents a device makes room for in its rows of a microbatch. Only an
        attention kernel over lists of documents needs it, see ops/cudnn_attention.py. It becomes
        the length of a field, so that the step knows it when it is compiled; the values mean
        nothing.
    """
    # Rows are split over devices, tokens of a row are not.
    fields = {name: Field((batch, seq_len), dtype, ("batch", None)) for name, dtype in TEXT.items()}
    if places is not None:
        fields["places"] = Field((places,), "int8", (None,))
    return fields


def shape_key(fields: Fields) -> tuple:
    """Return what a compiled step depends on: the name and shape of each field."""
    return tuple((name, field.shape) for name, field in sorted(fields.items()))
