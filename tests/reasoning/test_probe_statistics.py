"""The probe's tests hold their level, find what they promise to find, and agree with other ways to compute them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.reasoning import probe_statistics as statistics
from slmjax.reasoning.example_problems import example_problems, word_problem
from slmjax.reasoning.probe_scores import probe_instances, run_probe, step_counts
from slmjax.reasoning.probe_words import column_result, novelties, probe_sentences
from slmjax.reasoning.problem_templates import NumberPool, make_templates, matched_templates
from slmjax.reasoning.simulated_solvers import careless_solver, perfect_solver, unaffected_scores

ALL, _ = make_templates(example_problems())
TEMPLATES = matched_templates(ALL)
INSTANCES = probe_instances(TEMPLATES, NumberPool(ALL), variants=4)
STEPS = step_counts(INSTANCES)


@given(st.lists(st.sampled_from([-0.3, -0.1, 0.0, 0.1, 0.2, 0.4]), min_size=2, max_size=9))
def test_random_flips_agree_with_all_flips(values):
    differences = np.array(values)
    sums = [
        abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=len(values))
    ]
    exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
    # Five standard errors of 5,000 flips.
    assert (
        abs(statistics.sign_flip_test(differences) - exact)
        < 5 * np.sqrt(exact * (1 - exact) / 5000) + 3e-4
    )


def test_a_shuffle_agrees_with_scipys():
    from scipy.stats import permutation_test

    rng = np.random.default_rng(0)
    for shift in (0.0, 0.5, 1.0):
        first, second = rng.normal(0, 1, 20), rng.normal(shift, 1, 30)
        theirs = permutation_test(
            (first, second), lambda a, b: np.mean(a) - np.mean(b), n_resamples=5000, rng=1
        )
        # Scipy doubles the smaller tail, and each has its own 5,000 shuffles.
        assert abs(statistics.two_sample_test(first, second) - theirs.pvalue) < 0.03


def test_holm_is_what_holm_computed():
    # Example: levels of .05 / 4, / 3, / 2, / 1 against sorted p values; the first failure stops.
    assert np.allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_no_effect_is_found_at_the_promised_rate():
    scores = run_probe(INSTANCES, perfect_solver)
    found = tests = 0
    for seed in range(60):
        for arm, base in statistics.paired_means(unaffected_scores(scores, seed)).values():
            found += statistics.sign_flip_test(arm - base, flips=500) < 0.05
            tests += 1
    # Tests of one run share their baseline; .05 +- five standard errors if five in a run are free.
    assert found / tests < 0.05 + 5 * np.sqrt(0.05 * 0.95 / 300)


def test_power_agrees_with_the_table_that_it_was_planned_by():
    # Simulated for the plan: 10 %, 100 x 10: .31 and .98 at drops of 2 and 5; 30 %: .19 and .69.
    for accuracy, drop, planned in (
        (0.1, 0.02, 0.31),
        (0.1, 0.05, 0.98),
        (0.3, 0.02, 0.19),
        (0.3, 0.05, 0.69),
    ):
        power = statistics.probe_power(accuracy, drop, templates=100, variants=10)
        assert abs(power - planned) < 0.09
    assert statistics.probe_power(0.3, 0.05, templates=100, variants=10, arms=15) < 0.5
    with pytest.raises(UserError, match="expected shares"):
        statistics.probe_power(0.02, 0.03, templates=100, variants=10)


def test_slips_in_every_step_explain_what_a_careless_solver_loses():
    base = np.full(50, 0.64)
    two, four = np.full(50, 2.0), np.full(50, 4.0)
    assert statistics.expected_accuracy(base, two, four) == pytest.approx(0.8**4)
    assert np.isnan(statistics.expected_accuracy(base, four, four))
    assert np.isnan(statistics.expected_accuracy(base, None, four))


def test_equal_values_are_no_certainty():
    assert statistics.mean_interval(np.zeros(100)) == (-0.03, 0.03)
    low, high = statistics.mean_interval(np.array([0.0, 1.0] * 50))
    # The closed form: 1.96 x .5 / 10.
    assert low == pytest.approx(0.402, abs=0.02) and high == pytest.approx(0.598, abs=0.02)


def test_the_magnitudes_of_variants_are_those_of_the_originals():
    assert min(statistics.matched_magnitudes(INSTANCES).values()) > statistics.MATCHED
    # The arm of larger numbers in the place of P0 is noticed.
    shifted = [each for each in INSTANCES if each.arm == "original"]
    shifted += [each._replace(arm="p0") for each in INSTANCES if each.arm == "larger"]
    assert max(statistics.matched_magnitudes(shifted).values()) < 0.001


def test_the_probe_tells_a_perfect_solver_from_a_careless_one():
    perfect = statistics.judge_arms(run_probe(INSTANCES, perfect_solver), STEPS)
    assert {result.verdict for result in perfect} == {"no change seen"}
    careless = statistics.judge_arms(run_probe(INSTANCES, careless_solver(0.7)), STEPS)
    results = {result.arm: result for result in careless}
    assert results["longer"].verdict == "falls"
    assert results["noop_same"].verdict == "no change seen"
    # Two steps become four, so .7 ** 2 becomes .7 ** 4.
    assert results["longer"].baseline_accuracy == pytest.approx(0.49, abs=0.12)
    longer = results["longer"]
    assert longer.low < longer.expected - longer.baseline_accuracy < longer.high


def test_below_a_tenth_of_p0_nothing_is_judged():
    def hopeless(instances):
        return [
            instance.problem.answer if instance.arm != "p0" and instance.template % 2 else None
            for instance in instances
        ]

    results = statistics.judge_arms(run_probe(INSTANCES, hopeless), STEPS)
    assert {result.verdict for result in results} == {"cannot be told"}
    sentences = probe_sentences(column_result("held-out", run_probe(INSTANCES, hopeless), STEPS))
    assert (
        sentences[-1] == "Whether it reasons cannot be told: it solves too few held-out problems."
    )
    with pytest.raises(UserError, match="expected p0"):
        statistics.judge_arms({"names": np.ones((3, 2))}, {})
    with pytest.raises(UserError, match="without templates"):
        probe_instances([], NumberPool(ALL))


def test_an_instance_has_one_answer():
    with pytest.raises(ValueError):
        run_probe(INSTANCES, lambda instances: perfect_solver(instances)[1:])


def test_problems_are_sorted_by_what_training_has_of_them():
    trained = [word_problem("He has 15 pens and 4 caps. How many?", "15+4=19")]
    same_flow = word_problem("She has 31 dogs and 8 cats. How many?", "31+8=39")
    other_flow = word_problem("Of 15 in all, she has 31 dogs and 8 cats. How many?", "31+8=39")
    other_operator = word_problem("She has 31 dogs and loses 8. How many?", "31-8=23")
    kinds = novelties([same_flow, other_flow, other_operator], trained)
    assert kinds == ["seen flow", "seen skeleton, unseen flow", "unseen skeleton"]
