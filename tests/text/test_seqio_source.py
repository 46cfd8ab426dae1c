"""SeqIO: a task's text comes out once and as it was, a mixture is its tasks with seqio's own shares, and reading goes on anywhere."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from slmjax import cli
from slmjax import config as configs
from slmjax.data.loader import batch_rows
from slmjax.data.prepare import prepare
from slmjax.data.prepare_stage import batch_plan, prepared_text
from slmjax.errors import UserError
from slmjax.text.readers import read_documents, read_records
from slmjax.text.records import DAMAGED, Document, Fault, Record, Source
from slmjax.text.seqio_source import _import
from slmjax.text.source_files import list_files
from slmjax.text.sources import parse_sources
from tests.corpus import RECIPE, ROOT, write_corpus
from tests.data.batch_hashes import batch_hash

MODULE = """
import functools, json
from pathlib import Path
import seqio, tensorflow as tf

HERE = Path(__file__).parent
BYTES = seqio.Feature(seqio.ByteVocabulary(), required=False)
TOKENIZE = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]

def lines(pattern):
    return seqio.TextLineDataSource({"train": str(HERE / pattern), "validation": str(HERE / "validation.txt")})

def targets(data):
    return data.map(lambda text: {"inputs": "", "targets": text})

@seqio.map_over_dataset(num_seeds=1)
def shaken(example, seed):  # as a preprocessor that corrupts: by seqio's seeds, and by TensorFlow's own random state
    both = tf.random.stateless_uniform([], seed, 0, 10**6, tf.int32), tf.random.uniform([], 0, 10**6, tf.int32)
    return {**example, "targets": tf.strings.join([example["targets"], *map(tf.strings.as_string, both)], " ")}

def questions(split, shuffle_files):
    records = [json.loads(line) for line in open(HERE / "questions.jsonl", "rb")]
    return tf.data.Dataset.from_tensor_slices({name: [record[name] for record in records] for name in records[0]})

def add(name, source, *preprocessors):
    seqio.TaskRegistry.add(name, source, {"inputs": BYTES, "targets": BYTES}, [*preprocessors, *TOKENIZE])

add("river:lines", lines("river-*.txt"), targets)
add("shaken", lines("river-*.txt"), targets, shaken)
add("unused", lines("river-*.txt"), targets)
add("questions", seqio.FunctionDataSource(questions, ["train"]))
add("nowhere", lines("nothing-*.txt"), targets)
seqio.TaskRegistry.add("decoded", lines("river-*.txt"), {"text": BYTES}, [
    lambda data: data.map(lambda text: {"text": text}),
    functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
    seqio.preprocessors.append_eos,
])
seqio.MixtureRegistry.add("inner", [("questions", 3.0), ("shaken", 1.0)])
seqio.MixtureRegistry.add("nested", [("river:lines", 2), ("inner", 6), ("unused", 0)])
seqio.MixtureRegistry.add("two", [("river:lines", 3), ("questions", 1)])
seqio.MixtureRegistry.add("uncounted", [("river:lines", lambda task: float(task.num_input_examples("train")))])
"""

NAMES = ("river:lines", "questions", "shaken")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the module `seqio_tasks_of_a_user`, which can be imported, and the files that its tasks read."""
    pytest.importorskip("seqio")
    folder = tmp_path_factory.mktemp("seqio")
    (folder / "seqio_tasks_of_a_user.py").write_text(MODULE)
    for i, start in enumerate((0, 700)):
        texts = (
            json.loads(line)["text"]
            for line in write_corpus(folder / "words.jsonl", seed=i, documents=200).open()
        )
        (folder / f"river-{i}.txt").write_text(
            "".join(f"{start + j}: {text} ß\n" for j, text in enumerate(texts))
        )
    (folder / "validation.txt").write_text("Held out, one.\nHeld out, two.\n")
    records = [
        {"inputs": f"{i} and {i} is?", "targets": f"{2 * i}.", "id": f"q{i % 5}/{i}", "hard": i / 2}
        for i in range(300)
    ]
    records[7] |= {"inputs": "", "targets": ""}
    (folder / "questions.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        yield folder


def path(name: str) -> str:
    return f"seqio://seqio_tasks_of_a_user/{name}"


def task(name: str, **options) -> Source:
    return Source("web", (path(name),), **options)


def read(name: str, group_by: str = "", **options) -> list[Document | Fault]:
    one = task(name, **options)
    return list(read_documents(list_files(one)[0], one, group_by))


def elsewhere(code: str) -> str:
    """What a new process, which imports everything anew, prints last."""
    imports = (
        "from slmjax.text.readers import read_documents",
        "from slmjax.text.records import Source",
        "from slmjax.text.source_files import list_files",
        "from slmjax.text.sources import parse_sources",
    )
    command = "\n".join([*imports, code])
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "text",
    [
        "seqio://",
        "seqio://module",
        "seqio:///name",
        "seqio://a-b/name",
        "seqio://m/name/train/more",
        "seqio://.m/n",
    ],
)
def test_a_path_of_another_form_is_refused_with_the_form(text):
    for value in (text, {"web": {"path": text}}):
        with pytest.raises(
            UserError,
            match=r"data\.sources.*names no task; expected seqio://MODULE/NAME or seqio://MODULE/NAME/SPLIT",
        ):
            parse_sources(value)


