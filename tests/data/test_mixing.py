"""The mixture schedule: shares as planned at every row, through ramps and caps; picks that depend only on what has begun."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.mixing import Mixture
from slmjax.data.stretch import BLOCK_ROWS
from slmjax.errors import UserError

weights_of_sources = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-4, 1), st.floats(0.1, 1)), min_size=1, max_size=7
).filter(any)


def mixture_of(weights, total_rows=10_000, seed=0, **options):
    names = [f"s{i}" for i in range(len(weights))]
    return Mixture(
        names, [1] * len(names), ((1.0, dict(zip(names, weights))),), total_rows, seed, **options
    )


def sources_of(mixture, stop, start=0):
    return np.array([mixture.pick(g)[0] for g in range(start, stop)])


@given(weights_of_sources, st.integers(0, 5), st.integers(1, 4))
@settings(max_examples=60)
def test_counts_after_whole_blocks_are_the_exact_share_rounded_down_or_up(weights, seed, blocks):
    mixture = mixture_of(weights, seed=seed)
    rows = blocks * BLOCK_ROWS
    counts = mixture.rows_before(rows)
    exact = np.array(weights) / sum(weights) * rows
    assert counts.sum() == rows
    assert np.all(np.abs(counts - exact) < 1 + 1e-5)  # weights are kept to 2^-30
    assert np.all(counts[np.array(weights) == 0] == 0)
    assert np.all(np.abs(counts / rows - exact / rows) < 1e-3)


@given(weights_of_sources, st.integers(0, 5))
@settings(max_examples=12)
def test_at_every_row_each_source_is_near_its_share(weights, seed):
    sources = sources_of(mixture_of(weights, seed=seed), 1500)
    share = np.array(weights) / sum(weights)
    counts = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    exact = np.arange(1, len(sources) + 1)[:, None] * share
    assert np.all(np.abs(counts - exact) < 2 + share * len(weights))


@given(weights_of_sources, st.integers(0, 5), st.integers(1, 2500))
@settings(max_examples=12)
def test_each_source_is_read_row_by_row_and_rows_before_counts_them(weights, seed, stop):
    mixture = mixture_of(weights, total_rows=2000, seed=seed, align=3)
    picks = [mixture.pick(g) for g in range(stop)]
    for source in range(len(weights)):
        rows = [row for s, row in picks if s == source]
        assert rows == list(range(len(rows)))
        assert mixture.rows_before(stop)[source] == len(rows)


def test_many_small_sources_beside_a_large_one_stay_within_one_row_at_every_block_edge():
    """The case that breaks largest-remainder rounding: small sources rounded up early would have to be taken back."""
    weights = np.array([0.9] + [0.1 / 97] * 97)
    mixture = mixture_of(weights, total_rows=200 * BLOCK_ROWS)
    counts = np.array([mixture.rows_before(block * BLOCK_ROWS) for block in range(200)])
    assert np.all(np.diff(counts, axis=0) >= 0)
    assert np.all(np.abs(counts - weights * np.arange(200)[:, None] * BLOCK_ROWS) < 1 + 1e-4)


def test_a_longer_run_begins_with_the_picks_of_a_shorter_one():
    short, long = (mixture_of([0.2, 0.5, 0.3], total_rows=rows) for rows in (1500, 9000))
    assert [short.pick(g) for g in range(3000)] == [long.pick(g) for g in range(3000)]


def test_picks_agree_up_to_the_earlier_boundary_and_differ_after_it():
    phases = ((0.5, {"a": 0.9, "b": 0.1}), (1.0, {"a": 0.1, "b": 0.9}))
    short, long = (Mixture(["a", "b"], [1, 1], phases, rows, 0) for rows in (3000, 5000))
    assert [short.pick(g) for g in range(1500)] == [long.pick(g) for g in range(1500)]
    assert (
        sources_of(short, 2500, 1500).mean() > 0.88 and sources_of(long, 2500, 1500).mean() < 0.12
    )
    assert short.stretches_before(1500) == long.stretches_before(1500) and short.stretches_before(
        1501
    ) != long.stretches_before(1501)


def test_phases_have_their_own_shares_and_rows_go_on_over_the_boundary():
    phases = ((0.3, {"a": 1}), (0.8, {"a": 1, "b": 3}), (1.0, {"b": 1}))
    mixture = Mixture(["a", "b"], [5, 5], phases, 20_000, 0, align=16)
    picks = [mixture.pick(g) for g in range(20_000)]
    sources = np.array([source for source, _ in picks])
    assert sources[:6000].sum() == 0 and np.all(sources[16_000:] == 1)
    assert abs(sources[6000:16_000].mean() - 0.75) < 1e-3
    assert [row for source, row in picks if source == 1] == list(range(sources.sum()))


def test_a_source_of_weight_zero_and_the_order_of_names_leave_the_picks_alone():
    def named(names, weights):
        mixture = Mixture(names, [1] * len(names), ((1.0, weights),), 5000, 0)
        return [(names[source], row) for source, row in (mixture.pick(g) for g in range(3000))]

    weights = {"a": 0.3, "b": 0.5, "c": 0.2}
    assert named(["a", "b", "c"], weights) == named(["c", "x", "b", "a"], weights)


def test_order_is_by_random_access_through_a_pickle_and_another_with_another_seed():
    mixture, copy = mixture_of([0.4, 0.6]), pickle.loads(pickle.dumps(mixture_of([0.4, 0.6])))
    picks = [mixture.pick(g) for g in range(3000)]
    order = np.random.default_rng(0).permutation(3000)[:300]
    assert [copy.pick(int(g)) for g in order] == [picks[g] for g in order]
    assert picks[:300] != [mixture_of([0.4, 0.6], seed=1).pick(g) for g in range(300)]


def test_without_phases_shares_are_the_given_weights_or_else_the_tokens():
    by_tokens = Mixture(["a", "b"], [300, 100], (), 4096, 0)
    by_weight = Mixture(["a", "b"], [300, 100], (), 4096, 0, weights={"a": 1, "b": 1})
    assert by_tokens.rows_before(4096).tolist() == [3072, 1024]
    assert by_weight.rows_before(4096).tolist() == [2048, 2048]


@pytest.mark.parametrize(
    ("phases", "weights", "message"),
    [
        (((1.0, {"boks": 1.0}),), None, "'boks'.*Did you mean 'books'"),
        (((1.0, {"books": 0.0}),), None, "every source the weight 0"),
        (((1.0, {"books": -0.1, "web": 1}),), None, "weight -0.1"),
        (((1.0, {"books": float("nan")}),), None, "weight nan"),
        (((1.0, {"books": "half"}),), None, "weight 'half'; expected"),
        (((1.0, {"books": True}),), None, "weight True; expected"),
        (((1.0, {1: 1}),), None, "gives 1 the weight 1; expected a source's name"),
        (((0.5, {"books": 1}),), None, "last one 1.0"),
        (((0.5, {"books": 1}), (0.5, {"web": 1}), (1.0, {"web": 1})), None, "increasing"),
        (
            [{"until": 1.0, "weights": {"books": 1}, "ramp": 0.1}],
            None,
            r"\[0\].ramp is 0.1; expected 0 to 0,.*no weights to come from",
        ),
        (
            [(0.7, {"books": 1}), (1.0, {"web": 1}, 0.4)],
            None,
            r"\[1\].ramp is 0.4; expected 0 to 0.3",
        ),
        (
            [{"until": 1.0, "weight": {"books": 1}}],
            None,
            r"phases\[0\] has no field 'weight'.*Did you mean 'weights'",
        ),
        ([{"weights": {"books": 1}}], None, "expected {'until': 0.8"),
        ([1.0], None, "expected {'until': 0.8"),
        ((), {"books": 0.5, "web": None}, "none to 'web'"),
    ],
)
def test_a_wrong_mixture_is_refused_in_one_sentence(phases, weights, message):
    with pytest.raises(UserError, match=message):
        Mixture(["books", "web"], [1, 1], phases, 1000, 0, weights=weights)


NAMES = ["books", "web", "code", "math", "notes"]
FOUR = (
    (0.13, {"web": 0.9, "math": 0.1}),
    (0.5, {"books": 1 / 3, "web": 1 / 3, "code": 1 / 3}),
    (0.77, {"notes": 1}),
    (1.0, {"books": 0.1, "web": 0.2, "code": 0.3, "math": 0.4}),
)


@pytest.mark.parametrize(
    ("phases", "picks", "begun"),
    [
        (
            ((1.0, {"books": 0.41, "web": 0.3, "code": 0.2, "math": 0.0899, "notes": 1e-4}),),
            "9fbf580befd18448",
            "86722e868c069d23",
        ),
        (FOUR, "518d53a84a97d894", "f2e6fd183987a750"),
        ((), "854915389da121b4", "43bfe0395750fbea"),
    ],
)
def test_phases_without_ramps_and_caps_have_the_order_that_this_format_promises(
    phases, picks, begun
):
    """Golden, recorded before there were ramps and caps: another order would silently break the resume of every run."""
    mixture = Mixture(NAMES, [500, 300, 100, 70, 31], phases, 20_000, 7, align=24)
    found = ([mixture.pick(g) for g in range(20_000)], mixture.stretches_before(15_000))
    assert tuple(hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for part in found) == (
        picks,
        begun,
    )


@st.composite
def schedules(draw, capped=False):
    """Arguments of a Mixture: any number of sources and phases, weights of zero, ramps of any length; caps for all but the first source."""
    names = [f"s{i}" for i in range(draw(st.integers(1, 5)))]
    weight = st.one_of(st.just(0.0), st.floats(1e-4, 1), st.floats(0.1, 1))
    ends = [*sorted(draw(st.sets(st.floats(0.02, 0.98), max_size=4))), 1.0]
    phases, begin = [], 0.0
    for end in ends:
        weights = draw(st.lists(weight, min_size=len(names), max_size=len(names)).filter(any))
        if (
            capped
        ):  # the first has no cap and always some weight, so that a run never ends for want of text
            weights[0] = max(weights[0], 0.05)
        ramp = draw(st.sampled_from([0.0, 0.0, 0.3, 0.7, 1.0])) * (end - begin) if phases else 0.0
        phases.append({"until": end, "weights": dict(zip(names, weights)), "ramp": ramp})
        begin = end
    rows = draw(st.integers(1, 4000))
    caps = (
        {name: draw(st.integers(0, rows)) for name in names[1:] if draw(st.booleans())}
        if capped
        else {}
    )
    return {
        "names": names,
        "tokens": [1] * len(names),
        "phases": phases,
        "total_rows": rows,
        "seed": draw(st.integers(0, 3)),
        "align": draw(st.sampled_from([1, 7, 64])),
        "caps": caps,
    }


def rows_by_hand(schedule):
    """The weights of every row, one by one: in a ramp those of the row's middle. Shape: rows x sources."""
    total, align = schedule["total_rows"], schedule["align"]
    begin, old, out = 0, None, []
    for phase in schedule["phases"]:
        new = np.array(list(phase["weights"].values())) / sum(phase["weights"].values())
        end = total if phase["until"] == 1.0 else round(phase["until"] * total / align) * align
        ramp = round(phase["ramp"] * total / align) * align
        for row in range(end - begin):
            part = min(1.0, (row + 0.5) / ramp) if ramp else 1.0
            out.append(new if old is None else old + part * (new - old))
        begin, old = max(begin, end), new
    return np.array(out[:total])


