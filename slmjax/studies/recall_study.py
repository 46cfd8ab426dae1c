"""The recall study: small models of each mixer learn recall, copying and induction.

Each model is a run of its own, of the task "recall" (tasks/recall.py), in a folder below the
study's work directory. A table prints which mixer can do what.
"""

import contextlib
import dataclasses
import functools
import io
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
    diverged: why training gave up, "" where it did not. Its answers then all count as wrong.
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

    Rows are written to study.json one by one. A study that was stopped goes on with the run in
    which it was stopped.
    Raises: UserError for settings that make no sense.
    """
    if init_from:
        raise UserError("--init_from: the recall study trains its models from the start.")
    study = study_settings(config)
    use_compile_cache()
    hosts.check_devices()
    folder = epath.Path(workdir)
    file = folder / "study.json"
    results = {"command": command, "device": jax.devices()[0].device_kind, "rows": []}
    results |= earlier_rows(file, config)
    rows = results["rows"]
    write_atomic(folder / "config.json", configs.to_json(config))
    _write(file, results)  # from now on other settings are refused
    done = {(row["task"], row["variant"]) for row in rows}
    for task in study["tasks"]:
        for name, pattern in study["variants"].items():
            if (task, name) in done:
                continue
            try:
                row = measure_recall(config, study, task, name, tuple(pattern), folder, command)
            except StudyStopped as stopped:
                print("Saved and left as asked; the same command goes on from here.")
                return stopped.status
            rows.append(row)
            _write(file, results)
            details = f"at {row['rate']:g}, {row['steps']} steps"
            print(f"{task:20} {name:12} {accuracy_text(row)}  {details}", flush=True)
    print("\n" + recall_table(rows))
    chosen = "at the learning rate that is best on validation rows"
    print(f"\nTest accuracy, mean over {study['seeds']} seeds, {chosen}. Rows: {file}")
    return 0


def earlier_rows(file: epath.Path, config: configs.Config) -> dict[str, Any]:
    """Return the study's results so far, completed with this config's settings and variants.

    A later start may have more tasks and more variants.
    Raises: UserError where the file's rows are of other settings, or cannot be read.
    """
    values = configs.to_dict(config)
    study = values["study"]
    variants = study["variants"]
    row_settings = {name: values[name] for name in ("seed", "train", "model", "precision")}
    # Tasks and variants may be added later without changing the rows that are there.
    for name in study:
        if name not in ("tasks", "variants"):
            row_settings[name] = study[name]
    results: dict[str, Any] = {}
    changed = []
    if file.exists():
        try:
            results = json.loads(file.read_text())
            earlier = results.get("settings", row_settings)
            changed = [name for name in row_settings if earlier[name] != row_settings[name]]
            known = results.get("variants", {})
            for name, pattern in variants.items():
                if known.get(name, pattern) != pattern:
                    changed.append(name)
            variants = known | variants
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "remove it or use another --workdir"
            raise UserError(f"'{file}' cannot be read ({error!r}); {advice}.") from error
    if changed:
        raise UserError(
            f"'{file}' holds rows of other settings ({', '.join(changed)}); use another --workdir."
        )
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
        if isinstance(pattern, str):
            pattern = (pattern,)
        if not isinstance(pattern, list | tuple):
            raise UserError(
                f"config.study.variants.{name} is {pattern!r}; expected a pattern, such as "
                "('gdn', 'attention')."
            )
        from_config(with_pattern(config, pattern).model, study["vocab"])
        variants[name] = pattern
    for task in study["tasks"]:
        parse_puzzle(task, study["vocab"])
    return study | {"variants": variants}


def measure_recall(
    config: configs.Config,
    study: Mapping[str, Any],
    task: str,
    name: str,
    pattern: tuple[str, ...],
    folder: epath.Path,
    command: str = "",
) -> dict[str, Any]:
    """Return the row of a task and a variant.

    It has the test accuracy of each rate and seed, and of the rate that is best on validation rows.
    Rates are tried in order, up to the first whose mean validation accuracy is study["enough"].
    Raises: StudyStopped where a run was asked to stop.
    """
    last_step = config.train.steps
    tried: dict[float, list[Outcome]] = {}
    means: dict[float, dict[int, float]] = {}  # {rate: {step: accuracy on validation rows}}
    for rate in map(float, study["rates"]):
        tried[rate] = []
        for seed in range(study["seeds"]):
            # A variant's name may hold any character.
            place = folder / "runs" / task.replace(":", "-") / f"{quote(name)}-{rate:g}-{seed}"
            run_name = f"{name} on {task}, rate {rate:g}, seed {seed}"
            settings = run_config(config, study, task, pattern, rate, seed)
            outcome = outcome_of(settings, place, run_name, command)
            sentence = outcome.diverged
            if not sentence:
                sentence = f"{outcome.validation[last_step]:.3f} on validation rows"
            print(f"  {run_name}: {sentence}", flush=True)
            tried[rate].append(outcome)
        means[rate] = validation_means(tried[rate], last_step)
        if means[rate][last_step] >= study["enough"]:
            break
    best = max(tried, key=lambda rate: means[rate][last_step])
    # The first evaluation with enough right answers; the last step where there is none.
    steps = last_step
    for step, accuracy in means[best].items():
        if accuracy >= study["enough"]:
            steps = step
            break
    accuracies = [outcome.test for outcome in tried[best]]
    by_rate = {}
    for rate, outcomes in tried.items():
        by_rate[f"{rate:g}"] = [outcome.test for outcome in outcomes]

    puzzle = parse_puzzle(task, study["vocab"])
    model = with_pattern(config, pattern).model
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    arch, _ = resolve(model, config.precision, mesh, puzzle.vocab)
    return {
        "task": task,
        "variant": name,
        "accuracy": float(np.mean(accuracies)),
        "deviation": float(np.std(accuracies)),
        "rate": best,
        "steps": steps,
        "parameters": sizes.parameters(arch).total,
        "state_bytes": sizes.cache_bytes(arch, puzzle.length),
        "by_rate": by_rate,
    }


def validation_means(outcomes: Sequence[Outcome], last_step: int) -> dict[int, float]:
    """Return {step: accuracy on validation rows, mean over the runs}, also at the last step.

    The answers of a run that diverged all count as wrong.
    """
    steps = {last_step}
    for outcome in outcomes:
        steps |= outcome.validation.keys()
    means = {}
    for step in sorted(steps):
        accuracies = [outcome.validation.get(step, 0.0) for outcome in outcomes]
        means[step] = float(np.mean(accuracies))
    return means


def outcome_of(config: configs.Config, folder: epath.Path, name: str, command: str) -> Outcome:
    """Return the outcome of a config's run; train it, or the rest of it, where it has not ended.

    What the run prints is dropped: all of it is in its own records and report.
    Raises: StudyStopped where it was asked to stop.
    """
    steps = config.train.steps
    outcome = recorded_outcome(folder, steps)
    if outcome:
        return outcome
    # The line of said_if_long must reach the terminal; the run's own output is dropped.
    terminal = functools.partial(print, file=sys.stdout, flush=True)
    with said_if_long(f"training {name}", say=terminal), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = training.run_train(config, str(folder), command=command)
        except UserError:
            if recorded_outcome(folder, steps) is None:  # it is not the model that failed
                raise
            status = 0  # it diverged; its records say how
    if status:
        raise StudyStopped(status)
    return recorded_outcome(folder, steps)


def recorded_outcome(folder: epath.Path, steps: int) -> Outcome | None:
    """Return the outcome that a run's records hold; None before its end."""
    past = records.read(folder)
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
    """Return the config of one run; the options of its task decide its rows."""
    options = [f"{name}={study[name]}" for name in ("vocab", "examples", "tested")]
    length = parse_puzzle(task, study["vocab"]).length
    return dataclasses.replace(
        with_pattern(config, pattern),
        stage="train",
        task=" ".join(["recall", f"puzzle={task}", *options]),
        seed=config.seed + seed,
        data=dataclasses.replace(config.data, seq_len=length),
        train=dataclasses.replace(config.train, lr=rate),
        study=configs.StudyConfig(),
    )


def with_pattern(config: configs.Config, pattern: Sequence[str]) -> configs.Config:
    """Return the config of a variant."""
    model = dataclasses.replace(config.model, pattern=tuple(pattern))
    return dataclasses.replace(config, model=model)


def accuracy_text(row: Mapping[str, Any]) -> str:
    """Return a row's accuracy, with the deviation over seeds where there are several."""
    seeds = next(iter(row["by_rate"].values()))
    accuracy = f"{row['accuracy']:.3f}"
    return f"{accuracy} ± {row['deviation']:.3f}" if len(seeds) > 1 else accuracy


def recall_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: a line for each variant, a column for each task."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    cells = {(row["variant"], row["task"]): accuracy_text(row) for row in rows}
    lines = [["mixer", *tasks], ["---"] * (1 + len(tasks))]
    for variant in variants:
        accuracies = [cells.get((variant, task), "") for task in tasks]
        lines.append([variant, *accuracies])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _write(file: epath.Path, results: dict[str, Any]) -> None:
    write_atomic(file, json.dumps(results, indent=1) + "\n")


def _curve(past: records.Records, name: str) -> dict[int, float]:
    steps, values = records.series(past, name)
    return dict(zip(steps.tolist(), values.tolist()))