def test_without_the_extra_its_command_is_told(monkeypatch):
    _import.cache_clear()
    monkeypatch.setitem(sys.modules, "seqio", None)
    with pytest.raises(UserError, match=r"needs seqio.*pip install -e '\.\[seqio\]'"):
        parse_sources("seqio://module/name")


@pytest.mark.seqio
def test_other_sources_do_not_wait_for_tensorflow(folder):
    code = "import sys; parse_sources('a.txt'); print('tensorflow' in sys.modules)\n{}print('tensorflow' in sys.modules)"
    assert elsewhere(code.format("")) == "False"
    assert elsewhere(code.format(f"parse_sources('{path('two')}')\n")) == "True"


@pytest.mark.seqio
def test_a_tasks_documents_are_the_lines_of_its_files(folder):
    found = read("river:lines")
    # seqio takes 16 lines of each file in turn; no line is there twice.
    expected = [
        line for i in (0, 1) for line in (folder / f"river-{i}.txt").read_text().splitlines()
    ]
    assert sorted(document.text for document in found) == sorted(expected)
    assert [document.line for document in found] == list(range(1, 401))
    # Bytes lose nothing when they are tokens, and "text" is this task's own feature.
    assert [document.text for document in read("decoded")] == [document.text for document in found]
    assert [document.text for document in read("river:lines/validation")] == [
        "Held out, one.",
        "Held out, two.",
    ]


@pytest.mark.seqio
def test_text_is_what_was_tokenized_and_not_what_the_vocabulary_can_write(folder):
    import seqio
    import tensorflow as tf

    class Few(seqio.PassThroughVocabulary):
        """Every letter is token 3, which is written "?"."""

        def _encode_tf(self, s):
            return tf.fill([tf.strings.length(s)], 3)

        def _decode(self, ids):
            return "?" * len(ids)

    texts, few = [b"Ad fontes", b"\xff", b""], seqio.Feature(Few(10), required=False)
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices({"targets": texts}),
        ["train"],
    )
    for name, kept in (("kept", True), ("lost", False)):
        tokenize = lambda data, output_features, kept=kept: seqio.preprocessors.tokenize(
            data, output_features, kept
        )
        seqio.TaskRegistry.add(name, source, {"targets": few}, [tokenize])
    try:
        kept, lost = read("kept"), read("lost")
    finally:
        for name in ("kept", "lost"):
            seqio.TaskRegistry.remove(name)
    assert [getattr(item, "text", None) or item.reason for item in kept] == [
        "Ad fontes",
        "invalid UTF-8",
        "empty document",
    ]
    assert [getattr(item, "text", None) or item.reason for item in lost] == [
        "?????????",
        "?",
        "empty document",
    ]


@pytest.mark.seqio
def test_inputs_and_targets_are_one_text_and_a_feature_may_be_asked_for_alone(folder):
    both, targets = read("questions"), read("questions", field="targets")
    assert [document.text for document in both[:2]] == ["0 and 0 is?\n0.", "1 and 1 is?\n2."]
    assert [document.text for document in targets[:2]] == ["0.", "2."]
    assert [(fault.line, fault.reason) for fault in both if isinstance(fault, Fault)] == [
        (8, "empty document")
    ]
    with pytest.raises(
        UserError,
        match=r"data\.sources\.web\.field: .*no output feature 'target'.*Did you mean 'targets'",
    ):
        read("questions", field="target")


@pytest.mark.seqio
def test_groups_and_scores_are_other_features_of_an_example(folder):
    found = read("questions", "^(.*)/", score="hard")
    assert [(d.group, d.score) for d in found[10:13]] == [("q0", 5.0), ("q1", 5.5), ("q2", 6.0)]
    one = task("questions")
    record = next(iter(read_records(list_files(one)[0], one)))
    assert (
        record == Record(record.fields, 1)
        and json.loads(json.dumps(record.fields)) == record.fields
    )


@pytest.mark.seqio
def test_an_example_without_text_is_a_fault(folder):
    import seqio
    import tensorflow as tf

    ids = seqio.Feature(seqio.PassThroughVocabulary(300), required=False)  # it cannot decode
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices({"targets": [[1, 2]]}),
        ["train"],
    )
    seqio.TaskRegistry.add("ids", source, {"targets": ids}, [])
    try:
        (item,) = read("ids")
    finally:
        seqio.TaskRegistry.remove("ids")
    assert isinstance(item, Fault) and item.reason == "no text"


