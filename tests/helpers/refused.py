"""What each public function refuses: samples of another dtype or shape, and answers that would broadcast.

    python tests/helpers/refused.py [share]

walks the tables below (all of them, or every third row with share 3), in a process of its own without the checks of
types that other tests run under, and prints a line for each fault: an input that passes, an error that is no ValueError
or does not begin with the argument's name, a public function that takes samples and has no row.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import (
    analytic,
    flow_maps,
    gan,
    guidance,
    inverse,
    likelihood,
    losses,
    metrics,
    networks,
    operators,
    parameterisation as par,
    process,
    samplers,
    vae,
)

PACKAGES = (
    *("analytic", "flow_maps", "gan", "guidance", "inverse", "likelihood", "losses", "metrics"),
    *("operators", "parameterisation", "process", "samplers", "vae"),
)
SAMPLES = {"x", "x0", "xt", "eps", "y", "a", "guide", "latent", "ut", "uncond", "error", "noise", "density0"}
SAMPLES |= {"features", "reference", "log_weights", "data", "mean", "means"}
ANSWERS = {"denoiser", "denoisers", "guided", "plain", "unwanted", "score", "score_apply", "true_score", "network"}
ANSWERS |= {"log_density", "log_densities", "log_prob", "operator", "penalty", "coupling", "times", "terminal"}
ANSWERS |= {"generator", "discriminator"}
ANSWERS |= {"pairs", "teacher", "reconstruction", "apply", "likelihood", "dequantisation", "drift", "diffusion", "pair"}

B, D = 3, 2
X = jnp.ones((B, D))
ROW = jnp.zeros(B)
PAIRS = jnp.ones((B, 2, D))
WHOLE = jnp.zeros((B, D), jnp.int32)
KEY = jax.random.key(0)
INDEX = jnp.arange(B)
VP, DAMPED = dj.VariancePreserving(), process.CriticallyDamped()
EPS = dj.EpsPrediction()
TS = jnp.linspace(0.9, 0.1, 4)
TO_ZERO = TS.at[-1].set(0.0)
IDENTITY = operators.Matrix(jnp.eye(D))
MATRIX_FREE = operators.MatrixFree(lambda x: 2 * x, lambda y: 2 * y)
QUANTISATION = likelihood.Quantisation(4)
PARAMS = {"w": jnp.ones(())}
GAUSSIAN = dj.Gaussian(jnp.zeros(D), 1.0)
MIXTURE = dj.GaussianMixture(jnp.zeros((2, D)), 1.0)
LINE = dj.GaussianMixture(jnp.zeros((2, 1)), 1.0)
EMPIRICAL = analytic.Empirical(jnp.zeros((4, D)))
BOX = analytic.Box(-6.0, 6.0, 60)
CHAIN = {"steps": 2, "step_size": 0.1}


def half(xt, t):
    """A denoiser."""
    return 0.5 * xt


def plain(params, x, c_noise, cond=None, *, key=None):
    """A network's `apply`."""
    return params["w"] * x


def slope(params, x):
    """A score network."""
    return -params["w"] * x


def log_density(x):
    """Of a standard normal."""
    return -0.5 * jnp.sum(x**2, axis=-1)


def network(apply=plain):
    """A network by its apply."""
    return dj.Network(lambda key, x, c_noise, cond=None: PARAMS, apply)


def diffusion_of(apply=plain, member=EPS):
    """A Diffusion by its network's apply."""
    return dj.Diffusion(network(apply), VP, member)


def two_answers(*args, **kwargs):
    """The apply of a network that answers with a variance too."""
    return jnp.tile(plain(*args, **kwargs), 2)


def angle_of(apply=plain):
    """A Diffusion that losses differentiate in time, by its network's apply."""
    return dj.Diffusion(network(apply), VP, dj.parameterisation.EDMPrediction(1.0, clock="angle"))


NETWORK, DIFFUSION, ANGLE = network(), diffusion_of(), dj.parameterisation.EDMPrediction(clock="angle")
MAP = diffusion_of(member=ANGLE)
STUDENT = dj.Diffusion(NETWORK, VP, dj.VPrediction())
LABELLED = par.NetworkDenoiser(DIFFUSION, PARAMS, INDEX)
FLOW_MAP = dj.make_flow_map(DIFFUSION, PARAMS, knows="any")
UNIFORM = {"times": dj.UniformTimes(VP), "weighting": losses.native}
LEVELS = {"levels": flow_maps.GridLevels(TO_ZERO), "weighting": flow_maps.unweighted}


class Row(NamedTuple):
    """A call by keywords, and good values of the arguments that are tried with bad ones, each beside its kind."""

    call: Callable[..., Any]
    values: dict[str, Any]
    kinds: dict[str, str] = {}  # noqa: RUF012 - it is not written to


def _numbers(call, **values):
    return Row(call, values, {name: "weights" if name == "weights" else "numbers" for name in values})


def _real(call, **values):
    return Row(call, values, dict.fromkeys(values, "real"))


def _paired(call, first, **values):
    """Arguments of which all but the first must have its shape."""
    return Row(call, values, {name: "samples" if name == first else "paired" for name in values})


def _loss(function, diffusion=DIFFUSION, **choices):
    return Row(lambda x0: function(diffusion, PARAMS, KEY, x0, **choices), {"x0": X})


def _rule(rule):
    call = lambda cond, uncond, xt: rule(cond, uncond, 2.0, xt, 0.5)
    return Row(call, {"xt": X, "cond": X, "uncond": X}, {"xt": "samples", "cond": "paired", "uncond": "paired"})


def _exact(distribution):
    return {
        f"{type(distribution).__name__}.{name}": _features(
            lambda xt, name=name: getattr(distribution, name)(VP, xt, 0.5)
        )
        for name in ("log_prob", "score", "denoise")
    }


def _features(call, x=X):
    return Row(call, {"xt": x}, {"xt": "features"})


def _divergence(divergence):
    probes = divergence.probes(KEY, X, INDEX)
    name = type(divergence).__name__
    found = {f"{name}.__call__": Row(lambda x: divergence(lambda x: -x, x, probes), {"x": X})}
    return found | {f"{name}.probes": Row(lambda x: divergence.probes(KEY, x, INDEX), {"x": X})}


def _scores(function, **more):
    return Row(lambda x: function(PARAMS, KEY, x, score_apply=slope, **more), {"x": X})


def _solve(function, **more):
    terms = dj.probability_flow(VP, half)
    return Row(lambda xt: function(terms, xt, TS, solver=diffrax.Heun(), **more), {"xt": X})


def _guided(denoiser):
    return Row(lambda xt: denoiser(xt, 0.5), {"xt": X})


def _known(make):
    """A posterior method, by what is known: y."""
    return Row(lambda y: make(y)(X, 0.5), {"y": X}, {"y": "observed"})


def _autoencoder():
    autoencoder = networks.AutoencoderKL(
        in_channels=1, out_channels=1, channels=(4,), blocks=1, groups=2, latent_channels=2, middle_attention=False
    )
    image = jnp.ones((B, 4, 4, 1))
    params = jax.eval_shape(autoencoder.init, KEY, image)["params"]
    return autoencoder, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params), image


def _autoencoder_training():
    autoencoder, params, image = _autoencoder()
    judge = lambda x: jnp.mean(x, (1, 2, 3))
    both = {"x0": jnp.ones((B, 4, 4, 2)), "y": jnp.ones((B, 4, 4, 2))}
    return {
        "autoencoder_loss": Row(lambda x0: vae.autoencoder_loss(autoencoder, params, KEY, x0), {"x0": image}),
        "critic_loss": Row(lambda x0, y: vae.critic_loss(judge, x0, y), both, {"y": "paired"}),
        "reconstruct": Row(lambda x0: vae.reconstruct(autoencoder, params, KEY, x0), {"x0": image}),
    }


def _latents():
    autoencoder, params, image = _autoencoder()
    space = networks.LatentSpace(params, autoencoder)
    return {
        "LatentSpace.encode": Row(lambda x0: space.encode(KEY, x0), {"x0": image}),
        "LatentSpace.moments": Row(space.moments, {"x0": image}),
        "LatentSpace.decode": Row(space.decode, {"z": jnp.ones((B, 4, 4, 2))}),
    }


CODER = network(lambda params, x, c_noise, cond=None, *, key=None: jnp.tile(x[:, :1], (1, 4)))
PLANE = network(lambda params, x, c_noise, cond=None, *, key=None: x)
MODEL = vae.VAE(CODER, PLANE, vae.GaussianLikelihood(1.0), 2)
MODEL_PARAMS = {"encoder": PARAMS, "decoder": PARAMS, "likelihood": {}}
NORMAL, POSTERIOR = vae.StandardNormal(), vae.DiagonalGaussian(X, X)
IMAGES = jnp.ones((B, 2, 2, 1))
PIXELS = vae.Autoregressive(PLANE, vae.Bernoulli(), (2, 2, 1))


