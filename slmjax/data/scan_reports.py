"""Reports of the scan, added up for each source, and the check of their bad records."""

from typing import Any

from slmjax.data.preparation_plan import PreparationPlan, Unusable

# Fields of a report that are added up over the files of a source.
COUNTS = ("lines", "documents", "bytes", "damaged", "marks")
# The scan's report of a file or of a whole source, see `added_reports`.
Report = dict[str, Any]


def added_reports(plan: PreparationPlan) -> dict[str, Report]:
    """Return {source: report}, the sums of the reports that the scan has written for each file.

    A report has these fields:
      lines, documents: records, and those of them that are documents.
      bytes: of the documents' text, in UTF-8.
      damaged: bytes of files that cannot be read to their end.
      marks: end-of-text marks that are spelled out in the text.
      size: bytes of the files.
      faults, first_faults: {reason: bad records}, and a sentence about the first of each reason.
    These are of a source's training files. A source's report also has:
      matched: documents to which `group_by` gives a group.
      heldout_files: a report of each held-out file, with its name as `file`.
    """
    totals = {}
    for source in plan.sources:
        total = _empty_report()
        total["matched"] = 0
        total["heldout_files"] = []
        totals[source.name] = total
    for job in plan.jobs(all_hosts=True):
        unit = job.unit
        for file, report in zip(unit.files, job.scan_reports(), strict=True):
            total = totals[unit.source.name]
            if unit.split == "heldout":
                file_total = {"file": file.name, **_empty_report()}
                total["heldout_files"].append(file_total)
                total = file_total
            else:
                # Counts of 0 are left out of a file's report.
                total["matched"] += report.get("matched", 0)
            _add(total, report)
            total["size"] += file.size
    return totals


def check_faults(reports: dict[str, Report], limit: float) -> None:
    """Check that each source and each held-out file has few bad records and some text.

    Args:
      reports: {source: report}. A source's entry in a manifest can be used as its report.
      limit: largest share of bad records.
    Raises: Unusable where there are more, or no document at all.
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
    """Add a file's report to a total, without `matched` and `size`."""
    for field in COUNTS:
        total[field] += report.get(field, 0)
    # Reasons and their first sentences are in the same order.
    faults = report["faults"].items()
    for (reason, count), sentence in zip(faults, report["first_faults"]):
        if reason not in total["faults"]:
            total["first_faults"].append(sentence)
            total["faults"][reason] = 0
        total["faults"][reason] += count


def _check_report(where: str, report: Report, limit: float) -> None:
    bad = sum(report["faults"].values())
    bad_share = bad / max(1, report["lines"])
    # A damaged file may have lost any number of records, so its bytes count too.
    damaged_share = report["damaged"] / max(1, report["size"])
    share = max(bad_share, damaged_share)
    if share > limit:
        # One example of each reason shows what to look for.
        examples = "; ".join(report["first_faults"])
        raise Unusable(
            f"{where}: {bad} of {report['lines']} records ({share:.2%} of it) cannot be used, "
            f"more than data.max_bad_share={limit}: {examples}."
        )
    if report["size"] and not report["documents"]:
        raise Unusable(f"{where}: it holds no document.")
