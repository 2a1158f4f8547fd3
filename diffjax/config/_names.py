"""What each name in a configuration stands for: one row of one table, and nothing else to write in config/ or cli/."""

from collections.abc import Callable
from typing import Any

from jax.typing import DTypeLike

from diffjax import data, guidance, losses, networks, parameterisation, process, samplers
from diffjax._typing import Denoiser
from diffjax.config import _bounds, _denoising, _maps, _processes, _score_matching
from diffjax.config._autoencoder_family import AutoencoderFamily
from diffjax.config._family import DiffusionFamily
from diffjax.config._gan_family import DenoisingGANFamily, GANFamily
from diffjax.config._registry import Names, made, part, preset
from diffjax.config._vae_family import HierarchicalVAEFamily, VAEFamily
from diffjax.data import _parts as parts
from diffjax.networks._adapters import LinenModule
from diffjax.parameterisation._linear import EpsPrediction, VelocityPrediction, VPrediction, X0Prediction
from diffjax.process._grids import edm_grid, logsnr_grid, uniform_grid
from diffjax.process._rectified import Rectified
from diffjax.process._times import StratifiedTimes, UniformTimes
from diffjax.process._ve import EDM, VarianceExploding
from diffjax.process._vp import Cosine, VariancePreserving
from diffjax.samplers._ddim import DDIM
from diffjax.samplers._ddpm import DDPM
from diffjax.samplers._dpmpp import DPMpp2M
from diffjax.samplers._heun import Heun
from diffjax.samplers._jump import Jump
from diffjax.samplers._unipc import UniPC

