"""Finished runs of a scaling ladder, and how much two seeds of one rung differ."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from slmjax.errors import UserError
from slmjax.readable import count
from slmjax.studies.study_table import StudyTable

UNIT = "bits per byte"


@dataclasses.dataclass(frozen=True)
class LadderRun:
    """One finished training: a rung of the ladder with one seed."""

    name: str
    # All parameters. Without the embedding, the exponents at this size are others: Pearce & Song
    # 2024.
    parameters: int
    # Parameters that a token is multiplied with (`sizes.parameters(arch).matmul`).
    matmul_parameters: int
    # Matmul FLOPs of one token in training (`sizes.train_flops_per_token`).
    flops_per_token: float
    # Tokens trained on.
    tokens: int
    seed: int
    # On the held-out documents, at the end of the run.
    loss: float
    # Identity of the held-out documents, such as a hash of their keys.
    heldout: str
    # Whether the learning rate ended at its lowest: before that the loss is too high.
    fully_decayed: bool
    unit: str = UNIT

    @property
    def flops(self) -> float:
        """Matmul FLOPs of the whole training."""
        return self.flops_per_token * self.tokens


@dataclasses.dataclass(frozen=True)
class SeedNoise:
    """Standard deviation of log loss between seeds, pooled over rungs."""

    deviation: float
    degrees: int  # degrees of freedom: runs minus rungs, over rungs with several seeds


def check_runs(runs: Sequence[LadderRun]) -> None:
    """Refuse runs that cannot be compared with each other.

    Raises: UserError that names the run: not fully decayed, a size or loss that is not positive and
      finite, another unit or other held-out documents than the first run, a seed that occurs twice.
    """
    if not runs:
        raise UserError("There is no finished run to fit: train the ladder first.")
    seen: dict[tuple[int, int, int], str] = {}
    for run in runs:
        if not run.fully_decayed:
            raise UserError(
                f"Run '{run.name}' has not fully decayed its learning rate, so that its loss is too"
                " high: train it to its last step or leave it out."
            )
        _check_positive(run)
        for field in ("unit", "heldout"):
            value, expected = getattr(run, field), getattr(runs[0], field)
            if value != expected:
                raise UserError(
                    f"Run '{run.name}' has {field} '{value}' and run '{runs[0].name}' has "
                    f"'{expected}': score both on the same documents in the same unit."
                )
        key = (run.parameters, run.tokens, run.seed)
        if key in seen:
            raise UserError(
                f"Runs '{seen[key]}' and '{run.name}' have the same parameters, tokens and seed "
                f"{run.seed}: leave one out."
            )
        seen[key] = run.name


def ladder_table(runs: Sequence[LadderRun]) -> StudyTable:
    """Return a table of runs, by size: parameters, matmul FLOPs, tokens and loss."""
    head = ["run", "parameters", "in products", "FLOPs a token", "tokens", "PFLOPs", "seed", "loss"]
    rows = []
    for run in sorted(runs, key=lambda run: (run.parameters, run.tokens, run.seed)):
        sizes = [run.parameters, run.matmul_parameters, run.flops_per_token, run.tokens]
        cells = [run.name, *map(count, sizes), f"{run.flops / 1e15:.3g}"]
        rows.append([*cells, str(run.seed), f"{run.loss:.4f}"])
    return StudyTable("Runs", head, rows)


def _check_positive(run: LadderRun) -> None:
    for field in ("parameters", "matmul_parameters", "flops_per_token", "tokens", "loss"):
        value = getattr(run, field)
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"Run '{run.name}' has {field} {value}; expected a positive number.")


def seed_noise(runs: Sequence[LadderRun]) -> SeedNoise | None:
    """Return the noise of log loss between seeds of one rung, pooled over all rungs.

    It assumes that the relative noise is the same at all sizes. None where no rung has two seeds.
    A rung is what has the same parameters and tokens.
    """
    by_rung: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        by_rung.setdefault((run.parameters, run.tokens), []).append(math.log(run.loss))
    squares, degrees = 0.0, 0
    for losses in by_rung.values():
        squares += len(losses) * float(np.var(losses))
        degrees += len(losses) - 1
    if not degrees:
        return None
    return SeedNoise(math.sqrt(squares / degrees), degrees)
