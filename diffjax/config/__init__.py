"""Configurations: what a run is, as plain values; the only place where a name is a string.

    JSON <--> Config --build_data--> Data       --+
                     --build-------> Parts      --+--> the command line, or a script of yours

A `Config` is a tree of frozen dataclasses with a docstring for each field (the command line shows them). Names are
looked up in the tables here; a number left at None is the default of what the name stands for, and a number that the
name has no use for is refused.
"""

from diffjax.config._build import (
    Parts as Parts,
    build as build,
    build_grid as build_grid,
    build_network as build_network,
    build_optimiser as build_optimiser,
    build_stepper as build_stepper,
)
from diffjax.config._check import check_config as check_config, check_seed as check_seed
from diffjax.config._data import TOYS as TOYS, Data as Data, build_data as build_data
from diffjax.config._json import (
    differences as differences,
    essence as essence,
    from_json as from_json,
    to_json as to_json,
)
from diffjax.config._names import (
    GRIDS as GRIDS,
    PARAMETERISATIONS as PARAMETERISATIONS,
    PROCESSES as PROCESSES,
    STEPPERS as STEPPERS,
    TIMES as TIMES,
    WEIGHTINGS as WEIGHTINGS,
)
from diffjax.config._options import (
    Config as Config,
    DataConfig as DataConfig,
    GuidanceConfig as GuidanceConfig,
    NetworkConfig as NetworkConfig,
    OptimiserConfig as OptimiserConfig,
    ParameterisationConfig as ParameterisationConfig,
    ProcessConfig as ProcessConfig,
    SamplerConfig as SamplerConfig,
    TimesConfig as TimesConfig,
    WeightingConfig as WeightingConfig,
)
from diffjax.config._presets import PRESETS as PRESETS
