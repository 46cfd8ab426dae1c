"""The report of a study: its tables and figures on one page."""

from collections.abc import Sequence

from etils import epath

from slmjax.readable import duration
from slmjax.record import page
from slmjax.studies.study_runs import StudyRuns
from slmjax.studies.study_table import StudyTable
from slmjax.text.files import write_atomic


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
        notes = map(page.note, table.notes)
        parts.append(page.section(table.title, page.html_table(table.head, table.rows), *notes))
    lead = page.escape(study.command)
    path = study.folder / "report.html"
    write_atomic(path, page.page(study.folder.name, f"<code>{lead}</code>", "\n".join(parts)))
    return path
