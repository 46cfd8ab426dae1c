"""configs/lengthen.py: longer rows of a run, with positions that its config.json remembers."""

import json

import pytest

from slmjax import config as configs
from slmjax import generate, launch
from slmjax.errors import UserError
from tests.corpus import ROOT

RECIPE = f"{ROOT}/configs/lengthen.py"


def recipe(words, run):
    return configs.load_recipe(f"{RECIPE}:{words}", init_from=str(run))


def test_a_step_has_as_many_tokens_and_the_arms_set_positions(undisturbed):
    parent = configs.from_dict(json.loads((undisturbed / "config.json").read_text()))
    trained, tokens = parent.data.seq_len, parent.data.seq_len * parent.train.batch
    c = recipe(f"yarn,{2 * trained}", undisturbed)
    assert c.model.rope_scaling == f"yarn factor=2 trained={trained}"
    assert c.data.seq_len * c.train.batch == tokens and c.data.seq_len == 2 * trained
    assert c.train.lr == parent.train.lr / 2 and c.train.steps == 20
    pairs = parent.model.head_dim / (parent.model.head_dim - 2)
    base = recipe("base", undisturbed)
    theta = float(base.model.rope_scaling.removeprefix("theta="))
    assert theta == pytest.approx(10000 * 4**pairs, rel=1e-4)
    assert base.data.seq_len == 4 * trained
    assert recipe("none", undisturbed).model.rope_scaling == ""
    for words, sentence in (
        ("ntk", "expected yarn, base or none"),
        ("yarn,long", "expected yarn, base or none"),
        (f"yarn,{trained}", f"the run has rows of {trained}"),
    ):
        with pytest.raises(UserError, match=sentence):
            recipe(words, undisturbed)


@pytest.mark.slow
def test_a_lengthened_run_reads_further_and_is_not_stretched_twice(undisturbed, tmp_path, capsys):
    words = [f"--config={RECIPE}", f"--init_from={undisturbed}", f"--workdir={tmp_path}/long"]
    fields = ["train.steps=4", "train.warmup=0", "eval.samples=0", "train.batch=8"]
    fields += ["train.microbatches=1"]
    assert launch.main([*words, *(f"--config.{field}" for field in fields)]) == 0
    saved = json.loads((tmp_path / "long" / "config.json").read_text())
    assert saved["model"]["rope_scaling"].startswith("yarn factor=4")
    # Step 0 is the parent in the longer rows, with stretched positions.
    assert "step 0: held-out bits per byte" in capsys.readouterr().out
    options = [f"--checkpoint={tmp_path}/long", "--prompt=the river", "--max_tokens=4"]
    assert generate.main(options) == 0
    again = [f"--config={RECIPE}", f"--init_from={tmp_path}/long", f"--workdir={tmp_path}/longer"]
    assert launch.main(again) == 2
    assert "positions are scaled already" in capsys.readouterr().err
