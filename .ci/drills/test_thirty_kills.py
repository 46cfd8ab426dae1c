"""A run is killed thirty times, ten after its last checkpoint, and each time started again."""

import random

from tests.train.test_killed import Chain, assert_same, whole

KILLS = 30  # at least
LATE_KILLS = 10  # of them after the last checkpoint, at least


def test_thirty_kills_change_nothing_of_what_a_run_leaves(tmp_path):
    undisturbed = whole(tmp_path / "undisturbed")
    rng = random.Random(16)
    kills = late_kills = 0
    while kills < KILLS or late_kills < LATE_KILLS:
        chain = Chain(tmp_path / f"chain{kills}", rng)
        # Where each start of the run is killed: at (step, seconds after it), or before the n-th
        # change of a file, counted from the start or ("finish:n") from the last checkpoint.
        points = [
            str(rng.randint(1, 480)),  # while text is prepared
            chain.at_a_step(),
            str(rng.randint(1, 150)),
            chain.at_the_end(),
            f"finish:{rng.randint(1, 12)}",  # records
            f"finish:{rng.randint(6, 40)}",  # report and figures
            str(rng.randint(1, 40)),  # a run that is finished writes its report again
        ]
        # A start that ended before its point has finished the run: nothing is left to kill.
        if all(chain.kill(point) for point in points):
            chain.ends()
        assert_same(chain.folder, undisturbed)
        kills += chain.kills
        late_kills += chain.last
    print(f"{kills} kills, {late_kills} of them after the last checkpoint")
