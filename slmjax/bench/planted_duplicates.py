"""Write text with planted near-duplicates, for the speed test of near-duplicate search."""

import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from slmjax.errors import UserError

DOMAINS = ("textbooks", "books", "docs")  # of the shared text, in the order in which they are read
FILES = 8  # over which the documents are spread
LARGEST_CLUSTER = 1000  # documents
ZIPF = 1.3  # exponent of the distribution of cluster sizes
SHINGLE_WORDS = 5


def write_planted(
    root: Path, folder: Path, documents: int, length: int, seed: int = 0
) -> list[Path]:
    """Write documents of about `length` bytes to 0.jsonl, 1.jsonl, ... in a new folder.

    Half of them are unique. The others are in clusters (some of a single document), whose sizes
    follow Zipf's law and whose members have a Jaccard similarity of 0.5 to 1 to the first.

    Args:
      root: the folder that holds the shared pretrain/.
      length: bytes of a slice of text. A unique document is a slice. A near-duplicate is a slice
        with other words, so it may be longer or shorter.
    Returns: the files.
    Raises: UserError where there is not enough text.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    slices = list(_slices(root, length, 2 * documents))
    # Half of the documents are unique slices. A tenth more, at least, is for the clusters.
    needed = 0.6 * documents
    if len(slices) < needed:
        raise UserError(
            f"--documents={documents}: {root} has {len(slices)} slices of {length} bytes; "
            f"at least {needed:.0f} are needed."
        )
    random.shuffle(slices)
    texts = slices[: documents // 2]
    spare = slices[documents // 2 :]
    clusters = 0
    # If there are more clusters than spare slices, some slices begin several clusters.
    while len(texts) < documents:
        first = spare[clusters % len(spare)]
        clusters += 1
        texts += _cluster(first, spare, random)
    # Shuffled. The last cluster may be too long: only the first `documents` texts are taken.
    texts = [texts[place] for place in random.permutation(documents)]
    files = []
    for number in range(FILES):
        file = folder / f"{number}.jsonl"
        _write_texts(texts[number::FILES], file)
        files.append(file)
    return files


def xz_records(file: Path) -> Iterator[dict]:
    """Yield the records of a .jsonl.xz file."""
    with lzma.open(file, "rt", encoding="utf8", newline="\n") as lines:
        yield from map(json.loads, lines)


def _slices(root: Path, length: int, most: int) -> Iterator[str]:
    """Yield at most `most` slices of `length` bytes; the shorter end of a document is dropped."""
    count = 0
    for domain in DOMAINS:
        for file in sorted((root / "pretrain" / domain).glob("*.jsonl.xz")):
            for record in xz_records(file):
                text = record["text"].encode()
                for start in range(0, len(text) - length + 1, length):
                    # A slice may begin or end inside a character, which is then dropped.
                    yield text[start : start + length].decode(errors="ignore")
                    count += 1
                    if count == most:
                        return


def _cluster(first: str, spare: Sequence[str], random: np.random.Generator) -> list[str]:
    """Return `first` and a random number of its near-duplicates."""
    size = min(LARGEST_CLUSTER, random.zipf(ZIPF))
    texts = [first]
    for _ in range(size - 1):
        other = spare[random.integers(len(spare))]
        similarity = random.uniform(0.5, 1)
        texts.append(_changed(first, other, similarity, random))
    return texts


def _changed(text: str, other: str, similarity: float, random: np.random.Generator) -> str:
    """Return `text` with a run of its words replaced by as many words of the beginning of `other`.

    The Jaccard similarity of old and new text, by word shingles, is about `similarity`.
    """
    words = text.split()
    new_words = other.split()
    context = SHINGLE_WORDS - 1
    shingles = max(1, len(words) - context)
    # With m of n shingles replaced, the similarity is s = (n - m) / (n + m); this solves for m.
    replaced = round(shingles * (1 - similarity) / (1 + similarity))
    # A run of k words is in k + 4 shingles.
    run = replaced - context
    if run < 1:
        return text  # to replace one word would already change too much
    start = random.integers(max(1, len(words) - run))
    return " ".join([*words[:start], *new_words[:run], *words[start + run :]])


def _write_texts(texts: Sequence[str], file: Path) -> None:
    lines = []
    for text in texts:
        lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    file.write_text("".join(lines), encoding="utf8")
