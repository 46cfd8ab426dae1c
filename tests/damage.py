"""Files that are damaged at random: one seed, one damage, again and again the same."""

import functools
import gzip
import io
import json
import lzma
import random
import sqlite3
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import zstandard

JUNK = (
    b"\0",
    b"\0" * 64,
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\u0000",
    b"\x80",
    b"\xff",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n\n",
    b"\x1b[2J",
    b'"',
    b"\\",
    b"{",
    b"]",
    b",",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    "\u2028".encode(),
    "\u202e\U0001f469\u200d".encode(),
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"../../",
    b"%s%n{0}",
    b"<b>&amp;",
    b"[/red]",
)
MAGICS = (
    b"PK\x03\x04",
    b"\x1f\x8b\x08\0",
    b"\x28\xb5\x2f\xfd",
    b"\xfd7zXZ\0",
    b"PAR1",
    b"\x93NUMPY\x01\0",
    b"SQLite format 3\0",
    b"\x80\x04\x95",
)
VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    10**30,
    10**400,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "x",
    "7",
    "\0",
    "\ud800",
    "\ufeff",
    "a\nb",
    "x" * 70_000,
    "/",
    "..",
    [],
    {},
    [[]],
    [None],
    ["x"],
    [0],
    [1.5],
    {"": ""},
    {"a": 1},
    {"x": {}},
    [{}],
    list(range(300)),
)
BOMB = 600 << 20  # bytes of one line


class Damage(NamedTuple):
    """What became of a file's bytes, in words too.

    whole: it was packed again behind checksums of its own, so nothing but its content can betray it.
    """

    data: bytes
    how: str
    whole: bool = False


def damaged(data: bytes, draw: random.Random) -> Damage:
    """`data` with one damage, rarely more; never as it was."""
    for _ in range(100):
        try:
            found = _once(data, draw)
            if draw.random() < 0.15:
                again = _once(found.data, draw)
                found = Damage(again.data, f"{found.how}, {again.how}", found.whole or again.whole)
        except (
            zipfile.BadZipFile,
            RuntimeError,
            struct.error,
        ):  # the first damage was no good for a second one
            continue
        if found.data != data:
            return found
    raise ValueError("nothing changes this file")


def _once(data: bytes, draw: random.Random) -> Damage:
    inside = next((change for magic, change in _INSIDE.items() if data.startswith(magic)), None)
    if inside and draw.random() < 0.4:
        return inside(data, draw)
    if not inside and draw.random() < 0.5 and (change := _json(data, draw)):
        return change
    name = draw.choice(list(_BYTES))
    # Two compressed files in a row are one, by their formats.
    return Damage(
        _BYTES[name](bytearray(data), draw), name, whole=bool(inside) and name == "all of it twice"
    )


def _place(data: bytearray, draw: random.Random) -> int:
    """A place in a file, as often near its beginning or end as anywhere."""
    size = len(data)
    return draw.choice(
        [
            draw.randint(0, size),
            draw.randint(0, min(size, 64)),
            size - draw.randint(0, min(size, 300)),
        ]
    )


def _flip(data: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.choice([1, 1, 1, 8, 200]) if data else 0):
        data[min(_place(data, draw), len(data) - 1)] ^= 1 << draw.randrange(8)
    return bytes(data)


def _span(data: bytearray, draw: random.Random) -> slice:
    start = _place(data, draw)
    return slice(start, min(len(data), start + draw.choice([1, 2, 8, 30, 500, 5000])))


def _out(data: bytearray, draw: random.Random) -> bytes:
    del data[_span(data, draw)]
    return bytes(data)


def _zeros(data: bytearray, draw: random.Random) -> bytes:
    span = _span(data, draw)
    data[span] = bytes(span.stop - span.start)
    return bytes(data)


def _twice(data: bytearray, draw: random.Random) -> bytes:
    span, place = _span(data, draw), _place(data, draw)
    data[place:place] = data[span] * draw.choice([1, 1, 3])
    return bytes(data)


def _insert(data: bytearray, draw: random.Random) -> bytes:
    place = _place(data, draw)
    data[place:place] = draw.choice([draw.choice(JUNK), draw.randbytes(draw.choice([1, 7, 200]))])
    return bytes(data)


def _magic(data: bytearray, draw: random.Random) -> bytes:
    magic = draw.choice(MAGICS)
    return magic + bytes(data[len(magic) :])


_BYTES: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    "bits flipped": _flip,
    "cut": lambda data, draw: bytes(data[: _place(data, draw)]),
    "bytes taken out": _out,
    "zeros": _zeros,
    "bytes twice": _twice,
    "all of it twice": lambda data, draw: bytes(data) * 2,
    "bytes put in": _insert,
    "another magic": _magic,
    "empty": lambda data, draw: b"",
    "blank": lambda data, draw: draw.choice(
        [b"\n", b" ", b"\0" * 100, b"null", b"{}", b"[]", b"\xef\xbb\xbf"]
    ),
}


