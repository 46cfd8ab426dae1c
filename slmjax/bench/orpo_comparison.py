"""Preferences learned by our ORPO and by TRL's, from the same weights, pairs and steps.

python -m slmjax.bench orpo --init_from=runs/sft --work=runs/bench-orpo --part=grid \\
    --config.data.sources="{'pairs': {'path': 'pairs.jsonl', 'kind': 'pairs'}}"

Pairs are split by prompt: 70 % to train on, 10 % (dev) to choose each side's rate, 20 % (test) to
report. --part=grid trains with every rate and writes the two that score best on dev to
WORK/grid.json; --part=final trains every seed with these and scores test. One rate a side needs no
grid. What is finished in --work is kept: the same command goes on where it was stopped. Sources of
running text are only scored: bits per byte, before and after. With them, a rate of ours counts only
if it makes the text at most 2 % worse; TRL's are not judged by it. --text_rows=2 adds two rows of
this text to each of our batches; TRL reads none, as its trainer has no place for it.

--part=split only writes WORK/splits/{train,dev,test}, before there is an SFT run (--init_from is
the base then). The SFT run gets the pairs with weight 0 and the files of test as `heldout`, so that
it reads no dialogue that begins with one of their questions.

AdamW, the schedule and all else of TRL's trainer are its defaults. Seconds are those of the
launcher (it compiles and evaluates too) and of TRL's train().
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slmjax import config as configs
from slmjax.bench.orpo_sides import SIDES, Setup, Sides, TrainingFailed
from slmjax.bench.pair_setting import odds_weight
from slmjax.bench.pair_splits import split_pairs, splits_hash
from slmjax.bench.peers import trl_orpo
from slmjax.bench.preference_table import hits_of, score_rows, subset_scores
from slmjax.data import embedded_text
from slmjax.data.prepare_stage import SEED
from slmjax.errors import UserError
from slmjax.text.files import write_atomic
from slmjax.text.records import PAIRS, Source
from slmjax.text.sources import parse_sources

RECIPE = "configs/orpo.py"
# Most difference of two float32 scorers in the mean log-probability of an answer's tokens.
SCORERS_AGREE = 1e-4
# Most bits per byte of running text after a training, relative to those before.
MOST_FORGOTTEN = 1.02
# Fields of the config that do not decide a result: paths, and what each training sets itself.
FREE_FIELDS = {"": ("seed",), "train": ("lr",), "data": ("cache", "sources")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench orpo`."""
    add = parser.add_argument
    add("--init_from", required=True, help="work directory or export of the SFT run")
    add("--work", required=True, help="folder of splits, runs and scores")
    add(
        "--part",
        choices=("split", "grid", "final", "both"),
        default="both",
        help="split only, choose the rates, score with the chosen ones, or the last two (default)",
    )
    add(
        "--rates",
        type=positive_numbers,
        default="3e-4,1e-3,3e-3",
        help="ours, comma-separated (default: %(default)s)",
    )
    add(
        "--trl_rates",
        type=positive_numbers,
        default="3e-5,1e-4,3e-4",
        help="TRL's, comma-separated (default: %(default)s)",
    )
    add("--seeds", type=int, default=3, help="trainings a side (default: %(default)s)")
    add(
        "--epochs",
        type=float,
        default=0.0,
        help="how often each pair is read; 0: config.train.steps decides (default)",
    )
    add(
        "--text_rows",
        type=int,
        default=0,
        help="rows of running text in each of our batches, next to those of pairs",
    )
    add(
        "--trl_microbatches",
        type=int,
        default=1,
        help="parts of a step's pairs, if TRL lacks memory; its loss is the mean of theirs",
    )


def positive_numbers(text: str) -> list[float]:
    """Return "1e-4,3e-4" as numbers, for argparse."""
    values = [float(part) for part in text.split(",")]
    if not all(0 < value < float("inf") for value in values):
        raise ValueError  # without a message: argparse writes one
    return values


