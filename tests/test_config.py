"""The config: recipes, overrides and validation, and the sentence that each mistake gets."""

import dataclasses
import json
import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax import cli
from slmjax import config as configs
from slmjax.config.fields import AFFECTS
from slmjax.errors import UserError

LEAVES = configs.FIELDS


def set_to(*assignments):
    """The base config with overrides, after it was checked."""
    config = cli.apply_overrides(configs.base(), assignments)
    configs.freeze(config)
    return config


def test_every_field_is_documented_and_the_base_config_is_valid():
    assert configs.freeze(configs.base()) == configs.Config()
    text = configs.help_text()
    for name, field in LEAVES.items():
        assert f"--config.{name}=" in text and field.meaning in text
        assert field.affects in AFFECTS


PHASES = "data.phases=[{'until': 0.5, 'weights': {'a': 1.0}}, {'until': 1.0, 'weights': {'b': 1.0}, 'ramp': 0.2}]"


def test_training_has_at_most_eighty_fields():
    assert len([name for name in LEAVES if name.partition(".")[0] not in configs.STAGE_OF]) <= 80


def test_a_saved_config_comes_back_equal():
    config = set_to("model.pattern=('attention', 'attention rope=False')", PHASES, "seed=3")
    config.data.sources = {
        "a": {"path": "x.txt", "weight": 0.5, "max_epochs": 2.5, "score": "-quality"}
    }
    config.model.multipliers = {"matrix": {"lr": 0.5}}
    frozen = configs.freeze(config)
    assert configs.freeze(configs.from_dict(json.loads(configs.to_json(frozen)))) == frozen


def test_a_saved_config_holds_the_groups_of_its_stage():
    assert not configs.STAGE_OF.keys() & configs.to_dict(configs.Config()).keys()
    saved = configs.to_dict(configs.Config(stage="curate", curate=configs.CurateConfig(ngram=7)))
    assert saved["curate"]["ngram"] == 7 and "study" not in saved
    assert configs.from_dict(saved).curate.ngram == 7


def test_a_frozen_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        configs.Config().train.steps = 3


def test_a_removed_field_loads_with_the_value_that_holds_now_and_is_refused_by_name_with_another():
    saved = configs.to_dict(configs.Config())
    del saved["format"]  # as before there was a number
    saved["model"] |= {"norm_eps": 1e-6, "stack": []}
    saved["train"]["loss_chunks"] = 0
    assert configs.freeze(configs.from_dict(saved)) == configs.Config()
    saved["train"]["loss_chunks"] = 4
    with pytest.raises(
        UserError,
        match=r"config\.train\.loss_chunks is 4; the field .* was removed: it is now always 0",
    ):
        configs.from_dict(saved)
    assert configs.freeze(cli.apply_overrides(configs.base(), ["train.b1=0.9"])) == configs.Config()
    with pytest.raises(
        UserError,
        match=r"--config\.train\.b1: the field config\.train\.b1 was removed: it is now always 0\.9",
    ):
        cli.apply_overrides(configs.base(), ["train.b1=0.8"])


def test_a_field_that_is_unknown_is_refused_in_a_saved_config():
    saved = configs.to_dict(configs.Config())
    saved["train"]["stepps"] = 3
    with pytest.raises(
        UserError, match=r"no field config\.train\.stepps\. Did you mean 'train\.steps'"
    ):
        configs.from_dict(saved)


def test_a_config_of_a_newer_format_is_refused():
    with pytest.raises(UserError, match="format 99; this version of slmjax reads up to"):
        configs.from_dict(configs.to_dict(configs.Config()) | {"format": 99})


