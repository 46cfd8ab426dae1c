"""Which local files a path or pattern stands for, and what lies there and is left out."""

import fnmatch
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from slmjax.errors import UserError, nearest

# .jsonl files that a stage writes into its work directory.
OWN_FILES = ("metrics.jsonl", "dropped.jsonl", "duplicates.jsonl", "rejects.jsonl")
OWN_JSON = {
    "config.json": {"stage", "data", "model", "train"},
    "manifest.json": {"format", "fingerprint", "tokenizer", "sources"},
}
WORK = "work~"  # intermediate results of preparation; no source can have this name
SKETCHES = ".sketches"  # of each file that curation works on
MAGIC = re.compile(r"[*?\[]")


@dataclass
class FoundFiles:
    """Files as {path: name relative to the pattern's fixed part}; names left out, by reason."""

    files: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, set[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, set()).add(printable(name))

    def describe_left_out(self) -> str:
        """What was left out, as words; "" where nothing was."""
        parts = []
        for reason, names in self.left_out.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{reason}: {', '.join(sorted(names)[:3])}{more}")
        return "; ".join(parts)


def printable(name: str) -> str:
    """A file's name as text that can be printed and stored, with escapes where it is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def find_files(pattern: str, supported: Callable[[str], bool], where: str) -> FoundFiles:
    """The files that a path or pattern stands for; a folder stands for all supported ones below it.

    A file or folder that links lead to is read once. Work directories and prepared text of slmjax
    below the pattern's fixed part are left out: they change with the runs that read the source.
    Raises: UserError for a pattern without a match and for a folder that cannot be read.
    """
    place = os.path.expanduser(pattern)
    walk = _Walk(supported, where)
    there = _exists(place, where)
    if there or not MAGIC.search(place):
        walk.base = place if os.path.isdir(place) else os.path.dirname(place)
        matched = there and walk.given(place, pattern)
    else:
        fixed = re.split(MAGIC, place)[0]
        walk.base = os.path.dirname(fixed)
        rest = place[len(walk.base) :].lstrip("/") if walk.base else place
        matched = walk.expand(walk.base or ".", [piece for piece in rest.split("/") if piece])
    if not matched:
        folder = os.path.dirname(place) or "."
        siblings = [entry.name for entry in walk.entries(folder)] if os.path.isdir(folder) else []
        near = nearest(os.path.basename(place), siblings)
        raise UserError(f"{where}: '{printable(pattern)}' matches no file.{near}")
    walk.finish()
    return walk.found


class _Walk:
    def __init__(self, supported: Callable[[str], bool], where: str):
        self.base = ""
        self.found = FoundFiles()
        self._supported, self._where = supported, where
        self._files: dict[str, str] = {}  # real path: path
        self._seen: set[tuple[str, int]] = set()
        self._linked: list[str] = []

    def given(self, path: str, pattern: str) -> bool:
        """Take a path that the user wrote out; what is wrong with it is an error."""
        if os.path.isdir(path):
            self._folder(path, named=True)
        elif os.path.isfile(path):
            self._files[os.path.realpath(path)] = path
        else:
            what = _kind_of(path)
            told = f"{printable(pattern)} is {what}; expected a file, folder or pattern"
            raise UserError(f"{self._where}: {told}.")
        return True

    def expand(self, folder: str, pieces: list[str]) -> bool:
        """Take what matches the pieces of a pattern below a folder; whether anything did."""
        state = (os.path.realpath(folder), len(pieces))
        if state in self._seen or not os.path.isdir(folder):
            return False
        self._seen.add(state)
        piece, rest = pieces[0], pieces[1:]
        if piece == "**" and not rest:
            self._folder(folder, named=True)
            return True
        if piece in (".", "..") or not MAGIC.search(piece):
            path = os.path.join(folder, piece)
            return _exists(path, self._where) and self._matched(path, rest, named=True)
        matched = piece == "**" and self.expand(folder, rest)
        for entry in self.entries(folder):
            hidden = entry.name.startswith(".") and not piece.startswith(".")
            if hidden:
                continue
            if piece == "**":
                if entry.is_dir() and self._enter(entry, folder):
                    matched |= self.expand(entry.path, pieces)
            elif fnmatch.fnmatchcase(entry.name, piece):
                matched |= self._matched(entry.path, rest)
        return matched

    def finish(self) -> None:
        """Follow the links to folders last, so that a file has its name without links if any."""
        while self._linked:
            path = self._linked.pop()
            self._folder(path)
        for path in self._files.values():
            self.found.files[path] = os.path.relpath(path, self.base or ".")

    def _matched(self, path: str, rest: list[str], named: bool = False) -> bool:
        if rest:
            return os.path.isdir(path) and self.expand(path, rest)
        if os.path.isdir(path):
            self._folder(path, named)
        else:
            self._file(path, os.path.realpath(path))
        return True

    def _folder(self, folder: str, named: bool = False) -> None:
        """Take the files below a folder; only one that the user named may be a work directory."""
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            real = os.path.realpath(place)
            if (real, 0) in self._seen:
                continue
            self._seen.add((real, 0))
            entries = self.entries(place)
            own = _written_by_slmjax(place, {entry.name for entry in entries})
            if own and not (named and place == folder):
                self.found.leave_out("written by slmjax", self._name(place))
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    if entry.is_dir() or self._supported(entry.name):
                        self.found.leave_out("hidden", self._name(entry.path))
                elif not entry.is_dir():
                    target = os.path.join(real, entry.name)
                    linked = entry.is_symlink()
                    self._file(entry.path, os.path.realpath(target) if linked else target, own)
                elif not entry.is_symlink():
                    waiting.append(entry.path)
                elif self._enter(entry, place):
                    self._linked.append(entry.path)

    def _file(self, path: str, real: str, own: bool = False) -> None:
        name = os.path.basename(path)
        if not os.path.isfile(path):
            self.found.leave_out(_kind_of(path), self._name(path))
        elif not self._supported(name):
            self.found.leave_out("unsupported ending", self._name(path))
        elif name in OWN_FILES and (own or _written_by_slmjax(os.path.dirname(path))):
            self.found.leave_out("written by slmjax", self._name(path))
        else:
            kept = self._files.get(real)
            if kept is None or os.path.islink(kept):
                self._files[real] = path

    def _enter(self, entry: os.DirEntry, folder: str) -> bool:
        """Whether to read a folder below the pattern; a link to a folder around it is a loop."""
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if f"{os.path.realpath(folder)}/".startswith(f"{target.rstrip('/')}/"):
                self.found.leave_out("link to a folder around it", self._name(entry.path))
                return False
        if _written_by_slmjax(entry.path):
            self.found.leave_out("written by slmjax", self._name(entry.path))
            return False
        return True

    def entries(self, folder: str) -> list[os.DirEntry]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            what = f"cannot read the folder {printable(folder)}: {error.strerror}"
            raise UserError(f"{self._where}: {what}.") from error

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.base or ".")


def _written_by_slmjax(folder: str, names: set[str] | None = None) -> bool:
    """Whether a folder is a work directory, prepared text or a cache of it, or what a killed stage left half done."""
    if names is None:
        try:
            names = set(os.listdir(folder))
        except OSError:
            return False
    if os.path.basename(folder.rstrip("/")) == WORK or any(
        name.endswith(SKETCHES) for name in names
    ):
        return True
    if ".identity" in names:
        return True
    there = (name for name in OWN_JSON if name in names)
    return any(OWN_JSON[name] <= _keys(os.path.join(folder, name)) for name in there)


def _exists(path: str, where: str) -> bool:
    try:
        os.lstat(path)
    except PermissionError as error:
        raise UserError(f"{where}: cannot read {printable(path)}: {error.strerror}.") from error
    except (OSError, ValueError):  # there is none, or there can be none
        return False
    return True


def _keys(path: str) -> set[str]:
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return set()
    return set(content) if isinstance(content, dict) else set()


def _kind_of(path: str) -> str:
    """What a path is that is neither file nor folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            return "a link that leads nowhere"
        return error.strerror or "unknown"
    return "a named pipe" if stat.S_ISFIFO(mode) else "no regular file"