# argparse's message names the type.
positive_numbers.__name__ = "comma-separated list of positive numbers"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Split the pairs, choose the rates, train both sides and compare them.

    Returns: {"rates": the grid, "rows": preferences by subset, "runs": every training of the final
      part, "scores": numbers of the rows (see `subset_scores`; shares are [value, low, high]),
      ...}. A part that was not asked for has no entries. The rows of the part split are its counts.
    Raises: UserError for options out of range, a work folder that belongs to another comparison,
      and where a library is missing.
    """
    if arguments.part == "split":
        work = Path(arguments.work)
        _, pairs, _ = sources_of(arguments.config, work)
        return {"bench": "orpo", "rows": split_rows(split_pairs(pairs, work / "splits"))}
    trl_orpo.check_installed()
    for name in ("seeds", "trl_microbatches"):
        value = getattr(arguments, name)
        if value < 1:
            raise UserError(f"--{name}={value}: expected at least 1.")
    if arguments.text_rows < 0:
        raise UserError(f"--text_rows={arguments.text_rows}: expected 0 or more.")
    if not 0 <= arguments.epochs < float("inf"):
        raise UserError(f"--epochs={arguments.epochs}: expected 0 or more.")
    comparison = SideBySide(arguments)
    if arguments.part != "final":
        comparison.grid()
    if arguments.part != "grid":
        comparison.final()
    return comparison.result


def sources_of(
    config: configs.Config, work: Path
) -> tuple[Sequence[Source], Sequence[Source], Sequence[Source]]:
    """Return the sources as the user named them, those of pairs, and those that are only scored.

    Args:
      work: where the embedded textbook's files are written.
    Raises: UserError where there are no pairs.
    """
    given = parse_sources(config.data.sources)
    sources = embedded_text.with_files(given, work / "textbook", SEED)
    pairs = [source for source in sources if source.kind == PAIRS]
    texts = [source for source in sources if source.kind != PAIRS]
    if not pairs:
        raise UserError("config.data.sources has no source of kind='pairs' to compare on.")
    return given, pairs, texts


def split_rows(counts: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Return a row for each source: its pairs by split, and its bad records."""
    return [{"source": name, **of_source} for name, of_source in counts.items()]


class SideBySide:
    """Both sides on the same pairs, with all state in a work folder.

    Attributes: result, see `run`.
    Raises: UserError where the folder belongs to another comparison.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.options = arguments
        config = arguments.config
        work = Path(arguments.work)
        self.grid_file = work / "grid.json"
        self.messages: list[str] = []
        self.result: dict[str, Any] = {"bench": "orpo", "messages": self.messages}
        given, pairs, texts = sources_of(config, work)
        setup = Setup(
            config=config,
            init_from=arguments.init_from,
            work=work,
            pairs=pairs,
            texts=texts,
            epochs=arguments.epochs,
            odds_weight=odds_weight(config),
            trl_microbatches=arguments.trl_microbatches,
            text_rows=arguments.text_rows,
            trust=arguments.trust,
        )
        self.sides = Sides(setup)
        # Next to those of an earlier command, until it is known that the folder is for them.
        new_splits = work / "splits.new"
        shutil.rmtree(new_splits, ignore_errors=True)
        self.result["splits"] = split_pairs(pairs, new_splits)
        parent = self.sides.identify()
        self.whose = claim_work(setup, given, parent, splits_hash(new_splits))
        shutil.rmtree(setup.splits, ignore_errors=True)
        new_splits.rename(setup.splits)

    def grid(self) -> None:
        """Train with every rate; write the best to the work folder and the rows to the result."""
        self._before("dev")  # first: a wrong scorer would make all else worthless
        rows: list[dict[str, Any]] = []
        chosen = {}
        for side in SIDES:
            side_rows = [self._grid_row(side, rate) for rate in self._rates(side)]
            rows += side_rows
            best = best_row(side, side_rows)
            best["chosen"] = "yes"
            chosen[side] = best["rate"]
            if len(side_rows) > 1 and best in (side_rows[0], side_rows[-1]):
                self.messages.append(
                    f"{side}: {best['rate']:g} is at the end of its grid; a rate beyond it may be "
                    "better"
                )
        self.result["rates"] = rows
        self._describe("dev")
        saved = {"whose": self.whose, "rates": chosen, "rows": rows}
        write_atomic(self.grid_file, saved)

    def final(self) -> None:
        """Train every seed with the chosen rates and compare on test."""
        rates = self._chosen_rates()
        before = self._before("test")
        rows: list[dict[str, Any]] = []
        hits: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
        for seed in range(self.options.seeds):
            for side, rate in rates.items():
                scored = self.sides.train("test", side, rate, seed)
                right = self._hits("test", scored["nats"])
                hits[side].append(right)
                row = {"side": side, "seed": seed, "rate": rate}
                row["test, %"] = 100 * float(right.mean())
                if side == "ours":
                    row["by its own evaluation"] = 100 * scored["own_accuracy"]
                    row["bits per byte before"] = scored["before"]
                    row["after"] = scored["after"]
                row["seconds"] = scored["seconds"]
                rows.append(row)
        heldout = self.sides.setting("test").heldout
        scores = subset_scores(heldout, before, hits["ours"], hits["trl"])
        self.result["rows"] = score_rows(scores)
        self.result["scores"] = scores
        self.result["runs"] = rows
        self.result["chosen_rates"] = rates
        self._describe("test")

    def _grid_row(self, side: str, rate: float) -> dict[str, Any]:
        """Return the row of a training with one rate; it has a "fault" where that failed."""
        row: dict[str, Any] = {"side": side, "rate": rate}
        try:
            scored = self.sides.train("dev", side, rate, seed=0)
        except TrainingFailed as failed:
            row["fault"] = str(failed)
            return row
        right = self._hits("dev", scored["nats"])
        row["dev, %"] = 100 * float(right.mean())
        if scored.get("before"):
            row["text, ratio"] = scored["after"] / scored["before"]
        row["seconds"] = scored["seconds"]
        return row

    def _before(self, split: str) -> np.ndarray:
        """Return the hits of the weights that both sides begin with.

        Raises: RuntimeError where our scorer and the peer's do not agree.
        """
        by_torch, by_jax = self.sides.first_nats(split)
        hits = self._hits(split, by_torch)
        unequal = int((hits != self._hits(split, by_jax)).sum())
        tokens = self.sides.setting(split).heldout.answer_tokens()
        difference = np.abs((by_torch - by_jax) / tokens).max()
        message = (
            f"{split}: both scorers on the same weights differ by at most {difference:.1e} nats a "
            f"token, and in the verdict on {unequal} of {len(tokens)} pairs"
        )
        if not difference <= SCORERS_AGREE:
            raise RuntimeError(f"{message}; at most {SCORERS_AGREE} are rounding.")
        self.messages.append(message)
        scorers = {"difference": float(difference), "other_hits": unequal}
        self.result[f"scorers_{split}"] = scorers
        return hits

    def _hits(self, split: str, nats: np.ndarray) -> np.ndarray:
        """Return which pairs of a split are right."""
        return hits_of(self.sides.setting(split).heldout, nats)

    def _describe(self, split: str) -> None:
        """Add how much both sides have trained on to the result."""
        facts = self.sides.setting(split).facts()
        self.result[split] = facts
        self.messages.append(
            f"{split}: {facts['train_pairs']:,} pairs to train on, {facts['steps']:,} steps of "
            f"{facts['pairs_per_step']:.1f} pairs ({facts['epochs']:.2f} epochs), "
            f"{facts['heldout_pairs']:,} pairs to score"
        )

    def _rates(self, side: str) -> list[float]:
        """Return the rates of a side to try, from low to high."""
        rates = {"ours": self.options.rates, "trl": self.options.trl_rates}
        return sorted(rates[side])

    def _chosen_rates(self) -> dict[str, float]:
        """Return {side: its rate}: the only one, or that of the grid."""
        rates = {side: self._rates(side) for side in SIDES}
        only = {side: given[0] for side, given in rates.items() if len(given) == 1}
        if len(only) == len(SIDES):
            return only
        path = self.grid_file
        if not path.exists():
            advice = "run --part=grid first, or give one rate a side"
            raise UserError(f"there is no '{path}': {advice}.")
        grid = json.loads(path.read_text("utf-8"))
        if grid["whose"] != self.whose:
            raise UserError(f"'{path}' is of another comparison; run --part=grid again.")
        return grid["rates"] | only


def best_row(side: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the rate that scores best on dev; of equal scores the first one.

    Args:
      rows: of a side's grid, from the smallest rate.
    Raises: UserError where no rate trained, or where each costs too much of the running text.
    """
    trained = [row for row in rows if "fault" not in row]
    if not trained:
        raise UserError(f"no rate of {side} trained: {rows[-1]['fault']}")
    kept = [row for row in trained if row.get("text, ratio", 1.0) <= MOST_FORGOTTEN]
    if not kept:
        raise UserError(
            f"every rate of {side} makes running text more than {MOST_FORGOTTEN - 1:.0%} worse; "
            "give smaller ones."
        )
    return max(kept, key=lambda row: row["dev, %"])


