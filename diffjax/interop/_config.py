"""What a config.json asks for: every key known, every value one that we have."""

from collections.abc import Collection, Mapping
from typing import Any


def read_fields(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    where: str,
    only: Mapping[str, Collection[Any]] | None = None,
    ignored: Collection[str] = (),
) -> dict[str, Any]:
    """The values of a configuration, missing ones filled by the defaults of the class that wrote it.

    Args:
      config: from a config.json; keys that begin with an underscore are notes of the writer and left alone.
      defaults: key -> default, for all keys that are of use.
      where: the file, for messages.
      only: key -> the values that we have, where that is not all of them; a key that is in `only` alone has its
        first one as default.
      ignored: keys that change nothing in what the network computes.

    Raises:
      ValueError: a key that is not known, or a value that we do not have; both named.
    """
    only = {} if only is None else only
    defaults = {**{key: next(iter(values)) for key, values in only.items()}, **defaults}
    for key, value in config.items():
        if not key.startswith("_") and key not in defaults and key not in ignored:
            raise ValueError(f"{where}: unknown key {key}, with value {value!r}")
    found = {key: config.get(key, default) for key, default in defaults.items()}
    for key, values in only.items():
        if found[key] not in values:
            raise ValueError(f"{where}: {key} is {found[key]!r}; diffjax has {', '.join(map(repr, values))}")
    return found
