"""A folder here, or a repository of the Hugging Face Hub, of which only .json and .safetensors are fetched."""

import re
from collections.abc import Callable
from pathlib import Path

from diffjax.interop._files import PICKLED, advice

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_OTHER_PRECISIONS = ("*.fp16*", "*.bf16*", "*.non_ema*")


def local_folder(
    source: str | Path, revision: str | None, parts: Callable[[Path], list[str]], variant: str | None = None
) -> Path:
    """The folder itself, or the one where a repository was fetched to.

    Args:
      source: a folder, or "owner/name".
      revision: of a repository: branch, tag or commit.
      parts: `(folder with the .json files) -> sub-folders whose weights are wanted`, "" for the folder itself.
      variant: of the weights; those of another precision are not fetched.

    Raises:
      ValueError: there is no such folder, huggingface_hub is not installed, the hub gives nothing, or pickled weights
        are all that there is.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or not _REPOSITORY.fullmatch(source):
        raise ValueError(f"source: {source} is neither a folder nor owner/name of a repository")
    try:
        import huggingface_hub
    except ImportError:
        remedy = "to fetch it, pip install '.[interop]' in diffjax's folder"
        raise ValueError(f"source: {source} is no folder; {remedy}") from None

    def fetch(patterns, ignored=()):
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    source, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored)
                )
            )
        except (OSError, ValueError) as error:  # the hub's own errors are such
            raise ValueError(f"source: {source} is no folder, and cannot be fetched: {_line(error)}") from None

    wanted = parts(fetch(["*.json"]))
    patterns = [str(Path(part) / "*.safetensors") for part in wanted]
    # The hub's `*` goes into sub-folders too.
    deeper = () if any("/" in pattern for pattern in patterns) else ("*/*",)
    folder = fetch(patterns, (*(other for other in _OTHER_PRECISIONS if other != f"*.{variant}*"), *deeper))
    bare = [part for part in wanted if (folder / part / "config.json").is_file() and not _has_weights(folder / part)]
    if bare:
        try:
            names = map(Path, huggingface_hub.list_repo_files(source, revision=revision))
        except (OSError, ValueError):  # no network: what was fetched before is all that can be known
            return folder
        for name in sorted(names):
            if name.parent in map(Path, bare) and name.suffix in PICKLED:
                raise ValueError(f"source: {source}: {name}: there are pickled weights only{advice(name)}")
    return folder


def _has_weights(folder):
    return any(folder.glob("*.safetensors"))


def _line(error):
    return " ".join(str(error).split())
