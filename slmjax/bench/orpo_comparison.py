"""Preferences learned by our ORPO and by TRL's, from the same weights, pairs and steps.

python -m slmjax.bench orpo --init_from=runs/sft --work=runs/bench-orpo --part=grid \\
    --config.data.sources="{'pairs': {'path': 'pairs.jsonl', 'kind': 'pairs'}}"

Pairs are split by prompt: 70 % to train on, 10 % (dev) to choose each side's rate, 20 % (test) to
report. --part=grid trains with every rate and writes the two that score best on dev to
WORK/grid.json; --part=final trains every seed with these and scores test. One rate a side needs no
grid. What is finished in --work is kept: the same command goes on where it was stopped. Sources of
running text are only scored: bits per byte, before and after.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slmjax import config as configs
from slmjax.bench import shell
from slmjax.bench.pair_setting import PairSetting, odds_weight, scored_only
from slmjax.bench.pair_splits import split_pairs, splits_hash
from slmjax.bench.peers import trl_orpo
from slmjax.bench.preference_table import hits_of, score_rows, subset_scores
from slmjax.config import Config
from slmjax.data import embedded_text
from slmjax.data.prepare_stage import SEED, prepared_text
from slmjax.errors import UserError
from slmjax.text.files import write_atomic
from slmjax.text.records import PAIRS
from slmjax.text.sources import parse_sources

RECIPE = "configs/orpo.py"
SIDES = ("ours", "trl")
OURS = "slmjax.bench.orpo_ours"
PEER = "slmjax.bench.peers.trl_orpo"
GRID = "grid.json"  # in the work folder
# Most difference of two float32 scorers in the mean log-probability of an answer's tokens.
SCORERS_AGREE = 1e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench orpo`."""
    add = parser.add_argument
    add("--init_from", required=True, help="work directory or export of the SFT run")
    add("--work", required=True, help="folder of splits, runs and scores")
    add(
        "--part",
        choices=("grid", "final", "both"),
        default="both",
        help="choose the rates, score with the chosen ones, or both (default)",
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
        default="1e-5,3e-5,1e-4",
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
      part, "scores": numbers of the rows, ...}; a part that was not asked for has no entries.
    Raises: UserError for options out of range, a work folder that belongs to another comparison,
      and where a library is missing.
    """
    trl_orpo.check_installed()
    for name in ("seeds", "trl_microbatches"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}={getattr(arguments, name)}: expected at least 1.")
    if not 0 <= arguments.epochs < float("inf"):
        raise UserError(f"--epochs={arguments.epochs}: expected 0 or more.")
    comparison = SideBySide(arguments)
    result: dict[str, Any] = {"bench": "orpo", "messages": comparison.messages}
    if arguments.part != "final":
        result["rates"] = comparison.grid()
    if arguments.part != "grid":
        result |= comparison.final()
    result |= comparison.facts
    return result


class SideBySide:
    """Both sides on the same pairs, with all state in a work folder.

    Attributes:
      facts: for the result.
      messages: sentences for the reader.
    Raises: UserError where the folder belongs to another comparison.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.options = arguments
        self.work = Path(arguments.work)
        self.messages: list[str] = []
        self.facts: dict[str, Any] = {}
        self.odds_weight = odds_weight(arguments.config)
        sources = embedded_text.with_files(
            parse_sources(arguments.config.data.sources), self.work / "textbook", SEED
        )
        self.pair_sources = [source for source in sources if source.kind == PAIRS]
        self.text_sources = [source for source in sources if source.kind != PAIRS]
        if not self.pair_sources:
            raise UserError("config.data.sources has no source of kind='pairs' to compare on.")
        self.splits = self.work / "splits"
        self.facts["splits"] = split_pairs(self.pair_sources, self.splits)
        identity = _ask(OURS, {"do": "identify", "init_from": arguments.init_from})
        self.whose = self._claim(identity["hash"], splits_hash(self.splits))
        # Of each held-out split: its config, and what `_prepared_split` returns.
        self._ready: dict[str, tuple[Config, PairSetting]] = {}

    def grid(self) -> list[dict[str, Any]]:
        """Train with every rate, write the best to the work folder and return the table's rows."""
        self._before("dev")  # first: a wrong scorer would make all else worthless
        rows, chosen = [], {}
        for side in SIDES:
            best = -1.0
            for rate in self._rates(side):
                row: dict[str, Any] = {"side": side, "rate": rate}
                rows.append(row)
                try:
                    scored = self._train("dev", side, rate, seed=0)
                except TrainingFailed as failed:
                    row["fault"] = str(failed)
                    continue
                accuracy = float(self._hits("dev", scored).mean())
                row |= {"dev, %": 100 * accuracy, "seconds": scored["seconds"]}
                # Of equal rates the smaller one, which comes first.
                if accuracy > best:
                    best, chosen[side] = accuracy, rate
            if side not in chosen:
                raise UserError(f"no rate of {side} trained: {row['fault']}.")
            rates = self._rates(side)
            if len(rates) > 1 and chosen[side] in (rates[0], rates[-1]):
                self.messages.append(
                    f"{side}: {chosen[side]:g} is at the end of its grid; a rate beyond it may be "
                    "better"
                )
        for row in rows:
            row["chosen"] = "yes" if row["rate"] == chosen[row["side"]] else ""
        write_atomic(self.work / GRID, {"whose": self.whose, "rates": chosen, "rows": rows})
        return rows

    def final(self) -> dict[str, Any]:
        """Train every seed with the chosen rates and compare on test."""
        rates = self._chosen_rates()
        before = self._hits("test", self._before("test"))
        runs, hits = [], {side: [] for side in SIDES}
        for seed in range(self.options.seeds):
            for side in SIDES:
                scored = self._train("test", side, rates[side], seed)
                hits[side].append(self._hits("test", scored))
                accuracy = 100 * float(hits[side][-1].mean())
                row = {"side": side, "seed": seed, "rate": rates[side], "test, %": accuracy}
                runs.append(row)
                if side == "ours":
                    row["by its own evaluation"] = 100 * scored["own_accuracy"]
                    row["bits per byte before"] = scored["before"]
                    row["after"] = scored["after"]
                row["seconds"] = scored["seconds"]
        _, setting = self._split("test")
        scores = subset_scores(setting.heldout, before, hits["ours"], hits["trl"])
        named = {}
        for name, score in scores.items():
            named[name] = {
                column: value._asdict() if hasattr(value, "_asdict") else value
                for column, value in score.items()
            }
        return {"rows": score_rows(scores), "scores": named, "runs": runs, "chosen_rates": rates}

    def _claim(self, parent: str, splits: str) -> str:
        """Return a hash of what decides all results, and check that the folder is for it."""
        config = self.options.config
        settings = configs.to_dict(config)
        # Paths may differ between machines; the seed and the rate are chosen here.
        for group, field in (("", "seed"), ("train", "lr"), ("data", "cache"), ("data", "sources")):
            del (settings[group] if group else settings)[field]
        text = [dataclasses.asdict(source) for source in self.text_sources]
        whose = {
            "init_from": parent,
            "pairs": splits,
            "config": settings,
            "text": text,
            "epochs": self.options.epochs,
            "trl_microbatches": self.options.trl_microbatches,
        }
        # As JSON gives it back: tuples become lists.
        whose = json.loads(json.dumps(whose, sort_keys=True))
        path = self.work / "whose.json"
        if path.exists():
            earlier = json.loads(path.read_text("utf-8"))
            changed = [name for name in whose if whose[name] != earlier.get(name)]
            if changed:
                raise UserError(
                    f"--work={self.work} holds a comparison with another {', '.join(changed)}; "
                    "give another folder."
                )
        write_atomic(path, whose)
        return hashlib.sha256(json.dumps(whose, sort_keys=True).encode()).hexdigest()

    def _rates(self, side: str) -> list[float]:
        return sorted(self.options.rates if side == "ours" else self.options.trl_rates)

    def _chosen_rates(self) -> dict[str, float]:
        """Return {side: its rate}: the only one, or that of the grid."""
        only = {side: rates[0] for side in SIDES if len(rates := self._rates(side)) == 1}
        if len(only) == len(SIDES):
            return only
        path = self.work / GRID
        if not path.exists():
            raise UserError(
                f"there is no '{path}': run --part=grid first, or give one rate a side."
            )
        grid = json.loads(path.read_text("utf-8"))
        if grid["whose"] != self.whose:
            raise UserError(f"'{path}' is of another comparison; run --part=grid again.")
        return grid["rates"] | only

    def _split(self, split: str) -> tuple[Config, PairSetting]:
        """Return (config of our runs with a split held out, what both sides share)."""
        if split in self._ready:
            return self._ready[split]
        options = self.options
        sources: dict[str, Any] = {}
        for source in self.pair_sources:
            files = {
                name: f"{self.work}/splits/{name}/{source.name}.jsonl" for name in ("train", split)
            }
            sources[source.name] = {
                "path": files["train"],
                "kind": PAIRS,
                "heldout": [files[split]],
            }
        if split == "test":
            for source in self.text_sources:
                sources[source.name] = scored_only(source)
        config = options.config
        cache = config.data.cache or str(self.work / "prepared")
        data = dataclasses.replace(config.data, sources=sources, cache=cache)
        prepared = prepared_text(data, str(self.work / "run"), init_from=options.init_from)
        train = config.train
        setting = PairSetting(config, data, prepared, self.work, split, options.epochs)
        if setting.pairs_per_step < options.trl_microbatches:
            raise UserError(
                f"--trl_microbatches={options.trl_microbatches}: a step has "
                f"{setting.pairs_per_step:.1f} pairs."
            )
        train = dataclasses.replace(train, steps=setting.steps)
        # Scored before the first step and after the last one; nothing is written by the model.
        evals = dataclasses.replace(config.eval, every=setting.steps, samples=0, answers=0)
        checkpoint = dataclasses.replace(config.checkpoint, every=setting.steps)
        config = dataclasses.replace(
            config, data=data, train=train, eval=evals, checkpoint=checkpoint
        )
        write_atomic(self.work / f"{split}.json", configs.to_dict(config))
        self.facts[split] = setting.facts()
        self.messages.append(
            f"{split}: {len(setting.pairs.prompts):,} pairs to train on, {setting.steps:,} steps "
            f"of {setting.pairs_per_step:.1f} pairs ({setting.epochs:.2f} epochs), "
            f"{len(setting.heldout.prompts):,} to score"
        )
        self._ready[split] = config, setting
        return config, setting

    def _before(self, split: str) -> dict[str, Any]:
        """Return the scores of the weights that both sides begin with, by both scorers."""
        config, setting = self._split(split)

        def compute() -> dict[str, Any]:
            weights = self._first_weights()
            question = {"do": "score", "config": configs.to_dict(config)}
            question |= {"init_from": self.options.init_from, "workdir": str(self.work / "run")}
            ours = _ask(OURS, question)
            theirs = _ask_peer(self._peer_question(split, weights))
            return {"nats": theirs["nats"], "by_ours": ours["nats"]}

        scored = self._kept(f"before-{split}", compute)
        tokens = setting.heldout.answer_tokens()
        by_torch, by_jax = np.array(scored["nats"]), np.array(scored["by_ours"])
        difference = float(np.abs((by_torch - by_jax) / tokens).max())
        hits = [hits_of(setting.heldout, nats) for nats in (by_torch, by_jax)]
        unequal = int((hits[0] != hits[1]).sum())
        self.facts[f"scorers_{split}"] = {"difference": difference, "other_hits": unequal}
        message = (
            f"{split}: both scorers on the same weights differ by at most {difference:.1e} nats a "
            f"token, and in the verdict on {unequal} of {len(tokens)} pairs"
        )
        self.messages.append(message)
        if difference > SCORERS_AGREE:
            raise RuntimeError(f"{message}; at most {SCORERS_AGREE} are rounding.")
        return scored

    def _train(self, split: str, side: str, rate: float, seed: int) -> dict[str, Any]:
        """Return {"nats": of the split's pairs, "seconds", ...} of one training.

        Raises: TrainingFailed with the child's last words.
        """
        train = {"ours": self._train_ours, "trl": self._train_trl}[side]
        scored = self._kept(f"{split}-{side}-{rate:g}-{seed}", lambda: train(split, rate, seed))
        shell.print_row({"side": side, "rate": rate, "seed": seed, "seconds": scored["seconds"]})
        return scored

    def _train_ours(self, split: str, rate: float, seed: int) -> dict[str, Any]:
        self._split(split)
        workdir = self.work / "ours" / f"{split}-{rate:g}-{seed}"
        weights = workdir.with_suffix(f"{workdir.suffix}.npz")
        words = [f"--config={self.work / f'{split}.json'}", f"--workdir={workdir}"]
        words += [f"--init_from={self.options.init_from}"]
        words += [f"--config.train.lr={rate!r}", f"--config.seed={seed}"]
        words += [f"--trust={name}" for name in self.options.trust]
        question = {"do": "train", "words": words, "workdir": str(workdir)}
        trained = _ask(OURS, {**question, "weights": str(weights)})
        scored = _ask_peer(self._peer_question(split, weights))
        weights.unlink()  # the run has a checkpoint
        return trained | {"nats": scored["nats"]}

    def _train_trl(self, split: str, rate: float, seed: int) -> dict[str, Any]:
        _, setting = self._split(split)
        how = trl_orpo.Training(
            steps=setting.steps,
            pairs_per_step=setting.pairs_per_step,
            rate=rate,
            seed=seed,
            odds_weight=self.odds_weight,
            microbatches=self.options.trl_microbatches,
        )
        question = self._peer_question(split, self._first_weights())
        question |= {"training": how._asdict(), "pairs": str(setting.pairs_file("train"))}
        question["tokenizer"] = str(setting.prepared.folder / "tokenizer.json")
        return _ask_peer(question)

    def _peer_question(self, split: str, weights: Path) -> dict[str, Any]:
        """Return the question to score a split with weights."""
        config, setting = self._split(split)
        with np.load(weights) as arrays:
            vocab = len(arrays["model.embed_tokens.weight"])
        return {
            "config": configs.to_dict(config),
            "vocab": vocab,
            "weights": str(weights),
            "heldout": str(setting.pairs_file(split)),
        }

    def _first_weights(self) -> Path:
        """Return the file of the weights that both sides begin with."""
        path = self.work / "first.npz"
        if not path.exists():
            # Under another name until it is whole.
            part = self.work / "first.part.npz"
            question = {"do": "export", "workdir": self.options.init_from, "path": str(part)}
            _ask(OURS, question)
            os.replace(part, path)
        return path

    def _hits(self, split: str, scored: Mapping[str, Any]) -> np.ndarray:
        _, setting = self._split(split)
        return hits_of(setting.heldout, np.array(scored["nats"]))

    def _kept(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of that name in the work folder, computed where it is not there."""
        path = self.work / "results" / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text("utf-8"))
        print(f"bench orpo: {name}", file=sys.stderr, flush=True)
        result = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, result)
        return result


class TrainingFailed(UserError):
    """A process of one side failed; its last words are the text."""


def _ask(module: str, question: dict[str, Any], **environment: str) -> dict[str, Any]:
    """Return the answer of another process. Raises: TrainingFailed with its last words."""
    answers, fault = shell.ask(module, question, **environment)
    if fault or not answers:
        raise TrainingFailed(f"{module}: {fault or 'no answer'}")
    return answers[-1]


def _ask_peer(question: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the process with PyTorch."""
    # One GPU, as transformers would split batches over all; JAX leaves it to PyTorch.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    environment = {
        "CUDA_VISIBLE_DEVICES": visible,
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    return _ask(PEER, question, **environment)
