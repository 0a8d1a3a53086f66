"""What may be a secret in what is written or printed is replaced by ``***``.

A secret is known by where it stands (the login of a URL, what follows a name like ``api_key``), by its shape
(``hf_...``), or because it was seen before: in the environment, the command line or a configuration. One that was
seen is masked wherever it occurs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote, unquote

MASK = "***"
#: From this length on a secret that was seen is masked wherever it occurs; a shorter one could be any word.
LEAST = 8

#: Secrets of this command: of its arguments and its configuration files.
_seen: set[str] = set()

# ---- names


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Whatever is called so is a secret.
_SECRETS = _words(
    "apikey apikeys auth authorization bearer credential credentials passphrase passwd password passwords pwd secret "
    "secrets"
)
#: Keys and tokens that give access; others may, see :func:`_level`.
_ACCESS = _words(
    "access account api app auth bearer bot client comet deploy encryption github gitlab hf hub license neptune oauth "
    "openai private refresh secret service session signing ssh wandb"
)
#: Keys and tokens that are parts of data, models and tokenizers.
_PLAIN = _words(
    "add answer attention bos by cache cls column dict end eos experiment field first foreign group image index input "
    "instruction json label last lookup map mask metric new option output pad per primary prng query question rng row "
    "sep sort special start state stop text unk"
)
#: A name that ends so says something about a secret, and holds none.
_ABOUT = _words(
    "count dim dir directory enabled env error exception file folder id ids index indices length limit method mode "
    "name names path paths size sock type url var variable"
)
_NOTHING = frozenset({"", MASK, "null", "none", "true", "false"})

Level = Literal["", "weak", "strong"]


@lru_cache(4096)
def _level(name: str) -> Level:
    """How surely what is called ``name`` is a secret: by the words of its last part, ``api_key`` of ``data.api_key``.

    A ``strong`` name says so by itself. A ``weak`` one (``token``, ``key``, ``my_key``) can also be a plain word, and
    what stands after it in running text is masked only where it looks like a secret itself.
    """
    last = name.rstrip("+").rpartition(".")[2]
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", last)]
    if not words or words[-1] in _ABOUT:
        return ""
    if not _SECRETS.isdisjoint(words):
        return "strong"
    before = words[-2] if len(words) > 1 else ""
    if words[-1] in ("key", "keys", "token", "tokens") and before in _ACCESS:
        return "strong"
    return "weak" if words[-1] in ("key", "token") and before not in _PLAIN else ""


def _is_secret(value: str, level: Level) -> bool:
    """Whether ``value``, which has a name of ``level``, is a secret, and not a number, a file or a special token."""
    if not level or value.lower() in _NOTHING or (os.sep in value and os.path.exists(os.path.expanduser(value))):
        return False
    return level == "strong" or not re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|<.*>|\[.*\]", value, re.IGNORECASE)


def _looks_random(text: str) -> bool:
    """Whether part of ``text`` is a long mixture of letters and digits, and no commit."""
    return any(
        len(part) >= 16 and re.search(r"\d", part) and re.search("[A-Za-z]", part) and not _COMMIT.fullmatch(part)
        for part in re.split(r"[^A-Za-z0-9+]", text)
    )


_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z]?[a-z]*[.,;:]*")

# ---- shapes

_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-(?=[\w-]{0,99}\d)[\w-]{20,}"
    r"|xox[a-z]-[A-Za-z0-9-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}"
    r"|eyJ[\w-]{10,}(?:\.[\w-]+)*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r")",
    re.DOTALL,
)
_HEADER = re.compile(r"\b(Bearer|Basic)([ \t]+)(?![a-z]+\b(?![\w.~+/=-]))[\w.~+/-]{8,}=*")
#: ``Path`` makes one slash of two.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}:/{1,2}[^\s'\"<>]+")
_LOGIN = re.compile(
    r"^([^:]+:/{1,2})(?!git@|\*\*\*@)([^/?#]*(?=@)|[^/@:]*:(?!\d+(?:[/?#]|$)).*(?=@))@",
)
#: As proxies are named.
_HOST_LOGIN = re.compile(r"(?<![\w/:.@%+-])([\w.%+-]+:[^\s:@/'\"]{3,})@(?=(?:[\w-]+\.)+\w|localhost\b)")
_QUERY = re.compile(r"([?&#;])([\w.~-]+)=([^&#;]+)")
_PAIR = re.compile(
    r"(?<![\w.])(?<![\w.]-)(?P<name>[A-Za-z][\w.-]*)(?P<between>[\"']?[ \t]*[=:][ \t]*)"
    r"(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&{}()\[\]\"']+)"
)
_FLAG = re.compile(
    r"(?<!-)--(?P<name>\w[\w.-]*)(?P<between>\+?[ \t]+)(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s\"'-][^\s\"']*)"
)


class _Masking:
    """One pass; ``found`` are the secrets in it that are known by their name or as a login."""

    def __init__(self) -> None:
        self.known = _pattern(frozenset([*_seen, *_of_environment()]))
        self.found: set[str] = set()

    def text(self, text: str) -> str:
        if self.known is not None:
            text = self.known.sub(MASK, text)
        text = _SHAPES.sub(MASK, _URL.sub(self._url, text))
        text = _HEADER.sub(rf"\1\2{MASK}", _HOST_LOGIN.sub(self._host_login, text))
        return _FLAG.sub(self._pair, _PAIR.sub(self._pair, text))

    def _url(self, found: re.Match[str]) -> str:
        url = found[0]
        if login := _LOGIN.match(url):
            self._keep_login(login[2])
            url = f"{login[1]}{MASK}@{url[login.end() :]}"
        return _QUERY.sub(self._query, url)

    def _query(self, found: re.Match[str]) -> str:
        mark, name, value = found.groups()
        signs = re.search(r"(^|-)(sig|signature)$", name, re.IGNORECASE)
        return f"{mark}{name}={MASK}" if signs or _level(name) or _looks_random(value) else found[0]

    def _host_login(self, found: re.Match[str]) -> str:
        self._keep_login(found[1])
        return f"{MASK}@"

    def _keep_login(self, login: str) -> None:
        user, colon, password = login.partition(":")
        self.found |= {password, unquote(password)} if colon else {user, unquote(user)}

    def _pair(self, found: re.Match[str]) -> str:
        value, between, level = found["value"], found["between"], _level(found["name"])
        quote_mark = value[0] if value[0] in "\"'" else ""
        bare = value.strip(quote_mark) if quote_mark else value
        if not _is_secret(bare, level):
            return found[0]
        if level == "weak" and not _looks_random(bare):
            return found[0]
        # "api_key: pass it" goes on with a sentence.
        if not quote_mark and "=" not in between and _WORD.fullmatch(bare):
            return found[0]
        return f"{found[0][: found.start('value') - found.start()]}{quote_mark}{MASK}{quote_mark}"

    def value(self, value: Any, level: Level = "") -> Any:
        """``value`` itself where nothing in it is masked."""
        if isinstance(value, str):
            return self._named(value, level)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if level != "strong" or len(str(value)) < 4:  # a PIN; what is shorter counts something
                return value
            self.found.add(str(value))
            return MASK
        if isinstance(value, os.PathLike):
            text = os.fspath(value)
            changed = self._named(text, level) if isinstance(text, str) else text
            return value if changed == text else changed
        inner: Level = "strong" if level == "strong" else ""
        if isinstance(value, argparse.Namespace):
            kept = self.value(vars(value), level)
            return value if kept is vars(value) else type(value)(**kept)
        if isinstance(value, Mapping):
            pairs = [(self._key(k), self.value(v, self._level_of(k, inner))) for k, v in value.items()]
            if all(a is b and c is d for (a, c), (b, d) in zip(pairs, value.items(), strict=True)):
                return value
            changed_copy: Any = copy.copy(value)
            changed_copy.clear()
            changed_copy.update(pairs)
            return changed_copy
        if type(value) in (list, tuple):
            parts = [self.value(part, inner) for part in value]
            return value if all(a is b for a, b in zip(parts, value, strict=True)) else type(value)(parts)
        return value

    def _named(self, text: str, level: Level) -> str:
        if not _is_secret(text, level):
            changed = self.text(text)
            return text if changed == text else changed
        if level == "strong" or not re.fullmatch("[a-z_]+", text):  # "question" may be a column's name
            self.found.add(text)
        return MASK

    def _key(self, key: Any) -> Any:
        if not isinstance(key, str) or re.fullmatch("[a-z_.]+", key):
            return key
        changed = self.text(key)
        return key if changed == key else changed

    @staticmethod
    def _level_of(key: Any, outer: Level) -> Level:
        return "" if key == "class_path" else outer or (_level(key) if isinstance(key, str) else "")

    def words(self, words: Sequence[str]) -> list[str]:
        masked = []
        for before, word in zip(["", *words], words, strict=False):
            flag, equals, value = word.partition("=")
            if word.startswith("-") and equals:
                masked.append(f"{flag}={self._word(value, _level(flag.lstrip('-')))}")
            elif before.startswith("-") and "=" not in before and not word.startswith("--"):
                masked.append(self._word(word, _level(before.lstrip("-"))))
            else:
                masked.append(self._word(word, ""))
        return masked

    def _word(self, word: str, level: Level) -> str:
        """An argument's value, which may be a mapping or a list in YAML."""
        if word.lstrip()[:1] in ("{", "["):
            import yaml

            try:
                parsed = yaml.safe_load(word)
            except (yaml.YAMLError, ValueError, RecursionError):
                parsed = None
            if isinstance(parsed, dict | list):
                changed = self.value(parsed, level)
                return word if changed is parsed else json.dumps(changed, default=str)
        return self._named(word, level)


