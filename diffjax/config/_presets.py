"""Configurations to start from, by name: for each, what it is in a few words, and where it is other than `Config()`."""

import types
from collections.abc import Mapping
from typing import Any

from diffjax.config._options import (
    Config,
    DataConfig,
    FamilyConfig,
    GuidanceConfig,
    NetworkConfig,
    OptimiserConfig,
    SamplerConfig,
)
from diffjax.config._registry import Names


def _penalties(gamma: float) -> dict[str, Any]:
    """Of R3GAN."""
    return {"r1": gamma, "r2": gamma, "gamma_final": 0.1}


_R3GAN: dict[str, Any] = {"warmup": 0, "final": 0.25, "clip": 10.0, "beta1": 0.0, "beta2": 0.9, "beta2_final": 0.99}
_ROWS = (
    # 1,437 images to train on.
    Config(
        "digits",
        steps=1200,
        batch_size=64,
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup=100),
        guidance=GuidanceConfig(scale=1.1),
    ),
    # 60,000 images of 28x28 pixels (or the 10,000 of the test part alone). An image costs five times as much as one of
    # digits, 0.4 GFLOP a step.
    Config(
        "mnist",
        steps=4000,
        batch_size=64,
        data=DataConfig("mnist"),
        network=NetworkConfig(channels=(16, 32, 64), attention=(2,)),
        guidance=GuidanceConfig(scale=1.1),
    ),
    # 50,000 colour images of 32x32 pixels; a network of the size of DDPM's (Ho et al. 2020, appendix B), 35 GFLOP an
    # image and step.
    Config(
        "cifar10",
        steps=200_000,
        ema_decay=0.9999,
        data=DataConfig("cifar10", flip=True),
        network=NetworkConfig(channels=(128, 256, 256, 256), blocks=2, head_channels=64, dropout=0.1),
        optimiser=OptimiserConfig(learning_rate=2e-4, warmup=5000),
        guidance=GuidanceConfig(scale=1.1),
        sampler=SamplerConfig(steps=25),
    ),
    # A minute on a laptop.
    Config(
        "toy2d",
        batch_size=512,
        data=DataConfig("mixture", conditional=False),
        network=NetworkConfig("mlp"),
        optimiser=OptimiserConfig(learning_rate=2e-3),
        guidance=GuidanceConfig(dropout=0.0, scale=1.0),
    ),
    # Fresh scenes in each step; 0.8 million parameters. Attention, and with it the text, at 8x8 and 4x4 pixels.
    Config(
        "shapes",
        steps=3000,
        batch_size=32,
        data=DataConfig("shapes", holdout=0.1),
        network=NetworkConfig(channels=(16, 32, 64), attention=(1, 2), head_channels=16),
        optimiser=OptimiserConfig(learning_rate=2e-3),
        guidance=GuidanceConfig(scale=3.0),
    ),
    Config(
        "digit_scenes",
        steps=3000,
        batch_size=32,
        data=DataConfig("digit_scenes", holdout=0.1),
        network=NetworkConfig(channels=(16, 32, 64), attention=(1, 2), head_channels=16),
        optimiser=OptimiserConfig(learning_rate=2e-3),
        guidance=GuidanceConfig(scale=3.0),
    ),
    # The pixels of digits are 17 grey levels.
    Config(
        "digits_vae",
        batch_size=64,
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup=100),
        family=FamilyConfig("vae", "logistic", levels=17),
    ),
    Config(
        "digits_hvae",
        steps=1200,
        batch_size=64,
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup=100),
        family=FamilyConfig("hierarchical_vae", "logistic", levels=17),
    ),
    Config(
        "digits_autoencoder",
        steps=1000,
        batch_size=64,
        data=DataConfig(conditional=False),
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup=100),
        family=FamilyConfig("autoencoder"),
    ),
    Config(
        "toy2d_vae",
        batch_size=512,
        data=DataConfig("mixture", conditional=False),
        optimiser=OptimiserConfig(learning_rate=2e-3),
        family=FamilyConfig("vae", latents=2, width=128),
    ),
    # R3GAN's recipe, of the denoising GANs, too.
    Config(
        "digits_gan",
        steps=2000,
        batch_size=64,
        optimiser=OptimiserConfig(5e-4, **_R3GAN),
        family=FamilyConfig("gan", loss="relativistic", latents=32, width=16, every=4, **_penalties(0.5)),
    ),
    # With the same rate for both, the generator, a U-Net, outruns the discriminator, which stays at chance.
    Config(
        "digits_ddgan",
        steps=3000,
        batch_size=64,
        optimiser=OptimiserConfig(**_R3GAN),
        family=FamilyConfig(
            "ddgan", loss="relativistic", latents=32, width=16, every=4, generator_rate=0.1, **_penalties(0.05)
        ),
    ),
    Config(
        "toy2d_gan",
        steps=4000,
        batch_size=256,
        data=DataConfig("mixture", conditional=False),
        optimiser=OptimiserConfig(1e-3, **_R3GAN),
        family=FamilyConfig("gan", loss="relativistic", width=128, depth=3, **_penalties(0.1)),
    ),
    Config(
        "toy2d_ddgan",
        steps=4000,
        batch_size=256,
        data=DataConfig("mixture", conditional=False),
        optimiser=OptimiserConfig(1e-3, **_R3GAN),
        family=FamilyConfig("ddgan", loss="relativistic", width=128, depth=3, **_penalties(0.1)),
    ),
)
PRESETS: Mapping[str, Config] = types.MappingProxyType(Names({config.name: config for config in _ROWS}))
ABOUT: Mapping[str, str] = {
    "digits": "Class-conditional 8x8 digits with a U-Net; a few minutes on two cores.",
    "mnist": "Class-conditional 28x28 digits; --data.path is the folder of MNIST's files.",
    "cifar10": "Class-conditional 32x32 images with a U-Net of DDPM's size, for an accelerator; "
    "--data.path is the folder or .tar.gz of CIFAR-10's files.",
    "toy2d": "Points in the plane with a multilayer perceptron; --data.name chooses their density.",
    "shapes": "Scenes of two coloured shapes from their captions; --data.text is the folder of encode-text.",
    "digit_scenes": "Scenes of two digits from their captions; --data.text is the folder of encode-text.",
    "digits_vae": "Class-conditional 8x8 digits with a variational autoencoder.",
    "digits_hvae": "Class-conditional 8x8 digits with a hierarchical variational autoencoder.",
    "digits_autoencoder": "The autoencoder of latent diffusion on 8x8 digits.",
    "toy2d_vae": "Points in the plane with a variational autoencoder.",
    "digits_gan": "Class-conditional 8x8 digits with a GAN: R3GAN's recipe.",
    "digits_ddgan": "Class-conditional 8x8 digits with a denoising diffusion GAN of four steps.",
    "toy2d_gan": "Points in the plane with a GAN: R3GAN's recipe.",
    "toy2d_ddgan": "Points in the plane with a denoising diffusion GAN of four steps.",
}
"""What each preset is."""
