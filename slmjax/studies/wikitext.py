"""A reader for WikiText's files: one document for each article."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from slmjax.text.records import Record

# A heading of an article; sections have two or more equals signs on each side.
ARTICLE = re.compile(r"^ = (?!=)(.+?)(?<!=) = \n", re.MULTILINE)


def read_articles(stream: BinaryIO) -> Iterator[Record]:
    """Yield each article of a WikiText file, with its title as its id.

    Use: {"path": "valid.txt", "reader": "slmjax.studies.wikitext:read_articles"}.
    Source: Merity et al. 2016 (WikiText).
    """
    text = stream.read().decode()
    headings = list(ARTICLE.finditer(text))
    for number, heading in enumerate(headings):
        end = len(text)
        if number + 1 < len(headings):
            end = headings[number + 1].start()
        article = text[heading.start() : end]
        line = text.count("\n", 0, heading.start()) + 1
        yield Record({"text": article, "id": heading[1]}, line)
