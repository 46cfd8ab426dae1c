"""The stage evaluate: what a finished run can do, on sets of questions and texts."""

import dataclasses
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from slmjax.config import Config, EvaluateConfig, to_json
from slmjax.errors import UserError
from slmjax.evals import evaluation_items as sets
from slmjax.evals.contamination import find_contamination
from slmjax.evals.evaluation_items import EvaluationSet, QuestionItem, read_set
from slmjax.evals.evaluation_page import write_evaluation_report, write_items
from slmjax.evals.evaluation_runs import Examined, Measured, examined, planned_set
from slmjax.evals.evaluation_text import contamination_line, figures_line
from slmjax.evals.intervals import share_of
from slmjax.evals.looks import Look, append_look, count_looks, now, parameters_hash, read_looks
from slmjax.evals.question_answers import AnswerSettings, asked_places, drawn_examples
from slmjax.infer.load import load_model
from slmjax.parallel.compiling import use_compile_cache
from slmjax.parallel.mesh import device_kind, make_mesh
from slmjax.readable import duration
from slmjax.text.files import check_writable, write_atomic
from slmjax.text.remote import existing_work_place

JOURNAL = "looks.jsonl"
EXAMPLES_SEED = 0  # of the worked examples, the same for every run
# What a task's saved result must agree on, to be kept by a later start.
Part = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """A set, and how many worked examples stand before each of its questions."""

    of: EvaluationSet
    shots: int

    @property
    def label(self) -> str:
        """Its name in results and file names, such as "gsm8k_test-8-shot"."""
        if self.of.kind == sets.QUESTIONS and self.of.name != sets.TEXTBOOK:
            return f"{self.of.name}-{self.shots}-shot"
        return self.of.name


def run_evaluate(
    config: Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    trust: Sequence[str] = (),
) -> int:
    """Measure the run `init_from` on config.evaluate.tasks, and return the exit status.

    Results are results.json, report.html and items/<task>.html in the work directory. A task whose
    result is there already, of the same parameters, data and settings, is not measured again. Each
    newly seen figure of a test set is noted in looks.jsonl next to the evaluated run.

    Args:
      trust: names of code that the run's checkpoint may import.
    Raises: UserError for a run or set that cannot be read, and for unfit settings.
    """
    settings = config.evaluate
    run_place = evaluated_run(init_from, config.stage)
    check_writable(workdir)
    tasks = read_tasks(settings, config.seed)
    examples = _examples(tasks, settings)
    journal = _journal(run_place, workdir)
    # A damaged journal is better noticed now than after the work.
    looks = read_looks(journal)
    model, run = examined_run(run_place, trust)
    folder = epath.Path(workdir)
    results: dict[str, Any] = {
        "date": now(),
        "command": command,
        "device": jax.local_devices()[0].device_kind,
        "run": run,
        "settings": dataclasses.asdict(settings) | {"seed": config.seed, "chat": model.chat},
        "tasks": {},
    }
    # What cannot be measured is refused before anything is.
    plans = []
    for task in tasks:
        answering = _answering(task, settings, model.chat)
        part = _part_of(task, answering, run, config.seed)
        if task.shots:
            shown = repr(examples[task.shots]).encode()
            part["examples"] = hashlib.sha256(shown).hexdigest()
        kept = _kept_result(_task_file(folder, task), part)
        plan = None
        if kept is None:
            plan = planned_set(model, task.of, examples[task.shots], answering, config.seed)
        plans.append((task, part, kept, plan))
    write_atomic(folder / "config.json", to_json(config))
    for task, part, kept, plan in plans:
        result = kept or _measured_task(task, part, plan, folder)
        results["tasks"][task.label] = result
        print(f"{task.label}: {figures_line(result['figures'])}", flush=True)
        if task.of.is_test:
            look = _look(task, result, run, settings)
            if look not in [dataclasses.replace(seen, date=look.date) for seen in looks]:
                append_look(journal, look)
                looks.append(look)
    results["looks"] = _looks_of(looks, _family(run))
    found = find_contamination(model.loaded, [task.of for task in tasks], folder)
    results["contamination"] = found
    for task in tasks:
        result = results["tasks"][task.label]
        result["contamination"] = _without_copies(task, found, folder, examples[task.shots])
        print(f"{task.label}: {contamination_line(result['contamination'])}", flush=True)
    write_atomic(folder / "results.json", json.dumps(results, indent=1, allow_nan=False))
    print(f"Report: {write_evaluation_report(folder, results)}")
    return 0