def _likelihood(likelihood, params, x0, y, *, paired="paired"):
    name = type(likelihood).__name__
    return {
        f"{name}.log_prob": Row(lambda x0, y: likelihood.log_prob(params, y, x0), {"x0": x0, "y": y}, {"y": paired}),
        f"{name}.mean": Row(lambda y: likelihood.mean(params, y), {"y": y}),
        f"{name}.sample": Row(lambda y: likelihood.sample(params, jax.random.split(KEY, B), y), {"y": y}),
    }


def _coded(encoder=CODER.apply, decoder=PLANE.apply):
    model = vae.VAE(network(encoder), network(decoder), vae.GaussianLikelihood(1.0), 2)
    return vae.negative_elbo(model, MODEL_PARAMS, KEY, X)


def _chain_init(x0):
    return vae.DiffusionChain(DIFFUSION, TS, (D,)).init(KEY, x0)


def _top_down_init(x0):
    blocks = networks.TopDown((2, 2, 1), channels=(2,), blocks=(1,), latents=1)
    return vae.HierarchicalVAE(blocks, vae.DiscretisedLogistic()).init(KEY, x0)


JUDGE = network(lambda params, x, c_noise, cond=None, *, key=None: x[:, :1])
POINTS_GAN = gan.GAN(PLANE, JUDGE, latents=D)
STEPS_GAN = gan.DenoisingGAN(PLANE, JUDGE, VP, TO_ZERO, (D,), latents=2)
GAN_PARAMS = {"generator": PARAMS, "discriminator": PARAMS}


def _pairs_of(generator, x0=X):
    return gan.denoising_pairs(KEY, VP, TO_ZERO, generator, x0, latents=2, index=INDEX)


def _adversarial(generator=PLANE.apply, discriminator=JUDGE.apply):
    model = gan.GAN(network(generator), network(discriminator), latents=D)
    return gan.discriminator_loss(model, GAN_PARAMS, KEY, X)


def _by_steps(generator=PLANE.apply, discriminator=JUDGE.apply):
    model = gan.DenoisingGAN(network(generator), network(discriminator), VP, TO_ZERO, (D,), latents=2)
    return gan.discriminator_loss(model, GAN_PARAMS, KEY, X)


def _of_gan(model):
    name, given = type(model).__name__, (X, ROW + 0.2, ROW + 0.5)
    return {
        f"{name}.init": Row(lambda x0: model.init(KEY, x0), {"x0": X}),
        f"{name}.pairs": Row(lambda x0: model.pairs(GAN_PARAMS, KEY, x0, index=INDEX), {"x0": X}),
        f"{name}.logits": Row(lambda x: model.logits(PARAMS, x, given), {"x": X}),
    }


