"""Split text into sentences by rules, without a model.

BERT's segments are contiguous spans of text, so a missed or superfluous border costs little; speed matters more.
The rules, in order:

1. A line end is a border. Nothing else that Unicode calls a line separator is.
2. `.`, `!`, `?`, `…` and similar (also repeated, also with closing quotes or brackets) before white space are a
   border when the next word starts with a digit or with a letter that is not lower case, quotes and brackets before
   it skipped. So is `;` between Greek words, the Greek question mark, and `:` between Armenian ones, typed for `։`.
3. A single full stop is not a border after an abbreviation (`Mr.`, `e.g.`), a single letter (`J. Smith`, but not a
   lower-case one), the Urdu name of a Latin letter (`پی۔ٹی۔وی`, "P.T.V.") or letters with inner stops (`U.S.`), nor
   after `No.`, `Fig.`, `p.` and similar before a digit.
4. `。`, `！`, `？`, `।`, `؟`, `۔`, `։`, `።` and the other sentence marks of single scripts are borders without white
   space after them: Unicode's Sentence_Terminal, the basis of UAX #29, and some marks that it lacks. So are `!` and
   `?` within Chinese and Japanese, and `፡፡` and `::` within Ethiopic, typed for `።`. Closing quotes and brackets
   belong to the sentence. They are no border if it goes on behind them, with a comma, a Japanese or Korean particle
   (`「行く。」と言った`) or a Chinese verb of saying (`“走吧。”妈妈说。`).
5. Thai and Lao have no such mark: a blank after a run of `_CLAUSE` letters is a border. Shorter runs are words.
6. A sentence of more than `MAX_SENTENCE` characters is cut at a blank, to bound the tokenizer's memory.
"""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from ..utils.errors import InputError, one_line


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
# A to Z as Urdu spells them; between two of them stands a full stop.
_URDU_LETTERS = """
    اے بی سی ڈی ای ایف جی ایچ آئی جے کے ایل ایم این او پی کیو آر ایس ٹی یو وی ڈبلیو ایکس وائی زیڈ
"""
_ABBREVIATIONS = frozenset((_TITLES + _URDU_LETTERS).split())
_NUMBER_ABBREVIATIONS = frozenset(_BEFORE_NUMBERS.split())

