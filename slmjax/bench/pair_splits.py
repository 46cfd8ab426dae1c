"""Preference pairs in three parts by prompt, and their token ids for other libraries."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from slmjax.data.folding import fold, unfold
from slmjax.data.shards import ShardSet
from slmjax.data.spans import DocumentSpan
from slmjax.errors import UserError
from slmjax.text.chat_documents import chat_document
from slmjax.text.conversations import pair_of, prompt_group
from slmjax.text.files import write_atomic
from slmjax.text.readers import read_records
from slmjax.text.records import PAIRS, Fault, Record, Source
from slmjax.text.source_files import list_files

# Shares of the prompts: to train on, to choose rates with, to report.
SPLITS = {"train": 0.7, "dev": 0.1, "test": 0.2}


# (ids, is_answer), see TokenPairs.
Dialogue = tuple[np.ndarray, np.ndarray]


class TokenPairs(NamedTuple):
    """Pairs as token ids. Dialogues 2i (chosen) and 2i + 1 (rejected) are those of pair i.

    Attributes:
      ids: of all dialogues end to end, each with its leading end-of-text.
      is_answer: whether a token belongs to the last answer, its end included.
      lengths: tokens of each dialogue.
      prompts: the same number for pairs of the same prompt group.
      sources: which of `names` a pair is from.
      names: of the sources.
    """

    ids: Int[np.ndarray, " tokens"]
    is_answer: Bool[np.ndarray, " tokens"]
    lengths: Int[np.ndarray, " dialogues"]
    prompts: Int[np.ndarray, " pairs"]
    sources: Int[np.ndarray, " pairs"]
    names: tuple[str, ...]

    def dialogues(self) -> list[Dialogue]:
        """Return (ids, is_answer) of each dialogue."""
        ends = np.cumsum(self.lengths)[:-1]
        ids = np.split(self.ids, ends)
        is_answer = np.split(self.is_answer, ends)
        return list(zip(ids, is_answer, strict=True))

    def answer_tokens(self) -> Int[np.ndarray, "pairs 2"]:
        """Return the length of each answer, its end included."""
        begins = np.cumsum(self.lengths) - self.lengths
        tokens = np.add.reduceat(self.is_answer.astype(np.int64), begins)
        return tokens.reshape(-1, 2)

    def save(self, path: Path) -> None:
        """Write the pairs to an .npz file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **self._asdict())

    @classmethod
    def load(cls, path: str | Path) -> "TokenPairs":
        """Return what `save` wrote."""
        with np.load(path) as arrays:
            values = {name: arrays[name] for name in cls._fields}
        values["names"] = tuple(values["names"].tolist())
        return cls(**values)


def split_of(group: str) -> str:
    """Return the split of a prompt group, which depends on nothing else."""
    digest = hashlib.blake2b(group.encode(), digest_size=8, person=b"orpo split").digest()
    place = int.from_bytes(digest, "big") / 2**64  # uniform in [0, 1)
    end = 0.0
    for name, share in SPLITS.items():
        end += share
        if place < end:
            return name
    return name  # the shares add up to 1 but for rounding


def split_pairs(sources: Sequence[Source], folder: Path) -> dict[str, dict[str, int]]:
    """Write the pairs of each source to folder/SPLIT/SOURCE.jsonl.

    Returns: {source: {split: pairs, "bad": records that are left out}}.
    Raises: UserError for a source that leaves a split empty.
    """
    counts = {}
    for source in sources:
        lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        counts[source.name] = {"bad": 0}
        for record, group in _grouped_records(source):
            if record is None:
                counts[source.name]["bad"] += 1
                continue
            line = json.dumps(record.fields)
            lines[split_of(group)].append(f"{line}\n")
        for split, split_lines in lines.items():
            if not split_lines:
                raise UserError(f"{source.where}: none of its pairs are for the split {split}.")
            path = split_file(folder, split, source.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "".join(split_lines))
            counts[source.name][split] = len(split_lines)
    return counts


def split_file(folder: Path, split: str, source: str) -> Path:
    """Return the file of a source's pairs of a split."""
    return folder / split / f"{source}.jsonl"


def splits_hash(folder: Path) -> str:
    """Return a hash of the files that `split_pairs` wrote."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.jsonl")):
        digest.update(f"{path.parent.name}/{path.name}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def token_pairs(
    shards: Mapping[str, ShardSet], seq_len: int, folder: Path, split: str
) -> TokenPairs:
    """Return prepared pairs as token ids; those that are longer than a row are left out.

    Args:
      shards: {source: its pairs}, which were prepared from the files of `split_pairs`.
      folder, split: of these files.
    Raises: UserError where no pair is left.
    """
    dialogues, prompts, sources = [], [], []
    for number, (name, source_shards) in enumerate(shards.items()):
        groups = _groups(split_file(folder, split, name))
        for doc, length in enumerate(source_shards.lengths.tolist()):
            if length > seq_len:
                continue
            dialogues += _dialogues(source_shards, doc, length)
            # A document's name ends in the number of its line.
            _, _, line = source_shards.name(doc).rpartition(" ")
            prompts.append(groups[int(line)])
            sources.append(number)
    if not dialogues:
        raise UserError(
            f"no pair of the split {split} fits into a row of config.data.seq_len={seq_len} tokens."
        )
    ids, is_answer = zip(*dialogues, strict=True)
    return TokenPairs(
        ids=np.concatenate(ids).astype(np.int32),
        is_answer=np.concatenate(is_answer),
        lengths=np.array([len(array) for array in ids]),
        prompts=np.array(prompts),
        sources=np.array(sources),
        names=tuple(shards),
    )


def _grouped_records(source: Source) -> Iterator[tuple[Record | None, str]]:
    """Yield (record, its prompt group) of every line; (None, "") where training leaves it out."""
    for file in list_files(source):
        for record in read_records(file, source):
            is_bad = isinstance(record, Fault)
            if is_bad or isinstance(chat_document(record, source), Fault):
                yield None, ""
            else:
                pair = pair_of(record.fields)
                yield record, prompt_group(record.fields, pair.prompt)


def _groups(path: Path) -> dict[int, int]:
    """Return {line: a number for its prompt group}, equal in all files for equal groups."""
    source = Source(path.stem, (str(path),), kind=PAIRS)
    groups = {}
    for record, group in _grouped_records(source):
        digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
        groups[record.line] = int.from_bytes(digest, "big", signed=True)
    return groups


def _dialogues(shards: ShardSet, doc: int, length: int) -> list[Dialogue]:
    """Return (ids, is_answer) of the chosen and of the rejected dialogue, as training reads them.

    Args:
      length: tokens of the document.
    """
    row = (shards, [DocumentSpan(doc, 0, length)])
    batch = unfold(fold([row], length), shards.chat)
    (tokens,) = batch["tokens"]
    (segments,) = batch["segments"]
    (weights,) = batch["weights"]
    # A weight is that of the target, which is the token after it.
    is_answer = np.zeros(length, bool)
    is_answer[1:] = weights[:-1] > 0
    dialogues = []
    for segment in (1, 2):
        own = segments == segment
        dialogues.append((tokens[own], is_answer[own]))
    return dialogues
