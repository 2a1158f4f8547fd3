"""Configurations: what a run is, as plain values; the only place where a name is a string.

    JSON <--> Config --build_data--> Data       --+
                     --build_run---> Run        --+--> the command line, or a script of yours
    RUN  --load----> TrainedRun: process, denoiser, ts, stepper of a trained run

A `Config` is a tree of frozen dataclasses with a docstring for each field (the command line shows them). Names are
looked up in the tables here, and the numbers that go with them are those of the rows; a number left at None is the
default of what the name stands for, and a number that the name does not take is refused. A new name is one row.
"""

from diffjax.config._build import (
    build as build,
    build_network as build_network,
    build_optimiser as build_optimiser,
    with_loss_defaults as with_loss_defaults,
)
from diffjax.config._check import check_config as check_config, check_seed as check_seed
from diffjax.config._data import Data as Data, Samples as Samples, build_data as build_data
from diffjax.config._diffusion_family import Inpainting as Inpainting, diffusion_family as diffusion_family
from diffjax.config._factors import (
    FactorReader as FactorReader,
    factor_reader as factor_reader,
    train_factors as train_factors,
)
from diffjax.config._families import (
    Run as Run,
    build_run as build_run,
    trained_autoencoder as trained_autoencoder,
    with_family_defaults as with_family_defaults,
)
from diffjax.config._family import AbstractFamily as AbstractFamily, Setting as Setting
from diffjax.config._json import (
    differences as differences,
    from_json as from_json,
    to_json as to_json,
    training_identity as training_identity,
)
from diffjax.config._names import (
    DATA as DATA,
    DISTILLERS as DISTILLERS,
    FAMILIES as FAMILIES,
    GRIDS as GRIDS,
    GUIDANCES as GUIDANCES,
    LOSSES as LOSSES,
    NETWORKS as NETWORKS,
    PARAMETERISATIONS as PARAMETERISATIONS,
    PROCESSES as PROCESSES,
    STEPPERS as STEPPERS,
    THRESHOLDS as THRESHOLDS,
    TIMES as TIMES,
    TOYS as TOYS,
    WEIGHTINGS as WEIGHTINGS,
)
from diffjax.config._options import (
    Config as Config,
    DataConfig as DataConfig,
    DistillConfig as DistillConfig,
    FamilyConfig as FamilyConfig,
    GuidanceConfig as GuidanceConfig,
    LossConfig as LossConfig,
    NetworkConfig as NetworkConfig,
    OptimiserConfig as OptimiserConfig,
    OtherGuidance as OtherGuidance,
    OtherSampler as OtherSampler,
    ParameterisationConfig as ParameterisationConfig,
    ProcessConfig as ProcessConfig,
    SamplerConfig as SamplerConfig,
    TimesConfig as TimesConfig,
    WeightingConfig as WeightingConfig,
)
from diffjax.config._parts import Parts as Parts
from diffjax.config._presets import PRESETS as PRESETS
from diffjax.config._registry import (
    Names as Names,
    changed as changed,
    construct as construct,
    made as made,
    numbers_of as numbers_of,
    optional as optional,
    options as options,
    preset as preset,
)
from diffjax.config._run import (
    TrainedRun as TrainedRun,
    begin_from_encoder as begin_from_encoder,
    fresh_state as fresh_state,
    load as load,
    load_run as load_run,
    read_samples as read_samples,
)
from diffjax.config._sampling import (
    build_denoiser as build_denoiser,
    build_grid as build_grid,
    build_stepper as build_stepper,
    rebuild_sampling as rebuild_sampling,
    samples_bound as samples_bound,
    trained_parts as trained_parts,
)
from diffjax.config._text_encoder import (
    TextEncoder as TextEncoder,
    load_text_encoder as load_text_encoder,
    make_text_encoder as make_text_encoder,
)
from diffjax.config._trained_encoder import (
    store_text_encoder as store_text_encoder,
    trained_text_encoder as trained_text_encoder,
)
