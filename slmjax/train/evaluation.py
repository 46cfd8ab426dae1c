"""What a run looks at while it trains: held-out bits per byte, samples, and for the embedded textbook exact answers beside a baseline."""

import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from slmjax.compiling import compiler_options
from slmjax.data import textbook
from slmjax.data.loader import crowd, heldout_batches
from slmjax.data.prepare import Prepared
from slmjax.data.work import write_atomic
from slmjax.evals import kneser_ney
from slmjax.evals.answers import exact_answers
from slmjax.evals.perplexity import DocumentLosses, document_losses, scorer
from slmjax.infer.engine import Engine
from slmjax.models.architecture import Architecture
from slmjax.parallel import hosts
from slmjax.parallel.mesh import batch_sharding, device_kind

QUESTIONS = 25  # of each kind; a standard error of at most 10 points
ANSWER_TOKENS = 128
ORDERS = (2, 3, 4, 5)


class Evaluator:
    """Scores parameters on the held-out text of every source, always on the same documents."""

    def __init__(self, config: ConfigDict, arch: Architecture, mesh: Mesh, prepared: Prepared, chunks: int, where: Any):
        self.config, self.arch, self.prepared = config, arch, prepared
        rows = config.train.batch // config.train.microbatches
        self.sharding = batch_sharding(mesh)
        self.rows = np.arange(rows)
        self.batches = {
            name: list(
                heldout_batches(
                    shards, seq_len=config.data.seq_len, batch=rows, max_segments=arch.max_segments, max_tokens=config.eval.tokens
                )
            )
            for name, shards in prepared.heldout.items()
            if len(shards)
        }
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        crowds = [crowd(np.maximum(batch["segments"].max(1), 1), 1, ways) for batches in self.batches.values() for batch in batches]
        of_batches = dataclasses.replace(arch, usual_segments=math.ceil(max(crowds, default=1) * ways / rows))
        whole = NamedSharding(mesh, P())
        options = compiler_options(device_kind(mesh).platform, tuned=False, deterministic=config.train.deterministic)
        self.score = jax.jit(
            scorer(of_batches, chunks), in_shardings=(where, None, self.sharding), out_shardings=whole, compiler_options=options
        )

    def losses(self, params: dict) -> dict[str, DocumentLosses]:
        """Of every source with held-out text."""
        return {
            name: document_losses(lambda batch: self.score(params, {}, batch), batches, self._put, self.prepared.heldout[name].bytes)
            for name, batches in self.batches.items()
        }

    def warm(self, params: dict) -> None:
        """Compile before the first step, where it costs no training time."""
        for batches in list(self.batches.values())[:1]:
            self.score(params, {}, self._put({k: v for k, v in batches[0].items() if k != "documents"})).block_until_ready()
        self.samples(params)

    def save(self, losses: Mapping[str, DocumentLosses], path: epath.Path) -> None:
        """Per-document losses, for `slmjax.compare`."""
        arrays = {}
        for name, found in losses.items():
            arrays |= {
                f"{name}/keys": np.asarray(self.prepared.heldout[name].keys)[found.document],
                f"{name}/nats": found.nats, f"{name}/bytes": found.bytes, f"{name}/tokens": found.tokens,
            }  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomic(path, buffer.getvalue())

    def prompts(self) -> list[str]:
        """config.eval.prompts, or the beginnings of held-out documents, one source after the other."""
        if self.config.eval.prompts:
            return list(self.config.eval.prompts)[: self.config.eval.samples]
        out, names = [], list(self.batches)
        for i in range(self.config.eval.samples if names else 0):
            shards = self.prepared.heldout[names[i % len(names)]]
            doc = (i // len(names)) % len(shards)
            text = self.prepared.tokenizer.decode(shards.read(doc, 0, int(shards.lengths[doc]))[1:-1].tolist())
            first, _, rest = text.partition("\n")
            out.append(first if rest and len(first) < 400 else text[: max(20, min(200, len(text) // 2))])
        return out

    def engine(self, params: dict) -> Engine:
        """A generation engine over these parameters; its programs are compiled once."""
        return Engine(self.arch, params, {}, self.prepared.tokenizer, tuned=False)

    def samples(self, params: dict) -> list[dict[str, str]]:
        """Completions of the prompts at temperature 0; none where several processes share the model."""
        prompts = self.prompts() if jax.process_count() == 1 else []
        found = self.engine(params).generate(prompts, max_tokens=self.config.eval.sample_tokens) if prompts else []
        return [{"prompt": prompt, "text": one.text} for prompt, one in zip(prompts, found, strict=True)]

    def _put(self, batch: dict) -> dict:
        return hosts.global_batch(batch, self.sharding, len(self.rows), self.rows)


def metrics(losses: Mapping[str, DocumentLosses]) -> dict[str, float]:
    """eval/<source>/bits_per_byte of each source, and eval/bits_per_byte of all their bytes together."""
    out = {f"eval/{name}/bits_per_byte": found.bits_per_byte for name, found in losses.items()}
    if losses:
        nats, size = sum(found.nats.sum() for found in losses.values()), sum(found.bytes.sum() for found in losses.values())
        out["eval/bits_per_byte"] = float(nats / size / math.log(2))
    return out


def textbook_answers(engine: Engine, seed: int) -> dict[str, dict]:
    """Exact answers to held-out questions of the embedded textbook, by kind, at temperature 0."""

    def complete(prompts: list[str]) -> list[str]:
        return [one.text for one in engine.generate(prompts, max_tokens=ANSWER_TOKENS)]

    return exact_answers(complete, {kind: textbook.questions(kind, QUESTIONS, seed) for kind in textbook.KINDS})


def textbook_baseline(prepared: Prepared, losses: Mapping[str, DocumentLosses], vocab_size: int, seed: int) -> dict[str, dict]:
    """Kneser-Ney of orders 2 to 5 over the same tokens: bits per byte on the documents of `losses`, and the best one's exact answers."""
    eot = prepared.tokenizer.eot
    training = [tokens[1:-1] for shards in prepared.train.values() for tokens in shards]
    held = {name: [_document(prepared.heldout[name], doc) for doc in found.document] for name, found in losses.items()}
    bits: dict[str, dict[str, float]] = {}
    models = {}
    for order in ORDERS:
        models[order] = kneser_ney.fit(training, vocab_size, order, eot)
        nats = {name: -float(models[order].log_probabilities(documents).sum()) for name, documents in held.items()}
        sizes = {name: int(losses[name].bytes.sum()) for name in held}
        bits[str(order)] = {name: nats[name] / sizes[name] / math.log(2) for name in held}
        bits[str(order)]["total"] = sum(nats.values()) / sum(sizes.values()) / math.log(2)
    best = models[min(ORDERS, key=lambda order: bits[str(order)]["total"])]

    def complete(prompts: list[str]) -> list[str]:
        tokenizer = prepared.tokenizer
        return [tokenizer.decode(best.complete(tokenizer.encode(prompt), ANSWER_TOKENS, eot)) for prompt in prompts]

    answers = exact_answers(complete, {kind: textbook.questions(kind, QUESTIONS, seed) for kind in textbook.KINDS})
    return {"kneser_ney": bits, "answers": {kind: found["accuracy"] for kind, found in answers.items()}}


def _document(shards: Any, doc: int) -> np.ndarray:
    return shards.read(int(doc), 0, int(shards.lengths[doc]))[1:-1]
