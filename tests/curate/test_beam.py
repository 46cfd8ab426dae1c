"""Curation on Apache Beam's DirectRunner leaves the bytes that processes of this machine leave."""

import json

import numpy as np
import pytest

from slmjax import launch
from tests.curate.test_curate_stage import digests

pytest.importorskip("apache_beam")
DOCUMENTS = 20_000


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Four files of short documents, half of them changed copies of 500 texts."""
    folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    vocabulary = np.array([f"word{n}" for n in range(20_000)])
    bases = [rng.choice(vocabulary, 60) for _ in range(500)]
    for number in range(4):
        lines = []
        for i in range(DOCUMENTS // 4):
            words = rng.choice(vocabulary, 60) if i % 2 else bases[rng.integers(500)].copy()
            words[rng.integers(60, size=rng.integers(3))] = "changed"
            lines.append(json.dumps({"text": " ".join(words), "id": f"{number}-{i}"}) + "\n")
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return folder


def run(raw, workdir, *more):
    words = [
        "--config=configs/curate.py",
        f"--workdir={workdir}",
        f"--config.data.sources=web={raw}",
        "--config.curate.rules.others=",
        *more,
    ]
    assert launch.main(words) == 0
    return digests(workdir)


@pytest.mark.slow
@pytest.mark.beam
def test_beam_and_one_and_two_processes_leave_the_same_bytes(raw, tmp_path):
    one = run(raw, tmp_path / "one" / "run", "--config.curate.processes=1")
    assert run(raw, tmp_path / "two" / "run", "--config.curate.processes=2") == one
    assert run(raw, tmp_path / "beam" / "run", "--config.curate.beam=--runner=DirectRunner") == one
    report = json.loads((tmp_path / "one" / "run" / "report.json").read_text())["sources"]["web"]
    assert (
        report["documents"]["read"] == DOCUMENTS
        and 0.2 < report["duplicate"]["documents"] / DOCUMENTS < 0.5
    )


@pytest.mark.slow
@pytest.mark.beam
def test_a_second_batch_on_beam_is_that_of_a_process(raw, tmp_path):
    for kind, words in (
        ("local", ["--config.curate.processes=1"]),
        ("beam", ["--config.curate.beam=--runner=DirectRunner"]),
    ):
        for number in (0, 1):
            sources = f"--config.data.sources=web={raw}/{number}.jsonl"
            run(
                raw,
                tmp_path / f"{kind}-{number}" / "run",
                sources,
                f"--config.curate.index={tmp_path}/{kind}-index",
                *words,
            )
    assert digests(tmp_path / "local-1" / "run") == digests(tmp_path / "beam-1" / "run")


@pytest.mark.beam
@pytest.mark.parametrize("words", ["--direct_num_workers=1", "DirectRunner"])
def test_options_without_a_runner_are_refused(raw, tmp_path, words, capsys):
    assert (
        launch.main(
            [
                "--config=configs/curate.py",
                f"--workdir={tmp_path}",
                f"--config.data.sources={raw}",
                f"--config.curate.beam={words}",
            ]
        )
        == 2
    )
    assert "expected Beam's options with a runner" in capsys.readouterr().err
