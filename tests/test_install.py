"""Installing, as a newcomer does: a clone started from the folder above it, and the notebooks' first cell."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import ml_collections
import pytest

ROOT = Path(__file__).parents[1]
DEPENDENCIES = Path(ml_collections.__file__).parents[1]


def environment(folder: Path) -> Path:
    """A new virtual environment that holds nothing; returns its Python."""
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def run(python: Path, *words: str, folder: Path) -> str:
    """What a command prints that sees the dependencies of this environment, but not its slmjax."""
    # Path entries in *.pth files, as of an editable slmjax, are not read from PYTHONPATH's folders.
    names = {**os.environ, "PYTHONPATH": str(DEPENDENCIES)}
    found = subprocess.run([python, *words], cwd=folder, env=names, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def install_editable(checkout: Path, python: Path) -> None:
    """`pip install -e` without pip: the build backend's wheel, unpacked where Python looks for packages."""
    backend = tomllib.loads((checkout / "pyproject.toml").read_text())["build-system"][
        "build-backend"
    ]
    script = f"import sys, {backend} as backend; print(backend.build_editable(sys.argv[1]))"
    wheels = checkout.parent / "wheels"
    wheels.mkdir()
    made = subprocess.run(
        [sys.executable, "-c", script, wheels],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    with zipfile.ZipFile(wheels / made.stdout.split()[-1]) as wheel:
        wheel.extractall(
            run(
                python,
                "-c",
                "import sysconfig; print(sysconfig.get_path('purelib'))",
                folder=checkout,
            ).strip()
        )


def test_an_editable_clone_starts_from_the_folder_above_it(tmp_path):
    checkout = tmp_path / "slmjax"
    for name in ("slmjax", "launch"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    python = environment(tmp_path / "environment")
    install_editable(checkout, python)
    module = run(python, "-c", "import slmjax; print(slmjax.__file__)", folder=tmp_path).strip()
    assert Path(module) == checkout / "slmjax" / "__init__.py"
    assert run(python, "-m", "slmjax.launch", "--help", folder=tmp_path).startswith(
        "usage: python -m slmjax.launch"
    )


def first_cells():
    """{notebook's name: source of its first cell of code}."""
    cells = {}
    for path in (ROOT / "colab").glob("*.ipynb"):
        codes = [
            cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"
        ]
        cells[path.name] = "".join(codes[0]["source"])
    return cells


def run_cell(
    python: Path, folder: Path, before: str = "", **names: str
) -> subprocess.CompletedProcess:
    """Run the notebooks' first cell in a process that sees slmjax's dependencies, a fake pip and a fake JAX.

    The fake pip notes what it is asked to install and puts slmjax there.
    """
    tools = folder.parent / "tools"
    (tools / "pip").mkdir(parents=True)
    (tools / "pip" / "__init__.py").touch()
    (tools / "jax.py").write_text("def default_backend():\n    return 'cpu'\n")
    (tools / "pip" / "__main__.py").write_text(
        f"import os, sys\nos.symlink({str(ROOT / 'slmjax')!r}, {str(tools / 'slmjax')!r})\n"
        f"open({str(folder.parent / 'asked')!r}, 'w').write(sys.argv[-1])\n"
    )
    # Where the version of a package is looked up; that of the checkout may be anywhere.
    (tools / "slmjax-0.1.0.dist-info").mkdir()
    (tools / "slmjax-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: slmjax\nVersion: 0.1.0\n"
    )
    (cell,) = set(first_cells().values())
    environ = {name: value for name, value in os.environ.items() if name != "SLMJAX_SOURCE"}
    environ |= {
        "PYTHONPATH": os.pathsep.join([str(tools), str(DEPENDENCIES)]),
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    return subprocess.run(
        [python, "-c", before + cell],
        cwd=folder,
        env=environ | names,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def evening(tmp_path):
    """(Python, an empty folder but for a clone); a folder named slmjax, which holds no package, passes for one until it is used."""
    (tmp_path / "evening" / "slmjax" / "launch").mkdir(parents=True)
    return environment(tmp_path / "environment"), tmp_path / "evening"


def test_the_notebooks_have_one_first_cell_which_asks_for_the_address_where_none_is_set(evening):
    done = run_cell(*evening)
    assert done.returncode == 1 and done.stderr.startswith(
        "slmjax is not installed here. Set SOURCE"
    )
    assert not (evening[1].parent / "asked").exists()


@pytest.mark.parametrize(
    ("accelerator", "package"),
    [
        ("none", "git+https://host.test/owner/slmjax"),
        ("gpu", "slmjax[cuda12] @ git+https://host.test/owner/slmjax"),
        ("tpu", "slmjax[tpu] @ git+https://host.test/owner/slmjax"),
    ],
)
def test_the_first_cell_installs_what_the_accelerator_needs(evening, accelerator, package):
    python, folder = evening
    tools, before = folder.parent / "tools", "import os; os.path.exists = lambda path: False\n"
    if accelerator == "gpu":
        tools.mkdir()
        (tools / "nvidia-smi").write_text("#!/bin/sh\n")
        (tools / "nvidia-smi").chmod(0o755)
    if accelerator == "tpu":
        before = "import os; os.path.exists = lambda path: path == '/dev/vfio/0'\n"
    done = run_cell(
        python, folder, before, SLMJAX_SOURCE="https://host.test/owner/slmjax", JAX_PLATFORMS="cpu"
    )
    assert done.returncode == 0, done.stderr
    assert (folder.parent / "asked").read_text() == package
    assert done.stdout.splitlines()[-1] == "slmjax 0.1.0; JAX computes on the cpu."


def test_the_first_cell_shows_pips_own_words_where_it_fails(evening):
    python, folder = evening
    broken = folder.parent / "broken"
    broken.mkdir()
    (folder.parent / "tools").mkdir()
    before = f"import sys; sys.executable = {str(broken / 'python')!r}\n"
    (broken / "python").write_text("#!/bin/sh\necho 'no such repository'\nexit 1\n")
    (broken / "python").chmod(0o755)
    done = run_cell(python, folder, before, SLMJAX_SOURCE=str(folder))
    assert done.returncode == 1
    assert (
        f"pip could not install slmjax from {folder}. It says:\nno such repository" in done.stderr
    )


def test_a_package_that_was_replaced_while_in_use_asks_for_a_restart(evening):
    before = "import sys, types; sys.modules['numpy'] = types.SimpleNamespace(__version__='1.0')\n"
    done = run_cell(*evening, before, SLMJAX_SOURCE="git+https://host.test/owner/slmjax")
    assert done.returncode == 1
    assert "with it another numpy than the one in use. Restart the session" in done.stderr


def test_an_accelerator_that_jax_does_not_use_is_said(evening):
    python, folder = evening
    (folder.parent / "tools").mkdir()
    (folder.parent / "tools" / "slmjax").symlink_to(ROOT / "slmjax")
    before = "import os; os.path.exists = lambda path: path == '/dev/accel0'; os.environ.pop('JAX_PLATFORMS', None)\n"
    done = run_cell(python, folder, before)
    assert done.returncode == 0, done.stderr
    assert not (folder.parent / "asked").exists()
    assert (
        "The accelerator of this machine stays unused: %pip install 'jax[tpu]', and restart."
        in done.stdout
    )
