"""What CI's own scripts promise: records of drills hold for the files that a drill can reach, and faults still fit the library."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CI = ROOT / ".ci"
DRILLS = sorted((CI / "drills").glob("test_*.py"))


def script(name):
    """A script of CI as a module."""
    spec = importlib.util.spec_from_file_location(f"ci_{name}", CI / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_drills_record_covers_what_it_imports_names_and_starts_as_a_stage():
    names = {
        file.relative_to(ROOT).as_posix()
        for file in script("closure").closure(CI / "drills" / "test_thirty_kills.py")
    }
    assert {
        "tests/train/test_killed.py",
        "tests/runs.py",
        "tests/recipes/textbook.py",
    } <= names  # imported, named as a path
    assert {
        "slmjax/launch.py",
        "slmjax/train/run.py",
        "slmjax/train/step.py",
    } <= names  # run.py only as "slmjax.train.run:run_train"
    assert not names & {
        "tests/train/test_state.py",
        "README.md",
        ".ci/drills/test_killed_synthesizer.py",
    }


def test_the_hash_changes_with_a_files_content_and_name(tmp_path, monkeypatch):
    closure = script("closure")
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("x = 1")
    other.write_text("x = 1")
    first = closure.digest([one])
    assert closure.digest([other]) != first
    one.write_text("x = 2")
    assert closure.digest([one]) != first
    one.write_text("x = 1")
    assert closure.digest([one]) == first
    # A drill need not run again for a comment.
    one.write_text('"""What it is."""\n\nx  = 1  # why\n')
    assert closure.digest([one]) == first


@pytest.mark.parametrize("name", script("faults").FAULTS)
def test_each_deliberate_fault_still_has_its_place(name):
    file, right, wrong, tests = script("faults").FAULTS[name]
    assert (ROOT / file).read_text().count(right) == 1 and right != wrong
    assert all((ROOT / path).exists() for path in tests.split())


def test_every_drill_can_be_collected_and_an_unknown_one_is_named():
    collected = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.conftest",
            "--collect-only",
            "-q",
            *map(str, DRILLS),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert len(DRILLS) > 3 and all(f"{drill.name}: " in collected.stdout for drill in DRILLS), (
        collected.stdout + collected.stderr
    )
    refused = subprocess.run(
        [sys.executable, CI / "drills" / "run", "nobody"], capture_output=True, text=True
    )
    assert refused.returncode == 2 and "no drill is named nobody; there are" in refused.stderr