@given(schedules())
@settings(max_examples=60)
def test_what_is_planned_is_the_sum_of_the_weights_row_by_row(schedule):
    sums = np.concatenate(
        [np.zeros((1, len(schedule["names"]))), np.cumsum(rows_by_hand(schedule), 0)]
    )
    mixture = Mixture(**schedule)
    for g in {0, 1, *range(0, len(sums), 97), schedule["total_rows"]}:
        assert np.allclose(
            mixture.planned(g), sums[g], rtol=0, atol=1e-5 * (1 + len(sums) / 1000)
        )  # weights are kept to 2^-30


@given(schedules(capped=False) | schedules(capped=True))
@settings(max_examples=60)
def test_any_schedule_gives_every_source_its_rows_in_order_near_what_is_planned_and_none_beyond_its_cap(
    schedule,
):
    mixture = Mixture(**schedule)
    total, sources = schedule["total_rows"], len(schedule["names"])
    picks = [mixture.pick(g) for g in range(total)]
    for source in range(sources):
        rows = [row for of, row in picks if of == source]
        assert rows == list(range(len(rows)))
    counts = np.cumsum([np.arange(sources) == source for source, _ in picks], 0)
    counts = np.concatenate([np.zeros((1, sources), np.int64), counts])
    assert all(
        np.array_equal(mixture.rows_before(g), counts[g]) for g in {0, total, *range(0, total, 61)}
    )
    caps = np.array([schedule["caps"].get(name, total) for name in schedule["names"]])
    assert np.all(counts[-1] <= caps)
    assert all(
        counts[-1][mixture.names.index(name)] == schedule["caps"][name] for name in mixture.spent
    )
    starts = [start for start, *_ in mixture.stretches_before(total)]
    for start, stop in zip(starts, [*starts[1:], total]):
        for g in {*range(start, stop, 31), stop}:
            off = counts[g] - counts[start] - (mixture.planned(g) - mixture.planned(start))
            assert np.all(np.abs(off) < 2 + sources)


