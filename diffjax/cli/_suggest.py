"""What a mistyped word of a command line may have meant: the option, the name or the command that is nearest.

diffjax train toy2d --stpes 5      Unrecognized options: --stpes, 5; did you mean --steps?
diffjax train toy2d --steps 10.0   steps: a whole number is needed, got 10.0; did you mean 10?
"""

import dataclasses
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import get_type_hints

from diffjax.cli._help import SHORT
from diffjax.config import PRESETS
from diffjax.config._registry import did_you_mean

_MISPLACED = r"Unrecognized or misplaced options: (.*) Arguments are applied to"


def explain(complaint: str, argv: Sequence[str], commands: Mapping[str, type]) -> str:
    """tyro's complaint, with "; did you mean ...?" where a known word is near.

    Args:
      complaint: what tyro says, in one line.
      argv: the command line.
      commands: name -> the dataclass of its options.
    """
    complaint = complaint.rstrip(".")
    if choice := re.match(r"invalid choice '(.*)' for argument '.*'\. Expected one of \((.*)\)", complaint):
        return complaint + did_you_mean(choice[1], re.findall(r"'([^']*)'", choice[2]))
    if missing := re.match(r"Missing from diffjax \w+: (\S+) (.*?)\.? \(required\)", complaint):
        return f"{missing[1]} is missing: {missing[2][0].lower()}{missing[2][1:]}"
    if misplaced := re.match(_MISPLACED, complaint):
        complaint = "Unrecognized options: " + ", ".join(re.findall(r"(\S+) \(applied to", misplaced[1]))
    if not argv:
        return complaint
    if argv[0] not in commands:
        return complaint + did_you_mean(argv[0], [*commands, "--help", "--version"])
    hints = dict(_options(commands[argv[0]]))
    if wrong := _wrong_value(complaint, {name.removeprefix("--"): hint for name, hint in hints.items()}):
        return wrong
    options = list(hints)
    for word in argv[1:]:
        typed = word.partition("=")[0].replace("_", "-")
        if typed.startswith("--") and typed not in options:
            unknown = complaint if complaint.startswith("Unrecognized") else f"Unrecognized options: {word}"
            return unknown + _nearest_option(typed, options)
    if argv[0] == "train" and len(argv) > 1 and not argv[1].startswith("-"):
        return complaint + ("" if argv[1] in PRESETS else did_you_mean(argv[1], PRESETS))
    return complaint


def _wrong_value(complaint: str, hints: Mapping[str, object]) -> str | None:
    """What a value should have been, where tyro says that it cannot be read as what its option takes."""
    said = re.match(r"Error parsing --(\S+?)(?:/--\S+)?: (.*)", complaint)
    hint = hints.get(said[1].replace("_", "-")) if said else None
    if said is None or hint is None:
        return None
    lists = re.findall(r"(?:from|arguments:?) \[('.*?')\]", said[2])
    words = re.findall(r"'((?:[^'\\]|\\.)*)'", lists[0] if lists else said[2].rpartition(": ")[2])
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    several = typing.get_origin(hint) is tuple or typing.get_origin(kinds[0]) is tuple
    if several:
        kinds = list(typing.get_args(hint if typing.get_origin(hint) is tuple else kinds[0]))
    if not words or kinds[0] not in (int, float) or {*kinds} - {int, float, ...}:
        return None
    whole = "whole " if kinds[0] is int else ""
    many = f"{whole}numbers" if ... in kinds else f"{len(kinds)} {whole}numbers"
    needed = f"{many} are needed" if several else f"a {whole}number is needed"
    return f"{said[1]}: {needed}, got {' '.join(words)}{_as_whole(words[0]) if kinds == [int] else ''}"


def _as_whole(word: str) -> str:
    """10.0 and 1e3 may mean 10 and 1000."""
    try:
        number = float(word)
    except ValueError:
        return ""
    return f"; did you mean {int(number)}?" if math.isfinite(number) and number == int(number) else ""


def _nearest_option(typed: str, options: Sequence[str]) -> str:
    """By the whole of it, or by its last part: --learning-rate may be --optimiser.learning-rate."""
    ends = {name: "--" + name.split(".")[-1].lstrip("-") for name in options}
    same = [name for name in options if ends[name] == typed]
    return f"; did you mean {' or '.join(same)}?" if same else did_you_mean(typed, options)


def _options(command: type, path: str = "") -> Iterator[tuple[str, object]]:
    """The options of a dataclass as they are typed, each with the type of its value.

    Those of a dataclass whose name is empty have no prefix.
    """
    hints, annotated = get_type_hints(command), get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        hint, name = hints[field.name], field.name.replace("_", "-")
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            flat = any(
                getattr(extra, "name", None) == "" for extra in getattr(annotated[field.name], "__metadata__", ())
            )
            yield from _options(hint, path if flat else f"{path}{name}.")
            continue
        yield f"--{path}{name}", hint
        if short := SHORT.get((command.__name__, field.name)):
            yield short, hint
        if isinstance(field.default, bool):
            yield f"--{path}no-{name}", bool