FAMILIES = Names(
    {
        "diffusion": DiffusionFamily,
        "vae": VAEFamily,
        "hierarchical_vae": HierarchicalVAEFamily,
        "autoencoder": AutoencoderFamily,
        "gan": GANFamily,
        "ddgan": DenoisingGANFamily,
    }
)
"""Kinds of models: rows but the first are of `AbstractFamily`."""
PROCESSES = Names(
    {
        "variance_preserving": VariancePreserving,
        "sub_vp": process.SubVP,
        "cosine": Cosine,
        "offset_cosine": process.OffsetCosine,
        "ornstein_uhlenbeck": process.OrnsteinUhlenbeck,
        "variance_exploding": VarianceExploding,
        "variance_exploding_from_zero": process.VarianceExplodingFromZero,
        "edm": EDM,
        "rectified": Rectified,
        "polynomial": process.Polynomial,
        "linear_chain": made(_processes.linear_chain),
        "scaled_linear_chain": made(_processes.scaled_linear_chain),
        "cosine_chain": made(_processes.cosine_chain),
        "learned_logsnr": process.LearnedLogsnr,
        "monotone_logsnr": made(_processes.monotone_logsnr),
    }
)
PARAMETERISATIONS = Names(
    {
        "eps": EpsPrediction,
        "x0": X0Prediction,
        "score": parameterisation.ScorePrediction,
        "v": VPrediction,
        "velocity": VelocityPrediction,
        "edm": parameterisation.EDMPrediction,
    }
)
WEIGHTINGS = Names(
    {
        "constant": losses.constant,
        "native": losses.native,
        "on_x0": losses.on_x0,
        "on_score": losses.on_score,
        "on_v": losses.on_v,
        "flow_matching": losses.flow_matching,
        "likelihood": losses.likelihood_weighting,
        "edm": losses.EDMWeighting,
        "min_snr": losses.MinSNR,
        "soft_min_snr": losses.SoftMinSNR,
        "sigmoid": losses.Sigmoid,
        "p2": losses.P2,
    }
)
LOSSES = Names(
    {
        "denoising": _denoising.Denoising,
        "pseudo_huber": _denoising.PseudoHuber,
        "assignment": _denoising.Assignment,
        "optimal_transport": _denoising.OptimalTransport,
        "uncertainty": _denoising.Uncertainty,
        "ncsn": _denoising.NCSN,
        "continuous_elbo": _bounds.ContinuousELBO,
        "discrete_elbo": _bounds.DiscreteELBO,
        "ddpm_bound_large": _bounds.LargeVarianceBound,
        "ddpm_bound_small": _bounds.SmallVarianceBound,
        "ddpm_bound_learned": _bounds.LearnedVarianceBound,
        "learned_variance": _bounds.LearnedVariance,
        "implicit_score_matching": _score_matching.ImplicitScoreMatching,
        "sliced_score_matching": _score_matching.SlicedScoreMatching,
        "sliced_score_matching_vr": _score_matching.SlicedScoreMatchingVR,
        "finite_difference_sliced": _score_matching.FiniteDifferenceSliced,
        "mean_flow": _maps.MeanFlow,
        "improved_mean_flow": _maps.ImprovedMeanFlow,
        "shortcut": _maps.Shortcut,
        "consistency": _maps.Consistency,
        "continuous_consistency": _maps.ContinuousConsistency,
        "progressive": _maps.Progressive,
    }
)
"""Losses of Gaussian processes. `losses.hybrid_loss` has no row: critically damped Langevin, its process, is none."""
DISTILLERS = Names({name: row for name, row in LOSSES.items() if row.distils})
"""Losses that learn from a teacher."""
TIMES = Names(
    {
        "uniform": UniformTimes,
        "stratified": StratifiedTimes,
        "low_discrepancy": process.LowDiscrepancyTimes,
        "lognormal": process.LognormalTimes,
        "logit_normal": process.LogitNormalTimes,
        "mode": process.ModeTimes,
        "logsnr": process.LogsnrTimes,
    }
)
STEPPERS = Names(
    {
        "ddim": DDIM,
        "cfgpp": preset(
            "CFG++: DDIM that renoises with uncond; order 1, one evaluation a step. The guidance scale is its strength "
            "in each step, 0 to 1.",
            samplers.CFGpp,
        ),
        "euler": samplers.Euler,
        "heun": Heun,
        "jump": Jump,
        "dpm_solver2": preset("DPM-Solver-2, singlestep: order 2, two evaluations a step.", samplers.DPMSolver, 2),
        "dpm_solver3": preset("DPM-Solver-3, singlestep: order 3, three evaluations a step.", samplers.DPMSolver, 3),
        "dpmpp2s": samplers.DPMpp2S,
        "dpmpp2m": DPMpp2M,
        "dpmpp3m": samplers.DPMpp3M,
        "dpmpp3m_published": samplers.DPMpp3MPublished,
        "unipc": UniPC,
        "deis": samplers.DEIS,
        "lms": samplers.LMS,
        "ipndm": samplers.IPNDM,
        "ddpm": DDPM,
        "euler_ancestral": samplers.EulerAncestral,
        "dpm2_ancestral": samplers.DPM2Ancestral,
        "dpmpp2s_ancestral": samplers.DPMpp2SAncestral,
        "sde_dpmpp2m": samplers.SDEDPMpp2M,
        "sde_dpmpp3m": samplers.SDEDPMpp3M,
        "dpmpp_sde": samplers.DPMppSDE,
        "sa_solver": preset(
            "SA-Solver: weak order 2, one evaluation a step, corrected.",
            samplers.ExponentialAdams,
            part(X0Prediction),
            order=3,
            corrector=True,
            eta=1.0,
        ),
        "seeds2": samplers.SEEDS2,
        "seeds3": samplers.SEEDS3,
        "churn": preset(
            "EDM's stochastic sampler: weak order 2, two evaluations a step.", samplers.Churn, s_churn=10.0
        ),
        "predictor_corrector": preset(
            "DDPM's step, then Langevin corrections: one evaluation per step and one per correction.",
            samplers.PredictorCorrector,
            part(DDIM, eta=1.0),
        ),
        "langevin_corrected": preset(
            "DDIM's step, then Langevin steps of a given size: one evaluation per step and one per correction.",
            samplers.LangevinCorrected,
            part(DDIM),
        ),
    }
)
GRIDS = Names(
    {
        "uniform": uniform_grid,
        "quadratic": process.quadratic_grid,
        "edm": edm_grid,
        "logsnr": logsnr_grid,
        "snr": process.snr_grid,
        "shifted": process.shifted_grid,
        "angle": process.angle_grid,
        "line": process.line_grid,
    }
)
TOYS = Names(
    {
        "mixture": data.mixture,
        "two_moons": data.two_moons,
        "checkerboard": data.checkerboard,
        "swiss_roll": data.swiss_roll,
    }
)
DATA = Names(
    {
        "digits": parts.digits_parts,
        **TOYS,
        "file": parts.file_parts,
        "image_folder": parts.image_folder_parts,
        "mnist": parts.mnist_parts,
        "cifar10": parts.cifar10_parts,
        "shapes": data.shapes,
        "digit_scenes": data.digit_scenes,
    }
)


