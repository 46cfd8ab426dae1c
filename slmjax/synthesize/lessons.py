"""Sentences with which the embedded teacher explains problems; the text is lessons.json.

The sentences hold no numbers, names or examples, so that nothing in them can contradict a problem.
A change of the text changes what a seed writes: count up program_teacher.MODEL with it.
"""

import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Lesson:
    """Sentences about one kind of problem. Each makes sense alone; `ideas` follow in order."""

    titles: tuple[str, ...]
    ideas: tuple[str, ...]
    methods: tuple[str, ...]
    mistakes: tuple[str, ...]
    checks: tuple[str, ...]


def _lesson(parts: dict[str, list[str]]) -> Lesson:
    return Lesson(
        titles=tuple(parts["titles"]),
        ideas=tuple(parts["ideas"]),
        methods=tuple(parts["methods"]),
        mistakes=tuple(parts["mistakes"]),
        checks=tuple(parts["checks"]),
    )


_TEXT = json.loads(resources.files(__package__).joinpath("lessons.json").read_text("utf-8"))

GREETINGS: dict[str, tuple[str, ...]] = {
    audience: tuple(sentences) for audience, sentences in _TEXT["greetings"].items()
}
"""First sentences of a document for each audience of plan.AUDIENCES."""

CLOSINGS: tuple[str, ...] = tuple(_TEXT["closings"])
"""Last sentences of a section."""

LESSONS: dict[str, Lesson] = {kind: _lesson(parts) for kind, parts in _TEXT["lessons"].items()}
"""The lesson of each kind of problem in subjects.KINDS."""
