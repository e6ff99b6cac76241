"""Check that the files, vocabulary and rules of a tokenizer agree with each other and with a checkpoint's tokenizer.

A disagreement raises no error by itself: text silently becomes other ids than those a model was trained on.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..utils.environment import is_first_process
from ..utils.errors import InputError, one_line
from ..utils.files import read_json


# The ids of the special tokens, by position. [PAD] is 0 as in every released BERT.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Share of the text or of the vocabulary above which a defect is reported.
NOTABLE = 0.01
# Share of a vocabulary that may be edited; beyond it, it counts as another vocabulary.
_MAX_EDITED = 0.1
_BLANK = re.compile(r"[ \t\r]")
# Files of tokenizers of other algorithms.
OTHER_ALGORITHMS = {"*.model": "SentencePiece", "merges.txt": "BPE", "vocab.json": "BPE"}
_ONLY_WORDPIECE = (
    "only WordPiece ones are supported, as BERT's, DistilBERT's and ELECTRA's are, not those of RoBERTa and XLM-R"
)
# Settings of tokenizer_config.json that are true or false, and the rules of tokenizer.json that they decide.
_CONFIGURED = {
    "do_lower_case": "normalizer.lowercase",
    "strip_accents": "normalizer.strip_accents",
    "tokenize_chinese_chars": "normalizer.handle_chinese_chars",
}
# Entries of released vocabularies reserved for new words, and special tokens.
UNUSED, _RESERVED = re.compile(r"\[unused\d+\]"), re.compile(r"\[\w+\]")


def check_tokenizer(tokenizer: Any, name: str = "the tokenizer") -> None:
    """Check that a tokenizer is a fast one with BERT's five special tokens and the ids 0 … len − 1.

    Raises:
        InputError: if it is not.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"{name} is not backed by the tokenizers library; save it again with a current transformers")
    vocabulary = tokenizer.get_vocab()
    for usual in SPECIAL_TOKENS:
        role = f"{usual[1:-1].lower()}_token"
        token = getattr(tokenizer, role)
        if token is None:
            raise InputError(
                f"{name} has no {role} ({usual}), which BERT needs; name it in tokenizer_config.json, as "
                f"{json.dumps({role: usual})}"
            )
        if token not in vocabulary or vocabulary[token] >= tokenizer.vocab_size:
            raise InputError(f"{name}: the {role} {token} is not in the vocabulary; add it and train again")
        if token != usual and usual in vocabulary:
            raise InputError(
                f"{name}: the {role} is {token!r}, although the vocabulary has {usual}; correct it in "
                "tokenizer_config.json or special_tokens_map.json"
            )
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise InputError(f"{name}: the ids are not 0 … {len(vocabulary) - 1} without gaps; two tokens share an id")


def check_files(path: Path) -> None:
    """Check the files of a tokenizer before it is loaded.

    Raises:
        InputError: if a file is missing or damaged, no WordPiece tokenizer, or contradicts another one.
    """
    if not path.is_dir():
        raise InputError(f"{path} is a file; name the directory of the tokenizer")
    vocabulary, serialized = path / "vocab.txt", path / "tokenizer.json"
    if not vocabulary.is_file() and not serialized.is_file():
        other = next((kind for name, kind in OTHER_ALGORITHMS.items() if any(path.glob(name))), None)
        if other:
            raise InputError(f"{path} holds a {other} tokenizer; {_ONLY_WORDPIECE}")
        raise InputError(f"{path} is not a tokenizer directory: it has neither tokenizer.json nor vocab.txt")
    _check_configuration(path)
    if serialized.is_file():
        try:
            content = json.loads(serialized.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{serialized} is truncated or damaged ({one_line(error)})") from None
        model = content.get("model") if isinstance(content, dict) else None
        vocab = model.get("vocab") if isinstance(model, dict) else None
        kind = model.get("type") if isinstance(model, dict) else None
        if kind is not None and kind != "WordPiece":
            raise InputError(f"{serialized} is a {kind} tokenizer; {_ONLY_WORDPIECE}")
        if not isinstance(vocab, dict):
            raise InputError(f"{serialized} holds no WordPiece vocabulary; use one of hfbert tokenizer's")
        _check_special_tokens(serialized, set(vocab))
    if vocabulary.is_file():
        tokens = _check_vocabulary_lines(vocabulary)
        if serialized.is_file():
            _check_same_tokens(path, tokens, content)
        elif not _says_class(path):
            capitals = any(token != token.lower() for token in tokens if not _RESERVED.fullmatch(token))
            raise InputError(
                f"{path}: vocab.txt alone does not say by which rules text is split; add a tokenizer_config.json with "
                f'{{"tokenizer_class": "BertTokenizer", "do_lower_case": {"false" if capitals else "true"}}} '
                f"(the vocabulary has {'' if capitals else 'no '}capital letters)"
            )


def _check_same_tokens(path: Path, tokens: list[str], content: dict[str, Any]) -> None:
    """Refuse a vocab.txt that differs from tokenizer.json, because only tokenizer.json would be read."""
    added = [entry for entry in content.get("added_tokens") or [] if isinstance(entry, dict)]
    ids = [*content["model"]["vocab"].items(), *((entry.get("content"), entry.get("id")) for entry in added)]
    serialized = {number: token for token, number in ids if isinstance(number, int)}
    different = [number for number, token in enumerate(tokens) if serialized.get(number) != token]
    lacking = len(content["model"]["vocab"]) - len(tokens)
    if different or lacking > 0:
        number = different[0] if different else len(tokens)
        line = repr(tokens[number]) if different else "missing"
        raise InputError(
            f"{path}: vocab.txt and tokenizer.json differ in {len(different) + max(0, lacking)} tokens (line "
            f"{number + 1} of vocab.txt is {line}, tokenizer.json has {serialized.get(number)!r} under that id); "
            "remove the one that is out of date, or give it the other's tokens"
        )


def _check_vocabulary_lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)})") from None
    if text.startswith("\ufeff"):
        raise InputError(f"{path} begins with a byte order mark, which would be part of the first token; remove it")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    seen: dict[str, int] = {}
    for number, line in enumerate((line.removesuffix("\r") for line in lines), start=1):
        if not line.strip():
            raise InputError(f"{path}: line {number} is blank; every line must be one token")
        if _BLANK.search(line):
            raise InputError(f"{path}: line {number} is {line[:40]!r}; every line must be one token, without blanks")
        if line in seen:
            raise InputError(f"{path}: lines {seen[line]} and {number} are both {line!r}; ids would shift")
        seen[line] = number
    _check_special_tokens(path, set(seen))
    return list(seen)


