"""Readers of sources that a user wrote: of .csv files, one that fails, and one that gives something else."""

import csv
import io

from slmjax.text.records import Fault, Record

csv.field_size_limit(2**25)  # characters


def read_csv(stream):
    """Rows of a .csv file with a header; a row that is cut or has another number of fields is a fault."""
    # What is not UTF-8 stays marked in the text, so that it is counted as that.
    lines = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
    rows = csv.DictReader(lines, strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Fault(rows.line_num, "malformed CSV", str(error))
            continue
        if None in row or None in row.values():
            yield Fault(rows.line_num, "malformed CSV", "another number of fields than the header")
        else:
            yield Record(row, rows.line_num)


def failing(stream):
    raise KeyError("body")


def texts(stream):
    yield "a text"
