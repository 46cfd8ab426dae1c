"""The textbook's wordings, by kind of passage, from templates.json.

The place of a template in its kind is part of the passages' ids, and drawing one depends on how
many there are: a change makes other passages, and `passages.VERSION` must count up.
"""

from slmjax.textbook import number_kinds, word_kinds
from slmjax.textbook.draw import Template, read_data


def _read_templates() -> dict[str, tuple[Template, ...]]:
    kinds: dict[str, tuple[Template, ...]] = {}
    for kind, entries in read_data("templates.json").items():
        templates = []
        for entry in entries:
            name = entry.pop("problem")
            # No name is in both modules.
            problem = getattr(number_kinds, name, None) or getattr(word_kinds, name)
            templates.append(Template(problem, **entry))
        kinds[kind] = tuple(templates)
    return kinds


TEMPLATES = _read_templates()
KINDS: tuple[str, ...] = tuple(TEMPLATES)
