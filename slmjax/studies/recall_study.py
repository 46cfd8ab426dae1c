"""The recall study: small models of each mixer learn recall, copying and induction.

The study has a table: a row for each task and variant (a pattern of mixers). For a row, a model is
trained with each of several learning rates and seeds. Each model is a run of its own, of the task
"recall" (tasks/recall.py), in a folder below the study's work directory.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import jax
import numpy as np
from etils import epath

from slmjax import config as configs
from slmjax.data.recall_rows import parse_puzzle
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.models.pattern import from_config
from slmjax.parallel import hosts
from slmjax.parallel.compiling import use_compile_cache
from slmjax.record import metrics as records
from slmjax.studies.study_runs import StudyRun, StudyRuns, StudyStopped, architecture
from slmjax.tasks.recall import TEST, VALIDATION
from slmjax.text.files import write_atomic


def run_recall(
    config: configs.Config, workdir: str, *, init_from: str = "", command: str = ""
) -> int:
    """Train every variant on every task, and return the exit status.

    Rows of the table are written to study.json as they are completed. A study that was stopped goes
    on with the runs that were stopped.
    Raises: UserError for invalid settings, and where the folder has runs of other settings.
    """
    if init_from:
        raise UserError("--init_from: the recall study trains its models from the start.")
    study = study_settings(config)
    use_compile_cache()
    hosts.check_devices()
    folder = epath.Path(workdir)
    runs = StudyRuns(folder, config, identity="", vocab_size=study["vocab"], command=command)
    rows: list[dict] = []
    for task, variant in itertools.product(study["tasks"], study["variants"]):
        try:
            row = measure_recall(config, study, task, variant, runs)
        except StudyStopped as stopped:
            print("Saved and left as asked; the same command goes on from here.")
            return stopped.status
        rows.append(row)
        results = {"command": command, "device": jax.devices()[0].device_kind, "rows": rows}
        write_atomic(folder / "study.json", json.dumps(results, indent=1))
        accuracy = accuracy_text(row)
        details = f"at {row['rate']:g}, {row['steps']} steps"
        print(f"{task:20} {variant:12} {accuracy}  {details}", flush=True)
    print("\n" + recall_table(rows))
    choice = "at the learning rate that is best on validation rows"
    seeds = f"mean over {study['seeds']} seeds"
    print(f"\nTest accuracy, {seeds}, {choice}. Rows: {folder / 'study.json'}")
    return 0


def study_settings(config: configs.Config) -> dict[str, Any]:
    """Return config.study, checked, with every variant's pattern as a list or tuple.

    Raises: UserError for an empty setting, and for a pattern or task that does not parse.
    """
    study = dataclasses.asdict(config.study)
    for name in ("tasks", "variants", "rates"):
        if not study[name]:
            raise UserError(
                f"config.study.{name} is empty; configs/studies/recall.py has an example."
            )
    variants = {}
    for name, pattern in study["variants"].items():
        if isinstance(pattern, str):  # a pattern of one block
            pattern = (pattern,)
        if not isinstance(pattern, list | tuple):
            raise UserError(
                f"config.study.variants.{name} is {pattern!r}; expected a pattern, such as "
                "('gdn', 'attention')."
            )
        # Called only for the error that it raises where the pattern does not parse.
        from_config(with_pattern(config, pattern).model, study["vocab"])
        variants[name] = pattern
    # Likewise for a task's error.
    for task in study["tasks"]:
        parse_puzzle(task, study["vocab"])
    return study | {"variants": variants}


def measure_recall(
    config: configs.Config, study: Mapping[str, Any], task: str, variant: str, runs: StudyRuns
) -> dict[str, Any]:
    """Train a variant on a task, and return the table's row of the two.

    It has the test accuracy of each rate and seed, and of the rate that is best on validation rows.
    Rates are tried in order, up to the first whose mean validation accuracy reaches
    study["enough"].

    Args:
      study: what `study_settings` returns.
      runs: trains the runs, and has the results of those that are trained already.
    Raises: StudyStopped where a run was asked to stop.
    """
    pattern = tuple(study["variants"][variant])
    last_step = config.train.steps
    results: dict[float, list[dict]] = {}  # {rate: one result for each seed}
    means: dict[float, dict[int, float]] = {}  # {rate: {step: accuracy on validation rows}}
    for rate in map(float, study["rates"]):
        seeds = []
        for seed in range(study["seeds"]):
            # quote: a variant's name may hold any character.
            safe_variant = quote(variant, safe="")
            name = f"{task.replace(':', '-')}-{safe_variant}-{rate:g}-{seed}"
            seeds.append(StudyRun(name, run_config(config, study, task, pattern, rate, seed)))
        results[rate] = list(runs.train(seeds, read_accuracies).values())
        means[rate] = validation_means(results[rate], last_step)
        if means[rate][last_step] >= study["enough"]:
            break
    # Not chosen on test rows, on which the best of several rates would look too good.
    best = max(results, key=lambda rate: means[rate][last_step])
    by_rate = {}
    for rate, of_seeds in results.items():
        by_rate[f"{rate:g}"] = [accuracy_on_test(result) for result in of_seeds]
    accuracies = by_rate[f"{best:g}"]

    puzzle = parse_puzzle(task, study["vocab"])
    arch = architecture(with_pattern(config, pattern), puzzle.vocab)
    return {
        "task": task,
        "variant": variant,
        "accuracy": float(np.mean(accuracies)),
        "deviation": float(np.std(accuracies)),
        "rate": best,
        "steps": _steps_until(study["enough"], means[best], last_step),
        "parameters": sizes.parameters(arch).total,
        # Of the decode state after one row.
        "state_bytes": sizes.cache_bytes(arch, puzzle.length),
        "by_rate": by_rate,
    }


def read_accuracies(past: records.Records) -> dict[str, Any]:
    """Return a result's "validation": [[step, accuracy on validation rows], ...]."""
    steps, accuracies = records.series(past, VALIDATION)
    return {"validation": np.column_stack([steps, accuracies]).tolist()}


