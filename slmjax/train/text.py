"""The task "lm": next-token prediction on prepared text."""

from itertools import pairwise

import jax

from slmjax.config import Config
from slmjax.data.loader import BatchPlan, PhasedPlan
from slmjax.data.prepare import Prepared
from slmjax.data.prepare_stage import batch_plan, facts, prepared_text
from slmjax.data.prepared import heldout_elsewhere
from slmjax.record import shares
from slmjax.tasks.language_modeling import LanguageModeling
from slmjax.tasks.task import Evaluation, Facts, Task, TaskBuilder
from slmjax.text.records import CHAT, PAIRS, TEXT
from slmjax.train.answer_evaluation import AnswerLengths
from slmjax.train.evaluation import HeldOut, Samples
from slmjax.train.preference_evaluation import Preferences
from slmjax.train.program import Program
from slmjax.train.textbook_evaluation import TextbookAnswers, TextbookBaseline


class TextBuilder(TaskBuilder):
    """Prepares the text of config.data, and makes the task of pretraining on it."""

    def __init__(self, config: Config, workdir: str, init_from: str):
        self.config = config
        self.prepared = prepared_text(
            config.data,
            workdir,
            init_from=init_from,
            process=jax.process_index(),
            processes=jax.process_count(),
        )
        self.tokenizer = self.prepared.tokenizer
        self.vocab_size = self.tokenizer.vocab_size

    def task(self, program: Program) -> LanguageModeling:
        """See TaskBuilder."""
        config = self.config
        plan = batch_plan(
            config.data, config.train, self.prepared, seed=config.seed, cuts=program.place_cuts
        )
        evaluations = self.evaluations(program, plan)
        return LanguageModeling(plan, evaluations, config.train.z_loss)

    def evaluations(self, program: Program, plan: BatchPlan | PhasedPlan) -> list[Evaluation]:
        """Return the evaluations that suit the kinds of the sources."""
        config, prepared = self.config, self.prepared
        kinds = {shards.kind for shards in prepared.heldout.values()}
        heldout = HeldOut(program, prepared, plan.max_segments)
        evaluations = [heldout]
        if PAIRS in kinds:
            evaluations.append(Preferences(program, prepared, plan.max_segments))
        evaluations.append(Samples(program, prepared))
        if CHAT in kinds and config.eval.answers:
            evaluations.append(AnswerLengths(program, prepared, config.eval.answers))
        # Without sources the text is the embedded textbook, whose questions it can answer. They
        # take a minute, which a run of a few minutes needs for training.
        embedded = not config.data.sources and not config.train.minutes
        if embedded or config.eval.textbook:
            evaluations.append(TextbookAnswers(prepared, compared=embedded))
        if embedded:
            evaluations.append(TextbookBaseline(heldout))
        return evaluations

    def facts(self, task: Task) -> Facts:
        """See TaskBuilder."""
        prepared, plan = self.prepared, task.rows
        # Without sources of weight 0, which are not trained on.
        tokens = sum(shards.tokens for shards in plan.train.values())
        sentences = shares.reading_sentences(plan)
        reads = f"a step reads {step_tokens(plan.spans[0]):,}"
        for before, span in pairwise(plan.spans):
            if (span.batch, span.seq_len) != (before.batch, before.seq_len):
                reads += f", from step {span.first_step:,} on {step_tokens(span):,}"
                reads += f" in rows of {span.seq_len:,}"
        lines = {"data": f"{tokens:,} tokens; {reads}"}
        for name, sentence in sentences.items():
            lines[f"data {name}"] = sentence
        lines["bad records"] = bad_records(prepared)
        lines["left out"] = left_out(plan, prepared, self.config.data.seq_len)
        lines["held out"] = heldout_elsewhere(prepared)
        record = {
            "sources": facts(prepared, plan.epochs()),
            "folder": str(prepared.folder),
            "told": sentences,
            "shares": plan.shares(),
        }
        return Facts(lines, record)


def step_tokens(plan: BatchPlan) -> int:
    """Return the tokens of a step, padding included."""
    return plan.batch * plan.seq_len


def bad_records(prepared: Prepared) -> str:
    """Return in words how many records of which sources are unusable, with examples."""
    sources = []
    for name, entry in prepared.manifest["sources"].items():
        count = sum(entry["faults"].values())
        if count:
            # One of each reason.
            examples = "; ".join(entry["first_faults"])
            sources.append(f"{count:,} of {name}, such as {examples}")
    return ", ".join(sources)


def left_out(plan: BatchPlan | PhasedPlan, prepared: Prepared, seq_len: int) -> str:
    """Return in words how much of which sources is in no row; held-out rows come last.

    Args:
      seq_len: tokens of a held-out row.
    """
    losses = []
    for span in plan.spans:
        for name, rows in zip(span.train, span.row_plans, strict=True):
            loss = rows.left_out()
            if loss and f"{name} {loss}" not in losses:
                losses.append(f"{name} {loss}")
    for name, shards in prepared.heldout.items():
        if shards.kind == TEXT:  # is cut instead
            continue
        too_long = int((shards.lengths > seq_len).sum())
        if too_long:
            losses.append(
                f"{too_long:,} of {len(shards):,} held-out documents of {name} (longer than "
                f"{seq_len:,} tokens)"
            )
    return ", ".join(losses)
