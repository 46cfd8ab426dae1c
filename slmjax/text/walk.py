"""Find the local files that a path or pattern names, and note which are left out, and why."""

import fnmatch
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from slmjax.errors import UserError, nearest

# .jsonl files that a stage of slmjax writes into its work directory; they are not training text.
OWN_FILES = ("metrics.jsonl", "dropped.jsonl", "duplicates.jsonl", "rejects.jsonl")
# Keys that tell slmjax's .json files from other programs' files of the same names.
OWN_JSON = {
    "config.json": {"stage", "data", "model", "train"},
    "manifest.json": {"format", "fingerprint", "tokenizer", "sources"},
}
WORK = "work~"  # folder of preparation's intermediate results; no source can have this name
SKETCHES = ".sketches"  # ending of the sketches of each file that curation works on
MAGIC = re.compile(r"[*?\[]")  # wildcards
SHOWN_NAMES = 3  # left-out files that a message lists for each reason


@dataclass
class FoundFiles:
    """The files that a pattern has found, and those that it has left out.

    Attributes:
      files: {path: name relative to the pattern's fixed part}.
      left_out: {reason: names}.
    """

    files: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, set[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, set()).add(printable(name))

    def describe_left_out(self) -> str:
        """Return a text that lists what was left out; "" where nothing was."""
        parts = []
        for reason, names in self.left_out.items():
            shown = ", ".join(sorted(names)[:SHOWN_NAMES])
            if len(names) > SHOWN_NAMES:
                shown += f" and {len(names) - SHOWN_NAMES} more"
            parts.append(f"{reason}: {shown}")
        return "; ".join(parts)


def find_files(pattern: str, supported: Callable[[str], bool], where: str) -> FoundFiles:
    """Return the files that a path or pattern names; of a folder all supported ones below it.

    A file or folder that several links lead to is read once. Work directories and prepared text of
    slmjax below the pattern's fixed part are left out: they change with the runs that read the
    source.

    Args:
      supported: whether a file of this name can be read.
      where: the config field, for messages.
    Raises: UserError for a pattern without a match and for a folder that cannot be read.
    """
    path = os.path.expanduser(pattern)
    walk = _Walk(supported, where)
    # A file may have wildcards in its own name: a path that exists is no pattern.
    matched = _exists(path, where)
    if matched or not MAGIC.search(path):
        walk.base = path if os.path.isdir(path) else os.path.dirname(path)
        if matched:
            walk.take_named(path, pattern)
    else:
        before_wildcards = re.split(MAGIC, path)[0]
        walk.base = os.path.dirname(before_wildcards)
        pieces = [piece for piece in path[len(walk.base) :].split("/") if piece]
        matched = walk.expand(walk.base or ".", pieces)
    if not matched:
        folder = os.path.dirname(path) or "."
        siblings: list[str] = []
        if os.path.isdir(folder):
            siblings = [entry.name for entry in walk.entries(folder)]
        close = nearest(os.path.basename(path), siblings)
        raise UserError(f"{where}: '{printable(pattern)}' matches no file.{close}")
    walk.finish()
    return walk.found_files


