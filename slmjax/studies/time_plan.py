"""What config.train.minutes chooses: settings of the text, a model's size, batch and steps."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from slmjax.config import Config, ModelConfig
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.models.choose_shape import SHAPE, reshape
from slmjax.models.pattern import from_config
from slmjax.parallel.mesh import DeviceKind, device_memory
from slmjax.readable import count, duration
from slmjax.studies.ladder_batches import WARMUP_SHARE, ladder_batch
from slmjax.studies.time_budget import (
    SizeForTime,
    TimeBudget,
    alternatives,
    best_size,
    speeds_between,
)
from slmjax.train.schedule import decay_start
from slmjax.train.transfer import transfer, transfer_lines

# Sizes of the family, in parameters, at which FLOPs are counted. Speeds in between are a power of
# the size.
SMALLEST, LARGEST, APART = 10**5, 10**9, 4
# A step towards a size that has a shape: not every size has one, but one within this factor.
NUDGE, NUDGES = 1.04, 5
# Vocabulary and tokens of a row. A small model's vocabulary must be small, or the embedding is most
# of it. The textbook's documents are short.
ON_ACCELERATOR, SHORT, LONGER = (16_384, 1024), (512, 256), (2048, 256)
LONG_MINUTES = 30  # of training on a CPU, from which on the vocabulary is larger
# Tokens of a step that keep one accelerator busy: at 10M parameters an H200 does 2.3M tokens/s with
# twice as many (configs/10m.py).
BUSY_TOKENS = 32_768
# Activations that the backward pass keeps, in bytes for each layer, channel and token, and the
# share of a device's memory that they may take. At 304M parameters a step with 32,768 tokens takes
# 28 GiB (docs/hardware.md).
ACTIVATION_BYTES, ACTIVATION_SHARE = 36, 0.5
# Float32 parameters, gradients and two moments, and the share of the memory that they may take.
STATE_BYTES, STATE_SHARE = 16, 0.3
# Training is slower than matrix products. On one H200 a token takes as long as its FLOPs and these
# more at 41 % of the peak: 2.3M tokens/s at 10M parameters, 1.36M at 30M, 208k at 304M.
OVERHEAD_FLOPS, UTILISATION = 1.2e8, 0.4
# On a CPU the share grows with the FLOPs of a token, here at a million. Two cores with 270 GFLOP/s
# in products do 26.3k tokens/s at 54k parameters, 11.2k at 197k, 6.9k at 820k and 2.8k at 3.15M.
CPU_UTILISATION, CPU_POWER = 0.066, 0.39
# A larger or smaller model than the one that was timed must be better by this share of the loss:
# its compilation has to be paid again.
WORTHWHILE = 0.01
# Fewest steps of a run: with fewer there is no warmup and decay to speak of.
FEWEST_STEPS = 20
# Share of the time for steps that is left unused, as steps are not all equally fast.
MARGIN = 0.02


class TimedStep(NamedTuple):
    """What was measured with one size.

    parameters: of the model.
    seconds: of a training step.
    tokens: of a step.
    left: seconds for steps, until the run has to evaluate, save and report.
    again: seconds that compiling and measuring another size would take.
    """

    parameters: int
    seconds: float
    tokens: int
    left: float
    again: float


def text_settings(minutes: float, platform: str, *, own_text: bool) -> tuple[int, int]:
    """Return (vocabulary, tokens of a row). They are needed before anything can be measured.

    Args:
      platform: cpu, gpu or tpu.
      own_text: False: the embedded textbook.
    """
    if platform != "cpu" and own_text:
        return ON_ACCELERATOR
    if minutes > LONG_MINUTES:
        return LONGER
    return SHORT


def near_shape(parameters: float, model: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Return the fields of a wide shape with about that many parameters, within 20 %.

    Raises: UserError where there is none: the vocabulary is too large for the size.
    """
    for nudge in range(NUDGES):
        for factor in (NUDGE**nudge, NUDGE**-nudge):
            try:
                return reshape(round(parameters * factor), model, vocab_size, wide=True)
            except UserError as error:
                refusal = error
    raise refusal


def family_flops(
    model: ModelConfig, vocab_size: int, seq_len: int, memory: float | None
) -> dict[int, float]:
    """Return {parameters: training FLOPs of a token} of the family, from the smallest size.

    Sizes are about a factor APART.

    Args:
      memory: bytes of a device, which must hold parameters and optimizer state; None: unbounded.
    Raises: UserError where the vocabulary is too large for all but one size.
    """
    flops = {}
    largest = LARGEST
    if memory is not None:
        largest = min(LARGEST, STATE_SHARE * memory / STATE_BYTES)
    target = float(SMALLEST)
    while target <= largest:
        try:
            shape = near_shape(target, model, vocab_size)
        except UserError:
            # The embedding alone is larger.
            target *= NUDGE**NUDGES
            continue
        arch = from_config(dataclasses.replace(model, **shape), vocab_size)
        size = sizes.parameters(arch).total
        flops[size] = sizes.train_flops_per_token(arch, seq_len)
        target *= APART
    if len(flops) < 2:
        raise UserError(
            f"config.data.vocab_size: with {vocab_size} tokens there are no sizes to choose from."
        )
    return flops


