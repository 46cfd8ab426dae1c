"""Sentences with which the embedded teacher explains problems; the text is lessons.json.

The sentences hold no numbers, names or examples, so that nothing in them can contradict a problem.
A change of the text changes the documents of every seed: also raise the number in
program_teacher.MODEL.
"""

import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Lesson:
    """Sentences about one kind of problem; each makes sense alone."""

    titles: tuple[str, ...]
    ideas: tuple[str, ...]  # any selection reads well in this order
    methods: tuple[str, ...]
    mistakes: tuple[str, ...]
    checks: tuple[str, ...]  # how a reader can verify an answer


def _lesson(parts: dict[str, list[str]]) -> Lesson:
    return Lesson(
        titles=tuple(parts["titles"]),
        ideas=tuple(parts["ideas"]),
        methods=tuple(parts["methods"]),
        mistakes=tuple(parts["mistakes"]),
        checks=tuple(parts["checks"]),
    )


_FILE = resources.files(__package__) / "lessons.json"
_SENTENCES = json.loads(_FILE.read_text("utf-8"))

# {audience of plan.AUDIENCES: sentences, one of which begins a document}.
GREETINGS: dict[str, tuple[str, ...]] = {
    audience: tuple(sentences) for audience, sentences in _SENTENCES["greetings"].items()
}
# Sentences, one of which ends a section.
CLOSINGS: tuple[str, ...] = tuple(_SENTENCES["closings"])

# {kind of problem in subjects.KINDS: its lesson}.
LESSONS: dict[str, Lesson] = {kind: _lesson(parts) for kind, parts in _SENTENCES["lessons"].items()}
