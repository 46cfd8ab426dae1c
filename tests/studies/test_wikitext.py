"""WikiText's files are cut into their articles."""

import io

from slmjax.studies.wikitext import read_articles

TEXT = " \n = One = \n \n first . \n = = Part = = \n \n more = less . \n \n = Two @-@ 2 = \n \n second . \n"


def test_an_article_reaches_to_the_next_heading_of_an_article():
    first, second = read_articles(io.BytesIO(TEXT.encode()))
    assert (first.fields["id"], first.line) == ("One", 2)
    assert (second.fields["id"], second.line) == ("Two @-@ 2", 9)
    assert first.fields["text"] + second.fields["text"] == TEXT.partition("\n")[2]
    assert " = = Part = = " in first.fields["text"]
    assert list(read_articles(io.BytesIO(b"no heading\n"))) == []
