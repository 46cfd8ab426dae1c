"""Every kind of file that the library reads, each with the command or reader that meets it when it is damaged.

A `Kind` makes a small sound folder, says which files of it are damaged, and reads the folder as a
user's command does.
"""

import contextlib
import dataclasses
import gzip
import io
import json
import lzma
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import zstandard
from etils import epath

from slmjax import cli, launch
from slmjax import config as configs
from slmjax.curate import curate_stage as curation
from slmjax.data import build as building
from slmjax.data.prepare import Prepared, prepare
from slmjax.errors import UserError
from slmjax.text.files import sealed
from tests.corpus import RECIPE, ROOT, WORDS
from tests.damage import Damage, damaged

SECONDS = 20.0  # of processors that reading one input may take
PATIENCE = 8 * SECONDS  # of waiting, on a machine that has other things to do
BYTES = 1 << 30  # by which it may grow the process
RIGHT, REFUSED, COUNTED, AS_IT_STANDS = "right", "refused", "counted", "as it stands"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    make: writes a sound folder; read: what a command makes of the folder, comparable with ==.
    victims: patterns of the files to damage. sealed: a result is the right one, or it is refused.
    judge: (result, right result, damage, what was printed) -> an outcome, or "" for a wrong result.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    victims: tuple[str, ...]
    judge: Callable[[Any, Any, Damage, str], str] | None = None
    sealed: bool = False
    of_run: bool = False  # a copy of a finished run of the smallest recipe is in `run` already
    inputs: int = 150


class Outcome(NamedTuple):
    """What an input came to: one of the four outcomes and what was printed, or "" and what is wrong with it."""

    outcome: str
    said: str


class Trial:
    """A kind's sound folder and what is read from it; the n-th input damages a copy of it."""

    def __init__(self, name: str, folder: Path, run: Path | None = None):
        """`run` is the work directory of a finished run of the smallest recipe, where the kind is one of its files."""
        self.name, self.kind = name, KINDS[name]
        self._sound, self._copy = folder / "sound", folder / "copy"
        self._copy.mkdir(parents=True)
        if run and self.kind.of_run:
            shutil.copytree(run, self._copy / "run")
        with _quiet():
            self.kind.make(self._copy)  # where it is read, as some files hold paths
        shutil.copytree(self._copy, self._sound)
        self._read()  # the first time in a process takes longer: compiling, imports
        self._refresh()
        self.right, outcome = self._read()
        if outcome.outcome != RIGHT:
            raise ValueError(f"{name}: its sound folder does not read: {outcome.said}")

    def input(self, seed: int) -> tuple[str, Outcome]:
        """(what is damaged and how, what that came to)."""
        draw = random.Random(f"{self.name} {seed}")
        self._refresh()
        pattern = draw.choice(self.kind.victims)
        victims = sorted(path for path in self._copy.glob(pattern) if path.is_file())
        victim = draw.choice(victims)
        damage = damaged(victim.read_bytes(), draw)
        victim.write_bytes(damage.data)
        told = f"{victim.relative_to(self._copy)}: {damage.how}"
        result, outcome = self._read()
        if outcome.outcome != RIGHT:
            return told, outcome
        if self.kind.judge:
            found = self.kind.judge(result, self.right, damage, outcome.said)
        else:
            found = (
                RIGHT
                if result == self.right
                else ""
                if self.kind.sealed and not damage.whole
                else AS_IT_STANDS
            )
        return told, Outcome(
            found,
            outcome.said
            if found
            else f"another result: {str(result)[:300]} != {str(self.right)[:300]}",
        )

    def _refresh(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._sound, self._copy)

    def _read(self) -> tuple[Any, Outcome]:
        """(result, outcome) of the copy; RIGHT where there is a result."""
        results: list[Any] = []
        out, err = io.StringIO(), io.StringIO()
        before = _peak(fresh=True)
        try:
            with _in_time(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = cli.entry(lambda words: results.append(self.kind.read(self._copy)), [])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            trace = "".join(traceback.format_exception(error)[-4:])
            return None, Outcome("", f"{type(error).__name__}: {str(error)[:300]}\n{trace}")
        said = out.getvalue() + err.getvalue()
        grown = _peak() - before
        if grown > BYTES:
            return None, Outcome("", f"{grown >> 20} MiB more memory")
        if status == 0:
            return results[0], Outcome(RIGHT, said)
        sentence = said[said.rfind("slmjax: ") :].rstrip("\n")
        fault = _no_sentence(sentence, status)
        return None, Outcome(
            "" if fault else REFUSED, f"{fault}: {sentence}" if fault else sentence
        )


def _no_sentence(text: str, status: int) -> str:
    """Why an error is not one sentence for a user; "" where it is."""
    if status != 2:
        return f"status {status}"
    if __file__ in text:
        return "an exception of the library"
    if "not enough memory" in text:
        return "no memory"
    if not text.startswith("slmjax: ") or "\n" in text:
        return "not one line"
    if len(text) > 2000:
        return f"{len(text)} characters"
    return "" if text.isprintable() else "it cannot be printed"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class TooLong(BaseException):
    """Reading took more than its time."""


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TooLong(signal.Signals(number).name)

    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, SECONDS),
        signal.SIGALRM: (signal.ITIMER_REAL, PATIENCE),
    }
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _peak(fresh: bool = False) -> int:
    """The most memory in bytes that this process has had, since it was last asked to begin anew."""
    try:
        if fresh:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux: the most ever
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


