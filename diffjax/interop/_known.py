"""Which networks of others we have: `_class_name` -> how to build ours, its shapes, and its tensors' names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.interop._attention_names import new_attention_names
from diffjax.interop._autoencoder import autoencoder
from diffjax.interop._config import naming
from diffjax.interop._dit import DEFAULTS as OF_DIT, dit
from diffjax.interop._t5 import encoder_tensors, t5_encoder
from diffjax.interop._unet2d import DEFAULTS as OF_UNET, unet2d, unet2d_inputs


class Kind(NamedTuple):
    """A network of others.

    Attributes:
      build: `(config, where) -> module`.
      inputs: `(config, module) -> arguments` of the least size that the module takes.
      tensors: `(tensors, where) -> tensors` by the names that the module expects.
      images: of a diffusion's network, `(x, c_noise, cond) -> y`: defaults of the keys that say what x and y are.
    """

    build: Callable[[Mapping[str, Any], str], Any]
    inputs: Callable[[Mapping[str, Any], Any], tuple[Any, ...]]
    tensors: Callable[[Mapping[str, Any], str], Mapping[str, Any]]
    images: Mapping[str, Any] | None = None


def kind_of(config: Mapping[str, Any], where: str) -> Kind:
    """The kind that a configuration is of: by `_class_name` (diffusers) or `model_type` (transformers).

    Raises:
      ValueError: we do not have it; `where` (the file) is named.
    """
    name = config.get("_class_name", config.get("model_type"))
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"{where}: _class_name is {name!r}; diffjax has {', '.join(KINDS)}")
    return KINDS[name]


def module_from_config(config: Mapping[str, Any], *, where: str = "config.json") -> Any:
    """The Linen module that a configuration of diffusers or transformers describes, named as their network is.

    Args:
      config: a config.json's content; `_class_name` or `model_type` says whose it is.
      where: the file, for messages.

    Raises:
      ValueError: a network, key or value that we do not have; named.
    """
    kind = kind_of(config, where)
    with naming(where):
        return kind.build(config, where)


def shapes_of(module: Any, config: Mapping[str, Any], where: str) -> Any:
    """The module's parameters as a tree of shapes [...]; nothing is computed."""
    kind = kind_of(config, where)
    with naming(where):
        return jax.eval_shape(module.init, jax.random.key(0), *kind.inputs(config, module))["params"]


def _renamed(tensors, where):
    return new_attention_names(tensors)


def _as_they_are(tensors, where):
    return tensors


def _image(config, module):
    side = 2 ** (len(module.channels) - 1)
    return (jnp.zeros((1, side, side, module.in_channels)),)


def _patches(config, module):
    x = jnp.zeros((1, module.patch, module.patch, config.get("in_channels", OF_DIT["in_channels"])))
    return x, jnp.zeros(1), np.zeros(1, np.int32)


def _ids(config, module):
    return (np.zeros((1, 2), np.int32),)


KINDS = {
    "UNet2DModel": Kind(unet2d, unet2d_inputs, _renamed, {"sample_size": None, **OF_UNET}),
    "DiTTransformer2DModel": Kind(dit, _patches, _as_they_are, OF_DIT),
    "Transformer2DModel": Kind(dit, _patches, _as_they_are, OF_DIT),
    "AutoencoderKL": Kind(autoencoder, _image, _renamed),
    "t5": Kind(t5_encoder, _ids, encoder_tensors),
}
