"""Compressed files, long lines and long texts: valid ones come back whole, the others are faults, in little memory and time."""

import contextlib
import gzip
import io
import json
import lzma
import random
import tarfile
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.text import document_checks, parquet_reader, plain_readers, streams
from slmjax.text.readers import read_documents
from slmjax.text.records import DAMAGED, TOO_LONG, Document, Fault, Source
from slmjax.text.source_files import list_files

LINES = b"".join(json.dumps({"text": f"number {i} of some"}).encode() + b"\n" for i in range(3000))


def read(path: Path, **options) -> list[Document | Fault]:
    source = Source("web", (str(path),), **options)
    return list(read_documents(list_files(source)[0], source))


def counted(found: list) -> tuple[int, list[str]]:
    return sum(isinstance(item, Document) for item in found), [
        item.reason for item in found if isinstance(item, Fault)
    ]


def zstd(**parameters) -> bytes:
    options = zstandard.ZstdCompressionParameters.from_level(3, **parameters)
    compressor = zstandard.ZstdCompressor(
        compression_params=options
    ).compressobj()  # it does not know the size, as in a pipe
    return compressor.compress(LINES) + compressor.flush()


def skippable() -> bytes:
    return b"\x53\x2a\x4d\x18\x04\x00\x00\x00skip"