def read_tasks(settings: EvaluateConfig, seed: int) -> list[EvaluationTask]:
    """Return the tasks of config.evaluate, with their items.

    Raises: UserError without tasks, for negative or no shots, and as `read_set`.
    """
    names = list(dict.fromkeys([*settings.tasks, *settings.files]))
    if not names:
        raise UserError(
            "config.evaluate.tasks is empty; name sets such as arc_easy,gsm8k_test, or a file of "
            "yours, such as --config.evaluate.files.mine=mine.jsonl."
        )
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(
                f"config.evaluate: '{name}' would be a file's name; use letters, - and _."
            )
    if not settings.shots or min(settings.shots) < 0:
        raise UserError(f"config.evaluate.shots is {settings.shots}; expected such as (0, 8).")
    tasks = []
    for name in names:
        of = read_set(name, settings.files, settings.items, seed)
        depends_on_shots = of.kind == sets.QUESTIONS and name != sets.TEXTBOOK
        for shots in settings.shots if depends_on_shots else (0,):
            tasks.append(EvaluationTask(of, shots))
    return tasks


def evaluated_run(init_from: str, stage: str) -> str:
    """Return the place of the run. Raises: UserError where none, or several, are named."""
    if not init_from:
        raise UserError(
            f"the stage {stage} needs --init_from=DIR, a run's work directory or export."
        )
    if "," in init_from and not epath.Path(init_from).exists():
        raise UserError(f"--init_from={init_from}: the stage {stage} measures one run at a time.")
    return existing_work_place(init_from, "--init_from")


def examined_run(place: str, trust: Sequence[str]) -> tuple[Examined, dict[str, Any]]:
    """Return the model of a run or export, and {"workdir", "step", "parameters", "lineage"}."""
    use_compile_cache()
    loaded = load_model(place, trust=trust)
    device = device_kind(make_mesh({"data": 1}, jax.local_devices()[:1]))
    run = {
        "workdir": place,
        "step": loaded.step,
        "parameters": parameters_hash(loaded.params),
        "lineage": loaded.lineage,
    }
    return examined(loaded, device), run


def _journal(run_place: str, workdir: str) -> Path:
    """Return the journal of looks: next to a local run, else in the local work directory.

    Raises: UserError where both are remote: a journal is locked while it is written.
    """
    if "://" not in run_place:
        return Path(run_place).absolute().parent / JOURNAL
    if "://" not in workdir:
        return Path(workdir) / JOURNAL
    raise UserError(
        f"--workdir={workdir}: the run is remote, too, so no local folder could hold {JOURNAL}, "
        "which counts the looks at test sets; use a local --workdir."
    )


def _examples(
    tasks: Sequence[EvaluationTask], settings: EvaluateConfig
) -> dict[int, list[QuestionItem]]:
    """Return {shots: worked examples}, which are problems of GSM8K's training set."""
    counts = {task.shots for task in tasks if task.shots}
    if not counts:
        return {0: []}
    training = read_set(sets.GSM8K_TRAIN, settings.files, 0, 0).items
    return {0: []} | {shots: drawn_examples(training, shots, EXAMPLES_SEED) for shots in counts}


def _answering(task: EvaluationTask, settings: EvaluateConfig, chat: bool) -> AnswerSettings:
    return AnswerSettings(
        # The textbook's questions are no dialogues; their answers go on from the question.
        chat=chat and task.of.name != sets.TEXTBOOK,
        samples=settings.samples,
        temperature=settings.temperature,
        calculator=settings.calculator,
        max_tokens=settings.max_tokens,
    )