def guessed_speeds(
    flops: Mapping[int, float], flops_per_second: float, platform: str
) -> dict[int, float]:
    """Return {parameters: tokens a second} before anything was timed.

    Args:
      flops: of a token, by parameters.
      flops_per_second: of matrix products, on all devices.
    """
    speeds = {}
    for size, value in flops.items():
        if platform == "cpu":
            share = min(UTILISATION, CPU_UTILISATION * (value / 1e6) ** CPU_POWER)
            speeds[size] = share * flops_per_second / value
        else:
            speeds[size] = UTILISATION * flops_per_second / (value + OVERHEAD_FLOPS)
    return speeds


def measured_speeds(guessed: Mapping[int, float], timed: Sequence[TimedStep]) -> dict[int, float]:
    """Return the guess, corrected to what was measured.

    The correction is a factor: that of the only measured size, or a power of the size between
    two and the nearest one's beyond them.

    Args:
      guessed: {parameters: tokens a second}, of two or more sizes.
      timed: one or more.
    """
    timed = sorted(timed)
    measured = np.array([step.parameters for step in timed], np.float64)
    speeds = np.array([step.tokens / step.seconds for step in timed])
    corrections = np.log(speeds / speeds_between(guessed, measured))
    corrected = {}
    for size, speed in guessed.items():
        correction = np.interp(np.log(size), np.log(measured), corrections)
        corrected[size] = speed * float(np.exp(correction))
    return corrected


def decide_size(
    timed: Sequence[TimedStep],
    guessed: Mapping[int, float],
    unique_tokens: float,
    may_change: bool = True,
) -> tuple[TimeBudget, bool]:
    """Return what sizes make of the time that is left, and whether another one is worth it.

    Args:
      timed: what was measured, the newest last.
      guessed: {parameters: tokens a second}, see `guessed_speeds`.
      unique_tokens: of the text.
      may_change: False: the newest size stays.
    Returns: (the newest size with half and twice as large ones; False), or (the best size with its
      alternatives; True) where it is better by more than WORTHWHILE after the time that changing
      to it takes.
    """
    now = timed[-1]
    speeds = measured_speeds(guessed, timed)
    here = alternatives(now.parameters, now.left, speeds, unique_tokens)
    if may_change and now.left > now.again:
        best = best_size(now.left - now.again, speeds, unique_tokens)
        if best.best.loss < (1 - WORTHWHILE) * here.best.loss:
            return best, True
    return here, False


