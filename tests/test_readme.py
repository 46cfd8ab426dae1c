"""What the README and the launch scripts say exists: files, config fields, modules and their options, code that compiles."""

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from slmjax import cli, generate
from slmjax import config as configs
from slmjax.record import metrics
from slmjax.testing import check_mixer
from tests import runs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
FIELDS = set(configs.FIELDS)
SHELL = "\n".join(
    [
        *(body for kind, body in BLOCKS if kind == "bash"),
        *re.findall(r"`(python -m slmjax[^`]*)`", README),
    ]
).replace("\\\n", " ")
COMMANDS = [shlex.split(line, comments=True) for line in SHELL.splitlines()]


def calls(module):
    """The words after `python -m MODULE` in every command of the README."""
    lines = [
        " ".join(map(shlex.quote, words)).partition(f"python -m {module} ")[2].partition("&&")[0]
        for words in COMMANDS
    ]
    return [shlex.split(line) for line in lines if line]


def test_every_path_that_the_readme_names_exists():
    named = re.findall(r"(?<![\w/.])((?:configs|launch|colab|slmjax|tests|\.ci)/[\w./-]*)", README)
    missing = {path for path in named if not (ROOT / path).exists()}
    assert len(named) > 15
    assert not missing


def test_every_config_field_that_the_readme_and_the_scripts_name_exists():
    text = README + "".join(script.read_text() for script in SCRIPTS)
    named = set(re.findall(r"--config\.([a-z_0-9.]*[a-z_0-9])", text))
    unknown = (
        named
        - FIELDS
        - {
            "data.sources.web.field",
            "data.sources.web.heldout",
            "data.sources.web.reader",
            "curate.rules.books",
            "curate.rules.web",
            "curate.languages.web",
        }
    )
    assert len(named) > 20
    assert not unknown


@pytest.mark.parametrize("words", calls("slmjax.launch"), ids=" ".join)
def test_every_launch_command_of_the_readme_is_understood(words):
    if "--help" in words:
        return
    options, assignments = cli.read_options(words)
    if options["config"] != "configs/30m.py":  # which asks for its text at once
        cli.apply_overrides(configs.load_recipe(str(ROOT / options["config"])), assignments)


@pytest.mark.parametrize(
    "words", [w for w in calls("slmjax.generate") if "--help" not in w], ids=" ".join
)
def test_every_generate_command_of_the_readme_is_understood(words):
    assert generate.parse_options(words).checkpoint.startswith("runs/")


def test_every_module_that_the_readme_runs_answers_to_help():
    modules = sorted(set(re.findall(r"python -m (slmjax[\w.]*)", README)))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", name, "--help"], cwd=ROOT, stdout=-1, stderr=-1, text=True
        )
        for name in modules
    ]
    answers = {
        name: (process.communicate(timeout=120), process.returncode)
        for name, process in zip(modules, started, strict=True)
    }
    assert set(modules) >= {"slmjax.launch", "slmjax.generate", "slmjax.compare"}
    assert all(
        status == 0 and f"python -m {name}" in out for name, ((out, _), status) in answers.items()
    ), answers


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_the_recipe_table_says_each_recipes_parameters_and_tokens(recipe, tmp_path, monkeypatch):
    from slmjax.models import choose_shape, sizes
    from slmjax.models.pattern import from_config

    for domain in ("books", "textbooks", "math", "docs", "code", "reference"):
        (tmp_path / "pretrain" / domain).mkdir(parents=True)
    monkeypatch.setenv(
        "SLMJAX_SHARED", str(tmp_path)
    )  # configs/30m.py looks whether its text is there
    config = configs.freeze(configs.load_recipe(str(ROOT / "configs" / recipe)))
    if config.stage != "train":
        assert f"configs/{recipe}" in README
        return
    row = next(line for line in README.splitlines() if line.startswith(f"| `configs/{recipe}`"))
    parameters, tokens = (row.split("|")[column].split()[0] for column in (2, 4))
    arch = from_config(config.model, config.model.vocab_size or config.data.vocab_size)
    # The columns are rounded to three digits.
    assert choose_shape.parse_params(parameters) == pytest.approx(
        sizes.parameters(arch).total, rel=0.006
    )
    assert choose_shape.parse_params(tokens) == pytest.approx(
        config.train.steps * config.train.batch * config.data.seq_len, rel=0.006
    )


