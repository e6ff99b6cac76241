"""Sentences by rule: no model, no download.

BERT's segments are contiguous spans of text, so a missed or a superfluous border costs little; speed matters more.
The rules, in order:

1. A line end is a border. Nothing else that Unicode calls a line separator is.
2. `.`, `!`, `?`, `…` (repeated, with closing quotes or brackets behind) followed by white space is a border when the
   next word starts with a digit or with a letter that is not lower case, quotes and brackets before it skipped.
3. A single full stop is no border behind an abbreviation (`Mr.`, `e.g.`), a single capital (`J. Smith`) or letters
   with inner stops (`U.S.`), and behind `No.`, `Fig.`, `p.` and the like none before a digit.
4. `。`, `！`, `？` are borders with nothing behind them.
5. A sentence of more than `MAX_SENTENCE` characters is cut at a blank, to bound the tokenizer's memory.
"""

import re


MAX_SENTENCE = 10_000

# Names follow these, so a capital behind them says nothing.
_TITLES = """
    mr mrs ms messrs mme mlle dr prof st ste sr jr rev hon gen col maj capt cpt lt sgt cpl pvt adm cmdr gov sen rep
    pres supt insp amb atty supt fr bro bros vs v cf al eg ie e.g i.e viz ca approx est inc ltd co corp assn dept univ
    mt ft ave blvd rd esq ph.d etal resp ed eds trans
"""
# These abbreviate only in front of a number: "No. 5", "Fig. 2", "Jan. 3", but "He said no. Then …".
_BEFORE_NUMBERS = """
    no nos fig figs vol vols p pp ch sec art eq eqs ver jan feb mar apr jun jul aug sep sept oct nov dec
"""
_ABBREVIATIONS = frozenset(_TITLES.split())
_NUMBER_ABBREVIATIONS = frozenset(_BEFORE_NUMBERS.split())

# It begins with a plain character class because the regex engine can then skip to the next candidate. It never looks
# beyond the line, so that a whole document can be searched at once.
_BORDER = re.compile(
    r"""
    [.!?…。！？] [.!?…。！？]* ['"’”»)\]}」』）]*
    (?: [^\S\n]+ (?= ['"‘“„«(\[{¿¡—-]* [^\W_a-zß-öø-ÿа-яёα-ω] )
      | (?<= [。！？] ) | (?<= [。！？][」』”’）] )
    )
    """,
    re.VERBOSE,
)
_LAST_WORD = re.compile(r"[\w.&'’-]+\Z")


def split_sentences(text: str) -> list[str]:
    """The sentences of `text` in order, stripped of surrounding white space, none empty."""
    pieces: list[str] = []
    start = 0
    for border in _BORDER.finditer(text):
        stop, end = border.span()
        if text[stop] == "." and text[stop + 1].isspace() and _abbreviates(text, start, stop, end):
            continue
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    sentences = list(filter(None, map(str.strip, "\n".join(pieces).split("\n"))))
    if max(map(len, sentences), default=0) > MAX_SENTENCE:
        return [piece for sentence in sentences for piece in bounded(sentence)]
    return sentences


def bounded(sentence: str) -> list[str]:
    """`sentence` stripped, in pieces of at most `MAX_SENTENCE` characters cut at blanks; nothing if it is blank."""
    sentence = sentence.strip()
    if len(sentence) <= MAX_SENTENCE:
        return [sentence] if sentence else []
    pieces = []
    start = 0
    while len(sentence) - start > MAX_SENTENCE:
        end = start + MAX_SENTENCE
        cut = sentence.rfind(" ", start + 1, end + 1)
        cut = cut if cut > 0 else end
        pieces.append(sentence[start:cut].strip())
        start = cut
    return [piece for piece in [*pieces, sentence[start:].strip()] if piece]


def _abbreviates(text: str, start: int, stop: int, following: int) -> bool:
    """Whether the full stop at `stop` belongs to the word before it; the next sentence would begin at `following`."""
    word = text[max(start, text.rfind(" ", start, stop) + 1) : stop]
    if not word.isalpha():
        # Less than what lies between blanks: "(Mr.", "the-Rev."
        match = _LAST_WORD.search(text, max(start, stop - 20), stop)
        if match is None:
            return False
        word = match.group()
    if len(word) == 1:
        # An initial; but "I" and digits end sentences ("So did I.", "It was 5.").
        return word.isalpha() and word.isupper() and word != "I"
    lowered = word.lower()
    if lowered in _ABBREVIATIONS:
        return True
    if lowered in _NUMBER_ABBREVIATIONS:
        return text[following].isdigit()
    return "." in word and all(len(part) == 1 and part.isalpha() for part in word.split("."))