def test_a_field_that_a_saved_config_lacks_has_the_value_that_held_before_it_was_there(monkeypatch):
    saved = configs.to_dict(configs.Config())
    del saved["train"]["z_loss"]
    assert configs.from_dict(saved).train.z_loss == 0.0
    monkeypatch.setitem(
        configs.FIELDS, "train.z_loss", configs.FIELDS["train.z_loss"]._replace(before=1e-4)
    )
    assert configs.from_dict(saved).train.z_loss == 1e-4
    assert configs.as_today(saved)["train.z_loss"] == 1e-4


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.steps=2000", 2000),
        ("train.steps=2e3", 2000),
        ("train.lr=1", 1.0),
        ("train.lr=3e-4", 3e-4),
        ("model.tied=false", False),
        ("model.tied=True", True),
        ("model.unroll=True", "True"),
        ("data.group_by=12", "12"),
        ("eval.prompts=['a, b', 'c']", ("a, b", "c")),
        ("eval.prompts=Hello, dear world", ("Hello, dear world",)),
        ("eval.prompts=1, 2, 3", ("1, 2, 3",)),
        ("seed=-1", -1),
    ],
)
def test_a_value_is_read_as_its_fields_type(assignment, value):
    found = configs.get(set_to(assignment), assignment.partition("=")[0])
    assert found == value and type(found) is type(value)


def test_an_empty_value_takes_away_what_the_recipe_says_and_nothing_else():
    config = configs.base()
    config.data.tokenizer = "mine.json"
    config.data.sources = {"a": {"path": "b", "heldout": "c"}}
    config = cli.apply_overrides(config, ["data.tokenizer=", "data.sources.a.heldout="])
    assert config.data.tokenizer == config.data.sources.a.heldout == ""
    for name in (
        "data.tokenizer",
        "data.sources.a.heldout",
        "data.sources.a.score",
        "data.sources",
    ):
        with pytest.raises(UserError, match=f"--config.{name}= is empty"):
            cli.apply_overrides(config, [f"{name}="])


@pytest.mark.parametrize("text", ["2020", "1e5", "0x10", "None", "2020/a.jsonl", "1,2"])
def test_a_source_is_a_path_even_where_it_looks_like_a_number(text):
    config = cli.apply_overrides(set_to(f"data.sources={text}"), [])
    assert [entry.path for entry in config.data.sources.values()] == [
        (piece,) for piece in text.split(",")
    ]
    config = cli.apply_overrides(
        set_to("data.sources=t=a"), [f"data.sources.t.path={text}", "data.sources.t.field=7"]
    )
    assert (config.data.sources.t.path, config.data.sources.t.field) == (text, "7")


def test_sources_are_given_short_or_field_by_field(tmp_path):
    short = set_to(f"data.sources=books:0.7={tmp_path}/a.txt,web={tmp_path}/*.jsonl").data.sources
    assert {name: (entry.path, entry.weight) for name, entry in short.items()} == {
        "books": ((f"{tmp_path}/a.txt",), 0.7),
        "web": ((f"{tmp_path}/*.jsonl",), None),
    }
    # A field of the same group comes first: it must not lock the mapping below it.
    words = ["data.vocab_size=300", "data.sources.books.path=a"]
    config = cli.apply_overrides(configs.base(), words)
    assert config.data.sources.books.path == "a"
    assert (
        cli.apply_overrides(config, ["data.sources.books.field=body"]).data.sources.books.field
        == "body"
    )


