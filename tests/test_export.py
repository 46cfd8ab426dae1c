"""An export holds the model of a run in hashed pieces, and is read as the run is, or refused in a sentence."""

import errno
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from slmjax import export, generate, launch
from slmjax.checkpoint import Checkpoints, RestoredItems, checkpoint_hash, digest, named
from slmjax.errors import UserError
from slmjax.exported.read_export import Export, checkpoints_of, is_export
from slmjax.exported.write_export import as_bfloat16, write_export
from slmjax.infer.load import load_model
from slmjax.text.files import sealed
from slmjax.text.pieces import PieceReader, PieceWriter, parse_bytes
from slmjax.train import inherit as heirs
from slmjax.train.resume import Start
from slmjax.train.state import saved
from tests import runs
from tests.saved import make
from tests.train.small import Setup, small_config, whole

COUNTED = "+tests.contracts.own:Counted bins=3"
HYBRID = f"('gdn{COUNTED}','attention{COUNTED}')"


def exported(run, out, *words):
    """Export a run; returns the folder."""
    assert export.main([f"--checkpoint={run}", f"--out={out}", *map(str, words)]) == 0
    return out


def refused(capsys, *words):
    """The one line that the export prints for these words."""
    capsys.readouterr()
    assert export.main(list(map(str, words))) == 2
    out, err = capsys.readouterr()
    assert err.startswith("slmjax: ") and err.count("\n") == 1 and "Traceback" not in out + err
    return err


def manifest_of(folder):
    return json.loads((folder / "params.json").read_text())


def bits(tree):
    return {name: np.asarray(leaf).tobytes() for name, leaf in named(tree).items()}


# Reading back


def test_an_export_as_stored_is_the_run_bit_for_bit(undisturbed, tmp_path, capsys):
    folder = exported(undisturbed, tmp_path / "out", "--pieces=10kB")
    run, shared = load_model(str(undisturbed)), load_model(str(folder))
    assert bits(shared.params) == bits(run.params) and digest(shared.params) == digest(run.params)
    assert (shared.step, shared.config, shared.arch) == (run.step, run.config, run.arch)
    assert shared.tokenizer.sha256 == run.tokenizer.sha256
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (undisturbed / "config.json").read_text()
    )
    assert checkpoint_hash(Checkpoints(undisturbed).meta(30)) in capsys.readouterr().out


def test_bfloat16_halves_the_bytes_and_is_read_as_float32_of_the_rounded_values(
    undisturbed, tmp_path
):
    folder = exported(undisturbed, tmp_path / "out", "--dtype=bfloat16")
    run, shared = load_model(str(undisturbed)), load_model(str(folder))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), run.params)
    assert bits(shared.params) == bits(rounded) != bits(run.params)
    size = sum(path.stat().st_size for path in folder.glob("params-*.bin"))
    assert size == sum(leaf.nbytes for leaf in jax.tree.leaves(run.params)) // 2


