"""Configurations to start from, by name."""

import types
from collections.abc import Mapping

from diffjax.config._options import (
    Config,
    DataConfig,
    GuidanceConfig,
    NetworkConfig,
    OptimiserConfig,
    ParameterisationConfig,
    ProcessConfig,
    SamplerConfig,
    TimesConfig,
    WeightingConfig,
)

PRESETS: Mapping[str, Config] = types.MappingProxyType(
    {
        # 1,437 images of 8x8 pixels; a U-Net of two levels, told the class.
        "digits": Config(
            name="digits",
            steps=1200,
            batch_size=64,
            ema_decay=0.999,
            data=DataConfig(name="digits"),
            process=ProcessConfig(name="cosine"),
            parameterisation=ParameterisationConfig(name="v"),
            weighting=WeightingConfig(name="native"),
            times=TimesConfig(name="stratified"),
            network=NetworkConfig(name="unet", channels=32, multipliers=(1, 2), blocks=1, attention=(1,)),
            optimiser=OptimiserConfig(learning_rate=2e-3, warmup=100),
            guidance=GuidanceConfig(dropout=0.1, scale=1.1),
            sampler=SamplerConfig(name="dpmpp2m", steps=20, grid="logsnr"),
        ),
        # 60,000 images of 28x28 pixels (or the 10,000 of the test part alone); --data.path says where. An image costs
        # five times what one of digits does, 0.4 GFLOP a step.
        "mnist": Config(
            name="mnist",
            steps=4000,
            batch_size=64,
            ema_decay=0.999,
            data=DataConfig(name="mnist"),
            process=ProcessConfig(name="cosine"),
            parameterisation=ParameterisationConfig(name="v"),
            weighting=WeightingConfig(name="native"),
            times=TimesConfig(name="stratified"),
            network=NetworkConfig(name="unet", channels=16, multipliers=(1, 2, 4), blocks=1, attention=(2,)),
            optimiser=OptimiserConfig(learning_rate=1e-3, warmup=200),
            guidance=GuidanceConfig(dropout=0.1, scale=1.1),
            sampler=SamplerConfig(name="dpmpp2m", steps=20, grid="logsnr"),
        ),
        # 50,000 colour images of 32x32 pixels; a network of the size of DDPM's (Ho et al. 2020, appendix B), for an
        # accelerator (35 GFLOP an image and step); --data.path says where.
        "cifar10": Config(
            name="cifar10",
            steps=200_000,
            batch_size=128,
            ema_decay=0.9999,
            data=DataConfig(name="cifar10", flip=True),
            process=ProcessConfig(name="cosine"),
            parameterisation=ParameterisationConfig(name="v"),
            weighting=WeightingConfig(name="native"),
            times=TimesConfig(name="stratified"),
            network=NetworkConfig(
                name="unet",
                channels=128,
                multipliers=(1, 2, 2, 2),
                blocks=2,
                attention=(1,),
                head_channels=64,
                dropout=0.1,
            ),
            optimiser=OptimiserConfig(learning_rate=2e-4, warmup=5000),
            guidance=GuidanceConfig(dropout=0.1, scale=1.1),
            sampler=SamplerConfig(name="dpmpp2m", steps=25, grid="logsnr"),
        ),
        # Points in the plane: any toy by --data.name; a minute on a laptop.
        "toy2d": Config(
            name="toy2d",
            steps=3000,
            batch_size=512,
            data=DataConfig(name="mixture", conditional=False),
            network=NetworkConfig(name="mlp", width=128, depth=3),
            optimiser=OptimiserConfig(learning_rate=2e-3),
            guidance=GuidanceConfig(dropout=0.0, scale=1.0),
        ),
    }
)
