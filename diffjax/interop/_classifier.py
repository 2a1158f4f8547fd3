"""A classifier that scripts/train_classifier.py wrote, whose features measure samples and teach autoencoders."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import as_value
from diffjax._typing import Params
from diffjax.interop._files import read_tensors
from diffjax.networks import Classifier, classifier_of, draw_parameters

WEIGHTS = "weights.safetensors"


def read_classifier(path: str | Path) -> tuple[Classifier, Params]:
    """A classifier of images and its parameters; its fields are read from their shapes.

        classifier, params = interop.read_classifier("runs/classifier-digits")
        features = functools.partial(classifier_features, classifier, params)

    Args:
      path: a folder that scripts/train_classifier.py wrote, or the file of weights in it.

    Returns:
      (classifier, its parameters, a pytree of arrays [...]), which are values inside jit too.

    Raises:
      ValueError: there is no such file, it cannot be read, or it is no classifier's, or holds NaN or infinity.
    """
    path = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ValueError(f"path: a folder that scripts/train_classifier.py wrote is needed, got {path}: no such file")
    tensors, params = read_tensors(path), {}
    try:
        for name, array in tensors.items():
            *outer, last = name.split("/")
            inner = params
            for part in outer:
                inner = inner.setdefault(part, {})
            inner[last] = array
        classifier = classifier_of(params)
        channels = params["body"]["in"]["kernel"].shape[2]
        side = 2 ** len(classifier.channels)
        image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        wanted = jax.eval_shape(lambda x: draw_parameters(jax.random.key(0), classifier.init, x), image)["params"]
        params = jax.tree.map(_checked, wanted, params)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path: {path} holds no classifier of scripts/train_classifier.py: {error}") from None
    return classifier, params


def _checked(wanted: jax.ShapeDtypeStruct, array: np.ndarray) -> jax.Array:
    if array.shape != wanted.shape:
        raise ValueError(f"an array of shape {array.shape} in place of {wanted.shape}")
    if not np.isfinite(array).all():
        raise ValueError("NaN or infinity")
    return as_value(array, wanted.dtype)  # a loss reads it within a trace, and keeps it
