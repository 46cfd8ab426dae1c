"""The stage reasoning: does a model reason about word problems, or match patterns?"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from slmjax.config import Config, to_json
from slmjax.evals.evaluate_stage import evaluated_run, examined_run
from slmjax.evals.evaluation_page import write_items
from slmjax.evals.looks import now
from slmjax.evals.number_answers import number_answer, number_text
from slmjax.readable import duration, percent
from slmjax.reasoning.arms import ARMS
from slmjax.reasoning.model_answers import ProbedModel
from slmjax.reasoning.probe_columns import (
    HELD_OUT,
    TRAINED_ON,
    Column,
    ProbeProblems,
    check_sizes,
    read_probe_problems,
)
from slmjax.reasoning.probe_page import write_probe_report
from slmjax.reasoning.probe_scores import ProbeInstance, probe_scores, step_counts
from slmjax.reasoning.probe_split import worked_answer
from slmjax.reasoning.probe_statistics import (
    LEAST_ACCURACY,
    matched_magnitudes,
    mean_interval,
    paired_means,
    power_rows,
)
from slmjax.reasoning.probe_words import (
    NOVELTIES,
    ColumnResult,
    column_result,
    novelties,
    probe_sentences,
)
from slmjax.reasoning.training_dialogues import trained_on_templates
from slmjax.text.files import check_writable, write_atomic

# These are asked first: where too few are solved, no other arm is judged or asked.
FIRST_ARMS = ("original", "p0")
UNTRAINED = "not trained on"  # what the second column is where nothing says that it was


def run_reasoning(
    config: Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    trust: Sequence[str] = (),
) -> int:
    """Probe the run `init_from`, and return the exit status.

    Results are results.json, report.html and items/ in the work directory. What is in answers/ of
    the same parameters, problems and settings is not asked again.

    Args:
      trust: names of code that the run's checkpoint may import.
    Raises: UserError for a run or problems that cannot be read, and for unfit settings.
    """
    settings = config.reasoning
    check_sizes(settings.templates, settings.variants)
    place = evaluated_run(init_from, config.stage)
    check_writable(workdir)
    of = read_probe_problems(settings.problems)
    columns = [of.column(name, settings.templates, settings.variants) for name in _COLUMNS]
    # Stated before anything is asked.
    power = power_rows(len(columns[0].templates), settings.variants)
    magnitudes = matched_magnitudes(columns[0].instances)
    model, run = examined_run(place, trust)
    if not trained_on_templates(model.loaded, of.split):
        columns[1] = columns[1]._replace(name=UNTRAINED)
    probed = ProbedModel(model, settings.max_tokens)
    probed.check([instance for column in columns for instance in column.instances])
    folder = epath.Path(workdir)
    write_atomic(folder / "config.json", to_json(config))
    part = {
        "parameters": run["parameters"],
        "problems": of.sha256,
        **dataclasses.asdict(settings),
        "chat": model.chat,
    }
    probes = [_Probe(column, probed, folder, part) for column in columns]
    outcomes = [probe.result() for probe in probes]
    sentences = probe_sentences(*outcomes)
    results = {
        "date": now(),
        "command": command,
        "device": jax.local_devices()[0].device_kind,
        "run": run,
        "settings": dataclasses.asdict(settings) | {"chat": model.chat},
        "problems": {
            "file": of.path,
            "sha256": of.sha256,
            "problems": len(of.problems),
            "templates": len(of.templates),
            "left_out": dict(of.left_out.most_common()),
            "magnitudes": magnitudes,
        },
        "power": power,
        "sentences": sentences,
        "columns": {},
    }
    for probe, outcome in zip(probes, outcomes, strict=True):
        results["columns"][outcome.name] = probe.facts(outcome, of)
    write_atomic(folder / "results.json", json.dumps(results, indent=1, allow_nan=False))
    print("\n".join(sentences))
    print(f"Report: {write_probe_report(folder, results)}")
    return 0


_COLUMNS = (HELD_OUT, TRAINED_ON)


class _Probe:
    """One column of the probe, asked of a model.

    Args:
      part: what answers depend on, besides column and arm.
    """

    def __init__(self, column: Column, model: ProbedModel, folder: epath.Path, part: dict):
        self.column, self.model, self.folder, self.part = column, model, folder, part
        self.by_arm: dict[str, list[ProbeInstance]] = {}
        for instance in column.instances:
            self.by_arm.setdefault(instance.arm, []).append(instance)
        self.scores: dict[str, np.ndarray] = {}
        # The nats of right solutions, see `SolutionNats`: a value for each instance.
        self.nats: dict[str, np.ndarray] = {}

    def result(self) -> ColumnResult:
        """Ask the model, and compare the arms that are judged with their baselines."""
        for arm, instances in self.by_arm.items():
            self.nats[arm] = self._nats(arm, instances)
        others = [arm for arm in self.by_arm if arm not in FIRST_ARMS]
        for arm in FIRST_ARMS:
            self._ask(arm)
        if np.nanmean(self.scores["p0"]) >= LEAST_ACCURACY:
            for arm in others:
                self._ask(arm)
        return column_result(self.column.name, self.scores, step_counts(self.column.instances))

    def facts(self, outcome: ColumnResult, of: ProbeProblems) -> dict[str, Any]:
        """Return what results.json has of the column."""
        kinds = novelties([template.problem for template in self.column.templates], of.trainable)
        novelty = []
        for kind in NOVELTIES:
            own = np.array([each == kind for each in kinds])
            if own.any():
                accuracy = float(outcome.p0[own].mean())
                novelty.append({"kind": kind, "templates": int(own.sum()), "p0": accuracy})
        return {
            "templates": len(self.column.templates),
            "p0": float(outcome.p0.mean()),
            "p0_interval": list(outcome.p0_interval),
            "asked": list(self.scores),
            "arms": [_without_nan(arm._asdict()) for arm in outcome.arms],
            "novelty": novelty,
            "nats": self._nats_rows(),
        }

    def _ask(self, arm: str) -> None:
        """Add the scores of an arm, and write its page of items."""
        instances = self.by_arm[arm]
        began = time.perf_counter()
        texts = self._kept(arm, "answers", lambda: self.model.answers(instances))
        numbers = [number_answer(text) for text in texts]
        self.scores[arm] = self._padded(probe_scores(instances, numbers)[arm])
        right = float(np.nanmean(self.scores[arm]))
        seconds = duration(time.perf_counter() - began)
        name = f"{self.column.name} {arm}"
        print(f"{name}: {len(texts):,} questions, {percent(right)} right, {seconds}", flush=True)
        records = [
            self._record(instance, text, number)
            for instance, text, number in zip(instances, texts, numbers, strict=True)
        ]
        file = self.folder / "items" / f"{_slug(self.column.name)}-{arm}.html"
        write_items(file, f"{self.column.name}: {ARMS[arm].meaning}", records)

    def _record(
        self, instance: ProbeInstance, text: str, number: Fraction | None
    ) -> dict[str, Any]:
        right = number == instance.problem.answer
        extracted = "" if number is None else number_text(number)
        key = self.column.templates[instance.template].key
        return {
            "prompt": instance.problem.question,
            "gold": worked_answer(instance.problem),
            "answer": text,
            "verdicts": {"exact": (extracted, right)},
            "right": right,
            "sampled": [],
            "group": f"template {key}, variant {instance.variant + 1}",
        }

    def _nats(self, arm: str, instances: Sequence[ProbeInstance]) -> Float[np.ndarray, " n"]:
        """Return the nats a token of the right solution of each instance."""

        def compute() -> list[float]:
            found = self.model.solution_nats(instances)
            return (found.nats / found.tokens).tolist()

        return np.array(self._kept(arm, "nats", compute))

    def _nats_rows(self) -> list[dict[str, Any]]:
        """Return a row for each arm: nats a token of right solutions, and against its baseline.

        Only solutions of equal text are compared.
        """
        tables = {}
        for arm, values in self.nats.items():
            shape = (len(self.column.templates), self._variants())
            table = np.full(shape, np.nan)
            for instance, value in zip(self.by_arm[arm], values, strict=True):
                table[instance.template, instance.variant] = value
            tables[arm] = table
        pairs = paired_means(tables)
        rows = []
        for arm, table in tables.items():
            row: dict[str, Any] = {"arm": arm, "nats": float(np.nanmean(table))}
            if arm in pairs and self._same_solutions(arm, ARMS[arm].baseline):
                after, before = pairs[arm]
                low, high = mean_interval(after - before)
                row |= {"difference": float((after - before).mean()), "low": low, "high": high}
            rows.append(row)
        return rows

    def _same_solutions(self, arm: str, baseline: str) -> bool:
        solutions = {}
        for each in self.by_arm[baseline]:
            solutions[each.template, each.variant] = each.problem.solution
        return all(
            solutions.get((each.template, each.variant)) == each.problem.solution
            for each in self.by_arm[arm]
        )

    def _variants(self) -> int:
        return 1 + max(instance.variant for instance in self.column.instances)

    def _padded(self, scores: np.ndarray) -> Float[np.ndarray, "templates variants"]:
        """Return scores in the shape that all arms have."""
        padded = np.full((len(self.column.templates), self._variants()), np.nan)
        padded[: scores.shape[0], : scores.shape[1]] = scores
        return padded

    def _kept(self, arm: str, what: str, compute: Callable[[], list]) -> list:
        """Return the values of an arm's file, computed where it is not there or of another part."""
        file = self.folder / "answers" / f"{_slug(self.column.name)}-{arm}-{what}.json"
        # The texts too: a later version of the package may write an arm in other words.
        texts = [[each.problem.question, each.problem.solution] for each in self.by_arm[arm]]
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        part = self.part | {"column": self.column.name, "arm": arm, "texts": digest}
        try:
            saved = json.loads(file.read_text())
            if saved["part"] == part:
                return saved["values"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or damaged: it is computed again
        values = compute()
        write_atomic(file, json.dumps({"part": part, "values": values}, allow_nan=False))
        return values


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with None in place of nan, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and np.isnan(value) else value
        for name, value in row.items()
    }