def test_generate_reads_an_export_as_the_run_itself(undisturbed, tmp_path, capsys):
    texts = []
    for folder in (undisturbed, exported(undisturbed, tmp_path / "out")):
        capsys.readouterr()
        assert generate.main([f"--checkpoint={folder}", "--prompt=a", "--max_tokens=9"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert generate.main([f"--checkpoint={tmp_path / 'out'}", "--prompt=a", "--step=25"]) == 2
    assert "has no checkpoint of step 25; there are 30." in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["dense", "float8"])
def test_a_run_of_an_old_version_is_exported_and_generates_the_same_text(
    kind, tmp_path, monkeypatch, capsys
):
    with zipfile.ZipFile(make.FOLDER / f"{kind}.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    exported("run", "out")
    capsys.readouterr()
    assert generate.main(["--checkpoint=out", *make.GENERATE]) == 0
    expected = json.loads((make.FOLDER / "expected.json").read_text())
    assert capsys.readouterr().out == expected[kind]["generated"]


# Starting a run


@pytest.mark.parametrize("kind", ["dense", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_a_child_of_an_export_trains_as_a_child_of_the_run(kind, corpus, undisturbed, tmp_path):
    run, out = undisturbed, tmp_path / "out"
    fields = {"train__steps": 2, "train__warmup": 1}
    if kind == "hybrid":
        run, fields["model__pattern"] = tmp_path / "run", HYBRID
        assert runs.train(corpus, run, **fields) == 0
    exported(run, out, "--pieces=3000")
    children = {}
    for parent in (run, out):
        children[parent] = child = tmp_path / f"child of {parent.name}"
        assert runs.train(corpus, child, f"--init_from={parent}", seed=5, **fields) == 0
    assert runs.losses(children[run]) == runs.losses(children[out])
    (first,) = runs.events(children[run], "lineage")[-1]["parents"]
    (second,) = runs.events(children[out], "lineage")[-1]["parents"]
    assert second == {**first, "workdir": str(out)}
    # Each of the two is known as the parent of either child, also in a folder of another name.
    moved = shutil.copytree(out, tmp_path / "moved")
    for child in map(Checkpoints, children.values()):
        for parent in (run, out, moved):
            assert len(heirs.lineage(child, Start("resume", 2), str(parent))) == 1
    (moved / "params.json").write_text("{")
    with pytest.raises(UserError, match="already holds a run that did not start from it"):
        heirs.lineage(child, Start("resume", 2), str(moved))


@pytest.mark.slow
def test_the_ancestors_of_a_run_are_those_of_its_export_too(corpus, undisturbed, tmp_path):
    child, grandchild = tmp_path / "child", tmp_path / "grandchild"
    out = exported(undisturbed, tmp_path / "out", "--dtype=bfloat16")
    assert runs.train(corpus, child, f"--init_from={out}", train__steps=5) == 0
    second = exported(child, tmp_path / "second")
    assert next(iter(manifest_of(second)["meta"])) == "parents"
    assert runs.train(corpus, grandchild, f"--init_from={second}", train__steps=5) == 0
    parents = runs.events(grandchild, "lineage")[-1]["parents"]
    assert [one["workdir"] for one in parents] == [str(second), str(out)]


@pytest.mark.slow
def test_what_a_child_takes_over_is_the_same_on_another_mesh_with_other_products(tmp_path):
    """From the run on one device and from its export on eight, with counts and float8's scales."""
    config = small_config()
    config.model.update({"pattern": (f"attention{COUNTED}",), "width": 32, "ff_width": 64})
    config.precision.products = "float8"
    parent = Setup(config)

    def moved(leaf):
        return leaf + np.arange(1, leaf.size + 1, dtype=leaf.dtype).reshape(leaf.shape)

    items = {name: jax.tree.map(moved, tree) for name, tree in saved(parent.state).items()}
    meta = {"tokenizer": "hash", "config": {}, "fingerprint": "", "parents": []}
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(7, items, meta)
    checkpoints.close()
    out = epath.Path(tmp_path / "out")
    out.mkdir()
    restored = export.read_run(str(tmp_path / "run"), None)
    assert restored.items.keys() == {"params", "buffers"}
    write_export(out, restored, None, "float32", 2**12)
    for products in ("float8", "compute"):
        config.precision.products = products
        one = Setup(config)
        eight = Setup(config, mesh={"data": 2, "fsdp": 2, "tensor": 2}, devices=8)
        states = {}
        for child, folder in ((one, "run"), (eight, "out")):
            shapes, declared = child.program.shapes, child.program.declared[1]
            where = str(tmp_path / folder)
            states[folder], _, faults = heirs.inherit(where, child.state, shapes, declared, "hash")
            assert faults == []
        for part in ("params", "buffers"):
            mine, theirs = (whole(getattr(states[name], part)) for name in ("out", "run"))
            assert bits(mine) == bits(theirs)
        assert bits(states["out"].params) == bits(whole(items["params"]))
        assert jax.tree.map(lambda leaf: leaf.sharding, states["out"]) == eight.where
        leaves = jax.tree.leaves(states["out"].params)
        assert any(leaf.addressable_shards[0].data.shape != leaf.shape for leaf in leaves)


@pytest.mark.slow
def test_a_model_without_a_tokenizer_is_exported_and_inherited(tmp_path, capsys):
    fields = {
        "task": "recall puzzle=recall:16:2 vocab=16 examples=128 tested=100",
        "model.width": 16,
        "model.layers": 1,
        "model.pattern": "attention+none",
        "data.seq_len": 16,
        "train.steps": 2,
        "train.warmup": 1,
        "train.batch": 16,
        "eval.every": 0,
        "log.every": 1,
    }
    words = [f"--config={runs.RECIPE}", *(f"--config.{name}={fields[name]}" for name in fields)]
    assert launch.main([*words, f"--workdir={tmp_path / 'run'}"]) == 0
    out = exported(tmp_path / "run", tmp_path / "out", "--dtype=bfloat16")
    assert not (out / "tokenizer.json").exists()
    model = load_model(str(out), text=False)
    assert model.tokenizer is None and model.params["embedding"].dtype == jnp.float32
    assert launch.main([*words, f"--workdir={tmp_path / 'child'}", f"--init_from={out}"]) == 0
    assert generate.main([f"--checkpoint={out}", "--prompt=a"]) == 2
    assert "has no tokenizer, so the model reads and writes no text" in capsys.readouterr().err


def test_a_run_cannot_go_on_in_an_export(corpus, undisturbed, tmp_path, capsys):
    out = exported(undisturbed, tmp_path / "out")
    before = sorted(path.name for path in out.iterdir())
    assert runs.train(corpus, out, train__steps=40) == 2
    err = capsys.readouterr().err
    assert f"--workdir={out} is an export, which has no optimizer's state" in err
    assert err.count("\n") == 1 and sorted(path.name for path in out.iterdir()) == before


# Pieces


def small_export(folder, limit=1000, dtype="bfloat16", step=3):
    """Write a small export of every kind of array and return (folder, items)."""
    rng = np.random.default_rng(0)
    params = {
        "embedding": jnp.asarray(rng.standard_normal((64, 16)), jnp.float32),
        "stack": {"0": {"scale": jnp.float32(1.5), "half": jnp.ones(7, jnp.float16)}},
        "empty": jnp.zeros((0, 4), jnp.float32),
    }
    buffers = {"stack": {"counts": jnp.arange(300, dtype=jnp.int32), "mean": jnp.ones(3) / 3}}
    items = {"params": params, "buffers": buffers}
    meta = {"config": {"train": {}}, "tokenizer": "", "fingerprint": "f", "parents": []}
    meta = sealed({**meta, "format": 1, "step": step, "digests": {"params": "", "buffers": ""}})
    folder.mkdir(exist_ok=True)
    write_export(epath.Path(folder), RestoredItems(step, meta, items), None, dtype, limit)
    return folder, items


def read(folder, items):
    """All arrays of an export of `small_export`, in the types of the run."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), items)
    found = checkpoints_of(folder)
    restored, faults = found.newest(found.steps(), lambda step, meta: found.restore(step, shapes))
    assert (restored is None) == bool(faults)
    return restored.items if restored else faults[0]


def test_pieces_have_the_size_asked_for_and_arrays_span_them(tmp_path):
    for limit in (333, 1000, 4096, 10**6):
        folder, items = small_export(tmp_path / str(limit), limit)
        manifest = manifest_of(folder)
        total = 64 * 16 * 2 + 2 + 7 * 2 + 300 * 4 + 3 * 4
        sizes = [(folder / piece["file"]).stat().st_size for piece in manifest["pieces"]]
        assert sum(sizes) == total and len(sizes) == -(-total // limit)
        assert sizes[:-1] == [limit] * (len(sizes) - 1) and 0 < sizes[-1] <= limit
        names = {path.name for path in folder.glob("params-*.bin")}
        assert names == {f"params-{number:05d}.bin" for number in range(len(sizes))}
        for piece in manifest["pieces"]:
            content = (folder / piece["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == piece["sha256"]
        stored = {array["name"]: array["dtype"] for array in manifest["arrays"]}
        assert stored == {
            "params/embedding": "bfloat16",
            "params/empty": "bfloat16",
            "params/stack/0/half": "float16",
            "params/stack/0/scale": "bfloat16",
            "buffers/stack/counts": "int32",
            "buffers/stack/mean": "float32",
        }
        again = read(folder, items)
        assert bits(again["buffers"]) == bits(items["buffers"])
        rounded = np.asarray(items["params"]["embedding"]).astype(jnp.bfloat16)
        assert np.array_equal(again["params"]["embedding"], rounded.astype(np.float32))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(again["params"])} == {
            "float32",
            "float16",
        }


def test_the_bytes_are_little_endian_in_the_order_of_the_manifest(tmp_path):
    folder, _ = small_export(tmp_path / "out", dtype="float32", limit=700)
    manifest = manifest_of(folder)
    stream = b"".join((folder / piece["file"]).read_bytes() for piece in manifest["pieces"])
    (counts,) = (array for array in manifest["arrays"] if array["name"].endswith("counts"))
    found = np.frombuffer(stream, "<i4", 300, counts["offset"])
    assert found.tolist() == list(range(300))


@given(
    contents=st.lists(st.binary(max_size=40), max_size=6),
    limit=st.integers(1, 25),
)
def test_a_stream_is_read_back_in_any_parts(tmp_path_factory, contents, limit):
    folder = epath.Path(tmp_path_factory.mktemp("pieces"))
    writer = PieceWriter(folder, limit)
    for content in contents:
        writer.write(content)
    reader, stream = PieceReader(folder, writer.close()), b"".join(contents)
    offset = 0
    for content in contents:
        assert reader.read(offset, len(content)).tobytes() == content
        offset += len(content)
    assert reader.read(0, len(stream)).tobytes() == stream


def test_memory_holds_the_result_and_one_array_and_piece_next_to_it(tmp_path):
    size, count, limit = 2**20, 8, 300_000
    items = {"params": {str(number): jnp.ones(size // 4) for number in range(count)}}
    run = RestoredItems(1, sealed({"step": 1, "format": 1, "config": {}}), items)
    write_export(epath.Path(tmp_path), run, None, "float32", limit)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items
    )
    Export(tmp_path).restore(1, shapes)  # compiles, imports
    tracemalloc.start()
    found = Export(tmp_path).restore(1, shapes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bits(found.items) == bits(items)
    # The array as read and in the type asked for, and a piece; Python's own objects are small.
    assert peak < count * size + 2 * size + limit + 200_000


def test_each_piece_is_read_once_and_only_where_it_is_needed(tmp_path, monkeypatch):
    folder, items = small_export(tmp_path / "out", limit=100)
    seen, checked = [], PieceReader._checked
    monkeypatch.setattr(
        PieceReader, "_checked", lambda self, number: seen.append(number) or checked(self, number)
    )
    read(folder, items)
    pieces = len(manifest_of(folder)["pieces"])
    assert seen == list(range(pieces))
    seen.clear()
    read(folder, {"params": items["params"]})
    assert sorted(set(seen)) == seen and len(seen) < pieces


# Rounding


def test_rounding_goes_to_the_nearest_and_ties_to_even():
    """Against the bits: bfloat16 is the upper half of float32."""
    random_bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = (np.arange(1000, dtype=np.uint32) << 16) | 0x3F80_8000
    values = np.concatenate([random_bits, ties]).view(np.float32)
    values = values[np.abs(values) < 3e38]  # not a number is left out, too
    found = as_bfloat16(values, "x").view(np.uint16)
    whole_bits = values.view(np.uint32).astype(np.uint64)
    expected = (whole_bits + 0x7FFF + ((whole_bits >> 16) & 1)) >> 16
    assert np.array_equal(found, expected)


def test_a_value_beyond_bfloat16_is_refused_by_the_name_of_its_array(tmp_path, capsys):
    largest = np.float32(3.3895314e38)  # of bfloat16
    edge = np.array([largest, -largest, np.inf, np.nan], np.float32)
    assert (
        np.isfinite(as_bfloat16(edge, "x").astype(np.float32)).tolist()
        == [True, True] + [False] * 2
    )
    checkpoints = Checkpoints(tmp_path / "run")
    params = {"embedding": jnp.ones((40, 4)), "head": jnp.full(3, 3.4e38)}
    meta = {"tokenizer": "", "config": {}, "fingerprint": "", "parents": []}
    checkpoints.save(1, {"params": params}, meta)
    checkpoints.close()
    words = [f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'a' / 'out'}", "--pieces=64"]
    err = refused(capsys, *words, "--dtype=bfloat16")
    assert "the array 'params/head' holds 3.4e+38, which bfloat16 cannot hold" in err
    assert not (tmp_path / "a").exists()
    assert export.main([*words, "--dtype=float32"]) == 0


# Damage


def damage(kind, folder, piece):
    path = folder / piece
    content = path.read_bytes()
    other = folder / "params-00001.bin"
    if kind == "missing":
        path.unlink()
    elif kind == "short":
        path.write_bytes(content[:-1])
    elif kind == "long":
        path.write_bytes(content + b"\0")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        path.write_bytes(content[:50] + bytes([content[50] ^ 4]) + content[51:])
    elif kind == "swapped":
        path.write_bytes(other.read_bytes())
    else:
        path.unlink()
        path.mkdir()


SENTENCES = {
    "missing": "is missing",
    "short": "has 999 bytes; it was written with 1,000",
    "long": "has 1,001 bytes; it was written with 1,000",
    "empty": "has 0 bytes",
    "flipped": "is not what was written",
    "swapped": "holds the bytes of params-00001.bin",
    "folder": "bytes; it was written with 1,000",
}


@pytest.mark.parametrize("kind", SENTENCES)
@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_piece_is_refused_by_name(kind, number, tmp_path):
    folder, items = small_export(tmp_path / "out")
    piece = f"params-{number:05d}.bin"
    damage(kind, folder, piece)
    fault = read(folder, items)
    assert fault.startswith(f"step 3: the piece '{folder / piece}' ") and SENTENCES[kind] in fault


def test_commands_say_a_damaged_piece_in_one_sentence(corpus, undisturbed, tmp_path, capsys):
    out = exported(undisturbed, tmp_path / "out", "--pieces=10kB")
    damage("flipped", out, "params-00001.bin")
    capsys.readouterr()
    assert generate.main([f"--checkpoint={out}", "--prompt=a"]) == 2
    assert runs.train(corpus, tmp_path / "child", f"--init_from={out}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and not (tmp_path / "child").exists()
    for line in lines:
        assert f"the piece '{out / 'params-00001.bin'}' is not what was written" in line


def test_random_damage_is_refused_or_changes_nothing(tmp_path):
    """Fifty random bytes, cuts and insertions, in pieces and in the manifest."""
    folder, items = small_export(tmp_path / "out")
    right = bits(read(folder, items))
    rng, names = random.Random(0), sorted(path.name for path in folder.iterdir())
    refusals = 0
    for round in range(50):
        name = names[round % len(names)]
        if name == "config.json":  # is not read
            continue
        path = folder / name
        content = path.read_bytes()
        at = rng.randrange(len(content))
        ways = {
            "byte": content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
            "cut": content[:at],
            "more": content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:],
            "bit": content[:at]
            + bytes([content[at] ^ (1 << rng.randrange(8))])
            + content[at + 1 :],
        }
        changed = rng.choice(list(ways.values()))
        path.write_bytes(changed)
        try:
            found = read(folder, items)
        except UserError as error:
            found = str(error)
        if isinstance(found, str):
            assert name in found and "\n" not in found
            refusals += 1
        else:
            # White space in JSON, or the same byte drawn again.
            assert bits(found) == right and (name == "params.json" or changed == content)
        path.write_bytes(content)
    assert refusals > 30 and bits(read(folder, items)) == right


def change_arrays(key, value):
    def change(manifest):
        manifest["arrays"][1][key] = value

    return change


def change_pieces(key, value):
    def change(manifest):
        manifest["pieces"][1][key] = value

    return change


@pytest.mark.parametrize(
    "change, sentence",
    [
        (change_pieces("file", "../../secret"), "names '../../secret' as piece 1"),
        (change_pieces("file", "params-00000.bin"), "names 'params-00000.bin' as piece 1"),
        (change_pieces("bytes", 2), "bytes in pieces and"),
        (change_pieces("bytes", -5), "says nothing of the content"),
        (change_pieces("sha256", None), "says nothing of the content"),
        (change_arrays("dtype", "object"), "lacks a field"),
        (change_arrays("saved_as", "str"), "lacks a field"),
        (change_arrays("shape", [-1, 4]), "describes no array"),
        (change_arrays("shape", [10**12, 4]), "contradicts itself on the bytes"),
        (change_arrays("offset", 0), "contradicts itself on the bytes"),
        (change_arrays("name", "params/embedding/x"), "names an array twice"),
        (change_arrays("name", "params/embedding"), "names an array twice"),
        (change_arrays("name", "params"), "describes no array as 'params'"),
        (lambda manifest: manifest.update(format=2), "has the format 2"),
        (lambda manifest: manifest.update(step="3"), "does not say which checkpoint"),
        (lambda manifest: manifest.update(arrays=7), "lacks a field"),
        (lambda manifest: manifest.pop("pieces"), "lacks a field"),
        (lambda manifest: manifest.pop("meta"), "lacks a field"),
    ],
)
def test_a_manifest_that_somebody_made_is_refused_although_its_seal_is_right(
    change, sentence, tmp_path
):
    folder, items = small_export(tmp_path / "out")
    manifest = manifest_of(folder)
    del manifest["seal"]
    change(manifest)
    (folder / "params.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(UserError, match=r"params\.json' ") as refusal:
        read(folder, items)
    assert sentence in str(refusal.value)


def test_a_meta_item_of_another_step_is_damage(tmp_path):
    folder, items = small_export(tmp_path / "out")
    manifest = manifest_of(folder)
    del manifest["seal"]
    manifest["step"] = 4
    (folder / "params.json").write_text(json.dumps(sealed(manifest)))
    assert read(folder, items) == "step 4: its meta item is that of step 3"
    assert Export(folder).read_meta(9)[1] == f"the export '{folder}' is of step 4"


def test_an_array_of_another_shape_or_name_is_refused_by_name(tmp_path):
    folder, items = small_export(tmp_path / "out")
    items["params"]["embedding"] = jnp.zeros((64, 8))
    assert "its array 'params/embedding' is [64, 16]; expected [64, 8]" in read(folder, items)
    items["params"] = {"head": jnp.zeros(2)}
    assert "its array 'params/head' is missing; expected [2]" in read(folder, items)


def test_a_folder_without_its_manifest_is_unfinished_and_refused(
    corpus, undisturbed, tmp_path, capsys
):
    out = exported(undisturbed, tmp_path / "out", "--pieces=10kB")
    (out / "params.json").unlink()
    (out / "params-00000.bin").unlink()
    capsys.readouterr()
    assert generate.main([f"--checkpoint={out}", "--prompt=a"]) == 2
    assert runs.train(corpus, tmp_path / "child", f"--init_from={out}") == 2
    assert runs.train(corpus, out) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(f"'{out}' is an unfinished export" in line for line in lines[:2])
    assert "is an export" in lines[2] and len(lines) == 3
    # The same command goes on, and another one starts anew; more pieces than it needs go.
    exported(undisturbed, out, "--pieces=1MB")
    assert [path.name for path in out.glob("params-*.bin")] == ["params-00000.bin"]
    assert load_model(str(out)).step == 30


# The command


def contents(folder):
    """Return {path: bytes} of a folder's files."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_export_is_kept_and_repaired_and_another_is_refused(undisturbed, tmp_path, capsys):
    out = exported(undisturbed, tmp_path / "out", "--pieces=10kB")
    inodes = {path: path.stat().st_ino for path in out.rglob("*")}
    before = contents(out)
    damage("flipped", out, "params-00001.bin")
    damage("missing", out, "params-00000.bin")
    exported(undisturbed, out, "--pieces=10000")
    assert contents(out) == before
    for path, inode in inodes.items():
        if path.name.startswith("params-") and path.name > "params-00001.bin":
            assert path.stat().st_ino == inode
    words = [f"--checkpoint={undisturbed}", f"--out={out}"]
    for more in (["--pieces=9kB"], ["--pieces=10kB", "--dtype=bfloat16"], ["--step=25"]):
        err = refused(capsys, *words, *more)
        assert f"--out={out} holds another export: step 30 of " in err and "asked for: step" in err
    assert contents(out) == before
    (out / "params.json").write_text("{}")
    err = refused(capsys, *words, "--pieces=10kB")
    assert "params.json' is not what was written; delete the folder, or choose another" in err


def test_a_folder_of_something_else_is_left_alone(undisturbed, tmp_path, capsys):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    err = refused(capsys, f"--checkpoint={run}", f"--out={run}")
    assert f"--out={run} holds '" in err and "which is not of an export" in err
    assert load_model(str(run)).step == 30 and not is_export(run)
    (tmp_path / "file").write_text("mine")
    assert "is not a folder" in refused(capsys, f"--checkpoint={run}", f"--out={tmp_path}/file")
    out = exported(run, tmp_path / "out")
    err = refused(capsys, f"--checkpoint={out}", f"--out={tmp_path / 'b'}")
    assert "is an export itself" in err and not (tmp_path / "b").exists()


def test_a_run_without_its_tokenizer_and_one_with_another_are_refused(
    undisturbed, tmp_path, capsys
):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    words = [f"--checkpoint={run}", f"--out={tmp_path / 'out'}"]
    text = (run / "tokenizer.json").read_text()
    (run / "tokenizer.json").write_text(text + "\n")
    assert "is not the tokenizer that the checkpoint of step 30" in refused(capsys, *words)
    (run / "tokenizer.json").unlink()
    assert "has lost its tokenizer.json" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_passed_over_and_said(undisturbed, tmp_path, capsys):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    (run / "checkpoints" / "30" / "meta" / "metadata").write_text("{")
    out = exported(run, tmp_path / "out")
    assert "step 30: its meta item cannot be read; it is damaged" in capsys.readouterr().err
    assert manifest_of(out)["step"] == 25
    step = exported(run, tmp_path / "step", "--step=24")
    assert bits(load_model(str(step)).params) == bits(load_model(str(run), 24).params)


OPTIONS = {
    "--pieces=big": "--pieces=big: expected a size such as 16MiB, 1GB or 4096 (bytes)",
    "--pieces=0": "--pieces=0: expected a size",
    "--pieces=-1MB": "--pieces=-1MB: expected a size",
    "--pieces=16XB": "--pieces=16XB: expected a size",
    "--pieces=0.1B": "--pieces=0.1B: expected a size",
    "--pieces=1e9": "--pieces=1e9: expected a size",
    "--pieces=": "--pieces= is empty",
    "--dtype=bfloat": "--dtype=bfloat: expected float32 or bfloat16. Did you mean 'bfloat16'?",
    "--dtype=int8": "--dtype=int8: expected float32 or bfloat16.",
    "--step=77": "has no checkpoint of step 77; there are ",
    "--step=x": "--step",
    "--piece=1MB": "--piece: there is no such option. Did you mean '--pieces'?",
    "--checkpoint=/nowhere": "--checkpoint: there is no work directory '/nowhere'",
    "--checkpoint=s3://x": "s3:// is not known",
    "--checkpoint=/": "'/' has no checkpoint; expected the work directory of a training run",
    "--out=ftp://x": "ftp:// is not known",
}


@pytest.mark.parametrize("word", OPTIONS)
def test_a_wrong_option_gets_one_sentence_and_leaves_nothing(word, undisturbed, tmp_path, capsys):
    words = [f"--checkpoint={undisturbed}", f"--out={tmp_path / 'out'}", word]
    assert OPTIONS[word] in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error, status", [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space"), 2)]
)
def test_an_export_that_is_interrupted_leaves_nothing(
    error, status, undisturbed, tmp_path, monkeypatch, capsys
):
    flush = PieceWriter._flush

    def failing(self):
        if len(self.pieces) == 2:
            raise error
        flush(self)

    out = tmp_path / "new" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(PieceWriter, "_flush", failing)
        words = [f"--checkpoint={undisturbed}", f"--out={out}", "--pieces=1kB"]
        assert export.main(words) == status
        assert not (tmp_path / "new").exists()
        if status == 2:
            assert f"--out: no space left while writing to {out}" in capsys.readouterr().err
    # What a finished export had is kept.
    exported(undisturbed, out, "--pieces=1kB")
    right = contents(out)
    monkeypatch.setattr(PieceWriter, "_flush", failing)
    assert export.main(words) == status
    assert contents(out) == right


def test_too_many_pieces_are_refused_with_the_least_size(tmp_path, capsys):
    params = {"embedding": jnp.ones(30_000)}
    run = RestoredItems(1, {"config": {}, "tokenizer": ""}, {"params": params})
    with pytest.raises(UserError, match=r"--pieces=1: 120,000 .* at least 2 bytes"):
        write_export(epath.Path(tmp_path), run, None, "float32", 1)
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_read_in_powers_of_1000_and_of_1024():
    sizes = {"16MiB": 2**24, "1GB": 10**9, "4096": 4096, "1.5 kB": 1500, "2kib": 2048, "7B": 7}
    assert {text: parse_bytes(text, "--pieces") for text in sizes} == sizes


def test_help_and_wrong_options_need_no_jax():
    script = """
import sys
from slmjax.export import main
assert main(["--checkpoint=/nowhere", "--out=x"]) == 2
try:
    main(["--help"])
except SystemExit as done:
    assert done.code == 0
assert "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "--pieces" in done.stdout, done.stderr
