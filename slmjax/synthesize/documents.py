"""From the journal to files: every accepted answer once, in order, with where it came from; every other one with its reason."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from etils import epath

from slmjax.errors import UserError
from slmjax.synthesize.checks import judge_text, without_thoughts
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.teachers import Teacher, TeacherRequest
from slmjax.text.files import write_atomic


def records(
    requests: Iterable[TeacherRequest], journal: Journal, teacher: Teacher
) -> Iterator[dict[str, Any]]:
    """A record of every request that was answered or given up, in order; `reason` is "" for accepted documents.

    What is accepted depends on the answers in the journal alone: nothing is asked, whatever is changed in the checks.
    """
    seen: dict[bytes, str] = {}  # hash of an accepted text -> its id
    for request in requests:
        event = journal.read(request.key)
        record: dict[str, Any] = {
            "text": "",
            "id": request.key[:20],
            "teacher": teacher.name,
            "model": teacher.model,
        }
        record |= {
            "prompt": hashlib.sha256(request.prompt.encode()).hexdigest(),
            "parameters": request.parameters,
        }
        record |= {
            "date": "",
            "licence": teacher.licence,
            "topic": request.item.topic,
            "format": request.item.format,
        }
        record |= {"audience": request.item.audience, "checked": "", "tokens": 0, "reason": ""}
        if event is None:
            if faults := journal.faults(request.key):
                yield record | {
                    "reason": "no answer: "
                    + ", ".join(f"{why} ({n})" for why, n in Counter(faults).items())
                }
            continue
        answer = json.loads(event.body)
        if not isinstance(answer.get("text"), str) or not {"finish", "tokens"} <= {*answer}:
            raise UserError(
                f"config.synthesize.journal: event {event.n} of {journal.file} is no answer."
            )
        reason, checked = judge_text(request.item, answer["text"], answer["finish"])
        text = without_thoughts(answer["text"])
        digest = hashlib.sha256(text.encode()).digest()
        if not reason and (first := seen.setdefault(digest, record["id"])) != record["id"]:
            reason = f"same text as {first}"
        date = teacher.date or datetime.fromtimestamp(event.time, UTC).isoformat(timespec="seconds")
        tokens = answer["tokens"][1] if answer["tokens"] else len(answer["text"].encode()) // 4
        yield record | {
            "text": text,
            "date": date,
            "checked": checked,
            "tokens": tokens,
            "reason": reason,
        }


class Writer:
    """Writes records into a work directory: documents/00000.jsonl, ... and rejects.jsonl, each whole or not at all.

    Args:
      shard: documents in a file.
    """

    def __init__(self, folder: epath.Path, shard: int):
        self._folder, self._shard = folder, shard
        (folder / "documents").mkdir(parents=True, exist_ok=True)
        self._lines: list[str] = []
        self._rejects: list[str] = []
        self._files: list[str] = []
        self.accepted: int = 0
        self.rejected: Counter = Counter()  # by reason, without its details
        self.examples: dict[str, str] = {}  # of each of them the first one with its details

    def add(self, record: dict[str, Any]) -> None:
        """Take the next record."""
        if record["reason"]:
            self._rejects.append(json.dumps(record, ensure_ascii=False) + "\n")
            kind = record["reason"].partition(":")[0].partition(" as ")[0]
            self.rejected[kind] += 1
            self.examples.setdefault(kind, record["reason"])
            return
        self.accepted += 1
        kept = {name: value for name, value in record.items() if name != "reason"}
        self._lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
        if len(self._lines) == self._shard:
            self._flush()

    def close(self) -> None:
        """Write what is left, and take away files of an earlier, longer run."""
        if self._lines:
            self._flush()
        write_atomic(self._folder / "rejects.jsonl", "".join(self._rejects))
        folder = self._folder / "documents"
        for file in (
            folder.iterdir() if folder.exists() else ()
        ):  # not glob: the folder's own name is no pattern
            if file.name.endswith(".jsonl") and file.name not in self._files:
                file.unlink()

    def _flush(self) -> None:
        name = f"{len(self._files):05d}.jsonl"
        write_atomic(self._folder / "documents" / name, "".join(self._lines))
        self._files.append(name)
        self._lines = []
