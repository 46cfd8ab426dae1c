"""A training run is killed three times, once perhaps before its first checkpoint."""

import random

from tests.train.test_resume import assert_kills_change_nothing, no_report  # noqa: F401  (an automatic fixture)


def test_a_run_killed_three_times_ends_bit_equal_to_an_undisturbed_one(corpus, undisturbed, tmp_path):
    draw = random.Random(7)
    after = [draw.randrange(low, low + 8) for low in (2, 10, 18)]
    assert_kills_change_nothing(corpus, undisturbed, tmp_path, after)