def begin(arguments: Sequence[str]) -> None:
    """Forget the secrets of an earlier command and remember those of this one, whose words are ``arguments``."""
    _seen.clear()
    passing = _Masking()
    passing.words(arguments)
    _remember(passing)


def remember(config: Any) -> None:
    """Remember the secrets in a configuration."""
    passing = _Masking()
    passing.value(config)
    _remember(passing)


def _remember(passing: _Masking) -> None:
    _seen.update(secret for secret in passing.found if len(secret) >= LEAST)


def masked(text: str) -> str:
    """``text`` without secrets.

    >>> masked("fetching https://me:password@example.org/rows.json?split=test&token=abc")
    'fetching https://***@example.org/rows.json?split=test&token=***'
    """
    return _Masking().text(text)


def masked_values(config: Any) -> Any:
    """A configuration, or anything of mappings, lists and texts, without secrets; what holds none is kept as it is.

    >>> masked_values({"api_key": "swordfish", "target_modules": ["key", "k_proj"], "virtual_tokens": 20})
    {'api_key': '***', 'target_modules': ['key', 'k_proj'], 'virtual_tokens': 20}
    """
    return _Masking().value(config)


def mask_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Mask what a checkpoint says beside its tensors, in place."""
    for key in checkpoint.keys() - {"state_dict", "optimizer_states"}:
        checkpoint[key] = masked_values(checkpoint[key])


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command line without secrets.

    >>> masked_words(["--data.api_key", "swordfish", "--adapter.target_modules", "[key, value]"])
    ['--data.api_key', '***', '--adapter.target_modules', '[key, value]']
    """
    return _Masking().words(words)