WITH_SAMPLES: dict[str, Row] = {
    # generative adversarial networks
    **_of_gan(POINTS_GAN),
    **_of_gan(STEPS_GAN),
    "discriminator_loss": Row(lambda x0: gan.discriminator_loss(STEPS_GAN, GAN_PARAMS, KEY, x0), {"x0": X}),
    "generator_loss": Row(lambda x0: gan.generator_loss(STEPS_GAN, GAN_PARAMS, KEY, x0), {"x0": X}),
    "denoising_pairs": Row(lambda x0: _pairs_of(lambda xt, t, z: xt, x0), {"x0": X}),
    "gradient_penalty": Row(lambda x: gan.gradient_penalty(lambda x: x[:, :1], x), {"x": X}),
    "NetworkGenerator.__call__": Row(lambda xt: STEPS_GAN.conditioned(GAN_PARAMS)(xt, 0.5, X), {"xt": X}),
    # variational autoencoders
    **_autoencoder_training(),
    "negative_elbo": Row(lambda x0: vae.negative_elbo(MODEL, MODEL_PARAMS, KEY, x0), {"x0": X}),
    "iwae_bound": Row(lambda x0: vae.iwae_bound(MODEL, MODEL_PARAMS, KEY, x0, draws=2), {"x0": X}),
    "infer": Row(lambda x0: vae.infer(MODEL, MODEL_PARAMS, KEY, x0), {"x0": X}),
    "infer_at": Row(lambda x0: vae.infer_at(MODEL, MODEL_PARAMS, (X,), x0), {"x0": X}),
    "VAE.init": Row(lambda x0: MODEL.init(KEY, x0), {"x0": X}),
    "HierarchicalVAE.init": Row(_top_down_init, {"x0": IMAGES}),
    "DiffusionChain.init": Row(_chain_init, {"x0": X}),
    "Autoregressive.init": Row(lambda x0, y: PIXELS.init(KEY, y, x0), {"x0": IMAGES, "y": X}),
    "DiagonalGaussian.__init__": Row(lambda mean: vae.DiagonalGaussian(mean, X), {"mean": X}),
    "as_gaussian": Row(lambda y: vae.as_gaussian(y), {"y": X}),
    "residual_gaussian": Row(
        lambda y: vae.residual_gaussian(POSTERIOR, y), {"y": jnp.ones((B, 2 * D))}, {"y": "paired"}
    ),
    "optimal_linear_vae": _numbers(
        lambda mean, covariance: vae.optimal_linear_vae(mean, covariance, 1),
        mean=jnp.zeros(D),
        covariance=jnp.diag(jnp.array([2.0, 1.0])),
    ),
    **_likelihood(vae.GaussianLikelihood(1.0), {}, X, X),
    **_likelihood(vae.DiscretisedLogistic(), {}, X, jnp.ones((B, 2 * D))),
    **_likelihood(vae.Bernoulli(), {}, X, X),
    **_likelihood(PIXELS, {"network": PARAMS, "each": {}}, IMAGES, X, paired="samples"),
    # analytic
    "Gaussian.__init__": _numbers(dj.Gaussian, mean=jnp.zeros(D), covariance=jnp.ones(D)),
    "GaussianMixture.__init__": _numbers(dj.GaussianMixture, means=X, covariances=ROW + 1, weights=ROW + 1),
    "Empirical.__init__": _numbers(analytic.Empirical, data=X, weights=ROW + 1),
    **_exact(GAUSSIAN),
    **_exact(MIXTURE),
    **_exact(EMPIRICAL),
    "ExactDenoiser.__call__": _features(lambda xt: dj.exact_denoiser(GAUSSIAN, VP)(xt, 0.5)),
    "ExactFlowMap.move": _features(lambda xt: dj.exact_flow_map(GAUSSIAN, VP).move(xt, 0.5, 0.2)),
    "quantile_flow": Row(lambda xt: analytic.quantile_flow(LINE, VP, xt, 0.5, 0.2), {"xt": X[:, :1]}),
    "fokker_planck": Row(
        lambda density0: analytic.fokker_planck(VP, BOX, density0, jnp.array([0.4, 0.41])),
        {"density0": analytic.cell_averages(BOX, lambda x: -0.5 * x[:, 0] ** 2 - 0.5 * np.log(2 * np.pi))},
    ),
    # guidance
    "Guided.__call__": _guided(guidance.extrapolate(half, half, 2.0)),
    "Guided.with_base": Row(lambda xt: guidance.extrapolate(half, half, 2.0).with_base(xt, 0.5), {"xt": X}),
    "OnePass.__call__": _guided(guidance.OnePass(LABELLED, 0 * INDEX)),
    "TwoPasses.__call__": _guided(guidance.TwoPasses(half, half)),
    "Product.__call__": _guided(guidance.product(VP, (half, half))),
    "density_mixture": _guided(guidance.density_mixture((half,), (lambda xt, t: log_density(xt),))),
    "classifier_guidance": _guided(guidance.classifier_guidance(VP, half, lambda xt, t: log_density(xt), 1.0)),
    "within_interval": _guided(guidance.within_interval(VP, half, half, -1.0, 1.0)),
    "static_threshold": _guided(guidance.static_threshold(half)),
    "dynamic_threshold": _guided(guidance.dynamic_threshold(half)),
    "Linear.__call__": _rule(guidance.Linear()),
    "Rescaled.__call__": _rule(guidance.Rescaled()),
    "Projected.__call__": _rule(guidance.Projected()),
    "OptimalScale.__call__": _rule(guidance.OptimalScale()),
    "OnPrediction.__call__": _rule(guidance.OnPrediction(VP, EPS, guidance.Linear())),
    "dps": _known(lambda y: guidance.dps(VP, half, IDENTITY, y, 0.1)),
    "dps_normalised": _known(lambda y: guidance.dps_normalised(VP, half, IDENTITY, y, scale=1.0)),
    "pigdm": _known(lambda y: guidance.pigdm(VP, half, IDENTITY, y, 0.1)),
    "proximal": _known(lambda y: guidance.proximal(VP, half, IDENTITY, y, 0.1)),
    "tmpd": _known(lambda y: guidance.tmpd(VP, half, IDENTITY, y, 0.1)),
    # inverse problems
    "inpaint": Row(
        lambda xt, y: inverse.inpaint(KEY, VP, half, xt, TS, jnp.array([True, False]), y),
        {"xt": X, "y": X},
        {"y": "observed"},
    ),
    "RePaint.__init__": Row(lambda y: inverse.RePaint(jnp.array([True, False]), y), {"y": X}, {"y": "unpaired"}),
    "diffpir": Row(
        lambda xt, y: inverse.diffpir(KEY, VP, half, xt, TS, IDENTITY, y, 0.1), {"xt": X, "y": X}, {"y": "observed"}
    ),
    "sdedit": Row(lambda guide: inverse.sdedit(KEY, VP, half, guide, TS, dj.DDIM()), {"guide": X}),
    "twisted_smc": Row(
        lambda xt, y: inverse.twisted_smc(KEY, VP, half, xt, TS, IDENTITY, y, 0.1),
        {"xt": X, "y": X[:1]},
        {"y": "observed"},
    ),
    "systematic": Row(lambda log_weights: inverse.systematic(KEY, log_weights), {"log_weights": ROW}),
    "effective_sample_size": Row(inverse.effective_sample_size, {"log_weights": ROW}),
    # likelihood
    "log_likelihood": Row(lambda x0: dj.log_likelihood(KEY, VP, half, x0), {"x0": X}),
    "evaluate_continuous_elbo": Row(
        lambda x0: likelihood.evaluate_continuous_elbo(KEY, VP, half, x0, draws=2), {"x0": X}
    ),
    "evaluate_discrete_elbo": Row(lambda x0: likelihood.evaluate_discrete_elbo(KEY, VP, half, x0, TS), {"x0": X}),
    "flow_encode": Row(lambda x0: likelihood.flow_encode(VP, half, x0), {"x0": X}),
    "flow_decode": Row(lambda latent: likelihood.flow_decode(VP, half, latent), {"latent": X}),
    "invert": Row(lambda x0: likelihood.invert(VP, half, x0, TS), {"x0": X}),
    "slerp": _paired(lambda a, b: likelihood.slerp(a, b, 0.5), "a", a=X, b=X),
    "average_bound": Row(likelihood.average_bound, {"log_weights": X}),
    "importance_weighted_bound": Row(likelihood.importance_weighted_bound, {"log_weights": X}),
    "bits_per_dim": Row(
        lambda data: likelihood.bits_per_dim(KEY, VP, half, data, quantisation=QUANTISATION),
        {"data": WHOLE},
        {"data": "whole"},
    ),
    "Quantisation.values": Row(QUANTISATION.values, {"data": WHOLE}, {"data": "whole"}),
    "Quantisation.whole": Row(QUANTISATION.whole, {"x": X}),
    "UniformDequantisation.__call__": Row(lambda x: likelihood.UniformDequantisation()(KEY, x, INDEX), {"x": X}),
    "VariationalDequantisation.__call__": Row(
        lambda x: likelihood.VariationalDequantisation(PARAMS, lambda p, x: (x, x))(KEY, x, INDEX), {"x": X}
    ),
    "apply_dequantiser": Row(
        lambda x: likelihood.apply_dequantiser(likelihood.init_dequantiser(KEY, (D,), 4), x), {"x": X}
    ),
    "dequantise": Row(
        lambda data: likelihood.dequantise(KEY, likelihood.UniformDequantisation(), QUANTISATION, data),
        {"data": WHOLE},
        {"data": "whole"},
    ),
    "dequantisation_loss": Row(
        lambda data: likelihood.dequantisation_loss(
            PARAMS,
            KEY,
            data,
            apply=lambda p, x: (x, x),
            quantisation=QUANTISATION,
            log_density=lambda key, x, index: log_density(x),
        ),
        {"data": WHOLE},
        {"data": "whole"},
    ),
    **_divergence(likelihood.Exact()),
    **_divergence(dj.Hutchinson(2)),
    **_divergence(likelihood.HutchPlusPlus(3)),
    # losses
    "denoising_loss": _loss(dj.denoising_loss, **UNIFORM),
    "mean_flow_loss": _loss(flow_maps.mean_flow_loss, angle_of(), pairs=flow_maps.UniformPairs(VP)),
    "mean_flow_residual": _paired(
        lambda x0, eps: flow_maps.mean_flow_residual(angle_of(), PARAMS, x0, eps, ROW + 0.5, ROW + 0.2),
        "x0",
        x0=X,
        eps=X,
    ),
    "per_sample_loss": _paired(
        lambda x0, eps: losses.per_sample_loss(DIFFUSION, PARAMS, x0, eps, ROW + 0.5, weighting=losses.native),
        "x0",
        x0=X,
        eps=X,
    ),
    "negative_continuous_elbo": _loss(losses.negative_continuous_elbo, times=dj.UniformTimes(VP)),
    "negative_discrete_elbo": _loss(losses.negative_discrete_elbo, ts=TS),
    "noise_conditional_loss": _loss(losses.noise_conditional_loss, ts=TS),
    "noise_conditional_sum": _loss(losses.noise_conditional_sum, ts=TS),
    "negative_ddpm_elbo": _loss(losses.negative_ddpm_elbo, ts=TO_ZERO, variance=losses.large_variance),
    "learned_variance_loss": _loss(losses.learned_variance_loss, diffusion_of(two_answers), ts=TO_ZERO),
    "hybrid_loss": Row(
        lambda x0: losses.hybrid_loss(PARAMS, KEY, x0, network=NETWORK, process=DAMPED, times=dj.UniformTimes(DAMPED)),
        {"x0": X},
    ),
    # flow maps
    "consistency_loss": _loss(flow_maps.consistency_loss, MAP, **LEVELS),
    "per_sample_consistency": _paired(
        lambda x0, eps: flow_maps.per_sample_consistency(
            MAP, PARAMS, x0, eps, ROW + 0.5, ROW + 0.2, weighting=flow_maps.unweighted
        ),
        "x0",
        x0=X,
        eps=X,
    ),
    "continuous_consistency_loss": _loss(flow_maps.continuous_consistency_loss, MAP, times=dj.UniformTimes(VP)),
    "consistency_tangent": _paired(
        lambda x0, eps: flow_maps.consistency_tangent(MAP, PARAMS, x0, eps, ROW + 0.5), "x0", x0=X, eps=X
    ),
    "root_mean_square": Row(flow_maps.root_mean_square, {"error": X}),
    "progressive_loss": _loss(flow_maps.progressive_loss, STUDENT, teacher=half, grid=TO_ZERO),
    "progressive_target": Row(
        lambda xt: flow_maps.progressive_target(VP, half, xt, jnp.arange(B), grid=TO_ZERO), {"xt": X}
    ),
    "shortcut_loss": _loss(flow_maps.shortcut_loss, STUDENT, target_params=PARAMS, finest=4),
    # penalties
    "mean_square": Row(losses.mean_square, {"error": X}),
    "PseudoHuber.__call__": Row(losses.PseudoHuber(), {"error": X}),
    "gaussian_decoder": _paired(lambda x0, eps: losses.gaussian_decoder(x0, eps, 0.1), "x0", x0=X, eps=X),
    "density_decoder": _paired(lambda x0, mean: losses.density_decoder(x0, mean, 0.1), "x0", x0=X, mean=X),
    "LevelDecoder.__call__": _paired(lambda x0, eps: losses.LevelDecoder(2)(x0, eps, 0.1), "x0", x0=X, eps=X),
    "BinDecoder.__call__": _paired(lambda x0, mean: losses.BinDecoder(2)(x0, mean, 0.1), "x0", x0=X, mean=X),
    "check_levels": Row(lambda x0: losses.check_levels(x0, 2, -1.0, 1.0), {"x0": X}),
    "prior_divergence": Row(lambda x0: losses.prior_divergence(VP, x0), {"x0": X}),
    "bound_parts": _paired(
        lambda x0, noise, error, weight: losses.bound_parts(
            VP, x0, error, noise, weight, (0.1, 0.9), losses.gaussian_decoder
        ),
        "x0",
        x0=X,
        noise=X,
        error=ROW,
        weight=ROW,
    ),
    "Assignment.__call__": _paired(lambda x0, eps: losses.Assignment()(KEY, x0, eps), "x0", x0=X, eps=X),
    "OptimalTransport.__call__": _paired(lambda x0, eps: losses.OptimalTransport()(KEY, x0, eps), "x0", x0=X, eps=X),
    "explicit_score_matching": _scores(losses.explicit_score_matching, true_score=lambda x: -x),
    "implicit_score_matching": _scores(losses.implicit_score_matching),
    "sliced_score_matching": _scores(losses.sliced_score_matching),
    "sliced_score_matching_vr": _scores(losses.sliced_score_matching_vr),
    "finite_difference_sliced": _scores(losses.finite_difference_sliced),
    # metrics, on the host: whole numbers are as good as others
    "feature_statistics": _real(lambda features: metrics.feature_statistics(features), features=X),
    "kernel_distance": _real(metrics.kernel_distance, x=X, reference=X),
    "nearest_distances": _real(metrics.nearest_distances, x=X, reference=X),
    "precision_recall": _real(lambda x, reference: metrics.precision_recall(x, reference, k=1), x=X, reference=X),
    "density_coverage": _real(lambda x, reference: metrics.density_coverage(x, reference, k=1), x=X, reference=X),
    "sliced_wasserstein": Row(lambda x, y: metrics.sliced_wasserstein(KEY, x, y, projections=2), {"x": X, "y": X}),
    # operators
    "Mask.__call__": Row(operators.Mask(jnp.array([True, False])), {"x": X}),
    "Blur.__call__": Row(operators.Blur(jnp.ones(1), boundary=operators.zero), {"x": X}),
    "Downsample.__call__": Row(operators.Downsample((2,)), {"x": X}),
    "Grey.__call__": Row(operators.Grey(jnp.ones(D)), {"x": X}),
    "Matrix.__call__": Row(IDENTITY, {"x": X}),
    "MatrixFree.__call__": Row(operators.MatrixFree(lambda x: x, lambda y: y), {"x": X}),
    "AbstractLinearOperator.adjoint": Row(lambda y: IDENTITY.adjoint(y, (D,)), {"y": X}, {"y": "observed"}),
    "MatrixFree.adjoint": Row(lambda y: MATRIX_FREE.adjoint(y, (D,)), {"y": X}, {"y": "observed"}),
    "transpose": Row(lambda y: operators.transpose(lambda x: 2 * x, y, (D,)), {"y": X}, {"y": "observed"}),
    "linearise": Row(lambda x: operators.linearise(IDENTITY, x), {"x": X}),
    # parameterisation
    "target": _paired(lambda x0, eps: par.target(EPS, VP, x0, eps, 0.5), "x0", x0=X, eps=X),
    "recover": _paired(lambda xt, y: par.recover(EPS, VP, y, xt, 0.5), "xt", xt=X, y=X),
    "score": _guided(lambda xt, t: dj.score(VP, half, xt, t)),
    "apply_network": _guided(lambda xt, t: par.apply_network(DIFFUSION, PARAMS, xt, t)),
    "NetworkDenoiser.__call__": _guided(LABELLED),
    "RetimedDenoiser.__call__": _guided(par.retime(half, VP, dj.Cosine())),
    "AbstractFlowMap.__call__": _guided(FLOW_MAP),
    "AbstractFlowMap.move": Row(lambda xt: FLOW_MAP.move(xt, 0.5, 0.2), {"xt": X}),
    "apply_hybrid": Row(lambda ut: par.apply_hybrid(NETWORK, PARAMS, DAMPED, ut, 0.5), {"ut": PAIRS}),
    "HybridScore.__call__": Row(
        lambda ut: par.make_hybrid_score(PARAMS, network=NETWORK, process=DAMPED)(ut, 0.5), {"ut": PAIRS}
    ),
    # processes
    "move": _paired(lambda xt, average: process.move(VP, xt, 0.5, 0.2, average), "xt", xt=X, average=X),
    "average": _paired(lambda xt, xs: process.average(VP, xt, 0.5, 0.2, xs), "xt", xt=X, xs=X),
    "Line.velocity": _paired(lambda x0, eps: process.Line().velocity(0.5, x0, eps), "x0", x0=X, eps=X),
    "Circle.velocity": _paired(lambda x0, eps: process.Circle().velocity(0.5, x0, eps), "x0", x0=X, eps=X),
    "perturb": _paired(lambda x0, eps: dj.perturb(VP, x0, eps, 0.5), "x0", x0=X, eps=X),
    "linear_perturb": _paired(
        lambda x0, eps: process.linear_perturb(DAMPED, x0, eps, 0.5),
        "x0",
        x0=jnp.ones((B, 2, D)),
        eps=jnp.ones((B, 2, D)),
    ),
    "posterior_mean_std": _paired(lambda x0, xt: dj.posterior_mean_std(VP, x0, xt, 0.3, 0.5), "x0", x0=X, xt=X),
    "prior_log_prob": Row(lambda x: process.prior_log_prob(VP, x), {"x": X}),
    "simulate": Row(lambda x0: process.simulate(KEY, VP, x0, TS[::-1]), {"x0": X}),
    "diagonal_noise": Row(lambda x: process.diagonal_noise(jnp.ones(()), x), {"x": X}),
    "AbstractProcess.noise_operator": Row(lambda x: VP.noise_operator(x, 0.5), {"x": X}),
    "AbstractProcess.noise_divergence": Row(lambda x: process.SDE(half, half).noise_divergence(x, 0.5), {"x": X}),
    "AbstractGaussianProcess.noise_divergence": Row(lambda x: VP.noise_divergence(x, 0.5), {"x": X}),
    "AbstractLinearProcess.noise_operator": Row(lambda x: DAMPED.noise_operator(x, 0.5), {"x": X[:, :, None]}),
    "AbstractLinearProcess.noise_divergence": Row(lambda x: DAMPED.noise_divergence(x, 0.5), {"x": X[:, :, None]}),
    "AbstractGaussianProcess.drift": Row(lambda x: VP.drift(x, 0.5), {"x": X}),
    "AbstractLinearProcess.drift": Row(lambda x: DAMPED.drift(x, 0.5), {"x": X[:, :, None]}),
    "SDE.drift": Row(lambda x: process.SDE(half, half).drift(x, 0.5), {"x": X}),
    "SDE.diffusion": Row(lambda x: process.SDE(half, half).diffusion(x, 0.5), {"x": X}),
    # samplers
    "sample": Row(lambda xt: dj.sample(KEY, VP, half, xt, TS, dj.DDIM()), {"xt": X}),
    "sample_with_restarts": Row(
        lambda xt: dj.samplers.sample_with_restarts(
            KEY, VP, half, xt, TS, dj.DDIM(), restarts=[samplers.Restart(0.2, 0.5, 2, 2)]
        ),
        {"xt": X},
    ),
    "annealed_langevin": Row(
        lambda xt: samplers.annealed_langevin(KEY, VP, half, xt, TS, steps_per_level=1, step_size=0.1), {"xt": X}
    ),
    "integrate": _solve(dj.integrate),
    "integrate_each": _solve(samplers.integrate_each, controller=diffrax.PIDController(1e-2, 1e-2)),
    "velocity": _guided(lambda xt, t: samplers.velocity(VP, half, xt, t)),
    "langevin": Row(lambda x: samplers.langevin(KEY, lambda x: -x, x, **CHAIN), {"x": X}),
    "mala": Row(lambda x: samplers.mala(KEY, log_density, x, **CHAIN), {"x": X}),
    "hmc": Row(lambda x: samplers.hmc(KEY, log_density, x, integration_steps=1, **CHAIN), {"x": X}),
    "sgld": Row(
        lambda x: samplers.sgld(KEY, lambda x, batch: -x, x, jnp.zeros((5, D)), batch_size=2, **CHAIN), {"x": X}
    ),
    "density_score": Row(samplers.density_score(log_density), {"x": X}),
    "PredictorCorrector.correct": Row(
        lambda x: samplers.PredictorCorrector(dj.DDIM()).correct(half, x, _correction(samplers.PredictorCorrector)),
        {"x": X},
        {"x": "inside"},
    ),
    "LangevinCorrected.correct": Row(
        lambda x: samplers.LangevinCorrected(dj.DDIM()).correct(half, x, _correction(samplers.LangevinCorrected)),
        {"x": X},
        {"x": "inside"},
    ),
    **_latents(),
}

