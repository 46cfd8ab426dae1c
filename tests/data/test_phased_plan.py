"""Phases with rows of their own shape: what is read when, against a walk through the tokens row by row."""

import numpy as np
import pytest

from slmjax import config as configs
from slmjax.config.run_phases import phases_before, run_phases, tokens_before
from slmjax.data.batch_plan import BatchPlan
from slmjax.data.loader import batch_rows, local_batches
from slmjax.data.phased_plan import PhasedPlan, plan_of_phases
from slmjax.data.phases import check_phases
from slmjax.data.rows import HeldRows
from slmjax.errors import UserError
from tests.data.test_loader import shards_of

SHAPES = (
    {"tokens": 10 * 512, "weights": {"books": 0.7, "web": 0.3}},
    {"tokens": 12 * 384, "seq_len": 96, "batch": 4, "weights": {"web": 0.5, "*": 0.5}},
    {"tokens": 8 * 512, "seed": 5, "ramp": 4 * 512, "weights": {"notes": 1}},
    {"tokens": 6 * 256, "seq_len": 32},
)
STEPS = [10, 12, 8, 6]


def config_of(phases, **train):
    c = configs.base()
    c.data.seq_len, c.data.phases = 64, phases
    c.train.update({"batch": 8, "steps": 0, "warmup": 1, "decay": 0.2, **train})
    return configs.freeze(c)


def plan_for(phases, packing="best_fit", train=None, max_epochs=None, weights=None, **fields):
    config = config_of(phases, **fields)
    sources = {"books": shards_of(0), "web": shards_of(1, 500), "notes": shards_of(2, 60)}
    settings = {
        "train": train or sources,
        "seq_len": 64,
        "batch": 8,
        "steps": config.train.steps,
        "seed": 0,
        "packing": packing,
        "phases": config.data.phases,
        "max_epochs": max_epochs,
        "weights": weights,
    }
    return plan_of_phases(BatchPlan, settings, run_phases(config.data, config.train))


