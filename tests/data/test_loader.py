"""The loader: the same global batches on any number of processes and workers, and fingerprints that say so."""

import hashlib
import itertools
import json
import pickle
import subprocess
import sys
import textwrap

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data import packing
from slmjax.data.loader import (
    BatchPlan,
    batch_rows,
    fold,
    heldout_batches,
    local_batches,
    unfold,
)
from slmjax.errors import UserError
from tests.data.batch_hashes import batch_hash, combine_hashes, row_hashes

cloudpickle.register_pickle_by_value(
    sys.modules[__name__]
)  # spawned workers cannot import a test file

EOT = 0


class FakeShards:
    """A ShardSet in memory. Documents count upwards from a number of their own, so that any token says where it is from."""

    kind, chat = "text", None

    def __init__(self, lengths, fingerprint="f"):
        self.lengths, self.fingerprint = np.asarray(lengths, np.int64), fingerprint
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        within = np.arange(self._starts[-1]) - np.repeat(self._starts[:-1], self.lengths)
        stream = np.where(
            within == 0, EOT, np.repeat(np.arange(len(lengths)) * 1000, self.lengths) + within
        )
        self._stream = np.concatenate([stream, [EOT]]).astype(np.int32)

    def read(self, doc, offset, count):
        start = self._starts[doc] + offset
        return self._stream[start : start + count + 1]

    def name(self, doc):
        return f"file line {doc}"


def shards_of(seed, documents=300, longest=150, **options):
    return FakeShards(np.random.default_rng(seed).integers(2, longest, documents), **options)


def plan_of(train=None, **changes):
    train = train or {"books": shards_of(0), "web": shards_of(1, 500)}
    settings = {
        "seq_len": 64,
        "batch": 8,
        "steps": 40,
        "seed": 0,
        "phases": ((0.5, {"books": 0.7, "web": 0.3}), (1.0, {"web": 1.0})),
    }
    return BatchPlan(train, **(settings | changes))


WHOLE = {
    "phases": (
        {"until": 0.3, "weights": {"books": 0.7, "web": 0.3}},
        {"until": 0.6, "weights": {"books": 0.2, "web": 0.5, "notes": 0.3}, "ramp": 0.2},
        {"until": 0.9, "weights": {"web": 1.0}, "ramp": 0.1},
        {"until": 1.0, "weights": {"books": 1.0, "notes": 1.0}, "ramp": 0.05},
    ),
    "max_epochs": {"notes": 0.5, "web": None},
    "scores": {"web": "-quality", "books": ""},
}


def whole_plan(**changes):
    """A plan with all that a schedule can have: four phases, ramps, a cap that is reached and a source in the order of its scores."""
    web, notes = shards_of(1, 500), shards_of(2, 50)
    web.scores = np.random.default_rng(5).normal(size=500)
    return plan_of({"books": shards_of(0), "web": web, "notes": notes}, **(WHOLE | changes))


