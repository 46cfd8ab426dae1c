"""Damaged files of every kind that is read: a sentence, a count or the right result.

Each takes at most 20 s and 1 GB. SLMJAX_DAMAGE="KIND SEED" repeats one input:

    SLMJAX_DAMAGE="journal 17" .ci/drills/run mutated_inputs
"""

import collections
import faulthandler
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.files_read_back import AS_IT_STANDS, COUNTED, KINDS, PATIENCE, REFUSED, RIGHT, Trial

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 2  # processes
MOST = 8 << 30  # bytes of data of one of them, so that a fault cannot take the whole machine
COLUMNS = (REFUSED, COUNTED, RIGHT, AS_IT_STANDS)


def test_a_damaged_file_is_a_sentence_a_count_or_the_right_result(undisturbed, tmp_path, capsys):
    asked, _, seed = os.environ.get("SLMJAX_DAMAGE", "").rpartition(" ")
    seeds = (
        {asked: [int(seed)]}
        if asked
        else {name: list(range(kind.inputs)) for name, kind in KINDS.items()}
    )
    assert asked or sum(map(len, seeds.values())) >= 3000
    with ThreadPoolExecutor(AT_ONCE) as pool:
        folders = [tmp_path / str(number) for number in range(len(seeds))]
        found = dict(
            zip(seeds, pool.map(inputs, seeds, seeds.values(), folders, [undisturbed] * len(seeds)))
        )
    with capsys.disabled():
        heads = "".join(f"{column:>14}" for column in COLUMNS)
        print(f"\n{'kind of file':<28}{'inputs':>8}{heads}")
        together = [outcome for some in found.values() for outcome in some]
        for name, outcomes in [*found.items(), ("all", together)]:
            counts = collections.Counter(outcome["outcome"] for outcome in outcomes)
            cells = "".join(f"{counts[column]:>14}" for column in COLUMNS)
            print(f"{name:<28}{len(outcomes):>8}{cells}")
        for name, outcomes in found.items():
            for wrong in (outcome for outcome in outcomes if asked or not outcome["outcome"]):
                print(f'\nSLMJAX_DAMAGE="{name} {wrong["seed"]}" ({wrong["how"]}):')
                print(wrong["outcome"], wrong["said"])
    assert all(outcome["outcome"] for outcomes in found.values() for outcome in outcomes)
    assert [len(outcomes) for outcomes in found.values()] == [len(some) for some in seeds.values()]


def inputs(name: str, seeds: list[int], folder: Path, run: Path) -> list[dict]:
    """Return the outcomes of inputs of a kind; where a process dies, another one goes on."""
    outcomes: list[dict] = []
    while left := seeds[len(outcomes) :]:
        part = folder / str(len(outcomes))
        part.mkdir(parents=True)
        words = [sys.executable, __file__, name, str(part), str(run), *map(str, left)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            words, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
        )
        outcomes += [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode:
            said = f"the process ended with {done.returncode}: {done.stderr[-1500:]}"
            outcomes.append({"seed": seeds[len(outcomes)], "how": "", "outcome": "", "said": said})
    return outcomes


def main(name: str, folder: str, run: str, *seeds: str) -> None:
    """One process: a line of JSON for each input."""
    lines, sys.stdout = sys.stdout, sys.stderr
    resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))
    trial = Trial(name, Path(folder), Path(run))
    for seed in map(int, seeds):
        faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)  # where no signal is heard
        how, outcome = trial.input(seed)
        print(json.dumps({"seed": seed, "how": how, **outcome._asdict()}), file=lines, flush=True)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(*sys.argv[1:])
