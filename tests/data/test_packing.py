"""Packing plans against what must hold for any plan: every token once, every row full, the same row however it is reached."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.best_fit import best_fit_decreasing
from slmjax.data.packing import PACKINGS, RowPlan, first_fit, random_bits
from slmjax.errors import UserError

ANY_NUMBER = 10**6

lengths_of_documents = st.lists(
    st.one_of(st.integers(1, 9), st.integers(1, 120)), min_size=1, max_size=80
).map(np.array)
packing_names = st.sampled_from(PACKINGS)


def plan_of(lengths, seq_len, *, seed=0, packing="best_fit", most=ANY_NUMBER):
    return RowPlan(np.asarray(lengths), seq_len, seed=seed, packing=packing, max_segments=most)


def tokens_of(rows):
    """(document, token) of every token that the rows hold."""
    return [(span.doc, span.offset + i) for row in rows for span in row for i in range(span.length)]


def realistic_lengths(documents=3000):
    """Log-normal, as web text: most documents of some hundred tokens, a few of many thousand."""
    return np.exp(np.random.default_rng(0).normal(5.6, 1.0, documents)).astype(int) + 2


@given(
    lengths_of_documents, st.integers(1, 40), st.integers(0, 9), packing_names, st.integers(0, 3)
)
@settings(max_examples=150)
def test_an_epoch_has_every_token_at_most_once_in_full_rows_and_leaves_out_less_than_one(
    lengths, seq_len, seed, packing, epoch
):
    if lengths.sum() < seq_len:
        return
    plan = plan_of(lengths, seq_len, seed=seed, packing=packing)
    first = epoch * plan.rows_per_epoch
    rows = [plan.row(r) for r in range(first, first + plan.rows_per_epoch)]
    tokens = tokens_of(rows)
    assert all(sum(span.length for span in row) == seq_len for row in rows)
    assert (
        len(set(tokens)) == len(tokens) == plan.rows_per_epoch * seq_len > lengths.sum() - seq_len
    )
    assert all(0 <= token < lengths[doc] for doc, token in tokens)


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_epoch_of_several_windows_that_the_text_fills_exactly_has_every_token_exactly_once(
    packing,
):
    lengths = np.random.default_rng(1).integers(2, 90, 2000)
    lengths[-1] += -lengths.sum() % 64
    plan = plan_of(lengths, 64, packing=packing)
    tokens = tokens_of(plan.row(r) for r in range(plan.rows_per_epoch))
    assert plan.rows_per_epoch > 3 * 256
    assert sorted(tokens) == [(doc, token) for doc, n in enumerate(lengths) for token in range(n)]


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_reached_in_any_order_and_through_a_pickle_are_those_reached_in_sequence(packing):
    lengths = realistic_lengths()
    plan, other = (
        plan_of(lengths, 256, packing=packing),
        pickle.loads(pickle.dumps(plan_of(lengths, 256, packing=packing))),
    )
    count = 2 * plan.rows_per_epoch + 5
    order = np.random.default_rng(0).permutation(count)[:60]
    sequence = [plan.row(r) for r in range(count)]
    assert [other.row(int(r)) for r in order] == [sequence[r] for r in order]


@pytest.mark.parametrize("packing", PACKINGS)
def test_epochs_and_seeds_and_names_give_other_orders(packing):
    lengths = np.random.default_rng(0).integers(20, 300, 400)
    plan = plan_of(lengths, 128, packing=packing)
    first = [plan.row(r) for r in range(50)]
    named = RowPlan(lengths, 128, seed=0, packing=packing, max_segments=ANY_NUMBER, name="another")
    assert first != [plan.row(plan.rows_per_epoch + r) for r in range(50)]
    assert first != [plan_of(lengths, 128, seed=1, packing=packing).row(r) for r in range(50)]
    assert first != [named.row(r) for r in range(50)]


def test_best_fit_keeps_nearly_all_documents_whole_that_fit_into_a_row_and_concat_does_not():
    lengths = realistic_lengths(6000)
    short = np.flatnonzero(lengths <= 1024)
    whole = {}
    for packing in PACKINGS:
        plan = plan_of(lengths, 1024, packing=packing)
        spans = {span for r in range(plan.rows_per_epoch) for span in plan.row(r)}
        whole[packing] = sum((doc, 0, lengths[doc]) in spans for doc in short) / len(short)
    assert whole["best_fit"] > 0.97 and whole["concat"] < 0.75, whole


def plain_best_fit(lengths, rows, capacity):
    """Best-fit-decreasing and nothing else, by looking at every row: the row of each piece, -1 where none takes it."""
    gaps, where = np.full(rows, capacity), np.full(len(lengths), -1)
    for piece in np.argsort(-lengths, kind="stable"):
        room = np.where(gaps >= lengths[piece], gaps, capacity + 1)
        row = int(np.argmin(room))
        if room[row] <= capacity:
            where[piece], gaps[row] = row, gaps[row] - lengths[piece]
    return where


def pieces_that_fill(rows, capacity, median, spread, seed):
    """Log-normal lengths that add up to the rows exactly."""
    drawn = (
        np.exp(
            np.random.default_rng(seed).normal(
                np.log(median), spread, 40 * rows * capacity // median
            )
        ).astype(int)
        + 1
    )
    lengths = np.minimum(drawn, capacity)
    count = int(np.searchsorted(np.cumsum(lengths), rows * capacity))
    return np.append(lengths[:count], rows * capacity - lengths[:count].sum())


@pytest.mark.parametrize(
    ("capacity", "median", "most"),
    [(1024, 130, 12), (2048, 130, 24), (512, 30, 28), (2048, 400, 8)],
)
def test_short_documents_are_spread_over_rows_and_about_as_many_stay_whole_as_by_plain_best_fit(
    capacity, median, most
):
    rows, cut, plain_cut, crowd, plain_crowd = 256, 0, 0, 0, 0
    for seed in range(2):
        lengths = pieces_that_fill(rows, capacity, median, 0.7, seed)
        row, piece, _, length = best_fit_decreasing(lengths, rows, capacity, most)
        assert np.array_equal(np.bincount(row, length, rows), np.full(rows, capacity))
        assert np.array_equal(np.bincount(piece, length, len(lengths)), lengths)
        crowd = max(crowd, np.bincount(row).max())
        cut += int((np.bincount(piece) > 1).sum())
        plain = plain_best_fit(lengths, rows, capacity)
        plain_crowd = max(plain_crowd, np.bincount(plain[plain >= 0]).max())
        plain_cut += int((plain < 0).sum())
    assert crowd <= most < plain_crowd / 2, (crowd, plain_crowd)
    assert cut <= 1.7 * plain_cut, (cut, plain_cut)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("seq_len", [256, 1024])
def test_the_bound_that_a_plan_finds_is_small_and_kept_and_leaves_nothing_out(packing, seq_len):
    lengths = np.exp(np.random.default_rng(0).normal(4.9, 0.5, 30_000)).astype(int) + 2
    plan = plan_of(lengths, seq_len, packing=packing, most=None)
    counts = np.array([len(plan.row(r)) for r in range(plan.rows_per_epoch + 100)])
    assert plan.max_segments % 4 == 0 and plan.dropped_share(rows=ANY_NUMBER) == 0
    assert (
        counts.max()
        <= plan.max_segments
        <= max(8, (1.8 if packing == "best_fit" else 3.5) * counts.mean())
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_bound_is_found_again_and_gives_the_same_rows_when_it_is_given(packing):
    lengths = np.random.default_rng(3).integers(2, 200, 6000)
    found, again = (plan_of(lengths, 256, packing=packing, most=None) for _ in range(2))
    given = plan_of(lengths, 256, packing=packing, most=found.max_segments)
    assert found.max_segments == again.max_segments
    assert [found.row(r) for r in range(0, 3000, 7)] == [given.row(r) for r in range(0, 3000, 7)]


def test_a_bound_that_the_average_row_cannot_keep_is_raised_until_nothing_is_left_out():
    """Long documents fill rows of their own; all the short ones fall to the rest, far more than an average row has."""
    lengths = np.concatenate(
        [np.full(200, 100_000), np.random.default_rng(0).integers(8, 40, 60_000)]
    )
    plan = plan_of(lengths, 1024, most=None)
    average = len(lengths) / plan.rows_per_epoch
    assert plan.max_segments > 1.5 * average and plan.dropped_share() < 1e-4
    assert plan_of(lengths, 1024, most=int(1.25 * average)).dropped_share() > 1e-3


def test_place_in_a_window_says_nothing_about_document_length():
    plan = plan_of(realistic_lengths(6000), 1024)
    counts = np.array([len(plan.row(r)) for r in range(1024)]).reshape(4, 256)
    early, late = counts[:, :128].mean(), counts[:, 128:].mean()
    assert abs(early - late) < 0.15 * counts.mean()


@given(lengths_of_documents, st.integers(2, 40), st.integers(1, 6), packing_names)
@settings(max_examples=150)
def test_no_row_has_more_spans_than_the_bound_and_what_is_left_out_is_counted(
    lengths, seq_len, most, packing
):
    if lengths.sum() < seq_len:
        return
    plan = plan_of(lengths, seq_len, packing=packing, most=most)
    rows = [plan.row(r) for r in range(plan.rows_per_epoch)]
    tokens = tokens_of(rows)
    assert max(map(len, rows)) <= most and len(set(tokens)) == len(tokens)
    assert plan.dropped_share() == pytest.approx(1 - len(tokens) / (plan.rows_per_epoch * seq_len))


def test_the_share_left_out_of_a_sample_is_near_that_of_all_rows():
    lengths = np.random.default_rng(0).integers(2, 60, 40_000)
    for packing in PACKINGS:
        plan = plan_of(lengths, 256, packing=packing, most=8)
        assert plan.dropped_share(rows=512) == pytest.approx(
            plan.dropped_share(rows=ANY_NUMBER), rel=0.1
        )


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("documents", [100, 600])
@pytest.mark.parametrize("by_length", [False, True])
def test_documents_with_scores_are_visited_from_low_to_high_mixed_with_their_neighbours_and_all_of_them(
    packing, documents, by_length
):
    lengths = realistic_lengths(documents)
    scores = lengths.astype(float) if by_length else np.random.default_rng(1).normal(size=documents)
    plan = RowPlan(lengths, 256, seed=0, packing=packing, max_segments=None, scores=scores)
    rank = np.argsort(np.argsort(scores)) / documents
    count = plan.rows_per_epoch
    for first in (0, count):
        rows = [plan.row(r) for r in range(first, first + count)]
        assert len(set(tokens_of(rows))) == len(tokens_of(rows)) > (1 - 1e-3) * count * 256
        of_row = [
            np.average([rank[span.doc] for span in row], weights=[span.length for span in row])
            for row in rows
        ]
        assert np.corrcoef(np.argsort(np.argsort(of_row)), np.arange(count))[0, 1] > 0.98
        assert (
            np.mean(np.diff(of_row) < 0) > 0.2
        )  # mixed: many a row is followed by one of lower scores
    assert [plan.row(r) for r in range(9)] != [plan.row(count + r) for r in range(9)]


def test_documents_of_equal_score_are_in_random_order_within_it():
    lengths = np.full(4000, 64)
    plan = RowPlan(
        lengths, 64, seed=0, packing="concat", max_segments=4, scores=np.repeat([2.0, 1.0], 2000)
    )
    visited = np.array([plan.row(r)[0].doc for r in range(4000)])
    for docs in (
        visited[:1500] - 2000,
        visited[2500:],
    ):  # a tenth of the epoch is mixed around the middle
        assert docs.min() >= 0 and docs.max() < 2000
        assert abs(np.corrcoef(docs, np.arange(1500))[0, 1]) < 0.1


def test_text_shorter_than_a_row_is_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"books has 30 tokens.*seq_len=64"):
        RowPlan(np.array([10, 20]), 64, seed=0, packing="concat", max_segments=16, name="books")
    with pytest.raises(UserError, match=r"'bestfit'.*Did you mean 'best_fit'"):
        plan_of([100], 10, packing="bestfit")


@given(lengths_of_documents, st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=100)
def test_first_fit_holds_every_token_once_within_both_bounds(lengths, seq_len, most):
    rows = first_fit(lengths, seq_len, most)
    assert sorted(tokens_of(rows)) == [
        (doc, token) for doc, n in enumerate(lengths) for token in range(n)
    ]
    assert all(len(row) <= most and sum(span.length for span in row) <= seq_len for row in rows)


def test_the_order_of_documents_is_the_one_that_this_format_promises():
    """Golden: another numpy, machine or edit that changes the order would silently break the resume of every run."""
    plan = plan_of([7, 5, 9, 4, 3, 8, 6, 2], 11, seed=3)
    assert random_bits(2, "documents", 3, "the text", 0).tolist() == [
        16450803957693634647,
        8255719596540568222,
    ]
    assert [list(plan.row(r)) for r in range(3)] == [
        [(2, 0, 9), (7, 0, 2)],
        [(1, 0, 5), (6, 0, 6)],
        [(5, 0, 8), (4, 0, 3)],
    ]
