"""English and punctuation for words.py: words that split, words that stay whole, marks.

The facts are those of the rule-based English tokenizer of spaCy 3 and of datatrove 0.10, whose
decisions the quality rules reproduce.
"""

# Heads with the same contractions: "who'll", "what'll", "there'll", ...
WHO = "who what when where why how there"

# Heads of contractions, and the tails that they take. A tail may have two parts, which split, too:
# "I'd've" is three words.
TAILS = {
    f"i you he she it we they {WHO} that this these those": ("'ll", "'ll 've", "'d", "'d 've"),
    f"i you we they {WHO} this these those": ("'ve",),
    f"you we they {WHO} this these those": ("'re",),
    f"he she it {WHO} that this": ("'s",),
    "i": ("'m", "'m a"),
    "ca could do does did had may might must need ought sha should wo would": ("n't", "n't 've"),
    "could might must should would": ("'ve",),
    "ai are is was were have has dare": ("n't",),
    "not": ("'ve",),
}

# Contractions without an apostrophe are split, too ("dont"), but not these: words of their own.
NOT_SPLIT = ("ill", "its", "hell", "shell", "shed", "were", "well", "whore")


def _ranges(text: str) -> frozenset[str]:
    """Return the characters of blank-separated hexadecimal code points and ranges of them."""
    characters = set()
    for item in text.split():
        first, _, last = item.partition("-")
        codes = range(int(first, 16), int(last or first, 16) + 1)
        characters.update(map(chr, codes))
    return frozenset(characters)


# Marks that end a sentence in some script: the property Sentence_Terminal of Unicode 15, as
# datatrove lists it.
TERMINAL = _ranges("""
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736
17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f
203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f
a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59
10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239
1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946
11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44
16e98 1bc9f 1da88
""")

# Characters that make no word by themselves: ASCII and the commonest other punctuation, control
# characters, ends of sentences; datatrove's list.
SYMBOLS = (
    TERMINAL
    | frozenset("«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～")
    | _ranges("0-8 b-1f 21-2f 3a-40 5b-60 7b-9f")
)


def _contractions() -> dict[str, tuple[str, ...]]:
    """Return the words that split within their letters, and their parts.

    They are there with and without the apostrophe ("dont" is two words, too), in lower case and
    capitalised.
    """
    splits: list[tuple[str, ...]] = []
    for heads, tails in TAILS.items():
        for head in heads.split():
            splits += [(head, *tail.split()) for tail in tails]
    # The same without apostrophes.
    for head, *tail in list(splits):
        splits.append((head, *(part.replace("'", "") for part in tail)))
    splits += [("can", "not"), ("gon", "na"), ("got", "ta"), ("let", "'s"), ("c'm", "on")]
    # The same with a capital.
    for head, *tail in list(splits):
        capitalised = "C'm" if "'" in head else head.title()  # title() would make it C'M
        splits.append((capitalised, *tail))
    splits += [("y'", "all"), ("y", "all"), ("how", "'d", "'y"), ("How", "'d", "'y")]
    for hour in range(1, 13):
        splits += [(str(hour), half) for half in ("am", "pm", "a.m.", "p.m.")]
    # Degrees with a full stop: "°C."
    splits += [("°", unit, ".") for unit in "cfkCFK"]

    table = {}
    for parts in splits:
        word = "".join(parts)
        if word.lower() not in NOT_SPLIT:
            table[word] = parts
    return table


# Whole words although they hold or touch punctuation: abbreviations, clipped words, emoticons.
_WHOLE = r"""
' '' \") <space> C++ — \t \n and/or w/o ma'am Ma'am o'clock O'clock em ll nuff 'em 'll 'nuff ol ol'
Ol Ol' 's 'S ‘s ‘S 're 'd 'bout 'cause 'Cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz doin doin' Doin Doin'
goin goin' Goin Goin' havin havin' Havin Havin' lovin lovin' Lovin Lovin' nothin nothin' Nothin
Nothin' nuthin nuthin' Nuthin Nuthin' somethin somethin' Somethin Somethin' a. b. c. d. e. f. g. h.
i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z. ä. ö. ü. a.m. p.m. e.g. E.g. E.G. i.e. I.e.
I.E. vs. v.s. Adm. Ak. Ala. Apr. Ariz. Ark. Aug. Bros. Calif. Co. co. Colo. Conn. Corp. D.C. Dec.
Del. Dr. Feb. Fla. Ga. Gen. Gov. Ia. Id. Ill. Inc. Ind. Jan. Jr. Jul. Jun. Kan. Kans. Ky. La. Ltd.
Mar. Mass. Md. Messrs. Mich. Minn. Miss. Mo. Mont. Mr. Mrs. Ms. Mt. N.C. N.D. N.H. N.J. N.M. N.Y.
Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. Ph.D. Prof. Rep. Rev. S.C. Sen. Sep. Sept. St. Tenn. Va.
Wash. Wis. :) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;)
;-) (; (-; :( :-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1
:P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD
XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o
o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ
(ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
"""


def _special() -> dict[str, tuple[str, ...]]:
    """Return the words that do not split by the general rules, and their parts."""
    table = {word: (word,) for word in _WHOLE.split()}
    table |= _contractions()
    # Apostrophes may be curly.
    for word, parts in list(table.items()):
        curly = tuple(part.replace("'", "’") for part in parts)
        table[word.replace("'", "’")] = curly
    return table


SPECIAL = _special()
