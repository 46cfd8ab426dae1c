"""Write files that are whole or absent, and notice stored results that have changed."""

import contextlib
import errno
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from slmjax.errors import UserError

# No space: on the disk, in the user's quota, or for a file as large as this.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors for which the remedy is another folder.
_DENIED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
)
_CHECKSUM_BYTES = hashlib.sha256().digest_size
# The host is hashed because its name may hold any character.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
# Folders from which this process has removed the leftovers of killed processes.
_tidied: set[str] = set()


def write_atomic(path: Path | epath.Path, content: bytes | str | dict | list) -> None:
    """Write under a temporary name, then rename: a reader sees the whole file or none.

    This holds also where several processes write the same path. A dict or list is written as JSON.
    """
    if isinstance(content, (dict, list)):
        content = _as_json(content)
    if isinstance(content, str):
        content = _encoded(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A bucket writes objects atomically by itself.
    in_bucket = "://" in os.fspath(path)
    # A pipe or a device would be replaced by a file if we renamed over it.
    is_device = path.exists() and not path.is_file()
    if in_bucket or is_device:
        path.write_bytes(content)
        return
    unfinished = temporary(path.parent)
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def temporary(folder: Path | epath.Path) -> Any:
    """Return the path of a new file in a local folder, to be renamed once it is whole.

    Temporary files that killed processes of this machine left in the folder are removed.
    """
    # Not on Windows: there os.kill(process, 0) ends the process instead of asking about it.
    if os.fspath(folder) not in _tidied and os.name == "posix" and folder.is_dir():
        _tidied.add(os.fspath(folder))
        # A folder may be writable and yet refuse to be listed.
        with contextlib.suppress(OSError):
            for leftover in filter(_is_of_dead_process, os.listdir(folder)):
                (folder / leftover).unlink(missing_ok=True)
    return folder / f".tmp-{_HOST}-{os.getpid()}-{uuid.uuid4().hex}"


@contextlib.contextmanager
def writable(folder: str | Path, field: str = "data.cache") -> Iterator[None]:
    """Turn errors of the file system inside the context into a UserError.

    For a full disk and for a folder that cannot be written it names `field` and the folder; for a
    file elsewhere, which cannot be read, the file. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "free some, or choose another folder"
            raise UserError(
                f"{field}: no space left while writing to {folder}; {advice}."
            ) from error
        path = str(folder)
        if isinstance(error.filename, (str, bytes)):
            path = os.fsdecode(error.filename)
        # The caller writes only into the folder: a path elsewhere was read.
        if not _is_inside_or_around(path, str(folder)):
            raise UserError(f"cannot read {path}: {error.strerror}.") from error
        # A file that is missing in an existing folder has another cause than permissions.
        is_lost_file = error.errno == errno.ENOENT and os.path.isdir(folder)
        if error.errno in _DENIED and not is_lost_file:
            reason = f"cannot write to {folder} ({error.strerror})"
            raise UserError(f"{field}: {reason}; choose a folder that you may write to.") from error
        raise


def check_writable(workdir: str, field: str = "--workdir") -> None:
    """Refuse a work directory that cannot be made or written, before minutes of work.

    Raises: UserError that names the directory and the option `field`.
    """
    # The checkpoint storage reads a backslash as a slash.
    if "\\" in workdir and field == "--workdir":
        reason = "checkpoints cannot be kept in a folder with a backslash in its name"
        raise UserError(f"--workdir={workdir}: {reason}; choose another one.")
    if "://" in workdir:
        return
    # The directory, or the nearest folder around it that exists. lexists, since a link that leads
    # nowhere cannot become a folder either.
    existing = Path(workdir).absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{field}={workdir}: '{existing}' is not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = "choose a folder that you may write to"
        raise UserError(f"{field}={workdir}: '{existing}' cannot be written; {advice}.")


class DamagedPart(UserError):
    """An intermediate result differs from what was written."""

    # Only the path is an argument, so that the exception can be pickled by a worker process.
    def __init__(self, path: Path):
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} is damaged; delete {self.path.parent.parent} and start again."


def write_part(path: Path, content: bytes | str | dict) -> None:
    """Write an intermediate result whole or not at all, followed by its SHA-256."""
    if isinstance(content, dict):
        content = json.dumps(content)
    if isinstance(content, str):
        content = content.encode()
    write_atomic(path, content + hashlib.sha256(content).digest())


def read_part(path: Path) -> bytes:
    """Return what `write_part` wrote. Raises: DamagedPart where the checksum disagrees."""
    data = path.read_bytes()
    content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if hashlib.sha256(content).digest() != checksum:
        raise DamagedPart(path)
    return content


def sealed(content: dict) -> dict:
    """Return `content` as JSON keeps it, with a hash of itself, so that a change is noticed."""
    # JSON turns tuples into lists and keys into strings; the seal is of what will be read back.
    plain = json.loads(json.dumps(content))
    return plain | {"seal": _seal(plain)}


def seal_is_broken(content: dict) -> bool:
    """Whether a value has changed since `sealed`; False for content without a seal."""
    return "seal" in content and content["seal"] != _seal(content)


def process_runs(process: int) -> bool:
    """Whether a process of this machine is alive, whoever owns it. Not for Windows."""
    try:
        # Signal 0 does nothing: the system only checks that it could be sent.
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It lives, but belongs to somebody else.
        return True
    return True


def _seal(content: dict) -> str:
    others = {name: value for name, value in content.items() if name != "seal"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()[:16]


def _as_json(content: dict | list) -> str:
    """Return indented JSON, with non-ASCII characters as they are where UTF-8 can write them."""
    readable = json.dumps(content, indent=1, ensure_ascii=False)
    if readable.isascii() or _is_unicode(readable):
        return readable
    # A file name or a record may hold half a surrogate pair, which only an escape can write.
    return json.dumps(content, indent=1)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encoded(text: str) -> bytes:
    """Return UTF-8, with the original bytes of file names that are not UTF-8.

    Any other half of a surrogate pair becomes an escape.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _is_of_dead_process(name: str) -> bool:
    """Whether a file has the temporary name of a process of this machine that has ended."""
    # ".tmp-HOST-PROCESS-RANDOM", see `temporary`.
    prefix, _, without_prefix = name.partition("-")
    host, _, without_host = without_prefix.partition("-")
    process = without_host.partition("-")[0]
    is_ours = prefix == ".tmp" and host == _HOST and process.isdecimal()
    return is_ours and not process_runs(int(process))


def _is_inside_or_around(path: str, folder: str) -> bool:
    """Whether a path is in a folder, or is one of the folders around it."""
    path, folder = os.path.abspath(path), os.path.abspath(folder)
    return os.path.commonpath((path, folder)) in (path, folder)