def sized(
    config: Config,
    parameters: float,
    tokens: float,
    *,
    vocab_size: int,
    device: DeviceKind,
    ways: int,
) -> Config:
    """Return the config with a size's shape and what follows from it: rates, batch, microbatches.

    What config.train.batch and microbatches set stays.

    Args:
      config: its model is the base of `transfer`.
      tokens: of the run, about.
      vocab_size: rows of the embedding.
      ways: devices that split the rows.
    Raises: UserError for a size without a shape.
    """
    config = _with_shape(config, near_shape(parameters, config.model, vocab_size))
    model, train = config.model, config.train
    rows = train.batch or batch_rows_for(tokens, config.data.seq_len, device.platform, ways)
    parts = train.microbatches
    while parts < rows // ways and not _fits(model, rows // (parts * ways), config, device):
        parts *= 2
    if not train.batch:
        # To the next multiple.
        rows = -(-rows // (parts * ways)) * parts * ways
    train = dataclasses.replace(train, batch=rows, microbatches=parts)
    return dataclasses.replace(config, model=model, train=train)


def chosen_again(config: Config, earlier: Config) -> Config:
    """Return a config with the choice of an earlier run, where it leaves something to choose."""
    config = _with_shape(config, {name: getattr(earlier.model, name) for name in SHAPE})
    data, train = config.data, config.train
    data = dataclasses.replace(
        data,
        vocab_size=data.vocab_size or earlier.data.vocab_size,
        seq_len=data.seq_len or earlier.data.seq_len,
    )
    microbatches = train.microbatches
    if microbatches == 1:
        microbatches = earlier.train.microbatches
    train = dataclasses.replace(
        train,
        batch=train.batch or earlier.train.batch,
        microbatches=microbatches,
        warmup=train.warmup or earlier.train.warmup,
        steps=earlier.train.steps,
        chosen=earlier.train.chosen,
    )
    return dataclasses.replace(config, data=data, train=train)


def _with_shape(config: Config, shape: Mapping[str, int]) -> Config:
    """Return the config with another shape, and the rates, scales and decay that follow."""
    base = config.model
    model = dataclasses.replace(base, **shape)
    fields = transfer(base, model, config.train)
    model = dataclasses.replace(model, multipliers=fields["model.multipliers"])
    train = dataclasses.replace(config.train, decay_lr=fields["train.decay_lr"])
    model = dataclasses.replace(model, transfer=transfer_lines(base, model, train))
    return dataclasses.replace(config, model=model, train=train)


def batch_rows_for(tokens: float, seq_len: int, platform: str, ways: int) -> int:
    """Return rows of a batch: the ladder's rule, and at least what keeps accelerators busy.

    Args:
      tokens: of the run.
      ways: devices that split the rows.
    """
    rows = ways
    if tokens > seq_len * ways:
        rows = ladder_batch(tokens, seq_len, multiple=ways).rows
    if platform != "cpu":
        rows = max(rows, ways * math.ceil(BUSY_TOKENS / seq_len))
    return rows


def with_steps(config: Config, steps: int) -> Config:
    """Return the config with that many steps, and the ladder's share of warmup unless it is set.

    Raises: UserError for a warmup that leaves no room.
    """
    train = config.train
    warmup = train.warmup or max(1, round(WARMUP_SHARE * steps))
    decay = train.decay if train.schedule == "wsd" else 0.0
    if warmup > decay_start(steps, decay):
        raise UserError(
            f"config.train.warmup is {warmup}, but config.train.minutes leaves {steps} steps, the "
            f"last {decay:.0%} of them for the decay."
        )
    train = dataclasses.replace(train, steps=steps, warmup=warmup)
    return dataclasses.replace(config, train=train)


def steps_in(timed: TimedStep, minutes: float) -> int:
    """Return the steps that fit. Raises: UserError for fewer than FEWEST_STEPS."""
    steps = math.floor((1 - MARGIN) * timed.left / timed.seconds)
    if steps < FEWEST_STEPS:
        missing = FEWEST_STEPS * timed.seconds / (1 - MARGIN) - timed.left
        # To the next tenth of a minute.
        least = math.ceil(10 * minutes + missing / 6) / 10
        raise UserError(
            f"config.train.minutes is {minutes:g}, too short for this machine: a step of "
            f"{count(timed.parameters)} parameters takes {duration(timed.seconds)}, and "
            f"{duration(max(timed.left, 0))} are left for steps; try {least:g} or more."
        )
    return steps


def chosen_lines(
    config: Config, timed: TimedStep, budget: TimeBudget, given: bool, text: float, done: str
) -> tuple[str, ...]:
    """Return what was measured and chosen, and why; a line's first word is its subject.

    Args:
      config: of the run, with its steps.
      timed: the measurement of its size.
      given: whether the user has set the size.
      text: seconds in which the text was prepared.
      done: when the run will be done, in words.
    """
    train, best = config.train, budget.best
    why = "set by --params"
    if not given:
        why = "the lowest predicted loss, within 1 %"
        if budget.end:
            why += f", of the {budget.end} size there is"
        lowest = min(size.loss for size in budget.rows())
        if lowest < (1 - WORTHWHILE) * best.loss:
            why = "another promises more, but compiling it takes longer than it gains"
    tokens = train.steps * train.batch * config.data.seq_len
    epochs = best.epochs * tokens / best.tokens
    return (
        f"minutes {train.minutes:g} from the command to the report, and {duration(text)} in which "
        f"the text was prepared; done at {done}",
        f"measured {count(timed.tokens / timed.seconds)} tokens/s with {count(timed.parameters)} "
        f"parameters; {duration(timed.left)} are left for steps",
        f"size {count(best.parameters)} parameters and {count(tokens)} tokens "
        f"({epochs:.2g} epochs): {why}",
        f"predicted at equal time, half the size: {_compared(budget.half, best)}; twice: "
        f"{_compared(budget.twice, best)} (Chinchilla's law)",
        f"batch {train.batch} rows of {config.data.seq_len} tokens, {train.steps:,} steps, "
        f"{train.warmup} of warmup: they follow from the tokens",
    )


def _compared(size: SizeForTime, best: SizeForTime) -> str:
    return f"loss {size.loss / best.loss - 1:+.1%} after {count(size.tokens)} tokens"


def _fits(model: ModelConfig, rows: int, config: Config, device: DeviceKind) -> bool:
    """Return whether the activations of a microbatch fit into a device's memory."""
    memory = device_memory(device)
    if memory is None:
        return True
    channels = model.layers * model.width
    return rows * config.data.seq_len * channels * ACTIVATION_BYTES <= ACTIVATION_SHARE * memory
