"""`python -m slmjax.mixture`: what a run will read, told and drawn before there is a run."""

from xml.etree import ElementTree

from slmjax import mixture
from tests import runs


def test_the_command_tells_of_every_source_and_draws_its_share(corpus, tmp_path, capsys):
    words = runs.argv(corpus, tmp_path / "run", data__cache=tmp_path / "prepared")
    assert mixture.main([*words, "--config.data.sources.words.max_epochs=500"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-2].startswith("words: ") and told[-2].endswith("tokens; cap 500")
    assert (
        ElementTree.parse(tmp_path / "run" / "figures" / "shares.svg").getroot().tag.endswith("svg")
    )
    assert mixture.main([*words, "--config.data.sources.words.max_epochs=0.1"]) == 2
    assert (
        "every source with a weight (words) has reached its max_epochs" in capsys.readouterr().err
    )


def test_what_has_no_mixture_and_a_work_directory_that_cannot_be_are_told_first(
    corpus, tmp_path, capsys
):
    assert mixture.main(["--config=configs/textbook.py", f"--workdir={tmp_path / 'run'}"]) == 2
    assert (
        "the stage of this recipe is 'synthesize'; expected a recipe that trains"
        in capsys.readouterr().err
    )
    (tmp_path / "link").symlink_to("nowhere")
    assert (
        mixture.main(runs.argv(corpus, tmp_path / "link", data__cache=tmp_path / "prepared")) == 2
    )
    assert f"'{tmp_path / 'link'}' is not a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
