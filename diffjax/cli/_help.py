"""How the options of a dataclass are read and described: tyro's own way, but for the words of the help.

A docstring is one paragraph of the help. What each name of a table stands for, and what its numbers mean, follows on
lines of their own. The words of the docstring have to say what a default of None means.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from typing_extensions import Doc
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from diffjax.config._registry import RUNS_OWN

_FEW = 7  # names that are listed as {a,b,c}; more have lines of their own
SHORT = {
    ("OtherSampler", "steps"): "--steps",
    ("OtherSampler", "clip"): "--clip",
    ("OtherGuidance", "scale"): "--guidance",
    ("OtherGuidance", "interval"): "--interval",
}
"""(dataclass, field) -> a second, shorter way to type the option."""

READER = ConstructorRegistry()


@READER.struct_rule
def _dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    cls: Any = info.type
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__.startswith("diffjax.")):
        return None  # such as tyro's own, around a union of commands
    hints, words = get_type_hints(cls, include_extras=True), _words(cls)
    start = {item.name: _default(item) for item in dataclasses.fields(cls)}
    start |= vars(info.default) if isinstance(info.default, cls) else {}
    return StructConstructorSpec(
        cls,
        tuple(
            StructFieldSpec(
                name,
                _shown(name, hints[name], value, SHORT.get((cls.__name__, name))),
                value,
                _help(words.get(name) or _words_of_group(hints[name]), hints[name]),
            )
            for name, value in start.items()
        ),
    )


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return tyro.MISSING if item.default is dataclasses.MISSING else item.default


def _shown(name: str, hint: Any, default: object, short: str | None) -> Any:
    """A hint, without its words, with how the kind of its values and its default are shown."""
    plain, *about = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    kinds = get_args(plain) if get_origin(plain) in (typing.Union, types.UnionType) else (plain,)
    if any(dataclasses.is_dataclass(kind) or get_origin(kind) is Annotated for kind in kinds):
        return hint
    metavar = None  # tyro's own
    if tyro.conf.Positional in about and plain is str:
        metavar = name.upper()
    elif get_origin(kinds[0]) is Literal and len(get_args(kinds[0])) > _FEW:
        metavar = "NAME"
    elif kinds[-1] is type(None):
        metavar = "|".join(map(_metavar, kinds[:-1]))
    shown: str | Callable[[str], str] | None = "" if default is None else "(default: none)" if default == () else None
    docs = [extra.documentation for extra in about if isinstance(extra, Doc)]
    if default is not None and docs:  # on a line of its own, below those of the names, whose defaults it replaces
        word = "here" if any("(default: " in doc for doc in docs) else "default"
        shown = lambda label: f"\n({word}: {label})"
    aliases = [short] if short else None
    for extra in (*about, tyro.conf.arg(metavar=metavar, help_behavior_hint=shown, aliases=aliases)):
        plain = plain if isinstance(extra, Doc) else Annotated[plain, extra]
    return plain


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}"
    if get_origin(kind) is tuple:
        *first, last = (f"{one.__name__.upper()}" for one in get_args(kind) if one is not ...)
        return f"[{last} [{last} ...]]" if ... in get_args(kind) else " ".join((*first, last))
    return kind.__name__.upper()


def _help(words: str, hint: object) -> str:
    """The words of a field's docstring, then what its hint says of the names and numbers of a table."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in words.split("\n\n")]
    docs = [extra.documentation for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Doc)]
    if RUNS_OWN in docs:  # the default of a new run is not that of this option
        paragraphs = [paragraph.partition(" Default: ")[0] for paragraph in paragraphs]
    return "\n".join(filter(None, (*paragraphs, *docs)))


def _words_of_group(hint: object) -> str:
    """The docstring of a dataclass, which is the help of a field that holds one."""
    return description(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else ""


def _words(cls: type) -> dict[str, str]:
    """Field -> its docstring, of a dataclass and those it is made of; from the source, for Python keeps none."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        for field, text in itertools.pairwise(_source(base).body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return found


@functools.cache
def _source(cls: type) -> ast.ClassDef:
    tree = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(tree, ast.ClassDef)
    return tree


def description(command: type) -> str:
    """The docstring of a command, read from its source where Python has dropped it (-OO)."""
    return ast.get_docstring(_source(command)) or ""