@pytest.mark.parametrize(
    ("ending", "data"),
    [
        (".zst", zstd(window_log=28, enable_ldm=True)),  # zstd --long=28
        (".zst", zstd(write_checksum=True)),
        (".zst", skippable() + zstd() + skippable() + zstandard.compress(b"") + b"" + skippable()),
        (
            ".zst",
            zstandard.ZstdCompressor().compress(LINES[: len(LINES) // 2])
            + zstandard.compress(LINES[len(LINES) // 2 :], 19),
        ),
        (
            ".zst",
            zstandard.ZstdCompressor(write_content_size=False).compress(LINES)
            + zstandard.compress(b"\n" * 99),
        ),
        (".xz", lzma.compress(LINES) + bytes(4)),
        (
            ".xz",
            lzma.compress(LINES[:1000]) + bytes(8) + lzma.compress(LINES[1000:]) + bytes(1 << 19),
        ),
        (".xz", lzma.compress(LINES, format=lzma.FORMAT_ALONE)),
        (".gz", gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:]) + bytes(512)),
    ],
)
def test_valid_files_of_other_writers_are_read_whole(tmp_path, ending, data):
    (tmp_path / f"a.jsonl{ending}").write_bytes(data)
    assert counted(read(tmp_path / f"a.jsonl{ending}")) == (3000, [])


@pytest.mark.parametrize(
    ("ending", "data"),
    [
        (".xz", lzma.compress(LINES) + b"something else"),
        (".xz", bytes(64)),
        (".zst", zstandard.compress(LINES) + b"something else"),
        (".zst", zstandard.compress(LINES) + skippable()[:-1]),
        (".zst", bytes(64)),
        (".gz", gzip.compress(LINES) + b"something else"),
    ],
)
def test_bytes_that_are_no_padding_are_a_fault(tmp_path, ending, data):
    (tmp_path / f"a.jsonl{ending}").write_bytes(data)
    assert counted(read(tmp_path / f"a.jsonl{ending}"))[1] == [DAMAGED]


def test_a_window_that_is_too_large_is_named_with_its_remedy(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(window_log=30, enable_ldm=True))
    (fault,) = read(tmp_path / "a.jsonl.zst")
    assert (
        fault.reason == DAMAGED
        and "window is over 256 MiB; compress it with zstd --long=28 or less" in fault.detail
    )


@given(
    data=st.binary(max_size=3000).map(lambda data: data * 7),
    cut=st.integers(0, 400),
    level=st.integers(1, 22),
)
def test_zstd_frames_come_back_and_a_cut_one_never_ends_quietly(data, cut, level):
    packed = zstandard.ZstdCompressor(level=level, write_checksum=bool(cut % 2)).compress(data)
    assert b"".join(streams._zstd_chunks(io.BytesIO(packed))) == data
    if 0 < cut < len(packed):
        with pytest.raises((EOFError, zstandard.ZstdError)):
            list(streams._zstd_chunks(io.BytesIO(packed[:-cut])))


@pytest.fixture
def short_limit(monkeypatch):
    """Documents of at most 1 MiB, lines of at most 16."""
    for module in (document_checks, parquet_reader, plain_readers, streams):
        monkeypatch.setattr(module, "LONGEST", 1 << 20)
    monkeypatch.setattr(streams, "GIVE_UP", 1 << 24)


def packed(ending: str, pieces) -> bytes:
    if ending == ".gz":
        return gzip.compress(b"".join(pieces), 1)
    compressor = (
        lzma.LZMACompressor() if ending == ".xz" else zstandard.ZstdCompressor().compressobj()
    )
    return b"".join([*(compressor.compress(piece) for piece in pieces), compressor.flush()])


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("size", [8 << 20, 64 << 20])
def test_a_line_beyond_the_limit_is_a_fault_in_little_memory_and_time(
    tmp_path, short_limit, ending, size
):
    if size > 16 << 20 and ending in ("", ".gz"):
        pytest.skip("the disk, or the compressor, would be the test")
    pieces = [
        b'{"text": "short"}\n{"text": "',
        *[b"x" * (1 << 20)] * (size >> 20),
        b'"}\n{"text": "last"}\n',
    ]
    data = packed(ending, pieces) if ending else b"".join(pieces)
    (tmp_path / f"a.jsonl{ending}").write_bytes(data)
    del pieces, data
    tracemalloc.start()
    start = time.process_time()
    found = read(tmp_path / f"a.jsonl{ending}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 5 and peak < 12 << 20
    expected = (
        (2, [TOO_LONG]) if size < 16 << 20 else (1, [DAMAGED])
    )  # after 16 MiB the file is given up
    assert counted(found) == expected
    assert [item.line for item in found] == [1, 2, 3][: len(found)]


@pytest.mark.parametrize(
    "text", ["a line of some words\n", "words without an end ", "\u00e9\u4e2d\U0001f600", "x"]
)
def test_a_long_text_file_is_cut_into_documents_that_are_together_its_text(
    tmp_path, short_limit, text
):
    whole = "\ufeff" + text * (3_000_000 // len(text.encode()))
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    found = read(tmp_path / "a.txt")
    assert len(found) > 2 and all(
        isinstance(item, Document) and item.bytes <= 1 << 20 for item in found
    )
    whole = whole.removeprefix("\ufeff")
    assert "".join(item.text for item in found) == whole
    assert [item.line for item in found] == [
        1 + whole[: sum(len(d.text) for d in found[:i])].count("\n") for i in range(len(found))
    ]


def test_a_row_of_parquet_beyond_the_limit_is_a_fault(tmp_path, short_limit):
    texts = ["short", "x" * (3 << 20), "and", "some", "last"]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    assert counted(read(tmp_path / "a.parquet")) == (4, [TOO_LONG])
    parquet.write_table(
        pa.table({"text": ["x" * (24 << 20)]}),
        tmp_path / "b.parquet",
        use_dictionary=False,
        compression="zstd",
    )
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    assert counted(read(tmp_path / "b.parquet")) == (0, [TOO_LONG])
    assert pa.total_allocated_bytes() == before and tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


PLAIN = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.binary(5),
)
DICTIONARIES = (pa.string(), pa.large_string(), pa.binary())


@pytest.mark.parametrize(
    "kind", [*PLAIN, *(pa.dictionary(pa.int32(), kind) for kind in DICTIONARIES)], ids=str
)
def test_every_type_of_text_that_parquet_files_have_is_read(tmp_path, kind):
    values = ["three", None, "words", "three", "\u00e9\u00e9x"]
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    column = pa.array(
        [value and (value if "string" in str(value_type) else value.encode()) for value in values],
        value_type,
    )
    column = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column
    parquet.write_table(
        pa.table({"text": column, "id": [b"a", b"b", b"c", b"d", b"e"]}), tmp_path / "a.parquet"
    )
    source = Source("web", (str(tmp_path / "a.parquet"),))
    found = list(read_documents(list_files(source)[0], source, "id"))
    assert [(d.text, d.group, d.line) for d in found if isinstance(d, Document)] == [
        (value, group, line) for line, (value, group) in enumerate(zip(values, "abcde"), 1) if value
    ]
    assert counted(found) == (4, ["no text"])


PARQUET = io.BytesIO()
parquet.write_table(
    pa.table({"text": ["x" * (i % 50) + str(i) for i in range(300)]}), PARQUET, row_group_size=50
)
FILES = {
    ".jsonl": LINES[:5000],
    ".jsonl.gz": gzip.compress(LINES[:5000]),
    ".jsonl.xz": lzma.compress(LINES[:5000]) + bytes(4),
    ".txt.zst": zstandard.compress(LINES[:2000]) + zstandard.compress(LINES[2000:5000]),
    ".parquet": PARQUET.getvalue(),
}


@pytest.mark.parametrize("ending", FILES)
def test_whatever_is_done_to_a_file_gives_documents_and_faults_or_one_sentence(tmp_path, ending):
    draw = random.Random(0)
    for _ in range(60):
        data = bytearray(FILES[ending])
        for _ in range(draw.choice([1, 1, 3])):
            first, last = min(40, len(data)), min(300, len(data))
            places = (
                draw.randrange(len(data)),
                draw.randrange(first),
                len(data) - 1 - draw.randrange(last),
            )
            place, change = draw.choice(places), draw.choice(["bit", "cut", "out", "in"])
            if change == "bit":
                data[place] ^= 1 << draw.randrange(8)
            elif change == "cut":
                del data[place + 1 :]
            elif change == "out":
                del data[place : place + draw.randrange(1, 30)]
            else:
                data[place:place] = draw.randbytes(draw.randrange(1, 9))
            data = data or bytearray(b"\n")
        (tmp_path / f"a{ending}").write_bytes(data)
        with contextlib.suppress(UserError):
            read(tmp_path / f"a{ending}")


def test_a_flipped_bit_in_a_page_of_parquet_with_checksums_is_a_fault(tmp_path):
    texts = [f"text {i}" for i in range(30)]
    parquet.write_table(
        pa.table({"text": texts}),
        tmp_path / "a.parquet",
        compression="none",
        write_page_checksum=True,
    )
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"text 17", b"text 77"))
    assert counted(read(tmp_path / "a.parquet"))[1] == [DAMAGED]


def test_many_small_row_groups_are_read_in_order(tmp_path):
    texts = [f"text {i}" for i in range(300)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=7)
    assert [(d.text, d.line) for d in read(tmp_path / "a.parquet")] == [
        (text, i) for i, text in enumerate(texts, 1)
    ]


def test_a_giant_row_among_small_ones_is_not_copied_into_python(tmp_path, short_limit):
    texts = [f"short {i}" for i in range(400)]
    texts[100] = "x" * (64 << 20)
    parquet.write_table(
        pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False, compression="zstd"
    )
    del texts
    tracemalloc.start()
    assert counted(read(tmp_path / "a.parquet")) == (399, [TOO_LONG])
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def tar(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("ending", "data", "what"),
    [
        (".jsonl", gzip.compress(LINES), "gzip; its name must end in .gz"),
        (".jsonl", zstandard.compress(LINES), "must end in .zst"),
        (".txt", lzma.compress(LINES), "must end in .xz"),
        (".jsonl", LINES.decode().encode("utf-16"), "it is UTF-16; convert it to UTF-8"),
        (".txt.gz", gzip.compress(tar("a.jsonl", LINES)), "it is a tar archive; unpack it"),
        (".jsonl.zst", zstandard.compress(tar("a.jsonl", LINES)), "it is a tar archive; unpack it"),
    ],
)
def test_an_archive_and_another_encoding_are_one_fault_that_says_what_to_do(
    tmp_path, ending, data, what
):
    (tmp_path / f"a{ending}").write_bytes(data)
    (fault,) = read(tmp_path / f"a{ending}")
    assert fault.reason == DAMAGED and what in fault.detail


def test_a_text_that_speaks_of_tar_archives_is_a_text(tmp_path):
    text = "The header of an archive. ".ljust(257, "-") + "ustar is written there."
    (tmp_path / "a.txt").write_text(text)
    assert [item.text for item in read(tmp_path / "a.txt")] == [text]


def test_a_mark_before_the_text_of_a_record_is_no_part_of_it(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "\ufeffsome words"}) + "\n")
    (tmp_path / "b.txt").write_text("\ufeffsome words")
    (one,), (other,) = read(tmp_path / "a.jsonl"), read(tmp_path / "b.txt")
    assert (
        (one.text, one.bytes, one.key)
        == (other.text, other.bytes, other.key)
        == ("some words", 10, other.key)
    )