def masked_url(url: str) -> str:
    """An address of which host and path are of use alone: neither login, a query's values, nor a path's tokens.

    >>> masked_url("https://me:secret@example.org/simple?page=abc")
    'https://***@example.org/simple?page=***'
    """
    url = re.sub(r"//.*@", f"//{MASK}@", url)
    url = re.sub(r"=[^&#]*", f"={MASK}", url)
    return re.sub(r"(?<=[^/]/)(?=[^/]*\d)(?=[^/]*[A-Za-z])\w{16,}(?=[/?#]|$)", MASK, url)


def masked_parts(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where a recorded configuration holds something masked, and what is left of it."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from masked_parts(value, (*path, str(key)))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from masked_parts(value, path)
    elif isinstance(config, str) and re.search(r"(^|[/=:])\*\*\*($|[/@&#;:])", config):
        yield path, config


# ---- the environment

_NAME = re.compile(r"(TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|KEYS?|CREDENTIALS?)(_|$)|(^|_)PASS$", re.IGNORECASE)


def _of_environment() -> Iterator[str]:
    """The values of variables that are called secrets, and the passwords of URLs in all of them."""
    for name, value in os.environ.items():
        last = name.lower().rpartition("_")[2]
        if _NAME.search(name) and last not in _ABOUT - {"id"} and not os.path.exists(value):
            yield value
        if "@" in value:
            for url in _URL.findall(value):
                if (login := _LOGIN.match(url)) and (password := login[2].partition(":")[2]):
                    yield from (password, unquote(password))


@lru_cache(8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """What finds any of ``secrets``, however it is written, the longest first."""
    written = {
        form
        for secret in secrets
        if len(secret) >= LEAST
        for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1])
    }
    ordered = sorted(written, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
