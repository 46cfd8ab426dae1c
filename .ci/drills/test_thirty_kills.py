"""A run is killed thirty times, ten after its last checkpoint, and each time started again."""

import random

from tests.train.test_killed import Chain, assert_same, whole

KILLS, LAST = 30, 10


def test_thirty_kills_change_nothing_of_what_a_run_leaves(tmp_path):
    undisturbed = whole(tmp_path / "undisturbed")
    draw = random.Random(16)
    kills = last = 0
    while kills < KILLS or last < LAST:
        chain = Chain(tmp_path / f"chain{kills}", draw)
        points = [
            str(draw.randint(1, 480)),  # while text is prepared
            chain.at_a_step(),
            str(draw.randint(1, 150)),
            chain.at_the_end(),
            f"finish:{draw.randint(1, 12)}",  # records
            f"finish:{draw.randint(6, 40)}",  # report and figures
            str(draw.randint(1, 40)),  # a run that is finished writes its report again
        ]
        if all(chain.kill(point) for point in points):
            chain.ends()
        assert_same(chain.folder, undisturbed)
        kills, last = kills + chain.kills, last + chain.last
    print(f"{kills} kills, {last} of them after the last checkpoint")
