"""The runs of a forecast: rungs of a ladder and the target, which differ in size and seed alone."""

import dataclasses
import math
from collections.abc import Sequence

from slmjax.config import Config, ForecastConfig, TrainConfig
from slmjax.data.prepared import Prepared
from slmjax.errors import UserError
from slmjax.models.architecture import vocab_rows
from slmjax.models.choose_shape import parse_params, reshape
from slmjax.studies.ladder_batches import ladder_batch
from slmjax.studies.study_runs import StudyRun
from slmjax.studies.text_study import domain_tokens, read_in_part
from slmjax.train import schedule
from slmjax.train.transfer import transfer

# The part of the text that is read is this much larger than the tokens that are asked for: which
# documents belong to it is decided by chance, and no document should be read twice.
SPARE = 1.02
# A learning rate below this share of the peak counts as decayed: a cosine ends at a tenth.
DECAYED = 0.11


@dataclasses.dataclass(frozen=True)
class Rung:
    """A size of the ladder, or the target.

    parameters: as asked for; a shape comes near to it.
    config: of its run with seed 0.
    """

    parameters: int
    config: Config


def plan_rungs(
    config: Config, prepared: Prepared, devices: int
) -> tuple[list[tuple[Rung, int]], Rung]:
    """Return the rungs, each with its number of seeds, and the target.

    Every run reads the same part of the text with the same batch and warmup, which follow from the
    tokens. Shape, learning rates and initial values follow from the size.

    Args:
      devices: of this host, over which the rows of a batch can be split.
    Raises: UserError for fewer than three sizes, sizes that are not below the target, a learning
      rate that does not decay, and what `reshape` and `ladder_batch` refuse.
    """
    settings = config.forecast
    sizes = sorted(parse_params(size) for size in settings.sizes)
    target = parse_params(settings.target)
    if len(set(sizes)) < 3 or len(set(sizes)) < len(sizes):
        raise UserError(
            f"config.forecast.sizes is {', '.join(settings.sizes)}; expected three different sizes "
            "or more."
        )
    if sizes[-1] >= target:
        raise UserError(
            f"config.forecast.sizes: {sizes[-1]:,} parameters are not below the target's "
            f"{target:,}."
        )
    if not settings.seeds or min(settings.seeds) < 1:
        raise UserError("config.forecast.seeds: expected one run of each size or more.")
    common = _common_config(config, prepared, devices)
    rungs = []
    for number, size in enumerate(sizes):
        seeds = settings.seeds[min(number, len(settings.seeds) - 1)]
        rungs.append((_rung(common, size, prepared), seeds))
    return rungs, _rung(common, target, prepared)


def rung_runs(rungs: Sequence[tuple[Rung, int]]) -> list[StudyRun]:
    """Return all runs, from the smallest size on."""
    runs = []
    for rung, seeds in rungs:
        for seed in range(seeds):
            config = dataclasses.replace(rung.config, seed=rung.config.seed + seed)
            runs.append(StudyRun(f"{rung.parameters}-{seed}", config))
    return runs


def _common_config(config: Config, prepared: Prepared, devices: int) -> Config:
    """Return what all runs share: the part of the text, the batch, the steps and the warmup."""
    multiple = math.lcm(devices, config.train.microbatches)
    length = ladder_batch(config.forecast.tokens, config.data.seq_len, multiple=multiple)
    train = dataclasses.replace(
        config.train, steps=length.steps, batch=length.rows, warmup=length.warmup
    )
    if not fully_decayed(train):
        raise UserError(
            f"config.train.decay is {train.decay:g}: over {train.steps} steps the learning rate "
            "does not decay, and only decayed runs can be compared; use 0.2."
        )
    tokens = domain_tokens(config, prepared)
    fraction = min(1.0, SPARE * length.tokens(config.data.seq_len) / sum(tokens.values()))
    sources = read_in_part(config.data.sources, list(tokens), fraction)
    return dataclasses.replace(
        config,
        stage="train",
        train=train,
        data=dataclasses.replace(config.data, sources=sources),
        # Its defaults: a run has no part of the study's settings.
        forecast=ForecastConfig(),
    )


def _rung(common: Config, parameters: int, prepared: Prepared) -> Rung:
    """Return the config of a size: its shape, and what transfers from the recipe's own size."""
    rows = vocab_rows(common.model.vocab_size, prepared.tokenizer.vocab_size)
    shape = reshape(parameters, common.model, rows)
    model = dataclasses.replace(common.model, **shape)
    values = {"model": model, "train": common.train}
    for name, value in transfer(common.model, model, common.train).items():
        group, _, field = name.partition(".")
        values[group] = dataclasses.replace(values[group], **{field: value})
    return Rung(parameters, dataclasses.replace(common, **values))


def fully_decayed(train: TrainConfig) -> bool:
    """Return whether the learning rate is at its lowest after the last step."""
    return float(schedule.factor(train, train.steps)) <= DECAYED