# Text: what prepare and curate read.


def _sentences(count: int = 40, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(8, 60))) + f" {i}." for i in range(count)]


def _text(ending: str, name: str = "text") -> Callable[[Path], None]:
    """Makes one file of text with an ending."""

    def make(folder: Path) -> None:
        texts = _sentences()
        kind, _, compression = ending[1:].partition(".")
        if kind == "parquet":
            parquet.write_table(
                pa.table({"text": texts, "id": list(range(len(texts)))}),
                folder / f"{name}{ending}",
                row_group_size=15,
            )
            return
        lines = (
            texts
            if kind == "txt"
            else [json.dumps({"text": text, "id": f"a{i}"}) for i, text in enumerate(texts)]
        )
        data = "".join(line + "\n" for line in lines).encode()
        (folder / f"{name}{ending}").write_bytes(_pack(data, compression))

    return make


def _pack(data: bytes, compression: str) -> bytes:
    if compression == "gz":
        return gzip.compress(data)
    if compression == "xz":
        return lzma.compress(data)
    return (
        zstandard.ZstdCompressor(write_checksum=True).compress(data)
        if compression == "zst"
        else data
    )


def _settings(folder: Path, sources: Any = None, **changes: Any) -> SimpleNamespace:
    fields = {
        "sources": sources or {"text": {"path": str(folder / "raw")}},
        "tokenizer": "",
        "vocab_size": 280,
        "group_by": "",
    }
    return SimpleNamespace(**{**fields, "heldout": 0.1, "max_bad_share": 0.9, **changes})


def _content(prepared: Prepared) -> dict[str, Any]:
    """All that a run reads of prepared text."""
    out: dict[str, Any] = {}
    for side in ("train", "heldout"):
        for name, shards in getattr(prepared, side).items():
            columns = [getattr(shards, column).tobytes() for column in ("lengths", "bytes", "keys")]
            out[f"{side}/{name}"] = [
                *columns,
                [ids.tobytes() for ids in shards],
                [shards.name(i) for i in range(len(shards))],
            ]
    return out