NO_SAMPLES = {
    "with_unit_latents": "its numbers become fields of a module, so it is not traced: test_autoencoder_training",
    **dict.fromkeys(
        [f"{name}.top_down" for name in ("VAE", "HierarchicalVAE", "DiffusionChain")], "called by `infer`, which checks"
    ),
    **dict.fromkeys(
        [f"{name}.init" for name in ("GaussianLikelihood", "DiscretisedLogistic", "Bernoulli")], "looks at nothing"
    ),
    **dict.fromkeys(
        [f"LinearVAE.{name}" for name in ("elbo", "log_likelihood", "rates", "reconstruction")], "moments of data"
    ),
    "LinearVAE.__init__": "its mean is a vector of its own",
    "generate": "noise is a switch",
    "memory_like": "an array to be zeros like",
    "AbstractGaussianProcess.diffusion": "looks at the time alone",
    "AbstractLinearProcess.diffusion": "looks at the time alone",
    "LinearSDE.__init__": "its noise is a matrix",
    "LogitNormalTimes.__init__": "its mean is a number",
    "LognormalTimes.__init__": "its mean is a number",
    "TwoPasses.__init__": "two denoisers",
    "extrapolate": "two denoisers",
    "frechet_distance": "of `feature_statistics`",
    "log_posterior": "its data are any pytree",
    "polynomial_decay": "numbers",
    "AbstractPosterior.__init__": "its methods have rows",
    "recommended": "a number of features",
    **dict.fromkeys(("zero", "periodic", "reflecting", "edge"), "paddings of `Blur`, of any array"),
}
"""Public functions with a parameter of such a name that is no batch of samples."""


class Asked(NamedTuple):
    """A call with an answering function, a good one, the bad ones, and the name that the error begins with."""

    call: Callable[[Any], Any]
    good: Callable[..., Any]
    bad: Callable[[Callable[..., Any]], dict[str, Callable[..., Any]]]
    name: str = ""


