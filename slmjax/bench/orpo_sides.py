"""The two sides of bench/orpo_comparison.py: each trains and scores in processes of its own."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from slmjax import config as configs
from slmjax.bench import shell
from slmjax.bench.pair_setting import PairSetting
from slmjax.bench.pair_splits import split_file
from slmjax.bench.peers.trl_orpo import Training
from slmjax.config import Config
from slmjax.data.prepare_stage import prepared_text
from slmjax.errors import UserError
from slmjax.text.files import write_atomic
from slmjax.text.records import PAIRS, Source

SIDES = ("ours", "trl")
OURS = "slmjax.bench.orpo_ours"
PEER = "slmjax.bench.peers.trl_orpo"

# What a process is asked, and what it answers: as JSON.
Message = dict[str, Any]
Nats = Float[np.ndarray, "pairs 2"]


class TrainingFailed(UserError):
    """The process of one side failed; its last words are the text."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What both sides are given.

    Attributes:
      init_from: work directory or export of the run that both begin with.
      work: folder of all that is written.
      pairs: sources to learn from, in the splits of `splits`.
      texts: sources that are only scored.
      epochs: how often each pair is read; 0: config.train.steps decides.
      trl_microbatches: parts of a step's pairs.
      text_rows: see `PairSetting`.
      trust: see slmjax.launch.
    """

    config: Config
    init_from: str
    work: Path
    pairs: Sequence[Source]
    texts: Sequence[Source]
    epochs: float
    odds_weight: float
    trl_microbatches: int
    text_rows: int
    trust: Sequence[str]

    @property
    def splits(self) -> Path:
        """The folder of `split_pairs`."""
        return self.work / "splits"


class Sides:
    """Trains and scores both sides; what is finished in the work folder is not done again."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self._settings: dict[str, PairSetting] = {}

    def identify(self) -> str:
        """Return the hash of the weights that both sides begin with."""
        answer = _ask(OURS, {"do": "identify", "init_from": self.setup.init_from})
        return answer["hash"]

    def setting(self, split: str) -> PairSetting:
        """Return what both sides share while a split is held out."""
        if split not in self._settings:
            self._settings[split] = self._new_setting(split)
        return self._settings[split]

    def first_nats(self, split: str) -> tuple[Nats, Nats]:
        """Return the nats of a split's answers before any training, by PyTorch and by JAX."""

        def compute() -> Message:
            question = {
                "do": "score",
                "config": configs.to_dict(self.setting(split).config),
                "init_from": self.setup.init_from,
                "workdir": str(self.setup.work / "run"),
            }
            ours = _ask(OURS, question)
            theirs = _ask_peer(self._scoring(split, self._first_weights()))
            return {"by_torch": theirs["nats"], "by_jax": ours["nats"]}

        scored = self._kept(f"{split}-before", compute)
        return np.array(scored["by_torch"]), np.array(scored["by_jax"])

    def train(self, split: str, side: str, rate: float, seed: int) -> Message:
        """Train a side and score the split.

        Returns: {"nats": of the split's answers, "seconds": of training}; ours has more, see
          `orpo_ours.run_launcher`.
        Raises: TrainingFailed.
        """
        train_side = {"ours": self._train_ours, "trl": self._train_trl}[side]
        name = f"{split}-{side}-{rate:g}-{seed}"
        scored = self._kept(name, lambda: train_side(split, rate, seed))
        shell.print_row({"training": name, "seconds": scored["seconds"]})
        return scored | {"nats": np.array(scored["nats"])}

    def _new_setting(self, split: str) -> PairSetting:
        setup = self.setup
        config = setup.config
        sources: dict[str, Any] = {}
        for source in setup.pairs:
            sources[source.name] = {
                "path": str(split_file(setup.splits, "train", source.name)),
                "heldout": [str(split_file(setup.splits, split, source.name))],
                "kind": PAIRS,
            }
        for source in setup.texts:
            sources[source.name] = _scored_only(source)
        cache = config.data.cache or str(setup.work / "prepared")
        data = dataclasses.replace(config.data, sources=sources, cache=cache)
        workdir = str(setup.work / "run")
        prepared = prepared_text(data, workdir, init_from=setup.init_from)
        setting = PairSetting(
            dataclasses.replace(config, data=data),
            prepared,
            splits=setup.splits,
            split=split,
            epochs=setup.epochs,
            text_rows=setup.text_rows,
        )
        if setting.pairs_per_step < setup.trl_microbatches:
            raise UserError(
                f"--trl_microbatches={setup.trl_microbatches}: a step has "
                f"{setting.pairs_per_step:.1f} pairs."
            )
        setting.save(setup.work / "pairs")
        config_file = self._config_file(split)
        write_atomic(config_file, configs.to_dict(setting.config))
        return setting

    def _config_file(self, split: str) -> Path:
        return self.setup.work / f"{split}.json"

    def _train_ours(self, split: str, rate: float, seed: int) -> Message:
        setup = self.setup
        self.setting(split)  # writes the config
        name = f"{split}-{rate:g}-{seed}"
        workdir = setup.work / "ours" / name
        weights = setup.work / "ours" / f"{name}.npz"
        words = [
            f"--config={self._config_file(split)}",
            f"--workdir={workdir}",
            f"--init_from={setup.init_from}",
            f"--config.train.lr={rate!r}",
            f"--config.seed={seed}",
        ]
        words += [f"--trust={name}" for name in setup.trust]
        question = {
            "do": "train",
            "words": words,
            "workdir": str(workdir),
            "weights": str(weights),
        }
        trained = _ask(OURS, question)
        scored = _ask_peer(self._scoring(split, weights))
        weights.unlink()  # the run has a checkpoint
        return trained | {"nats": scored["nats"]}

    def _train_trl(self, split: str, rate: float, seed: int) -> Message:
        setting = self.setting(split)
        training = Training(
            steps=setting.steps,
            pairs_per_step=setting.pairs_per_step,
            rate=rate,
            seed=seed,
            odds_weight=self.setup.odds_weight,
            microbatches=self.setup.trl_microbatches,
        )
        question = self._scoring(split, self._first_weights())
        question["training"] = training._asdict()
        question["pairs"] = str(setting.file("train"))
        question["tokenizer"] = str(setting.prepared.folder / "tokenizer.json")
        return _ask_peer(question)

    def _scoring(self, split: str, weights: Path) -> Message:
        """Return the question for the nats of a split by weights in a file."""
        setting = self.setting(split)
        with np.load(weights) as arrays:
            vocab = len(arrays["model.embed_tokens.weight"])
        return {
            "config": configs.to_dict(setting.config),
            "vocab": vocab,
            "weights": str(weights),
            "heldout": str(setting.file(split)),
        }

    def _first_weights(self) -> Path:
        """Return the file of the weights that both sides begin with."""
        path = self.setup.work / "first.npz"
        if not path.exists():
            # Under another name until it is whole.
            part = path.with_name("first.part.npz")
            question = {"do": "export", "workdir": self.setup.init_from, "path": str(part)}
            _ask(OURS, question)
            os.replace(part, path)
        return path

    def _kept(self, name: str, compute: Callable[[], Message]) -> Message:
        """Return the result of that name in the work folder, computed where it is not there."""
        path = self.setup.work / "results" / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text("utf-8"))
        print(f"bench orpo: {name}", file=sys.stderr, flush=True)
        result = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, result)
        return result


def _scored_only(source: Source) -> dict[str, Any]:
    """Return a source with weight 0, as data.sources has it in JSON."""
    entry = dataclasses.asdict(source)
    share = entry.pop("heldout_share")
    del entry["name"]
    entry["weight"] = 0.0
    if share is not None:
        entry["heldout"] = share
    return entry


def _ask(module: str, question: Message, **environment: str) -> Message:
    """Return the answer of another process. Raises: TrainingFailed with its last words."""
    answers, fault = shell.ask(module, question, **environment)
    if fault or not answers:
        raise TrainingFailed(f"{module}: {fault or 'no answer'}")
    return answers[-1]


def _ask_peer(question: Message) -> Message:
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
