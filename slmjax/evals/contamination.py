"""Evaluation items in the text that an evaluated run and its ancestors were trained on.

Every item that is asked is looked for with the decontaminator (`evals.training_coverage`) in all
documents of all training sources, so also in those that were held out or not reached.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from slmjax.config import to_json
from slmjax.data.embedded_text import SCHEME, with_files
from slmjax.data.prepare_stage import SEED
from slmjax.errors import UserError
from slmjax.evals.evaluation_items import (
    CHOICES,
    ENDINGS,
    QUESTIONS,
    TEXTBOOK,
    TEXTS,
    EvaluationSet,
    shared_folder,
)
from slmjax.evals.training_coverage import evaluation_sets, source_texts, training_coverage
from slmjax.infer.load import Loaded
from slmjax.text.files import write_atomic
from slmjax.text.records import Source
from slmjax.text.source_files import list_files
from slmjax.text.sources import parse_sources

FILE = "contamination.json"
# GSM-Symbolic's templates are made from test problems of GSM8K.
GSM8K_TEST, GSM_SYMBOLIC = "gsm8k_test", "gsm_symbolic"


def find_contamination(
    loaded: Loaded, sets: Sequence[EvaluationSet], folder: epath.Path
) -> dict[str, Any]:
    """Look for the items of evaluation sets in the training text of a run and of its ancestors.

    The result is kept in `folder`: it is not searched for again where items and files are the same.

    Returns:
      documents: {source: documents that were looked through}.
      unchecked: sentences on training text that could not be looked through.
      sets: {set: {"copied": places of the items of which a document holds a copy, "undecided":
        number of items that are too short or too common to be looked for, "items": number of all}};
        empty where nothing could be looked through.
      not_looked_for: {set: why}.
    """
    sources, unchecked = _training_sources(loaded)
    items, not_looked_for = {}, {}
    for of in sets:
        if of.kind == TEXTS:
            not_looked_for[of.name] = "whole texts are not looked for"
        elif of.name == TEXTBOOK and not of.path:
            not_looked_for[of.name] = "its held-out questions are generated apart from its text"
        else:
            items[of.name] = "".join(json.dumps(_passage(of, item)) + "\n" for item in of.items)
    symbolic = None
    if GSM8K_TEST in items and GSM_SYMBOLIC not in items:
        symbolic = evaluation_sets(shared_folder())[GSM_SYMBOLIC]
        if not Path(symbolic["path"]).is_file():
            not_looked_for[GSM_SYMBOLIC] = f"{symbolic['path']} is not there"
            symbolic = None
    result: dict[str, Any] = {
        "documents": {},
        "faults": {},
        "unchecked": unchecked,
        "sets": {},
        "not_looked_for": not_looked_for,
    }
    readable, stamps = [], []
    for source in sources:
        if source.path[0].startswith(SCHEME):
            # Written by the library, in the same words each time.
            readable.append(source)
            continue
        if any("://" in path for path in source.path):
            unchecked.append(f"{source.where}: its text is not on this machine.")
            continue
        try:
            files = list_files(source, lambda line: None)
        except (UserError, OSError) as error:
            unchecked.append(str(error))
            continue
        readable.append(source)
        stamps += [[file.path, file.size, file.version] for file in files]
    if not items or not readable:
        return result
    if symbolic is not None:
        stamps.append(hashlib.sha256(Path(symbolic["path"]).read_bytes()).hexdigest())
    looked_at = [items, stamps, [repr(source) for source in readable]]
    key = hashlib.sha256(json.dumps(looked_at).encode()).hexdigest()
    kept = _kept(folder / FILE, key)
    if kept is None:
        print("searching the training text ...", flush=True)
        try:
            kept = _search(items, symbolic, readable)
        except UserError as error:
            unchecked.append(str(error))
            return result
        write_atomic(folder / FILE, json.dumps({"key": key, "found": kept}))
    return result | kept


def _search(
    items: Mapping[str, str], symbolic: Mapping[str, Any] | None, sources: Sequence[Source]
) -> dict[str, Any]:
    """Return the documents, faults and sets of `find_contamination`.

    Args:
      items: {set: its items as lines of JSON}.
      symbolic: the settings of GSM-Symbolic's templates.
    """
    with tempfile.TemporaryDirectory() as place:
        settings: dict[str, Any] = {}
        for name, lines in items.items():
            path = Path(place) / f"{name}.jsonl"
            path.write_text(lines, "utf-8")
            settings[name] = {"path": str(path), "fields": ["question", "rest"]}
        if symbolic is not None:
            settings[GSM_SYMBOLIC] = symbolic
        written = with_files(sources, Path(place) / "textbook", SEED)
        coverage = training_coverage(settings, source_texts(written))
    sets = {}
    for name, of in coverage.sets.items():
        sets[name] = {
            "copied": np.flatnonzero(of.copied).tolist(),
            "undecided": int((~of.decided).sum()),
            "items": len(of.decided),
        }
    return {"documents": coverage.documents, "faults": coverage.faults, "sets": sets}


def _training_sources(loaded: Loaded) -> tuple[list[Source], list[str]]:
    """Return the sources of a run and its ancestors, and sentences on unknown ones."""
    configs = [json.loads(to_json(loaded.config))]
    unchecked = []
    for entry in loaded.lineage[1:]:
        place = epath.Path(entry["workdir"]) / "config.json"
        try:
            config = json.loads(place.read_text())
            parse_sources(config["data"]["sources"])
        except (OSError, ValueError, KeyError, TypeError, UserError):
            unchecked.append(f"the config.json of the ancestor '{entry['workdir']}' is not there.")
            continue
        configs.append(config)
    sources: dict[str, Source] = {}
    for config in configs:
        data = config["data"]
        for source in parse_sources(data["sources"] or {"textbook": f"{SCHEME}text"}):
            # Phases may give a source another weight than 0.
            if source.weight == 0 and not data.get("phases"):
                continue
            # Parent and child often read the same files, in other shares.
            read = dataclasses.replace(source, weight=None, max_epochs=None, fraction=1.0)
            sources.setdefault(repr(read), read)
    return list(sources.values()), unchecked


def _passage(of: EvaluationSet, item: Any) -> dict[str, str]:
    """Return the question of an item, which is also looked for alone, and the rest of it."""
    if of.kind == QUESTIONS:
        return {"question": item.question, "rest": item.answer}
    if of.kind != CHOICES:
        return {"question": item.context, "rest": item.continuation}
    contexts = {context for context, _ in item.pairs}
    if contexts == {""}:
        # A pair of sentences, of which only the grammatical one is text that somebody wrote.
        return {"question": item.choices[item.gold], "rest": ""}
    if len(contexts) > 1:
        # Partial scoring: the contexts are the choices.
        return {"question": "\n".join(item.choices), "rest": item.pairs[0][1]}
    query = item.pairs[0][0].removesuffix(ENDINGS.get(of.name, ""))
    return {"question": query, "rest": "\n".join(item.choices)}


def _kept(file: epath.Path, key: str) -> dict[str, Any] | None:
    """Return what an earlier start has found, where it looked for the same in the same files."""
    try:
        saved = json.loads(file.read_text())
        return saved["found"] if saved["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
