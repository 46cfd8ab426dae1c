"""A table of a study, for the terminal and for its report."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class StudyTable:
    """A table of texts, with sentences below it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return the table in Markdown, and its notes as a list."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"{table}\n\n{notes}".strip()
