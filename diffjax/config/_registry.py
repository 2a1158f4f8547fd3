"""Tables of what names stand for, and the dataclasses of options that are made of them.

    TABLE = Names({"edm": EDM, "churn": preset("...", Churn, s_churn=10.0), "constant": constant, ...})

    @options(name=TABLE)                    name: one of TABLE
    class ProcessConfig: ...                sigma_min, rho, s_churn, ...: the numbers that its rows take, or None

    {name: "edm", sigma_max: 20} --construct--> EDM(sigma_max=20)

A row is a class; a `preset` of one, whose positional arguments are fixed and whose keywords are other defaults, a
`part` among them made when the row is; a function that makes what the name stands for, in `made`; or a function, to
which numbers are bound and which is not called. Numbers, their meanings and their defaults are read from the signature
and the docstring of the row. A field that the dataclass declares itself is shared: rows that have a parameter of this
name get its value.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, TypeVar

from typing_extensions import Doc

from diffjax._typing import Scalar

T = TypeVar("T")
Row: TypeAlias = Callable[..., Any]
"""What a name stands for: a class, a preset of one, or a function."""
Fields: TypeAlias = list[tuple[str, Any, Any]]
"""(name, type, default) of the fields of a dataclass."""
RUNS_OWN = "(default: the run's own)"
"""What the help says of an option that is the run's unless it is given."""


class Names(dict[str, T]):
    """A table by name; a name that is not in it is a `KeyError` that lists those that are, and the nearest."""

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(unknown("name", name, self))


def preset(words: str | None, cls: Row, *fixed: Any, **defaults: Any) -> functools.partial[Any]:
    """A class with some arguments fixed and other defaults, with the words of its help."""
    row = functools.partial(cls, *fixed, **defaults)
    row.__doc__ = words
    return row


def part(cls: Row, **numbers: Any) -> functools.partial[Any]:
    """An argument of a preset that is made when the preset is: made at import, an array starts JAX's backend."""
    return functools.partial(cls, **numbers)


def made(make: Row) -> functools.partial[Any]:
    """A function that makes what a name stands for, from numbers; its words and numbers are those of its docstring."""
    return preset(make.__doc__, make)


