"""A forecast next to what was measured: errors, which of them can be told apart, and a table."""

import dataclasses
import datetime
import math
from collections.abc import Sequence

import numpy as np

from slmjax.errors import UserError
from slmjax.studies.forecast_intervals import ForecastInterval
from slmjax.studies.ladder_runs import LadderRun, SeedNoise, check_runs, seed_noise
from slmjax.studies.scaling_forecast import Forecast, in_utc
from slmjax.studies.study_table import StudyTable


@dataclasses.dataclass(frozen=True)
class ForecastScore:
    """A forecast next to what was measured."""

    measured: float  # mean loss over the target's seeds
    losses: tuple[float, ...]  # of each seed
    # Log of prediction / measured, by fit: 0.01 is a forecast that is 1 % too high.
    errors: dict[str, float]
    # Seed noise of log loss, pooled over the rungs and the target's seeds; None where unknown.
    spread: SeedNoise | None
    # For each two fits: the name of the one with the smaller error, "" where they are not
    # distinguishable, None where the spread is unknown.
    closer: dict[tuple[str, str], str | None]


def score_forecast(
    forecast: Forecast, measured: Sequence[LadderRun], first_step: datetime.datetime
) -> ForecastScore:
    """Compare a forecast with the target's runs, one for each seed.

    Two fits are not distinguishable where their absolute errors differ by less than the seed noise.

    Args:
      first_step: when the first of these runs took its first step, with its time zone.
    Raises: UserError where a run is not the forecast's target (parameters, tokens, held-out
      documents), is refused by `check_runs`, or began before the forecast was made.
    """
    check_runs(measured)
    for run in measured:
        for field in ("parameters", "tokens", "heldout", "unit"):
            value, expected = getattr(run, field), getattr(forecast, field)
            if value != expected:
                raise UserError(
                    f"Run '{run.name}' has {field} {value}, and the forecast is for {expected}: "
                    "it cannot be scored with it."
                )
    created = datetime.datetime.fromisoformat(forecast.created)
    if created > in_utc(first_step, "first_step"):
        raise UserError(
            f"The forecast was made at {forecast.created}, after the target's first step at "
            f"{first_step.isoformat(timespec='seconds')}: it is no forecast."
        )
    losses = tuple(run.loss for run in measured)
    mean = float(np.mean(losses))
    errors = {name: math.log(fit.prediction / mean) for name, fit in forecast.fits.items()}
    spread = seed_noise([*forecast.runs, *measured])
    closer = {}
    names = list(errors)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            closer[first, second] = _closer(errors, first, second, spread)
    return ForecastScore(mean, losses, errors, spread, closer)


def _closer(
    errors: dict[str, float], first: str, second: str, spread: SeedNoise | None
) -> str | None:
    if spread is None:
        return None
    difference = abs(errors[first]) - abs(errors[second])
    if abs(difference) < spread.deviation:
        return ""
    return first if difference < 0 else second


def forecast_table(forecast: Forecast, score: ForecastScore | None = None) -> StudyTable:
    """Return a table of what each fit forecasts, and notes on them.

    With a score: also the errors, and which of them can be told apart.
    """
    head = ["fit", "forecast", "interval of the mean", "interval of one run"]
    if score is not None:
        head += ["measured", "error"]
    rows, notes = [], []
    for name, fit in forecast.fits.items():
        row = [name, f"{fit.prediction:.4f}", "", ""]
        if fit.intervals is not None:
            row[2] = _interval_text(fit.intervals, fit.intervals.mean)
            row[3] = _interval_text(fit.intervals, fit.intervals.run)
        if score is not None:
            error = math.expm1(score.errors[name])
            row += [f"{score.measured:.4f}", f"{100 * error:+.2f} %"]
        rows.append(row)
        if fit.note:
            notes.append(f"{name}: {fit.note}")
    if score is not None:
        notes += _verdicts(score)
    title = f"Forecast for {forecast.parameters:,} parameters and {forecast.tokens:,} tokens"
    return StudyTable(title, head, rows, tuple(notes))


def _interval_text(intervals: ForecastInterval, ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f} ({intervals.level:.0%})"


def _verdicts(score: ForecastScore) -> list[str]:
    """Return lines that say how much seeds differ, and for each two fits which was closer."""
    if score.spread is None:
        return ["Seed spread unknown: no rung has two seeds, so that errors cannot be compared."]
    deviation, degrees = score.spread.deviation, score.spread.degrees
    lines = [f"Seed spread: {100 * deviation:.2f} % ({degrees} degrees of freedom)."]
    for (first, second), closer in score.closer.items():
        verdict = f"{closer} is closer" if closer else "not distinguishable"
        lines.append(f"{first} and {second}: {verdict}.")
    return lines