@given(schedules(capped=True), st.data())
@settings(max_examples=30)
def test_caps_and_ramps_are_of_no_matter_before_they_are_reached(schedule, data):
    """A plan without them agrees, in picks and in what is fingerprinted, up to the row where the first of them begins to tell."""
    mixture, plain = Mixture(**schedule), Mixture(**schedule | {"caps": {}})
    first = min(mixture.spent.values(), default=schedule["total_rows"])
    assert mixture.stretches_before(first) == plain.stretches_before(first)
    if first:
        g = data.draw(st.integers(0, first - 1))
        assert mixture.pick(g) == plain.pick(g)
    if first < schedule["total_rows"]:
        assert mixture.stretches_before(first + 1) != plain.stretches_before(first + 1)
    steep = Mixture(
        **schedule | {"phases": [phase | {"ramp": 0.0} for phase in schedule["phases"]], "caps": {}}
    )
    ramps = [entry[0] for entry in plain.stretches_before(schedule["total_rows"]) if len(entry) > 2]
    begin = min(ramps, default=schedule["total_rows"])
    assert steep.stretches_before(begin) == plain.stretches_before(begin)
    assert not ramps or steep.stretches_before(begin + 1) != plain.stretches_before(begin + 1)


def test_a_cap_gives_the_rest_of_a_sources_share_to_the_others_in_proportion():
    mixture = Mixture(
        ["a", "b", "c"],
        [1] * 3,
        ((1.0, {"a": 0.5, "b": 0.3, "c": 0.2}),),
        20_000,
        0,
        caps={"a": 4000},
    )
    at = mixture.spent["a"]
    assert mixture.pick(at - 1) == (0, 3999) and abs(at - 8000) < 5
    after = mixture.rows_before(20_000) - mixture.rows_before(at)
    assert after[0] == 0 and np.allclose(after / after.sum(), [0, 0.6, 0.4], atol=2 / 12_000)


