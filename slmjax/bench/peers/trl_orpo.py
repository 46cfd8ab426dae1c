"""TRL's ORPOTrainer on our weights and token ids, and a scorer of pairs: the peer of our ORPO.

It runs in a process of its own. Needs torch, transformers and trl.
"""

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax import config as configs
from slmjax.bench.pair_splits import TokenPairs
from slmjax.bench.peers.llama_weights import llama_or_qwen
from slmjax.errors import UserError
from slmjax.models.pattern import from_config
from slmjax.text.tokenizer import EOT

NEEDED = ("torch", "transformers", "trl")
VERSION = "1.16.0"  # of TRL: its experimental trainers change between versions
SCORED_TOKENS = 8192  # in a batch of the scorer, padding included
IGNORED = -100  # the label of a token without loss, in transformers

# Without torch their types are unknown.
Module = Any
Tensor = Any


class Training(NamedTuple):
    """How TRL trains.

    Attributes:
      steps: of the optimizer.
      pairs_per_step: on average; a step has this number rounded down or up.
      microbatches: parts of a step's pairs. TRL's loss is the mean of their losses.
      odds_weight: TRL's beta.
    """

    steps: int
    pairs_per_step: float
    rate: float
    seed: int
    odds_weight: float
    microbatches: int = 1


def check_installed() -> None:
    """Raises: UserError where something that the peer needs is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the peer needs {' and '.join(missing)}, not installed here: "
            f"pip install 'slmjax[hf]' trl=={VERSION}."
        )


def load_weights(config: configs.Config, vocab: int, path: str) -> Module:
    """Return transformers' model of a config with the weights of a file, on a GPU if there is one.

    Args:
      vocab: rows of the embedding.
      path: what `orpo_ours.export_weights` wrote.
    """
    import torch

    model = llama_or_qwen(from_config(config.model, vocab), config.data.seq_len)
    with np.load(path) as arrays:
        weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    # Strict: every weight has its place.
    model.load_state_dict(weights)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def nats_of_answers(model: Module, pairs: TokenPairs) -> Float[np.ndarray, "pairs 2"]:
    """Return the nats of both answers of every pair, summed over their tokens, in float32."""
    import torch

    device = next(model.parameters()).device
    dialogues = pairs.dialogues()
    nats = np.zeros(len(dialogues))
    model.eval()
    torch.set_float32_matmul_precision("highest")  # no TF32
    # Of similar length, so that little is padding.
    order = np.argsort(pairs.lengths, kind="stable").tolist()
    while order:
        longest = int(pairs.lengths[order[-1]])
        count = max(1, SCORED_TOKENS // longest)
        members, order = order[-count:], order[:-count]
        # Padding behind a dialogue: causal attention does not see it.
        ids = np.zeros((len(members), longest), np.int64)
        is_answer = np.zeros((len(members), longest), bool)
        for row, member in enumerate(members):
            length = pairs.lengths[member]
            ids[row, :length], is_answer[row, :length] = dialogues[member]
        tokens = torch.from_numpy(ids).to(device)
        with torch.inference_mode():
            logits = model(tokens).logits[:, :-1]
            targets = tokens[:, 1:, None]
            log_p = logits.log_softmax(-1).gather(-1, targets)[..., 0]
        # float64, since a sum of many float32 values loses digits.
        log_p = log_p.double().cpu().numpy()
        nats[members] = -(log_p * is_answer[:, 1:]).sum(1)
    return nats.reshape(-1, 2)


def train_trl(model: Module, pairs: TokenPairs, how: Training, tokenizer: str) -> float:
    """Train a model in place with TRL's ORPOTrainer; return the seconds that it took.

    AdamW, the schedule, clipping and all else are TRL's defaults; bfloat16 autocast on a GPU, else
    float32.

    Args:
      tokenizer: a tokenizer.json. The trainer asks it for the id of padding only.
    """
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    batches = training_batches(len(pairs.prompts), how)

    class Trainer(ORPOTrainer):
        """The trainer on ids that are given, in batches that are given."""

        def tokenize_row(self, feature, model=None):
            return {}  # the ids are columns already

        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(
                self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator
            )

    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=ORPOConfig(
                output_dir=folder,
                max_steps=how.steps,
                per_device_train_batch_size=max(map(len, batches)),
                gradient_accumulation_steps=how.microbatches,
                learning_rate=how.rate,
                beta=how.odds_weight,
                max_length=int(pairs.lengths.max()),  # nothing is cut
                seed=how.seed,
                bf16=on_gpu,
                use_cpu=not on_gpu,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(_features(pairs)),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_file=tokenizer, eos_token=EOT, pad_token=EOT
            ),
        )
        began = time.perf_counter()
        trainer.train()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began


def training_batches(count: int, how: Training) -> list[list[int]]:
    """Return the pairs of every microbatch of a training: epochs in random order, end to end."""
    chance = np.random.default_rng(how.seed)
    total = round(how.steps * how.pairs_per_step)
    epochs = [chance.permutation(count) for _ in range(0, total, count)]
    order = np.concatenate(epochs)
    ends = np.arange(1, how.steps) * how.pairs_per_step
    batches = []
    for step in np.split(order[:total], np.round(ends).astype(int)):
        for part in np.array_split(step, how.microbatches):
            batches.append(part.tolist())
    return batches


def _features(pairs: TokenPairs) -> list[dict[str, Any]]:
    """Return the columns that the trainer's collator reads, one row a pair."""
    dialogues = pairs.dialogues()
    features = []
    for chosen, rejected in zip(dialogues[::2], dialogues[1::2], strict=True):
        # The texts are not used, but the trainer expects their columns.
        feature: dict[str, Any] = {"prompt": "", "chosen": "", "rejected": ""}
        for side, dialogue in (("chosen", chosen), ("rejected", rejected)):
            ids, is_answer = dialogue
            labels = np.where(is_answer, ids, IGNORED)
            feature[f"{side}_input_ids"] = ids.tolist()
            feature[f"{side}_attention_mask"] = [1] * len(ids)
            feature[f"{side}_labels"] = labels.tolist()
        features.append(feature)
    return features


def main() -> None:
    """Read a question as JSON from stdin and print {"nats": of each pair, "seconds"} as JSON.

    The question has config, vocab, weights, heldout (a file of TokenPairs to score) and, for a
    training, tokenizer, pairs (a file of TokenPairs) and training (a Training).
    """
    question = json.load(sys.stdin)
    config = configs.freeze(configs.from_dict(question["config"]))
    seconds = None
    try:
        # The trainer prints its logs as dicts, which would pass for answers.
        with contextlib.redirect_stdout(sys.stderr):
            model = load_weights(config, question["vocab"], question["weights"])
            if "training" in question:
                pairs = TokenPairs.load(question["pairs"])
                how = Training(**question["training"])
                seconds = train_trl(model, pairs, how, question["tokenizer"])
            nats = nats_of_answers(model, TokenPairs.load(question["heldout"]))
    except UserError as error:
        sys.exit(str(error))  # shell.ask reports the last line of stderr
    print(json.dumps({"nats": nats.tolist(), "seconds": seconds}))


if __name__ == "__main__":
    main()
