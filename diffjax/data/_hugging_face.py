"""A data set of the package `datasets` as items: rows of a table, of which one column is the picture.

The package is the user's: it is not imported here. `load_dataset(..., split="train")` or `load_from_disk` make one.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffjax._numbers import checked_numbers
from diffjax.data._pictures import decode_image, prepare_image
from diffjax.data._source import Batch
from diffjax.data._texts import check_texts


@checked_numbers
class HuggingFace:
    """Items of a `datasets.Dataset`, for `from_items`.

    Args:
      dataset: with random access (not a streamed one).
      x: the column of data: pictures, or arrays of numbers [*d]. Where pictures may have 16 bits a channel, cast the
        column to `datasets.Image(decode=False)`: they are decoded here then, and refused; decoded there, they are cut
        to 8 bits before anyone sees it.
      cond: the column of conditions: whole numbers are labels; None for none.
      size: of pictures, as `ImageFolder` has it.
      channels: of pictures, 3 or 1. Transparent parts are laid on white.
      text: the column of captions, strings, for `with_texts`; None for none.

    Raises:
      ValueError: a column is absent, or a row's caption is no string. When an item is read: its picture cannot be
        decoded.
    """

    def __init__(
        self,
        dataset: Any,
        x: str = "image",
        cond: str | None = None,
        *,
        size: int | None = None,
        channels: int = 3,
        text: str | None = None,
    ):
        for name in (x, cond, text):
            if name is not None and name not in dataset.column_names:
                raise ValueError(f"x, cond, text: columns among {dataset.column_names} are needed, got {name!r}")
        self.dataset, self.x, self.cond, self.size, self.channels = dataset, x, cond, size, channels
        self.text = text

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        try:
            row = self.dataset[int(index)]
            x = self._array(row[self.x])
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{self.describe(index)}: {error}") from error
        return x, None if self.cond is None else np.asarray(row[self.cond])

    @cached_property
    def texts(self) -> tuple[str, ...] | None:
        """The captions of all rows; None without a column of them."""
        if self.text is None:
            return None
        return check_texts(list(self.dataset[self.text]), lambda i: f"text: row {i}, column {self.text}")

    def _array(self, value: Any) -> np.ndarray:
        if isinstance(value, Image.Image):
            return prepare_image(value, size=self.size, channels=self.channels)
        if isinstance(value, dict) and {"bytes", "path"} <= set(value):  # of a column that is not decoded
            data = Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"]
            return decode_image(data, "its picture", size=self.size, channels=self.channels)
        dtype = getattr(self.dataset.features[self.x], "dtype", None)  # of an ArrayND, whose rows are plain lists
        return np.asarray(value, dtype if dtype in ("uint8", "float32") else None)

    def describe(self, index: int) -> str:
        """Which row an item is."""
        return f"row {index}, column {self.x}"