def _check_special_tokens(path: Path, tokens: set[str]) -> None:
    """Refuse missing special tokens: transformers would append them to the vocabulary, without an embedding."""
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise InputError(f"{path}: the vocabulary lacks {', '.join(missing)}; BERT needs all of them")


def _check_configuration(path: Path) -> None:
    content = _configuration(path)
    config = path / "tokenizer_config.json"
    for name in _CONFIGURED:
        if not isinstance(content.get(name), bool | None) or (
            content.get(name, 0) is None and name != "strip_accents"
        ):
            raise InputError(f"{config}: {name} is {json.dumps(content[name])}; it must be true or false")
    length = content.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or length < 3):
        raise InputError(
            f"{config}: model_max_length is {json.dumps(length)}; it must be a number of tokens, of at least 3"
        )


def check_as_written(tokenizer: Any, path: Path) -> None:
    """Refuse a tokenizer that transformers loads with another vocabulary, or other rules, than the files hold.

    transformers takes the class and case from tokenizer_config.json, and lower case if that does not mention it.

    Raises:
        InputError: if they differ.
    """
    if not path.is_dir():
        return
    backend = tokenizer.backend_tokenizer
    kind, size = type(backend.model).__name__, backend.get_vocab_size(with_added_tokens=False)
    expected = _vocabulary_size(path)
    if kind != "WordPiece" or size != expected:
        raise InputError(
            f"{path}: transformers loads a {type(tokenizer).__name__}, with {size} {kind} tokens, not the {expected} "
            'WordPiece ones of the file; set "tokenizer_class": "BertTokenizer" in tokenizer_config.json'
        )
    if not (path / "tokenizer.json").is_file():
        return
    written, loaded = (_rules(backend) for backend in (_read_backend(path), tokenizer.backend_tokenizer))
    different = [name for name in sorted(written.keys() | loaded.keys()) if written.get(name) != loaded.get(name)]
    if not different:
        return
    shown = [
        f"{name} is {json.dumps(written.get(name))} in tokenizer.json, {json.dumps(loaded.get(name))} as loaded"
        for name in different[:3]
    ]
    if set(different) <= set(_CONFIGURED.values()):
        remedy = f"give {', '.join(_CONFIGURED)} in tokenizer_config.json the values of tokenizer.json"
    else:
        remedy = (
            'for tokenizer.json as it is, set "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json'
        )
    raise InputError(f"{path}: transformers does not load what is written: {'; '.join(shown)}; {remedy}")


def _vocabulary_size(path: Path) -> int:
    if (path / "tokenizer.json").is_file():
        return _read_backend(path).get_vocab_size(with_added_tokens=False)
    return len(_check_vocabulary_lines(path / "vocab.txt"))


