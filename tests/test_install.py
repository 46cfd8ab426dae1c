"""Installing, as a newcomer does: a clone started from the folder above it, and the notebooks' first cell."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import ml_collections

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
    backend = tomllib.loads((checkout / "pyproject.toml").read_text())["build-system"]["build-backend"]
    script = f"import sys, {backend} as backend; print(backend.build_editable(sys.argv[1]))"
    wheels = checkout.parent / "wheels"
    wheels.mkdir()
    made = subprocess.run([sys.executable, "-c", script, wheels], cwd=checkout, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(wheels / made.stdout.split()[-1]) as wheel:
        wheel.extractall(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=checkout).strip())


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
    assert run(python, "-m", "slmjax.launch", "--help", folder=tmp_path).startswith("usage: python -m slmjax.launch")
