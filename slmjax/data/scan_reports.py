"""Reports of the scan, added up for each source, and the limit on bad records in them."""

from typing import Any

from slmjax.data.preparation_plan import PreparationPlan, Unusable

# Numbers that are added up over the files of a source.
COUNTS = ("lines", "documents", "bytes", "damaged", "marks")
# What the scan says of a source, or of a file, see `added_reports`.
Report = dict[str, Any]


def added_reports(plan: PreparationPlan) -> dict[str, Report]:
    """Return {source: report}, read from what the scan has written for each file.

    A report has COUNTS, size (bytes of the files), faults ({reason: count}) and first_faults (a
    sentence for each reason). A source's report is of its training files; it has matched, documents
    whose group `group_by` gives, and heldout_files, a report of each held-out file.
    """
    totals = {}
    for source in plan.sources:
        total = _empty_report()
        total["matched"] = 0
        total["heldout_files"] = []
        totals[source.name] = total
    for job in plan.jobs(own=False):
        unit = job.unit
        for file, report in zip(unit.files, job.scanned(), strict=True):
            total = totals[unit.source.name]
            if unit.kind == "heldout":
                own_total = {"file": file.name, **_empty_report()}
                total["heldout_files"].append(own_total)
                total = own_total
            else:
                # Counts of what never occurred are left out of a file's report.
                total["matched"] += report.get("matched", 0)
            _add(total, report)
            total["size"] += file.size
    return totals


def check_faults(reports: dict[str, Report], limit: float) -> None:
    """Check the records of all sources and of each held-out file.

    Args:
      reports: of each source; entries of a manifest are reports too.
      limit: largest share of bad records.
    Raises: Unusable where there are more, or no text at all.
    """
    for name, report in reports.items():
        _check_report(f"data.sources.{name}", report, limit)
        # Folders of earlier versions do not have reports of held-out files.
        for file_report in report.get("heldout_files", ()):
            where = f"data.sources.{name}.heldout: {file_report['file']}"
            _check_report(where, file_report, limit)


def _empty_report() -> Report:
    report = dict.fromkeys(COUNTS, 0)
    return report | {"size": 0, "faults": {}, "first_faults": []}


def _add(total: Report, report: Report) -> None:
    """Add a file's report to a total."""
    for field in COUNTS:
        total[field] += report.get(field, 0)
    # Reasons and their first sentences are in the same order.
    faults = report["faults"].items()
    for (reason, count), first in zip(faults, report["first_faults"]):
        if reason not in total["faults"]:
            total["first_faults"].append(first)
            total["faults"][reason] = 0
        total["faults"][reason] += count


def _check_report(where: str, report: Report, limit: float) -> None:
    bad = sum(report["faults"].values())
    bad_share = bad / max(1, report["lines"])
    # A damaged file may have lost any number of records, so its bytes count too.
    damaged_share = report["damaged"] / max(1, report["size"])
    share = max(bad_share, damaged_share)
    # The first fault of each kind shows what to look for.
    if share > limit:
        examples = "; ".join(report["first_faults"])
        raise Unusable(
            f"{where}: {bad} of {report['lines']} records ({share:.2%} of it) cannot be used, "
            f"more than data.max_bad_share={limit}: {examples}."
        )
    if report["size"] and not report["documents"]:
        raise Unusable(f"{where}: it holds no document.")
