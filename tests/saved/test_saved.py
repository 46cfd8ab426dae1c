"""Work directories that commit ed18125 wrote generate the same text here and go on to the same end; make.py made them."""

import json
import shutil
import zipfile

import pytest

from slmjax import generate
from tests import runs
from tests.saved import make

EXPECTED = json.loads((make.FOLDER / "expected.json").read_text())
KINDS = ["dense", "float8", pytest.param("hybrid", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def workdir(request, tmp_path, monkeypatch):
    """The unpacked work directory `run`, next to the recipe and the text that it was trained on."""
    for name in ("recipe.py", "corpus.jsonl"):
        shutil.copy(make.FOLDER / name, tmp_path)
    with zipfile.ZipFile(make.FOLDER / f"{request.node.callspec.params['kind']}.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_ed18125_generates_the_same_text(kind, capsys):
    assert generate.main(["--checkpoint=run", *make.GENERATE]) == 0
    assert capsys.readouterr().out == EXPECTED[kind]["generated"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", make.KINDS)
def test_a_run_of_ed18125_goes_on_to_the_same_end(kind, workdir):
    """To the last bit where everything is as it was made: another XLA or CPU adds in another order."""
    out = make.call(
        runs.ROOT,
        workdir.parent,
        "-m",
        "slmjax.launch",
        f"--config=recipe.py:{kind}",
        "--workdir=run",
    )
    assert f"goes on from step {make.SAVED}" in out
    losses = dict(zip(*runs.losses(workdir)))
    found = [losses[step] for step in range(make.SAVED + 1, make.END + 1)]
    assert found == pytest.approx(
        EXPECTED[kind]["losses"], rel=1e-5
    )  # 4e-7 seen without the tests' XLA flags
    if make.where() == EXPECTED["where"]:
        assert found == EXPECTED[kind]["losses"]
        assert make.sums(workdir, make.END) == EXPECTED[kind]["sha256"]
