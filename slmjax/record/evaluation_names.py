"""Names of evaluation metrics: "eval/<source>/<measure>", and "eval/<measure>" over all sources."""

from slmjax.record.metrics import Records

# Over all sources together.
TOTAL_BITS = "eval/bits_per_byte"


def evaluated_sources(records: Records, measure: str) -> list[str]:
    """Return the sources with a recorded measure, in the order of their first record."""
    # A dict, as it keeps the order.
    names: dict[str, None] = {}
    for record in records.kept:
        if "event" not in record:
            names.update(dict.fromkeys(record))
    prefix, suffix = "eval/", f"/{measure}"
    sources = []
    for name in names:
        # The total has the prefix and the suffix too: its one slash matches both.
        is_total = name == f"eval/{measure}"
        if name.startswith(prefix) and name.endswith(suffix) and not is_total:
            sources.append(name[len(prefix) : -len(suffix)])
    return sources


def bits_metric(source: str) -> str:
    """Return the metric of a source's bits per byte; "total" is all sources."""
    if source == "total":
        return TOTAL_BITS
    return f"eval/{source}/bits_per_byte"