def _spoilt(change):
    return lambda function: {name: _after(function, spoil) for name, spoil in change.items()}


def _after(function, spoil):
    return lambda *args, **kwargs: spoil(function(*args, **kwargs))


def _first(function):
    """Those of a function that answers two things, both spoilt."""
    both = {name: lambda pair, spoil=spoil: tuple(map(spoil, pair)) for name, spoil in SHAPES.items()}
    return _spoilt(both)(function)


SHAPES = {
    "one feature": lambda y: y[..., :1],
    "one row": lambda y: y[:1],
    "no batch axis": lambda y: y[0],
    "a number": jnp.sum,
    "whole numbers": lambda y: y.astype(jnp.int32),
}
"""What becomes of an answer [b, *d]: all of these would broadcast or be cast."""

MORE = {
    "a Python number": lambda y: 0.0,
    "complex ones": lambda y: y.astype(jnp.complex64),
    "a tuple": lambda y: (y, y),
    "nothing": lambda y: None,
}
"""What would fail by itself, in words of its own: tried where a denoiser and a network are called, once."""

ROWS = {
    "a column": lambda y: y[:, None],
    "one of them": lambda y: y[:1],
    "their sum": jnp.sum,
    "whole numbers": lambda y: y.astype(jnp.int32),
}
"""The same of an answer [b]."""

OBSERVED = {name: SHAPES[name] for name in ("one row", "a number", "whole numbers")}


def _correction(method):
    """The step of a method's correction at t = 0.5."""
    weights = samplers.step_weights(method(dj.DDIM()), VP, np.array([0.6, 0.5])).correction
    return samplers.Step(0.5, 0.5, jax.tree.map(lambda w: jnp.float32(w[0]), weights), jax.random.split(KEY, B))


def _asked(call, name="denoiser"):
    return Asked(call, half, _spoilt(SHAPES), name)


def _at(make):
    """A guided denoiser, asked."""
    return _asked(lambda denoiser: make(denoiser)(X, 0.5))


def _posterior(method, **more):
    given = (X,) if method is guidance.dps_normalised else (X, 0.1)
    return {
        "denoiser": _at(lambda d: method(VP, d, IDENTITY, *given, **more)),
        "operator": Asked(
            lambda a: method(VP, half, a, *given, **more)(X, 0.5), lambda x: x, _spoilt(OBSERVED), "operator"
        ),
    }


def _trained(function, apply=plain, member=EPS, **choices):
    call = lambda apply: function(diffusion_of(apply, member), PARAMS, KEY, X, **choices)
    return Asked(call, apply, _spoilt(SHAPES), "network")


def _student(function, **choices):
    call = lambda apply: function(dj.Diffusion(network(apply), VP, dj.VPrediction()), PARAMS, KEY, X, **choices)
    return Asked(call, plain, _spoilt(SHAPES), "network")


def _choice(function, name, good, change=ROWS, diffusion=DIFFUSION, **choices):
    call = lambda f: function(diffusion, PARAMS, KEY, X, **(choices | {name: f}))
    return Asked(call, good, change if callable(change) else _spoilt(change), name)


def _score(function, name="score_apply", good=slope, **more):
    call = lambda f: function(PARAMS, KEY, X, **({"score_apply": slope} | more | {name: f}))
    return Asked(call, good, _spoilt(SHAPES), name)


def _chain(function, name="score", good=lambda x: -x, change=SHAPES, **more):
    return Asked(lambda f: function(f, **CHAIN, **more), good, _spoilt(change), name)


TIMES = lambda key, n, *, index=None, total=None: (jnp.full(n, 0.5), jnp.ones(n))
THREE = lambda key, n, *, index=None, total=None: (jnp.full(n, 0.5), jnp.full(n, 0.2), jnp.ones(n))
QUARTER = {"quantisation": QUANTISATION}


def _both_rows(function):
    """Answers (times [b], corrections [b]) of another shape or dtype."""
    both = {name: lambda pair, spoil=spoil: tuple(map(spoil, pair)) for name, spoil in ROWS.items()}
    return _spoilt(both)(function)


def _compared(diffusion, **choices):
    weighting = flow_maps.unweighted
    return flow_maps.per_sample_consistency(
        diffusion, PARAMS, X, X, ROW + 0.5, ROW + 0.2, weighting=weighting, **choices
    )


def _hybrid(diffusion, *args, **choices):
    return losses.hybrid_loss(*args, network=diffusion.network, process=DAMPED, **choices)


def _flow(terms):
    return lambda f: dj.integrate(terms(f), X, TS, solver=diffrax.Heun())


def _residual(diffusion, **choices):
    return flow_maps.mean_flow_residual(diffusion, PARAMS, X, X, ROW + 0.5, ROW + 0.2, **choices)


class _Found(NamedTuple):
    nats: Any
    nfe: Any


