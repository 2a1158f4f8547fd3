"""What a config.json asks for: every key known, every value one that we have."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def read_fields(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    where: str,
    only: Mapping[str, Collection[Any]] | None = None,
    ignored: Collection[str] = (),
    nullable: Mapping[str, Any] | None = None,
    remedy: str = "",
) -> dict[str, Any]:
    """The values of a configuration, missing ones filled by the defaults of the class that wrote it.

    Args:
      config: from a config.json; keys that begin with an underscore are notes of the writer and left alone.
      defaults: key -> default, for all keys that are of use. A value is of its default's kind and, where that is a
        number, not negative, nor 0 where the default is not; None stands for any number and for null.
      where: the file, for messages.
      only: key -> the values that we have, where that is not all of them; a key that is in `only` alone has its
        first one as default.
      ignored: keys that change nothing in what the network computes.
      nullable: key -> a value of its kind, for keys that may be null, whether that is their default or not.
      remedy: what to do about a key or value that we do not have; ends the message.

    Raises:
      ValueError: a key that is not known, or a value that we do not have; both named.
    """
    only, remedy = {} if only is None else only, f"; {remedy}" if remedy else ""
    kinds = {key: value for key, value in {**defaults, **(nullable or {})}.items() if key not in only}
    defaults = {**{key: next(iter(values)) for key, values in only.items()}, **defaults}
    for key, value in config.items():
        if not key.startswith("_") and key not in defaults and key not in ignored:
            raise ValueError(f"{where}: unknown key {key}, with value {value!r}{remedy}")
    found = {key: config.get(key, default) for key, default in defaults.items()}
    for key, values in only.items():
        if found[key] not in values:
            raise ValueError(f"{where}: {key} is {found[key]!r}; diffjax has {', '.join(map(repr, values))}{remedy}")
    for key, kind in kinds.items():
        may_be_null = kind is None or key in (nullable or {})
        if not (found[key] is None and may_be_null) and (needed := _needed(found[key], kind)):
            raise ValueError(f"{where}: {key} is {found[key]!r}; {needed}{' or null' * may_be_null} is needed")
    return found


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Whatever a configuration's values lead to inside becomes a ValueError in one line that names the file."""
    try:
        yield
    except (ValueError, TypeError, ZeroDivisionError, OverflowError, MemoryError) as error:
        text = " ".join(str(error).split())
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None


def _needed(value, kind):
    """What a value should have been, or nothing where it is that."""
    if kind is None:
        return "" if _is_number(value) else "a number"
    if isinstance(kind, list | tuple):
        fits = isinstance(value, list | tuple) and value and not any(_needed(one, kind[0]) for one in value)
        return "" if fits else f"a list such as {list(kind)}"
    if isinstance(kind, bool | str):
        return "" if isinstance(value, type(kind)) else "a word" if isinstance(kind, str) else "true or false"
    whole = isinstance(kind, int)
    fits = _is_number(value) and (isinstance(value, int) or not whole) and (value > 0 or value == kind == 0)
    return "" if fits else f"{'an integer' if whole else 'a number'} {'of at least' if kind == 0 else 'above'} 0"


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
