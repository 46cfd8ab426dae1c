"""The forecast study: train a ladder of sizes, forecast a larger model's loss, and score it later.

The forecast is a file, forecast.json, which is written before the target is trained and is not
changed afterwards. Once the target is trained, config.forecast.measured names its work directories,
and the same command compares.
"""

import dataclasses
import datetime
import json
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from slmjax import config as configs
from slmjax.config import Config
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.record import metrics as records
from slmjax.record.comparison import Scores, load_run, read_scores
from slmjax.studies.forecast_figure import compute_rule, forecast_figure
from slmjax.studies.forecast_plan import fully_decayed, plan_rungs, rung_runs
from slmjax.studies.forecast_score import ForecastScore, forecast_table, score_forecast
from slmjax.studies.ladder_runs import LadderRun, ladder_table
from slmjax.studies.scaling_forecast import Forecast, make_forecast, write_forecast
from slmjax.studies.study_results import changed_settings, settings_of
from slmjax.studies.study_runs import StudyRuns, StudyStopped, architecture, run_tokens
from slmjax.studies.text_study import (
    begin_text_study,
    end_text_study,
    heldout_identity,
    scored_sources,
    source_bits,
)
from slmjax.text.files import write_atomic


def run_forecast(config: Config, workdir: str, *, init_from: str = "", command: str = "") -> int:
    """Train the ladder, write the forecast, and score it where the target is trained.

    Returns: the exit status.
    Raises: UserError for invalid settings, and where the folder has runs of other settings.
    """
    config, prepared = begin_text_study(config, workdir, init_from)
    folder = epath.Path(workdir)
    vocab_size = prepared.tokenizer.vocab_size
    rungs, target = plan_rungs(config, prepared, jax.local_device_count())
    basket = scored_sources("config.forecast.basket", config.forecast.basket, prepared)
    # What `measured` says must not change the study's own config.
    unmeasured = dataclasses.replace(config.forecast, measured=())
    study = StudyRuns(
        folder,
        dataclasses.replace(config, forecast=unmeasured),
        identity=prepared.fingerprint,
        vocab_size=vocab_size,
        command=command,
    )
    runs = rung_runs(rungs)
    try:
        results = study.train(runs)
    except StudyStopped as stopped:
        print("Saved and left as asked; the same command goes on from here.")
        return stopped.status
    finished = []
    for run in runs:
        if results[run.name]["diverged"]:
            raise UserError(f"the run '{run.name}' diverged: {results[run.name]['diverged']}")
        scores = read_scores(study.scores_file(run.name).read_bytes())
        finished.append(ladder_run(run.name, run.config, scores, basket, vocab_size))
    parameters = sizes.parameters(architecture(target.config, vocab_size)).total
    forecast = make_forecast(finished, parameters, run_tokens(target.config))
    forecast = write_forecast(folder / "forecast.json", forecast)
    write_atomic(folder / "target.json", configs.to_json(target.config))
    score = None
    if config.forecast.measured:
        score = measured_score(
            config.forecast.measured, target.config, forecast, basket, vocab_size
        )
    tables = [forecast_table(forecast, score), ladder_table(forecast.runs)]
    sentences = [compute_rule(forecast)]
    if score is None:
        place = folder.parent / f"{folder.name}-target"
        sentences.append(
            f"Next: python -m slmjax.launch --config={folder / 'target.json'} --workdir={place}; "
            f"then this command again, with --config.forecast.measured={place}"
        )
    end_text_study(study, tables, sentences, [forecast_figure(forecast, score)])
    return 0


def ladder_run(
    name: str, config: Config, scores: Scores, basket: tuple[str, ...], vocab_size: int
) -> LadderRun:
    """Return what the fits need of a finished run.

    Its loss is the mean over the basket's sources of bits per byte.
    """
    bits, keys = [], []
    for source in basket:
        columns = scores[source]
        bits.append(source_bits(columns))
        keys.append(columns["keys"])
    arch = architecture(config, vocab_size)
    parameters = sizes.parameters(arch)
    return LadderRun(
        name=name,
        parameters=parameters.total,
        matmul_parameters=parameters.matmul,
        flops_per_token=sizes.train_flops_per_token(arch, config.data.seq_len),
        tokens=run_tokens(config),
        seed=config.seed,
        loss=float(np.mean(bits)),
        heldout=heldout_identity(keys),
        fully_decayed=fully_decayed(config.train),
    )


def measured_score(
    workdirs: Sequence[str],
    target: Config,
    forecast: Forecast,
    basket: tuple[str, ...],
    vocab_size: int,
) -> ForecastScore:
    """Return the forecast next to the target's runs.

    Args:
      workdirs: of the target's runs.
      target: the config that they must have, but for the seed.
      basket: sources whose bits per byte are the loss.
    Raises: UserError where a run is not finished or is no run of the target, and what
      `score_forecast` refuses.
    """
    runs, starts = [], []
    for workdir in workdirs:
        run = load_run(workdir, workdir)
        values = configs.from_dict(json.loads((epath.Path(workdir) / "config.json").read_text()))
        own = configs.freeze(values)
        _check_target(workdir, own, target)
        if not any(e["step"] == own.train.steps for e in records.events(run.records, "finish")):
            raise UserError(f"config.forecast.measured: the run '{workdir}' is not finished.")
        runs.append(ladder_run(workdir, own, run.heldout, basket, vocab_size))
        started = records.events(run.records, "start")[0]["time"]
        starts.append(datetime.datetime.fromtimestamp(started, datetime.UTC))
    return score_forecast(forecast, runs, min(starts))


def _check_target(workdir: str, own: Config, target: Config) -> None:
    """Raises: UserError where a run's config is not the target's, but for the seed."""
    expected = settings_of(dataclasses.replace(target, seed=own.seed))
    changed = changed_settings(settings_of(own), expected)
    if changed:
        raise UserError(
            f"config.forecast.measured: the run '{workdir}' is not the target: it differs in "
            f"{', '.join(changed)}."
        )
