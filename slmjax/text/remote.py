"""Files on gs:// and hf:// through fsspec: listing with a content id for each file, and a Hub revision pinned to its commit."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from slmjax.errors import UserError

EXTRAS = {"hf": ("huggingface_hub", "hub"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}


def list_remote(url: str, revision: str, where: str) -> list[tuple[str, str, int, str]]:
    """(url, name relative to the fixed part of `url`, size in bytes, content id) of every file that a pattern or folder holds.

    Args:
      url: "gs://bucket/folder/*.jsonl", "hf://datasets/OWNER/NAME[@revision]/pattern" or "hf://OWNER/NAME/pattern" (a dataset too).
      revision: branch, tag or commit of a Hub repository; it is resolved to a commit, which the returned urls carry.
      where: the config field, for messages.
    Raises: UserError where the extra is missing, the repository or bucket cannot be reached, or revisions contradict each other.
    """
    protocol, _, path = url.partition("://")
    system = _system(protocol, where)
    try:
        if protocol == "hf":
            path = _pinned(path, revision, where)
        magic = re.search(r"[*?\[]", path)
        found = system.glob(path, detail=True) if magic else system.find(path, detail=True)
    except FileNotFoundError:
        return []
    except UserError:
        raise
    except (
        Exception
    ) as error:  # every store has its own exceptions; to the user each of them means the same
        raise UserError(
            f"{where}: cannot list {url}: {str(error).strip().splitlines()[0] if str(error) else error!r}"
        ) from error
    base = path[: magic.start()].rpartition("/")[0] if magic else path.rstrip("/")
    out = []
    for name, info in sorted(found.items()):
        if info.get("type", "file") == "file":
            relative = name.removeprefix(base).strip("/") or name.rpartition("/")[2]
            out.append(
                (
                    f"{protocol}://{name}",
                    relative,
                    int(info["size"]),
                    _content_id(system, name, info),
                )
            )
    return out


def open_remote(url: str) -> Any:
    """A binary stream of one remote file."""
    protocol, _, path = url.partition("://")
    return _system(protocol, url).open(path, "rb")


def work_place(place: str, option: str) -> str:
    """The address of a work directory as an option names it, with ~ expanded.

    Raises: UserError for a store that is not known, or whose extra is missing.
    """
    protocol, separator, _ = place.partition("://")
    if not separator:
        return str(Path(place).expanduser())
    if protocol != "gs":
        raise UserError(
            f"{option}={place}: {protocol}:// is not known; use a local folder or gs://."
        )
    _system(protocol, f"{option}={place}")
    return place


def _system(protocol: str, where: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        if protocol not in EXTRAS:
            advice = (
                "use a local path, gs:// or hf://"
                if protocol not in ("http", "https")
                else "download the file first"
            )
            raise UserError(
                f"{where}: {protocol}:// cannot be read here ({error}); {advice}."
            ) from error
        package, extra = EXTRAS[protocol]
        raise UserError(
            f'{where}: {protocol}:// needs {package}; pip install "slmjax[{extra}]".'
        ) from error
    except ValueError as error:
        raise UserError(
            f"{where}: {protocol}:// is not known; use a local path, gs:// or hf://."
        ) from error


def _pinned(path: str, revision: str, where: str) -> str:
    """ "datasets/OWNER/NAME@commit/rest": a branch moves, a commit does not."""
    found = re.fullmatch(r"(?:datasets/)?([^/@]+/[^/@]+)(?:@([^/]+))?(/.*)?", path)
    if not found:
        raise UserError(
            f"{where}: expected hf://datasets/OWNER/NAME[@revision]/pattern, found hf://{path}."
        )
    repository, named, rest = found.group(1), unquote(found.group(2) or ""), found.group(3) or ""
    if named and revision and named != revision:
        raise UserError(
            f"{where}: the path names revision '{named}' and the field revision '{revision}'; give one of them."
        )
    named = named or revision
    commit = (
        named if re.fullmatch(r"[0-9a-f]{40}", named) else resolve_commit(repository, named, where)
    )
    return f"datasets/{repository}@{quote(commit, safe='')}{rest}"


def resolve_commit(repository: str, revision: str, where: str) -> str:
    """The commit hash that a branch or tag (empty: the default branch) of a Hub dataset stands for now."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UserError(
            f'{where}: hf:// needs huggingface_hub; pip install "slmjax[hub]".'
        ) from error
    return HfApi().repo_info(repository, repo_type="dataset", revision=revision or None).sha


def _content_id(system: Any, name: str, info: dict) -> str:
    """A string that changes with the content: the store's own checksum where it has one."""
    lfs = info.get("lfs") or {}
    for value in (
        lfs.get("sha256"),
        info.get("md5Hash"),
        info.get("blob_id"),
        info.get("etag"),
        info.get("ETag"),
    ):
        if value:
            return str(value)
    return str(system.ukey(name))
