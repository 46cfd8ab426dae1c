"""300 malformed files of conversations and pairs, prepared one after the other.

Each must be refused in a sentence, or its unusable lines are counted and the others are right, in
at most 20 s. SLMJAX_CONVERSATIONS=SEED repeats one file:

    SLMJAX_CONVERSATIONS=17 .ci/drills/run malformed_conversations
"""

import collections
import os

from tests.data.malformed_conversations import COUNTED, REFUSED, RIGHT, Trial, trial

FILES = 300
COLUMNS = (REFUSED, COUNTED, RIGHT)  # the outcomes that are allowed


def test_a_malformed_file_is_refused_or_counted_in_a_sentence(tmp_path, capsys):
    repeated = os.environ.get("SLMJAX_CONVERSATIONS", "")
    seeds = [int(repeated)] if repeated else range(FILES)
    trials = [trial(seed, tmp_path / str(seed)) for seed in seeds]
    with capsys.disabled():
        print_table(trials)
        for one in trials:
            # A repeated file is always shown, others only where they are wrong.
            if repeated or not one.outcome:
                print(f"\n{one.outcome or 'WRONG'}: {one.words}")
    assert all(one.outcome for one in trials)


def print_table(trials: list[Trial]) -> None:
    """Print how many files with each kind of fault had each outcome; a file has several."""
    heads = "".join(f"{column:>10}" for column in COLUMNS)
    print(f"\n{'a file has':<34}{'files':>8}{heads}")
    outcomes_of_faults = collections.defaultdict(list)
    for one in trials:
        for name in {f"{one.file.kind}: {name}" for name in one.file.how}:
            outcomes_of_faults[name].append(one.outcome)
    rows = [*sorted(outcomes_of_faults.items()), ("all", [one.outcome for one in trials])]
    for name, outcomes in rows:
        cells = "".join(f"{outcomes.count(column):>10}" for column in COLUMNS)
        print(f"{name:<34}{len(outcomes):>8}{cells}")
