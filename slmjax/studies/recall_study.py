"""The recall study: small models of each mixer learn recall, copying and induction.

The study has a table: a row for each task and variant (a pattern of mixers). For a row, a model is
trained with each of several learning rates and seeds. Each model is a run of its own, of the task
"recall" (tasks/recall.py), in a folder below the study's work directory.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import jax
import numpy as np
from etils import epath

from slmjax import config as configs
from slmjax.data.recall_rows import parse_puzzle
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.models.pattern import from_config
from slmjax.models.resolve import resolve
from slmjax.parallel import hosts
from slmjax.parallel.compiling import use_compile_cache
from slmjax.parallel.mesh import make_mesh
from slmjax.readable import said_if_long
from slmjax.record import metrics as records
from slmjax.tasks.recall import TEST, VALIDATION
from slmjax.text.files import write_atomic
from slmjax.train import run as training


class Outcome(NamedTuple):
    """The result of a run.

    validation: {step: accuracy on validation rows}.
    test: accuracy on test rows after the last step.
    diverged: why training gave up, "" where it did not. All answers of a run that diverged count as
      wrong.
    """

    validation: dict[int, float]
    test: float
    diverged: str = ""


class StudyStopped(Exception):
    """A run was asked to stop and was saved; `status` is its exit status."""

    def __init__(self, status: int):
        self.status = status


def run_recall(
    config: configs.Config, workdir: str, *, init_from: str = "", command: str = ""
) -> int:
    """Train every variant on every task, and return the exit status.

    Each row is written to study.json once it is complete. A study that was stopped goes on with the
    run in which it was stopped.
    Raises: UserError for invalid settings, and where study.json has rows of other settings.
    """
    if init_from:
        raise UserError("--init_from: the recall study trains its models from the start.")
    study = study_settings(config)
    use_compile_cache()
    hosts.check_devices()
    folder = epath.Path(workdir)
    file = folder / "study.json"
    results = {"command": command, "device": jax.devices()[0].device_kind, "rows": []}
    results |= earlier_results(file, config)
    rows = results["rows"]
    write_atomic(folder / "config.json", configs.to_json(config))
    _write(file, results)  # from now on other settings are refused
    done = {(row["task"], row["variant"]) for row in rows}
    for task, variant in itertools.product(study["tasks"], study["variants"]):
        if (task, variant) in done:
            continue
        pattern = tuple(study["variants"][variant])
        try:
            row = measure_recall(config, study, task, variant, pattern, folder, command)
        except StudyStopped as stopped:
            print("Saved and left as asked; the same command goes on from here.")
            return stopped.status
        rows.append(row)
        _write(file, results)
        accuracy = accuracy_text(row)
        details = f"at {row['rate']:g}, {row['steps']} steps"
        print(f"{task:20} {variant:12} {accuracy}  {details}", flush=True)
    print("\n" + recall_table(rows))
    choice = "at the learning rate that is best on validation rows"
    print(f"\nTest accuracy, mean over {study['seeds']} seeds, {choice}. Rows: {file}")
    return 0


def earlier_results(file: epath.Path, config: configs.Config) -> dict[str, Any]:
    """Return the results in study.json, with the settings and variants of this start added.

    Without the file there are no rows.
    Raises: UserError where the file's rows are of other settings, or cannot be read.
    """
    values = configs.to_dict(config)
    study = values["study"]
    variants = study["variants"]
    # The settings that change what a row holds. Tasks and variants only decide which rows there
    # are, so that a later start may add some.
    row_settings = {name: values[name] for name in ("seed", "train", "model", "precision")}
    for name in study:
        if name not in ("tasks", "variants"):
            row_settings[name] = study[name]
    results: dict[str, Any] = {}
    changed = []  # names of settings, and of variants, that differ from the file's
    if file.exists():
        try:
            results = json.loads(file.read_text())
            earlier = results.get("settings", row_settings)
            changed = [name for name in row_settings if earlier[name] != row_settings[name]]
            # A variant that the file has must keep its pattern.
            earlier_variants = results.get("variants", {})
            for name, pattern in variants.items():
                if earlier_variants.get(name, pattern) != pattern:
                    changed.append(name)
            variants = earlier_variants | variants
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "remove it or use another --workdir"
            raise UserError(f"'{file}' cannot be read ({error!r}); {advice}.") from error
    if changed:
        raise UserError(
            f"'{file}' holds rows of other settings ({', '.join(changed)}); use another --workdir."
        )
    # Written with every row, for the comparison at the next start.
    return {**results, "settings": row_settings, "variants": variants}


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
    config: configs.Config,
    study: Mapping[str, Any],
    task: str,
    variant: str,
    pattern: tuple[str, ...],
    folder: epath.Path,
    command: str = "",
) -> dict[str, Any]:
    """Train a variant on a task, and return the table's row of the two.

    It has the test accuracy of each rate and seed, and of the rate that is best on validation rows.
    Rates are tried in order, up to the first whose mean validation accuracy reaches
    study["enough"].

    Args:
      study: what `study_settings` returns.
      variant, pattern: the variant's name and its pattern of mixers.
      folder: the study's work directory.
    Raises: StudyStopped where a run was asked to stop.
    """
    last_step = config.train.steps
    outcomes: dict[float, list[Outcome]] = {}  # {rate: one outcome for each seed}
    means: dict[float, dict[int, float]] = {}  # {rate: {step: accuracy on validation rows}}
    for rate in map(float, study["rates"]):
        outcomes[rate] = []
        for seed in range(study["seeds"]):
            # quote: a variant's name may hold any character.
            run_folder = f"{quote(variant)}-{rate:g}-{seed}"
            runs_of_task = folder / "runs" / task.replace(":", "-")
            run_name = f"{variant} on {task}, rate {rate:g}, seed {seed}"
            settings = run_config(config, study, task, pattern, rate, seed)
            outcome = outcome_of(settings, runs_of_task / run_folder, run_name, command)
            sentence = outcome.diverged
            if not sentence:
                sentence = f"{outcome.validation[last_step]:.3f} on validation rows"
            print(f"  {run_name}: {sentence}", flush=True)
            outcomes[rate].append(outcome)
        means[rate] = validation_means(outcomes[rate], last_step)
        if means[rate][last_step] >= study["enough"]:
            break
    # Not chosen on test rows, on which the best of several rates would look too good.
    best = max(outcomes, key=lambda rate: means[rate][last_step])
    accuracies = [outcome.test for outcome in outcomes[best]]
    by_rate = {}
    for rate, outcomes_of_rate in outcomes.items():
        by_rate[f"{rate:g}"] = [outcome.test for outcome in outcomes_of_rate]

    puzzle = parse_puzzle(task, study["vocab"])
    model = with_pattern(config, pattern).model
    # The sizes are those of the whole model, so that a mesh of one device is enough to count them.
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    arch, _ = resolve(model, config.precision, mesh, puzzle.vocab)
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


def _steps_until(enough: float, accuracies: Mapping[int, float], last_step: int) -> int:
    """Return the first step with enough accuracy; the last step where there is none.

    Args:
      accuracies: {step: accuracy}, in the order of steps.
    """
    for step, accuracy in accuracies.items():
        if accuracy >= enough:
            return step
    return last_step


def validation_means(outcomes: Sequence[Outcome], last_step: int) -> dict[int, float]:
    """Return {step: accuracy on validation rows, mean over the runs}, also at the last step.

    Steps are in order.
    """
    steps = {last_step}
    for outcome in outcomes:
        steps |= outcome.validation.keys()
    means = {}
    for step in sorted(steps):
        # A run that diverged has no accuracy, which counts as 0.
        accuracies = [outcome.validation.get(step, 0.0) for outcome in outcomes]
        means[step] = float(np.mean(accuracies))
    return means


def outcome_of(config: configs.Config, folder: epath.Path, name: str, command: str) -> Outcome:
    """Return the outcome of a run; train it, or the rest of it, where it has not ended.

    Args:
      config: of the run.
      folder: the run's work directory.
      name: of the run, as a person reads it.
    Raises: StudyStopped where the run was asked to stop.
    """
    steps = config.train.steps
    outcome = recorded_outcome(folder, steps)
    if outcome:
        return outcome
    # What the run prints is dropped: all of it is in its own records and report. The line of
    # said_if_long still reaches the terminal, since `file` is bound before the redirection.
    terminal = functools.partial(print, file=sys.stdout, flush=True)
    with said_if_long(f"training {name}", say=terminal), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = training.run_train(config, str(folder), command=command)
        except UserError:
            # A run that diverges ends with a UserError, too, but its records have an outcome.
            if recorded_outcome(folder, steps) is None:
                raise
            status = 0
    if status:
        raise StudyStopped(status)
    return recorded_outcome(folder, steps)


def recorded_outcome(folder: epath.Path, steps: int) -> Outcome | None:
    """Return the outcome that a run's records hold; None before its end.

    Args:
      steps: of the whole run.
    """
    past = records.read(folder)
    # "stopped" is recorded where training gives up, not after a signal.
    if stopped := records.events(past, "stopped"):
        return Outcome({}, 0.0, f"diverged: {stopped[-1]['reason']}")
    if not any(event["step"] == steps for event in records.events(past, "finish")):
        return None
    return Outcome(_curve(past, VALIDATION), _curve(past, TEST)[steps])


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


def _write(file: epath.Path, results: dict[str, Any]) -> None:
    write_atomic(file, json.dumps(results, indent=1) + "\n")


def _curve(past: records.Records, name: str) -> dict[int, float]:
    """Return {step: value} of a metric in a run's records."""
    steps, values = records.series(past, name)
    return dict(zip(steps.tolist(), values.tolist()))