def test_a_ramp_interrupted_by_a_cap_goes_on_to_what_is_left_of_the_weights():
    phases = [(0.5, {"a": 1}), {"until": 1.0, "weights": {"b": 0.5, "c": 0.5}, "ramp": 0.5}]
    mixture = Mixture(["a", "b", "c"], [1] * 3, phases, 40_000, 0, caps={"b": 500})
    corners = dict(mixture.weights())  # of two at a jump the later one
    at = mixture.spent["b"]
    part = (at - 20_000) / 20_000
    assert np.allclose(corners[at], np.array([1 - part, 0, part / 2]) / (1 - part / 2), atol=1e-8)
    assert np.allclose(corners[40_000], [0, 0, 1]) and mixture.rows_before(40_000)[1] == 500


@pytest.mark.parametrize("caps", [{"a": 300, "b": 200}, {"a": 0, "b": 0}, {"b": 500}])
def test_a_run_that_asks_for_more_than_the_caps_allow_is_refused_with_both_numbers(caps):
    phases = ((0.5, {"a": 0.5, "b": 0.5}), (1.0, {"b": 1.0}))
    allowed = 1000 + min(1000, caps["b"] - 500) if "a" not in caps else sum(caps.values())
    whole = (
        rf"2,048,000 tokens that the run asks for, only {allowed * 1024:,} can be read.*max_epochs"
    )
    with pytest.raises(UserError, match=whole):
        Mixture(["a", "b"], [1, 1], phases, 2000, 0, caps=caps, row_tokens=1024)


