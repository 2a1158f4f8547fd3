"""A folder here, or a repository of the Hugging Face Hub, of which only .json and .safetensors are fetched."""

import re
from collections.abc import Callable
from pathlib import Path

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_OTHER_PRECISIONS = ("*.fp16*", "*.bf16*", "*.non_ema*")


def local_folder(source: str | Path, revision: str | None, parts: Callable[[Path], list[str]]) -> Path:
    """The folder itself, or the one where a repository was fetched to.

    Args:
      source: a folder, or "owner/name".
      revision: of a repository: branch, tag or commit.
      parts: `(folder with the .json files) -> sub-folders whose weights are wanted`, "" for the folder itself.

    Raises:
      ValueError: there is no such folder, huggingface_hub is not installed, or the hub gives nothing.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or not _REPOSITORY.fullmatch(source):
        raise ValueError(f"source: {source} is neither a folder nor owner/name of a repository")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"source: {source} is no folder; to fetch it, pip install 'diffjax[interop]'") from None

    def fetch(patterns, ignored=()):
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    source, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored)
                )
            )
        except (OSError, ValueError) as error:  # the hub's own errors are such
            raise ValueError(f"source: {source} is no folder, and cannot be fetched: {_line(error)}") from None

    folder = fetch(["*.json"])
    return fetch([str(Path(part) / "*.safetensors") for part in parts(folder)], _OTHER_PRECISIONS)


def _line(error):
    return " ".join(str(error).split())
