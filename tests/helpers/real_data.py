"""Where the real MNIST and CIFAR-10 are: in $DIFFJAX_DATA, or in ../shared/data beside the repository."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("DIFFJAX_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_mnist = pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason=f"no MNIST in {DATA}")
needs_cifar = pytest.mark.skipif(not (DATA / "cifar10.zip").is_file(), reason=f"no cifar10.zip in {DATA}")
