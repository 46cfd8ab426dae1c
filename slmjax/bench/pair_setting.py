"""What our ORPO and a peer share: prepared pairs, steps, pairs a step and the odds weight."""

import dataclasses
from pathlib import Path
from typing import Any

from slmjax import config as configs
from slmjax.bench.pair_splits import token_pairs
from slmjax.config import Config
from slmjax.data.pair_plan import PairPlan
from slmjax.data.prepare import Prepared
from slmjax.data.prepare_stage import plan_settings
from slmjax.errors import UserError
from slmjax.text.records import PAIRS, Source
from slmjax.train.builders import parse_task


class PairSetting:
    """What both sides share for a held-out split: prepared pairs, steps and pairs a step.

    Args:
      data: the config's, with the split held out.
      folder: the work folder; files of TokenPairs go there.
      epochs: 0: config.train.steps decides.
    """

    def __init__(
        self,
        config: Config,
        data: configs.DataConfig,
        prepared: Prepared,
        folder: Path,
        split: str,
        epochs: float,
    ):
        self.prepared, self.folder, self.split = prepared, folder, split
        train, heldout = {}, {}
        for name, shards in prepared.train.items():
            if shards.kind == PAIRS:
                train[name], heldout[name] = shards, prepared.heldout[name]
        splits = folder / "splits"
        self.pairs = token_pairs(train, data.seq_len, splits, "train")
        self.heldout = token_pairs(heldout, data.seq_len, splits, split)
        self.pairs.save(self.pairs_file("train"))
        self.heldout.save(self.pairs_file(split))
        plan = pair_plan(data, config.train, prepared)
        rows = sum(rows.rows_per_epoch for rows in plan.row_plans)
        batch = config.train.batch
        self.steps = max(1, round(epochs * rows / batch)) if epochs else config.train.steps
        # Rows hold different numbers of pairs; each source is read equally often.
        self.pairs_per_step = len(self.pairs.prompts) * batch / rows
        self.epochs = self.steps * batch / rows

    def pairs_file(self, split: str) -> Path:
        """Return the file of the pairs of a split as token ids."""
        return self.folder / "pairs" / f"{self.split}-{split}.npz"

    def facts(self) -> dict[str, Any]:
        """Return how much both sides train on and are scored on."""
        return {
            "train_pairs": len(self.pairs.prompts),
            "heldout_pairs": len(self.heldout.prompts),
            "steps": self.steps,
            "pairs_per_step": self.pairs_per_step,
            "epochs": self.epochs,
        }


def pair_plan(data: configs.DataConfig, train: configs.TrainConfig, prepared: Prepared) -> PairPlan:
    """Return the batches of our run, for the number of its rows."""
    return PairPlan(**plan_settings(data, train, prepared, seed=0, cuts=None))


def odds_weight(config: Config) -> float:
    """Return the odds weight of config.task. Raises: UserError for another task than orpo."""
    name, options = parse_task(config.task)
    if name != "orpo":
        raise UserError(f"config.task is '{name}'; this bench compares 'orpo'.")
    return float(options.get("odds_weight", 0.1))


def scored_only(source: Source) -> dict[str, Any]:
    """Return a source of running text or dialogues as data.sources has it, only to be scored."""
    entry = dataclasses.asdict(source)
    share = entry.pop("heldout_share")
    del entry["name"]
    entry |= {"path": list(source.path), "weight": 0.0, "heldout": list(source.heldout)}
    if share is not None:
        entry["heldout"] = share
    return entry