def _part_of(
    task: EvaluationTask, answering: AnswerSettings, run: dict[str, Any], seed: int
) -> Part:
    """Return all that a task's result depends on."""
    of = task.of
    part = {
        "set": of.name,
        "kind": of.kind,
        "path": of.path,
        "sha256": of.sha256,
        "items": len(of.items),
        "total": of.total,
        "seed": seed,
        "parameters": run["parameters"],
    }
    if of.kind == sets.QUESTIONS:
        part |= {"shots": task.shots, **dataclasses.asdict(answering)}
    return part


def _measured_task(
    task: EvaluationTask, part: Part, plan: Callable[[], Measured], folder: epath.Path
) -> Part:
    """Measure a task, write its page of items and its result, and return the result.

    Raises: UserError for a model whose figures are not finite.
    """
    began = time.perf_counter()
    measured = plan()
    seconds = time.perf_counter() - began
    print(f"  {len(task.of.items):,} items in {duration(seconds)}")
    figures = {}
    for name, figure in measured.figures.items():
        if not math.isfinite(figure.value):
            raise UserError(
                f"the task {task.of.name}: {name} is {figure.value}; did the model's training "
                "diverge?"
            )
        figures[name] = figure._asdict()
    result = {"figures": figures, "notes": list(measured.notes), "seconds": seconds}
    saved = {"part": part, "result": result, "items": measured.records}
    write_items(folder / "items" / f"{task.label}.html", task.label, measured.records)
    # Last: where it is there, all of the task is there.
    write_atomic(_task_file(folder, task), json.dumps(saved, allow_nan=False))
    return part | result


def _without_copies(
    task: EvaluationTask,
    found: dict[str, Any],
    folder: epath.Path,
    examples: Sequence[QuestionItem],
) -> Part:
    """Return what is known of a task's items in training text; "sentence" where nothing is.

    Where some are there and others remain, "without" is the share of right items among the others.
    """
    of = task.of
    if of.name in found["not_looked_for"]:
        return {
            "sentence": f"not looked for in the training text: {found['not_looked_for'][of.name]}"
        }
    if of.name not in found["sets"]:
        reasons = " ".join(found["unchecked"])
        return {"sentence": f"could not be looked for in the training text: {reasons}"}
    counts = found["sets"][of.name]
    copied = set(counts["copied"])
    result = {
        "copied": len(copied),
        "undecided": counts["undecided"],
        "items": counts["items"],
        "unchecked": found["unchecked"],
    }
    records = json.loads(_task_file(folder, task).read_text())["items"]
    asked = range(len(of.items))
    if of.kind == sets.QUESTIONS:
        asked = asked_places(of.items, examples)
    pairs = zip(asked, records, strict=True)
    others = [record["right"] for place, record in pairs if place not in copied]
    if copied and others:
        result["without"] = share_of(others)._asdict()
    return result


def _task_file(folder: epath.Path, task: EvaluationTask) -> epath.Path:
    return folder / "tasks" / f"{task.label}.json"


def _kept_result(file: epath.Path, part: Part) -> Part | None:
    """Return the result of an earlier start; None where there is none of the same settings."""
    try:
        saved = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(saved, dict) or saved.get("part") != part:
        return None
    return part | saved["result"]


def _look(
    task: EvaluationTask, result: Part, run: dict[str, Any], settings: EvaluateConfig
) -> Look:
    name, figure = next(iter(result["figures"].items()))
    words = [name]
    if task.of.kind == sets.QUESTIONS:
        words += ["greedy", f"{task.shots}-shot", f"{settings.max_tokens} tokens"]
        words += ["calculator"] * settings.calculator
    if len(task.of.items) < task.of.total:
        words.append(f"{len(task.of.items)} items")
    return Look(
        date=now(),
        run=run["workdir"],
        parameters=run["parameters"],
        family=_family(run),
        set=task.of.name,
        figure=", ".join(words),
        value=figure["value"],
    )


def _family(run: dict[str, Any]) -> str:
    """Return the name of the runs among which one is chosen: those of the same oldest ancestor."""
    return epath.Path(run["lineage"][-1]["workdir"]).name


def _looks_of(looks: Sequence[Look], family: str) -> dict[str, int]:
    """Return {set: looks of a family at it}."""
    counts = count_looks(looks)
    return {of: count for (of, of_family), count in counts.items() if of_family == family}