def _prepared(folder: Path) -> Any:
    """Prepare the text of a folder with the launcher's stage, and count."""
    words = [
        f"--config={RECIPE}:{folder / 'raw'}",
        "--config.stage=prepare",
        f"--workdir={folder / 'run'}",
    ]
    words += [
        f"--config.data.cache={folder / 'cache'}",
        "--config.data.vocab_size=280",
        "--config.data.max_bad_share=0.9",
    ]
    launch._run(words)
    (manifest,) = (folder / "cache").glob("*/manifest.json")
    (source,) = json.loads(manifest.read_text())["sources"].values()
    keys = [
        key for table in manifest.parent.rglob("*.npy") for key in np.load(table)["key"].tolist()
    ]
    return sorted(keys), sum(source["faults"].values())


def _curated(folder: Path, *more: str) -> Any:
    """Curate the text of a folder with the launcher's stage, and count."""
    words = [
        f"--config={ROOT / 'configs' / 'curate.py'}",
        f"--workdir={folder / 'run'}",
        f"--config.data.sources=text={folder / 'raw'}",
    ]
    launch._run([*words, "--config.curate.processes=1", "--config.curate.ngram=2", *more])
    (source,) = json.loads((folder / "run" / "report.json").read_text())["sources"].values()
    written = [
        zstandard.open(file, "rt", encoding="utf-8").read()
        for file in sorted((folder / "run" / "documents").rglob("*.zst"))
    ]
    return written, sum(source["faults"].values())


def _counted(result: tuple, right: tuple, damage: Damage, said: str) -> str:
    if result == right:
        return RIGHT
    return COUNTED if result[-1] else AS_IT_STANDS


def _checked(result: tuple, right: tuple, damage: Damage, said: str) -> str:
    """Of a file with checksums: nothing else comes out of it without a fault."""
    found = _counted(result, right, damage, said)
    return "" if found == AS_IT_STANDS and not damage.whole else found


