"""What the parts of the loader cost: planning rows, reading their spans, assembling batches."""

import time
from collections.abc import Iterator

import numpy as np

from slmjax.data.loader import BatchPlan, fold
from slmjax.data.shards import ShardSet


def loader_stages(plan: BatchPlan, steps: range) -> dict[str, float]:
    """Return the nanoseconds a token of each part, for the batches of these steps.

    The parts run one after the other in this thread: plan_ns (which spans a row holds), read_ns
    (their tokens from the shards) and assemble_ns (the five arrays of a batch).
    """
    shards = list(plan.train.values())  # a plan's rows give the number of their source in this list
    began = time.perf_counter()
    planned = []  # for each step: [(source, spans of a row), ...]
    for step in steps:
        rows = plan.rows(step)
        planned.append([(source, plan.row_plans[source].row(row)) for source, row in rows])
    after_plan = time.perf_counter()
    texts = []  # for each step: [[tokens of each span of a row], ...]
    for rows in planned:
        row_texts = []
        for source, spans in rows:
            row_texts.append([shards[source].read(*span) for span in spans])
        texts.append(row_texts)
    after_read = time.perf_counter()
    for rows, row_texts in zip(planned, texts):
        # `fold` reads the spans itself, here from memory: reading shards is timed above.
        in_memory = []
        for (source, spans), span_texts in zip(rows, row_texts):
            in_memory.append((_SpansInMemory(shards[source], iter(span_texts)), spans))
        plan.unpack(fold(in_memory, plan.seq_len))
    after_assemble = time.perf_counter()
    tokens = len(steps) * plan.batch * plan.seq_len
    to_ns = 1e9 / tokens  # from seconds of all tokens to ns of one
    return {
        "plan_ns": to_ns * (after_plan - began),
        "read_ns": to_ns * (after_read - after_plan),
        "assemble_ns": to_ns * (after_assemble - after_read),
    }


class _SpansInMemory:
    """Takes the place of a ShardSet for a reader that asks for the spans in their order."""

    def __init__(self, shards: ShardSet, texts: Iterator[np.ndarray]):
        self.kind, self.chat = shards.kind, shards.chat
        self._texts = texts

    def read(self, doc: int, offset: int, count: int) -> np.ndarray:
        return next(self._texts)