ASKED: dict[str, dict[str, Asked]] = {
    "sample": {
        "denoiser": Asked(lambda d: dj.sample(KEY, VP, d, X, TS, dj.DDIM()), half, _spoilt(SHAPES | MORE), "denoiser")
    },
    "sample_n": {"denoiser": _asked(lambda d: dj.sample_n(KEY, VP, d, (D,), B, ts=TS, stepper=dj.DDIM()))},
    "sample_with_restarts": {
        "denoiser": _asked(
            lambda d: dj.samplers.sample_with_restarts(
                KEY, VP, d, X, TS, dj.DDIM(), restarts=[samplers.Restart(0.2, 0.5, 2, 2)]
            )
        )
    },
    "annealed_langevin": {
        "denoiser": _asked(lambda d: samplers.annealed_langevin(KEY, VP, d, X, TS, steps_per_level=1, step_size=0.1))
    },
    "optimise_grid": {
        "denoiser": _asked(
            lambda d: samplers.optimise_grid(KEY, VP, d, (B, D), dj.DDIM(), TS, reference_steps=3, steps=1)
        )
    },
    "probability_flow": {"denoiser": _asked(_flow(lambda d: dj.probability_flow(VP, d)))},
    "reverse_sde": {
        "denoiser": _asked(
            lambda d: dj.integrate(
                dj.reverse_sde(VP, d, dj.per_sample_path(KEY, B, (D,))), X, TS, solver=diffrax.Euler()
            )
        )
    },
    "velocity": {"denoiser": _asked(lambda d: samplers.velocity(VP, d, X, 0.5))},
    "score_flow": {"score": _asked(_flow(lambda f: samplers.score_flow(VP, f)), "score")},
    "score_reverse_sde": {
        "score": _asked(
            lambda f: dj.integrate(
                samplers.score_reverse_sde(VP, f, dj.per_sample_path(KEY, B, (D,))), X, TS, solver=diffrax.Euler()
            ),
            "score",
        )
    },
    "langevin": {"score": _chain(lambda f, **k: samplers.langevin(KEY, f, X, **k))},
    "sgld": {
        "score": _chain(
            lambda f, **k: samplers.sgld(KEY, f, X, jnp.zeros((5, D)), batch_size=2, **k), good=lambda x, batch: -x
        )
    },
    "mala": {
        "log_density": _chain(lambda f, **k: samplers.mala(KEY, f, X, **k), "log_density", log_density, ROWS),
        "score": _chain(lambda f, **k: samplers.mala(KEY, log_density, X, score=f, **k)),
    },
    "hmc": {
        "log_density": _chain(
            lambda f, **k: samplers.hmc(KEY, f, X, **k), "log_density", log_density, ROWS, integration_steps=1
        ),
        "score": _chain(lambda f, **k: samplers.hmc(KEY, log_density, X, score=f, **k), integration_steps=1),
    },
    "density_score": {
        "log_density": Asked(lambda f: samplers.density_score(f)(X), log_density, _spoilt(ROWS), "log_density")
    },
    "PredictorCorrector.correct": {
        "denoiser": _asked(
            lambda d: dj.sample(KEY, VP, d, X, TS, samplers.PredictorCorrector(dj.DDIM()), final_denoise=False)
        )
    },
    "LangevinCorrected.correct": {
        "denoiser": _asked(
            lambda d: dj.sample(KEY, VP, d, X, TS, samplers.LangevinCorrected(dj.DDIM()), final_denoise=False)
        )
    },
    # guidance
    "classifier_guidance": {
        "denoiser": _at(lambda d: guidance.classifier_guidance(VP, d, lambda xt, t: log_density(xt), 1.0)),
        "log_prob": Asked(
            lambda f: guidance.classifier_guidance(VP, half, f, 1.0)(X, 0.5),
            lambda xt, t: log_density(xt),
            _spoilt(ROWS),
            "log_prob",
        ),
    },
    "extrapolate": {
        "cond": _at(lambda d: guidance.extrapolate(d, half, 2.0)),
        "uncond": _at(lambda d: guidance.extrapolate(half, d, 2.0)),
    },
    "Guided.__init__": {
        "pair": Asked(
            lambda f: guidance.Guided(f, 2.0, guidance.Linear())(X, 0.5), lambda xt, t: (xt, xt), _first, "pair"
        )
    },
    "within_interval": {
        "guided": _at(lambda d: guidance.within_interval(VP, d, half, -9.0, 9.0)),
        "plain": _at(lambda d: guidance.within_interval(VP, half, d, 8.0, 9.0)),
    },
    "zero_init": {"denoiser": _at(lambda d: guidance.zero_init(VP, d, -9.0))},
    "static_threshold": {"denoiser": _at(guidance.static_threshold)},
    "dynamic_threshold": {"denoiser": _at(guidance.dynamic_threshold)},
    "product": {"denoisers": _at(lambda d: guidance.product(VP, (half, d)))},
    "negation": {
        "denoiser": _at(lambda d: guidance.negation(VP, d, half, 0.5)),
        "unwanted": _at(lambda d: guidance.negation(VP, half, d, 0.5)),
    },
    "density_mixture": {
        "denoisers": _at(lambda d: guidance.density_mixture((half, d), (lambda xt, t: log_density(xt),) * 2)),
        "log_densities": Asked(
            lambda f: guidance.density_mixture((half,), (f,))(X, 0.5),
            lambda xt, t: log_density(xt),
            _spoilt(ROWS),
            "log_densities",
        ),
    },
    "dps": _posterior(guidance.dps),
    "dps_normalised": _posterior(guidance.dps_normalised, scale=1.0),
    "pigdm": _posterior(guidance.pigdm),
    "proximal": _posterior(guidance.proximal),
    "tmpd": _posterior(guidance.tmpd),
    # inverse problems
    "inpaint": {"denoiser": _asked(lambda d: inverse.inpaint(KEY, VP, d, X, TS, jnp.array([True, False]), X, times=2))},
    "diffpir": {
        "denoiser": _asked(lambda d: inverse.diffpir(KEY, VP, d, X, TS, IDENTITY, X, 0.1)),
        "operator": Asked(
            lambda a: inverse.diffpir(KEY, VP, half, X, TS, a, X, 0.1), lambda x: x, _spoilt(OBSERVED), "operator"
        ),
    },
    "sdedit": {"denoiser": _asked(lambda d: inverse.sdedit(KEY, VP, d, X, TS, dj.DDIM()))},
    "twisted_smc": {
        "denoiser": _asked(lambda d: inverse.twisted_smc(KEY, VP, d, X, TS, IDENTITY, X[:1], 0.1)),
        "operator": Asked(
            lambda a: inverse.twisted_smc(KEY, VP, half, X, TS, a, X[:1], 0.1),
            lambda x: x,
            _spoilt(OBSERVED),
            "operator",
        ),
    },
    # likelihood
    "log_likelihood": {
        "denoiser": _asked(lambda d: dj.log_likelihood(KEY, VP, d, X)),
        "terminal": Asked(
            lambda f: dj.log_likelihood(KEY, VP, half, X, terminal=f), log_density, _spoilt(ROWS), "terminal"
        ),
    },
    "evaluate_continuous_elbo": {
        "denoiser": _asked(lambda d: likelihood.evaluate_continuous_elbo(KEY, VP, d, X, draws=2)),
        "reconstruction": Asked(
            lambda f: likelihood.evaluate_continuous_elbo(KEY, VP, half, X, draws=2, reconstruction=f),
            losses.gaussian_decoder,
            _spoilt(ROWS),
            "reconstruction",
        ),
    },
    "evaluate_discrete_elbo": {
        "denoiser": _asked(lambda d: likelihood.evaluate_discrete_elbo(KEY, VP, d, X, TS)),
        "reconstruction": Asked(
            lambda f: likelihood.evaluate_discrete_elbo(KEY, VP, half, X, TS, reconstruction=f),
            losses.gaussian_decoder,
            _spoilt(ROWS),
            "reconstruction",
        ),
    },
    "flow_encode": {"denoiser": _asked(lambda d: likelihood.flow_encode(VP, d, X))},
    "flow_decode": {"denoiser": _asked(lambda d: likelihood.flow_decode(VP, d, X))},
    "invert": {"denoiser": _asked(lambda d: likelihood.invert(VP, d, X, TS))},
    "bits_per_dim": {
        "denoiser": _asked(lambda d: likelihood.bits_per_dim(KEY, VP, d, WHOLE, **QUARTER)),
        "dequantisation": Asked(
            lambda f: likelihood.bits_per_dim(KEY, VP, half, WHOLE, dequantisation=f, **QUARTER),
            lambda key, x, index: (0.5 * jnp.ones_like(x), jnp.zeros(B)),
            lambda f: {name: _after(f, lambda p, s=s: (s(p[0]), p[1])) for name, s in SHAPES.items()},
            "dequantisation",
        ),
        "likelihood": Asked(
            lambda f: likelihood.bits_per_dim(KEY, VP, half, WHOLE, likelihood=f, **QUARTER),
            lambda key, process, denoiser, x, *, index: _Found(log_density(x), jnp.ones((), int)),
            lambda f: {name: _after(f, lambda p, s=s: p._replace(nats=s(p.nats))) for name, s in ROWS.items()},
            "likelihood",
        ),
    },
    "dequantise": {
        "dequantisation": Asked(
            lambda f: likelihood.dequantise(KEY, f, QUANTISATION, WHOLE),
            lambda key, x, index: (0.5 * jnp.ones_like(x), jnp.zeros(B)),
            lambda f: {name: _after(f, lambda p, s=s: (p[0], s(p[1]))) for name, s in ROWS.items()},
            "dequantisation",
        )
    },
    "dequantisation_loss": {
        "apply": Asked(
            lambda f: likelihood.dequantisation_loss(
                PARAMS, KEY, WHOLE, apply=f, log_density=lambda key, x, index: log_density(x), **QUARTER
            ),
            lambda p, x: (x, x),
            _first,
            "apply",
        ),
        "log_density": Asked(
            lambda f: likelihood.dequantisation_loss(
                PARAMS, KEY, WHOLE, apply=lambda p, x: (x, x), log_density=f, **QUARTER
            ),
            lambda key, x, index: log_density(x),
            _spoilt(ROWS),
            "log_density",
        ),
    },
    # flow maps
    "mean_flow_loss": {
        "diffusion": Asked(
            lambda apply: flow_maps.mean_flow_loss(angle_of(apply), PARAMS, KEY, X, pairs=flow_maps.UniformPairs(VP)),
            plain,
            _spoilt(SHAPES),
            "network",
        ),
        "pairs": _choice(flow_maps.mean_flow_loss, "pairs", THREE, _both_rows, angle_of()),
        "teacher": _choice(
            flow_maps.mean_flow_loss, "teacher", half, SHAPES, angle_of(), pairs=flow_maps.UniformPairs(VP)
        ),
    },
    "mean_flow_residual": {
        "diffusion": Asked(lambda apply: _residual(angle_of(apply)), plain, _spoilt(SHAPES), "network"),
        "teacher": _asked(lambda d: _residual(angle_of(), teacher=d), "teacher"),
    },
    # losses
    "denoising_loss": {
        "diffusion": _trained(dj.denoising_loss, **UNIFORM),
        "penalty": _choice(dj.denoising_loss, "penalty", losses.mean_square, **UNIFORM),
        "coupling": _choice(dj.denoising_loss, "coupling", lambda key, x0, eps, cond: eps, SHAPES, **UNIFORM),
        "times": _choice(dj.denoising_loss, "times", TIMES, _both_rows, weighting=losses.native),
    },
    "per_sample_loss": {
        "diffusion": Asked(
            lambda apply: losses.per_sample_loss(diffusion_of(apply), PARAMS, X, X, ROW + 0.5, weighting=losses.native),
            plain,
            _spoilt(SHAPES),
            "network",
        ),
        "penalty": Asked(
            lambda f: losses.per_sample_loss(DIFFUSION, PARAMS, X, X, ROW + 0.5, weighting=losses.native, penalty=f),
            losses.mean_square,
            _spoilt(ROWS),
            "penalty",
        ),
    },
    "negative_continuous_elbo": {
        "diffusion": _trained(losses.negative_continuous_elbo, times=dj.UniformTimes(VP)),
        "times": _choice(losses.negative_continuous_elbo, "times", TIMES, _both_rows),
        "reconstruction": _choice(
            losses.negative_continuous_elbo, "reconstruction", losses.gaussian_decoder, times=dj.UniformTimes(VP)
        ),
    },
    "negative_discrete_elbo": {
        "diffusion": _trained(losses.negative_discrete_elbo, ts=TS),
        "reconstruction": _choice(losses.negative_discrete_elbo, "reconstruction", losses.gaussian_decoder, ts=TS),
    },
    "bound_parts": {
        "reconstruction": Asked(
            lambda f: losses.bound_parts(VP, X, ROW, X, ROW, (0.1, 0.9), f),
            losses.gaussian_decoder,
            _spoilt(ROWS),
            "reconstruction",
        )
    },
    "shortcut_loss": {"diffusion": _student(flow_maps.shortcut_loss, target_params=PARAMS, finest=4)},
    "progressive_loss": {
        "diffusion": _student(flow_maps.progressive_loss, teacher=half, grid=TO_ZERO),
        "teacher": _choice(
            flow_maps.progressive_loss, "teacher", half, SHAPES | MORE, STUDENT, grid=TO_ZERO, teacher_steps=1
        ),
    },
    "progressive_target": {
        "teacher": Asked(
            lambda f: flow_maps.progressive_target(VP, f, X, jnp.arange(B), grid=TO_ZERO),
            half,
            _spoilt(SHAPES | MORE),
            "teacher",
        )
    },
    "noise_conditional_loss": {"diffusion": _trained(losses.noise_conditional_loss, ts=TS)},
    "noise_conditional_sum": {"diffusion": _trained(losses.noise_conditional_sum, ts=TS)},
    "negative_ddpm_elbo": {
        "diffusion": _trained(losses.negative_ddpm_elbo, ts=TO_ZERO, variance=losses.large_variance),
        "reconstruction": _choice(
            losses.negative_ddpm_elbo,
            "reconstruction",
            losses.density_decoder,
            ts=TO_ZERO,
            variance=losses.large_variance,
        ),
    },
    "learned_variance_loss": {
        "diffusion": _trained(losses.learned_variance_loss, two_answers, ts=TO_ZERO),
        "reconstruction": _choice(
            losses.learned_variance_loss,
            "reconstruction",
            losses.density_decoder,
            ts=TO_ZERO,
            diffusion=diffusion_of(two_answers),
        ),
    },
    "hybrid_loss": {
        "network": _trained(_hybrid, times=dj.UniformTimes(DAMPED)),
        "times": _choice(_hybrid, "times", TIMES, _both_rows),
    },
    "explicit_score_matching": {
        "score_apply": _score(losses.explicit_score_matching, true_score=lambda x: -x),
        "true_score": _score(losses.explicit_score_matching, "true_score", lambda x: -x),
    },
    "implicit_score_matching": {"score_apply": _score(losses.implicit_score_matching)},
    "sliced_score_matching": {"score_apply": _score(losses.sliced_score_matching)},
    "sliced_score_matching_vr": {"score_apply": _score(losses.sliced_score_matching_vr)},
    "finite_difference_sliced": {"score_apply": _score(losses.finite_difference_sliced)},
    # flow maps
    "consistency_loss": {
        "diffusion": _trained(flow_maps.consistency_loss, member=ANGLE, **LEVELS),
        "penalty": _choice(flow_maps.consistency_loss, "penalty", losses.mean_square, diffusion=MAP, **LEVELS),
        "levels": _choice(
            flow_maps.consistency_loss, "levels", LEVELS["levels"], _both_rows, MAP, weighting=flow_maps.unweighted
        ),
        "weighting": _choice(
            flow_maps.consistency_loss, "weighting", flow_maps.unweighted, diffusion=MAP, levels=LEVELS["levels"]
        ),
        "teacher": _asked(lambda d: flow_maps.consistency_loss(MAP, PARAMS, KEY, X, teacher=d, **LEVELS)),
    },
    "per_sample_consistency": {
        "diffusion": Asked(lambda apply: _compared(diffusion_of(apply, ANGLE)), plain, _spoilt(SHAPES), "network"),
        "penalty": Asked(lambda f: _compared(MAP, penalty=f), losses.mean_square, _spoilt(ROWS), "penalty"),
        "teacher": _asked(lambda d: _compared(MAP, teacher=d)),
    },
    "continuous_consistency_loss": {
        "diffusion": _trained(flow_maps.continuous_consistency_loss, member=ANGLE, times=dj.UniformTimes(VP)),
        "times": _choice(flow_maps.continuous_consistency_loss, "times", TIMES, _both_rows, MAP),
        "weighting": _choice(
            flow_maps.continuous_consistency_loss,
            "weighting",
            flow_maps.unweighted,
            diffusion=MAP,
            times=dj.UniformTimes(VP),
        ),
        "teacher": _asked(
            lambda d: flow_maps.continuous_consistency_loss(MAP, PARAMS, KEY, X, teacher=d, times=dj.UniformTimes(VP))
        ),
    },
    "consistency_tangent": {
        "diffusion": Asked(
            lambda apply: flow_maps.consistency_tangent(diffusion_of(apply, ANGLE), PARAMS, X, X, ROW + 0.5),
            plain,
            _spoilt(SHAPES),
            "network",
        ),
        "teacher": _asked(lambda d: flow_maps.consistency_tangent(MAP, PARAMS, X, X, ROW + 0.5, teacher=d)),
    },
    # generative adversarial networks
    "GAN.__init__": {
        "generator": Asked(lambda apply: _adversarial(apply), PLANE.apply, _spoilt(SHAPES | MORE), "generator"),
        "discriminator": Asked(
            lambda apply: _adversarial(discriminator=apply), JUDGE.apply, _spoilt(OBSERVED | MORE), "discriminator"
        ),
    },
    "DenoisingGAN.__init__": {
        "generator": Asked(lambda apply: _by_steps(apply), PLANE.apply, _spoilt(SHAPES | MORE), "generator"),
        "discriminator": Asked(
            lambda apply: _by_steps(discriminator=apply), JUDGE.apply, _spoilt(OBSERVED | MORE), "discriminator"
        ),
    },
    "NetworkGenerator.__init__": {
        "network": Asked(
            lambda apply: gan.NetworkGenerator(network(apply), VP, PARAMS, None, D)(X, 0.5, X),
            PLANE.apply,
            _spoilt(SHAPES | MORE),
            "generator",
        )
    },
    "denoising_pairs": {"generator": Asked(_pairs_of, lambda xt, t, z: xt, _spoilt(SHAPES | MORE), "generator")},
    "gradient_penalty": {
        "discriminator": Asked(
            lambda f: gan.gradient_penalty(f, X), lambda x: x[:, :1], _spoilt(OBSERVED | MORE), "discriminator"
        )
    },
    "lazy": {
        "penalty": Asked(
            lambda f: gan.lazy(f, 0),
            lambda: ROW,
            _spoilt({n: ROWS[n] for n in ("a column", "whole numbers")}),
            "penalty",
        )
    },
    # variational autoencoders
    "VAE.__init__": {
        "encoder": Asked(lambda apply: _coded(encoder=apply), CODER.apply, _spoilt(SHAPES | MORE), "encoder"),
        "decoder": Asked(lambda apply: _coded(decoder=apply), PLANE.apply, _spoilt(SHAPES | MORE), "decoder"),
    },
    "DiffusionChain.__init__": {
        "diffusion": Asked(
            lambda apply: vae.infer(
                vae.DiffusionChain(diffusion_of(apply), TS, (D,)), {"network": PARAMS, "likelihood": {}}, KEY, X
            ),
            plain,
            _spoilt(SHAPES),
            "network",
        ),
        "reconstruction": Asked(
            lambda f: vae.infer(
                vae.DiffusionChain(DIFFUSION, TS, (D,), f), {"network": PARAMS, "likelihood": {}}, KEY, X
            ),
            losses.gaussian_decoder,
            _spoilt(ROWS),
            "reconstruction",
        ),
    },
    # the rest
    "cell_averages": {
        "log_density": Asked(
            lambda f: analytic.cell_averages(BOX, f), lambda x: -(x[:, 0] ** 2), _spoilt(ROWS), "log_density"
        )
    },
    "linearise": {"operator": Asked(lambda a: operators.linearise(a, X), lambda x: x, _spoilt(OBSERVED), "operator")},
    "score": {"denoiser": _at(lambda d: lambda xt, t: dj.score(VP, d, xt, t))},
    "retime": {"denoiser": _at(lambda d: par.retime(d, VP, dj.Cosine()))},
    "make_denoiser": {
        "diffusion": Asked(
            lambda apply: dj.make_denoiser(diffusion_of(apply), PARAMS)(X, 0.5),
            plain,
            _spoilt(SHAPES),
            "network",
        )
    },
    "make_flow_map": {
        "diffusion": Asked(
            lambda apply: dj.make_flow_map(diffusion_of(apply), PARAMS, knows="any")(X, 0.5, 0.2),
            plain,
            _spoilt(SHAPES),
            "network",
        )
    },
    "apply_network": {
        "diffusion": Asked(
            lambda apply: par.apply_network(diffusion_of(apply), PARAMS, X, 0.5),
            plain,
            _spoilt(OBSERVED | MORE),
            "network",
        )
    },
    "apply_hybrid": {
        "network": Asked(
            lambda apply: par.apply_hybrid(network(apply), PARAMS, DAMPED, jnp.ones((B, 2, 3)), 0.5),
            plain,
            _spoilt(SHAPES),
            "network",
        )
    },
    "make_hybrid_score": {
        "network": Asked(
            lambda apply: par.make_hybrid_score(PARAMS, network=network(apply), process=DAMPED)(
                jnp.ones((B, 2, 3)), 0.5
            ),
            plain,
            _spoilt(SHAPES),
            "network",
        )
    },
    "SDE.__init__": {
        "drift": Asked(
            lambda f: process.simulate(KEY, process.SDE(f, lambda x, t: jnp.ones(())), X, TS[::-1]),
            half,
            _spoilt(SHAPES),
            "drift",
        ),
        "diffusion": Asked(
            lambda g: process.simulate(KEY, process.SDE(half, g), X, TS[::-1]),
            half,
            _spoilt({name: SHAPES[name] for name in ("one feature", "one row", "no batch axis", "whole numbers")}),
            "diffusion",
        ),
    },
}

