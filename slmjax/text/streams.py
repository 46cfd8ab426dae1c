"""Files as streams of bytes, plain or compressed, in bounded memory; a cut file is an exception."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any

from slmjax.text.remote import open_remote

LONGEST = 1 << 25  # bytes of a document; a longer .txt is cut, a longer line or record is a fault
GIVE_UP = 16 * LONGEST  # bytes of a line; a file with a longer one is damaged, and not read further
WINDOW = 1 << 28  # bytes that a .zst may refer back to: zstd --long=28
XZ_MEMORY = 1 << 29  # bytes that a .xz may need; xz -9 needs 65 MiB
READ = 1 << 18  # bytes read at once

# How files that are not UTF-8 text begin: (offset of the bytes, the bytes, the problem and remedy).
BEGINNINGS = (
    (0, b"\xff\xfe", "it is UTF-16; convert it to UTF-8"),
    (0, b"\xfe\xff", "it is UTF-16; convert it to UTF-8"),
    (0, b"\x1f\x8b", "it is compressed with gzip; its name must end in .gz"),
    (0, b"\x28\xb5\x2f\xfd", "it is compressed with zstandard; its name must end in .zst"),
    (0, b"\xfd7zXZ\0", "it is compressed with xz; its name must end in .xz"),
    (0, b"PK\3\4", "it is a zip archive; unpack it"),
    (257, b"ustar", "it is a tar archive; unpack it"),
)

# The format of Zstandard's frames: RFC 8878, section 3.1.
_ZSTD_FRAME = b"\x28\xb5\x2f\xfd"  # a frame's first bytes
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # those of a skippable frame, after one from 0x50 to 0x5f
_ZSTD_DICTIONARY_BYTES = (0, 1, 2, 4)  # length of the dictionary id, by its flag
_ZSTD_REPEATED = 1  # type of a block that stores one byte, to be repeated


class DamagedStream(Exception):
    """A file cannot be read to its end; the message says what is wrong with it."""


def open_stream(path: str, compression: str) -> Any:
    """Return a binary stream of a local or remote file, decompressed.

    Args:
      compression: "", ".gz", ".xz" or ".zst".
    """
    raw = open_remote(path) if "://" in path else open(path, "rb")  # noqa: SIM115 (callers close)
    if compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), READ)
    if compression == ".xz":
        return io.BufferedReader(_Chunks(raw, _xz_chunks(raw)), READ)
    if compression == ".zst":
        return io.BufferedReader(_Chunks(raw, _zstd_chunks(raw)), READ)
    return raw


def check_is_text(stream: Any) -> None:
    """Refuse a stream whose first bytes are those of an archive or of another encoding.

    Raises: DamagedStream, with the problem and its remedy.
    """
    # Streams of uncompressed remote files cannot look ahead.
    if not hasattr(stream, "peek"):
        return
    beginning = stream.peek(512)
    for offset, magic, problem in BEGINNINGS:
        # A tar archive begins with a file name and zero bytes. A text that happens to have "ustar"
        # at this offset has none.
        if beginning.startswith(magic, offset) and (not offset or b"\0" in beginning[:offset]):
            raise DamagedStream(problem)


def lines(stream: Any) -> Iterator[bytes | None]:
    """Yield each line of a stream; None for one of more than LONGEST bytes.

    Raises: DamagedStream for a line of more than GIVE_UP bytes.
    """
    # Remote files have a `readline` that ignores the limit.
    if not isinstance(stream, io.BufferedReader):
        stream = io.BufferedReader(stream, READ)
    while line := stream.readline(LONGEST + 1):
        if len(line) <= LONGEST or line.endswith(b"\n"):
            yield line
            continue
        size, piece = len(line), line
        # So that its bytes are freed while the rest of the line is skipped.
        del line
        while piece and not piece.endswith(b"\n"):
            piece = stream.readline(READ)
            size += len(piece)
            if size > GIVE_UP:
                raise DamagedStream(f"a line has more than {GIVE_UP >> 20} MiB")
        yield None


def text_pieces(stream: Any) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, bytes) of pieces of a text, each of at most LONGEST bytes.

    A piece ends with the last newline of its second half, or else between two characters. An empty
    text is one empty piece.
    """
    line, carried = 1, b""
    while True:
        data = carried + stream.read(LONGEST + 1 - len(carried))
        if len(data) <= LONGEST:
            break
        # Not in the first half, or a text with one early newline would fall into small pieces.
        cut = data.rfind(b"\n", LONGEST // 2, LONGEST) + 1
        if not cut:  # there is no newline
            cut = _between_characters(data, LONGEST)
        yield line, data[:cut]
        line += data.count(b"\n", 0, cut)
        carried = data[cut:]
    yield line, data


def broken_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions that reading a cut or damaged file raises."""
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
    """Return the last place up to `place` where a UTF-8 character begins; else `place` itself."""
    # A character has at most four bytes; those after its first begin with the bits 10.
    for back in range(4):
        if data[place - back] & 0xC0 != 0x80:
            return place - back
    return place  # it is not UTF-8


class _Chunks(io.RawIOBase):
    """A stream of the bytes that an iterator yields in chunks; closing it closes `raw`."""

    def __init__(self, raw: Any, chunks: Iterator[bytes]):
        self._raw = raw
        self._chunks = chunks
        self._unread = memoryview(b"")  # of the current chunk

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Empty chunks are skipped: 0 bytes would mean the end of the stream.
        while not self._unread:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._unread = memoryview(chunk)
        count = min(len(buffer), len(self._unread))
        buffer[:count] = self._unread[:count]
        self._unread = self._unread[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _xz_chunks(raw: Any) -> Iterator[bytes]:
    """Yield the text of all compressed streams of a .xz file, which follow each other.

    Zeros behind a stream are padding; other bytes are damage.
    Raises: EOFError where the file ends within a stream; lzma.LZMAError for damage.
    """
    data = raw.read(READ)
    decoder = None  # of the current stream; None between two streams
    if data:
        # A file that begins with this byte is .lzma, the format before .xz, which xz still reads.
        is_old = data[:1] == b"\x5d"
        file_format = lzma.FORMAT_ALONE if is_old else lzma.FORMAT_XZ
        decoder = lzma.LZMADecompressor(file_format, XZ_MEMORY)
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
        # At most READ bytes at once, since a small file may expand to gigabytes.
        chunk = decoder.decompress(data, READ)
        data = b""
        while not decoder.eof and not decoder.needs_input:
            yield chunk
            chunk = decoder.decompress(b"", READ)
        yield chunk
        if decoder.eof:
            data = decoder.unused_data
            decoder = None


def _zstd_chunks(raw: Any) -> Iterator[bytes]:
    """Yield the text of all frames of a .zst file, one block (at most 128 KiB of text) at a time.

    The frames are parsed here, because zstandard's own stream reader takes a cut file for a short
    one, and its decompressobj expands at once whatever it is given.
    Source: RFC 8878, section 3.1.
    Raises: EOFError where the file ends within a frame, DamagedStream for a window over WINDOW, and
      zstandard.ZstdError for other damage.
    """
    import zstandard

    while magic := raw.read(4):
        if magic[1:] == _ZSTD_SKIPPABLE and magic[0] >> 4 == 5:
            _skip(raw, int.from_bytes(_exactly(raw, 4), "little"))
            continue
        if magic != _ZSTD_FRAME:
            raise zstandard.ZstdError("Unknown frame descriptor")
        flags = _exactly(raw, 1)
        has_checksum = flags[0] >> 2 & 1
        header = _exactly(raw, _zstd_header_bytes(flags[0]))
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
        try:
            decompressor.decompress(magic + flags + header)
            is_last = 0
            while not is_last:
                # 3 bytes: 1 bit for the last block, 2 bits for its type, 21 bits for its size.
                block_header = _exactly(raw, 3)
                bits = int.from_bytes(block_header, "little")
                is_last = bits & 1
                block_type = bits >> 1 & 3
                block_bytes = bits >> 3
                if block_type == _ZSTD_REPEATED:  # the size is that of the text
                    block_bytes = 1
                yield decompressor.decompress(block_header + _exactly(raw, block_bytes))
        except zstandard.ZstdError as error:
            if "too much memory" in str(error):
                remedy = "compress it with zstd --long=28 or less"
                raise DamagedStream(f"its window is over {WINDOW >> 20} MiB; {remedy}") from error
            raise
        if has_checksum:
            yield decompressor.decompress(_exactly(raw, 4))


def _zstd_header_bytes(flags: int) -> int:
    """Return how many bytes of a frame's header follow the byte of flags.

    They are those of the window's size, the dictionary's id and the text's size, all optional.
    """
    single_segment = flags >> 5 & 1  # 1: the window is the whole text, and has no size of its own
    window_bytes = 1 - single_segment
    # A frame of a single segment always says how long its text is.
    size_bytes = (single_segment, 2, 4, 8)[flags >> 6]
    return window_bytes + _ZSTD_DICTIONARY_BYTES[flags & 3] + size_bytes


def _exactly(raw: Any, count: int) -> bytes:
    """Return the next `count` bytes. Raises: EOFError where the stream has fewer."""
    data = raw.read(count)
    # A remote file may return less than it is asked for.
    while len(data) < count:
        more = raw.read(count - len(data))
        if not more:
            raise EOFError("the last frame is cut")
        data += more
    return data


def _skip(raw: Any, count: int) -> None:
    while count:
        count -= len(_exactly(raw, min(count, READ)))
