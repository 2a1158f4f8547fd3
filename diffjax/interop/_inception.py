"""Weights of Inception v3 for FID and KID, from a file that the user has.

The published ones are torch's pickle `pt_inception-2015-12-05-6726825d.pth` (of pytorch-fid, Apache-2.0). To be read
here, it is converted once, where torch is and the file is trusted:

    import torch, safetensors.torch
    weights = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True)
    safetensors.torch.save_file(weights, "inception.safetensors")
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from diffjax._typing import Params
from diffjax.interop._files import look_up
from diffjax.interop._keys import to_params
from diffjax.networks import InceptionV3

UNUSED = ("fc.", "AuxLogits.")
COUNTERS = ".num_batches_tracked"


def read_inception(path: str | Path) -> Params:
    """Parameters for `networks.inception_features`, a pytree of arrays [...] in float32.

    torchvision's own weights have the same names and shapes, but are others: distances taken with them compare with
    no published ones.

    Args:
      path: a .safetensors or .npz file with torch's names; the classes' last layer is not used.

    Raises:
      ValueError: the file cannot be read; a tensor is missing, unknown, of another shape, of integers or not
        finite.
    """
    tensors = {key: value for key, value in look_up(path).items() if not key.startswith(UNUSED) and COUNTERS not in key}
    image = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    shapes = jax.eval_shape(InceptionV3(resize=False).init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), to_params(tensors, shapes, where=str(path)))
