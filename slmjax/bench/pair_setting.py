"""What our ORPO and a peer share: prepared pairs, steps, pairs a step and the odds weight."""

import dataclasses
from pathlib import Path
from typing import Any

from slmjax.bench.pair_splits import token_pairs
from slmjax.config import Config, DataConfig
from slmjax.data.pair_plan import PairPlan
from slmjax.data.prepare import Prepared
from slmjax.data.prepare_stage import plan_settings
from slmjax.errors import UserError
from slmjax.text.records import PAIRS, TEXT
from slmjax.train.builders import parse_task


class PairSetting:
    """Pairs to train on and to score, and how much of them a step reads.

    Args:
      config: its sources are files of `splits`, with the split held out.
      prepared: its text.
      splits: the folder of `split_pairs`.
      split: the one that is scored.
      epochs: how often each pair is read; 0: config.train.steps decides.
      text_rows: rows of running text in each of our batches, next to config.train.batch rows of
        pairs.
    Attributes:
      pairs, heldout: TokenPairs to train on and to score.
      steps, pairs_per_step, epochs: of both sides; pairs a step on average.
      config: of our runs, with these steps. It evaluates before the first and after the last one.
    """

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        *,
        splits: Path,
        split: str,
        epochs: float,
        text_rows: int,
    ):
        self.prepared, self.split = prepared, split
        train, heldout = {}, {}
        for name, shards in prepared.train.items():
            if shards.kind == PAIRS:
                train[name] = shards
                heldout[name] = prepared.heldout[name]
        seq_len, batch = config.data.seq_len, config.train.batch
        self.pairs = token_pairs(train, seq_len, splits, "train")
        self.heldout = token_pairs(heldout, seq_len, splits, split)
        rows_of = _rows_per_epoch(config, prepared)
        rows = sum(rows_of.values())
        self.steps = config.train.steps
        if epochs:
            self.steps = max(1, round(epochs * rows / batch))
        # Rows hold different numbers of pairs; each source is read equally often.
        self.pairs_per_step = len(self.pairs.prompts) * batch / rows
        self.epochs = self.steps * batch / rows
        self.config = dataclasses.replace(
            config,
            data=_with_text(config, prepared, rows_of, text_rows),
            train=dataclasses.replace(config.train, steps=self.steps, batch=batch + text_rows),
            # The model writes nothing: that would take longer than training.
            eval=dataclasses.replace(config.eval, every=self.steps, samples=0, answers=0),
            checkpoint=dataclasses.replace(config.checkpoint, every=self.steps),
        )
        self._files: dict[str, Path] = {}

    def save(self, folder: Path) -> None:
        """Write both TokenPairs to files in a folder."""
        for name, pairs in (("train", self.pairs), (self.split, self.heldout)):
            self._files[name] = folder / f"{name}-with-{self.split}.npz"
            pairs.save(self._files[name])

    def file(self, split: str) -> Path:
        """Return the file of "train" or of the split that is scored."""
        return self._files[split]

    def facts(self) -> dict[str, Any]:
        """Return how much both sides train on and are scored on."""
        return {
            "train_pairs": len(self.pairs.prompts),
            "heldout_pairs": len(self.heldout.prompts),
            "steps": self.steps,
            "pairs_per_step": self.pairs_per_step,
            "epochs": self.epochs,
        }


def odds_weight(config: Config) -> float:
    """Return the odds weight of config.task. Raises: UserError for another task than orpo."""
    name, options = parse_task(config.task)
    if name != "orpo":
        raise UserError(f"config.task is '{name}'; this bench compares 'orpo'.")
    return float(options.get("odds_weight", 0.1))


def _rows_per_epoch(config: Config, prepared: Prepared) -> dict[str, int]:
    """Return the rows of each source of pairs in which our run reads each of its pairs once."""
    settings = plan_settings(config.data, config.train, prepared, seed=config.seed, cuts=None)
    plan = PairPlan(**settings)
    return {
        name: rows.rows_per_epoch for name, rows in zip(plan.train, plan.row_plans, strict=True)
    }


def _with_text(
    config: Config, prepared: Prepared, rows_of: dict[str, int], text_rows: int
) -> DataConfig:
    """Return config.data with weights by which batches have so many rows of running text.

    Pairs are read as often as without the text.

    Args:
      rows_of: {source of pairs: rows of an epoch}.
    Raises: UserError where there is no text to read.
    """
    if not text_rows:
        return config.data
    batch = config.train.batch
    texts = {name: of for name, of in prepared.train.items() if of.kind == TEXT}
    tokens = {name: of.tokens for name, of in texts.items()}
    if not sum(tokens.values()):
        raise UserError(f"--text_rows={text_rows}: data.sources has no running text to read.")
    weights = {}
    for name, rows in rows_of.items():
        weights[name] = batch * rows / sum(rows_of.values()) / (batch + text_rows)
    for name, count in tokens.items():
        weights[name] = text_rows * count / sum(tokens.values()) / (batch + text_rows)
    sources = {}
    for name, source in config.data.sources.items():
        sources[name] = {**source, "weight": weights.get(name, 0.0)}
    return dataclasses.replace(config.data, sources=sources)
