"""Put one deliberate fault after the other into a copy of the library; each must turn a test red.

    python .ci/faults.py [--tests=CHECKOUT] [NAME ...]

Run it after tests were removed or merged. With `--tests` library and tests are those of another
checkout, such as an earlier commit's. A fault names the test files that could see it; their tests
run until the first failure, those with markers too (except "beam"). The status is 1 if no test
fails for one of the faults.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# name: (file, its right code, the faulty code, tests that could see it)
FAULTS = {
    "a removed field is ignored": (
        "slmjax/config/saved.py",
        "            if value != REMOVED[name]:\n                raise",
        "            if False:\n                raise",
        "tests/test_config.py",
    ),
    "an unknown field is ignored": (
        "slmjax/config/saved.py",
        "        elif name not in FIELDS:\n            raise UserError",
        "        elif name not in FIELDS:\n            continue\n            raise UserError",
        "tests/test_config.py",
    ),
    "a run goes on with another learning rate": (
        "slmjax/train/resume.py",
        'differing_fields(then, now, ("learning", "chance"))',
        'differing_fields(then, now, ("chance",))',
        "tests/train/test_resume.py",
    ),
    "a term is divided by the main denominator": (
        "slmjax/tasks/task.py",
        'coefficient * total * totals["main"] / jnp.maximum(totals[name], 1)',
        "coefficient * total",
        "tests/contracts/test_layers.py",
    ),
    "prepared text of an older reader is reused": (
        "slmjax/data/preparation_settings.py",
        'settings["reader"] = reader_identity(source)',
        'settings["reader"] = source.reader',
        "tests/contracts/test_reader.py",
    ),
    "attention sees other documents": (
        "slmjax/ops/softmax_attention.py",
        "same_segment = query_segments[:, :, None] == key_segments[:, None, :]",
        "same_segment = key_segments[:, None, :] != 0",
        "tests/ops/test_softmax_attention.py tests/models/test_lm.py",
    ),
    "a chunk decays by its first token": (
        "slmjax/ops/recurrence_chunks.py",
        "jnp.exp(total[..., -1, :]), 0.0)",
        "jnp.exp(total[..., 0, :]), 0.0)",
        "tests/ops/test_recurrence.py",
    ),
    "a microbatch's weight is lost": (
        "slmjax/train/step.py",
        "totals = jax.tree.map(jnp.add, totals, added)",
        "totals = (totals[0] + added[0], added[1], jax.tree.map(jnp.add, totals[2], added[2]))",
        "tests/train/test_step.py",
    ),
    "two shard axes are swapped": (
        "slmjax/models/attention.py",
        'axes=("heads", None, "width")',
        'axes=("width", None, "heads")',
        "tests/parallel/test_rules.py tests/train/test_step.py",
    ),
    "a text can spell a special token": (
        "slmjax/text/tokenizer.py",
        "self._library.encode_special_tokens = True",
        "self._library.encode_special_tokens = False",
        "tests/text/test_tokenizer.py",
    ),
    "pieces of a model's vocabulary give special tokens": (
        "slmjax/text/tokenizer.py",
        "if names := self._names_read_as_special():\n            first_letters",
        "if names := []:\n            first_letters",
        "tests/text/test_tokenizer.py",
    ),
    "an old run is given reserved ids": (
        "slmjax/data/prepare_stage.py",
        "return names if names[0] == EOT else tuple(SPECIAL)",
        "return tuple(SPECIAL)",
        "tests/data/test_prepare.py",
    ),
    "only the first id of a set stops a row": (
        "slmjax/infer/engine.py",
        "ends[ids] = True",
        "ends[ids[:1]] = True",
        "tests/infer/test_engine.py",
    ),
    "a checkpoint's digest is not compared": (
        "slmjax/checkpoint.py",
        "if name in items and digest(restored[name]) != expected:",
        "if False:",
        "tests/test_checkpoint.py tests/train/test_resume.py",
    ),
    "a packed piece starts one token early": (
        "slmjax/data/packing.py",
        "offsets = pieces.offsets[piece] + inside[order]",
        "offsets = np.maximum(pieces.offsets[piece] + inside[order] - 1, 0)",
        "tests/data/test_packing.py tests/data/test_loader.py",
    ),
    "a shared block is applied once": (
        "slmjax/models/lm.py",
        "        for _ in range(arch.share_blocks):\n            if entries is None:",
        "        for _ in range(1):\n            if entries is None:",
        "tests/models/test_mixers.py",
    ),
    "a window's cache forgets one token": (
        "slmjax/models/cache.py",
        "numbers = _numbers_in_ring(size, slots.index[:, 0] + 1)",
        "numbers = _numbers_in_ring(size, slots.index[:, 0])",
        "tests/models/test_mixers.py tests/models/test_cache.py tests/test_testing.py",
    ),
    "padding changes a recurrent state": (
        "slmjax/ops/recurrence.py",
        "state = jnp.where(real, after, state)",
        "state = after",
        "tests/ops/test_recurrence.py tests/test_testing.py",
    ),
    "float8 scales see the last microbatch only": (
        "slmjax/train/step.py",
        "combined(declared, seen, seen_here)",
        "seen_here",
        "tests/train/test_float8.py",
    ),
    "a recurrence splits heads over the axis of its rows": (
        "slmjax/models/recurrent.py",
        'return "tensor" if heads % ways("tensor") == 0 else None',
        'return "fsdp" if heads % ways("fsdp") == 0 else None',
        "tests/test_testing.py",
    ),
    "the loss scale is undone for one microbatch": (
        "slmjax/train/step.py",
        "mean = total / divisor",
        "mean = total / divisor * train.microbatches",
        "tests/train/test_step.py",
    ),
    "a block borrows from the first lender": (
        "slmjax/models/attention.py",
        "keys = shared[self.kind_of_keys]",
        "keys = next(iter(shared.values()))",
        "tests/models/test_mixers.py",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tests", type=Path, default=ROOT, metavar="CHECKOUT")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    unseen = 0  # faults for which no test fails
    # One compile cache for all faults: most programs are the same with another fault.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        for name in options.names or FAULTS:
            began = time.monotonic()
            red_test = first_failure(options.tests.resolve(), *FAULTS[name])
            if not red_test:
                unseen += 1
            seconds = time.monotonic() - began
            print(f"{name}: {red_test or 'NO TEST IS RED'} ({seconds:.0f} s)", flush=True)
    return int(unseen > 0)


def first_failure(checkout: Path, file: str, right: str, wrong: str, tests: str) -> str:
    """Put a fault into a copy of a checkout; return the first test that fails, "" where all pass.

    Args:
      file, right, wrong, tests: the values of FAULTS.
    Raises: SystemExit where the file does not hold the right code exactly once, and where pytest
      itself fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "slmjax"
        left_out = shutil.ignore_patterns(".*", "runs", "__pycache__")
        shutil.copytree(checkout, copy, ignore=left_out)
        text = (copy / file).read_text()
        times = text.count(right)
        if times != 1:
            raise SystemExit(f"{file} holds {times} times, not once: {right}")
        (copy / file).write_text(text.replace(right, wrong))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n",
            "2",
            "-m",
            "not beam",  # the tests of apache-beam need an environment of their own
            *tests.split(),
        ]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    red_tests = re.findall(r"^FAILED (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if red_tests:
        return red_tests[0]
    if done.returncode:
        raise SystemExit(f"pytest ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return ""


if __name__ == "__main__":
    sys.exit(main())
