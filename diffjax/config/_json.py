"""Configurations as JSON: there and back, equal, and every mistake named by its path.

Config --to_json--> text --from_json--> Config        differences(a, b) = [(path, in a, in b), ...]

A missing key takes its default: a configuration by hand need not be complete. An unknown key is an error.
"""

import dataclasses
import json
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diffjax.config._options import Config
from diffjax.config._registry import did_you_mean, unknown


def to_json(config: Config) -> str:
    """A configuration as JSON text; `from_json` reads it back, equal."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """A configuration from JSON text.

    Raises:
      ValueError: it is not JSON, a key is unknown, or a value has the wrong type; named by its path.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"config: not JSON: {error}") from None
    except RecursionError:
        raise ValueError("config: not a configuration: its brackets are nested too deep") from None
    return _read(Config, values, "")


def _read(hint: Any, value: object, path: str) -> Any:
    """A value of the type that `hint` says, or a `ValueError` that names its path."""
    if dataclasses.is_dataclass(hint):
        return _read_fields(hint, value, path)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ValueError(unknown(path, value, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return None if value is None else _read(inner, value, path)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_read(get_args(hint)[0], item, path) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{path}: {getattr(hint, '__name__', hint)} is needed, got {value!r}")
    return value


def _read_fields(cls: Any, values: object, path: str) -> Any:
    dot = f"{path}." if path else ""
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'config'}: an object is needed, got {values!r}")
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ValueError(f"{dot}{key}: unknown key, with value {values[key]!r}{did_you_mean(key, hints)}")
    return cls(**{key: _read(hints[key], value, f"{dot}{key}") for key, value in values.items()})


def training_identity(config: Config) -> Config:
    """A configuration without what changes nothing in what is learnt from the same data.

    The number of workers, rematerialisation; where the files and the encoded captions lie, and whether those that
    cannot be read end the run.
    """
    text = None if config.data.text is None else ""
    data = dataclasses.replace(config.data, workers=0, path=None, text=text, skip_bad=False)
    return dataclasses.replace(config, data=data, network=dataclasses.replace(config.network, remat=False))


def differences(a: object, b: object, path: str = "") -> list[tuple[str, object, object]]:
    """(path, value in a, value in b) wherever two configurations differ."""
    if not dataclasses.is_dataclass(a):
        return [] if a == b else [(path, a, b)]
    names = [item.name for item in dataclasses.fields(a)]
    dot = f"{path}." if path else ""
    return [found for name in names for found in differences(getattr(a, name), getattr(b, name), f"{dot}{name}")]
