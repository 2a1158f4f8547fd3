"""The networks that can be read: `_class_name` -> our module, its parameters' shapes, and its tensors' names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from diffjax.interop._attention_names import new_attention_names
from diffjax.interop._autoencoder import DEFAULTS as OF_AUTOENCODER, autoencoder
from diffjax.interop._config import naming
from diffjax.interop._dit import DEFAULTS as OF_DIT, dit
from diffjax.interop._t5 import DEFAULTS as OF_T5, encoder_tensors, t5_encoder
from diffjax.interop._unet2d import DEFAULTS as OF_UNET, unet2d, unet2d_inputs
from diffjax.networks._adapters import LinenModule


class Kind(NamedTuple):
    """A network class of diffusers or transformers, and ours that equals it.

    Attributes:
      build: `(config, where) -> module`.
      inputs: `(config, module) -> arguments` of the least size that the module takes, as shapes and dtypes.
      tensors: `(tensors, where) -> tensors` by the names that the module expects.
      layers: the key with the number of layers (on each level).
      last: the name of a tensor in the last of them, `{level}` and `{layer}` counted from 0.
      defaults: of all keys.
      images: of a diffusion's network, `(x, c_noise, cond) -> y`: defaults of the keys with the shapes of x and y.
    """

    build: Callable[[Mapping[str, Any], str], LinenModule]
    inputs: Callable[[Mapping[str, Any], Any], tuple[jax.ShapeDtypeStruct | None, ...]]
    tensors: Callable[[Mapping[str, Any], str], Mapping[str, Any]]
    layers: str
    last: str
    defaults: Mapping[str, Any]
    images: Mapping[str, Any] | None = None


def kind_of(config: Mapping[str, Any], where: str) -> Kind:
    """The kind of a configuration's network, by `_class_name` (diffusers) or `model_type` (transformers).

    Raises:
      ValueError: it is none of `KINDS`; `where` (the file) is named.
    """
    name = config.get("_class_name", config.get("model_type"))
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"{where}: _class_name is {name!r}; diffjax has {', '.join(KINDS)}")
    return KINDS[name]


def module_from_config(config: Mapping[str, Any], *, where: str = "config.json") -> LinenModule:
    """The Linen module that a configuration of diffusers or transformers describes, with their parameter names.

    Args:
      config: a config.json's content; `_class_name` or `model_type` names the class.
      where: the file, for messages.

    Raises:
      ValueError: a network, key or value that diffjax does not have; named.
    """
    kind = kind_of(config, where)
    with naming(where):
        return kind.build(config, where)


def parameter_shapes(module: LinenModule, config: Mapping[str, Any], *, where: str = "config.json") -> PyTree:
    """The parameters of a module as a pytree of shapes [...] and dtypes; nothing is computed.

    Args:
      module: from `module_from_config`, or a clone of it.
      config: the content of the same config.json.
      where: the file, for messages.

    Returns:
      A pytree of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: values that do not fit together; `where` is named.
    """
    kind = kind_of(config, where)
    with naming(where):
        return jax.eval_shape(module.init, jax.random.key(0), *kind.inputs(config, module))["params"]


def check_layers(config: Mapping[str, Any], where: str, tensors: Mapping[str, Any], file: str) -> None:
    """Raises `ValueError` where a configuration has more layers than there are tensors for, before they are built."""
    kind = kind_of(config, where)
    full = {"block_out_channels": (0,), **kind.defaults, **config}
    layers, levels = full[kind.layers], len(full["block_out_channels"])
    if (last := kind.last.format(level=levels - 1, layer=layers - 1)) not in tensors:
        raise ValueError(f"{file}: no tensor {last}, which {where} needs: {kind.layers} is {layers}")
    if layers * levels * LEAST > len(tensors):
        raise ValueError(f"{where}: {kind.layers} is {layers}, but {file} has {len(tensors)} tensors in all")


def _renamed(tensors, where):
    renamed = new_attention_names(tensors)
    if len(renamed) < len(tensors):
        old = next(
            key for key in tensors if key not in renamed and next(iter(new_attention_names({key: 0}))) in tensors
        )
        raise ValueError(f"{where}: {old} is also in the file by its name since diffusers 0.17")
    return renamed


def _as_they_are(tensors, where):
    return tensors


def _image(config, module):
    side = 2 ** (len(module.channels) - 1)
    return (_of((1, side, side, module.in_channels)),)


def _patches(config, module):
    x = _of((1, module.patch, module.patch, config.get("in_channels", OF_DIT["in_channels"])))
    return x, _of((1,)), _of((1,), jnp.int32)


def _ids(config, module):
    return (_of((1, 2), jnp.int32),)


def _of(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


_UNET = {"sample_size": None, **OF_UNET}

_OF_RESNETS = "down_blocks.{level}.resnets.{layer}.conv1.weight"
_OF_DIT = "transformer_blocks.{layer}.attn1.to_q.weight"
_OF_T5 = "encoder.block.{layer}.layer.0.SelfAttention.q.weight"
LEAST = 8
"""The fewest tensors of a layer."""

KINDS = {
    "UNet2DModel": Kind(unet2d, unet2d_inputs, _renamed, "layers_per_block", _OF_RESNETS, _UNET, _UNET),
    "DiTTransformer2DModel": Kind(dit, _patches, _as_they_are, "num_layers", _OF_DIT, OF_DIT, OF_DIT),
    "Transformer2DModel": Kind(dit, _patches, _as_they_are, "num_layers", _OF_DIT, OF_DIT, OF_DIT),
    "AutoencoderKL": Kind(autoencoder, _image, _renamed, "layers_per_block", f"encoder.{_OF_RESNETS}", OF_AUTOENCODER),
    "t5": Kind(t5_encoder, _ids, encoder_tensors, "num_layers", _OF_T5, OF_T5),
}