GUIDANCES = Names(
    {
        "cfg": preset("classifier-free guidance, cond + (scale - 1) (cond - uncond).", guidance.Linear),
        "rescaled": guidance.Rescaled,
        "projected": guidance.Projected,
        "cfg_zero": preset(
            "CFG-Zero*: the unconditional velocity is first scaled to fit the conditional one.",
            guidance.OnPrediction,
            parameterisation=part(VelocityPrediction),
            rule=part(guidance.OptimalScale),
        ),
    }
)


def _static_threshold(denoiser: Denoiser, bound: float) -> Denoiser:
    """Every value of x0_hat is clipped to [-clip, clip]."""
    return guidance.static_threshold(denoiser, -bound, bound)


THRESHOLDS = Names({"static": _static_threshold, "dynamic": guidance.dynamic_threshold})


def _of_paper(
    make: Callable[..., LinenModule],
    *,
    channels: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...],
    num_classes: int | None,
    text_width: int | None,
    dropout: float,
    dtype: DTypeLike,
    remat: bool,
    **own: int,
) -> LinenModule:
    """A paper's U-Net from the numbers of a configuration."""
    numbers: dict[str, Any] = {"attention": attention, "blocks": blocks, "dropout": dropout, **own}
    return make(channels, num_classes=num_classes, text_width=text_width, **numbers).clone(dtype=dtype, remat=remat)


def _efficient(
    *,
    channels: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...],
    head_channels: int,
    num_classes: int | None,
    text_width: int | None,
    dropout: float,
    dtype: DTypeLike,
    remat: bool,
    scan: bool,
) -> networks.EfficientUNet:
    """Imagen's Efficient U-Net: each level after the first halves, then works; levels with attention see the text."""
    strides = (1, *(2,) * (len(channels) - 1))
    same = (blocks,) * len(channels)
    return networks.EfficientUNet(
        channels,
        same,
        strides,
        attention,
        attention,
        head_channels,
        text_width,
        num_classes=num_classes,
        dropout=dropout,
        dtype=dtype,
        remat=remat,
        scan=scan,
    )


NETWORKS = Names(
    {
        "mlp": networks.MLP,
        "unet": networks.UNet,
        "ddpm": preset(networks.ddpm.__doc__, _of_paper, networks.ddpm),
        "ddpmpp": preset(networks.ddpmpp.__doc__, _of_paper, networks.ddpmpp),
        "ncsnpp": preset(networks.ncsnpp.__doc__, _of_paper, networks.ncsnpp),
        "adm": preset(networks.adm.__doc__, _of_paper, networks.adm, head_channels=64),
        "edm2": networks.EDM2UNet,
        "efficient": made(_efficient),
        "dit": networks.DiT,
        "uvit": networks.UViT,
    }
)
