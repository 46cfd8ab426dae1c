"""The contract of training data: the rows of each step's global batch, and the arrays they make."""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

# The arrays of a batch of text and their types, each [B, T], see `text_fields`.
TEXT = {
    "tokens": "int32",
    "targets": "int32",
    "segments": "int32",
    "positions": "int32",
    "weights": "float32",
}


class Field(NamedTuple):
    """Shape, type and axes of one array of a global batch.

    axes: name of each dimension's logical axis, or None. An array that has one entry for each row
      has "batch" first; any other array is the same on every device.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]

    @property
    def by_rows(self) -> bool:
        """Whether the array has one entry for each row of the batch."""
        return self.axes[:1] == ("batch",)


Fields = Mapping[str, Field]
Arrays = dict[str, np.ndarray]


class HeldRows(NamedTuple):
    """Which rows of the global batch a process holds, as a function of the step.

    first_steps: ascending, from 0.
    rows: from each of these steps on, the numbers of the rows.
    """

    first_steps: tuple[int, ...]
    rows: tuple[np.ndarray, ...]

    def __call__(self, step: int) -> np.ndarray:
        return self.rows[bisect.bisect_right(self.first_steps, step) - 1]


@runtime_checkable
class Rows(Protocol):
    """Training data. The rows of a batch are pure functions of (seed, step, row).

    Worker processes unpickle and read it, so its code must not import jax.
    """

    def shapes(self, step: int) -> Fields:
        """Return {name: field} of a step's global batch, a pure function of the step.

        All hosts compute the same fields without reading data. Names and axes are the same at every
        step. Shapes may differ, but a program is compiled for each different result, so there
        should be few.
        """

    def read(self, step: int, rows: Sequence[int]) -> Any:
        """Return some rows of a step's global batch, in a compact form that is quick to send."""

    def unpack(self, compact: Any) -> Arrays:
        """Return the arrays of the rows that `read` returned; each has a leading axis of rows.

        It is called in the trainer's process.
        """

    def fingerprint(self, step: int) -> str:
        """Return a digest of everything that decides the batches before `step`."""


@runtime_checkable
class NamedRows(Rows, Protocol):
    """Rows that can name their documents, for a message about steps whose update was skipped."""

    def documents(self, step: int) -> list[str]:
        """Return the documents that the global batch of a step holds, in order, each once."""


def text_fields(batch: int, seq_len: int, places: int | None = None) -> Fields:
    """Return the fields of a batch of text.

    tokens, targets [B,T] int32: ids; the target of a token is the one that follows it.
    segments [B,T] int32: the document of a token, counted from 1 in each row; 0 is padding.
      Attention and mixers see tokens of the same segment only.
    positions [B,T] int32: from 0 in each document.
    weights [B,T] float32: factor of the token's loss.

    Args:
      batch, seq_len: B and T.
      places: how many documents a device makes room for in its rows of a microbatch. Only an
        attention kernel over lists of documents needs it, see ops/cudnn_attention.py. It becomes
        the length of a field `places`, because the step must know it when it is compiled; the
        values of this field are not used.
    """
    # Rows are split over devices, the tokens of a row are not.
    fields = {name: Field((batch, seq_len), dtype, ("batch", None)) for name, dtype in TEXT.items()}
    if places is not None:
        fields["places"] = Field((places,), "int8", (None,))
    return fields


def shape_key(fields: Fields) -> tuple:
    """Return what a compiled step depends on: the name and shape of each field."""
    return tuple((name, field.shape) for name, field in sorted(fields.items()))
