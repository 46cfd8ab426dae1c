"""The results of a study's runs: results.json, and the scores of held-out documents."""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from slmjax import config as configs
from slmjax.config.removed import REMOVED
from slmjax.errors import UserError
from slmjax.readable import flatten
from slmjax.text.files import seal_is_broken, sealed, write_atomic
from slmjax.train.resume import affects_of

# Version of results.json.
FORMAT = 1
# Settings that say where text is. What it says is the study's identity.
PLACES = re.compile(r"data\.tokenizer|data\.sources\..*\.(path|heldout)")


class StudyResults:
    """The files results.json and scores/ of a study.

    Args:
      folder: the study's work directory, local or gs://.
      identity: what decides results besides the configs.
      command: the launcher's command, for the records.
    Raises: UserError where results.json cannot be read, or is of another text or a newer format.
    """

    def __init__(self, folder: epath.Path, identity: str, command: str):
        self._folder = folder
        self._identity = identity
        self._command = command
        self._file = folder / "results.json"
        self._lock = threading.Lock()
        # {name of a run: {"settings", "result", "scores": SHA-256 of its scores, if it has some}}
        self._stored = self._read()

    def all(self) -> dict[str, dict[str, Any]]:
        """Return {name of a run: its result} of all runs that have one."""
        return {name: entry["result"] for name, entry in self._stored.items()}

    def scores_file(self, name: str) -> epath.Path:
        """Return the file of a run's scores of held-out documents; only runs on text have one."""
        return self._folder / "scores" / f"{name}.npz"

    def has(self, name: str, config: configs.Config, run_scores: epath.Path) -> bool:
        """Return whether a run has its result and its scores.

        Args:
          config: of the run.
          run_scores: its scores in its own work directory, from which lost ones are restored.
        Raises: UserError where the result is of other settings.
        """
        if name not in self._stored:
            return False
        entry = self._stored[name]
        changed = changed_settings(entry["settings"], settings_of(config))
        if changed:
            raise UserError(
                f"'{self._file}' holds the run '{name}' with other settings "
                f"({', '.join(changed)}); use another --workdir."
            )
        if "scores" not in entry:
            return True
        file = self.scores_file(name)
        if _has_content(file, entry["scores"]):
            return True
        if _has_content(run_scores, entry["scores"]):
            write_atomic(file, run_scores.read_bytes())
            return True
        print(f"'{file}' is missing or was changed, so the run '{name}' is trained again")
        return False

    def keep(
        self, name: str, config: configs.Config, result: dict[str, Any], run_scores: epath.Path
    ) -> None:
        """Store a run's result and its scores. Arguments as for `has`."""
        entry = {"settings": settings_of(config), "result": result}
        # A run that diverged may have scores of an earlier evaluation.
        if run_scores.exists() and not result["diverged"]:
            content = run_scores.read_bytes()
            write_atomic(self.scores_file(name), content)
            entry["scores"] = hashlib.sha256(content).hexdigest()
        with self._lock:
            stored = self._stored | {name: entry}
            content = {
                "format": FORMAT,
                "identity": self._identity,
                "device": jax.devices()[0].device_kind,
                "command": self._command,
                "runs": stored,
            }
            write_atomic(self._file, json.dumps(sealed(content), indent=1))
            # Only now: on a full disk the run has no result.
            self._stored = stored

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._file.exists():
            return {}
        try:
            content = json.loads(self._file.read_text())
            if "seal" not in content or seal_is_broken(content):
                raise ValueError("it was changed after it was written")
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
            identity, stored = content["identity"], dict(content["runs"])
            for entry in stored.values():
                dict(entry["settings"])
                dict(entry["result"]["metrics"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            advice = "remove it or use another --workdir"
            raise UserError(f"'{self._file}' cannot be read ({error!r}); {advice}.") from error
        if identity != self._identity:
            raise UserError(
                f"'{self._file}' holds runs on other text or with another tokenizer; use another "
                "--workdir."
            )
        return stored


def settings_of(config: configs.Config) -> dict[str, Any]:
    """Return the values of a run's config that decide its result, by dotted name."""
    settings = {}
    values = flatten(configs.to_dict(config))
    for name, value in values.items():
        if affects_of(name) not in ("bookkeeping", "compile"):
            settings[name] = value
    # As results.json will hold it: with lists for tuples.
    return json.loads(json.dumps(settings))


def changed_settings(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the values of `settings_of` in which two runs differ.

    A field that one of them lacks, because another version wrote it, has the value that it had
    before it was there, or that it stands for since it was removed. Places of text do not count.
    """
    changed = []
    for name in sorted(earlier.keys() | now.keys()):
        absent = REMOVED.get(name)
        if name in configs.FIELDS:
            # As results.json would hold it: with lists for tuples.
            absent = json.loads(json.dumps(configs.FIELDS[name].before))
        differs = earlier.get(name, absent) != now.get(name, absent)
        if differs and not PLACES.fullmatch(name):
            changed.append(name)
    return changed


def _has_content(file: epath.Path, sha256: str) -> bool:
    return file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256
