"""Readers of sources that a user wrote: of .csv files, one that fails, and one that gives something else."""

import csv
import io

from slmjax.data.sources import Fault, Record


def read_csv(stream):
    """Rows of a .csv file with a header; a row with another number of fields is a fault."""
    rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline=""))
    for row in rows:
        if None in row or None in row.values():
            yield Fault(rows.line_num, "malformed CSV", "another number of fields than the header")
        else:
            yield Record(row, rows.line_num)


def failing(stream):
    raise KeyError("body")


def texts(stream):
    yield "a text"