def _read_backend(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # tokenizers raises no narrower type
        raise InputError(f"{path / 'tokenizer.json'} is damaged ({one_line(error)})") from None


def _rules(backend: Tokenizer) -> dict[str, Any]:
    """Collect the rules that decide the ids of a text besides the vocabulary, under dotted names."""
    content = json.loads(backend.to_str())
    del content["model"]["vocab"]
    return {
        f"{part}.{key}": value
        for part in ("normalizer", "pre_tokenizer", "model")
        for key, value in (content[part] or {"type": None}).items()
    }


def check_case(tokenizer: Any, path: Path) -> None:
    """Detect a normalizer of another case or accents than the vocabulary, by entries that no text can reach.

    Raises:
        InputError: if no file states the case; transformers then lower-cases without having been asked to.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None:
        return
    special, vocabulary = set(tokenizer.all_special_tokens), tokenizer.get_vocab()
    tokens = [token for token in sorted(vocabulary, key=vocabulary.__getitem__) if not _RESERVED.fullmatch(token)]
    words = [token.removeprefix("##") for token in tokens if token not in special]
    # The normalizer puts blanks around ideographs; ignore them.
    lost = [word for word in words if "".join(normalizer.normalize_str(word).split()) != word]
    name, rules = f"the tokenizer {path}", _rules(tokenizer.backend_tokenizer)
    if len(lost) > NOTABLE * len(words):
        what = (
            f"{len(lost)} of the {len(words)} entries of the vocabulary ({', '.join(lost[:3])}, …) cannot occur in "
            f"any text, because it {_verbs(rules)}"
        )
        if path.is_dir() and not _says_case(path):
            raise InputError(
                f"{name}: {what}; nothing there says that it should: add a tokenizer_config.json with "
                '{"do_lower_case": false} for a cased vocabulary, {"strip_accents": false} for an uncased one that '
                "keeps accents"
            )
        warn(f"{name}: {what}; if that is not meant, correct do_lower_case or strip_accents")
    # Georgian letters have upper-case forms, but no capitals.
    capitals = any(word != word.lower() for word in words) or all(word == word.title() for word in words)
    if not rules.get("normalizer.lowercase", True) and not capitals:
        warn(f"{name} keeps case, but its vocabulary has no capital letter: words with one become [UNK]")


def _verbs(rules: dict[str, Any]) -> str:
    lowercase, strip = rules.get("normalizer.lowercase"), rules.get("normalizer.strip_accents")
    strip = lowercase if strip is None else strip
    return " and ".join(["lower-cases"] * bool(lowercase) + ["strips accents"] * bool(strip)) or "normalizes text"


def _says_case(path: Path) -> bool:
    return (path / "tokenizer.json").is_file() or "do_lower_case" in _configuration(path)


def _says_class(path: Path) -> bool:
    return (path / "config.json").is_file() or "tokenizer_class" in _configuration(path)


def _configuration(path: Path) -> dict[str, Any]:
    config = path / "tokenizer_config.json"
    content = read_json(config, "the tokenizer's configuration") if config.is_file() else {}
    if not isinstance(content, dict):
        raise InputError(f"{config} must hold a JSON object, not a {type(content).__name__}")
    return content


def check_same_vocabulary(tokenizer: Any, other: Any, name: str, model: str) -> None:
    """Compare a tokenizer with the checkpoint's own, because embeddings belong to tokens.

    A few changed tokens are an edited vocabulary and give a warning.

    Args:
        tokenizer: the tokenizer to use.
        other: the checkpoint's tokenizer.
        name: of `tokenizer`, for messages.
        model: the checkpoint's name, for messages.

    Raises:
        InputError: if the vocabularies are different ones.
    """
    ours, theirs = ({number: token for token, number in one.get_vocab().items()} for one in (tokenizer, other))
    changed = [number for number in sorted(ours.keys() & theirs.keys()) if ours[number] != theirs[number]]
    edited = [number for number in changed if not UNUSED.fullmatch(theirs[number])]
    what = f"{name} and that of --model {model} differ"
    if changed:
        first = (edited or changed)[0]
        what += (
            f" in {len(changed)} of {len(theirs)} tokens (id {first} is {ours[first]!r} here, {theirs[first]!r} there)"
        )
    if len(edited) > _MAX_EDITED * min(len(ours), len(theirs)):
        raise InputError(
            f"{what}: its embeddings belong to other words; use the tokenizer in {model}, or put this one there if "
            "the vocabulary was changed on purpose"
        )
    if changed:
        warn(f"{what}; their embeddings start from those of the old tokens")
    rules = [_rules(one.backend_tokenizer) for one in (tokenizer, other)]
    for rule in sorted(rules[0].keys() | rules[1].keys()):
        here, there = (one.get(rule) for one in rules)
        if here != there:
            warn(f"{name} has {rule} {here}, that of --model {model} {there}")


@functools.cache
def warn(text: str) -> None:
    """Print a warning once, by the first process only."""
    if is_first_process():
        print(f"warning: {text}", flush=True)