@functools.lru_cache(64)
def _lines(data: bytes) -> tuple[str, ...] | None:
    """The lines of JSON in a file (one, where the file is one value); None where it is none."""
    try:
        text = data.decode()
        try:
            json.loads(text)
            return (text,)
        except ValueError:
            lines = tuple(text.splitlines())
            json.loads(lines[0])
            json.loads(lines[-1])
            return lines
    except (ValueError, IndexError, RecursionError):
        return None


def _json(data: bytes, draw: random.Random) -> Damage | None:
    """A change of a value or a key of JSON, or of the order of its lines."""
    lines = _lines(data)
    if not lines:
        return None
    out, at = list(lines), draw.randrange(len(lines))
    if len(out) > 1 and draw.random() < 0.2:
        other = draw.randrange(len(out))
        how = draw.choice(["lines swapped", "a line twice", "a line gone"])
        if how == "lines swapped":
            out[at], out[other] = out[other], out[at]
        elif how == "a line twice":
            out.insert(other, out[at])
        else:
            del out[at]
    else:
        try:
            value = json.loads(out[at])
        except (ValueError, RecursionError):
            return None
        value, how = _changed(value, draw)
        out[at] = json.dumps(value)
    return Damage(
        "".join(line + "\n" * (len(lines) > 1) for line in out).encode("utf-8", "surrogatepass"),
        how,
    )


def _changed(value: Any, draw: random.Random) -> tuple[Any, str]:
    """A JSON value with one thing changed in it, and how."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.02:
        return _other(value, draw)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, what = draw.choice(keys), draw.random()
    if what < 0.15:
        del value[key]
        return value, f"{key} gone"
    if what < 0.2 and isinstance(value, dict):
        value[draw.choice(["", "x", "\ud800", "__class__", f"{key}s", draw.choice(keys)])] = (
            value.pop(key)
        )
        return value, f"{key} renamed"
    if what < 0.25:
        if isinstance(value, dict):
            value["more"] = draw.choice(VALUES)
        else:
            value.append(draw.choice([*VALUES, value[0]]))
        return value, "one more"
    value[key], how = (
        _changed(value[key], draw)
        if isinstance(value[key], dict | list)
        else _other(value[key], draw)
    )
    return value, f"{key}: {how}"


def _other(value: Any, draw: random.Random) -> tuple[Any, str]:
    near: list[Any] = []
    if isinstance(value, int | float) and not isinstance(value, bool):
        near = [
            value + 1,
            -value,
            value * 2,
            str(value),
            [value],
            float(value) if abs(value) < 2**60 else 0,
        ]
    elif isinstance(value, str):
        near = [
            value[:-1],
            value + "x",
            value.upper(),
            [value],
            {value: value},
            value.encode().hex(),
        ]
    new = draw.choice(near) if near and draw.random() < 0.4 else draw.choice(VALUES)
    return new, f"{str(value)[:30]!a} is {str(new)[:30]!a}"


def _npz(data: bytes, draw: random.Random) -> Damage:
    """An archive of arrays of which one is another."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if not members:
        return Damage(b"", "empty")
    name = draw.choice(list(members))
    try:
        array = np.load(io.BytesIO(members[name]), allow_pickle=False)
    except Exception:  # damaged before
        array = np.zeros(3)
    how, new = draw.choice(list(_arrays(array, draw).items()))
    if how == "gone":
        del members[name]
    elif how == "renamed":
        members[draw.choice(["x.npy", "a/b/c.npy", "/keys.npy", ".npy", "keys"])] = members.pop(
            name
        )
    else:
        members[name] = new
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return Damage(buffer.getvalue(), f"{name} {how}", whole=True)


