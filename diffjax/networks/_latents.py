"""An autoencoder's latent space as two pure functions: diffusion in it is a wrapper around data and samples.

    x0 --encode--> z = scaling_factor (mean + std eps - shift_factor) ---> training, sampling ---> z --decode--> x0

Nothing else knows of it: the diffusion's data are z. Source: Rombach et al. 2022, section 3.2 and appendix G (rescaling
to unit standard deviation).
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import default_index, normal_like, sample_keys
from diffjax._typing import Index, Key, Sample
from diffjax.networks._autoencoder import AutoencoderKL


class LatentSpace(eqx.Module):
    """Images <-> latents of about unit variance, by an autoencoder with its parameters.

        latents = LatentSpace(params, autoencoder)
        source = data.encoded(images, latents.encode)     # train on these: any network, loss and process
        z = sample(key, process, denoiser, zT, ts, stepper)
        x0 = latents.decode(z)

    Attributes:
      params: of the autoencoder, a tree; leaves of this.
      autoencoder: an `AutoencoderKL`.
    """

    params: Any
    autoencoder: AutoencoderKL = eqx.field(static=True)

    def encode(self, key: Key, x0: Sample, *, index: Index | None = None) -> Float[Array, "b h w c"]:
        """A draw z [b, h', w', latent_channels] from q(z | x0) for images x0 [b, h, w, c].

        The draw of image i depends on the key and its global index alone (default 0 .. b - 1).
        """
        mean, std = self.moments(x0)
        return mean + std * normal_like(sample_keys(key, default_index(x0.shape[0], index)), mean)

    def moments(self, x0: Sample) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """(mean, std) of q(z | x0), each [b, h', w', latent_channels], for images x0 [b, h, w, c]."""
        mean, logvar = self._call(x0, method="encode")
        scale, shift = self.autoencoder.scaling_factor, self.autoencoder.shift_factor
        return scale * (mean - shift), abs(scale) * jnp.exp(0.5 * logvar)

    def decode(self, z: Float[Array, "b h w c"]) -> Sample:
        """Images x0 [b, h, w, c] of latents z [b, h', w', latent_channels]."""
        return self._call(z / self.autoencoder.scaling_factor + self.autoencoder.shift_factor, method="decode")

    def _call(self, x: Any, method: str) -> Any:
        return self.autoencoder.apply({"params": self.params}, x, method=method)