def global_hashes(plan, processes, workers, start=0, stop=6):
    """Digest of each step's global batch, put together from what each process reads."""
    hashes = []
    for process in range(processes):
        local = list(range(process, plan.batch, processes))
        with local_batches(
            plan, start_step=start, stop_step=stop, local_rows=local, workers=workers
        ) as batches:
            hashes.append([row_hashes(batch) for batch in batches])
    return [
        combine_hashes(hashes[row % processes][step][row // processes] for row in range(plan.batch))
        for step in range(stop - start)
    ]


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_global_batches_are_equal_on_one_two_and_four_processes(packing):
    plan = plan_of(packing=packing)
    expected = [batch_hash(batch_rows(plan, step, range(plan.batch))) for step in range(6)]
    assert len(set(expected)) == 6
    for processes in (1, 2, 4):
        assert global_hashes(plan, processes, workers=0) == expected


@pytest.mark.parametrize(("processes", "workers"), [(1, 1), (1, 3), (2, 1)])
def test_global_batches_are_equal_with_worker_processes(processes, workers):
    plan = plan_of()
    assert global_hashes(plan, processes, workers, 17, 22) == global_hashes(plan, 1, 0, 17, 22)


def test_a_run_resumed_at_a_step_reads_on_as_if_it_had_not_stopped():
    plan = plan_of()
    assert global_hashes(plan, 1, 0, 0, 12)[7:] == global_hashes(plan_of(), 2, 0, 7, 12)


def test_the_global_order_is_the_same_from_any_step_on_for_one_two_and_four_processes():
    plan = whole_plan()
    rows = [plan.rows(step) for step in range(40)]
    expected = [batch_hash(batch_rows(plan, step, range(8))) for step in range(40)]
    assert plan.mixture.spent and len(set(expected)) == 40
    for start in range(40):
        resumed = pickle.loads(pickle.dumps(plan)) if start % 2 else whole_plan()
        processes = (1, 2, 4)[start % 3]
        parts = [
            row_hashes(batch_rows(resumed, start, range(process, 8, processes)))
            for process in range(processes)
        ]
        assert (
            combine_hashes(parts[row % processes][row // processes] for row in range(8))
            == expected[start]
        )
        assert [resumed.rows(step) for step in range(start, 40)] == rows[start:]
    for processes, start in ((1, 13), (2, 22), (4, 35)):
        assert global_hashes(whole_plan(), processes, 0, start, 40) == expected[start:]


def test_no_source_is_read_more_often_than_its_cap_and_a_cap_that_binds_is_met_to_the_row():
    for epochs in (0.3, 0.5, 1.0, 2.3):
        plan = whole_plan(max_epochs={"notes": epochs}, steps=400)
        cap, taken = (
            int(epochs * plan.row_plans[2].rows_per_epoch + 1e-6),
            plan.mixture.rows_before(3200)[2],
        )
        assert taken == cap and "notes" in plan.mixture.spent and plan.epochs()["notes"] <= epochs
        read = [
            plan.row_plans[source].row(row)
            for step in range(400)
            for source, row in plan.rows(step)
            if source == 2
        ]
        assert sum(span.length for row in read for span in row) <= epochs * plan.row_plans[2].tokens
    with pytest.raises(
        UserError,
        match=r"phases\[2\].*204,800 tokens that the run asks for, only 143,360 .*\(web\).*max_epochs",
    ):
        whole_plan(max_epochs={"web": 0.5, "books": 9, "notes": 9}, steps=400)


def test_token_shares_over_four_phases_with_ramps_are_the_planned_ones_to_a_thousandth():
    """Counted in the spans of every row, so that packing is part of the claim."""
    plan = whole_plan(steps=2000, max_epochs={})
    tokens = np.zeros(3)
    for step in range(2000):
        for source, row in plan.rows(step):
            tokens[source] += sum(span.length for span in plan.row_plans[source].row(row))
    assert np.all(np.abs(tokens / tokens.sum() - plan.mixture.planned(16_000) / 16_000) < 1e-3)
    by_hand = [
        0.3 * 0.7 + 0.2 * 0.45 + 0.1 * 0.2 + 0.1 * 0.1 + 0.05 * 0.25 + 0.05 * 0.5,
        0.3 * 0.3 + 0.2 * 0.4 + 0.1 * 0.5 + 0.1 * 0.75 + 0.2 * 1.0 + 0.05 * 0.5,
        0.2 * 0.15 + 0.1 * 0.3 + 0.1 * 0.15 + 0.05 * 0.25 + 0.05 * 0.5,
    ]
    assert np.all(np.abs(tokens / tokens.sum() - by_hand) < 1e-3)


def test_shares_for_a_figure_are_the_phases_corners_and_the_rows_of_every_part():
    plan = whole_plan(max_epochs={})
    shares = plan.shares(points=8)
    corners = [0, 0.3, 0.3, 0.5, 0.6, 0.6, 0.7, 0.9, 0.9, 0.95, 1.0]
    assert shares["planned"]["tokens"] == [round(40 * corner) * 8 * 64 for corner in corners]
    assert np.allclose(
        shares["planned"]["shares"]["notes"], [0, 0, 0, 0.3, 0.3, 0.3, 0, 0, 0, 0.5, 0.5], atol=1e-8
    )
    assert (
        shares["realised"]["steps"] == list(range(5, 41, 5))
        and shares["realised"]["tokens"][0] == 5 * 8 * 64 // 2
    )
    for part in range(8):
        sources = [
            source for step in range(5 * part, 5 * part + 5) for source, _ in plan.rows(step)
        ]
        assert [shares["realised"]["shares"][name][part] for name in plan.train] == [
            sources.count(i) / 40 for i in range(3)
        ]


def test_batches_are_read_to_the_end_by_more_workers_than_steps_and_not_at_all_where_there_are_none():
    plan = plan_of()
    assert len(global_hashes(plan, 1, 3, 0, 2)) == 2
    assert global_hashes(plan, 1, 2, 4, 4) == []


def test_targets_are_the_next_tokens_and_never_cross_documents():
    shards = {"books": shards_of(0)}
    plan = plan_of(shards, phases=())
    for step in range(plan.row_plans[0].rows_per_epoch // plan.batch):
        batch = batch_rows(plan, step, range(plan.batch))
        same = batch["segments"][:, 1:] == batch["segments"][:, :-1]
        starts = np.pad(~same, ((0, 0), (1, 0)), constant_values=True)
        assert np.array_equal(batch["targets"][:, :-1][same], batch["tokens"][:, 1:][same])
        # A token is 1000 x document + place, or end-of-text before the first and after the last.
        inside = (batch["targets"] != EOT) & (batch["tokens"] != EOT)
        assert np.array_equal(batch["targets"][inside], batch["tokens"][inside] + 1)
        last = (batch["targets"] == EOT) & (batch["tokens"] != EOT)
        assert np.array_equal(
            batch["tokens"][last] % 1000 + 1, shards["books"].lengths[batch["tokens"][last] // 1000]
        )
        assert np.array_equal(batch["positions"] == 0, starts)
        assert np.array_equal(np.diff(batch["positions"])[same], np.ones(same.sum()))
        assert np.array_equal(np.diff(batch["segments"])[~same], np.ones((~same).sum()))
        assert np.all(batch["weights"] == 1)


def test_a_crowded_row_ends_in_padding_without_weight():
    shards = FakeShards([5] * 200)
    plan = plan_of({"notes": shards}, phases=(), max_segments=4, batch=2)
    batch = batch_rows(plan, 0, range(2))
    assert batch["segments"].tolist() == [[1] * 5 + [2] * 5 + [3] * 5 + [4] * 5 + [0] * 44] * 2
    assert np.array_equal(batch["weights"], batch["segments"] > 0)
    assert (
        not batch["tokens"][:, 20:].any()
        and not batch["targets"][:, 20:].any()
        and not batch["positions"][:, 20:].any()
    )
    assert {name: array.dtype for name, array in batch.items()} == {
        "tokens": np.int32,
        "targets": np.int32,
        "segments": np.int32,
        "positions": np.int32,
        "weights": np.float32,
    }


def row_of(shards, spans, seq_len):
    """The reference: one row, span by span, place by place."""
    row = {
        name: np.zeros(seq_len, np.int32) for name in ("tokens", "targets", "segments", "positions")
    }
    row["weights"], start = np.zeros(seq_len, np.float32), 0
    for segment, (doc, offset, length) in enumerate(spans, start=1):
        text = shards.read(doc, offset, length)
        for i in range(length):
            place = {
                "tokens": text[i],
                "targets": text[i + 1],
                "segments": segment,
                "positions": i,
                "weights": 1,
            }
            for name, value in place.items():
                row[name][start + i] = value
        start += length
    return row


@given(
    st.lists(st.lists(st.integers(1, 30), max_size=6), min_size=1, max_size=5), st.integers(0, 3)
)
@settings(max_examples=60, deadline=None)
def test_rows_assembled_together_are_those_assembled_place_by_place(lengths, spare):
    """Rows without documents, full ones, and padding of any length."""
    seq_len = max(1, max(map(sum, lengths)) + spare)
    shards = [FakeShards([40] * 6), FakeShards([31] * 6)]
    rows = [
        (shards[i % 2], [packing.DocumentSpan(doc, doc, length) for doc, length in enumerate(row)])
        for i, row in enumerate(lengths)
    ]
    batch = unfold(fold(rows, seq_len))
    for i, (of, spans) in enumerate(rows):
        for name, expected in row_of(of, spans, seq_len).items():
            assert batch[name].dtype == expected.dtype and np.array_equal(
                batch[name][i], expected
            ), name


def test_a_plan_says_how_many_documents_a_row_may_hold_and_a_worker_does_not_search_again(
    monkeypatch,
):
    long, short = shards_of(0), shards_of(1, 900, longest=12)
    plan = plan_of({"long": long, "short": short}, phases=((1.0, {"long": 1, "short": 1}),))
    bounds = [rows.max_segments for rows in plan.row_plans]
    assert plan.max_segments == max(bounds) == bounds[1] > bounds[0]
    crowds = [batch_rows(plan, step, range(8))["segments"].max() for step in range(20)]
    assert max(crowds) <= plan.max_segments
    bytes_of = pickle.dumps(plan)
    monkeypatch.setattr(packing.RowPlan, "bound", None)
    again = pickle.loads(bytes_of)
    assert again.max_segments == plan.max_segments
    assert [batch_hash(batch_rows(again, step, range(8))) for step in range(9)] == [
        batch_hash(batch_rows(plan, step, range(8))) for step in range(9)
    ]


def test_a_source_has_the_same_rows_whatever_the_others_need():
    tiny = shards_of(2, 900, longest=6)
    alone, beside = (
        plan_of({"books": shards_of(0), **more}, phases=()) for more in ({}, {"tiny": tiny})
    )
    assert beside.max_segments > alone.max_segments
    assert [beside.row_plans[0].row(r) for r in range(300)] == [
        alone.row_plans[0].row(r) for r in range(300)
    ]


def test_rows_of_a_batch_are_those_of_the_mixture_and_their_documents_are_named():
    plan = plan_of()
    rows = plan.rows(3)
    spans = [(source, span) for source, row in rows for span in plan.row_plans[source].row(row)]
    assert rows == [plan.mixture.pick(g) for g in range(24, 32)]
    assert plan.documents(3) == list(
        dict.fromkeys(f"{['books', 'web'][source]}: file line {span.doc}" for source, span in spans)
    )


def test_epochs_are_the_rows_taken_over_the_rows_of_an_epoch():
    plan = plan_of(steps=400)
    taken = [source for step in range(300) for source, _ in plan.rows(step)]
    assert plan.epochs(0) == {"books": 0, "web": 0}
    assert plan.epochs(300) == {
        name: taken.count(i) / (plan.train[name].lengths.sum() // 64)
        for i, name in enumerate(["books", "web"])
    }
    assert plan.epochs(300)["books"] > 1


def test_a_fingerprint_is_equal_for_plans_whose_earlier_batches_agree():
    plan = plan_of()
    constant = {"phases": ((1.0, {"books": 1, "web": 1}),)}
    assert plan.fingerprint(20) == plan_of(steps=50).fingerprint(20)
    assert plan_of(**constant).fingerprint(40) == plan_of(**constant, steps=4000).fingerprint(40)
    assert plan.fingerprint(20) == plan_of(
        phases=((0.5, {"books": 7, "web": 3}), (1.0, {"books": 1.0}))
    ).fingerprint(20)
    more = {"new": shards_of(2), **plan.train}
    assert plan.fingerprint(20) == plan_of(more).fingerprint(20)
    assert [plan_of(more).documents(s) for s in range(20)] == [plan.documents(s) for s in range(20)]
    assert plan.fingerprint(0) == plan_of(seed=5).fingerprint(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"batch": 4},
        {"seq_len": 32},
        {"packing": "concat"},
        {"max_segments": 7},
        {"phases": ((0.5, {"books": 0.6, "web": 0.4}), (1.0, {"web": 1}))},
        {"phases": ()},
        {"train": {"books": shards_of(0, fingerprint="other"), "web": shards_of(1, 500)}},
        {
            "train": {"book": shards_of(0), "web": shards_of(1, 500)},
            "phases": ((0.5, {"book": 0.7, "web": 0.3}), (1.0, {"web": 1})),
        },
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_fingerprint_differs_where_an_earlier_batch_could(changes):
    assert plan_of().fingerprint(1) != plan_of(**changes).fingerprint(1)


def test_a_fingerprint_notices_a_phase_that_began_earlier_or_later():
    assert plan_of().fingerprint(21) != plan_of(steps=50).fingerprint(21)
    assert plan_of(steps=50).fingerprint(25) != plan_of(steps=40).fingerprint(25)


def test_a_fingerprint_notices_ramps_caps_and_scores_once_they_are_reached_and_not_before():
    plan = whole_plan()
    steep = whole_plan(phases=[phase | {"ramp": 0.0} for phase in WHOLE["phases"]])
    assert plan.fingerprint(12) == steep.fingerprint(12) and plan.fingerprint(
        13
    ) != steep.fingerprint(13)
    capped = plan.mixture.spent["notes"] // 8  # whole steps before the cap
    free = whole_plan(max_epochs={})
    assert plan.fingerprint(capped) == free.fingerprint(capped) and plan.fingerprint(
        capped + 1
    ) != free.fingerprint(capped + 1)
    for scores in ({}, {"web": "quality"}, {"web": "-quality", "books": "quality"}):
        plan.train["books"].scores = np.zeros(300)
        assert plan_of(plan.train, **WHOLE | {"scores": scores}).fingerprint(1) != plan.fingerprint(
            1
        )
    late = WHOLE | {"phases": ((0.5, {"books": 1}), (1.0, {"web": 1}))}
    assert plan_of(plan.train, **late).fingerprint(20) == plan_of(
        plan.train, **late | {"scores": {}}
    ).fingerprint(20)
    assert plan_of(plan.train, **late).fingerprint(21) != plan_of(
        plan.train, **late | {"scores": {}}
    ).fingerprint(21)


@pytest.mark.parametrize(
    ("changes", "prints", "rows"),
    [
        ({}, ["50f2f8e41400497a", "50f2f8e41400497a", "abcdd10a02dd300c"], "440ab112ce0fb575"),
        (
            {
                "phases": [
                    {"until": 0.5, "weights": {"books": 0.7, "web": 0.3}},
                    {"until": 1.0, "weights": {"web": 1}, "ramp": 0.0},
                ]
            },
            ["50f2f8e41400497a", "50f2f8e41400497a", "abcdd10a02dd300c"],
            "440ab112ce0fb575",
        ),
        (
            {"packing": "concat"},
            ["6f25bfef58a750fe", "6f25bfef58a750fe", "d6072b27702d8225"],
            "b7f3f31d9a9ca242",
        ),
        ({"phases": ()}, ["e0739b74fab62dd0"] * 3, "affcbdae63ec8155"),
    ],
)
def test_plans_without_ramps_caps_and_scores_have_the_fingerprints_and_rows_that_checkpoints_know(
    changes, prints, rows
):
    """Golden, recorded before there were ramps, caps and scores."""
    plan = plan_of(**changes)
    assert [plan.fingerprint(step)[:16] for step in (7, 20, 21)] == prints
    spans = [
        [list(map(list, plan.row_plans[source].row(row))) for source, row in plan.rows(step)]
        for step in range(40)
    ]
    assert hashlib.sha256(json.dumps(spans).encode()).hexdigest()[:16] == rows


@pytest.mark.parametrize("max_tokens", [None, 1, 700])
def test_heldout_batches_hold_whole_documents_once_and_do_not_depend_on_processes(max_tokens):
    shards = shards_of(4, documents=60)
    options = {"seq_len": 64, "batch": 4, "max_tokens": max_tokens, "max_segments": 3}
    batches = heldout_batches(shards, **options)
    whole = list(batches)
    ends = np.cumsum(shards.lengths)
    taken = 60 if max_tokens is None else max(1, int((ends <= max_tokens).sum()))
    seen = np.concatenate(
        [np.stack([b["documents"], b["tokens"], b["targets"]], -1)[b["weights"] > 0] for b in whole]
    )
    texts = [shards.read(doc, 0, shards.lengths[doc]).tolist() for doc in range(taken)]
    expected = [(doc, *pair) for doc, text in enumerate(texts) for pair in itertools.pairwise(text)]
    assert sorted(map(tuple, seen.tolist())) == sorted(expected)
    assert len(whole) == len(batches) == len(list(batches))
    assert all(array.shape == (4, 64) for batch in whole for array in batch.values())
    assert max(batch["segments"].max() for batch in whole) <= 3
    assert all(np.array_equal(batch["documents"] == -1, batch["segments"] == 0) for batch in whole)
    for process in range(2):
        local = [process, process + 2]
        part = list(heldout_batches(shards, **options, local_rows=local))
        assert all(
            np.array_equal(mine[name], all_[name][local])
            for mine, all_ in zip(part, whole, strict=True)
            for name in all_
        )


def test_a_batch_hash_sees_every_array_and_the_order_of_rows():
    batch = batch_rows(plan_of(), 0, range(8))
    for name, array in batch.items():
        changed = array.copy()
        changed[3, 5] += 1
        assert batch_hash(batch | {name: changed}) != batch_hash(batch)
    assert batch_hash({name: array[::-1] for name, array in batch.items()}) != batch_hash(batch)
    assert (
        row_hashes({name: array[::-1] for name, array in batch.items()}) == row_hashes(batch)[::-1]
    )


WORKERS_THAT_MUST_LEAVE = """
    import multiprocessing, os, signal, sys
    import numpy as np
    from slmjax.data.loader import BatchPlan, local_batches

    class Shards:
        lengths, fingerprint = np.full(100, 50), "f"
        kind, chat = "text", None
        def read(self, doc, offset, count):
            return np.zeros(count + 1, np.int32)

    if __name__ == "__main__":
        plan = BatchPlan({"a": Shards()}, seq_len=32, batch=2, steps=10**6, seed=0)
        batches = local_batches(plan, start_step=0, stop_step=10**6, local_rows=[0, 1], workers=2)
        next(batches)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        END
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "end", ["pass", "sys.exit(3)", "raise ValueError", "os.kill(os.getpid(), signal.SIGKILL)"]
)
def test_workers_leave_with_the_program_however_it_ends(end, tmp_path):
    import os
    import time

    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(WORKERS_THAT_MUST_LEAVE).replace("END", end))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    pids = [int(pid) for pid in done.stdout.split()]
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in pids), done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_usual_number_of_documents_is_never_exceeded_where_the_run_was_looked_at_and_near_the_mean():
    """Sources of very different lengths, in two phases: the phase with more short documents decides."""
    train = {"long": shards_of(2, documents=300), "short": shards_of(3, documents=900)}
    train["long"].lengths[:], train["short"].lengths[:] = 64, 10
    options = {"seq_len": 64, "batch": 32, "steps": 40, "seed": 0, "max_segments": None}
    mixed, long = ((0.5, {"long": 1}), (1.0, {"long": 1, "short": 1})), ((1.0, {"long": 1}),)
    assert BatchPlan(train, phases=mixed, **options).places(3) is None
    for cuts in ((1, 1), (2, 8), (2, 4)):
        rows = 32 // (cuts[0] * cuts[1])
        plan, alone = (
            BatchPlan(train, phases=phases, cuts=cuts, **options) for phases in (mixed, long)
        )
        assert alone.usual_places == rows < plan.usual_places <= plan.max_segments * rows
        assert {plan.places(step) for step in range(40)} == {plan.usual_places}
        assert max(plan.documents_on_device(step, *cuts) for step in range(40)) <= plan.usual_places
    plan = BatchPlan(train, phases=mixed, cuts=(1, 1), **options)
    counts = [
        np.mean([len(plan.row_plans[source].row(row)) for source, row in plan.rows(step)])
        for step in range(20, 40)
    ]
    assert np.mean(counts) < plan.usual_places / 32 < 2 * np.mean(counts)


def test_the_crowd_of_a_step_is_that_of_the_fullest_device_and_microbatch():
    """As train/step.py cuts a batch: microbatches take every second row, devices consecutive rows of those."""
    plan = plan_of({"notes": shards_of(5, documents=200)}, phases=(), batch=8)
    counts = batch_rows(plan, 3, range(8))["segments"].max(1)
    assert plan.documents_on_device(3) == counts.sum()
    assert plan.documents_on_device(3, 2, 2) == max(
        counts[[0, 2]].sum(), counts[[4, 6]].sum(), counts[[1, 3]].sum(), counts[[5, 7]].sum()
    )
