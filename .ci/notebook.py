"""Execute notebooks, each in an empty folder: python .ci/notebook.py colab/*.ipynb.

SHOW_OUTPUTS=1 in the environment also prints what the cells wrote.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path) -> None:
    """Run every cell of a notebook.

    Raises: SystemExit where the file holds outputs; CellExecutionError, with the cell's traceback,
      where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells):
        raise SystemExit(f"{path} holds outputs; clear them before it is committed.")
    with tempfile.TemporaryDirectory() as folder:
        # timeout: seconds of one cell; path: the cells' working directory.
        client = NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute()  # puts the outputs into `notebook`
    if os.environ.get("SHOW_OUTPUTS"):
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                print(output.get("text") or output.get("data", {}).get("text/plain", ""))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        began = time.perf_counter()
        execute(Path(name))
        print(f"{name}: every cell ran, {time.perf_counter() - began:.0f} s")