NOT_ASKED = {
    "HierarchicalVAE.__init__": "its network is a module of ours",
    "Autoregressive.__init__": "its network's numbers have the shape that the likelihood checks",
    "AbstractPosterior.__init__": "its methods have rows",
    "HybridScore.__init__": "made by `make_hybrid_score`",
    "NetworkDenoiser.__init__": "made by `make_denoiser`",
    "OnePass.__init__": "of a `NetworkDenoiser`",
    "classifier_free": "of a `NetworkDenoiser`",
    "Product.__init__": "made by `product`",
    "RetimedDenoiser.__init__": "made by `retime`",
    "TwoPasses.__init__": "by `extrapolate`",
    "VariationalDequantisation.__init__": "by `dequantisation_loss`",
    "TruncatedCG.init": "its operator is lineax's",
    "prediction_only": "a network of a network",
    "Diffusion.__init__": "by losses and denoisers",
    "SortedPairs.__init__": "training times",
    "PartlyEqual.__init__": "pairs of training times",
    "NetworkFlowMap.__init__": "made by `make_flow_map`",
    "uncertainty_loss": "its network is not called",
    "ECTLevels.__init__": "one of our own time densities",
    "transpose": "the shape of y tells",
    "dot_product_test": "it compares what the operator answers with its adjoint's",
    "diagonal_noise": "numbers",
    **dict.fromkeys(("Linear.__call__", "Rescaled.__call__", "Projected.__call__"), "samples, not denoisers"),
    **dict.fromkeys(("OptimalScale.__call__", "OnPrediction.__call__"), "samples, not denoisers"),
    "is_flow_map": "it looks at the signature",
    "AbstractCorrected.follow": "it calls nothing",
    "LangevinCorrected.follow": "it calls nothing",
}
"""Public functions with a parameter of such a name that call nothing themselves, and where it is called."""