@pytest.mark.parametrize("source", [body for kind, body in BLOCKS if kind == "python"])
def test_the_readmes_python_compiles_and_its_imports_exist(source):
    compile(source, "README.md", "exec")
    exec(
        "\n".join(line for line in source.splitlines() if line.startswith(("from ", "import "))), {}
    )


def test_the_readmes_recipe_is_a_valid_config(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        next(body for kind, body in BLOCKS if kind == "python" and "get_config" in body)
    )
    configs.freeze(configs.load_recipe(str(recipe)))


def test_the_extras_that_the_readme_and_the_scripts_install_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = set(
        re.findall(r"-e '\.\[(\w+)\]'", README + "".join(script.read_text() for script in SCRIPTS))
    )
    assert {"test", "gcs", "hub", "hf", "tpu", "cuda13"} <= named <= set(extras)


def test_the_continuous_integration_finds_the_readmes_two_commands():
    for name, expected in (
        ("run", "python -m slmjax.launch --config=configs/tiny.py"),
        ("test", "python -m pytest"),
    ):
        found = subprocess.run(
            [sys.executable, str(ROOT / ".ci/readme_command.py"), name],
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected in found.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_every_shell_script_parses_and_may_be_executed(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111


def test_the_tpu_script_passes_words_with_blanks_on_as_they_are():
    words = ["--config=configs/tiny.py", "--config.data.sources=a:0.5=gs://bucket/two words"]
    shown = subprocess.run(
        ["bash", str(ROOT / "launch/tpu.sh"), "run", *words],
        env={"GCLOUD": "echo", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    script = re.search(r"setsid bash -c (.*) >run\.log", shown.stdout)
    inner = shlex.split(shlex.split(script[1])[0])
    assert words[1] in inner
    assert inner.count("slmjax.launch") == 2


def test_notebooks_are_committed_without_outputs():
    for path in (ROOT / "colab").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path


def test_the_readmes_own_mixer_passes_the_check_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        next(body for kind, body in BLOCKS if kind == "python" and "class Mean" in body)
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(check_mixer("mine:Mean")) == 4


def test_the_readmes_loss_term_is_trained_and_logged(corpus, tmp_path, monkeypatch):
    body = next(body for kind, body in BLOCKS if kind == "python" and "class Calm" in body)
    (tmp_path / "mine.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    fields = {
        "task": "mine:CalmText beta=0.1",
        "train__steps": 3,
        "train__warmup": 1,
        "log__every": 1,
    }
    assert runs.train(corpus, tmp_path / "run", **fields) == 0
    found = [
        record["train/first"]
        for record in metrics.read(tmp_path / "run").kept
        if "train/first" in record
    ]
    assert len(found) == 3 and all(value > 0 for value in found)


def test_the_readmes_reader_reads_quoted_lines_and_counts_broken_rows(tmp_path):
    body = next(body for kind, body in BLOCKS if kind == "python" and "def read_csv" in body)
    space = {}
    exec(body, space)
    text = (
        b'id,body\n1,"two\nlines"\n2\n3,a,b\n4,"b" c\n5,one\n6,' + b"x" * 200_000 + b'\n7,"open\n'
    )
    items = list(space["read_csv"](io.BytesIO(text)))
    expected = ["two\nlines", None, None, None, "one", "x" * 200_000, None]
    assert [getattr(item, "fields", {}).get("body") for item in items] == expected
    assert [item.line for item in items if hasattr(item, "fields")] == [3, 7, 8]