MISTAKES = {
    "model.widht=3": "no such field. Did you mean 'model.width'?",
    "modle.width=3": "no such field. Did you mean 'model.width'?",
    "train.lr.x=3": "no such field",
    "nothing=3": "no such field",
    "model=3": "a group of fields; set one of vocab_size, width",
    "train.steps=many": "expected a value like 1000 (int)",
    "data.sources=": "--config.data.sources= is empty; give it a value or leave it out",
    "data.sources= ": "--config.data.sources= is empty",
    "data.tokenizer=": "--config.data.tokenizer= is empty",
    "synthesize.topics=": "--config.synthesize.topics= is empty",
    "synthesize.passages= ": "--config.synthesize.passages= is empty",
    "curate.index=": "--config.curate.index= is empty",
    "curate.rules=": "--config.curate.rules= is empty",
    "data.sources=a=": "data.sources.a: path is missing",
    "data.sources=a=b,": "'a=b,' has an empty part",
    "data.sources=a=b,,c=d": "'a=b,,c=d' has an empty part",
    "data.sources=['a', '']": "'' has an empty part",
    "data.sources={'a': {'path': ['b', '']}}": "data.sources.a.path is ['b', '']; expected a path or a list of paths",
    "data.sources={'a': {'path': 0.5}}": "data.sources.a.path is 0.5; expected a path",
    "data.sources={'a': {'path': 'b', 'heldout': ['']}}": "data.sources.a.heldout is ['']; expected a path",
    "train.steps=1.5": "expected a value like 1000 (int)",
    "train.steps=True": "expected a value like 1000 (int)",
    "train.lr=fast": "expected a value like 0.003 (float)",
    "model.tied=1": "expected a value like True (bool)",
    "model.pattern=3": "expected a value like ('attention',) (tuple)",
    "model.multipliers=3": "expected {group: {init, lr, decay}}",
    "model.pattern=": "config.model.pattern is (); it must name at least one entry",
    "model.pattern=('attention', 3)": "expected texts, such as ('attention', 'gdn')",
    "seed": "write --config.seed=VALUE",
    "data.sources.path=a.txt": "expected --config.data.sources.NAME.path, with a NAME without dots",
    "data.sources.a.b.path=a.txt": "expected --config.data.sources.NAME.path",
    "train.optimizer=muonn": "can be adamw, muon. Did you mean 'muon'?",
    "data.packing=fit": "can be best_fit, concat",
    "model.width=0": "config.model.width is 0; it must be positive",
    "train.steps=-5": "config.train.steps is -5; it must not be negative",
    "data.heldout=1": "config.data.heldout is 1.0; it must be at least 0 and less than 1",
    "model.kv_heads=3": "config.model.kv_heads is 3; it must divide config.model.heads, 4",
    "model.head_dim=33": "config.model.head_dim is 33; it must be positive and even",
    "train.microbatches=5": "it must divide config.train.batch, 64",
    "train.warmup=900": "exceed config.train.steps, 1000; for so short a run, --config.train.warmup=100.",
    "mesh.sequence=2": "config.mesh.sequence is 2; it must be 1 in this version: the axis is reserved",
    "log.profile=abc": "expected first:last",
    "log.profile=5": "expected first:last",
    "model.pattern=['attention'": "expected a value like ('attention',) (tuple)",
    "log.profile=7:5": "expected first:last",
    "data.workers=-1": "config.data.workers is -1; it must not be negative",
    "train.warmup=-1": "config.train.warmup is -1; it must not be negative",
    "train.steps=1e30": "its size can be 2,147,483,647 at most",
    "data.seq_len=99999999999": "config.data.seq_len is 99999999999; its size can be 2,147,483,647 at most",
    "train.lr=1e999": "config.train.lr is inf; it must be positive",
    "train.lr=nan": "expected a value like 0.003 (float)",
}


@pytest.mark.parametrize("assignment", MISTAKES)
def test_a_mistake_is_named_in_one_sentence(assignment):
    with pytest.raises(UserError) as error:
        set_to(assignment)
    text = str(error.value)
    assert MISTAKES[assignment] in text and "\n" not in text
    assert assignment.partition("=")[0].partition(".")[2][:4] in text


def test_a_warmup_longer_than_the_run_is_refused_under_every_schedule():
    with pytest.raises(
        UserError, match=r"config.train.warmup \(1001\) exceeds config.train.steps \(1000\)"
    ):
        set_to("train.schedule=cosine", "train.warmup=1001")
    set_to("train.schedule=cosine", "train.warmup=1000")


@given(st.integers(1, 200), st.floats(0, 0.99))
def test_the_warmup_that_a_shortened_run_is_advised_to_take_is_accepted(steps, decay):
    config = configs.base()
    config.train.steps, config.train.decay, config.train.warmup = steps, decay, steps + 1
    with pytest.raises(UserError) as error:
        configs.freeze(config)
    configs.freeze(
        cli.apply_overrides(config, [str(error.value).rpartition("--config.")[2].removesuffix(".")])
    )