def _arrays(array: np.ndarray, draw: random.Random) -> dict[str, bytes]:
    """Other arrays as .npy, by what is other."""

    def npy(array: Any, **how: Any) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(array), **how)
        return buffer.getvalue()

    def header(shape: tuple, descr: str = "<f8") -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        return buffer.getvalue()

    kind = draw.choice(["<i8", "<f2", "<U3", "?", "<c8", "S4", "<M8[s]", "<u1"])
    with np.errstate(all="ignore"):
        try:
            typed = array.astype(kind)
        except (ValueError, TypeError):
            typed = np.zeros(len(array) if array.ndim else 1, kind)
    plain = array if array.dtype.kind in "iuf" else np.arange(3.0)
    return {
        "gone": b"",
        "renamed": b"",
        f"of type {kind}": npy(typed),
        "shorter": npy(array[:-1] if array.ndim else array[None]),
        "empty": npy(array[:0] if array.ndim else np.zeros(0)),
        "of no axis": npy(array.reshape(-1)[0] if array.size else np.zeros(())),
        "of two axes": npy(array.reshape(-1, 1)),
        "of objects": npy(np.array([{}, 1], object), allow_pickle=True),
        "reversed": npy(array[::-1] if array.ndim else array),
        "negative": npy((-plain.astype(float)).astype(plain.dtype)),
        "nan": npy(np.full(plain.shape, np.nan)),
        "huge": npy(
            np.full_like(plain, 2**62) if plain.dtype.kind in "iu" else np.full_like(plain, np.inf)
        ),
        "without its data": header((1 << 40,)),
        "too long": header((1 << 62, 1 << 62)),
        "no array": draw.randbytes(50),
        "a bomb": header((BOMB // 8,)) + bytes(BOMB) if draw.random() < 0.05 else header((7,)),
    }


def _packed(
    unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes]
) -> Callable[[bytes, random.Random], Damage]:
    """Damage of what is inside a compressed file, which is then packed again."""

    def change(data: bytes, draw: random.Random) -> Damage:
        try:
            content = unpack(data)
        except Exception:  # damaged before
            return Damage(_flip(bytearray(data), draw), "bits flipped")
        if draw.random() < (0.03 if content.startswith(b"{") else 0.01):
            return Damage(_bomb(pack, content.startswith(b"{")), "a bomb", whole=True)
        found = _once(content, draw)
        return Damage(pack(found.data), f"{found.how} inside", whole=True)

    return change


@functools.lru_cache(4)
def _bomb(pack: Callable[[bytes], bytes], record: bool) -> bytes:
    """A small file of one line: a record that is longer than anybody's memory should hold, or a long text."""
    if record:
        return pack(b'{"text": "a"}\n{"text": "' + b"x" * BOMB + b'"}\n{"text": "b"}\n')
    return pack(b"word " * (7 << 20))


def _parquet(data: bytes, draw: random.Random) -> Damage:
    """A table with another column."""
    try:
        table = parquet.read_table(io.BytesIO(data))
    except Exception:  # damaged before
        return Damage(_flip(bytearray(data), draw), "bits flipped")
    rows, name = len(table), table.column_names[0]
    others: dict[str, Callable[[], pa.Array]] = {
        "numbers": lambda: pa.array(range(rows)),
        "nulls": lambda: pa.nulls(rows),
        "lists": lambda: pa.array([["a"]] * rows),
        "structs": lambda: pa.array([{"text": "a"}] * rows),
        "bytes": lambda: pa.array([draw.randbytes(20) for _ in range(rows)]),
        "empty texts": lambda: pa.array([""] * rows),
        "dictionary": lambda: pa.array(["a", "b"] * rows)[:rows].dictionary_encode(),
        "a long text": lambda: pa.array(["x" * (34 << 20), *["a"] * (rows - 1)]),
        "views": lambda: pa.array(["a" * 30] * rows, pa.string_view()),
    }
    how = draw.choice(list(others))
    table = table.set_column(0, name if draw.random() < 0.8 else "other", others[how]())
    buffer = io.BytesIO()
    codec = "zstd" if how == "a long text" else draw.choice(["snappy", "zstd", "gzip", "none"])
    parquet.write_table(table, buffer, compression=codec, row_group_size=draw.choice([1, 7, 1000]))
    return Damage(buffer.getvalue(), f"a column of {how}", whole=True)


def _sqlite(data: bytes, draw: random.Random) -> Damage:
    """A database in which one field of one row is another."""
    base = sqlite3.connect(":memory:")
    try:
        base.deserialize(data)
        (tables,) = zip(*base.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))
        table = draw.choice(tables)
        columns = [row[1] for row in base.execute(f"PRAGMA table_info({table})")]
        rows = [row[0] for row in base.execute(f"SELECT rowid FROM {table}")]
        column, row, value = (
            draw.choice(columns),
            draw.choice(rows),
            draw.choice([None, 0, -1, 1.5, "x", b"\xff", 2**62, "{}", '{"text": 1}']),
        )
        if draw.random() < 0.2:
            base.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
            how = f"row {row} gone"
        else:
            base.execute(
                f"UPDATE OR REPLACE {table} SET {column} = ? WHERE rowid = ?", (value, row)
            )
            how = f"{column} of row {row} is {value!r}"
        base.commit()
        return Damage(base.serialize(), how, whole=True)
    except (sqlite3.Error, ValueError, IndexError, OverflowError):
        return Damage(_flip(bytearray(data), draw), "bits flipped")
    finally:
        base.close()


_INSIDE: dict[bytes, Callable[[bytes, random.Random], Damage]] = {
    b"PK\x03\x04": _npz,
    b"\x1f\x8b": _packed(gzip.decompress, functools.partial(gzip.compress, compresslevel=1)),
    b"\xfd7zXZ": _packed(lzma.decompress, functools.partial(lzma.compress, preset=0)),
    b"\x28\xb5\x2f\xfd": _packed(
        lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
        lambda data: zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data),
    ),
    b"PAR1": _parquet,
    b"SQLite": _sqlite,
}
