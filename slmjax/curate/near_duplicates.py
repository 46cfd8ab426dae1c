"""Near-duplicates in files of text: sketch each file, add the sketches to an index, cluster."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from slmjax.curate.clusters import EXACT, THROUGH, Clusters
from slmjax.curate.index import Index
from slmjax.curate.minhash import Scheme, sketch
from slmjax.curate.sketch_files import SketchWriter, sketched
from slmjax.text.files import Progress, run_units
from slmjax.text.records import Document, Source, SourceFile
from slmjax.text.sources import list_files, read_documents

FOUND = {EXACT: "same text", THROUGH: "through a duplicate"}


def deduplicate(
    sources: Sequence[Source],
    folder: Path,
    *,
    scheme: Scheme = Scheme(),  # noqa: B008 (frozen)
    threshold: float = 0.75,
    processes: int = 1,
    progress: Progress = lambda *_: None,
) -> tuple[Index, Clusters]:
    """Add the documents of all sources to the index in `folder`; return it with all its clusters.

    What is in the index already comes before the new documents; within them the order of sources
    and files counts.

    Args:
      threshold: exact Jaccard similarity of word shingles from which on a document is a duplicate.
      processes: 1 works in this one.
    Raises: UserError for sources that cannot be read and for an index of another scheme.
    """
    index = Index(folder, scheme)
    files: list[tuple[Source, SourceFile]] = []
    for source in sources:
        files += [(source, file) for file in list_files(source)]
    names = [f"{source.name}/{file.name}" for source, file in files]
    identity = [(name, file.size, file.version) for name, (_, file) in zip(names, files)]
    batch = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    if batch not in index:
        work = epath.Path(folder) / "work"
        folders = [work / f"{number:05d}" for number in range(len(files))]
        tasks = []
        for (source, file), place in zip(files, folders):
            tasks.append((file.size, (source, file, place, scheme)))
        sketch([""], scheme)  # compiled or loaded once, for all processes
        run_units(sketch_file, tasks, processes, stage="sketch", progress=progress, fork=True)
        units = []
        for name, place in zip(names, folders):
            units.append(([(name, sketched(place))], place))
        index.add(batch, units)
        work.rmtree()
    return index, index.clusters(threshold)


def sketch_file(source: Source, file: SourceFile, folder: epath.Path, scheme: Scheme) -> None:
    """Write the sketches of a file's documents to `folder`, see SketchWriter; skip faults."""
    with SketchWriter(folder, scheme) as writer:
        for item in read_documents(file, source):
            if isinstance(item, Document):
                writer.add(item)


def decisions(
    index: Index, clusters: Clusters, numbers: slice = slice(None)
) -> Iterator[dict[str, Any]]:
    """Yield for each removed document where it is, the one that is kept for it, and why.

    `found` is the first band that both share, "same text", or "through a duplicate": both are near
    a third, which is removed, too.

    Args:
      numbers: of the documents to report.
    """
    removed = np.intersect1d(clusters.removed, np.arange(len(index))[numbers])
    places = index.places(removed)
    kept_places = index.places(clusters.keeper[removed])
    for document, (file, line), (kept_file, kept_line) in zip(removed, places, kept_places):
        band = int(clusters.band[document])
        yield {
            "file": file,
            "line": line,
            "kept_file": kept_file,
            "kept_line": kept_line,
            "similarity": round(float(clusters.similarity[document]), 4),
            "found": FOUND.get(band, f"band {band}"),
        }
