"""Near-duplicates in files of text: sketch each file, add the sketches to an index, cluster."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from etils import epath

from slmjax.curate.clusters import EXACT, THROUGH, Clusters
from slmjax.curate.index import Index
from slmjax.curate.minhash import Scheme, sketch
from slmjax.curate.sketch_files import SketchWriter, sketched
from slmjax.text.files import Progress, run_units
from slmjax.text.records import Document, Source, SourceFile
from slmjax.text.sources import list_files, read_documents


def deduplicate(
    sources: Sequence[Source],
    folder: Path,
    *,
    scheme: Scheme = Scheme(),  # noqa: B008 (frozen)
    threshold: float = 0.75,
    processes: int = 1,
    progress: Progress = lambda *_: None,
) -> tuple[Index, Clusters]:
    """The index under `folder` with the documents of all files of `sources` added, and the clusters of everything in it.

    What is in the index already comes before the new documents; within them the order of sources and files counts.

    Args:
      threshold: exact Jaccard similarity of word shingles from which on a document is a duplicate.
      processes: 1 works in this one.
    Raises: UserError for sources that cannot be read and for an index of another scheme.
    """
    index = Index(folder, scheme)
    units = [
        (f"{source.name}/{file.name}", source, file)
        for source in sources
        for file in list_files(source)
    ]
    batch = hashlib.sha256(
        json.dumps([(name, file.size, file.version) for name, _, file in units]).encode()
    ).hexdigest()[:16]
    if batch not in index:
        work = epath.Path(folder) / "work"
        tasks = [
            (file.size, (source, file, work / f"{number:05d}", scheme))
            for number, (_, source, file) in enumerate(units)
        ]
        sketch([""], scheme)  # compiled or loaded once, for all processes
        run_units(sketch_file, tasks, processes, stage="sketch", progress=progress, fork=True)
        folders = [work / f"{number:05d}" for number in range(len(units))]
        index.add(
            batch,
            [([(name, sketched(folder))], folder) for (name, _, _), folder in zip(units, folders)],
        )
        work.rmtree()
    return index, index.clusters(threshold)


def sketch_file(source: Source, file: SourceFile, folder: epath.Path, scheme: Scheme) -> None:
    """Write the sketches of a file's documents to `folder`, see SketchWriter; faults are left out."""
    with SketchWriter(folder, scheme) as writer:
        for item in read_documents(file, source):
            if isinstance(item, Document):
                writer.add(item)


def decisions(index: Index, clusters: Clusters, numbers: slice = slice(None)) -> Iterator[dict]:
    """Of every removed document with one of `numbers`: where it stands, which one is kept for it, how similar they are, how they met.

    `found` is the first band that both share, "same text", or "through a duplicate": both are near a third, which is removed too.
    """
    removed = np.intersect1d(clusters.removed, np.arange(len(index))[numbers])
    names = {EXACT: "same text", THROUGH: "through a duplicate"}
    for doc, (file, line), (kept_file, kept_line) in zip(
        removed, index.places(removed), index.places(clusters.keeper[removed])
    ):
        band = int(clusters.band[doc])
        yield {
            "file": file,
            "line": line,
            "kept_file": kept_file,
            "kept_line": kept_line,
            "similarity": round(float(clusters.similarity[doc]), 4),
            "found": names.get(band, f"band {band}"),
        }
