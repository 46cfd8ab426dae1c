"""Turns the journal into files: accepted answers with their origin, rejects with their reason."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from etils import epath

from slmjax.errors import UserError
from slmjax.synthesize.checks import judge_text
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.journal_events import Event
from slmjax.synthesize.teachers import Teacher, TeacherRequest
from slmjax.synthesize.thoughts import without_thoughts
from slmjax.text.files import write_atomic

BYTES_A_TOKEN = 4  # estimate for answers whose teacher reports no tokens


def records(
    requests: Iterable[TeacherRequest], journal: Journal, teacher: Teacher
) -> Iterator[dict[str, Any]]:
    """Yield a record for every request that was answered or has only failed, in order.

    A record is a line of the files, see `_empty_record`; its "reason" is why it is rejected, "" for
    an accepted document. Answers are judged anew each time: after a change of the checks, nothing
    has to be asked for again.
    Raises: UserError for an event of the journal that is not an answer.
    """
    first_ids: dict[bytes, str] = {}  # hash of an accepted text -> id of its first record
    for request in requests:
        event = journal.read(request.key)
        if event is None:
            faults = Counter(journal.faults(request.key))
            if faults:
                counts = [f"{reason} ({times})" for reason, times in faults.items()]
                reason = f"no answer: {', '.join(counts)}"
                yield _empty_record(request, teacher) | {"reason": reason}
            continue
        record = _record_of_answer(request, event, journal, teacher)
        if not record["reason"]:
            digest = hashlib.sha256(record["text"].encode()).digest()
            first = first_ids.setdefault(digest, record["id"])
            if first != record["id"]:
                record["reason"] = f"same text as {first}"
        yield record


class DocumentWriter:
    """Writes documents/00000.jsonl, ... and rejects.jsonl, each file whole or not at all.

    Attributes:
      rejected: {kind of reason: rejected records}; a kind is the reason without its details.
      examples: {kind of reason: the first full reason of that kind}.

    Args:
      folder: the work directory.
      shard: documents in a file.
    """

    def __init__(self, folder: epath.Path, shard: int):
        self._folder = folder / "documents"
        self._rejects_file = folder / "rejects.jsonl"
        self._shard = shard
        self._folder.mkdir(parents=True, exist_ok=True)
        self._documents: list[str] = []  # lines of the next file
        self._rejects: list[str] = []  # lines of rejects.jsonl
        self._names: list[str] = []  # names of the document files that are written
        self.rejected: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Take the next record; every `shard` accepted ones are written as a file."""
        reason = record["reason"]
        if reason:
            self._rejects.append(json.dumps(record, ensure_ascii=False) + "\n")
            # The details follow a colon, or are the id in "same text as ID".
            kind = reason.partition(":")[0].partition(" as ")[0]
            self.rejected[kind] += 1
            self.examples.setdefault(kind, reason)
            return
        fields = {name: value for name, value in record.items() if name != "reason"}
        self._documents.append(json.dumps(fields, ensure_ascii=False) + "\n")
        if len(self._documents) == self._shard:
            self._flush()

    def close(self) -> None:
        """Write the last documents and all rejects, and delete files of an earlier, longer run."""
        if self._documents:
            self._flush()
        write_atomic(self._rejects_file, "".join(self._rejects))
        if not self._folder.exists():  # a bucket has no empty folders
            return
        for file in self._folder.iterdir():  # not glob: the folder's own name may hold brackets
            if file.name.endswith(".jsonl") and file.name not in self._names:
                file.unlink()

    def _flush(self) -> None:
        name = f"{len(self._names):05d}.jsonl"
        write_atomic(self._folder / name, "".join(self._documents))
        self._names.append(name)
        self._documents = []


def _empty_record(request: TeacherRequest, teacher: Teacher) -> dict[str, Any]:
    """Return the record of a request without an answer, its fields in the order of the files."""
    # "prompt" is a hash, "checked" the second result of judge_text, and "tokens" the answer's.
    return {
        "text": "",
        "id": request.key[:20],
        "teacher": teacher.name,
        "model": teacher.model,
        "prompt": hashlib.sha256(request.prompt.encode()).hexdigest(),
        "parameters": request.parameters,
        "date": "",
        "licence": teacher.licence,
        "topic": request.item.topic,
        "format": request.item.format,
        "audience": request.item.audience,
        "checked": "",
        "tokens": 0,
        "reason": "",
    }


def _record_of_answer(
    request: TeacherRequest, event: Event, journal: Journal, teacher: Teacher
) -> dict[str, Any]:
    """Return the record of an answer. Raises: UserError for an event of another shape."""
    answer = json.loads(event.body)
    if not isinstance(answer.get("text"), str) or not {"finish", "tokens"} <= {*answer}:
        raise UserError(
            f"config.synthesize.journal: event {event.n} of {journal.file} is no answer."
        )
    text, tokens = answer["text"], answer["tokens"]
    reason, checked = judge_text(request.item, text, answer["finish"])
    date = teacher.date
    if not date:  # the texts are written when they are asked for
        date = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="seconds")
    if tokens:
        _, answer_tokens = tokens
    else:
        answer_tokens = len(text.encode()) // BYTES_A_TOKEN
    return _empty_record(request, teacher) | {
        "text": without_thoughts(text),
        "date": date,
        "checked": checked,
        "tokens": answer_tokens,
        "reason": reason,
    }
