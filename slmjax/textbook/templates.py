"""The textbook's wordings, by kind of passage, from templates.json.

A passage names its template by the place in its kind, and the draw of a template depends on how
many there are. So a change of the templates changes the passages, and `passages.VERSION` must count
up.
"""

from slmjax.textbook import number_kinds, word_kinds
from slmjax.textbook.draw import Template, read_data


def _read_templates() -> dict[str, tuple[Template, ...]]:
    """Return {kind of passage: its templates}."""
    kinds: dict[str, tuple[Template, ...]] = {}
    for kind, entries in read_data("templates.json").items():
        templates = []
        for entry in entries:
            name = entry.pop("problem")
            # No problem's name is in both modules.
            problem = getattr(number_kinds, name, None) or getattr(word_kinds, name)
            templates.append(Template(problem, **entry))
        kinds[kind] = tuple(templates)
    return kinds


TEMPLATES = _read_templates()
KINDS: tuple[str, ...] = tuple(TEMPLATES)