def _raw(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """In a folder next to a larger sound file, so that damage to one is not the end of all."""

    def within(folder: Path) -> None:
        (folder / "raw").mkdir()
        make(folder / "raw")
        records = ({"text": text, "id": f"b{i}"} for i, text in enumerate(_sentences(50, seed=1)))
        (folder / "raw" / "more.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )

    return within


KINDS: dict[str, Kind] = {}
for _ending in (
    ".txt",
    ".txt.gz",
    ".txt.xz",
    ".txt.zst",
    ".jsonl",
    ".jsonl.gz",
    ".jsonl.xz",
    ".jsonl.zst",
    ".parquet",
):
    _judge = _checked if _ending.endswith(("gz", "xz", "zst")) else _counted
    KINDS[f"prepare {_ending}"] = Kind(
        _raw(_text(_ending)), _prepared, (f"raw/text{_ending}",), _judge, inputs=100
    )

_CURATED = (".txt.gz", ".jsonl", ".jsonl.zst", ".parquet")


def _one_of_each(folder: Path) -> None:
    for ending in _CURATED:
        _text(ending)(folder)


KINDS["curate"] = Kind(
    _raw(_one_of_each),
    _curated,
    tuple(f"raw/text{ending}" for ending in _CURATED),
    _counted,
    inputs=200,
)


def _read_prompts(folder: Path) -> Any:
    from slmjax import generate

    options = generate.parse_options([f"--prompts={folder / 'lines.txt'}", "--checkpoint=none"])
    return generate.read_prompts(options)


def _read_topics(folder: Path) -> Any:
    from slmjax.synthesize.plan_inputs import read_topics

    return read_topics(str(folder / "lines.txt"))


def _read_passages(folder: Path) -> Any:
    from slmjax.synthesize.plan_inputs import read_seeds

    return read_seeds(str(folder / "raw"))


def _lines(folder: Path) -> None:
    (folder / "lines.txt").write_text(
        "# of water\n" + "\n".join(f"water > {text[:30]}" for text in _sentences(20)) + "\n"
    )


def _read_evals(folder: Path) -> Any:
    from slmjax.curate.decontaminate import build_index

    index = build_index({"set": {"path": str(folder / "raw"), "fields": ["text"]}})
    return index.undecided(), [hit.item for hit in index.find_all(" ".join(_sentences(3)))]


KINDS["prompts"] = Kind(_lines, _read_prompts, ("lines.txt",), inputs=80)
KINDS["topics"] = Kind(_lines, _read_topics, ("lines.txt",), inputs=80)
KINDS["passages"] = Kind(_raw(_text(".jsonl")), _read_passages, ("raw/text.jsonl",), inputs=80)
KINDS["evaluation set"] = Kind(_raw(_text(".jsonl")), _read_evals, ("raw/text.jsonl",), inputs=80)


# Prepared text.


def _whole(folder: Path) -> None:
    _raw(_text(".jsonl"))(folder)
    prepare(_settings(folder), seed=0, cache=folder / "cache", processes=1)


def _again(folder: Path) -> Any:
    return _content(prepare(_settings(folder), seed=0, cache=folder / "cache", processes=1))


def _as_source(folder: Path) -> Any:
    (prepared,) = (path.parent for path in (folder / "cache").glob("*/manifest.json"))
    sources = {"text": {"path": str(prepared / "text")}}
    return _content(
        prepare(_settings(folder, sources), seed=0, cache=folder / "other", processes=1)
    )


def _unfinished(folder: Path) -> None:
    """Preparation that was stopped before its last step."""
    _raw(_text(".jsonl"))(folder)
    finish = building.finish_folder

    def stop(*arguments: Any) -> None:
        raise InterruptedError

    building.finish_folder = stop
    try:
        with contextlib.suppress(InterruptedError):
            prepare(_settings(folder), seed=0, cache=folder / "cache", processes=1)
    finally:
        building.finish_folder = finish


_FILES = (
    "cache/*/manifest.json",
    "cache/*/text/*.npy",
    "cache/*/text/*.arrayrecord",
    "cache/*/tokenizer.json",
)
KINDS["prepared text"] = Kind(
    _whole, _again, (*_FILES, "cache/.identity/*"), sealed=True, inputs=250
)
KINDS["prepared text as a source"] = Kind(_whole, _as_source, _FILES, sealed=True, inputs=200)
KINDS["unfinished preparation"] = Kind(
    _unfinished, _again, ("cache/*/work~/*", "cache/*/text/*"), sealed=True, inputs=200
)


def _given_tokenizer(folder: Path) -> Any:
    from slmjax.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer.json")
    return _content(
        prepare(
            _settings(folder, tokenizer=str(folder / "tokenizer.json")),
            seed=0,
            cache=folder / "cache",
            processes=1,
        )
    ), tokenizer.special


def _tokenizer(folder: Path) -> None:
    from slmjax.text.tokenizer import train_bpe

    _raw(_text(".jsonl"))(folder)
    train_bpe(_sentences(), 290).save(folder / "tokenizer.json")


KINDS["tokenizer.json"] = Kind(_tokenizer, _given_tokenizer, ("tokenizer.json",), inputs=250)


# Curation and synthesis.


def _index(folder: Path) -> None:
    from slmjax.curate.minhash import Scheme
    from slmjax.curate.near_duplicates import deduplicate
    from slmjax.text.records import Source

    for name in "ab":
        texts = _sentences(30)
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts)
        )
        deduplicate(
            [Source(name, (str(folder / f"{name}.jsonl"),))],
            folder / "index",
            scheme=Scheme(2, 10, 3),
        )


def _read_index(folder: Path) -> Any:
    from slmjax.curate.index import Index
    from slmjax.curate.minhash import Scheme
    from slmjax.curate.near_duplicates import decisions

    index = Index(folder / "index", Scheme(2, 10, 3))
    clusters = index.clusters(0.75)
    return clusters.keeper.tolist(), list(decisions(index, clusters))


KINDS["near-duplicate index"] = Kind(
    _index, _read_index, ("index/*", "index/index.json"), sealed=True, inputs=250
)


