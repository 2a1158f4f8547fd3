"""Generative adversarial networks, and the denoising diffusion GAN.

x0, z --> pairs --> real, fake --> judge --> logits --> NonSaturating | Hinge | Relativistic      GAN | DenoisingGAN
                      |                                             |
                      +--> gradient_penalty, lazy; spectral_norm    +--> discriminator_loss, generator_loss
                                                                                   |
training_losses    both as `(params, batch, context) -> (loss, aux)`, for `training.Objective` <--+
r3gan              the annealed gamma and Adam of R3GAN
generate_samples   samples; of a denoising GAN also `sample(..., LatentAncestral(latents))`
DiracGAN           an oracle: gradient descent on two numbers is a matrix
"""

from diffjax.gan._denoising import (
    DenoisingGAN as DenoisingGAN,
    LatentAncestral as LatentAncestral,
    NetworkGenerator as NetworkGenerator,
    denoising_pairs as denoising_pairs,
)
from diffjax.gan._dirac import DiracGAN as DiracGAN
from diffjax.gan._losses import (
    AbstractGANLoss as AbstractGANLoss,
    Hinge as Hinge,
    NonSaturating as NonSaturating,
    Relativistic as Relativistic,
)
from diffjax.gan._model import (
    GAN as GAN,
    AbstractGAN as AbstractGAN,
    Pairs as Pairs,
    discriminator_loss as discriminator_loss,
    generate_samples as generate_samples,
    generator_loss as generator_loss,
    training_losses as training_losses,
)
from diffjax.gan._penalties import (
    gradient_penalty as gradient_penalty,
    init_power as init_power,
    lazy as lazy,
    spectral_norm as spectral_norm,
)
from diffjax.gan._recipe import R3GAN as R3GAN, r3gan as r3gan