def accuracy_on_test(result: Mapping[str, Any]) -> float:
    """Return the accuracy on test rows; all answers of a run that diverged count as wrong."""
    return result["metrics"].get(TEST, 0.0)


def _steps_until(enough: float, accuracies: Mapping[int, float], last_step: int) -> int:
    """Return the first step with enough accuracy; the last step where there is none.

    Args:
      accuracies: {step: accuracy}, in the order of steps.
    """
    for step, accuracy in accuracies.items():
        if accuracy >= enough:
            return step
    return last_step


def validation_means(results: Sequence[Mapping], last_step: int) -> dict[int, float]:
    """Return {step: accuracy on validation rows, mean over the runs}, also at the last step.

    Steps are in order.
    """
    curves = []
    for result in results:
        # A run that diverged has no curve.
        curves.append({int(step): value for step, value in result.get("validation", [])})
    steps = {last_step}.union(*curves)
    means = {}
    for step in sorted(steps):
        # A run that diverged has no accuracy, which counts as 0.
        means[step] = float(np.mean([curve.get(step, 0.0) for curve in curves]))
    return means


def run_config(
    config: configs.Config,
    study: Mapping[str, Any],
    task: str,
    pattern: Sequence[str],
    rate: float,
    seed: int,
) -> configs.Config:
    """Return the config of one run of a study.

    Args:
      config: of the study.
      rate: the run's learning rate.
      seed: 0 for the first run; config.seed is added.
    """
    # The options of the task "recall" decide the rows that the run reads.
    options = [f"{name}={study[name]}" for name in ("vocab", "examples", "tested")]
    length = parse_puzzle(task, study["vocab"]).length
    return dataclasses.replace(
        with_pattern(config, pattern),
        stage="train",
        task=" ".join(["recall", f"puzzle={task}", *options]),
        seed=config.seed + seed,
        data=dataclasses.replace(config.data, seq_len=length),
        train=dataclasses.replace(config.train, lr=rate),
        study=configs.StudyConfig(),  # the defaults: a run has no part of the study's settings
    )


def with_pattern(config: configs.Config, pattern: Sequence[str]) -> configs.Config:
    """Return a config with another pattern of mixers."""
    model = dataclasses.replace(config.model, pattern=tuple(pattern))
    return dataclasses.replace(config, model=model)


def accuracy_text(row: Mapping[str, Any]) -> str:
    """Return a row's accuracy, with the deviation over seeds where there are several."""
    accuracy = f"{row['accuracy']:.3f}"
    accuracies = next(iter(row["by_rate"].values()))  # one for each seed, of any rate
    if len(accuracies) == 1:
        return accuracy
    return f"{accuracy} ± {row['deviation']:.3f}"


def recall_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: a line for each variant, a column for each task."""
    # Each name once, in the order of the rows.
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    cells = {(row["variant"], row["task"]): accuracy_text(row) for row in rows}
    table = [["mixer", *tasks], ["---"] * (1 + len(tasks))]
    for variant in variants:
        # "" where the row is not measured yet.
        accuracies = [cells.get((variant, task), "") for task in tasks]
        table.append([variant, *accuracies])
    return "\n".join(f"| {' | '.join(line)} |" for line in table)