def claim_work(setup: Setup, given: Sequence[Source], parent: str, pairs: str) -> str:
    """Return a hash of what decides all results.

    Args:
      given: the sources as the user named them, so that the hash is the same in every work folder.
      parent, pairs: hashes of the weights that both sides begin with, and of the splits.
    Raises: UserError where the work folder is for another comparison.
    """
    settings = configs.to_dict(setup.config)
    for group, fields in FREE_FIELDS.items():
        owner = settings[group] if group else settings
        for field in fields:
            del owner[field]
    texts = [dataclasses.asdict(source) for source in given if source.kind != PAIRS]
    whose = {
        "init_from": parent,
        "pairs": pairs,
        "config": settings,
        "text": texts,
        "epochs": setup.epochs,
        "trl_microbatches": setup.trl_microbatches,
        "text_rows": setup.text_rows,
    }
    content = json.dumps(whose, sort_keys=True)
    path = setup.work / "whose.json"
    if path.exists():
        earlier = json.loads(path.read_text("utf-8"))
        # As JSON gives it back: tuples have become lists.
        own = json.loads(content)
        changed = [name for name in own if own[name] != earlier.get(name)]
        if changed:
            raise UserError(
                f"--work={setup.work} holds a comparison with another {', '.join(changed)}; "
                "give another folder."
            )
    write_atomic(path, content)
    return hashlib.sha256(content.encode()).hexdigest()