def unknown(path: str, value: object, known: Iterable[str]) -> str:
    """The message for a name that is none of those known."""
    return f"{path}: one of {', '.join(known)} is needed, got {value!r}{did_you_mean(value, known)}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of a message: the known name nearest to a word, as a question; nothing where none is near.

    >>> did_you_mean("ddmi", ["euler", "ddim"])
    '; did you mean ddim?'
    """
    word = str(word)
    near = difflib.get_close_matches(word, known, n=5)
    near.sort(key=lambda name: sorted(name) != sorted(word))  # two letters in the wrong order
    return f"; did you mean {near[0]}?" if near else ""


def construct(
    kind: str, table: Mapping[str, Row], config: Any, *first: Any, field: str = "name", **context: Any
) -> Any:
    """What a name stands for, with the numbers that are given: a class is made, to a function they are bound.

    Args:
      kind: what messages call the group of options.
      table: that the name is one of.
      config: a dataclass by `options`.
      *first: the first arguments of a class.
      field: the field of the configuration that holds the name.
      **context: arguments for the rows that have a parameter of this name, whatever the configuration says.

    Raises:
      ValueError: the configuration has a number that the row does not take.
    """
    name = getattr(config, field)
    row, values = table[name], vars(config)
    taken = _parameters(row)
    for number in {number for other in table.values() for number in numbers_of(other)} - config.declared:
        if values.get(number) is not None and number not in taken:
            belongs = belongs_to(table, number)
            raise ValueError(f"{kind}.{number}: {name} has no such number, got {values[number]}; {belongs}")
    for number, (_, default) in numbers_of(row).items():
        value = values.get(number)
        if value is not None and not math.isfinite(value) and default != math.inf:  # a loss is made within a trace
            raise ValueError(f"{kind}.{number}: a finite number is needed, got {value}")
    given = {name: value for name, value in values.items() if value is not None and name not in config.tables} | context
    given = {name: value for name, value in given.items() if name in taken}
    if _is_made(row):
        return _with_parts(row)(*first, **given)
    return functools.partial(row, **given) if given else row


def changed(config: Any, other: Any) -> Any:
    """A configuration with the values of another that are not None; a name that changes drops the numbers it had."""
    given = {name: value for name, value in vars(other).items() if value is not None}
    for field, table in config.tables.items():
        if given.get(field, getattr(config, field)) != getattr(config, field):
            given = {number: None for row in table.values() for number in numbers_of(row)} | given
    return dataclasses.replace(config, **given)


def numbers_of(row: Row) -> dict[str, tuple[type, Any]]:
    """Name -> (int or float, default) of the numbers that a row takes: what is annotated as one, or as one or None."""
    found = {name: (_kind(row, parameter), parameter.default) for name, parameter in _parameters(row).items()}
    return {
        name: (kind, default)
        for name, (kind, default) in found.items()
        if kind is not None and default is not inspect.Parameter.empty
    }


def takes(row: Row, name: str) -> bool:
    """True if a row has a parameter of a name."""
    return name in _parameters(row)


def belongs_to(table: Mapping[str, Row], name: str) -> str:
    """Which rows of a table have a parameter, for the message of one that has it not."""
    return f"it belongs to {', '.join(row for row in table if takes(table[row], name))}"


def _is_made(row: Row) -> bool:
    return isinstance(row, type | functools.partial)


def _with_parts(row: Row) -> Row:
    """A row with its parts made."""
    if not isinstance(row, functools.partial):
        return row
    args = [arg() if isinstance(arg, functools.partial) else arg for arg in row.args]
    keywords = {name: arg() if isinstance(arg, functools.partial) else arg for name, arg in row.keywords.items()}
    return functools.partial(row.func, *args, **keywords)


def _source_of(row: Row) -> Row:
    return row.func if isinstance(row, functools.partial) else row


@functools.cache
def _parameters(row: Row) -> Mapping[str, inspect.Parameter]:
    """The parameters of a row; what a preset gives by keyword is one, too, where it is passed on by `**`."""
    passed = row.keywords if isinstance(row, functools.partial) else {}
    keywords = {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in passed}
    return keywords | dict(inspect.signature(row).parameters)


def _kind(row: Row, parameter: inspect.Parameter) -> type | None:
    """int, float, or None for what is no number; of a class by its fields, whose types Equinox hides in `__init__`."""
    cls = _source_of(row)
    fields = {item.name: item.type for item in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    kinds = _kinds(fields.get(parameter.name, parameter.annotation)) - {type(None)}
    return int if kinds == {int} else float if float in kinds else None


def _kinds(hint: Any) -> set[Any]:
    """The types that a hint is a union of, those of `Scalar` too; `PerSample` and `Time` are no single numbers."""
    hint = Scalar.__value__ if hint is Scalar else hint
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return {kind for part in typing.get_args(hint) for kind in _kinds(part)} if union else {hint}


def options(
    *, hidden: Iterable[str] = (), common: Iterable[str] = (), **tables: Mapping[str, Row]
) -> Callable[[type], Any]:
    """A decorator of a dataclass: fields become names of tables, and the numbers of their rows become fields.

    The words of the command line's help come from the docstrings of the rows. Numbers that are `hidden`, and those of
    the same name as a field, are left out. A field that rows without such a parameter use as well is `common`.
    """

    def extended(cls: type) -> Any:
        declared = {item.name: item for item in dataclasses.fields(cls)}
        fields: Fields = []
        for field, table in tables.items():
            names = Annotated[Literal[tuple(table)], Doc(_each(table))]
            fields.append((field, names, declared[field].default))
        taken = {name: _parameters(row) for name, row in tables["name"].items()}
        for field, hint in typing.get_type_hints(cls).items():
            users = [name for name, parameters in taken.items() if field in parameters]
            if field in declared.keys() - tables.keys() - set(common) and 0 < len(users) < len(taken):
                fields.append((field, Annotated[hint, Doc(f"Used by {', '.join(users)}.")], declared[field].default))
        for table in tables.values():
            rows: dict[str, dict[str, tuple[type, Any]]] = {}
            for name, row in table.items():
                for number, found in numbers_of(row).items():
                    rows.setdefault(number, {})[name] = found
            for number, found in rows.items():
                if number in declared or number in hidden:
                    continue
                if any(number == field for field, _, _ in fields):
                    raise TypeError(f"{cls.__name__}.{number}: a number of two tables, in one by {', '.join(found)}")
                kinds = {kind for kind, _ in found.values()}
                words = Doc(_about(number, {name: default for name, (_, default) in found.items()}, table))
                hint = Annotated[int | None if kinds == {int} else float | None, words]
                fields.append((number, hint, dataclasses.field(default=None, kw_only=True)))
        own = {"__doc__": cls.__doc__, "__module__": cls.__module__, "tables": tables, "declared": declared.keys()}
        return dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, namespace=own)

    return extended


def optional(cls: Any) -> Any:
    """A decorator of a dataclass of options: each is None by default, which `changed` leaves as it is."""
    fields: Fields = []
    hints: dict[str, Any] = typing.get_type_hints(cls, include_extras=True)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        hint, *words = typing.get_args(hint) if typing.get_origin(hint) is Annotated else [hint]
        words += [Doc(RUNS_OWN)] if item.name in cls.declared else []
        hint = Annotated[(hint | None, *words)] if words else hint
        fields.append((item.name, hint, dataclasses.field(default=None)))
    own = {"__doc__": cls.__doc__, "__module__": cls.__module__}
    return dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, namespace=own)


def _about(number: str, defaults: Mapping[str, float | None], table: Mapping[str, Row]) -> str:
    """What a number is, and its defaults: "edm: how much of the clock goes to small noise (default: 7)"."""
    meanings: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for name, default in defaults.items():
        meanings.setdefault(_meaning(table[name], number), []).append(name)
        if default is not None:
            values.setdefault(f"{default:g}", []).append(name)
    text = "\n".join(f"{', '.join(names)}: {meaning}" for meaning, names in meanings.items())
    alike = list(values.values()) == [list(defaults)]
    each = [value if alike else f"{', '.join(names)} {value}" for value, names in values.items()]
    return f"{text}{' ' if alike else chr(10)}(default: {'; '.join(each)})" if each else text


def _meaning(row: Row, number: str) -> str:
    """The first sentence on a number in the `Attributes:` of a row's class, or the `Args:` of a function.

    Shapes, which the numbers of a configuration do not have, are left out.
    """
    source = _source_of(row)
    for base in source.__mro__ if isinstance(source, type) else [source]:
        words = inspect.cleandoc(base.__doc__ or "")
        for names, text in re.findall(r"^  (\w[\w, ]*)(?: \([^)]*\))?: (.*(?:\n    .*)*)", words, re.MULTILINE):
            if number in names.split(", "):
                return re.sub(r"[,;] (?:\[\] or \[b\]|a scalar)(?! in)", "", first_sentence(text))
    return ""


def _each(table: Mapping[str, Row]) -> str:
    """The names of a table, on lines of their own, each with the first sentence of the docstring of its row.

    Equations that are set apart, and what a network computes, `(x, ...) -> y`, are left out.
    """
    docs = {name: re.split(r"\n\n| `\(", inspect.cleandoc(row.__doc__ or ""))[0] for name, row in table.items()}
    return "\n".join(f"{name}: {first_sentence(doc)}" for name, doc in docs.items())


def first_sentence(text: str) -> str:
    """The words up to the first full stop that a capital follows, on one line."""
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", " ".join(text.split()))[0]
