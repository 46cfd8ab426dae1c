"""Evaluations of text while a run trains: held-out bits per byte, and samples."""

import io
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.data.loader import heldout_batches, most_documents
from slmjax.data.prepare import Prepared
from slmjax.data.rows import Arrays, text_fields
from slmjax.data.shards import ShardSet
from slmjax.data.whole_rows import SEGMENTS_OF_KIND
from slmjax.evals.perplexity import DocumentLosses, document_losses, scorer
from slmjax.infer.engine import Engine
from slmjax.models.declare import keep_channel
from slmjax.models.lm import Model
from slmjax.parallel import hosts
from slmjax.parallel.compiling import compiler_options
from slmjax.parallel.rules import field_shardings
from slmjax.readable import said_if_long
from slmjax.tasks.task import Evaluated, Task
from slmjax.text.chat_template import ChatIds, prompt_parts
from slmjax.text.conversations import USER, Turn
from slmjax.text.files import write_atomic
from slmjax.text.records import CHAT, PAIRS, TEXT
from slmjax.train.program import Program

LONGEST_LINE = 400  # characters; a document's first line below that is a prompt as it is
SHORTEST_CUT, LONGEST_CUT = 20, 200  # characters of a prompt that is cut from running text


class Evaluator:
    """Runs a task's evaluations while it trains.

    Args:
      file: heldout.npz, which gets the scores of each document for `slmjax.compare`.
    """

    def __init__(self, task: Task, model: Model, file: epath.Path):
        self.task, self.model, self.file = task, model, file

    def score(
        self, params: dict, buffers: dict, step: int, note: Callable
    ) -> tuple[dict[str, float], dict[str, dict]]:
        """Run all evaluations but those of the end, and save the scores of documents.

        Returns: ({metric: value}, {event: its facts}), see Evaluated.
        """
        scores, events, documents = {}, {}, {}
        for evaluation in self.task.evaluations:
            if evaluation.at_end:
                continue
            # Only evaluations of the end read what is on record already (`there`).
            evaluated = evaluation(self.model, params, buffers, step=step, note=note, there={})
            scores |= evaluated.metrics
            events |= evaluated.events
            documents |= evaluated.documents
        # Every process has the scores of all documents, so one of them writes the file.
        if hosts.is_first():
            self.save(documents)
        return scores, events

    def save(self, documents: Mapping[str, Arrays]) -> None:
        """Write the scores of each document, as arrays named "source/score"."""
        arrays = {}
        for source, values in documents.items():
            for name, array in values.items():
                arrays[f"{source}/{name}"] = array
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomic(self.file, buffer.getvalue())


