"""The library's own tree of subjects, areas and topics; the names are in subjects.json.

The tree was written for this library and is not taken from another list.
A change of the names changes the prompts, and with them the keys of journalled requests.
"""

import json
from importlib import resources

_FILE = resources.files(__package__) / "subjects.json"
_NAMES = json.loads(_FILE.read_text("utf-8"))

# Topic of each kind of problem that the library draws and solves itself (textbook/passages.py).
# The answers to problems of these six topics can be checked.
KINDS: dict[str, str] = _NAMES["kinds"]

# Sides from which a topic can be looked at; each makes another prompt of the topic.
ASPECTS: tuple[str, ...] = tuple(_NAMES["aspects"])


def topics() -> list[str]:
    """Return every topic as "subject > area > topic", in the order of the tree."""
    paths = []
    for subject, areas in _NAMES["tree"].items():
        for area, names in areas.items():
            paths += [f"{subject} > {area} > {name}" for name in names]
    return paths
