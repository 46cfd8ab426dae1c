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
from slmjax.curate.sketch_files import SketchWriter, count_sketches
from slmjax.text.readers import read_documents
from slmjax.text.records import Document, Source, SourceFile
from slmjax.text.source_files import list_files
from slmjax.text.units import Progress, run_units

# How a pair was found, for the values that `Clusters.band` may have in place of a band.
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

    The first of near-duplicates is kept. Documents in the index come before new ones, which come
    in the order of sources and files. The same files are added only once.

    Args:
      threshold: exact Jaccard similarity of word shingles from which on a document is a duplicate.
      processes: 1 works in this one.
    Raises: UserError for sources that cannot be read and for an index of another scheme.
    """
    index = Index(folder, scheme)
    work = epath.Path(folder) / "work"
    sketch_folders, identity, tasks = [], [], []
    for source in sources:
        for file in list_files(source):
            name = f"{source.name}/{file.name}"
            sketch_folder = work / f"{len(sketch_folders):05d}"
            sketch_folders.append((name, sketch_folder))
            identity.append((name, file.size, file.version))
            tasks.append((file.size, (source, file, sketch_folder, scheme)))
    identity_text = json.dumps(identity)
    batch = hashlib.sha256(identity_text.encode()).hexdigest()[:16]
    if batch not in index:
        # Kernels are compiled or loaded here once: processes that are forked have them, too.
        sketch([""], scheme)
        run_units(sketch_file, tasks, processes, stage="sketch", progress=progress, fork=True)
        units = []
        for name, sketch_folder in sketch_folders:
            files = [(name, count_sketches(sketch_folder))]
            units.append((files, sketch_folder))
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
    """Yield for each removed document where it is, where the one kept for it is, and why.

    The value of "found" says how the two met: in "band 3", the first band that both share; as the
    "same text"; or "through a duplicate", a third document that is removed for the kept one.

    Args:
      numbers: which documents to report on.
    """
    reported = np.arange(len(index))[numbers]
    removed = np.intersect1d(clusters.removed, reported)
    places = index.places(removed)
    kept_places = index.places(clusters.keeper[removed])
    for document, (file, line), (kept_file, kept_line) in zip(removed, places, kept_places):
        band = int(clusters.band[document])
        similarity = float(clusters.similarity[document])
        yield {
            "file": file,
            "line": line,
            "kept_file": kept_file,
            "kept_line": kept_line,
            "similarity": round(similarity, 4),
            "found": FOUND.get(band, f"band {band}"),
        }
