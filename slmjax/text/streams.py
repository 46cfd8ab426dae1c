"""Files as streams of bytes, plain or compressed, in bounded memory; a cut file raises an exception."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any

from slmjax.text.remote import open_remote

LONGEST = 1 << 25  # bytes of a document; a longer .txt is cut into several, a longer record is bad
GIVE_UP = 16 * LONGEST  # bytes of a line; a file with a longer one is damaged, and not read further
WINDOW = 1 << 28  # bytes that a .zst may refer back to: zstd --long=28
XZ_MEMORY = 1 << 29  # bytes that a .xz may need; xz -9 needs 65 MiB
READ = 1 << 18

# What a file that is no UTF-8 text begins with: (place, bytes, what it is and what to do).
BEGINNINGS = (
    (0, b"\xff\xfe", "it is UTF-16; convert it to UTF-8"),
    (0, b"\xfe\xff", "it is UTF-16; convert it to UTF-8"),
    (0, b"\x1f\x8b", "it is compressed with gzip; its name must end in .gz"),
    (0, b"\x28\xb5\x2f\xfd", "it is compressed with zstandard; its name must end in .zst"),
    (0, b"\xfd7zXZ\0", "it is compressed with xz; its name must end in .xz"),
    (0, b"PK\3\4", "it is a zip archive; unpack it"),
    (257, b"ustar", "it is a tar archive; unpack it"),
)


class DamagedStream(Exception):
    """A file that cannot be read to its end."""


def open_stream(path: str, compression: str) -> Any:
    """A binary stream of a local or remote file; `compression` is "", ".gz", ".xz" or ".zst"."""
    raw = open_remote(path) if "://" in path else open(path, "rb")  # noqa: SIM115 (closed by callers)
    if compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), READ)
    if compression == ".xz":
        return io.BufferedReader(_Chunks(raw, _xz_chunks(raw)), READ)
    if compression == ".zst":
        return io.BufferedReader(_Chunks(raw, _zstd_chunks(raw)), READ)
    return raw


def check_is_text(stream: Any) -> None:
    """Raises: Damaged where a stream's first bytes are those of an archive or of another encoding."""
    if not hasattr(stream, "peek"):  # of a remote file
        return
    first = stream.peek(512)
    for place, magic, what in BEGINNINGS:
        if first.startswith(magic, place) and (not place or b"\0" in first[:place]):
            raise DamagedStream(what)


def lines(stream: Any) -> Iterator[bytes | None]:
    """Each line of a stream; None for one of more than LONGEST bytes.

    Raises: Damaged for a line of more than GIVE_UP bytes.
    """
    if not isinstance(stream, io.BufferedReader):
        stream = io.BufferedReader(stream, READ)  # readline of remote files knows no limit
    while line := stream.readline(LONGEST + 1):
        if len(line) <= LONGEST or line.endswith(b"\n"):
            yield line
            continue
        size, piece = len(line), line
        del line
        while piece and not piece.endswith(b"\n"):
            piece = stream.readline(READ)
            size += len(piece)
            if size > GIVE_UP:
                raise DamagedStream(f"a line has more than {GIVE_UP >> 20} MiB")
        yield None


def text_pieces(stream: Any) -> Iterator[tuple[int, bytes]]:
    """(first line, bytes) of pieces of a text, each of at most LONGEST bytes.

    It is cut behind a newline where there is one.
    """
    line, rest = 1, b""
    while True:
        data = rest + stream.read(LONGEST + 1 - len(rest))
        if len(data) <= LONGEST:
            break
        cut = data.rfind(b"\n", LONGEST // 2, LONGEST) + 1 or _between_characters(data, LONGEST)
        yield line, data[:cut]
        line += data.count(b"\n", 0, cut)
        rest = data[cut:]
    if data or line == 1:
        yield line, data


def broken_errors() -> tuple[type[BaseException], ...]:
    """What reading a cut or damaged file raises."""
    import zstandard

    errors = (
        DamagedStream,
        EOFError,
        gzip.BadGzipFile,
        lzma.LZMAError,
        zlib.error,
        zstandard.ZstdError,
    )
    try:
        from pyarrow import ArrowException
    except ImportError:
        return errors
    return (*errors, ArrowException)


def _between_characters(data: bytes, place: int) -> int:
    """The last border of UTF-8 characters at or before `place`."""
    for back in range(4):
        if data[place - back] & 0xC0 != 0x80:
            return place - back
    return place


class _Chunks(io.RawIOBase):
    """A stream of chunks that a generator makes from `raw`."""

    def __init__(self, raw: Any, chunks: Iterator[bytes]):
        self._raw, self._chunks, self._left = raw, chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _xz_chunks(raw: Any) -> Iterator[bytes]:
    """Text of all streams of a .xz file; zeros behind a stream are padding, other bytes damage."""
    data = raw.read(READ)
    old = data[:1] == b"\x5d"  # the format before .xz, as xz reads it too
    decoder = None
    if data:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE if old else lzma.FORMAT_XZ, XZ_MEMORY)
    while True:
        data = data or raw.read(READ)
        if not data and decoder is not None:
            raise EOFError("the last stream is cut")
        if not data:
            return
        if decoder is None:
            data = data.lstrip(b"\0")
            if not data:
                continue
            decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)
        chunk, data = decoder.decompress(data, READ), b""
        while not decoder.eof and not decoder.needs_input:
            yield chunk
            chunk = decoder.decompress(b"", READ)
        yield chunk
        if decoder.eof:
            decoder, data = None, decoder.unused_data


def _zstd_chunks(raw: Any) -> Iterator[bytes]:
    """Text of all frames of a .zst file, one block (at most 128 KiB of text) at a time.

    zstandard's own stream reader takes a cut file for a short one, and its decompressobj expands
    whatever it is given at once.
    Source: RFC 8878, section 3.1.
    """
    import zstandard

    while magic := raw.read(4):
        if magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5:
            _skip(raw, int.from_bytes(_exactly(raw, 4), "little"))
            continue
        if magic != b"\x28\xb5\x2f\xfd":
            raise zstandard.ZstdError("Unknown frame descriptor")
        flags = _exactly(raw, 1)
        single, checksum = flags[0] >> 5 & 1, flags[0] >> 2 & 1
        size_bytes = (single, 2, 4, 8)[flags[0] >> 6]
        header = _exactly(raw, (1 - single) + (0, 1, 2, 4)[flags[0] & 3] + size_bytes)
        frame = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
        try:
            frame.decompress(magic + flags + header)
            last = 0
            while not last:
                block = _exactly(raw, 3)
                number = int.from_bytes(block, "little")
                last, repeated = number & 1, number >> 1 & 3 == 1
                yield frame.decompress(block + _exactly(raw, 1 if repeated else number >> 3))
        except zstandard.ZstdError as error:
            if "too much memory" in str(error):
                remedy = "compress it with zstd --long=28 or less"
                raise DamagedStream(f"its window is over {WINDOW >> 20} MiB; {remedy}") from error
            raise
        if checksum:
            yield frame.decompress(_exactly(raw, 4))


def _exactly(raw: Any, count: int) -> bytes:
    data = raw.read(count)
    while len(data) < count:
        more = raw.read(count - len(data))
        if not more:
            raise EOFError("the last frame is cut")
        data += more
    return data


def _skip(raw: Any, count: int) -> None:
    while count:
        count -= len(_exactly(raw, min(count, READ)))
