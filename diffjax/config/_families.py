"""From a configuration to the family of models that it names.

Config, Samples --build_run--> Run: config, samples, family, parts (of a diffusion)
"""

import dataclasses
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from diffjax._numbers import checked_numbers
from diffjax._typing import Params
from diffjax.config import _names as names
from diffjax.config._autoencoder_family import AutoencoderFamily
from diffjax.config._build import build, build_optimiser
from diffjax.config._check import check_config
from diffjax.config._data import Samples
from diffjax.config._diffusion_family import diffusion_family
from diffjax.config._family import AbstractFamily, DiffusionFamily, Setting
from diffjax.config._json import differences
from diffjax.config._options import Config, FamilyConfig, OptimiserConfig
from diffjax.config._parts import Parts
from diffjax.config._registry import belongs_to, construct, takes
from diffjax.networks import AutoencoderKL
from diffjax.training import Family


class Run(NamedTuple):
    """What a run is, but for its parameters."""

    config: Config
    samples: Samples
    family: Family
    parts: Parts | None
    """The objects of a diffusion or a flow map; None of another family."""


@checked_numbers
def build_run(config: Config, samples: Samples, stage: int | None = None) -> Run:
    """The family of a configuration, for samples of a kind.

    Args:
      config: what to build.
      samples: what samples are like; of `Data` its `samples`.
      stage: of a diffusion that is trained in stages, the last by default.

    Raises:
      ValueError: a number is out of range, or an option is none of the family's.
    """
    check_config(config)
    made = construct("family", names.FAMILIES, config.family)
    for option in sorted(config.family.declared - {"name"}):
        value = getattr(config.family, option)
        if value != getattr(FamilyConfig(), option) and not takes(names.FAMILIES[config.family.name], option):
            belongs = belongs_to(names.FAMILIES, option)
            raise ValueError(f"family.{option}: {config.family.name} has no such option, got {value}; {belongs}")
    for group in made.unused:
        given, plain = getattr(config, group), getattr(Config(), group)
        if given != plain:
            path, _, value = differences(plain, given, group)[0]
            raise ValueError(f"{path}: family {config.family.name} has no use for it, got {value}; leave it out")
    if samples.trained_encoder is None and (rate := config.optimiser.text_rate) != OptimiserConfig.text_rate:
        raise ValueError(
            f"optimiser.text_rate: no text encoder is trained, got {rate}; it needs data.text_encoder joint"
        )
    if isinstance(made, DiffusionFamily):
        return with_parts(
            config,
            samples,
            build(
                config,
                samples.classes,
                stage,
                numbers=samples.numbers,
                text=samples.text,
                trained_encoder=samples.trained_encoder,
            ),
        )
    if samples.text is not None or samples.numbers is not None:
        kind = "a text" if samples.text is not None else f"{samples.numbers} numbers"
        raise ValueError(
            f"data.conditional: family {config.family.name} is conditioned on labels alone, got {kind}; "
            "--data.no-conditional, without --data.text"
        )
    if config.teacher is not None:
        raise ValueError(f"teacher: family {config.family.name} learns from none, got {config.teacher}")
    optimiser = lambda updates: build_optimiser(config.optimiser, config.steps, updates=updates)
    setting = Setting(samples.shape, samples.classes, samples.pictures, optimiser, config.steps)
    return Run(config, samples, made.make(setting), None)


def check_data(config: Config, x0: np.ndarray) -> None:
    """Raises `ValueError` for data [n, *d] that the family of a configuration cannot model."""
    made = construct("family", names.FAMILIES, config.family)
    if isinstance(made, AbstractFamily):
        made.check_data(x0)


def trained_autoencoder(run: Run, params: Params) -> tuple[AutoencoderKL, Params]:
    """(module, its parameters) of a run of the family autoencoder, whose latents have about mean 0 and variance 1.

        run, params = diffjax.config.load_run("runs/digits_autoencoder")
        module, weights = diffjax.config.trained_autoencoder(run, params)
        interop.save_pretrained("vae", weights, interop.autoencoder_config(module))

    Args:
      run: of `load_run`.
      params: its parameters.

    Raises:
      ValueError: the run is of another family.
    """
    made = construct("family", names.FAMILIES, run.config.family)
    if not isinstance(made, AutoencoderFamily):
        raise ValueError(f"run: one of the family autoencoder is needed, got {run.config.family.name}")
    return made.trained(run.samples.shape, params)


def with_parts(config: Config, samples: Samples, parts: Parts) -> Run:
    """The run of a diffusion's parts, such as those of a stage of its training."""
    return Run(config, samples, diffusion_family(config, samples, parts), parts)


def with_family_defaults(config: Config, given: Collection[str]) -> Config:
    """A configuration whose groups of options that its family has no use for are as in `Config()`.

    So are those of the family's own group that the family, or its likelihood, does not take.

    Args:
      config: a preset, say, which is made for diffusion or another family, with changes.
      given: paths of the options that were changed, such as "network.width": they stay, for `build_run` to refuse.
    """
    for group in names.FAMILIES[config.family.name].unused:
        part, plain = getattr(config, group), getattr(Config(), group)
        stay = {name: value for name, value in vars(part).items() if f"{group}.{name}" in given}
        config = dataclasses.replace(config, **{group: dataclasses.replace(plain, **stay)})
    return dataclasses.replace(config, family=_with_own_defaults(config.family, given))


def _with_own_defaults(family: FamilyConfig, given: Collection[str]) -> FamilyConfig:
    """The numbers and options of a family without those, not given, that are another family's or likelihood's."""
    row = names.FAMILIES[family.name]
    others = {option for option in vars(family) if option != "name" and not takes(row, option)}
    plain = {option: getattr(FamilyConfig(), option) for option in others if f"family.{option}" not in given}
    family = dataclasses.replace(family, **plain)
    if family.likelihood != "logistic" and "family.levels" not in given:
        family = dataclasses.replace(family, levels=None)
    return family