NOT_CALLED = {
    ("RePaint.__init__", "times"),
    ("inpaint", "times"),
    ("evaluate_continuous_elbo", "times"),
    ("VAE.__init__", "likelihood"),
}
"""Parameters of such a name that are a count, one of our own time densities, or an object of ours."""


def public():
    """name -> (parameters, class or None) of the public functions and methods of the packages above."""
    found = {}
    homes = tuple(f"diffjax.{package}." for package in PACKAGES)
    for module in ("diffjax", *(home.removesuffix(".") for home in homes)):
        for attribute, value in vars(importlib.import_module(module)).items():
            if attribute.startswith("_") or not (getattr(value, "__module__", None) or "").startswith(homes):
                continue
            members = inspect.getmembers(value, callable) if inspect.isclass(value) else [(None, value)]
            for name, function in members:
                function = inspect.unwrap(function)
                ours = inspect.isfunction(function) and function.__module__.startswith("diffjax")
                if ours and (name is None or name in ("__init__", "__call__") or name[0] != "_"):
                    full = {None: attribute, "__init__": f"{attribute}.__init__"}.get(name, function.__qualname__)
                    found[full] = list(inspect.signature(function).parameters), name and value
    return found


def missing():
    """The arguments of public functions that neither table tries."""
    for name, (parameters, of) in public().items():
        if of is not None and inspect.isabstract(of) and name.startswith("Abstract") and name not in WITH_SAMPLES:
            continue  # what members have
        stepping = of is not None and issubclass(of, samplers.AbstractStepper) and not name.endswith("__init__")
        for parameter in parameters:
            tried = name in NO_SAMPLES or parameter in (WITH_SAMPLES[name].values if name in WITH_SAMPLES else ())
            tried |= (name, parameter) == ("sgld", "data")  # any pytree
            if (
                parameter in SAMPLES and not tried and not stepping
            ):  # steps are called by `sample`, and ask by `predict`
                yield f"{name}: {parameter} takes samples: add a row to WITH_SAMPLES"
            tried = name in NOT_ASKED or parameter in ASKED.get(name, ()) or (name, parameter) in NOT_CALLED
            if parameter in ANSWERS and not tried and not stepping:
                yield f"{name}: {parameter} is called: add a row to ASKED"
    for name in (WITH_SAMPLES.keys() | ASKED.keys() | NO_SAMPLES.keys() | NOT_ASKED.keys()) - public().keys():
        if not name.startswith("LatentSpace."):
            yield f"{name}: no longer public"


def bad_values(value, kind):
    """name -> what should be refused in place of a good value."""
    numbers = {
        "whole": value.astype(jnp.int32),
        "boolean": value.astype(bool),
        "complex": value.astype(jnp.complex64),
        "NumPy's whole": np.ones(value.shape, np.int64),
    }
    shapes = {
        "empty": value[:0],
        "no batch axis": value.reshape(-1)[0],
        "a Python number": 1.0,
        "None": None,
        "a list": value.tolist(),
    }
    if kind in ("numbers", "weights"):
        unfit = {"NaN": value.at[0].set(jnp.nan), "infinite": value.at[0].set(jnp.inf)}
    if kind == "numbers":
        return numbers | unfit | {"None": None}
    if kind == "weights":  # which may be whole, and are equal where there are none
        return {name: numbers[name] for name in ("boolean", "complex")} | unfit
    if kind == "real":
        return {"complex": numbers["complex"], "no batch axis": shapes["no batch axis"], "None": None}
    if kind == "whole":
        return {"float": value.astype(float), "boolean": numbers["boolean"], "complex": numbers["complex"], **shapes}
    if kind == "inside":  # of jit: a stepper's own
        return numbers
    if kind in ("paired", "observed"):
        shapes |= {"one feature": value[..., :1] if value.ndim > 1 else value[:1], "more axes": value[..., None]}
    if kind == "paired":
        shapes["one row"] = value[:1]
    if kind == "features":
        shapes |= {"one feature": value[..., :1], "one axis less": value[0], "one axis more": value[None]}
    if kind in ("observed", "unpaired"):
        del shapes["a list"]  # which is taken for an array
    return numbers | shapes


KEY_UNUSED = {"implicit_score_matching", "explicit_score_matching", "Exact.probes", "Assignment.__call__"}


def keyed():
    """(name, a function of a key) of everything public that draws, from the table of `test_keys.py`."""
    import keyed

    rows = {name: row.call for name, row in (keyed.BY_INDEX | keyed.TIMES | keyed.STEPPING).items()}
    for name, call in rows.items():
        if name not in KEY_UNUSED:
            yield name, lambda key, call=call: call(key, INDEX)
    for name, call in keyed.WHOLE_BATCH.items():
        if name not in KEY_UNUSED:
            yield name, call


def fault(name, call, *args, **values):
    """What is wrong with how a call is refused, or None: it must be a ValueError that begins with a name.

    Traced first, where nothing has to be compiled; what a trace does not refuse, such as a value, is run.
    """
    return _fault(name, lambda: jax.eval_shape(lambda: (call(*args, **values), None)[1])) and _fault(
        name, lambda: call(*args, **values)
    )


def _fault(name, call):
    try:
        call()
    except ValueError as error:
        return None if str(error).startswith(f"{name}: ") else f"says {str(error)[:150]!r}"
    except Exception as error:
        return f"fails by {type(error).__name__}: {str(error)[:150]!r}"
    return "passes"


def faults(share):
    """A line for each fault, of one row in `share`."""
    yield from missing()
    tried = 0
    for name, row in [*WITH_SAMPLES.items()][::share]:
        try:
            jax.eval_shape(lambda row=row: (row.call(**row.values), None)[1])
        except Exception as error:
            yield f"{name}: what is right is refused: {type(error).__name__} {str(error)[:300]}"
        for argument, value in row.values.items():
            kind = row.kinds.get(argument, "samples")
            for how, bad in bad_values(value, kind).items():
                tried += 1
                says = "xt" if kind == "inside" else argument
                if wrong := fault(says, row.call, **(row.values | {argument: bad})):
                    yield f"{name}: {argument} {how}: {wrong}"
    for name, arguments in [*ASKED.items()][::share]:
        for argument, asked in arguments.items():
            try:
                jax.eval_shape(lambda asked=asked: (asked.call(asked.good), None)[1])
            except Exception as error:
                yield f"{name}: a right {argument} is refused: {type(error).__name__} {str(error)[:300]}"
            for how, bad in asked.bad(asked.good).items():
                tried += 1
                if wrong := fault(asked.name, asked.call, bad):
                    yield f"{name}: {argument} answers {how}: {wrong}"
    for name, call in [*keyed()][::share]:
        tried += 1
        if wrong := fault("key", call, 0):
            yield f"{name}: a seed for a key: {wrong}"
    print(f"{tried} calls tried", file=sys.stderr)


if __name__ == "__main__":
    found = list(faults(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
    print("\n".join(found))
    sys.exit(bool(found))
