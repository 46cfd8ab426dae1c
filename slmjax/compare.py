"""Compare runs: `python -m slmjax.compare RUN RUN [...]` shows how their configs differ and whether the difference is more than chance."""

import dataclasses
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from slmjax import cli
from slmjax.config import FIELDS, as_today
from slmjax.errors import ANEW, UserError, first_line, nearest
from slmjax.readable import count, flatten
from slmjax.record import metrics
from slmjax.record.paired import RESAMPLES, Difference, Paired, bits_per_byte, bootstrap, pair
from slmjax.text.files import write_atomic
from slmjax.text.remote import work_place

REPETITIONS = tuple(
    field.name for field in FIELDS.values() if field.affects in ("chance", "bookkeeping")
)
"""Config fields that decide nothing about what is learned, except by chance."""

CURVES = (
    ("train/loss", "Training loss", "nats per token"),
    ("eval/bits_per_byte", "Held-out text, all sources,", "bits per byte"),
)

METHOD = (
    "Every document was scored by all runs; bits per byte is total bits over total bytes. The interval is the middle 95 % of "
    f"{RESAMPLES:,} bootstrap resamples: documents are drawn with replacement within each source, the same ones for all runs "
    "(paired; Efron & Tibshirani 1993; Berg-Kirkpatrick et al. 2012)."
)
METHOD_RUNS = (
    " Where a config has several seeds, its value is their mean ± standard deviation, and its runs are drawn with replacement too, their "
    "spread widened by sqrt(k / (k - 1)) for k runs (Hesterberg 2015); with two or three seeds the interval is still somewhat too narrow "
    "(simulated: it holds the truth in about 90 % of cases instead of 95 %)."
)


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """One work directory: its name here, its config by dotted names, its records, and its held-out scores by source."""

    name: str
    config: dict[str, Any]
    records: metrics.Records
    heldout: dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs, their shared held-out documents, the runs of one config as groups, and each group's difference to the first by source."""

    runs: list[ComparedRun]
    paired: Paired
    groups: list[list[int]]
    found: dict[str, list[Difference]]

    @property
    def labels(self) -> list[str]:
        """A name for each group: its first run's, and how many runs it is the mean of."""
        names = [self.runs[members[0]].name for members in self.groups]
        return [
            name + (f" (mean of {len(of)})" if len(of) > 1 else "")
            for name, of in zip(names, self.groups, strict=True)
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, see cli.entry."""
    return cli.entry(_run, argv)


def _run(argv: list[str]) -> int:
    parser = cli.Parser(prog="python -m slmjax.compare", description=__doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="work directories, local or gs://; the first is what the others are compared with",
    )
    parser.add_argument(
        "--out", default="compare.html", help="where to write the page (default: %(default)s)"
    )
    parser.add_argument(
        "--sources",
        default="",
        help="held-out text to compare on, for example books,math (default: all, added up)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; it must be 0 or more.")
    if "://" not in args.out and not os.path.isdir(os.path.dirname(args.out) or "."):
        raise UserError(
            f"Cannot write {args.out}: there is no folder '{os.path.dirname(args.out)}'."
        )
    comparison = compare(
        args.runs, sources=tuple(filter(None, args.sources.split(","))), seed=args.seed
    )
    print_comparison(comparison)
    write_page(comparison, args.out)
    print(f"\n{args.out}")
    return 0


def compare(workdirs: Sequence[str], *, sources: Sequence[str] = (), seed: int = 0) -> Comparison:
    """Read the work directories and set their held-out scores against those of the first.

    Runs that differ only in the seed are one group; if that is true of all, each is a group of its own.

    Args:
      sources: whose held-out documents count; empty: all. Where runs differ in whether they read a source, its own would decide the total.
    Raises: UserError for fewer than two work directories, one without config.json or heldout.npz, a source that a run lacks, or no
      document in common.
    """
    if len(workdirs) < 2:
        raise UserError(
            f"compare needs at least two work directories, got {len(workdirs)}: python -m slmjax.compare RUN RUN [...]"
        )
    runs = [
        load_run(workdir, name) for workdir, name in zip(workdirs, _names(workdirs), strict=True)
    ]
    for run in runs:
        if missing := [name for name in sources if name not in run.heldout]:
            raise UserError(
                f"{run.name} has no held-out text '{missing[0]}'.{nearest(missing[0], run.heldout)}"
            )
    paired = pair([{name: run.heldout[name] for name in sources or run.heldout} for run in runs])
    groups = group([run.config for run in runs])
    groups = groups if len(groups) > 1 else [[index] for index in range(len(runs))]
    return Comparison(runs, paired, groups, bootstrap(paired, groups, seed=seed))


def load_run(workdir: str, name: str) -> ComparedRun:
    """Read one work directory. Raises: UserError where it is none, or has no held-out scores."""
    from etils import epath

    folder = epath.Path(work_place(workdir, "RUN"))
    config, scores = folder / "config.json", folder / "heldout.npz"
    records = metrics.read(folder)
    finished = metrics.events(records, "finish")
    if not config.exists():
        if finished:
            raise UserError(f"{workdir} has lost its config.json; {ANEW}.")
        raise UserError(f"{workdir} is not a work directory: it has no config.json.")
    if not scores.exists():
        if _held_out_nothing(records):
            raise UserError(_nothing_held_out(workdir))
        if finished:
            raise UserError(f"{workdir} has lost its heldout.npz; {ANEW}.")
        raise UserError(
            f"{workdir} has no heldout.npz: train it to its first evaluation (eval.every), which scores each held-out document."
        )
    try:
        fields = json.loads(config.read_text("utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("config.json holds no object")
        fields = flatten(as_today(fields))
        heldout = _scores(scores.read_bytes())
    except OSError:
        raise
    except Exception as error:  # a damaged archive raises many kinds
        raise UserError(
            f"{workdir} cannot be read: config.json or heldout.npz is damaged ({first_line(error)})."
        ) from error
    if not heldout:
        raise UserError(_nothing_held_out(workdir))
    return ComparedRun(name, fields, records, heldout)


def _held_out_nothing(records: metrics.Records) -> bool:
    """True where the run recorded its sources and none has held-out documents."""
    events = metrics.events(records, "data")
    sources = events[-1].get("sources", {}) if events else {}
    return bool(sources) and not any(entry.get("heldout_documents") for entry in sources.values())


def _nothing_held_out(workdir: str) -> str:
    return (
        f"{workdir} has no held-out text to compare on: a source of a single document, such as one .txt file, keeps all of it for "
        "training. Cut the file into several, or name a held-out file with data.sources.NAME.heldout=FILE, and train again."
    )


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The config fields in which runs differ: field -> value of each run; None where a run does not have the field."""
    names = sorted(set(itertools.chain.from_iterable(configs)))
    rows = {name: [config.get(name) for config in configs] for name in names}
    return {
        name: row
        for name, row in rows.items()
        if any(json.dumps(value) != json.dumps(row[0]) for value in row)
    }


def group(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Indices of the runs, those of one config together: they differ in `REPETITIONS` only. The first run's is first."""
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        deciding = {name: value for name, value in config.items() if name not in REPETITIONS}
        groups.setdefault(json.dumps(deciding, sort_keys=True), []).append(index)
    return list(groups.values())


def verdicts(comparison: Comparison) -> list[str]:
    """One sentence for each group on how it does against the first, by the interval over all sources compared.

    "Better" and "worse" are said of configs, and only where both have several seeds and all scores are finite.
    """
    labels, groups = comparison.labels, comparison.groups
    bits = bits_per_byte(comparison.paired)
    base = float(np.mean(bits[groups[0]]))
    sentences = []
    for label, members, difference in list(
        zip(labels, groups, comparison.found["total"], strict=True)
    )[1:]:
        broken = [
            comparison.runs[index].name
            for index in [*groups[0], *members]
            if not np.isfinite(bits[index])
        ]
        if broken:
            sentences.append(
                f"{label} and {labels[0]} cannot be told apart: held-out scores of {', '.join(broken)} are not finite numbers."
            )
            continue
        size = f"{abs(difference.value):.4f} bits per byte ({100 * abs(difference.value) / base:.2f} %)"
        interval = f"95 % interval {difference.low:+.4f} to {difference.high:+.4f}"
        if difference.low <= 0 <= difference.high:
            text = f"{label} and {labels[0]} cannot be told apart on these documents: the difference of {size}, {interval}, includes zero."
        elif min(len(groups[0]), len(members)) > 1:
            text = f"{label} is {'better' if difference.value < 0 else 'worse'} than {labels[0]} by {size}, {interval}."
        else:
            text = (
                f"{label} scored {size} {'less' if difference.value < 0 else 'more'} than {labels[0]} on these documents, {interval}. "
                "One seed cannot tell whether that is the config or chance: seed noise is not in the interval."
            )
        sentences.append(text)
    return sentences


def warning(comparison: Comparison) -> str:
    """What to say about configs with one seed; "" where all have several."""
    if len(group([run.config for run in comparison.runs])) == 1:
        return "These runs have one config: what tells them apart is noise from run to run, which is not in the intervals."
    single = [
        comparison.runs[members[0]].name for members in comparison.groups if len(members) == 1
    ]
    if not single:
        return ""
    return (
        f"One seed only: {', '.join(single)}. The interval covers the choice of held-out documents, not the noise from run to run: "
        "another seed of the same config may differ by more. Train each config with three or more --config.seed values and pass all runs."
    )


def print_comparison(comparison: Comparison) -> None:
    """The comparison on the terminal: config differences, bits per byte with intervals, verdicts, warning."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    for title, (head, rows) in {
        "Config": _config_rows(comparison),
        "Held-out bits per byte": _score_rows(comparison),
    }.items():
        if rows:
            table = Table(
                *head,
                title=title,
                title_justify="left",
                title_style="bold",
                box=None,
                pad_edge=False,
            )
            for row in rows:
                table.add_row(*map(Text, row))  # names and values may look like rich's markup
            console.print(table)
            console.print()
    for line in filter(None, [*verdicts(comparison), warning(comparison), _coverage(comparison)]):
        console.print(line)


def write_page(comparison: Comparison, out: str) -> None:
    """The comparison as one self-contained HTML page. Raises: UserError where it cannot be written."""
    from etils import epath

    from slmjax.record import page

    runs, groups = comparison.runs, comparison.groups
    caution = warning(comparison)
    chips = "".join(
        f'<span><i style="background:var(--c{number % 8})"></i>{page.escape(", ".join(runs[index].name for index in members))}</span>'
        for number, members in enumerate(groups)
    )
    method = METHOD + (METHOD_RUNS if any(len(members) > 1 for members in groups) else "")
    scores = page.html_table(*_score_rows(comparison), left=2, strong=range(len(groups)))
    body = [
        page.section(
            "Verdict",
            *(f"<p>{page.escape(sentence)}</p>" for sentence in verdicts(comparison)),
            f'<p class="warn">{page.escape(caution)}</p>' if caution else "",
        ),
        page.section(
            "Held-out bits per byte", scores, page.note(f"{_coverage(comparison)} {method}")
        ),
        page.section(
            "Curves", f'<div class="chips">{chips}</div>', page.figures(*_curves(comparison))
        ),
        page.section(
            "Config",
            page.html_table(*_config_rows(comparison), left=2)
            or "<p>The configs are the same.</p>",
        ),
        page.section("Runs", page.html_table(*_run_rows(comparison))),
    ]
    lead = f"{len(runs)} runs · {comparison.paired.documents:,} held-out documents scored by all"
    place = epath.Path(out)
    if not place.parent.exists() and "://" not in out:
        raise UserError(f"Cannot write {out}: there is no folder '{place.parent}'.")
    try:
        write_atomic(place, page.page(" · ".join(run.name for run in runs), lead, "".join(body)))
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}.") from error


def _coverage(comparison: Comparison) -> str:
    paired = comparison.paired
    size = count(sum(float(lengths.sum()) for lengths in paired.bytes.values()))
    return f"{paired.documents:,} documents ({size} bytes) were scored by all runs; {paired.left_out:,} that some run lacks were left out."


def _score_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """A row for each source and group, the total first: a table that is as wide for any number of groups."""
    rows = []
    for source, found in sorted(comparison.found.items(), key=lambda item: item[0] != "total"):
        bits = bits_per_byte(comparison.paired, source)
        number = (
            comparison.paired.documents
            if source == "total"
            else len(comparison.paired.bytes[source])
        )
        for index, (members, difference) in enumerate(zip(comparison.groups, found, strict=True)):
            cells = (
                [f"{difference.value:+.4f}", f"{difference.low:+.4f} to {difference.high:+.4f}"]
                if index
                else ["", ""]
            )
            cells = cells if np.isfinite(difference.value) else ["-", "-"]
            title, size = ("", "") if index else (source, f"{number:,}")
            rows.append(
                [title, comparison.runs[members[0]].name, size, _spread(bits[members]), *cells]
            )
    return ["source", "run", "documents", "bits per byte", "difference", "95 % interval"], rows


def _config_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """A row for each group: the fields that differ between groups, and of all but the first only what differs from it."""
    firsts = [comparison.runs[members[0]].config for members in comparison.groups]
    rows = []
    for index, (config, members) in enumerate(zip(firsts, comparison.groups, strict=True)):
        fields = differences([firsts[0], config] if index else firsts)
        own = [f"{name} = {_shown(config.get(name))}" for name in fields]
        rows.append([", ".join(comparison.runs[number].name for number in members), "; ".join(own)])
    return ["runs", "config"], rows if differences(firsts) else []


def _run_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = []
    for run in comparison.runs:
        reached = [metrics.series(run.records, name)[1] for name in ("train/tokens", "train/flops")]
        steps = metrics.series(run.records, "train/loss")[0]
        state = "finished" if metrics.events(run.records, "finish") else "not finished"
        cells = [count(values[-1]) if len(values) else "-" for values in reached]
        rows.append([run.name, f"{steps[-1]:,}" if len(steps) else "-", *cells, state])
    return ["run", "step", "tokens", "FLOPs", ""], rows


def _curves(comparison: Comparison) -> list[str]:
    from slmjax.record import figures

    colors = {
        index: number for number, members in enumerate(comparison.groups) for index in members
    }
    drawn = []
    for axis, label in (
        ("train/tokens", "tokens"),
        ("train/flops", "FLOPs"),
        ("seconds", "seconds"),
    ):
        for name, title, unit in CURVES:
            lines = []
            for index, run in enumerate(comparison.runs):
                steps, values = metrics.series(run.records, name)
                x = metrics.along(run.records, steps, axis)
                if len(steps) and x is not None:
                    smoothed = figures.smooth(values) if name == "train/loss" else values
                    lines.append(figures.Line(run.name, x, smoothed, color=colors[index]))
            if lines:
                against = "time" if label == "seconds" else label
                drawn.append(
                    figures.curves(
                        lines, title=f"{title} against {against}", x=label, y=unit, legend=False
                    )
                )
    return drawn


def _scores(data: bytes) -> dict[str, dict[str, np.ndarray]]:
    scores: dict[str, dict[str, np.ndarray]] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for name in arrays.files:
            source, field = name.rsplit("/", 1)
            scores.setdefault(source, {})[field] = arrays[name]
    kinds = {"keys": "u", "nats": "f", "bytes": "iu"}
    scores = {
        source: {field: fields[field] for field in kinds} for source, fields in scores.items()
    }
    for source, fields in scores.items():
        shapes = {array.shape for array in fields.values()}
        typed = all(fields[field].dtype.kind in kind for field, kind in kinds.items())
        if len(shapes) != 1 or len(shapes.pop()) != 1 or not typed:
            raise ValueError(f"the scores of {source} are not columns of numbers")
    return scores


def _names(workdirs: Sequence[str]) -> list[str]:
    """The shortest endings of the paths that tell them apart."""
    full = [workdir if "://" in workdir else os.path.abspath(workdir) for workdir in workdirs]
    paths = [PurePosixPath(path).parts for path in full]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _spread(bits: Float[np.ndarray, "_runs"]) -> str:
    if not np.isfinite(bits).all():
        return "not finite"
    return f"{bits.mean():.4f}" + (f" ± {bits.std(ddof=1):.4f}" if len(bits) > 1 else "")


def _shown(value: Any) -> str:
    text = "-" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


if __name__ == "__main__":
    cli.script(main)
