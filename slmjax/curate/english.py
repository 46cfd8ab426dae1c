"""What words.py knows of English and of punctuation: words that split within their letters, words that stay whole, marks and symbols.

The facts are those of the rule-based English tokenizer of spaCy 3 and of datatrove 0.10, whose decisions the quality rules reproduce.
"""


def _ranges(text: str) -> frozenset[str]:
    """Characters of blank-separated hexadecimal code points and ranges of them."""
    pairs = (item.split("-") for item in text.split())
    return frozenset(
        chr(code) for pair in pairs for code in range(int(pair[0], 16), int(pair[-1], 16) + 1)
    )


# What ends a sentence in some script: the property Sentence_Terminal of Unicode 15, as datatrove lists it.
TERMINAL = _ranges("""
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6 17d9-17da 1803 1809
1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3
a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89
11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7
11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98
1bc9f 1da88
""")

# What makes no word by itself: ASCII and the commonest other punctuation, control characters, ends of sentences; datatrove's list.
SYMBOLS = (
    TERMINAL
    | frozenset("«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～")
    | _ranges("0-8 b-1f 21-2f 3a-40 5b-60 7b-9f")
)


def _contractions() -> dict[str, tuple[str, ...]]:
    """Words that split within their letters, with and without the apostrophe ("dont" is two words, too), in lower case and capitalised."""
    who = "who what when where why how there"
    tails = {
        f"i you he she it we they {who} that this these those": ("'ll", "'ll 've", "'d", "'d 've"),
        f"i you we they {who} this these those": ("'ve",),
        f"you we they {who} this these those": ("'re",),
        f"he she it {who} that this": ("'s",),
        "i": ("'m", "'m a"),
        "ca could do does did had may might must need ought sha should wo would": (
            "n't",
            "n't 've",
        ),
        "could might must should would": ("'ve",),
        "ai are is was were have has dare": ("n't",),
        "not": ("'ve",),
    }
    splits = [
        (head, *tail.split())
        for heads, own in tails.items()
        for head in heads.split()
        for tail in own
    ]
    splits += [(head, *(part.replace("'", "") for part in tail)) for head, *tail in splits]
    splits += [("can", "not"), ("gon", "na"), ("got", "ta"), ("let", "'s"), ("c'm", "on")]
    splits += [(head.title() if "'" not in head else "C'm", *tail) for head, *tail in splits]
    splits += [("y'", "all"), ("y", "all"), ("how", "'d", "'y"), ("How", "'d", "'y")]
    splits += [(str(hour), half) for hour in range(1, 13) for half in ("am", "pm", "a.m.", "p.m.")]
    splits += [("°", unit, ".") for unit in "cfkCFK"]
    whole = (
        "ill",
        "its",
        "hell",
        "shell",
        "shed",
        "were",
        "well",
        "whore",
    )  # what looks like one of them and is a word of its own
    table = {"".join(parts): parts for parts in splits}
    return {word: parts for word, parts in table.items() if word.lower() not in whole}


# Whole words although they hold or touch punctuation: abbreviations, clipped words, faces.
_WHOLE = r"""
' '' \") <space> C++ — \t \n and/or w/o ma'am Ma'am o'clock O'clock em ll nuff 'em 'll 'nuff ol ol' Ol Ol' 's 'S ‘s ‘S 're 'd 'bout 'cause
'Cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz doin doin' Doin Doin' goin goin' Goin Goin' havin havin' Havin Havin' lovin lovin' Lovin Lovin'
nothin nothin' Nothin Nothin' nuthin nuthin' Nuthin Nuthin' somethin somethin' Somethin Somethin' a. b. c. d. e. f. g. h. i. j. k. l. m.
n. o. p. q. r. s. t. u. v. w. x. y. z. ä. ö. ü. a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. Adm. Ak. Ala. Apr. Ariz. Ark. Aug. Bros.
Calif. Co. co. Colo. Conn. Corp. D.C. Dec. Del. Dr. Feb. Fla. Ga. Gen. Gov. Ia. Id. Ill. Inc. Ind. Jan. Jr. Jul. Jun. Kan. Kans. Ky. La.
Ltd. Mar. Mass. Md. Messrs. Mich. Minn. Miss. Mo. Mont. Mr. Mrs. Ms. Mt. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla.
Ore. Pa. Ph.D. Prof. Rep. Rev. S.C. Sen. Sep. Sept. St. Tenn. Va. Wash. Wis. :) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =]
:o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p
:-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.<
._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*)
(¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
"""


SPECIAL = {**{word: (word,) for word in _WHOLE.split()}, **_contractions()}
SPECIAL |= {
    word.replace("'", "’"): tuple(part.replace("'", "’") for part in parts)
    for word, parts in SPECIAL.items()
}