@pytest.mark.seqio
def test_a_damaged_file_is_a_fault_after_what_could_be_read(folder):
    import seqio
    import tensorflow as tf

    file = folder / "records.tfrecord"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for i in range(3):
            value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"Number %d." % i]))
            writer.write(
                tf.train.Example(
                    features=tf.train.Features(feature={"targets": value})
                ).SerializeToString()
            )
    file.write_bytes(file.read_bytes()[:-3])
    source = seqio.TFExampleDataSource(
        {"train": str(file)}, {"targets": tf.io.FixedLenFeature([], tf.string)}
    )
    feature = seqio.Feature(seqio.ByteVocabulary(), required=False)
    seqio.TaskRegistry.add("cut", source, {"targets": feature}, [seqio.preprocessors.tokenize])
    try:
        found = read("cut")
    finally:
        seqio.TaskRegistry.remove("cut")
    assert [getattr(item, "text", None) or (item.line, item.reason) for item in found] == [
        "Number 0.",
        "Number 1.",
        (3, DAMAGED),
    ]


@pytest.mark.seqio
def test_a_mixture_is_its_tasks_with_the_shares_in_which_seqio_draws_them(folder):
    import seqio
    import tensorflow as tf

    sources = parse_sources(path("nested"))
    assert [source.name for source in sources] == ["questions", "river-lines", "shaken"]
    assert [source.path for source in sources] == [
        (path(f"{name}/train"),) for name in ("questions", "river:lines", "shaken")
    ]
    tf.random.set_seed(1)
    drawn = seqio.get_mixture_or_task("nested").get_dataset(
        None, "train", shuffle=False, copy_pretokenized=True
    )
    texts = [
        example["targets_pretokenized"].decode() for example in drawn.take(4000).as_numpy_iterator()
    ]
    lines = {line for i in (0, 1) for line in (folder / f"river-{i}.txt").read_text().splitlines()}
    counts = np.array([sum(len(text) < 6 for text in texts), sum(text in lines for text in texts)])
    expected = np.array([sources[0].weight, sources[1].weight])
    error = np.sqrt(expected * (1 - expected) / 4000)
    assert (abs(counts / 4000 - expected) < 4 * error).all() and max(error) < 0.01
    assert sum(source.weight for source in sources) == pytest.approx(1)


@pytest.mark.seqio
def test_every_way_to_write_a_mixture_means_the_same_and_parsing_twice_changes_nothing(folder):
    bare, two = parse_sources(path("two")), path("two")
    assert bare == (
        Source("questions", (path("questions/train"),), 0.25),
        Source("river-lines", (path("river:lines/train"),), 0.75),
    )
    named = parse_sources(
        {
            "web": {"path": two, "weight": 0.5, "max_epochs": 2},
            "books": {"path": "b.txt", "weight": 0.5},
        }
    )
    assert [(s.name, s.weight, s.max_epochs) for s in named] == [
        ("web-questions", 0.125, 2),
        ("web-river-lines", 0.375, 2),
        ("books", 0.5, None),
    ]
    assert parse_sources(f"web:0.5={two}") == parse_sources({"web": {"path": two, "weight": 0.5}})
    for value in (bare, named):
        entries = {
            s.name: {"path": s.path, "weight": s.weight, "max_epochs": s.max_epochs} for s in value
        }
        assert parse_sources(value) == parse_sources(entries) == value
        assert parse_sources(ConfigDict(entries)) == tuple(
            sorted(value, key=lambda source: source.name)
        )
    assert [s.name for s in parse_sources(path("river:lines"))] == ["river-lines"]
    assert [s.name for s in parse_sources({"web": path("river:lines")})] == ["web"]
    assert [s.name for s in parse_sources(path("two/validation"))] == [
        "river-lines"
    ]  # the other task has no such split


@pytest.mark.seqio
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("seqio://no_such_module_here/x", "cannot import no_such_module_here.*PYTHONPATH"),
        (path("river:line"), "no task or mixture 'river:line'.*Did you mean 'river:lines'"),
        (
            path("river:lines/validate"),
            r"no split 'validate' \(splits: train, validation\).*Did you mean 'validation'",
        ),
        ({"web": {"path": [path("two"), "a.txt"]}}, "data.sources.web: .*two is a mixture"),
        (
            {"web": {"path": path("two"), "heldout": "a.txt"}},
            "data.sources.web: .*two is a mixture",
        ),
        (path("uncounted"), "uncounted: the rates of its tasks cannot be computed"),
        (f"{path('two')},{path('questions')}", "two sources are named 'questions'"),
    ],
)
def test_a_mistake_is_named(folder, value, message):
    with pytest.raises(UserError, match=message):
        parse_sources(value)