@pytest.mark.parametrize("packing", ["best_fit", "concat"])
def test_every_row_is_that_of_a_walk_through_the_tokens_of_each_source(packing):
    """The walk keeps the place of each source in tokens, and knows nothing of plans and mixtures."""
    plan = plan_for(SHAPES, packing)
    sizes = [int(shards.lengths.sum()) for shards in plan.train.values()]
    place, epoch = [0, 0, 0], [0, 0, 0]
    step = 0
    for phase, steps in zip(SHAPES, STEPS, strict=True):
        length, batch = phase.get("seq_len", 64), phase.get("batch", 8)
        # A phase of another shape or seed begins with a whole row.
        place = [-(-tokens // length) * length for tokens in place]
        for _ in range(steps):
            assert plan.shapes(step)["tokens"].shape == (batch, length)
            rows = plan.rows(step)
            assert len(rows) == batch
            for source, row in rows:
                if place[source] + length > sizes[source]:
                    place[source], epoch[source] = 0, epoch[source] + 1
                assert row == epoch[source] * (sizes[source] // length) + place[source] // length
                place[source] += length
            step += 1
    assert step == sum(STEPS)


def test_the_sources_of_each_phase_have_its_weights():
    plan = plan_for(SHAPES)
    counts = np.zeros((4, 3))
    edges = np.cumsum([0, *STEPS])
    for number in range(4):
        for step in range(edges[number], edges[number + 1]):
            for source, _ in plan.rows(step):
                counts[number, source] += 1
    sizes = [shards.lengths.sum() for shards in plan.train.values()]
    books_and_notes = np.array([sizes[0], 0, sizes[2]]) / (sizes[0] + sizes[2])
    np.testing.assert_allclose(counts[0], [56, 24, 0], atol=2.1)
    np.testing.assert_allclose(counts[1], 24 * np.array([0, 1, 0]) + 24 * books_and_notes, atol=2.1)
    # Web's weight falls from 0.5 to 0 in a ramp of 32 rows.
    np.testing.assert_allclose(counts[2][1], 8, atol=3.1)
    np.testing.assert_allclose(counts[3], 48 * np.array(sizes) / sum(sizes), atol=2.1)


def test_concat_reads_on_at_the_token_where_the_phase_before_left_off():
    phases = ({"tokens": 9 * 512}, {"tokens": 9 * 384, "seq_len": 96, "batch": 4})
    books = shards_of(0, 200)
    plan = plan_for(phases, "concat", {"books": books})
    assert books.lengths.sum() > plan.total_tokens  # all within one epoch
    seen = set()
    for step in range(18):
        span = plan.spans[step // 9]
        for source, row in plan.rows(step):
            for doc, offset, length in span.row_plans[source].row(row):
                tokens = {(doc, offset + i) for i in range(length)}
                assert not tokens & seen
                seen |= tokens
    assert len(seen) == plan.total_tokens
    last = plan.spans[0].row_plans[0].row(71)[-1]
    first = plan.spans[1].row_plans[0].row(48)[0]
    # 72 rows of 64 are 48 rows of 96: not a token lies between the two.
    assert (first.doc, first.offset) == (last.doc, last.offset + last.length) or first.offset == 0


def test_what_has_been_read_decides_the_fingerprint_and_what_comes_later_does_not():
    plan = plan_for(SHAPES)
    plain = plan_for(({"tokens": 30 * 512, "weights": SHAPES[0]["weights"]},))
    assert isinstance(plan, PhasedPlan) and isinstance(plain, BatchPlan)
    for step in (0, 1, 9, 10):
        assert plan.fingerprint(step) == plain.fingerprint(step)
    assert plan.fingerprint(11) != plain.fingerprint(11)
    other = plan_for((*SHAPES[:3], {"tokens": 512, "seq_len": 16}))
    assert plan.fingerprint(30) == other.fingerprint(30)
    changes = (
        (0, {"tokens": 11 * 512}),
        (1, {"batch": 8, "tokens": 12 * 768}),
        (1, {"seed": 1}),
        (1, {"weights": {"web": 1}}),
        (2, {"seed": 6}),
    )
    for number, change in changes:
        phases = list(SHAPES)
        phases[number] = {**phases[number], **change}
        assert plan_for(phases).fingerprint(25) != plan.fingerprint(25), change


def test_phases_in_tokens_are_those_in_shares_and_stars_the_sources_own_proportions():
    weights = ({"books": 0.2, "web": 0.8}, {"notes": 1.0})
    shares = plan_for(
        (
            {"until": 0.75, "weights": weights[0]},
            {"until": 1.0, "weights": weights[1], "ramp": 0.1},
        ),
        steps=40,
    )
    tokens = plan_for(
        (
            {"tokens": 30 * 512, "weights": weights[0]},
            {"tokens": 10 * 512, "weights": weights[1], "ramp": 4 * 512},
        )
    )
    assert [shares.fingerprint(step) for step in (5, 31, 40)] == [
        tokens.fingerprint(step) for step in (5, 31, 40)
    ]
    own = plan_for((), steps=40)
    for left_out in ({"tokens": 40 * 512}, {"tokens": 40 * 512, "weights": {"*": 3}}):
        assert plan_for((left_out,)).fingerprint(40) == own.fingerprint(40)
    without_notes = {"books": None, "web": None, "notes": 0}
    sources = {"books": shards_of(0), "web": shards_of(1, 500)}
    assert plan_for(({"tokens": 40 * 512},), weights=without_notes).fingerprint(40) == plan_for(
        (), train=sources, steps=40
    ).fingerprint(40)


def test_two_processes_read_across_phases_what_one_process_reads():
    plan = plan_for(SHAPES)
    firsts = tuple(span.first_step for span in plan.spans)
    hashes = [[], []]
    for process in (0, 1):
        rows = tuple(np.arange(process, span.batch, 2) for span in plan.spans)
        held = HeldRows(firsts, rows)
        with local_batches(plan, start_step=8, stop_step=24, local_rows=held) as batches:
            hashes[process] = list(batches)
    for step, parts in enumerate(zip(*hashes, strict=True), start=8):
        whole = batch_rows(plan, step, range(len(plan.rows(step))))
        for name, array in whole.items():
            for process in (0, 1):
                np.testing.assert_array_equal(parts[process][name], array[process::2])


def test_epochs_caps_and_shares_count_over_all_phases():
    phases = (
        {"tokens": 20 * 512, "weights": {"notes": 0.3, "web": 0.7}},
        {"tokens": 20 * 384, "seq_len": 96, "batch": 4, "weights": {"notes": 0.5, "web": 0.5}},
    )
    plan = plan_for(phases, max_epochs={"notes": 1.0})
    read = np.zeros(3)
    for step in range(40):
        length = plan.shapes(step)["tokens"].shape[1]
        for source, _ in plan.rows(step):
            read[source] += length
    sizes = np.array([shards.lengths.sum() for shards in plan.train.values()])
    np.testing.assert_allclose(list(plan.epochs().values()), read / sizes, atol=0.06)
    assert plan.epochs()["notes"] == pytest.approx(1.0)
    (spent,) = plan.spent().values()
    assert 20 * 512 < spent < plan.total_tokens == 20 * 512 + 20 * 384
    shares = plan.shares()
    assert shares["realised"]["steps"][-1] == 40 and shares["planned"]["tokens"][-1] == 17_920
    assert np.all(np.diff(shares["realised"]["tokens"]) > 0)
    np.testing.assert_allclose(np.sum(list(shares["realised"]["shares"].values()), 0), 1)
    config = config_of(phases)
    spent = tokens_before(run_phases(config.data, config.train), 25)
    assert spent == {64: 20 * 512, 96: 5 * 384}


def test_the_steps_before_a_branch_are_written_as_phases_in_tokens():
    plan = plan_for(SHAPES)
    config = config_of(SHAPES)
    with pytest.raises(UserError, match="step 24 lies where the weights or the rate"):
        phases_before(config.data, config.train, 24)
    for step in (7, 10, 15, 27, 36):
        phases = phases_before(config.data, config.train, step)
        again = plan_for([{k: v for k, v in p.items() if k != "rate"} for p in phases])
        assert again.spans[-1].stop_step == step
        assert again.fingerprint(step) == plan.fingerprint(step)


PEAK = {"until": 1.0, "rate": (1, 0)}


@pytest.mark.parametrize(
    ("phases", "train", "message"),
    [
        (({"tokens": 512}, {"until": 1.0}), {}, r"phases\[1\] has no 'tokens', but another"),
        (({"tokens": 512, "until": 1.0},), {}, "expected {'until'"),
        (({"tokens": 100},), {}, "less than a step of 512"),
        (({"tokens": -1},), {}, "tokens is -1; expected a positive number"),
        (({"tokens": "all"},), {}, "expected {'until'"),
        (({"tokens": 5120},), {"steps": 7}, "steps is 7, but .* are 10 steps; .*steps=0"),
        (({"tokens": 1e15},), {}, "a run can have 2,147,483,647"),
        (({"tokens": 512, "ramp": 512},), {}, "the first has no weights to come from"),
        (({"tokens": 512}, {"tokens": 512, "ramp": 600}), {}, r"ramp is 600; expected 0 to 512"),
        (({"tokens": 512, "seq_len": 0},), {}, "seq_len is 0; expected a positive whole number"),
        (({"tokens": 512, "batch": 1.5},), {}, "batch is 1.5; expected a positive whole number"),
        (({"tokens": 512, "batch": 3},), {"microbatches": 2}, r"must divide .*\[0\].batch, 3"),
        (({"tokens": 512, "seed": -1},), {}, "seed is -1; expected a whole number of 0 or more"),
        (({"tokens": 512, "lenght": 3},), {}, "has no field 'lenght'"),
        (({"tokens": 512, "rate": 1},), {"schedule": "phases"}, "rate is 1; expected two factors"),
        (({"tokens": 512, "rate": (1, -1)},), {"schedule": "phases"}, "expected two factors"),
        (({"tokens": 512},), {"schedule": "phases"}, "has no rate, which"),
        ((PEAK,), {"steps": 10}, "has a rate, which config.train.schedule='wsd' does not read"),
        ((), {"schedule": "phases", "steps": 10}, "is 'phases', but config.data.phases is empty"),
        ((), {"steps": 0, "branch": True}, "branch is True, but config.train.steps is 0"),
    ],
)
def test_phases_that_cannot_be_are_refused_in_one_sentence(phases, train, message):
    with pytest.raises(UserError, match=message) as refused:
        config_of(phases, **train)
    assert str(refused.value).count("\n") == 0


def test_a_star_without_sources_is_refused_before_any_text_is_read():
    weights = {"books": None, "web": None}
    check_phases(({"until": 1.0, "weights": {"books": 1, "*": 1}},), list(weights), weights)
    with pytest.raises(UserError, match=r"data.phases\[0\] gives a weight to '\*'"):
        given = {"books": 0.5, "web": 0.3, "*": 0.2}
        check_phases(({"until": 1.0, "weights": given},), list(weights), weights)
