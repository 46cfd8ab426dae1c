"""Sources that need no files: the embedded textbook as text, as dialogues and as pairs."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slmjax.errors import UserError, nearest
from slmjax.text.files import write_atomic
from slmjax.text.records import CHAT, PAIRS, TEXT, Source
from slmjax.textbook import dialogues
from slmjax.textbook import passages as textbook

# How the path of such a source begins.
SCHEME = "textbook:"
# Paths, and the kind of each; the last ones are the text's kinds of passages, such as
# "textbook:logic".
EMBEDDED = {f"{SCHEME}text": TEXT, f"{SCHEME}dialogues": CHAT, f"{SCHEME}pairs": PAIRS}
EMBEDDED |= {f"{SCHEME}{kind}": TEXT for kind in textbook.KINDS}
# Documents of each kind of passage: a small model reads them a few times in a minute and a half on
# two cores.
TRAIN_PER_KIND = 4000
HELDOUT_PER_KIND = 300
# So many dialogues, and so many pairs.
TRAIN_CONVERSATIONS = 6000
HELDOUT_CONVERSATIONS = 500


def embedded_sources(folder: Path, seed: int) -> dict[str, dict[str, str]]:
    """Write the textbook's passages and return {kind of passage: its source}.

    A source has "path" and "heldout", as in config.data.sources.
    """
    return textbook.write_corpus(
        folder, seed=seed, train_per_kind=TRAIN_PER_KIND, heldout_per_kind=HELDOUT_PER_KIND
    )


def with_files(sources: Sequence[Source], folder: Path, seed: int) -> tuple[Source, ...]:
    """Return the sources with the textbook's files in place of "textbook:" paths.

    Args:
      folder: where the files are written.
    Raises: UserError for an unknown path that begins with "textbook:", for one among other paths,
      where the source's kind is not that of the path, and for a held-out part of the user's own.
    """
    return tuple(_with_files(source, folder, seed) for source in sources)


def _with_files(source: Source, folder: Path, seed: int) -> Source:
    """Return one source with its files; a source of other paths as it is."""
    named = [path for path in source.path if path.startswith(SCHEME)]
    if not named:
        return source
    path = named[0]
    if path not in EMBEDDED or len(source.path) > 1:
        expected = f"expected one of {', '.join(EMBEDDED)}, alone"
        raise UserError(f"{source.where}.path is '{path}'; {expected}.{nearest(path, EMBEDDED)}")
    if source.kind != EMBEDDED[path]:
        raise UserError(
            f"{source.where}.kind is '{source.kind}'; '{path}' is of the kind '{EMBEDDED[path]}'."
        )
    if source.heldout or source.heldout_share is not None:
        raise UserError(
            f"{source.where}.heldout: '{path}' has held-out text of its own; leave the field out."
        )
    kind = path.removeprefix(SCHEME)
    if kind in textbook.KINDS:
        file = embedded_sources(folder, seed)[kind]
        train, heldout = (file["path"],), file["heldout"]
    elif source.kind == TEXT:
        files = embedded_sources(folder, seed).values()
        train = tuple(file["path"] for file in files)
        heldout = _in_turns([Path(file["heldout"]) for file in files], folder / "heldout.jsonl")
    else:
        write = dialogues.write_dialogues if source.kind == CHAT else dialogues.write_pairs
        file = write(folder, seed=seed, train=TRAIN_CONVERSATIONS, heldout=HELDOUT_CONVERSATIONS)
        train, heldout = (file["path"],), file["heldout"]
    return replace(source, path=train, heldout=(heldout,), heldout_share=None)


def _in_turns(files: Sequence[Path], path: Path) -> str:
    """Write the first lines of all files, then their second lines, and so on; return the path.

    An evaluation reads a source's first documents: they must be of all kinds.
    """
    lines = [file.read_text("utf-8").splitlines(keepends=True) for file in files]
    content = "".join(itertools.chain.from_iterable(zip(*lines, strict=True)))
    # Prepared text belongs to a version of the file, so that an equal one is kept.
    if not path.exists() or path.read_text("utf-8") != content:
        write_atomic(path, content)
    return str(path)
