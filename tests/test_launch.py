"""The launcher: what each mistake gets (one sentence, exit status 2, nothing half-written), and what importing it costs."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys

import pytest

from slmjax import cli, compare, generate, launch
from slmjax.models import choose_shape, sizes
from slmjax.models.pattern import from_config
from slmjax.record.metrics import MetricsWriter
from tests import runs

PREPARING = ("text", "textbook", "data", "curate", "synthesize")
MODULES = (
    "slmjax slmjax.launch slmjax.config slmjax.generate slmjax.chat slmjax.compare slmjax.mixture"
)


def refused(capsys, arguments):
    """The one line that the launcher prints for these words."""
    assert launch.main([str(word) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert (
        err.startswith("slmjax: ")
        and err.count("\n") == 1
        and err.endswith("\n")
        and "Traceback" not in out + err
    )
    return err


OPTIONS = {
    "--workdir=x": "--config is missing",
    "config": "'config' is not an option; options begin with --. Did you mean '--config'?",
    "--confg=x": "there is no option --confg. Did you mean 'config'?",
    "--config": "--config needs a value",
    "--config=RECIPE --workdir --init_from=x": "--workdir needs a value, and '--init_from=x' is the next option",
    "--config=RECIPE --workdir=s3://a/b": "--workdir=s3://a/b: s3:// is not known; use a local folder or gs://.",
    "--config=RECIPE --init_from=http://a/b": "--init_from=http://a/b: http:// is not known",
    "--config=RECIPE --workdir=~nobody-here/x": "a path begins with ~ and a name that no user of this machine has",
    "--config=RECIPE --params=1e99": "--params=1e99: expected a number of parameters such as 50m or 1b, 1e+12 at most",
    "--config=RECIPE --processes=2 --process=0 --coordinator=:8476": "expected HOST:PORT",
    "--config=RECIPE --processes=2 --process=0 --coordinator=host0:99999": "expected HOST:PORT",
    "--config=RECIPE --init_from=": "--init_from= is empty; give it a value or leave it out",
    "--config=RECIPE --workdir=": "--workdir= is empty",
    "--config=x --processes=two": "--processes=two: expected a whole number",
    "--config=none.py": "no file 'none.py'",
    "--config=RECIPE --config.stage=trian": "it can be train, prepare, synthesize, curate, recall, mixture, forecast, evaluate, reasoning. Did you mean 'train'?",
    "--config=RECIPE --process=0": "go together",
    "--config=RECIPE --config.stage=prepare --process=2 --processes=2": "go together",
    "--config=RECIPE --process=--1": "--process=--1: expected a whole number",
    "--config=RECIPE --config.stage=recall --process=0 --processes=2": "takes no --processes",
    "--config=RECIPE --params=big": "big",
    "--config=RECIPE --params=10m --config.model.layers=4": "--params=10m decides config.model.layers, which is given too",
    "--config=RECIPE --config.curate.languages.web=en": "--config.curate.languages.web: only the stage curate reads it; this is train.",
    "--config=RECIPE --config.model.widht=3": "Did you mean 'model.width'?",
}


@pytest.mark.parametrize("words", OPTIONS)
def test_a_wrong_option_gets_one_sentence(words, capsys):
    assert OPTIONS[words] in refused(capsys, words.replace("RECIPE", str(runs.RECIPE)).split())


@pytest.mark.parametrize(
    "field",
    [
        "model.pattern=gdn,gdn,attention rope=False",
        "model.tied=False",
        "model.pattern=ssm+none,attention",
        "model.pattern=ssm,|,gdn,attention",
    ],
)
def test_params_counts_the_model_as_it_will_be(field):
    words = ["--config=configs/tiny.py", "--params=10m", f"--config.{field}"]
    config = cli.make_config(*cli.read_options(words))
    total = sizes.parameters(from_config(config.model, config.data.vocab_size)).total
    assert total == pytest.approx(10e6, rel=choose_shape.TOLERANCE)


def _write(folder):
    (folder / "empty.jsonl").write_text("")
    (folder / "blank.jsonl").write_text('{"text": " "}\n')
    (folder / "short.jsonl").write_text('{"text": "a few words"}\n{"text": "and some more"}\n')
    good = '{"text": "the river carries seven blue stones slowly to the morning"}\n'
    (folder / "bad.jsonl").write_text(good * 50 + '{"text": "cut\n' + good * 49)
    (folder / "no").mkdir()
    (folder / "notes.doc").write_text("text")
    (folder / "broken.json").write_text("{")


FIELDS = {
    "data.sources=words=FOLDER/none.jsonl": "'FOLDER/none.jsonl' matches no file",
    "data.sources=words=FOLDER/emty.jsonl": "Did you mean 'empty.jsonl'?",
    "data.sources=words=FOLDER/*.parquet": "'FOLDER/*.parquet' matches no file",
    "data.sources=words=FOLDER/empty.jsonl": "every file of 'FOLDER/empty.jsonl' is empty",
    "data.sources=words=FOLDER/blank.jsonl": "1 of 1 records",
    "data.sources=words=FOLDER/short.jsonl": "words",
    "data.sources=words=FOLDER/bad.jsonl": "1 of 100 records (1.00% of it) cannot be used, more than data.max_bad_share=0.001",
    "data.sources=words=FOLDER/no": "holds no supported file",
    "data.sources=words=FOLDER/notes.doc": "unsupported ending",
    "data.sources={'words': {'paht': 'x'}}": "'paht' (fields: path, weight, field, revision, heldout, max_epochs, fraction, score, reader, kind). Did you",
    "data.sources=words:-1=FOLDER/short.jsonl": "expected a number of 0 or more",
    "data.sources.words.field=body": "'body' is missing",
    "data.tokenizer=FOLDER/none.json": "there is no file 'FOLDER/none.json'",
    "data.tokenizer=FOLDER/broken.json": "broken.json",
    "data.group_by=(": "is no regular expression",
    "data.group_by=book": "data.group_by needs 'book', which is missing",
    "data.phases=((1.0, {'wrods': 1.0}),)": "Did you mean 'words'?",
    "data.phases=(1.0, 2.0)": "config.data.phases[0] is 1.0; expected {'until': 0.8, 'weights'",
    "data.phases=[{'until': 1, 'weights': {'words': 1}, 'rmap': 1}]": "has no field 'rmap'; expected",
    "data.sources.words.max_epochs=0.1": "every source with a weight (words) has reached its max_epochs",
    "model.vocab_size=128": "model.vocab_size",
    "model.kv_heads=3": "it must divide config.model.heads, 2",
    "model.pattern=atention": "attention",
    "model.pattern=": "config.model.pattern is (); it must name at least one entry",
    "model.multipliers={'matrix': {'lr': 'high'}}": "matrix is {'lr': 'high'}; it can hold init, lr and decay as numbers",
    "train.loss_chunks=3": "the field config.train.loss_chunks was removed: it is now always 0",
    "model.attention=cudnn": "cudnn",
    "model.remat=everything": "everything",
    "train.batch=12": "config.train.batch is 12, which does not divide into 2 microbatches over 8 devices (mesh data x fsdp); the nearest",
    "mesh.data=3": "does not multiply to the 8 devices",
    "mesh.fsdp=-1": "at most one is -1",
    "mesh.tensor=8": "tensor",
    "log.profile=3": "expected first:last",
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_field_gets_one_sentence_before_anything_is_written(
    field, corpus, tmp_path, capsys
):
    _write(tmp_path)
    words = field.replace("FOLDER", str(tmp_path))
    told = refused(capsys, [*runs.argv(corpus, tmp_path / "run"), f"--config.{words}"])
    assert FIELDS[field].replace("FOLDER", str(tmp_path)) in told
    assert not (tmp_path / "run").exists()


def test_a_work_directory_that_cannot_be_is_told_before_text_is_prepared(corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = runs.argv(corpus, tmp_path / "file" / "run", data__cache=tmp_path / "prepared")
    assert f"'{tmp_path / 'file'}' is not a folder" in refused(capsys, words)
    assert "'/dev/null' is not a folder" in refused(
        capsys, runs.argv(corpus, "/dev/null/run", data__cache=tmp_path / "prepared")
    )
    words = runs.argv(corpus, tmp_path / "a\\b", data__cache=tmp_path / "prepared")
    assert "a folder with a backslash in its name" in refused(capsys, words)
    assert not (tmp_path / "prepared").exists()


EARLY = (
    "model.pattern=atention",
    "model.remat=everything",
    "model.attention=cudnn",
    "model.pattern=nowhere:Mixer",
    "data.phases=((1.0, {'nowhere': 1.0}),)",
    "log.wandb=nowhere",
)


@pytest.mark.parametrize("field", EARLY)
def test_what_cannot_be_is_told_before_text_is_prepared(
    field, corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = runs.argv(corpus, tmp_path / "run", data__cache=tmp_path / "prepared")
    assert re.search(
        r"atention|everything|cudnn|nowhere", refused(capsys, [*words, f"--config.{field}"])
    )
    assert not (tmp_path / "prepared").exists()


def test_a_bucket_whose_package_is_missing_is_said(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    advice = 'gs:// needs gcsfs; pip install "slmjax[gcs]"'
    assert advice in refused(capsys, [f"--config={runs.RECIPE}", "--workdir=gs://a/b"])
    for command, words in (
        (generate, ["--checkpoint=gs://a/b", "--prompt=a"]),
        (compare, ["gs://a/b", "gs://a/c"]),
    ):
        assert command.main(words) == 2 and advice in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_work_directory_that_may_not_be_written_is_told(corpus, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert "choose a folder that you may write to" in refused(
        capsys, runs.argv(corpus, tmp_path / "run")
    )


def test_a_disk_that_is_full_while_training_ends_the_run_with_one_sentence(
    corpus, tmp_path, capsys, monkeypatch
):
    flush = MetricsWriter.flush

    def full(self):
        with open("/dev/full", "wb", buffering=0) as disk:
            monkeypatch.setattr(self._lines, "_file", disk)
            self.event("goodput", 5)
        flush(self)

    monkeypatch.setattr(MetricsWriter, "flush", full)
    told = refused(capsys, runs.argv(corpus, tmp_path / "run", train__steps=20))
    assert "No space left on device" in told and "metrics.jsonl" in told


def test_a_disk_that_is_full_while_a_checkpoint_is_saved_ends_the_run_with_one_sentence(
    corpus, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        process = runs.start(
            corpus, disk / "run"
        )  # of its own, to see what threads that save say too
        _, err = process.communicate(timeout=240)
        assert (
            process.returncode == 2
            and err.startswith("slmjax: ")
            and err.count("\n") == 1
            and "No space left on device" in err
        ), err
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("there", ["nothing", "tokenizer"])
def test_init_from_without_a_run_is_refused(there, corpus, undisturbed, tmp_path, capsys):
    parent = tmp_path / "parent"
    parent.mkdir()
    if there == "tokenizer":
        (parent / "tokenizer.json").write_bytes((undisturbed / "tokenizer.json").read_bytes())
    told = refused(capsys, [*runs.argv(corpus, tmp_path / "run"), f"--init_from={parent}"])
    assert f"--init_from={parent}: there is no " in told and not (tmp_path / "run").exists()


def test_ctrl_c_outside_the_loop_leaves_without_a_traceback(corpus, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("slmjax.train.text.prepared_text", interrupted)
    assert runs.train(corpus, tmp_path / "run") == 130
    assert capsys.readouterr().err == ""


def test_preparation_is_a_stage_of_its_own_and_training_uses_what_it_made(corpus, tmp_path, capsys):
    cache = {"data__cache": tmp_path / "prepared"}
    assert runs.train(corpus, tmp_path / "run", stage="prepare", **cache) == 0
    assert "words" in capsys.readouterr().out and not (tmp_path / "run").exists()
    (made,) = (path for path in (tmp_path / "prepared").iterdir() if not path.name.startswith("."))
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert (
        runs.train(
            corpus, tmp_path / "run", "--processes=2", "--process=1", stage="prepare", **cache
        )
        == 0
    )
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_words_are_read_with_and_without_an_equals_sign():
    parsed = cli.read_options(
        ["--config", "a.py", "--workdir=b=c", "--config.seed", "3", "--config.data.sources=x=y"]
    )
    assert parsed == ({"config": "a.py", "workdir": "b=c"}, ["seed=3", "data.sources=x=y"])
    assert cli.trusted(
        cli.read_options(["--config=a.py", "--trust=m:A", "--trust", "n:B,o:C"])[0]
    ) == ("m:A", "n:B", "o:C")


def test_help_lists_every_option_and_field(capsys):
    assert launch.main(["--help"]) == launch.main([]) == 0
    out = capsys.readouterr().out
    assert (
        all(f"--{flag}" in out for flag in cli.FLAGS if flag != "help")
        and "--config.train.spike_sigma=6.0" in out
    )


@pytest.mark.parametrize("modules", [MODULES, *(f"slmjax.{room} and below" for room in PREPARING)])
def test_importing_commands_and_what_prepares_text_imports_no_jax(modules):
    """Curation and preparation run on machines and in environments (Beam's, SeqIO's) without it."""
    heavy = ("jax", "flax", "grain", "orbax", *(() if "below" in modules else ("pyarrow",)))
    if "below" in modules:
        package = importlib.import_module(modules.split()[0])
        found = [
            module.name
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        ]
        assert len(found) > 3
        modules = " ".join(found)
    program = f"import sys, {', '.join(modules.split())}\nprint([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=runs.ROOT
    )
    assert found.stdout == "[]\n"