def _synthesized(folder: Path) -> Any:
    words = [
        f"--config={ROOT / 'configs' / 'textbook.py'}",
        f"--workdir={folder / 'run'}",
        "--config.synthesize.documents=12",
    ]
    launch._run([*words, f"--config.synthesize.copies={folder / 'copies'}"])
    return [
        json.loads(line)
        for file in sorted((folder / "run" / "documents").iterdir())
        for line in file.read_text().splitlines()
    ]


def _synthesized_anew(folder: Path) -> Any:
    shutil.rmtree(folder / "run")
    return _synthesized(folder)


KINDS["journal"] = Kind(
    lambda folder: _synthesized(folder) and None,
    _synthesized,
    ("run/journal/*.sqlite",),
    sealed=True,
    inputs=250,
)
KINDS["journal's copies"] = Kind(
    lambda folder: _synthesized(folder) and None,
    _synthesized_anew,
    ("copies/*",),
    sealed=True,
    inputs=80,
)


def _curation(folder: Path) -> None:
    """Curation that was stopped before its last step, and an evaluation set that it looked for."""
    _raw(_text(".jsonl"))(folder)
    item = {
        "text": "Which of these best explains why the pond behind the school freezes later than the puddles in the yard do?"
    }
    (folder / "evals.jsonl").write_text(json.dumps(item) + "\n")
    index, curation.Index = curation.Index, None
    try:
        with contextlib.suppress(TypeError):
            _curated_without(folder)
    finally:
        curation.Index = index


def _curated_without(folder: Path) -> Any:
    return _curated(
        folder,
        f"--config.curate.evals={{'items': {{'path': '{folder / 'evals.jsonl'}', 'fields': ('text',)}}}}",
    )


KINDS["unfinished curation"] = Kind(
    _curation, _curated_without, ("run/work/*", "run/work/*/*"), sealed=True, inputs=150
)


def _textbook(folder: Path) -> Any:
    from slmjax.textbook import passages as textbook

    files = textbook.write_corpus(folder / "textbook", seed=0, train_per_kind=4, heldout_per_kind=2)
    return [Path(path).read_bytes() for pair in files.values() for path in pair.values()]


KINDS["embedded textbook"] = Kind(
    lambda folder: _textbook(folder) and None, _textbook, ("textbook/*",), sealed=True, inputs=60
)


def _study(folder: Path) -> Any:
    from slmjax import config as configs
    from slmjax.studies.study_runs import StudyRuns

    return StudyRuns(epath.Path(folder), configs.Config(), identity="text", vocab_size=64)


def _write_results(folder: Path) -> None:
    runs = {}
    for name in ("attention-0", "gla-0"):
        result = {"diverged": "", "metrics": {"eval/bits_per_byte": 1.25}, "seconds": 8.5}
        runs[name] = {"settings": {"seed": 0, "train.lr": 0.01}, "result": result}
    content = {"format": 1, "identity": "text", "device": "cpu", "command": "", "runs": runs}
    (folder / "results.json").write_text(json.dumps(sealed(content), indent=1))


def _read_results(folder: Path) -> Any:
    return _study(folder).results


KINDS["study's results"] = Kind(_write_results, _read_results, ("results.json",), inputs=80)


# A run's work directory, of which the trial has put a copy in place.


def _reported(folder: Path) -> Any:
    """What everything that reads the records of a run makes of them."""
    from slmjax import compare
    from slmjax.record import goodput, metrics, report
    from slmjax.train import run

    launch.check_stage(str(folder / "run"), "train")
    report.write_report(folder / "run")
    compare._run([str(folder / "run"), str(folder / "other"), f"--out={folder / 'compare.html'}"])
    records = metrics.read(folder / "run")
    goodput.Goodput(records, from_step=20).share()
    run.has_last_records(folder / "run", records, 30, None)
    with metrics.MetricsWriter(folder / "run", resume_step=20) as writer:
        writer.write(21, {"train/loss": 1.0})
    return [json.dumps(record) for record in records.all], records.torn


