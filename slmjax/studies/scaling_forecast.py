"""A forecast of a model's loss: made from a ladder, kept in a file with a hash."""

import dataclasses
import datetime
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from slmjax.errors import UserError
from slmjax.studies.forecast_intervals import (
    LEVEL,
    SIGNIFICANT,
    ForecastInterval,
    forecast_interval,
)
from slmjax.studies.ladder_runs import LadderRun, SeedNoise, check_runs, seed_noise
from slmjax.studies.scaling_law import (
    ScalingLaw,
    fit_joint,
    fit_line,
    fit_power,
    joint_obstacle,
)
from slmjax.text.files import write_atomic

FORMAT = 1
# Names of the fits.
LINE, POWER, JOINT, SAME = "line", "power", "joint", "same"
# Runs of a curve over sizes have the target's tokens, or its tokens per parameter, up to this
# share: steps are whole numbers.
TOKENS_AGREE = 0.02
# Relative difference of two predictions from the same runs on different machines.
ROUNDING = 1e-5
# What the runs of a curve over sizes have in common with the target.
SAME_TOKENS, SAME_RATIO = "tokens", "tokens per parameter"


@dataclasses.dataclass(frozen=True)
class ForecastFit:
    """One law, with what it forecasts at the target."""

    law: ScalingLaw
    prediction: float
    intervals: ForecastInterval | None
    # Why there is no interval, or what to know of it.
    note: str


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Everything that was known and said of the target before it was trained."""

    created: str  # UTC, ISO 8601
    parameters: int  # of the target
    tokens: int
    heldout: str
    unit: str
    # What the runs of line, power and same share with the target: SAME_TOKENS or SAME_RATIO.
    common: str
    runs: tuple[LadderRun, ...]
    noise: SeedNoise | None
    fits: dict[str, ForecastFit]


def make_forecast(
    runs: Sequence[LadderRun],
    parameters: int,
    tokens: int,
    *,
    line_sizes: Sequence[int] = (),
    level: float = LEVEL,
    now: datetime.datetime | None = None,
) -> Forecast:
    """Fit all laws to a ladder and forecast the mean loss of a target.

    The fits: "line" through log loss over log parameters, "power" with an irreducible loss, "joint"
    in parameters and tokens where the runs determine it, and "same": the loss of the largest size.
    A curve over sizes holds along one rule of tokens. So all but "joint" use the runs with the
    target's tokens or, where these are fewer than three sizes, with its tokens per parameter.

    Args:
      parameters, tokens: of the target.
      line_sizes: parameters of the runs of the line; all where empty.
      level: of the intervals.
      now: the time of the forecast; None: the clock's.
    Raises: UserError where runs are refused (`check_runs`), for a target that is one of the runs,
      and for fewer than three sizes with the target's tokens or tokens per parameter.
    """
    check_runs(runs)
    if not (parameters > 0 and tokens > 0):
        raise UserError(
            f"The target has {parameters} parameters and {tokens} tokens; expected 1 or more."
        )
    for run in runs:
        if (run.parameters, run.tokens) == (parameters, tokens):
            raise UserError(f"Run '{run.name}' is the target itself: nothing is left to forecast.")
    if not 0 < level < 1:
        raise UserError(f"level={level}: expected a share between 0 and 1, such as 0.9.")
    # In one order, so that the same runs are the same forecast.
    runs = sorted(runs, key=lambda run: (run.parameters, run.tokens, run.seed))
    curve_runs, common = runs_of_curve(runs, parameters, tokens)
    noise = seed_noise(runs)
    intervals = functools.partial(
        forecast_interval, noise=noise, parameters=parameters, tokens=tokens, level=level
    )
    of_power = intervals(curve_runs, joint=False)
    fits = {
        LINE: _line(curve_runs, parameters, tokens, line_sizes),
        POWER: _with_intervals(fit_power(curve_runs), parameters, tokens, of_power),
    }
    if not joint_obstacle(runs):
        of_joint = intervals(runs, joint=True)
        fits[JOINT] = _with_intervals(fit_joint(runs, noise), parameters, tokens, of_joint)
    fits[SAME] = _same(curve_runs)
    now = now or datetime.datetime.now(datetime.UTC)
    created = in_utc(now, "now").isoformat(timespec="seconds")
    heldout, unit = runs[0].heldout, runs[0].unit
    return Forecast(created, parameters, tokens, heldout, unit, common, tuple(runs), noise, fits)


def runs_of_curve(
    runs: Sequence[LadderRun], parameters: int, tokens: int
) -> tuple[list[LadderRun], str]:
    """Return the runs whose tokens follow the target's rule, and SAME_TOKENS or SAME_RATIO.

    Raises: UserError where these are fewer than three sizes.
    """
    rules: dict[str, Callable[[LadderRun], float]] = {
        SAME_TOKENS: lambda run: run.tokens / tokens,
        SAME_RATIO: lambda run: run.tokens / run.parameters * parameters / tokens,
    }
    for common, ratio in rules.items():
        chosen = [run for run in runs if abs(ratio(run) - 1) <= TOKENS_AGREE]
        if len({run.parameters for run in chosen}) >= 3:
            return chosen, common
    raise UserError(
        f"A forecast for {parameters:,} parameters and {tokens:,} tokens needs runs of three sizes "
        "with these tokens, or with as many tokens per parameter."
    )


def _line(
    runs: Sequence[LadderRun], parameters: int, tokens: int, sizes: Sequence[int]
) -> ForecastFit:
    chosen = [run for run in runs if not sizes or run.parameters in sizes]
    missing = set(sizes) - {run.parameters for run in chosen}
    if missing:
        raise UserError(f"line_sizes: no run has {min(missing):,} parameters.")
    law = fit_line(chosen)
    note = (
        "No interval: the line has no irreducible loss, so that its error is bias, which the "
        "spread of runs does not show."
    )
    return ForecastFit(law, float(law.loss(parameters, tokens)), None, note)


def _with_intervals(
    law: ScalingLaw, parameters: int, tokens: int, intervals: ForecastInterval | str
) -> ForecastFit:
    """Return a fit with its intervals, or with the sentence why there are none."""
    prediction = float(law.loss(parameters, tokens))
    if isinstance(intervals, str):
        return ForecastFit(law, prediction, None, intervals)
    note = intervals.bound
    low, high = intervals.mean
    if not low <= prediction <= high:
        # Intervals are of least squares, and the joint law is fitted with Huber's loss.
        note += " The forecast is outside the interval: some run is far off the law."
    if intervals.misfit < SIGNIFICANT:
        note += (
            " The runs miss the law by more than seeds differ "
            f"(p = {intervals.misfit:.2g}), so that the intervals are too narrow."
        )
    return ForecastFit(law, prediction, intervals, note.strip())


def _same(runs: Sequence[LadderRun]) -> ForecastFit:
    largest = max(run.parameters for run in runs)
    losses = [run.loss for run in runs if run.parameters == largest]
    loss = float(np.mean(losses))
    note = f"The mean loss of the largest size, {largest:,} parameters: what no scaling would give."
    return ForecastFit(ScalingLaw(loss), loss, None, note)


def write_forecast(path: Path | epath.Path, forecast: Forecast) -> Forecast:
    """Write a forecast and return it; keep the file where it says the same already.

    The file has the SHA-256 of its content in canonical JSON: sorted keys, no spaces.

    Returns: the forecast in the file, whose time of creation is the first one.
    Raises: UserError where the file holds another forecast or was changed.
    """
    if path.exists():
        earlier = read_forecast(path)
        if not _says_the_same(earlier, forecast):
            raise UserError(
                f"'{path}' holds another forecast, and a forecast is not changed once it is made: "
                "write this one to another file."
            )
        return earlier
    content = {"format": FORMAT, **dataclasses.asdict(forecast)}
    # As JSON keeps it: tuples become lists.
    content = json.loads(json.dumps(content, allow_nan=False))
    write_atomic(path, content | {"sha256": content_sha256(content)})
    return forecast


def _says_the_same(first: Forecast, second: Forecast) -> bool:
    """Whether two forecasts have the same runs and target, and fits that agree up to rounding.

    Another machine's linear algebra rounds otherwise.
    """
    inputs = [
        dataclasses.replace(each, created="", noise=None, fits={}) for each in (first, second)
    ]
    if inputs[0] != inputs[1] or list(first.fits) != list(second.fits):
        return False
    for name, fit in first.fits.items():
        other = second.fits[name]
        if not math.isclose(fit.prediction, other.prediction, rel_tol=ROUNDING):
            return False
        levels = [each.intervals.level for each in (fit, other) if each.intervals is not None]
        if len(set(levels)) > 1:
            return False
    return True


def read_forecast(path: Path | epath.Path) -> Forecast:
    """Return the forecast of a file.

    Raises: UserError where it is missing, is no forecast, or was changed after it was written.
    """
    try:
        content = json.loads(path.read_text())
        sha256 = content.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' cannot be read as a forecast ({error!r}).") from error
    if sha256 != content_sha256(content):
        raise UserError(
            f"'{path}' was changed after it was written: its SHA-256 does not match its content."
        )
    if content.pop("format") != FORMAT:
        raise UserError(f"'{path}' has a format that this version of slmjax does not know.")
    return _forecast(content)


def content_sha256(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a forecast's content without its "sha256", in hexadecimal."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _forecast(content: dict[str, Any]) -> Forecast:
    """Return the forecast that `dataclasses.asdict` and JSON have made a dict of."""
    fits = {}
    for name, fit in content["fits"].items():
        intervals = fit["intervals"]
        if intervals is not None:
            pairs = {"mean": tuple(intervals["mean"]), "run": tuple(intervals["run"])}
            intervals = ForecastInterval(**intervals | pairs)
        law = ScalingLaw(**fit["law"])
        fits[name] = ForecastFit(**fit | {"law": law, "intervals": intervals})
    runs = tuple(LadderRun(**run) for run in content["runs"])
    noise = content["noise"]
    if noise is not None:
        noise = SeedNoise(**noise)
    return Forecast(**content | {"fits": fits, "runs": runs, "noise": noise})


def in_utc(time: datetime.datetime, what: str) -> datetime.datetime:
    """Return a time in UTC. Raises: UserError that names it by `what` without a time zone."""
    if time.tzinfo is None:
        raise UserError(f"{what}={time.isoformat()} has no time zone: give the time in UTC.")
    return time.astimezone(datetime.UTC)