# Rule 2: Latin ones and the Greek question mark.
_STOPS = ".!?…․‼‽⁇⁈⁉⸮\u037e"
# Rule 4: the other characters of the Basic Multilingual Plane with the property Sentence_Terminal in PropList.txt of
# Unicode 17, and marks that end a verse, a section or a text, by script. Those beyond that plane would slow the search
# for all: re tries them one by one.
_SCRIPT_STOPS = (
    "\u0589"  # Armenian
    "\u05c3"  # Hebrew
    "\u061d-\u061f\u06d4"  # Arabic
    "\u0700-\u0702"  # Syriac
    "\u07f9"  # N'Ko
    "\u0837\u0839\u083d\u083e"  # Samaritan
    "\u0964\u0965"  # the dandas of Devanagari, Bengali, Gurmukhi, Gujarati, Oriya and others
    "\u0df4"  # Sinhala
    "\u0e5a\u0e5b"  # Thai
    "\u0f0d-\u0f12\u0f14"  # Tibetan
    "\u104a\u104b"  # Myanmar
    "\u1362\u1367\u1368"  # Ethiopic
    "\u166e"  # Canadian syllabics
    "\u1735\u1736"  # Philippine scripts
    "\u17d4\u17d5\u17da"  # Khmer
    "\u1803\u1809"  # Mongolian
    "\u1944\u1945"  # Limbu
    "\u1aa8-\u1aab"  # Tai Tham
    "\u1b4e\u1b4f\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d-\u1b7f"  # Balinese
    "\u1c3b\u1c3c"  # Lepcha
    "\u1c7e\u1c7f"  # Ol Chiki
    "\u2cf9-\u2cfb\u2cfe"  # Coptic
    "\u2e3c\u2e53\u2e54\u2e60\u2e61"  # stenographic and medieval
    "\u3002\ufe12\ufe15\ufe16\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"  # Chinese and Japanese
    "\ua4ff"  # Lisu
    "\ua60e\ua60f"  # Vai
    "\ua6f3\ua6f7"  # Bamum
    "\ua876\ua877"  # Phags-pa
    "\ua8ce\ua8cf"  # Saurashtra
    "\ua92f"  # Kayah Li
    "\ua9c8\ua9c9"  # Javanese
    "\uaa5d-\uaa5f"  # Cham
    "\uaaf0\uaaf1\uabeb"  # Meetei Mayek
)
_GREEK = "\u0370-\u03ff\u1f00-\u1fff"
_FULL_STOPS = ".．۔"  # those that also abbreviate (rule 3)
# Thai and Lao letters and vowel signs, and the zero-width space that some put between words (rule 5).
_UNSPACED = "\u0e01-\u0e4e\u0e81-\u0ece\u200b"
_CLAUSE = 15
# Verses end with these, one or several, blanks and the number of the verse between them: `། །`, `॥ १ ॥`.
_VERSE_ENDS = "\u0964\u0965\u0f0d\u0f0e"
_ARMENIAN, _ETHIOPIC, _CHINESE_OR_JAPANESE = "\u0531-\u058f", "\u1200-\u139f", "\u3041-\u30ff\u3400-\u9fff"
# The scripts in which a sentence begins with another letter than a word: Latin, Greek, Cyrillic, Armenian.
_LOWER_CASE = "".join(filter(str.islower, map(chr, [*range(0x590), *range(0x1E00, 0x2000)])))
# Without a width: NUL, zero-width spaces and joiners, marks of direction.
_INVISIBLE = "\0\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_NEXT_WORD = rf"""['"‘“„«‹»›(\[{{¿¡—{_INVISIBLE}-]* (?: (?<= [«‹] ) [^\S\n] )? [^\W_{_LOWER_CASE}]"""
# Quotes and brackets that close, but for the quotes that may as well open. Before white space, all close.
_CLOSING = r"’”»›)\]}」』）》】〉〕］｝｣〗〙〛"
# Words that carry a quotation on (rule 4), without those that begin like one.
_QUOTATIVE = "と(?!ころ|にかく|ても|はいえ|りあえず|うとう) | って"
_CONTINUING = rf"""
    [,，､、;；:：] | {_QUOTATIVE} | を | の(?!ち) | が(?!っ) | は(?![いじやっ]) | に(?![わこや]) | など | なんて
    | 的(?![确確]) | [\u4e00-\u9fff]{{0,6}} (?: [说說问問答喊叫] | (?<! 知 ) 道 ) [，。：,:] | 라[고는며] | 하[고며]
"""
_STOP = rf"[{_STOPS}{_SCRIPT_STOPS}]"
_GOES_ON = rf"""{_STOP}* (?: ['"{_CLOSING}]+ [^\S\n]* (?: {_CONTINUING} ) | (?<= [！？!?] ) (?: {_QUOTATIVE} ) )"""
# Marks that end a sentence whatever follows.
_SCRIPT_END = rf"""
    (?: (?<= [{_SCRIPT_STOPS}] ) | (?<= [{_CHINESE_OR_JAPANESE}!?] [!?] ) (?= [{_CHINESE_OR_JAPANESE}{_CLOSING}] ) )
    (?! (?<= [．۔] ) \d | (?<= ។ ) ល។ )
"""
_VERSE_NUMBER = rf"(?: (?<= [{_VERSE_ENDS}] ) (?: [^\S\n]* \d* [^\S\n]* [{_VERSE_ENDS}] )+ )?"

# It begins with a plain character class because the regex engine can then skip to the next candidate. It never looks
# beyond the line, so that a whole document can be searched at once; and into a run of stops only from its first one,
# so that a line of dots takes no time.
_BORDER = re.compile(
    rf"""
    [{_STOPS}{_SCRIPT_STOPS};:፡{_UNSPACED}]
    (?: (?<! [;:፡{_UNSPACED}] ) (?<! [{_STOPS}] {_STOP} ) (?! {_GOES_ON} ) {_STOP}*
        (?: {_SCRIPT_END} (?: ['"{_CLOSING}]+ (?!\S) | [{_CLOSING}]* [{_SCRIPT_STOPS}]* ) {_VERSE_NUMBER}
          | ['"“‘«‹{_CLOSING}{_INVISIBLE}]* (?: [^\S\n] [»›] )? [^\S\n]+ (?= {_NEXT_WORD} )
        )
      | (?<= [{_GREEK}] ; ) [^\S\n]+ (?= {_NEXT_WORD} (?<= [{_GREEK}] ) )
      | (?<= [{_ARMENIAN}] : ) [^\S\n]+ (?= {_NEXT_WORD} (?<= [{_ARMENIAN}] ) )
      | (?<= ፡ ) ፡ | (?<= [{_ETHIOPIC}] : ) :
      | (?<= [{_UNSPACED}]{{{_CLAUSE}}} ) [^\S\n]+ (?= [{_UNSPACED}] )
    )
    """,
    re.VERBOSE,
)
_LAST_WORD = re.compile(r"[\w.&'’-]+\Z")


def split_sentences(text: str) -> list[str]:
    """Split a document into sentences.

    Args:
        text: the document, in any script.

    Returns:
        The sentences in order, stripped of surrounding white space, none empty and none longer than `MAX_SENTENCE`
        characters.
    """
    pieces: list[str] = []
    start = 0
    for border in _BORDER.finditer(text):
        stop, end = border.span()
        if text[stop] in _FULL_STOPS and not text[stop + 1 : end].strip() and _abbreviates(text, start, stop, end):
            continue
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    sentences = list(filter(None, map(str.strip, "\n".join(pieces).split("\n"))))
    if max(map(len, sentences), default=0) > MAX_SENTENCE:
        return [piece for sentence in sentences for piece in bounded(sentence)]
    return sentences


def bounded(sentence: str) -> list[str]:
    """Strip a sentence and cut it at blanks into at most `MAX_SENTENCE` characters each; drop it if it is blank."""
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
    """Tell whether the full stop at `stop` ends an abbreviation; `following` is the start of the next sentence."""
    word = text[max(start, text.rfind(" ", start, stop) + 1) : stop]
    if not word.isalpha():
        # Less than what lies between blanks: "(Mr.", "the-Rev."
        match = _LAST_WORD.search(text, max(start, stop - 20), stop)
        if match is None:
            return False
        word = match.group()
    if len(word) == 1:
        # An initial, in scripts without case too; but "I" and digits end sentences ("So did I.", "It was 5.").
        return word.isalpha() and not word.islower() and word != "I"
    lowered = word.lower()
    if lowered in _ABBREVIATIONS:
        return True
    if lowered in _NUMBER_ABBREVIATIONS:
        return text[following : following + 1].isdigit()
    return "." in word and all(len(part) == 1 and part.isalpha() for part in word.split("."))


def load_splitter(name: str | None) -> Callable[[str], list[str]]:
    """Import the user's own sentence splitter.

    Args:
        name: MODULE:FUNCTION; the module may be a file in the working directory. None: `split_sentences`.

    Returns:
        The function, from a text to its sentences.

    Raises:
        InputError: if it cannot be imported, or does not split a text into strings.
    """
    if not name:
        return split_sentences
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"--sentence_splitter {name}: write it as MODULE:FUNCTION, as my_rules:split")
    sys.path.append(str(Path.cwd()))  # stays there, for worker processes
    try:
        splitter = getattr(importlib.import_module(module), function)
        sentences = splitter("One two. Three four.")
    except Exception as error:  # of any type: the user's own code
        raise InputError(
            f"--sentence_splitter {name} does not work: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise InputError(
            f"--sentence_splitter {name} returns {type(sentences).__name__}; it must return a list of texts"
        )
    return splitter