def printable(name: str) -> str:
    """Return a file's name as text that can be printed and stored: what is not UTF-8 is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


class _Walk:
    """One search: the files that it has taken, and the folders that it has been to."""

    def __init__(self, supported: Callable[[str], bool], where: str):
        # The folder before the pattern's first wildcard: names are relative to it.
        self.base = ""
        self.found_files = FoundFiles()
        self._supported = supported
        self._where = where
        # {path without links: path by which the file is read}
        self._files: dict[str, str] = {}
        # Visits, as (folder without links, pieces of the pattern to match below it); with 0 pieces
        # all files below the folder are taken.
        self._seen: set[tuple[str, int]] = set()
        self._linked_folders: list[str] = []  # links to folders that `finish` follows

    def take_named(self, path: str, pattern: str) -> None:
        """Take a path that the user wrote out, as `pattern`.

        Raises: UserError where it is neither file nor folder.
        """
        if os.path.isdir(path):
            self._take_folder(path, named=True)
        elif os.path.isfile(path):
            self._files[os.path.realpath(path)] = path
        else:
            problem = f"{printable(pattern)} is {_describe_special(path)}"
            raise UserError(f"{self._where}: {problem}; expected a file, folder or pattern.")

    def expand(self, folder: str, pieces: list[str]) -> bool:
        """Take what matches the pieces of a pattern below a folder; return whether anything did.

        Args:
          pieces: what stands between the pattern's slashes, at least one; "**" is any number of
            folders.
        """
        visit = (os.path.realpath(folder), len(pieces))
        if visit in self._seen or not os.path.isdir(folder):
            return False
        self._seen.add(visit)
        piece, rest = pieces[0], pieces[1:]
        if piece == "**" and not rest:
            self._take_folder(folder, named=True)
            return True
        if piece in (".", "..") or not MAGIC.search(piece):
            path = os.path.join(folder, piece)
            return _exists(path, self._where) and self._take_match(path, rest, named=True)
        # "**" may stand for no folder at all.
        matched = piece == "**" and self.expand(folder, rest)
        for entry in self.entries(folder):
            # As in a shell, only a pattern that begins with a dot matches hidden names.
            if entry.name.startswith(".") and not piece.startswith("."):
                continue
            if piece == "**":
                if entry.is_dir() and self._may_enter(entry, folder):
                    matched |= self.expand(entry.path, pieces)
            elif fnmatch.fnmatchcase(entry.name, piece):
                matched |= self._take_match(entry.path, rest)
        return matched

    def finish(self) -> None:
        """Follow links to folders, then fill `found_files.files`.

        Links come last, so that a file that can be reached without links keeps that name.
        """
        while self._linked_folders:
            self._take_folder(self._linked_folders.pop())
        for path in self._files.values():
            self.found_files.files[path] = self._name(path)

    def entries(self, folder: str) -> list[os.DirEntry]:
        """Return what is in a folder, sorted by name. Raises: UserError where it is unreadable."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            problem = f"cannot read the folder {printable(folder)}: {error.strerror}"
            raise UserError(f"{self._where}: {problem}.") from error

    def _take_match(self, path: str, rest: list[str], named: bool = False) -> bool:
        """Take a path that matched one piece of a pattern, if the rest matches below it.

        Args:
          named: whether the piece has no wildcards, so that the user has named this path.
        Returns: whether anything was taken, or noted as left out.
        """
        if rest:
            return os.path.isdir(path) and self.expand(path, rest)
        if os.path.isdir(path):
            self._take_folder(path, named)
        else:
            self._take_file(path, os.path.realpath(path))
        return True

    def _take_folder(self, folder: str, named: bool = False) -> None:
        """Take the files below a folder; only one that the user named may be a work directory."""
        waiting = [folder]
        while waiting:
            current = waiting.pop()
            real = os.path.realpath(current)
            # Two links, or a pattern and a folder, may lead to the same place.
            if (real, 0) in self._seen:
                continue
            self._seen.add((real, 0))
            entries = self.entries(current)
            own_folder = _written_by_slmjax(current, {entry.name for entry in entries})
            if own_folder and not (named and current == folder):
                self._leave_out("written by slmjax", current)
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    # Reported only where it could have been text.
                    if entry.is_dir() or self._supported(entry.name):
                        self._leave_out("hidden", entry.path)
                elif not entry.is_dir():
                    target = os.path.join(real, entry.name)
                    if entry.is_symlink():
                        target = os.path.realpath(target)
                    self._take_file(entry.path, target, own_folder)
                elif not entry.is_symlink():
                    waiting.append(entry.path)
                elif self._may_enter(entry, current):
                    self._linked_folders.append(entry.path)

    def _take_file(self, path: str, real: str, own_folder: bool = False) -> None:
        """Take a file, or note why it is left out.

        Args:
          real: its path without links.
          own_folder: whether its folder is known to be written by slmjax.
        """
        name = os.path.basename(path)
        if not os.path.isfile(path):
            self._leave_out(_describe_special(path), path)
        elif not self._supported(name):
            self._leave_out("unsupported ending", path)
        elif name in OWN_FILES and (own_folder or _written_by_slmjax(os.path.dirname(path))):
            self._leave_out("written by slmjax", path)
        else:
            # Several paths may lead to one file: a path that is no link is preferred.
            kept = self._files.get(real)
            if kept is None or os.path.islink(kept):
                self._files[real] = path

    def _may_enter(self, entry: os.DirEntry, folder: str) -> bool:
        """Whether the search may go into a folder found in `folder`; if not, note the reason."""
        if entry.is_symlink():
            target = os.path.realpath(entry.path).rstrip("/")
            # A link to a folder around it is a loop.
            if f"{os.path.realpath(folder)}/".startswith(f"{target}/"):
                self._leave_out("link to a folder around it", entry.path)
                return False
        if _written_by_slmjax(entry.path):
            self._leave_out("written by slmjax", entry.path)
            return False
        return True

    def _leave_out(self, reason: str, path: str) -> None:
        self.found_files.leave_out(reason, self._name(path))

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.base or ".")


def _written_by_slmjax(folder: str, names: set[str] | None = None) -> bool:
    """Whether a folder is a work directory, prepared text, its cache, or left by a killed stage.

    Args:
      names: the names of what is in it; None: they are not known yet.
    """
    if names is None:
        try:
            names = set(os.listdir(folder))
        except OSError:
            return False
    # `.identity` is a folder in the cache of prepared text.
    if os.path.basename(folder.rstrip("/")) == WORK or ".identity" in names:
        return True
    if any(name.endswith(SKETCHES) for name in names):
        return True
    # Other programs have files of these names too, with other keys.
    for name, own_keys in OWN_JSON.items():
        if name in names and own_keys <= _keys(os.path.join(folder, name)):
            return True
    return False


def _exists(path: str, where: str) -> bool:
    """Whether a file, folder or link has this path. Raises: UserError where access is denied."""
    try:
        os.lstat(path)
    except PermissionError as error:
        problem = f"cannot read {printable(path)}: {error.strerror}"
        raise UserError(f"{where}: {problem}.") from error
    except (OSError, ValueError):
        # Nothing is there, or the path is one that no file can have.
        return False
    return True


def _keys(path: str) -> set[str]:
    """Return the keys of the object in a .json file; none where it holds no object."""
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return set()
    return set(content) if isinstance(content, dict) else set()


def _describe_special(path: str) -> str:
    """Return a description of a path that is neither file nor folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            return "a link that leads nowhere"
        return error.strerror or "unknown"
    return "a named pipe" if stat.S_ISFIFO(mode) else "no regular file"
