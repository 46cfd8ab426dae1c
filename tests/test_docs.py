"""What the README, the pages of docs/ and the launch scripts say is true, and their commands run."""

import ast
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import zstandard

from slmjax import config as configs
from slmjax.data import embedded_text
from slmjax.record import metrics
from slmjax.studies import mixture_study
from slmjax.testing import check_mixer
from tests import runs
from tests.corpus import write_corpus
from tests.data.test_pair_rows import chats, pairs, write

ROOT = Path(__file__).parent.parent
PAGES = {
    path.name: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


def blocks(text, kind):
    """The code blocks of a language, in order."""
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def commands(text):
    """The words of every command in a page's bash blocks, without comments and `python`."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


def python_block(words):
    """The only Python block that holds some words."""
    (block,) = (block for block in blocks(EVERYTHING, "python") if words in block)
    return block


def test_every_path_that_the_pages_name_exists():
    places = "configs|launch|colab|docs|slmjax|tests|\\.ci"
    named = re.findall(rf"(?<![\w/.])((?:{places})/[\w./-]*)", EVERYTHING)
    missing = {path for path in named if not (ROOT / path.rstrip(".")).exists()}
    assert len(named) > 15
    assert not missing


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_somewhere(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        page = folder / path if path else folder / name
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target


def test_every_config_field_that_the_pages_and_the_scripts_name_exists():
    text = EVERYTHING + "".join(script.read_text() for script in SCRIPTS)
    named = set(re.findall(r"--config\.([a-z_0-9.]*[a-z_0-9])", text))
    own = re.compile(
        r"data\.sources\.(web|chats|dialogues|pairs|new|worked)\.\w+|curate\.(rules|languages)\.\w+"
        r"|evaluate\.files\.\w+"
    )
    unknown = {name for name in named - set(configs.FIELDS) if not own.fullmatch(name)}
    assert len(named) > 20
    assert not unknown


def test_the_option_tables_are_those_of_the_library():
    words = [sys.executable, str(ROOT / ".ci/option_tables.py"), "--check"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert all(f"`{name}`" in EVERYTHING for name in configs.FIELDS if not name.startswith("study"))


def test_every_module_that_the_pages_run_answers_to_help():
    modules = sorted(set(re.findall(r"python -m (slmjax[\w.]*)", EVERYTHING)))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", name, "--help"], cwd=ROOT, stdout=-1, stderr=-1, text=True
        )
        for name in modules
    ]
    assert set(modules) >= {"slmjax.launch", "slmjax.generate", "slmjax.compare"}
    for name, process in zip(modules, started, strict=True):
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0 and f"python -m {name}" in out, error


# Commands that no test of this file runs: words that they hold, and why.
NOT_HERE = {
    "pip install": "needs a network; .ci/run executes the README's two",
    "python -m pytest": "is this",
    "ruff check": "a stage of .ci/run",
    "slmjax.bench": "a GPU, another library or minutes; tests/bench runs every bench",
    "base_url": "a server that is paid for; tests/synthesize has one of its own",
    "slmjax.chat": "a person, or runs that another page leaves; tests/test_chat.py has both",
    "--coordinator": "several machines; tests/parallel starts several processes",
    "configs/30m.py": "real text and a GPU",
    "forecast.py:classroom": "real text and a GPU; tests/studies has the recipe",
    "runs/classroom": "what that leaves",
    "forecast.py:100m-tokens": "real text and a GPU; tests/studies has the recipe",
    "documents=96000": "minutes; the same command with fewer documents is run",
    "configs/studies/mixers.py": "real text and a GPU; tests/studies has the recipe",
    "configs/studies/textbook.py": "real text and a GPU; tests/studies has the recipe",
    "runs/worth": "what that leaves",
    "runs/mixers": "what that leaves",
    "runs/30m-llama": "what that leaves",
    "text=": "a variable for one of these",
    "sources=books": "a variable for one of these",
    "sources=$sources": "a variable for one of these",
    "half=": "a variable for one of these",
    "--params=": "a shape that nothing makes small; tests/train/test_transfer.py has the config",
    "forecast.sizes=120k": "minutes; the same command with three sizes is run",
    "configs/minutes.py": "minutes; tests/studies/test_minutes_run.py has shorter runs",
    "documents=50000": "minutes; the same command with fewer documents is run",
    "evaluate.py:textbook": "rows of more than 64 tokens; tests/evals/test_evaluate_stage.py has them",
    "evaluate.py --init_from": "sets that are not part of the repository",
    "evaluate.py:development": "problems that are not part of the repository",
    "evaluate.py:word_problems": "problems that are not part of the repository",
}
# What makes a recipe small, before the command's own fields; and what a command asks for that is
# too much for a test.
SMALL_MODEL = "model.width=16 model.layers=2 model.heads=2 model.kv_heads=1 model.head_dim=8"
# Muon takes long to compile; .ci/run trains with it as the README says.
SMALL_RUN = "train.steps=12 train.batch=8 train.microbatches=1 train.warmup=2 train.decay=0.5"
SMALL_RUN += " train.optimizer=adamw"
SMALL_REST = (
    "data.seq_len=64 eval.every=0 eval.tokens=500 eval.samples=0 eval.answers=0 checkpoint.every=6"
)
SMALL = f"{SMALL_MODEL} model.ff_width=32 model.vocab_size=0 {SMALL_RUN} {SMALL_REST} log.every=2"
SMALLER = {
    "--config.model.layers=24": "--config.model.layers=4",
    "--config.train.steps=1000": "--config.train.steps=20",
    "--config.train.steps=400": "--config.train.steps=4",
    "--config.train.steps=600": "--config.train.steps=4",
    "--variants=300": "--variants=1",
    "--config.train.batch=64": "--config.train.batch=8",
    "--config.study.examples=4096": "--config.study.examples=64",
    "--config.mixture.target_tokens=400_000": "--config.mixture.target_tokens=40_000",
}


# Studies have a report of their own. Those of their many runs cost a second each.
STUDY_PAGES = ("forecast.md", "mixture.md", "studies.md")


def is_run(words):
    command = " ".join(words)
    if "--workdir=runs/recall" in words and "configs/studies/recall.py" in command:
        return False
    return not any(part in command for part in NOT_HERE)


def small(words):
    """A launcher's words for a model, a run and a textbook that a test can afford."""
    recipe = next(word for word in words if word.startswith("--config="))
    fields = SMALL.split()
    if "textbook.py" in recipe:
        fields = ["synthesize.documents=60"]
    elif "anneal.py" in recipe:
        # All of it is the trunk's.
        fields = []
    elif "lengthen.py" in recipe:
        # All but the steps follows from the parent.
        fields = ["train.steps=4", "train.warmup=0", "eval.tokens=500", "eval.samples=0"]
        fields += ["train.batch=8"]
    elif "evaluate.py" in recipe:
        # The model is that of --init_from.
        fields = []
    elif "reasoning.py" in recipe:
        fields = ["reasoning.templates=2", "reasoning.variants=1", "reasoning.max_tokens=4"]
    elif "target.json" in recipe:
        # A forecast is for this very config.
        fields = []
    elif "studies/forecast.py" in recipe:
        fields = ["forecast.tokens=6000", "train.decay=0.5", "train.optimizer=adamw"]
        fields += ["model.unroll=False"]
    elif "studies/mixture.py" in recipe:
        fields += ["data.vocab_size=320", "data.heldout=0.2", "mesh.data=8"]
    elif "curate.py" in recipe:
        fields = ["curate.processes=1", "curate.max_removed=1", "curate.max_dropped=1"]
    elif "studies/recall.py" in recipe:
        fields = ["study.tested=32", "study.seeds=1", "study.rates=0.01", "eval.every=2"]
        fields += ["train.warmup=1", "study.variants={'attention': ('attention+none',)}"]
    else:
        fields += ["data.vocab_size=320"]
    if "sft.py" in recipe or "orpo.py" in recipe:
        # Rows in which a dialogue of the textbook has room.
        fields = [field for field in fields if not field.startswith("data.seq_len")]
        # The questions of the reasoning probe are longer.
        seq_len = 768 if "--workdir=runs/solver" in words else 256
        fields += [f"data.seq_len={seq_len}", "train.steps=4", "train.warmup=1"]
    own = [SMALLER.get(word, word) for word in words if word != recipe]
    own = [re.sub("vocab_size=(8192|16384)", "vocab_size=320", word) for word in own]
    return [recipe, *(f"--config.{field}" for field in fields), *own]


def prose():
    """Paragraphs of the language reference that comes with Python, which quality rules accept."""
    for text in topics.values():
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
        yield "\n".join(part for part in paragraphs if part.endswith(".") and len(part) > 80)


FIRST = ["python", "-m", "slmjax.launch", "--config=configs/tiny.py"]


def make_textbook_small(patch):
    """The embedded textbook has few documents: preparing all of it would take most of the time."""
    patch.setattr(embedded_text, "TRAIN_PER_KIND", 200)
    patch.setattr(embedded_text, "HELDOUT_PER_KIND", 20)
    patch.setattr(embedded_text, "TRAIN_CONVERSATIONS", 300)
    patch.setattr(embedded_text, "HELDOUT_CONVERSATIONS", 30)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """What the first command leaves, with which every page begins: runs/tiny and its text."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_textbook_small(patch)
        assert run_command(FIRST) == 0
    return folder / "runs"


@pytest.fixture
def newcomer(tmp_path, monkeypatch, first_run):
    """A folder in which every command of every page finds what it names."""
    shutil.copytree(first_run, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for folder in ("texts", "books", "data/web", "data/books", "data/more-books"):
        (tmp_path / folder).mkdir(parents=True)
        write_corpus(tmp_path / folder / "a.jsonl", seed=len(folder), documents=150)
    contents = (tmp_path / "texts" / "a.jsonl").read_text().replace('"text"', '"content"')
    for place in ("data/web.jsonl.zst", "data/web/a.jsonl.zst"):
        (tmp_path / place).write_bytes(zstandard.compress(contents.encode()))
    for source in ("web", "books"):
        (tmp_path / "raw" / source).mkdir(parents=True)
        lines = [json.dumps({"text": text}) + "\n" for text in prose()]
        (tmp_path / "raw" / source / "a.jsonl").write_text("".join(lines))
    (tmp_path / "gsm8k").mkdir()
    question = (
        "Mira paints seventeen wooden boats green and leaves them on the beach to dry, but before "
        "evening the tide carries six of them away. How many boats are still lying on the beach?"
    )
    item = {"question": question, "answer": "Eleven boats stay, as seventeen minus six is eleven."}
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(item) + "\n")
    rows = [json.loads(line)["text"] for line in (tmp_path / "texts" / "a.jsonl").open()]
    table = "id,body\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(rows))
    (tmp_path / "table.csv").write_text(table)
    (tmp_path / "prompts.txt").write_text("On Monday\nAna has\n")
    write(tmp_path / "chats.jsonl", chats(60))
    write(tmp_path / "pairs.jsonl", pairs(60, prompts=30))
    make_textbook_small(monkeypatch)
    monkeypatch.setattr(mixture_study, "BOOTSTRAPS", 5)
    (tmp_path / "recipe.py").write_text(python_block("def get_config"))
    mine = ("class Mean", "class Calm(", "def read_csv")
    (tmp_path / "mine.py").write_text("\n\n".join(map(python_block, mine)))
    return tmp_path


def run_command(words):
    """Run one command of a page, small, in this process; returns its exit status."""
    words = [os.path.expanduser(word.replace("=~", f"={os.environ['HOME']}")) for word in words]
    words = [re.sub(r":([\d.]+)=~", rf":\1={os.environ['HOME']}", word) for word in words]
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
        return 0
    if words[0] == "cp":
        return subprocess.run(words).returncode
    assert words[:2] == ["python", "-m"], words
    module, rest = words[2], words[3:]
    if module == "slmjax.launch" and "--help" not in rest:
        rest = small(rest)
    elif module == "slmjax.probe_training":
        rest = [SMALLER.get(word, word) for word in rest]
    return importlib.import_module(module).main(rest)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_command_of_a_page_that_can_run_here_runs(name, newcomer, monkeypatch, capfd):
    if name in STUDY_PAGES:
        monkeypatch.setattr("slmjax.train.loop.write_report", lambda *_, **__: "report.html")
    asked = [words for words in commands(PAGES[name]) if is_run(words)]
    for words in asked:
        status = run_command(words)
        assert status == 0, (words, capfd.readouterr().err[-2000:])


def test_every_reason_not_to_run_a_command_is_needed():
    everything = "\n".join(" ".join(words) for text in PAGES.values() for words in commands(text))
    assert [part for part in NOT_HERE if part not in everything] == []


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_the_recipe_table_says_each_recipes_parameters_and_tokens(recipe, tmp_path, monkeypatch):
    from slmjax.models import choose_shape, sizes
    from slmjax.models.pattern import from_config

    for domain in ("books", "textbooks", "math", "docs", "code", "reference"):
        (tmp_path / "pretrain" / domain).mkdir(parents=True)
    monkeypatch.setenv(
        "SLMJAX_SHARED", str(tmp_path)
    )  # configs/30m.py looks whether its text is there
    source = (ROOT / "configs" / recipe).read_text()
    if re.search(r"def get_config\(.*(parent|trunk)\)", source):
        # Its model is that of the run it goes on from.
        assert f"configs/{recipe}" in README
        return
    config = configs.freeze(configs.load_recipe(str(ROOT / "configs" / recipe)))
    if config.stage != "train" or config.train.minutes:
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


@pytest.mark.parametrize("source", blocks(EVERYTHING, "python"))
def test_the_python_of_the_pages_compiles_and_its_imports_exist(source):
    compile(source, "page", "exec")
    if "lm_eval" in source:
        pytest.importorskip("lm_eval")  # the extra of that name
    exec(
        "\n".join(line for line in source.splitlines() if line.startswith(("from ", "import "))), {}
    )


def test_the_readmes_recipe_is_a_valid_config(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(python_block("def get_config"))
    configs.freeze(configs.load_recipe(str(recipe)))


def test_the_extras_that_the_readme_and_the_scripts_install_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = set(
        re.findall(
            r"-e '\.\[(\w+)\]'", EVERYTHING + "".join(script.read_text() for script in SCRIPTS)
        )
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


def test_the_notebook_on_alignment_writes_the_repositorys_recipes():
    # Colab has no configs/, so the recipes stand in cells.
    cells = json.loads((ROOT / "colab/align.ipynb").read_text())["cells"]
    written = {}
    for cell in cells:
        first_line, _, source = "".join(cell["source"]).partition("\n")
        if first_line.startswith("%%writefile "):
            written[first_line.split()[1]] = source
    assert set(written) == {"tiny.py", "sft.py", "orpo.py"}
    for name, source in written.items():
        trees = [ast.parse(source), ast.parse((ROOT / "configs" / name).read_text())]
        # But for the docstrings.
        ours, repositorys = [ast.dump(ast.Module(tree.body[1:], [])) for tree in trees]
        assert ours == repositorys, name


def test_the_readmes_own_mixer_passes_the_check_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(python_block("class Mean"))
    monkeypatch.syspath_prepend(tmp_path)
    assert len(check_mixer("mine:Mean")) == 4


def test_the_readmes_loss_term_is_trained_and_logged(corpus, tmp_path, monkeypatch):
    body = python_block("class Calm(")
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
    body = python_block("def read_csv")
    space = {}
    exec(body, space)
    text = (
        b'id,body\n1,"two\nlines"\n2\n3,a,b\n4,"b" c\n5,one\n6,' + b"x" * 200_000 + b'\n7,"open\n'
    )
    items = list(space["read_csv"](io.BytesIO(text)))
    expected = ["two\nlines", None, None, None, "one", "x" * 200_000, None]
    assert [getattr(item, "fields", {}).get("body") for item in items] == expected
    assert [item.line for item in items if hasattr(item, "fields")] == [3, 7, 8]