@given(
    st.sampled_from(sorted(LEAVES)),
    st.text(max_size=12) | st.integers().map(str) | st.floats().map(str) | st.just("(1, [2])"),
)
def test_whatever_is_typed_gives_a_config_or_one_sentence(name, text):
    try:
        config = cli.apply_overrides(configs.base(), [f"{name}={text}"])
    except UserError as error:
        assert name in str(error) or name == "data.sources"
        return
    try:
        configs.freeze(config)
    except UserError as error:
        assert "config." in str(error)


_RECIPE = "from slmjax import config\n\n\ndef get_config():\n    c = config.base()\n    {}\n    return c\n"
RECIPES = {
    "def other(): pass": "has no get_config()",
    "def get_config(): return 3": "returned int",
    "def get_config(:": "line 1: invalid syntax",
    _RECIPE.format("c.model.widht = 3"): 'line 6: Key "widht" does not exist',
    _RECIPE.format(
        "c.train.b1 = 0.8"
    ): "line 6: the field config.train.b1 was removed: it is now always 0.9",
    _RECIPE.format(
        "c.model.width = 'a'"
    ): "line 6: the field 'width' is set to a (str); expected a value of the type int.",
    _RECIPE.format(
        "c.model.pattern = 'attention'"
    ): "the field 'pattern' is set to attention (str); expected a value of the type tuple, such as ('attention',).",
    _RECIPE.format(
        "c.data.sources = 'a.txt'"
    ): "the field 'sources' is set to a.txt (str); expected a value of the type ConfigDict.",
    "import no_such_module": "line 1: No module named 'no_such_module'",
    "def get_config(): return {}['x']": "line 1: x.",
    "x = 3\ny = 1 / 0": "line 2: ZeroDivisionError: division by zero.",
    "def get_config():\n    assert False, 'too early'": "line 2: AssertionError: too early.",
    "def get_config():\n    raise RuntimeError": "line 2: RuntimeError.",
    "import json\njson.loads('{')": "line 2: Expecting property name",
    "import sys\nsys.exit('done')": "line 2: RuntimeError: the recipe ends the program (exit done).",
    "from ml_collections import ConfigDict\nget_config = ConfigDict": "returned a config without 'checkpoint'; start from",
    _RECIPE.format(
        "c.unlock().model.widht = 3"
    ): "there is no field config.model.widht. Did you mean 'model.width'?",
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_that_fails_is_named_with_its_line(text, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        configs.load_recipe(str(path))
    assert (
        RECIPES[text] in str(error.value)
        and str(path) in str(error.value)
        and "\n" not in str(error.value)
    )
    assert [entry.name for entry in tmp_path.iterdir()] == [
        "recipe.py"
    ]  # and no bytecode beside it


def test_a_recipe_beside_the_current_folder_is_named_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text("x = 1\ny = 1 / 0")
    with pytest.raises(UserError) as error:
        configs.load_recipe("recipe.py")
    assert str(error.value) == "--config: 'recipe.py', line 2: ZeroDivisionError: division by zero."


JSON = {
    b"[1]": "it holds no object; expected the fields of a config.json",
    b"\xff\xfe": "'utf-8' codec can't decode byte 0xff",
    b'{"model": {"widht": 3}}': "there is no field config.model.widht. Did you mean 'model.width'?",
    b'{"modle": {"width": 3}}': "there is no field config.modle",
    b'{"train": {"steps": Infinity}}': "the field 'steps' is set to inf (float); expected a value of the type int.",
}


@pytest.mark.parametrize("content", JSON)
def test_a_config_json_that_is_none_is_said_to_be(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        configs.freeze(configs.load_recipe(str(tmp_path / "config.json")))
    assert (
        JSON[content] in str(error.value)
        and "config.json" in str(error.value)
        and "\n" not in str(error.value)
    )


def test_a_fault_in_a_module_that_a_recipe_imports_is_named_where_it_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "shared_settings.py").write_text("a = 1\nb = (\n")
    (tmp_path / "recipe.py").write_text("import shared_settings\n")
    with pytest.raises(UserError) as error:
        configs.load_recipe(str(tmp_path / "recipe.py"))
    assert f"'{tmp_path / 'shared_settings.py'}', line 2: '(' was never closed" in str(error.value)


FOREIGN = {
    "model.pattern=stranger:Mixer+none heads=2": "stranger:Mixer",
    "model.pattern=attention,|,stranger:Mixer": "stranger:Mixer",
    "model.pattern=attention+stranger:Experts": "stranger:Experts",
    "data.sources=web=seqio://stranger/task": "seqio://stranger/task",
    "data.sources.web.reader=stranger:read": "stranger:read",
    "synthesize.passages=seqio://stranger/task": "seqio://stranger/task",
    "synthesize.passages=a.txt, seqio://stranger/task": "seqio://stranger/task",
    "study.variants={'attention': ('attention',), 'odd': ('stranger:Mixer',)}": "stranger:Mixer",
    "curate.beam=--runner=stranger.Runner": "--runner=stranger.Runner",
    "curate.beam=--runner=DirectRunner --setup_file=stranger.py": "--runner=DirectRunner --setup_file=stranger.py",
}


@pytest.mark.parametrize("assignment", FOREIGN)
def test_a_config_that_came_as_a_file_may_not_name_code_and_nothing_of_it_is_imported(
    assignment, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    config = configs.base()
    if assignment.startswith("data.sources="):
        config.data.sources = {"web": {"path": ("seqio://stranger/task",)}}
    else:
        config.data.sources = {"web": {"path": "a.csv"}}
        cli.apply_overrides(config, [assignment])
    group, name, file = assignment.partition(".")[0], FOREIGN[assignment], tmp_path / "config.json"
    config.stage = configs.STAGE_OF.get(group, "train")
    frozen = configs.freeze(config)
    file.write_text(configs.to_json(frozen))
    with pytest.raises(UserError) as error:
        configs.load_recipe(str(file), ["other:Mixer"])
    assert f"'{file}' names '{name}'" in str(error.value) and f"--trust={shlex.quote(name)}" in str(
        error.value
    )
    assert "--runner" in name or str(tmp_path / "stranger.py") in str(error.value)
    assert "stranger" not in sys.modules
    assert configs.freeze(configs.load_recipe(str(file), [name])) == frozen


def test_a_runner_of_beam_itself_needs_no_trust(tmp_path):
    (tmp_path / "config.json").write_text(
        configs.to_json(configs.freeze(set_to("stage=curate", "curate.beam=--runner=DirectRunner")))
    )
    assert configs.load_recipe(str(tmp_path / "config.json")).curate.beam == "--runner=DirectRunner"


def test_a_missing_recipe_names_the_nearest_one(tmp_path):
    (tmp_path / "tiny.py").write_text("")
    with pytest.raises(UserError, match=r"no file .* Did you mean '.*tiny\.py'\?"):
        configs.load_recipe(str(tmp_path / "tinny.py"))


WRONG = {
    "train.steps": "many",
    "train.lr": None,
    "data.tokenizer": 3,
    "data.sources": 3,
    "model.pattern": "attention",
    "model.tied": 1,
    "model.unroll": 2,
    "eval.prompts": [1],
    "model.multipliers": [1],
    "data.phases": 3,
    "train": 3,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_of_another_type_in_a_saved_config_is_named(name, tmp_path):
    saved = configs.to_dict(configs.Config())
    group, _, leaf = name.partition(".")
    if leaf:
        saved[group][leaf] = WRONG[name]
    else:
        saved[group] = WRONG[name]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError) as error:
        configs.freeze(configs.load_recipe(str(tmp_path / "config.json")))
    assert (name in str(error.value) or "config.json" in str(error.value)) and "\n" not in str(
        error.value
    )


def test_a_work_directorys_config_is_a_recipe(tmp_path):
    (tmp_path / "config.json").write_text(configs.to_json(configs.freeze(set_to("model.width=96"))))
    assert configs.load_recipe(str(tmp_path / "config.json")).model.width == 96
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        configs.load_recipe(str(tmp_path / "config.json"))


def test_a_config_without_a_group_of_fields_is_none_of_a_run(tmp_path):
    saved = json.loads(configs.to_json(configs.Config()))
    del saved["data"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"config\.json' is no config of a run; it has no 'data'"):
        configs.load_recipe(str(tmp_path / "config.json"))