class HeldoutScorer:
    """Scores held-out documents with the model, always the same ones, in batches of one shape.

    Args:
      sources: {name: ShardSet of its held-out documents}.
      max_segments: most documents in a row.
      max_tokens: of each source, see `heldout_batches`.
    """

    def __init__(
        self,
        program: Program,
        sources: Mapping[str, ShardSet],
        max_segments: int,
        max_tokens: int | None,
    ):
        config, mesh = program.config, program.mesh
        self.sources = sources
        _, self.declared_buffers = program.declared
        # A batch is as large as a microbatch, so that it fits into memory where training fits.
        self.rows = np.arange(config.train.batch // config.train.microbatches)
        self.batches = {}
        for name, shards in sources.items():
            if len(shards):
                batches = heldout_batches(
                    shards,
                    max_tokens=max_tokens,
                    seq_len=config.data.seq_len,
                    batch=len(self.rows),
                    max_segments=max_segments,
                )
                # None where all dialogues are longer than a row.
                if len(batches):
                    self.batches[name] = list(batches)  # kept: every evaluation reads the same
        self.fields = text_fields(
            len(self.rows), config.data.seq_len, self._places(program.place_cuts)
        )
        self.shardings = field_shardings(self.fields, mesh)
        # Compiled without trying algorithms: it runs seldom, and a start should be quick.
        self.score = jax.jit(
            scorer(program.model),
            in_shardings=(program.where.params, None, self.shardings),
            out_shardings=NamedSharding(mesh, P()),
            compiler_options=compiler_options(
                program.device.platform, tuned=False, deterministic=config.train.deterministic
            ),
        )

    def warm(self, params: dict, buffers: dict) -> None:
        """Compile the program; without batches there is nothing to compile."""
        all_batches = itertools.chain.from_iterable(self.batches.values())
        # All batches have one shape, so the first one compiles for all.
        first_batch = next(all_batches, None)
        if first_batch is not None:
            arrays = {name: array for name, array in first_batch.items() if name != "documents"}
            self._nats(params, buffers, arrays).block_until_ready()

    def losses(self, params: dict, buffers: dict) -> dict[str, DocumentLosses]:
        """Return the losses of each source's held-out documents.

        A pair has two: document 2i is the chosen and 2i + 1 the rejected answer of pair i.
        """
        losses = {}
        for name, batches in self.batches.items():
            shards = self.sources[name]
            # Both documents of a pair get the bytes of both answers, which are stored as one sum.
            sizes = np.repeat(shards.bytes, SEGMENTS_OF_KIND[shards.kind])
            losses[name] = document_losses(
                lambda batch: self._nats(params, buffers, batch), batches, sizes
            )
        return losses

    def _places(self, place_cuts: tuple[int, int] | None) -> int | None:
        """Return the places for documents that a device needs, see `text_fields`.

        None where the attention kernel needs no places.
        """
        if not place_cuts:
            return None
        # Devices over which the rows are split.
        _, ways = place_cuts
        most = 1
        for batches in self.batches.values():
            for batch in batches:
                # [B]: number of documents in each row, which its segments count from 1.
                documents = np.maximum(batch["segments"].max(1), 1)
                most = max(most, most_documents(documents, 1, ways))
        # Without batches, each of a device's rows still has one place.
        return max(most, len(self.rows) // ways)

    def _nats(self, params: dict, buffers: dict, batch: Arrays) -> jax.Array:
        """Return the nats of each token, [B,T]."""
        batch = hosts.global_batch(batch, self.fields, self.shardings, self.rows)
        # Scoring is a forward pass: it reads no other buffers.
        forward_buffers = keep_channel(self.declared_buffers, buffers, "forward")
        return self.score(params, forward_buffers, batch)


class HeldOut:
    """Bits per byte on the held-out text of every source; of dialogues, on their answers."""

    at_end = False

    def __init__(self, program: Program, prepared: Prepared, max_segments: int):
        """Args: max_segments: most documents in a row."""
        self.prepared = prepared
        sources = {}
        for name, shards in prepared.heldout.items():
            if shards.kind != PAIRS:
                sources[name] = shards
        max_tokens = program.config.eval.tokens
        self.scorer = HeldoutScorer(program, sources, max_segments, max_tokens)

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """See Evaluation."""
        self.scorer.warm(params, buffers)

    def losses(self, params: dict, buffers: dict) -> dict[str, DocumentLosses]:
        """Return the losses of each source's held-out documents."""
        return self.scorer.losses(params, buffers)

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
        scores = metrics(losses)
        if scores:
            note(f"step {step}: held-out bits per byte {scores['eval/bits_per_byte']:.4f}")
        documents = {}
        for name, scored in losses.items():
            documents[name] = {
                "keys": np.asarray(self.prepared.heldout[name].keys)[scored.document],
                "nats": scored.nats,
                "bytes": scored.bytes,
                "tokens": scored.tokens,
            }
        return Evaluated(scores, documents)


class Samples:
    """Completions at temperature 0 of config.eval.prompts, or of beginnings of held-out documents.

    In a run with dialogues or pairs they are answers: to the prompts, or to the first questions of
    held-out dialogues. Where several processes share the model, there are none.
    """

    at_end = False

    def __init__(self, program: Program, prepared: Prepared):
        self.config, self.prepared = program.config, prepared
        kinds = [shards.kind for shards in prepared.heldout.values()]
        # Whether prompts are what a user says, and completions the assistant's answers.
        self.chats = CHAT in kinds or PAIRS in kinds

    def prompts(self) -> list[str]:
        """Return the prompts; without config.eval.prompts the sources take turns to give one."""
        options = self.config.eval
        if options.prompts:
            return list(options.prompts)[: options.samples]
        heldout = []
        for shards in self.prepared.heldout.values():
            if len(shards) and (shards.kind != TEXT or not self.chats):
                heldout.append(shards)
        if not heldout:
            return []
        prompts = []
        for number in range(options.samples):
            # The first document of each source, then the second of each, and so on.
            shards = heldout[number % len(heldout)]
            document = (number // len(heldout)) % len(shards)
            # Without the end-of-text tokens around the document.
            tokens = shards.read(document, 0, int(shards.lengths[document]))[1:-1]
            if self.chats:
                prompt = self._question(tokens, shards.chat)
            else:
                prompt = _beginning(self.prepared.tokenizer.decode(tokens.tolist()))
            prompts.append(prompt)
        return prompts

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

    def _complete(self, model: Model, params: dict, buffers: dict) -> list[dict[str, Any]]:
        if jax.process_count() > 1:
            return []
        prompts = self.prompts()
        if not prompts:
            return []
        tokenizer = self.prepared.tokenizer
        inputs: list[Any] = prompts
        if self.chats:
            # The token ids of each question in the chat template.
            inputs = []
            for prompt in prompts:
                inputs.append(tokenizer.sequence(*prompt_parts([Turn(USER, prompt)])))
        # A new engine each time, as an engine copies the weights into the compute type.
        engine = Engine(model.arch, params, buffers, tokenizer, tuned=False)
        completions = engine.generate(inputs, max_tokens=self.config.eval.sample_tokens)
        samples = []
        for prompt, completion in zip(prompts, completions, strict=True):
            sample = {"prompt": prompt, "text": completion.text}
            if self.chats:
                sample |= {"prompt": f"user: {prompt}", "is_chat": True}
            samples.append(sample)
        return samples

    def _question(self, tokens: np.ndarray, ids: ChatIds) -> str:
        """Return what the user says first in a dialogue.

        Args:
          tokens: of the dialogue, from its first turn on.
        Returns: "" where the user says nothing.
        """
        header = self.prepared.tokenizer.encode(f"{USER}\n")
        starts = np.flatnonzero(tokens == ids.start)
        ends = np.flatnonzero(tokens == ids.end)
        for start, end in zip(starts, ends, strict=False):
            content = start + 1 + len(header)
            if tokens[start + 1 : content].tolist() == header:
                return self.prepared.tokenizer.decode(tokens[content:end].tolist())
        return ""


def metrics(losses: Mapping[str, DocumentLosses]) -> dict[str, float]:
    """Return eval/<source>/bits_per_byte, and eval/bits_per_byte of all bytes together."""
    if not losses:
        return {}
    values = {f"eval/{name}/bits_per_byte": loss.bits_per_byte for name, loss in losses.items()}
    nats = sum(loss.nats.sum() for loss in losses.values())
    size = sum(loss.bytes.sum() for loss in losses.values())
    values["eval/bits_per_byte"] = float(nats / size / math.log(2))
    return values


def _beginning(text: str) -> str:
    """Return a text's first line; its first half, cut, where that is long or the only line."""
    first_line, _, more = text.partition("\n")
    if more and len(first_line) < LONGEST_LINE:
        return first_line
    return text[: max(SHORTEST_CUT, min(LONGEST_CUT, len(text) // 2))]
