"""The report of a study: its tables and figures on one page."""

import dataclasses
from collections.abc import Sequence

from etils import epath

from slmjax.readable import duration
from slmjax.record import page
from slmjax.studies.study_runs import StudyRuns
from slmjax.text.files import write_atomic


@dataclasses.dataclass(frozen=True)
class StudyTable:
    """A table of texts, for the terminal and the report."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_study_report(
    study: StudyRuns,
    tables: Sequence[StudyTable],
    sentences: Sequence[str],
    figures: Sequence[str] = (),
) -> epath.Path:
    """Write report.html into the study's folder, and return its path.

    Args:
      sentences: what the study says, above the tables.
      figures: SVGs.
    """
    seconds = sum(result["seconds"] for result in study.results.values())
    headline = {"runs": str(len(study.results)), "training": duration(seconds)}
    parts = [page.tiles(headline)]
    for sentence in sentences:
        parts.append(f"<p>{page.escape(sentence)}</p>")
    parts.append(page.figures(*figures))
    for table in tables:
        parts.append(page.section(table.title, page.html_table(table.head, table.rows)))
    lead = page.escape(study.command)
    path = study.folder / "report.html"
    write_atomic(path, page.page(study.folder.name, f"<code>{lead}</code>", "\n".join(parts)))
    return path
