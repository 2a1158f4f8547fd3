"""The values of a config.json: every key must be known, and every value one that diffjax has."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MOST = {
    "layers_per_block": 64,
    "num_layers": 1000,
    "block_out_channels": 2**16,
    "in_channels": 2**16,
    "out_channels": 2**16,
    "latent_channels": 2**16,
    "num_attention_heads": 2**12,
    "attention_head_dim": 2**12,
    "patch_size": 2**10,
    "sample_size": 2**16,
    "d_model": 2**16,
    "num_heads": 2**12,
    "d_kv": 2**12,
}
"""The largest integers that are read, by key: more than any network has, and small enough to build."""
MOST_OTHERWISE = 10**6
LONGEST = 16
"""Levels of a network."""


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
      defaults: key -> default, for all keys that are read. A value is of its default's kind and, where that is a
        number, not negative, nor 0 where the default is not; None stands for any number and for null.
      where: the file, for messages.
      only: key -> the values that diffjax has, where that is not all of them; a key that is in `only` alone has its
        first one as default.
      ignored: keys that change nothing in what the network computes.
      nullable: key -> a value of its kind, for keys that may be null, whether that is their default or not.
      remedy: the end of the message about a key or value that diffjax does not have.

    Raises:
      ValueError: an unknown key, a value that diffjax does not have, or an integer beyond its bound; all named.
    """
    only, remedy = {} if only is None else only, f"; {remedy}" if remedy else ""
    kinds = {key: value for key, value in {**defaults, **(nullable or {})}.items() if key not in only}
    defaults = {**{key: next(iter(values)) for key, values in only.items()}, **defaults}
    for key, value in config.items():
        if not key.startswith("_") and key not in defaults and key not in ignored:
            raise ValueError(f"{where}: unknown key {key}, with value {shown(value)}{remedy}")
    fields = {key: config.get(key, default) for key, default in defaults.items()}
    for key, values in only.items():
        if fields[key] not in values:
            raise ValueError(
                f"{where}: {key} is {shown(fields[key])}; diffjax has {', '.join(map(repr, values))}{remedy}"
            )
    for key, kind in kinds.items():
        may_be_null = kind is None or key in (nullable or {})
        if not (fields[key] is None and may_be_null) and (needed := _needed(fields[key], kind)):
            raise ValueError(f"{where}: {key} is {shown(fields[key])}; {needed}{' or null' * may_be_null} is needed")
        check_bound(key, fields[key], where)
    return fields


def check_bound(key: str, value: Any, where: str) -> None:
    """Raises `ValueError` for an integer above the bound of its key, and for a list of more than `LONGEST` of them."""
    most = MOST.get(key, MOST_OTHERWISE)
    values = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, int) and one > most for one in values):
        raise ValueError(f"{where}: {key} is {shown(value)}; at most {most:,} is needed")
    if len(values) > LONGEST and not isinstance(values[0], float):
        raise ValueError(f"{where}: {key} has {len(values)} entries; at most {LONGEST} are needed")


def shown(value: Any) -> str:
    """A value for a message: its repr, cut to 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Turns any error from a configuration's values into a ValueError of one line that names the file."""
    try:
        yield
    except (ValueError, TypeError, ZeroDivisionError, OverflowError, MemoryError) as error:
        text = " ".join(str(error).split())
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None


def _needed(value, kind):
    """The kind of value that is needed, for a message; "" if the value is of that kind."""
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