@pytest.mark.seqio
def test_a_file_that_is_not_there_and_a_mixture_as_heldout_are_named(folder):
    for name, message in (
        ("nowhere", "cannot read example 1 of .*nowhere: No file is found"),
        ("two", "expected a task here"),
    ):
        with pytest.raises(UserError, match=message):
            list_files(task(name))


@pytest.mark.seqio
def test_a_version_is_that_of_the_content_wherever_it_is_computed(folder):
    code = (
        f"print([list_files(Source('web', ('{path('')}' + name,)))[0].version for name in {NAMES}])"
    )
    versions = [list_files(task(name))[0].version for name in NAMES]
    assert elsewhere(code) == str(versions) and len(set(versions)) == 3
    for file, changed in (
        ("river-1.txt", [True, False, True]),
        ("questions.jsonl", [False, True, False]),
    ):
        before, times = (folder / file).read_bytes(), (folder / file).stat()
        (folder / file).write_bytes(
            before.replace(b"carries", b"carried").replace(b"299 and 299", b"299 plus 299")
        )
        assert (folder / file).read_bytes() != before
        now = [list_files(task(name))[0].version for name in NAMES]
        assert [a != b for a, b in zip(now, versions)] == changed
        (folder / file).write_bytes(before)
        os.utime(folder / file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert [list_files(task(name))[0].version for name in NAMES] == versions


@pytest.mark.seqio
def test_a_task_with_random_preprocessors_reads_the_same_every_time_and_everywhere(folder):
    code = f"s = Source('web', ('{path('shaken')}',)); print([d.key for d in read_documents(list_files(s)[0], s)])"
    first = read("shaken")
    assert (
        len({d.text.split()[-1] for d in first}) > 350
        and len({d.text.split()[-2] for d in first}) > 350
    )  # they are random
    assert read("shaken") == first
    assert elsewhere(code) == str([d.key for d in first])


@pytest.mark.seqio
@pytest.mark.slow
def test_worker_processes_prepare_what_one_process_does(folder, tmp_path):
    data = SimpleNamespace(
        sources=path("two"),
        tokenizer="",
        vocab_size=300,
        group_by="",
        heldout=0.05,
        max_bad_share=0.01,
    )
    alone, shared = (prepare(data, seed=0, cache=tmp_path / str(n), processes=n) for n in (1, 2))
    assert (
        alone.fingerprint == shared.fingerprint
        and alone.manifest["sources"] == shared.manifest["sources"]
    )
    data.sources = {"web": {"path": path("river:lines"), "heldout": path("river:lines/validation")}}
    assert len(prepare(data, seed=0, cache=tmp_path).heldout["web"]) == 2


@pytest.mark.seqio
def test_a_mixture_is_read_at_its_rates_and_on_from_any_step_in_another_process(folder, tmp_path):
    """What a run that goes on would read; training itself sees prepared text, of whatever source."""
    fields = [
        f"data.sources={path('two')}",
        f"data.cache={tmp_path / 'prepared'}",
        "data.max_bad_share=0.01",
    ]
    config = cli.apply_overrides(configs.load_recipe(f"{RECIPE}:{folder / 'unused.jsonl'}"), fields)
    assert {name: entry.weight for name, entry in config.data.sources.items()} == {
        "questions": 0.25,
        "river-lines": 0.75,
    }
    config = configs.freeze(config)
    prepared = prepared_text(config.data, str(tmp_path / "run"))
    plan = batch_plan(config.data, config.train, prepared, seed=config.seed)
    tokens, hashes = np.zeros(2), []
    for step in range(config.train.steps):
        batch = batch_rows(plan, step, range(plan.batch))
        hashes.append(batch_hash(batch))
        np.add.at(tokens, [source for source, _ in plan.rows(step)], batch["weights"].sum(1))
    taken = plan.mixture.rows_before(plan.total_rows)
    assert list(plan.train) == ["questions", "river-lines"] and taken.tolist() == [120, 360]
    assert tokens / tokens.sum() == pytest.approx([0.25, 0.75], abs=0.01)

    (tmp_path / "config.json").write_text(configs.to_json(config))  # as a run leaves it
    later = elsewhere(f"""
import json
from slmjax.config import freeze, from_dict
from slmjax.data.loader import batch_rows
from slmjax.data.prepare_stage import batch_plan, prepared_text
from tests.data.batch_hashes import batch_hash
config = freeze(from_dict(json.load(open({str(tmp_path / "config.json")!r}))))
prepared = prepared_text(config.data, {str(tmp_path / "run")!r})
plan = batch_plan(config.data, config.train, prepared, seed=config.seed)
print([batch_hash(batch_rows(plan, step, range(plan.batch))) for step in range(13, config.train.steps)])
""")
    assert later == str(hashes[13:])
