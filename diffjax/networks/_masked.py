"""An autoregressive decoder: masked convolutions, so that a pixel's numbers come from the pixels before it alone.

    x [b, h, w, c] -> conv A -> n x [ h + conv 1x1(SiLU(conv B(SiLU(h)) + Dense(z))) ] -> SiLU -> conv 1x1 -> y

    mask of a kernel, in raster order        A: without the pixel itself      B: with it
        1 1 1                                    1 1 1                            1 1 1
        1 . 0                                    1 0 0                            1 1 0
        0 0 0                                    0 0 0                            0 0 0

Only the first convolution has mask A; of the later ones, a pixel's features hold pixels before it alone already. The
channels of a pixel are predicted at once. With a receptive field that covers the image such a decoder needs no latents,
which is how a posterior collapses. A blind spot remains, whatever the depth: r rows above, what lies more than r times
kernel // 2 columns to the right.

Source: van den Oord et al. 2016 (Pixel recurrent neural networks), section 3.4, arXiv:1601.06759; the blind spot: van
den Oord et al. 2016 (Conditional image generation with PixelCNN decoders), section 2.2, arXiv:1606.05328.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._blocks import conv
from diffjax.networks._init import constant, normal
from diffjax.networks._layers import dense, float32_at_least


@checked_numbers
class MaskedDecoder(nn.Module):
    """`(x [b, h, w, c], c_noise, z [b, k] or None) -> y [b, h, w, outputs c]`, y at a pixel of x before it and of z.

    It is the network of `vae.Autoregressive`. c_noise is ignored.

    Attributes:
      width: channels of the hidden layers.
      depth: residual blocks; each widens the receptive field by kernel // 2 pixels.
      kernel: side of the masked kernels, odd.
      outputs: numbers that the likelihood needs for each feature of an image.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field that does not fit, an x that is no batch of images, or a z that is not [b, k].
    """

    width: int = 32
    depth: int = 4
    kernel: int = 3
    outputs: int = 1
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if min(self.width, self.outputs) < 1 or self.depth < 0:
            got = f"{self.width}, {self.outputs} and {self.depth}"
            raise ValueError(f"width, outputs, depth: at least 1, 1 and 0 are needed, got {got}")
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel: an odd side of at least 3 is needed, got {self.kernel}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c_noise: ArrayLike | None = None, cond: Cond = None
    ) -> Float[Array, "b h w k"]:
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        if cond is not None and (jnp.ndim(cond) != 2 or cond.shape[0] != x.shape[0]):
            raise ValueError(f"z: latents [b, k] are needed as the condition, got shape {jnp.shape(cond)}")
        h = self._masked(x, "in", centre=False)
        for i in range(self.depth):
            u = self._masked(nn.silu(h), f"masked__{i}", centre=True)
            if cond is not None:
                u = u + dense(self.width, self.dtype, name=f"latents__{i}")(cond)[:, None, None].astype(u.dtype)
            h = h + conv(self.width, 1, self.dtype, name=f"close__{i}")(nn.silu(u))
        y = conv(self.outputs * x.shape[-1], 1, self.dtype, name="out")(nn.silu(h))
        return y.astype(float32_at_least(self.dtype))

    def _masked(self, x, name, *, centre):
        """A masked convolution; its kernel is drawn as if the masked entries were not there."""
        mask = causal_mask(self.kernel, centre=centre)
        fan_in = int(mask.sum()) * x.shape[-1]
        return nn.Conv(
            self.width,
            (self.kernel, self.kernel),
            kernel_init=normal(fan_in**-0.5),
            bias_init=constant(0.0),
            mask=np.broadcast_to(mask[:, :, None, None], (*mask.shape, x.shape[-1], self.width)),
            dtype=self.dtype,
            name=name,
        )(x)


@checked_numbers
def causal_mask(kernel: int, *, centre: bool) -> Float[np.ndarray, "k k"]:
    """1 at the places of a kernel [k, k] before its middle in raster order, and there if `centre`; else 0.

    >>> causal_mask(3, centre=True).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    flat = np.zeros(kernel * kernel, np.float32)
    flat[: kernel * kernel // 2 + centre] = 1
    return flat.reshape(kernel, kernel)
