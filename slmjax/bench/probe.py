"""The reasoning probe, tried on solvers of known kinds: is it told what they are?

python -m slmjax.bench probe
python -m slmjax.bench probe --templates=50 --variants=4 --null-runs=200

Templates are made from GSM8K train; 200 of them are held out with their neighbours, and 200 others
are trained on. Prints how many templates there are and why problems are left out, whether new
numbers are distributed as the originals are (Kolmogorov-Smirnov), the power of the probe, each
solver's accuracy by arm and column with the verdicts, and how often solvers that no arm affects are
said to change. Each null run has 200 templates and 10 variants, too.

Solvers: "perfect"; "surface" (the numbers of the question in the equations of the nearest training
problem); "careless" (the right equations, each worked out rightly 80 % of the time).

Reads gsm8k/train.jsonl.xz in $SLMJAX_SHARED (../shared/data unless set).
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from slmjax.evals.word_problems import WordProblem
from slmjax.reasoning.probe_columns import (
    HELD_OUT,
    TRAINED_ON,
    Column,
    check_sizes,
    read_probe_problems,
)
from slmjax.reasoning.probe_scores import Scores, run_probe, step_counts
from slmjax.reasoning.probe_split import PROBE_TEMPLATES, PROBE_VARIANTS
from slmjax.reasoning.probe_statistics import (
    LEVEL,
    MATCHED,
    holm,
    matched_magnitudes,
    paired_means,
    power_rows,
    sign_flip_test,
)
from slmjax.reasoning.probe_words import column_result, novelties, probe_sentences
from slmjax.reasoning.simulated_solvers import (
    careless_solver,
    perfect_solver,
    surface_solver,
    unaffected_scores,
)

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench probe`."""
    parser.add_argument("--templates", type=int, default=PROBE_TEMPLATES, help="of each column")
    parser.add_argument("--variants", type=int, default=PROBE_VARIANTS, help="of each template")
    parser.add_argument(
        "--null-runs", type=int, default=2000, help="of solvers that no arm affects"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return {"bench", "rows", "sets", "curve", "messages"}.

    rows: accuracy of every solver by column and arm, with the comparison with the arm's baseline.
    sets: templates by column and novelty, and P0 accuracy on them.
    curve: power by accuracy and drop.
    """
    check_sizes(arguments.templates, arguments.variants)
    of = read_probe_problems()
    power = power_rows(arguments.templates, arguments.variants)  # before anything is scored
    columns = []
    for name in (HELD_OUT, TRAINED_ON):
        columns.append(of.column(name, arguments.templates, arguments.variants))
    held_out = columns[0]
    p_values = matched_magnitudes(held_out.instances)
    messages = [
        f"{len(of.problems)} problems give {len(of.templates)} templates. Left out: "
        f"{_listed(of.left_out)}.",
        f"{len(of.split.forbidden)} questions are held out with {len(of.split.held_out)} "
        "templates.",
        "Kolmogorov-Smirnov, originals against first variants of the held-out templates: p = "
        f"{p_values['operands']:.2f} (operands), {p_values['results']:.2f} (results); magnitudes "
        f"are {'' if min(p_values.values()) > MATCHED else 'NOT '}matched.",
    ]
    rows: list[Row] = []
    sets: list[Row] = []
    trainable = of.trainable
    solvers = {
        "perfect": perfect_solver,
        "surface": surface_solver(trainable),
        "careless": careless_solver(),
    }
    for solver, solve in solvers.items():
        results = []
        for column in columns:
            scores = run_probe(column.instances, solve)
            result = column_result(column.name, scores, step_counts(column.instances))
            for arm in result.arms:
                rows.append({"solver": solver, "column": column.name, **arm._asdict()})
            sets += _novelty_rows(solver, column, trainable, result.p0)
            results.append(result)
        messages += [f"{solver}:", *probe_sentences(*results)]
    if arguments.null_runs:
        scores = run_probe(held_out.instances, perfect_solver)
        messages.append(_null_message(scores, arguments.null_runs))
    return {"bench": "probe", "rows": rows, "sets": sets, "curve": power, "messages": messages}


def _novelty_rows(
    solver: str, column: Column, trainable: Sequence[WordProblem], p0: Sequence[float]
) -> list[Row]:
    """Return a row for each novelty of the column's templates, with its P0 accuracy."""
    values: dict[str, list[float]] = {}
    kinds = novelties([template.problem for template in column.templates], trainable)
    for kind, accuracy in zip(kinds, p0, strict=True):
        values.setdefault(kind, []).append(float(accuracy))
    rows = []
    for kind, accuracies in values.items():
        row = {"solver": solver, "column": column.name, "novelty": kind}
        row |= {"templates": len(accuracies), "P0 accuracy": float(np.mean(accuracies))}
        rows.append(row)
    return rows


def _null_message(scores: Scores, runs: int) -> str:
    """Return the share of false findings among solvers whose accuracy no arm changes."""
    false_arms, tests, false_runs = 0, 0, 0
    for seed in range(runs):
        pairs = paired_means(unaffected_scores(scores, seed))
        p_values = [sign_flip_test(arm - base) for arm, base in pairs.values()]
        false_arms += sum(p < LEVEL for p in p_values)
        tests += len(p_values)
        false_runs += min(holm(p_values)) < LEVEL
    return (
        f"{runs} null runs: {100 * false_arms / tests:.2f} % of {tests} single tests are below "
        f"{LEVEL}, {100 * false_runs / runs:.2f} % of the runs with any arm below it after Holm."
    )


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
