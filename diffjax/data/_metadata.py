"""Captions of images from `metadata.jsonl`: one JSON object a line, {"file_name": "0001.png", "text": "a red circle"}.

The convention of the Hugging Face Hub. File names are relative to the folder that the metadata.jsonl is in, of which
there may be several. Every image needs a line; an image without a caption has an empty text.
"""

import json
import posixpath
import unicodedata
from collections.abc import Sequence
from typing import Any

from diffjax.data._files import Files, is_safe
from diffjax.data._texts import check_text

METADATA = "metadata.jsonl"
_BYTE_ORDER = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_metadata(files: Files, names: Sequence[str], field: str) -> tuple[tuple[str, ...], int]:
    """The captions of images, one each in the order of their names; and how many lines are of no image.

    Args:
      files: where they are.
      names: of the images.
      field: that holds a line's caption, such as "text".

    Raises:
      ValueError: there is no metadata.jsonl, a line is no such object, or an image has none.
    """
    wanted = {_composed(name): name for name in names}
    found: dict[str, tuple[str, str]] = {}
    there = sorted(name for name in files.sizes if posixpath.basename(name) == METADATA)
    if not there:
        example = json.dumps({"file_name": posixpath.basename(names[0]), field: "a caption"})
        raise ValueError(f"text: no {METADATA} in {files.path}; one is needed, with a line {example} for each image")
    others = 0
    for path in there:
        where = f"{files.path}/{path}"
        for number, line in enumerate(decode_lines(files.read(path), where), start=1):
            if not line.strip():
                continue
            at = f"{where}, line {number}"
            record = parse_line(line, at)
            name = wanted.get(_composed(posixpath.join(posixpath.dirname(path), _file_name(record, at))))
            if name is None:
                others += 1
                continue
            if field not in record:
                known = ", ".join(repr(key) for key in record if key != "file_name") or "nothing else"
                raise ValueError(f"text: {at}: there is no {field!r}, but {known}")
            text = check_text(f"text: {at}: {field}", record[field])
            if name in found and found[name][0] != text:
                raise ValueError(f"text: {at}: {name} had another caption in {found[name][1]}")
            found[name] = (text, at)
    absent = [name for name in names if name not in found]
    if absent:
        raise ValueError(
            f"text: {len(absent)} of {len(names)} images have no line in {METADATA}, the first "
            f"{files.path}/{absent[0]}; give each a line, with an empty text where it has no caption"
        )
    return tuple(found[name][0] for name in names), others


def decode_lines(data: bytes, where: str) -> list[str]:
    """The lines of a file in UTF-8, with or without a byte order mark.

    Raises:
      ValueError: it is in another encoding; the line and the byte are named.
    """
    other = next((name for mark, name in _BYTE_ORDER.items() if data.startswith(mark)), None)
    if other is not None:
        raise ValueError(f"text: {where}: it is {other}; save it as UTF-8")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line, value = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise ValueError(f"text: {where}, line {line}: byte {value:#04x} is no UTF-8; save the file as UTF-8") from None


def parse_line(line: str, at: str) -> dict[str, Any]:
    """The object of a line; raises `ValueError` where it is none, naming the place `at`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"text: {at}: it is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"text: {at}: an object is needed, got {line.strip()[:40]}")
    return record


def _file_name(record: dict[str, Any], at: str) -> str:
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"text: {at}: a file_name is needed, got {name!r}")
    name = posixpath.normpath(name.replace("\\", "/"))
    if not is_safe(name):
        raise ValueError(f"text: {at}: file_name leads out of its folder: {record['file_name']!r}")
    return name


def _composed(name: str) -> str:
    """A path in Unicode's composed form: some systems write the parts of an accented letter one by one."""
    return unicodedata.normalize("NFC", posixpath.normpath(name))
