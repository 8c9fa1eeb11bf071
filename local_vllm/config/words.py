"""Command-line words as text: what is mended before Hydra reads one, what to write instead of a bad one."""

from __future__ import annotations

import re


def one_line(word: str) -> str:
    """The word with line breaks as blanks, and without the comma that may end a list of config paths."""
    line = re.sub(r"\s*[\r\n\t]\s*", " ", word.strip())
    if re.match(r"\+{0,2}config_paths\s*=", line):
        line = re.sub(r"\s*=\s*", "=", re.sub(r",\s*\]$", "]", line), count=1)
    return line


def comma_separated(word: str) -> str | None:
    """The text after `=` of a list of URLs or files without brackets, which Hydra takes for a sweep."""
    key, _, text = word.partition("=")
    return text if "://" in text or key.lstrip("+") == "config_paths" else None


def shown(word: str) -> str:
    """The word as it may stand in a message: without its value where that is likely a secret."""
    key, equals, _ = word.partition("=")
    secret = re.search(r"api_?key|token|secret|password", key, re.IGNORECASE)
    return f"{key}=..." if equals and secret else word


def grammar_hint(word: str) -> str:
    """The end of an error message about a word that is not Hydra's grammar."""
    key, equals, value = word.partition("=")
    if word.startswith("--"):
        return f"; write +{word.lstrip('-').replace('-', '_')}" + ("" if equals else "=...")
    if not equals and key.endswith((".yaml", ".yml")):
        return f"; write +config_paths=[{key}]"
    if equals and value.startswith("{") and '"' in value:
        return "; keys inside {} stand without quotes: {mode:1}"
    if equals and not value.startswith(("[", "{")):
        return f"; quote the value: '{key}=\"...\"'"
    return "; write key=value, +key=value, ++key=value or ~key"
