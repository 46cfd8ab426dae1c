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
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.evals.word_problems import read_problems
from slmjax.reasoning.arms import ARMS
from slmjax.reasoning.probe_scores import (
    ProbeInstance,
    Scores,
    probe_instances,
    run_probe,
    step_counts,
)
from slmjax.reasoning.probe_split import (
    PROBE_TEMPLATES,
    PROBE_VARIANTS,
    read_split,
    templates_by_key,
    without_held_out,
)
from slmjax.reasoning.probe_statistics import (
    LEVEL,
    holm,
    magnitude_match,
    paired_means,
    probe_power,
    sign_flip_test,
)
from slmjax.reasoning.probe_words import column_result, novelties, probe_sentences
from slmjax.reasoning.problem_templates import NumberPool, ProblemTemplate, make_templates
from slmjax.reasoning.simulated_solvers import (
    careless_solver,
    perfect_solver,
    surface_solver,
    unaffected_scores,
)

Row = dict[str, Any]
POWER_ACCURACIES = (0.10, 0.30)
POWER_DROPS = (0.02, 0.03, 0.05)


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
    if arguments.templates < 2 or arguments.variants < 1:
        raise UserError("--templates is at least 2 and --variants at least 1.")
    path = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser()
    path = path / "gsm8k" / "train.jsonl.xz"
    if not path.exists():
        raise UserError(f"{path} is missing; SLMJAX_SHARED names the folder with gsm8k/.")
    problems, faults = read_problems(path)
    templates, reasons = make_templates(problems)
    split = read_split()
    pool = NumberPool(templates)
    trainable = without_held_out(problems, split)
    columns = {
        "held-out": templates_by_key(templates, split.held_out[: arguments.templates]),
        "trained-on": templates_by_key(templates, split.trained_on[: arguments.templates]),
    }
    instances = {}
    for column, chosen in columns.items():
        instances[column] = probe_instances(chosen, pool, variants=arguments.variants)
    solvers = {
        "perfect": perfect_solver,
        "surface": surface_solver(trainable),
        "careless": careless_solver(),
    }
    rows: list[Row] = []
    sets: list[Row] = []
    messages = [
        f"{len(problems)} problems ({faults.total()} faults) give {len(templates)} templates. Left "
        f"out: {_listed(reasons)}.",
        f"{len(split.forbidden)} questions are held out with {len(split.held_out)} templates.",
        _magnitudes(columns["held-out"], instances["held-out"]),
    ]
    for name, solve in solvers.items():
        results = {}
        for column, chosen in columns.items():
            scores = run_probe(instances[column], solve)
            results[column] = column_result(column, scores, step_counts(instances[column]))
            for result in results[column].arms:
                rows.append({"solver": name, "column": column, **result._asdict()})
            kinds = novelties([template.problem for template in chosen], trainable)
            sets += _novelty_rows(name, column, kinds, results[column].p0)
        messages.append(f"{name}:")
        messages += probe_sentences(results["held-out"], results["trained-on"])
    if arguments.null_runs:
        scores = run_probe(instances["held-out"], perfect_solver)
        messages.append(_null_message(scores, arguments.null_runs))
    return {
        "bench": "probe",
        "rows": rows,
        "sets": sets,
        "curve": _power_rows(arguments),
        "messages": messages,
    }


def _novelty_rows(solver: str, column: str, kinds: Sequence[str], p0: Sequence[float]) -> list[Row]:
    rows = []
    for kind in dict.fromkeys(kinds):
        values = [value for value, its_kind in zip(p0, kinds, strict=True) if its_kind == kind]
        rows.append(
            {
                "solver": solver,
                "column": column,
                "novelty": kind,
                "templates": len(values),
                "P0 accuracy": float(np.mean(values)),
            }
        )
    return rows


def _magnitudes(templates: Sequence[ProblemTemplate], instances: Sequence[ProbeInstance]) -> str:
    """Return how the first variants' numbers and answers compare with the originals'."""
    first = [each for each in instances if each.arm == "p0" and each.variant == 0]
    samples: dict[str, tuple[list, list]] = {"numbers": ([], []), "results": ([], [])}
    for instance in first:
        original = templates[instance.template].problem
        for place, problem in enumerate((original, instance.problem)):
            for step in problem.steps:
                samples["numbers"][place].extend(map(float, step.operands))
                samples["results"][place].append(float(step.result))
    facts = []
    for name, (old, new) in samples.items():
        facts.append(f"{name} p = {magnitude_match(np.array(old), np.array(new)):.2f}")
    return f"Kolmogorov-Smirnov, originals against first variants: {', '.join(facts)}."


def _power_rows(arguments: argparse.Namespace) -> list[Row]:
    rows = []
    for accuracy in POWER_ACCURACIES:
        row: Row = {"accuracy": accuracy, "templates x variants": _size(arguments)}
        for drop in POWER_DROPS:
            row[f"drop {100 * drop:.0f} points"] = probe_power(
                accuracy, drop, templates=arguments.templates, variants=arguments.variants
            )
            row[f"drop {100 * drop:.0f} points, Holm"] = probe_power(
                accuracy,
                drop,
                templates=arguments.templates,
                variants=arguments.variants,
                arms=len(ARMS) - 1,
            )
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


def _size(arguments: argparse.Namespace) -> str:
    return f"{arguments.templates} x {arguments.variants}"


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
