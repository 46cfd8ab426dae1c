"""Preference pairs in three parts by prompt, and their token ids for other libraries."""

import hashlib
import json
from collections.abc import Mapping, Sequence
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

    def dialogues(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (ids, is_answer) of each dialogue."""
        ends = np.cumsum(self.lengths)[:-1]
        return list(zip(np.split(self.ids, ends), np.split(self.is_answer, ends), strict=True))

    def answer_tokens(self) -> Int[np.ndarray, "pairs 2"]:
        """Return the length of each answer, its end included."""
        counts = [int(is_answer.sum()) for _, is_answer in self.dialogues()]
        return np.array(counts, np.int64).reshape(-1, 2)

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
        lines: dict[str, list[str]] = {name: [] for name in SPLITS}
        bad = 0
        for file in list_files(source):
            for record in read_records(file, source):
                if _is_bad(record, source):
                    bad += 1
                    continue
                group = prompt_group(record.fields, pair_of(record.fields).prompt)
                line = json.dumps(record.fields, ensure_ascii=False)
                lines[split_of(group)].append(line + "\n")
        for name, of_split in lines.items():
            if not of_split:
                total = sum(map(len, lines.values()))
                raise UserError(f"{source.where}: of {total} pairs none are for {name}.")
            path = folder / name / f"{source.name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "".join(of_split).encode("utf-8", "surrogatepass"))
        counts[source.name] = {name: len(of_split) for name, of_split in lines.items()}
        counts[source.name]["bad"] = bad
    return counts


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
    """
    ids, is_answer, lengths, prompts, sources = [], [], [], [], []
    for number, (name, source_shards) in enumerate(shards.items()):
        groups = _groups(folder / split / f"{name}.jsonl")
        for doc, length in enumerate(source_shards.lengths.tolist()):
            if length > seq_len:
                continue
            for dialogue_ids, dialogue_answer in _dialogues(source_shards, doc, length):
                ids.append(dialogue_ids)
                is_answer.append(dialogue_answer)
                lengths.append(len(dialogue_ids))
            # A name ends in the number of its line.
            line = int(source_shards.name(doc).rpartition(" ")[2])
            prompts.append(groups[line])
            sources.append(number)
    return TokenPairs(
        ids=np.concatenate(ids).astype(np.int32),
        is_answer=np.concatenate(is_answer),
        lengths=np.array(lengths, np.int64),
        prompts=np.array(prompts, np.int64),
        sources=np.array(sources, np.int64),
        names=tuple(shards),
    )


def _is_bad(record: Record | Fault, source: Source) -> bool:
    """Return whether training would leave a record out."""
    return isinstance(record, Fault) or isinstance(chat_document(record, source), Fault)


def _groups(path: Path) -> dict[int, int]:
    """Return {line: a number for its prompt group}, equal in all files for equal groups."""
    groups = {}
    source = Source(path.stem, (str(path),), kind=PAIRS)
    for file in list_files(source):
        for record in read_records(file, source):
            group = prompt_group(record.fields, pair_of(record.fields).prompt)
            digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
            groups[record.line] = int.from_bytes(digest, "big", signed=True)
    return groups


def _dialogues(shards: ShardSet, doc: int, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (ids, is_answer) of the chosen and of the rejected dialogue, as training reads them.

    Args:
      length: tokens of the document.
    """
    folded = fold([(shards, [DocumentSpan(doc, 0, length)])], length)
    batch = unfold(folded, shards.chat)
    segments, tokens = batch["segments"][0], batch["tokens"][0]
    # A weight is that of the target, which is the token after it.
    is_answer = np.zeros(length, bool)
    is_answer[1:] = batch["weights"][0, :-1] > 0
    dialogues = []
    for segment in (1, 2):
        own = segments == segment
        dialogues.append((tokens[own], is_answer[own]))
    return dialogues
