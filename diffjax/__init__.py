"""diffjax: a functional diffusion toolkit on JAX.

Everything is a pure function around the denoiser, `D(xt, t) -> x0_hat`:

    process, parameterisation, losses      train a network into a denoiser
    guidance                               denoiser -> denoiser
    samplers, likelihood, inverse          what a denoiser is for
    analytic                               exact denoisers, to measure all of it against

The top level has what a first training and sampling need; everything else is in its package, and each name in one
place alone: `dj.sample` and `dj.samplers.Euler`, `dj.Cosine` and `dj.process.Shifted`, `dj.denoising_loss` and
`dj.losses.negative_continuous_elbo`. `diffjax.training`, `diffjax.data`, `diffjax.metrics` and `diffjax.interop` are
imported by name. `diffjax.load` reads a run of `diffjax train` back.
"""

from typing import Any

from diffjax import (
    analytic as analytic,
    flow_maps as flow_maps,
    gan as gan,
    guidance as guidance,
    inverse as inverse,
    likelihood as likelihood,
    losses as losses,
    networks as networks,
    operators as operators,
    parameterisation as parameterisation,
    process as process,
    samplers as samplers,
    vae as vae,
)
from diffjax._typing import Denoiser as Denoiser, Network as Network
from diffjax.analytic._base import exact_denoiser as exact_denoiser
from diffjax.analytic._flow_map import exact_flow_map as exact_flow_map
from diffjax.analytic._gaussian import Gaussian as Gaussian
from diffjax.analytic._mixture import GaussianMixture as GaussianMixture
from diffjax.guidance._classifier_free import classifier_free as classifier_free
from diffjax.likelihood._divergence import Hutchinson as Hutchinson
from diffjax.likelihood._flow import log_likelihood as log_likelihood
from diffjax.losses._denoising import denoising_loss as denoising_loss
from diffjax.networks._adapters import from_equinox as from_equinox, from_linen as from_linen, from_nnx as from_nnx
from diffjax.parameterisation._denoiser import make_denoiser as make_denoiser, score as score
from diffjax.parameterisation._diffusion import Diffusion as Diffusion
from diffjax.parameterisation._flow_map import make_flow_map as make_flow_map
from diffjax.parameterisation._linear import (
    EpsPrediction as EpsPrediction,
    VelocityPrediction as VelocityPrediction,
    VPrediction as VPrediction,
    X0Prediction as X0Prediction,
)
from diffjax.process._gaussian import perturb as perturb, posterior_mean_std as posterior_mean_std, prior as prior
from diffjax.process._grids import edm_grid as edm_grid, logsnr_grid as logsnr_grid, uniform_grid as uniform_grid
from diffjax.process._rectified import Rectified as Rectified
from diffjax.process._sde import per_sample_path as per_sample_path
from diffjax.process._times import StratifiedTimes as StratifiedTimes, UniformTimes as UniformTimes
from diffjax.process._ve import EDM as EDM, VarianceExploding as VarianceExploding
from diffjax.process._vp import Cosine as Cosine, VariancePreserving as VariancePreserving
from diffjax.samplers._base import sample as sample
from diffjax.samplers._ddim import DDIM as DDIM
from diffjax.samplers._ddpm import DDPM as DDPM
from diffjax.samplers._diffrax import (
    integrate as integrate,
    probability_flow as probability_flow,
    reverse_sde as reverse_sde,
)
from diffjax.samplers._dpmpp import DPMpp2M as DPMpp2M
from diffjax.samplers._heun import Heun as Heun
from diffjax.samplers._jump import Jump as Jump
from diffjax.samplers._sample_n import sample_n as sample_n
from diffjax.samplers._unipc import UniPC as UniPC

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, whose modules (of checkpoints and configurations) are imported where it is used."""
    if name == "load":
        from diffjax.config import load

        return load
    raise AttributeError(f"module 'diffjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load"]
