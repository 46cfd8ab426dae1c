"""Files on gs:// and hf:// through fsspec, each with an id that changes with its content."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from slmjax.errors import UserError

# Protocol: (package that fsspec needs for it, extra of slmjax that installs the package).
EXTRAS = {"hf": ("huggingface_hub", "hub"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
# "datasets/OWNER/NAME@revision/rest", where "datasets/", "@revision" and "/rest" may be missing
_HUB_PATH = re.compile(r"(?:datasets/)?([^/@]+/[^/@]+)(?:@([^/]+))?(/.*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def list_remote(url: str, revision: str, where: str) -> list[tuple[str, str, int, str]]:
    """Return every file that a pattern matches or a folder holds; none where it does not exist.

    Args:
      url: "gs://bucket/folder/*.jsonl", "hf://datasets/OWNER/NAME[@revision]/pattern" or
        "hf://OWNER/NAME/pattern" (a dataset too).
      revision: branch, tag or commit of a Hub repository; it is resolved to a commit, which the
        returned urls carry.
      where: the config field, for messages.
    Returns: (url, name relative to the fixed part of `url`, size in bytes, content id) of each.
    Raises: UserError where the extra is missing, the repository or bucket cannot be reached, or
      revisions contradict each other.
    """
    protocol, _, path = url.partition("://")
    system = _system(protocol, where)
    try:
        if protocol == "hf":
            path = _pinned(path, revision, where)
        wildcard = re.search(r"[*?\[]", path)
        list_files = system.glob if wildcard else system.find
        infos = list_files(path, detail=True)
    except FileNotFoundError:
        return []
    except UserError:
        raise
    except Exception as error:
        # Every store has exceptions of its own; to the user they all mean the same.
        message = str(error)
        reason = message.strip().splitlines()[0] if message else repr(error)
        raise UserError(f"{where}: cannot list {url}: {reason}") from error
    base = path.rstrip("/")  # names are relative to it
    if wildcard:
        # The folders before the first one with a wildcard.
        base = path[: wildcard.start()].rpartition("/")[0]
    files = []
    for name, info in sorted(infos.items()):
        if info.get("type", "file") != "file":
            continue
        # A single file is its own base, which leaves an empty name.
        relative = name.removeprefix(base).strip("/") or name.rpartition("/")[2]
        content_id = _content_id(system, name, info)
        files.append((f"{protocol}://{name}", relative, int(info["size"]), content_id))
    return files


def open_remote(url: str) -> Any:
    """Return a binary stream of one remote file."""
    protocol, _, path = url.partition("://")
    return _system(protocol, url).open(path, "rb")


def work_place(place: str, option: str) -> str:
    """Return the address of a work directory as an option names it, with ~ expanded.

    Raises: UserError for an unknown store, or one whose extra is missing.
    """
    protocol, separator, _ = place.partition("://")
    if not separator:
        return str(Path(place).expanduser())
    if protocol != "gs":
        problem = f"{protocol}:// is not known"
        raise UserError(f"{option}={place}: {problem}; use a local folder or gs://.")
    # Called for its error only: it is better to fail now than at the first checkpoint.
    _system(protocol, f"{option}={place}")
    return place


def existing_work_place(place: str, option: str) -> str:
    """Return `work_place` of a work directory that is to be read.

    Raises: UserError as `work_place`, and where a local folder is not there.
    """
    workdir = work_place(place, option)
    if "://" not in workdir and not Path(workdir).is_dir():
        raise UserError(f"{option}: there is no work directory '{workdir}'.")
    return workdir


def resolve_commit(repository: str, revision: str, where: str) -> str:
    """Return the commit that a branch or tag of a Hub dataset points to now.

    An empty revision is the default branch.
    Raises: UserError where huggingface_hub is missing, and huggingface_hub's own errors where the
      repository or revision cannot be found.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        advice = 'pip install "slmjax[hub]"'
        raise UserError(f"{where}: hf:// needs huggingface_hub; {advice}.") from error
    info = HfApi().repo_info(repository, repo_type="dataset", revision=revision or None)
    return info.sha


def _system(protocol: str, where: str) -> Any:
    """Return fsspec's file system for a protocol.

    Raises: UserError for an unknown one, and where its package is missing.
    """
    import fsspec

    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        if protocol in EXTRAS:
            package, extra = EXTRAS[protocol]
            advice = f'pip install "slmjax[{extra}]"'
            raise UserError(f"{where}: {protocol}:// needs {package}; {advice}.") from error
        advice = "use a local path, gs:// or hf://"
        if protocol in ("http", "https"):
            advice = "download the file first"
        problem = f"{protocol}:// cannot be read here ({error})"
        raise UserError(f"{where}: {problem}; {advice}.") from error
    except ValueError as error:
        advice = "use a local path, gs:// or hf://"
        raise UserError(f"{where}: {protocol}:// is not known; {advice}.") from error


def _pinned(path: str, revision: str, where: str) -> str:
    """Return a Hub path as "datasets/OWNER/NAME@commit/rest": a branch moves, a commit does not.

    Raises: UserError for a path of another form, or one whose revision is not `revision`.
    """
    match = _HUB_PATH.fullmatch(path)
    if not match:
        expected = "expected hf://datasets/OWNER/NAME[@revision]/pattern"
        raise UserError(f"{where}: {expected}, found hf://{path}.")
    repository, quoted_revision, rest = match.groups(default="")
    path_revision = unquote(quoted_revision)
    if path_revision and revision and path_revision != revision:
        problem = f"the path names revision '{path_revision}' and the field revision '{revision}'"
        raise UserError(f"{where}: {problem}; give one of them.")
    commit = path_revision or revision
    if not _COMMIT.fullmatch(commit):  # it is a branch or tag, or empty
        commit = resolve_commit(repository, commit, where)
    return f"datasets/{repository}@{quote(commit, safe='')}{rest}"


def _content_id(system: Any, name: str, info: Mapping) -> str:
    """Return a string that changes with the content: the store's own checksum where it has one."""
    # The Hub keeps large files in Git LFS and lists them with their hash.
    large_file = info.get("lfs") or {}
    if large_file.get("sha256"):
        return str(large_file["sha256"])
    # Names of the checksum: Google Cloud Storage's, the Hub's, and those of S3 and HTTP.
    for field in ("md5Hash", "blob_id", "etag", "ETag"):
        if info.get(field):
            return str(info[field])
    # Whatever fsspec knows of the file: often its size and time.
    return str(system.ukey(name))