def _some_records(result: tuple, right: tuple, damage: Damage, said: str) -> str:
    """Lines may be lost or moved, but none is changed."""
    if result == right:
        return RIGHT
    if not {*result[0]} <= {*right[0]}:
        return ""
    return COUNTED if result[1] else AS_IT_STANDS


def _compared(folder: Path) -> Any:
    from slmjax import compare

    comparison = compare.compare([str(folder / "run"), str(folder / "other")])
    compare.print_comparison(comparison)
    return compare.verdicts(comparison), [
        found.value for found in comparison.group_differences["total"]
    ]


def _loaded(folder: Path) -> Any:
    """The newest model, as everything that only reads one has it, and where training would go on."""
    from slmjax.checkpoint import Checkpoints, digest
    from slmjax.infer.load import load_model
    from slmjax.train import inherit, resume

    checkpoints = Checkpoints(folder / "run")
    start = resume.decide(
        checkpoints, configs.freeze(configs.load_recipe(str(folder / "other" / "config.json")))
    )
    inherit.lineage(checkpoints, start, "")
    with contextlib.suppress(UserError):
        inherit.parents(str(folder / "run"))
    model = load_model(str(folder / "run"))
    return model.step, digest(model.params)


def _sound_or_before(result: tuple, right: tuple, damage: Damage, said: str) -> str:
    if result == right:
        return RIGHT
    return COUNTED if result[0] < right[0] and "it is damaged and was passed over" in said else ""


def _recipe(folder: Path) -> Any:
    """A run's config.json as the recipe of another: as far as the model's parameters, but for training."""
    import jax

    from slmjax.data.prepare_stage import batch_plan, prepared_text
    from slmjax.models import lm
    from slmjax.models.resolve import resolve
    from slmjax.parallel.mesh import make_mesh
    from slmjax.train import run

    config = cli.make_config(
        {"config": str(folder / "run" / "config.json")}, [f"data.cache={folder / 'cache'}"]
    )
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    run.check_batch(config, mesh)
    prepared = prepared_text(config.data, str(folder / "new"))
    batch_plan(config.data, config.train, prepared, seed=config.seed)
    arch, _ = resolve(config.model, config.precision, mesh, prepared.tokenizer.vocab_size)
    jax.eval_shape(lambda: lm.init(arch, jax.random.key(0)))
    return configs.to_json(config)


def _two(folder: Path) -> None:
    shutil.copytree(folder / "run", folder / "other", ignore=shutil.ignore_patterns("checkpoints"))


def _checkpoint(folder: Path) -> None:
    _two(folder)
    for step in sorted((folder / "run" / "checkpoints").iterdir(), key=lambda path: path.name)[:-2]:
        shutil.rmtree(step)


_META = "run/checkpoints/30/meta/metadata"
_STEP = (
    "run/checkpoints/30/*",
    "run/checkpoints/30/*/*",
    "run/checkpoints/30/*/*/*",
    "run/checkpoints/30/*/*/d/*",
)
KINDS["checkpoint's metadata"] = Kind(
    _checkpoint, _loaded, (_META,), _sound_or_before, of_run=True, inputs=100
)
KINDS["checkpoint's storage"] = Kind(
    _checkpoint, _loaded, _STEP, _sound_or_before, of_run=True, inputs=100
)
KINDS["run's tokenizer.json"] = Kind(
    _checkpoint, _loaded, ("run/tokenizer.json",), sealed=True, of_run=True, inputs=40
)
KINDS["metrics.jsonl"] = Kind(
    _two, _reported, ("run/metrics.jsonl",), _some_records, of_run=True, inputs=80
)
KINDS["heldout.npz"] = Kind(
    _two, _compared, ("run/heldout.npz",), sealed=True, of_run=True, inputs=100
)
KINDS["config.json of a run"] = Kind(
    _two, _reported, ("run/config.json",), _some_records, of_run=True, inputs=30
)
KINDS["config.json as a recipe"] = Kind(_two, _recipe, ("run/config.json",), of_run=True, inputs=80)
