"""Damaged files of every kind that the library reads.

Each must give an error of one sentence, a count of what cannot be read, the right result, or the
file as it stands (tests/files_read_back.py), with at most 20 s and 1 GB. SLMJAX_DAMAGE="KIND SEED"
repeats one input:

    SLMJAX_DAMAGE="journal 17" .ci/drills/run mutated_inputs
"""

import collections
import faulthandler
import itertools
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.files_read_back import AS_IT_STANDS, COUNTED, KINDS, PATIENCE, REFUSED, RIGHT, Trial

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2  # that read inputs at the same time
MOST_DATA = 8 << 30  # bytes of one of them, so that a fault cannot take the whole machine
COLUMNS = (REFUSED, COUNTED, RIGHT, AS_IT_STANDS)  # the outcomes that are allowed


def test_a_damaged_file_is_a_sentence_a_count_or_the_right_result(undisturbed, tmp_path, capsys):
    repeated_kind, _, repeated_seed = os.environ.get("SLMJAX_DAMAGE", "").rpartition(" ")
    seeds = {name: list(range(kind.inputs)) for name, kind in KINDS.items()}
    assert sum(map(len, seeds.values())) >= 3000
    if repeated_kind:
        seeds = {repeated_kind: [int(repeated_seed)]}

    def outcomes_in_folder(number: int, name: str) -> list[dict]:
        return outcomes_of_kind(name, seeds[name], tmp_path / str(number), undisturbed)

    with ThreadPoolExecutor(PROCESSES) as pool:
        lists = pool.map(outcomes_in_folder, range(len(seeds)), seeds)
        outcomes = dict(zip(seeds, lists))
    with capsys.disabled():
        print_table(outcomes)
        for name, outcomes_of_name in outcomes.items():
            for outcome in outcomes_of_name:
                # A repeated input is always shown, others only where they are wrong.
                if repeated_kind or not outcome["outcome"]:
                    print(f'\nSLMJAX_DAMAGE="{name} {outcome["seed"]}" ({outcome["how"]}):')
                    print(outcome["outcome"], outcome["said"])
    for name, outcomes_of_name in outcomes.items():
        assert all(outcome["outcome"] for outcome in outcomes_of_name)
        assert len(outcomes_of_name) == len(seeds[name])


def print_table(outcomes: dict[str, list[dict]]) -> None:
    """Print how many inputs of each kind had each outcome."""
    heads = "".join(f"{column:>14}" for column in COLUMNS)
    print(f"\n{'kind of file':<28}{'inputs':>8}{heads}")
    together = list(itertools.chain.from_iterable(outcomes.values()))
    for name, outcomes_of_name in [*outcomes.items(), ("all", together)]:
        counts = collections.Counter(outcome["outcome"] for outcome in outcomes_of_name)
        cells = "".join(f"{counts[column]:>14}" for column in COLUMNS)
        print(f"{name:<28}{len(outcomes_of_name):>8}{cells}")


def outcomes_of_kind(name: str, seeds: list[int], folder: Path, run: Path) -> list[dict]:
    """Return the outcomes of a kind's inputs, read in processes of their own.

    Where a process dies, that is the outcome of the input that it read, and another process goes on
    with the next.

    Args:
      name: a key of KINDS.
      folder: for the inputs.
      run: work directory of a finished run.
    Returns: for each seed {seed, how: what was damaged, outcome: "" where it is wrong, said: what
      was printed}.
    """
    outcomes: list[dict] = []
    while len(outcomes) < len(seeds):
        remaining = seeds[len(outcomes) :]
        part = folder / str(len(outcomes))
        part.mkdir(parents=True)
        words = [sys.executable, __file__, name, str(part), str(run), *map(str, remaining)]
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
    """Read the inputs of some seeds, and print a line of JSON for the outcome of each."""
    # The library may print; the standard output is for the lines alone.
    lines, sys.stdout = sys.stdout, sys.stderr
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_DATA, MOST_DATA))
    trial = Trial(name, Path(folder), Path(run))
    for seed in map(int, seeds):
        # Trial's own time limit is a signal, which code that never returns to Python ignores.
        faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
        how, outcome = trial.input(seed)
        print(json.dumps({"seed": seed, "how": how, **outcome._asdict()}), file=lines, flush=True)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(*sys.argv[1:])
