"""What a run looks at while it trains: held-out bits per byte, samples, and the embedded textbook's questions."""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.data import prepare_stage as stage
from slmjax.data.loader import crowd, heldout_batches
from slmjax.data.prepare import Prepared
from slmjax.data.rows import Arrays, text_fields
from slmjax.evals import kneser_ney
from slmjax.evals.answers import exact_answers
from slmjax.evals.perplexity import DocumentLosses, document_losses, scorer
from slmjax.infer.engine import Engine
from slmjax.models.declare import keep_channel
from slmjax.models.lm import Model
from slmjax.parallel import hosts
from slmjax.parallel.compiling import compiler_options
from slmjax.parallel.rules import field_shardings
from slmjax.readable import said_if_long
from slmjax.record.progress import answer_table as answer_table
from slmjax.tasks.task import Evaluated, Task
from slmjax.text.files import write_atomic
from slmjax.textbook import passages as textbook
from slmjax.train.program import Program

QUESTIONS = 25  # of each kind; a standard error of at most 10 points
ANSWER_TOKENS = 128
ORDERS = (2, 3, 4, 5)


class HeldOut:
    """Bits per byte on the held-out text of every source, always on the same documents.

    Args:
      max_segments: most documents of a row.
    """

    at_end = False

    def __init__(self, program: Program, prepared: Prepared, max_segments: int):
        config, mesh = program.config, program.mesh
        self.prepared, self.declared = prepared, program.declared[1]
        self.rows = np.arange(config.train.batch // config.train.microbatches)
        self.batches = {}
        for name, shards in prepared.heldout.items():
            if len(shards):
                settings = {
                    "seq_len": config.data.seq_len,
                    "batch": len(self.rows),
                    "max_segments": max_segments,
                }
                self.batches[name] = list(
                    heldout_batches(shards, max_tokens=config.eval.tokens, **settings)
                )
        places = None
        if found := program.place_cuts:
            counts = [
                batch["segments"].max(1) for batches in self.batches.values() for batch in batches
            ]
            most = max((crowd(np.maximum(count, 1), 1, found[1]) for count in counts), default=1)
            places = max(most, len(self.rows) // found[1])
        self.fields = text_fields(len(self.rows), config.data.seq_len, places)
        self.where = field_shardings(self.fields, mesh)
        self.score = jax.jit(
            scorer(program.model),
            in_shardings=(program.where.params, None, self.where),
            out_shardings=NamedSharding(mesh, P()),
            compiler_options=compiler_options(
                program.device.platform, tuned=False, deterministic=config.train.deterministic
            ),
        )

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """See Evaluation."""
        for batches in list(self.batches.values())[:1]:
            batch = {name: array for name, array in batches[0].items() if name != "documents"}
            self._scored(params, buffers, batch).block_until_ready()

    def losses(self, params: dict, buffers: dict) -> dict[str, DocumentLosses]:
        """Of each source with held-out text."""
        return {
            name: document_losses(
                lambda batch: self._scored(params, buffers, batch),
                batches,
                self.prepared.heldout[name].bytes,
            )
            for name, batches in self.batches.items()
        }

    def __call__(
        self,
        model: Model,
        params: dict,
        buffers: dict,
        *,
        step: int,
        note: Callable,
        there: Mapping,
    ) -> Evaluated:
        """See Evaluation."""
        with said_if_long("evaluating on held-out text", say=note):
            losses = self.losses(params, buffers)
        found = metrics(losses)
        if found:
            note(f"step {step}: held-out bits per byte {found['eval/bits_per_byte']:.4f}")
        documents = {}
        for name, scored in losses.items():
            keys = np.asarray(self.prepared.heldout[name].keys)[scored.document]
            documents[name] = {
                "keys": keys,
                "nats": scored.nats,
                "bytes": scored.bytes,
                "tokens": scored.tokens,
            }
        return Evaluated(found, documents)

    def _scored(self, params: dict, buffers: dict, batch: Arrays) -> jax.Array:
        batch = hosts.global_batch(batch, self.fields, self.where, self.rows)
        return self.score(params, keep_channel(self.declared, buffers, "forward"), batch)


class Samples:
    """Completions of config.eval.prompts, or of the beginnings of held-out documents, at temperature 0.

    Where several processes share the model, there are none.
    """

    at_end = False

    def __init__(self, program: Program, prepared: Prepared):
        self.config, self.prepared = program.config, prepared

    def prompts(self) -> list[str]:
        """The prompts; of held-out documents one source after the other."""
        chosen = self.config.eval
        if chosen.prompts:
            return list(chosen.prompts)[: chosen.samples]
        held = {name: shards for name, shards in self.prepared.heldout.items() if len(shards)}
        out, names = [], list(held)
        for i in range(chosen.samples if names else 0):
            shards = held[names[i % len(names)]]
            doc = (i // len(names)) % len(shards)
            text = self.prepared.tokenizer.decode(
                shards.read(doc, 0, int(shards.lengths[doc]))[1:-1].tolist()
            )
            first, _, rest = text.partition("\n")
            out.append(
                first if rest and len(first) < 400 else text[: max(20, min(200, len(text) // 2))]
            )
        return out

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """See Evaluation."""
        self._complete(model, params, buffers)

    def __call__(
        self,
        model: Model,
        params: dict,
        buffers: dict,
        *,
        step: int,
        note: Callable,
        there: Mapping,
    ) -> Evaluated:
        """See Evaluation."""
        samples = self._complete(model, params, buffers)
        if not samples:
            return Evaluated()
        note(f"  {samples[0]['prompt']!r} -> {samples[0]['text']!r}")
        return Evaluated(events={"samples": {"samples": samples}})

    def _complete(self, model: Model, params: dict, buffers: dict) -> list[dict[str, str]]:
        prompts = self.prompts() if jax.process_count() == 1 else []
        if not prompts:
            return []
        engine = Engine(model.arch, params, buffers, self.prepared.tokenizer, tuned=False)
        found = engine.generate(prompts, max_tokens=self.config.eval.sample_tokens)
        return [
            {"prompt": prompt, "text": one.text} for prompt, one in zip(prompts, found, strict=True)
        ]


class TextbookAnswers:
    """Exact answers to the embedded textbook's held-out questions; one process alone can ask them."""

    at_end = True

    def __init__(self, prepared: Prepared, compared: bool):
        """`compared`: a TextbookBaseline follows, which shows the answers next to its own."""
        self.prepared, self.compared = prepared, compared

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """Nothing is compiled before the end."""

    def __call__(
        self,
        model: Model,
        params: dict,
        buffers: dict,
        *,
        step: int,
        note: Callable,
        there: Mapping,
    ) -> Evaluated:
        """See Evaluation."""
        if jax.process_count() > 1:
            return Evaluated()
        answers, events = there.get("answers", {}).get("kinds"), {}
        if not answers:
            with said_if_long("asking the textbook's held-out questions", say=note):
                engine = Engine(model.arch, params, buffers, self.prepared.tokenizer, tuned=False)
                answers = textbook_answers(engine, stage.SEED)
            events = {"answers": {"kinds": answers}}
        if not self.compared:
            note(answer_table(answers, {}))
        return Evaluated(
            {f"eval/{kind}/accuracy": found["accuracy"] for kind, found in answers.items()},
            events=events,
        )


class TextbookBaseline:
    """N-gram models trained on the same text, for comparison with the model's answers and bits per byte."""

    at_end = True

    def __init__(self, heldout: HeldOut):
        self.heldout = heldout

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """Nothing is compiled before the end."""

    def __call__(
        self,
        model: Model,
        params: dict,
        buffers: dict,
        *,
        step: int,
        note: Callable,
        there: Mapping,
    ) -> Evaluated:
        """See Evaluation."""
        if jax.process_count() > 1:
            return Evaluated()
        baseline, events = there.get("baseline"), {}
        if baseline is None:
            with said_if_long("training n-gram models on the same text, for comparison", say=note):
                losses = self.heldout.losses(params, buffers)
                baseline = textbook_baseline(
                    self.heldout.prepared, losses, model.arch.vocab_size, stage.SEED
                )
            events = {"baseline": baseline}
        note(answer_table(there["answers"]["kinds"], baseline["answers"]))
        return Evaluated(events=events)


class Evaluator:
    """Runs a task's evaluations; what they find of each document goes to a file for `slmjax.compare`."""

    def __init__(self, task: Task, model: Model, file: epath.Path):
        self.task, self.model, self.file = task, model, file

    def score(
        self, params: dict, buffers: dict, step: int, note: Callable
    ) -> tuple[dict[str, float], dict[str, dict]]:
        """Run all but those of the end; returns (metrics, events)."""
        found, events, documents = {}, {}, {}
        for evaluation in self.task.evaluations:
            if not evaluation.at_end:
                one = evaluation(self.model, params, buffers, step=step, note=note, there={})
                found |= one.metrics
                events |= one.events
                documents |= one.documents
        if hosts.is_first():
            self.save(documents)
        return found, events

    def save(self, documents: Mapping[str, Arrays]) -> None:
        """Write what was found of each document."""
        arrays = {
            f"{source}/{name}": array
            for source, of in documents.items()
            for name, array in of.items()
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomic(self.file, buffer.getvalue())


def metrics(losses: Mapping[str, DocumentLosses]) -> dict[str, float]:
    """eval/<source>/bits_per_byte of each source, and eval/bits_per_byte of all their bytes together."""
    out = {f"eval/{name}/bits_per_byte": found.bits_per_byte for name, found in losses.items()}
    if losses:
        nats, size = (
            sum(found.nats.sum() for found in losses.values()),
            sum(found.bytes.sum() for found in losses.values()),
        )
        out["eval/bits_per_byte"] = float(nats / size / math.log(2))
    return out


def textbook_answers(engine: Engine, seed: int) -> dict[str, dict]:
    """Exact answers to held-out questions of the embedded textbook, by kind, at temperature 0."""

    def complete(prompts: list[str]) -> list[str]:
        return [one.text for one in engine.generate(prompts, max_tokens=ANSWER_TOKENS)]

    asked = {kind: textbook.questions(kind, QUESTIONS, seed) for kind in textbook.KINDS}
    return exact_answers(complete, asked, extract=textbook.extract_answer)


def textbook_baseline(
    prepared: Prepared, losses: Mapping[str, DocumentLosses], vocab_size: int, seed: int
) -> dict[str, dict]:
    """Kneser-Ney of orders 2 to 5 over the same tokens: bits per byte on the documents of `losses`, and the best one's exact answers."""
    eot = prepared.tokenizer.eot
    training = [tokens[1:-1] for shards in prepared.train.values() for tokens in shards]
    held = {
        name: [_document(prepared.heldout[name], doc) for doc in found.document]
        for name, found in losses.items()
    }
    bits: dict[str, dict[str, float]] = {}
    models = {}
    for order in ORDERS:
        models[order] = kneser_ney.fit(training, vocab_size, order, eot)
        nats = {
            name: -float(models[order].log_probabilities(documents).sum())
            for name, documents in held.items()
        }
        sizes = {name: int(losses[name].bytes.sum()) for name in held}
        bits[str(order)] = {name: nats[name] / sizes[name] / math.log(2) for name in held}
        bits[str(order)]["total"] = sum(nats.values()) / sum(sizes.values()) / math.log(2)
    best = models[min(ORDERS, key=lambda order: bits[str(order)]["total"])]

    def complete(prompts: list[str]) -> list[str]:
        tokenizer = prepared.tokenizer
        return [
            tokenizer.decode(best.complete(tokenizer.encode(prompt), ANSWER_TOKENS, eot))
            for prompt in prompts
        ]

    asked = {kind: textbook.questions(kind, QUESTIONS, seed) for kind in textbook.KINDS}
    answers = exact_answers(complete, asked, extract=textbook.extract_answer)
    return {
        "kneser_ney": bits,
        "answers": {kind: found["accuracy"] for kind, found in answers.items()},
    }


def _document(shards: Any, doc: int) -> np.ndarray:
    return shards.read(int(doc), 0, int(shards.lengths[doc]))[1:-1]
