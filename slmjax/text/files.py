"""Write files that are whole or absent, and notice a stored result that has changed."""

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

# The disk, the user's quota, or the largest file of the file system.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors that another folder would not have.
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
# Folders in which this process has looked for leftovers.
_tidied: set[str] = set()


def write_atomic(path: Path | epath.Path, content: bytes | str | dict | list) -> None:
    """Write under a temporary name, then rename: a reader sees the whole file or none.

    The same holds where several processes write the same path. A dict or list is written as JSON.
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

    What killed processes of this machine left in the folder is removed.
    """
    # Windows is left out: there os.kill(process, 0) ends the process instead of asking about it.
    if os.fspath(folder) not in _tidied and os.name == "posix" and folder.is_dir():
        _tidied.add(os.fspath(folder))
        # A folder may be writable and yet refuse to be listed.
        with contextlib.suppress(OSError):
            for leftover in filter(_is_of_dead_process, os.listdir(folder)):
                (folder / leftover).unlink(missing_ok=True)
    return folder / f".tmp-{_HOST}-{os.getpid()}-{uuid.uuid4().hex}"


@contextlib.contextmanager
def writable(folder: str | Path, field: str = "data.cache") -> Iterator[None]:
    """Turn errors of the file system inside the context into a UserError that names the folder.

    These are a full disk, a folder that cannot be written, and a file elsewhere that cannot be
    read.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "free some, or choose another folder"
            raise UserError(
                f"{field}: no space left while writing to {folder}; {advice}."
            ) from error
        name = str(folder)
        if isinstance(error.filename, (str, bytes)):
            name = os.fsdecode(error.filename)
        if not _is_inside_or_around(name, str(folder)):
            raise UserError(f"cannot read {name}: {error.strerror}.") from error
        # Where the folder exists, a missing file in it has another cause than permissions.
        lost_file = error.errno == errno.ENOENT and os.path.isdir(folder)
        if error.errno in _DENIED and not lost_file:
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
    place = Path(workdir).absolute()
    # lexists, since a link that leads nowhere cannot become a folder either.
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{field}={workdir}: '{place}' is not a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        advice = "choose a folder that you may write to"
        raise UserError(f"{field}={workdir}: '{place}' cannot be written; {advice}.")


class DamagedPart(UserError):
    """An intermediate result that is not what was written."""

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
    """Whether a value has changed since `sealed`; False for files written without a seal."""
    return "seal" in content and content["seal"] != _seal(content)


def process_runs(process: int) -> bool:
    """Whether a process of this machine is alive, whoever owns it."""
    try:
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
    # Half a surrogate pair, of a file name or a record's field, can only be written as an escape.
    return json.dumps(content, indent=1)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encoded(text: str) -> bytes:
    """Return UTF-8, with the original bytes of names that are not UTF-8.

    Half a surrogate pair from elsewhere becomes an escape.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _is_of_dead_process(name: str) -> bool:
    """Whether a file has the temporary name of a process of this machine that has ended."""
    mark, _, rest = name.partition("-")
    host, _, rest = rest.partition("-")
    process = rest.partition("-")[0]
    ours = mark == ".tmp" and host == _HOST and process.isdecimal()
    return ours and not process_runs(int(process))


def _is_inside_or_around(name: str, folder: str) -> bool:
    """Whether a path is in a folder, or is one of the folders around it."""
    name, folder = os.path.abspath(name), os.path.abspath(folder)
    return os.path.commonpath((name, folder)) in (name, folder)