def test_a_run_of_four_phases_with_ramps_has_the_planned_shares_to_a_thousandth_at_every_phase_and_in_all():
    phases = [
        {"until": 0.4, "weights": {"web": 0.8, "books": 0.2}},
        {"until": 0.7, "weights": {"web": 0.5, "books": 0.3, "code": 0.2}, "ramp": 0.1},
        {"until": 0.9, "weights": {"web": 0.25, "code": 0.25, "math": 0.5}, "ramp": 0.2},
        {"until": 1.0, "weights": {"math": 0.7, "notes": 0.3}, "ramp": 0.05},
    ]
    rows = 40_000
    mixture = Mixture(NAMES, [1] * 5, phases, rows, 3, align=32)
    sources = sources_of(mixture, rows)
    for begin, end in (
        (0, 16_000),
        (16_000, 28_000),
        (28_000, 36_000),
        (36_000, 40_000),
        (0, 40_000),
    ):
        share = np.bincount(sources[begin:end], minlength=5) / (end - begin)
        assert np.all(
            np.abs(share - (mixture.planned(end) - mixture.planned(begin)) / (end - begin)) < 1e-3
        )
    # By hand, over the run: constant parts, and half of a ramp's length at each of its ends.
    web = 0.4 * 0.8 + 0.1 * (0.8 + 0.5) / 2 + 0.2 * 0.5 + 0.2 * (0.5 + 0.25) / 2 + 0.05 * 0.25 / 2
    assert abs((sources == 1).mean() - web) < 1e-3


def test_a_mixture_is_the_selection_map_of_a_grain_dataset_over_rows():
    import grain

    phases = [(0.5, {"a": 1, "b": 1}), {"until": 1.0, "weights": {"b": 1}, "ramp": 0.2}]
    mixture = Mixture(["a", "b"], [1, 1], phases, 300, 0)
    rows = [grain.MapDataset.source([f"{name}{row}" for row in range(300)]) for name in "ab"]
    mixed = grain.MapDataset.select_from_datasets(rows, pickle.loads(pickle.dumps(mixture)))
    assert list(mixed) == [f"{'ab'[source]}{row}" for source, row in map(mixture.pick, range(300))]
    assert len(mixed[100:200:7]) == 15 and mixed[100:200:7][1] == mixed[107]
