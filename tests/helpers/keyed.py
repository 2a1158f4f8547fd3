"""How to call each public function that has a key, for `test_keys.py`; `public()` finds them, and a table has each.

A row is a function of a key and, where what is drawn belongs to a sample, of global indices [3].
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from registry import ALL_STEPPERS, ALL_TIMES

import diffjax as dj
from diffjax import (
    flow_maps,
    gan,
    inverse,
    likelihood,
    losses,
    metrics,
    networks,
    operators,
    parameterisation,
    process,
    samplers,
    vae,
)
from diffjax.process import normal_like, sample_keys


def public():
    """name -> (parameters, what it is a method of or None) of each public function or method with a key of its own."""
    names = ["diffjax"] + [f"diffjax.{m.name}" for m in pkgutil.iter_modules(dj.__path__) if not m.name.startswith("_")]
    found = {}
    for name in sorted(names):
        module = importlib.import_module(name)
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or not getattr(value, "__module__", "").startswith("diffjax"):
                continue
            if inspect.isclass(value):
                methods = [] if inspect.isabstract(value) else inspect.getmembers(value, callable)
                shown = {f"{attribute}.{m}": f for m, f in methods if m in ("__init__", "__call__") or m[0] != "_"}
                found |= {m: (of, value) for m, f in shown.items() if (of := _with_key(f))}
            elif callable(value) and (of := _with_key(value)):
                found[attribute] = (of, None)
    return found


def _with_key(function):
    """The names of a function's parameters, where it is ours and one of them is a key."""
    function = inspect.unwrap(function)
    if not (inspect.isfunction(function) and function.__module__.startswith("diffjax")):
        return None
    parameters = list(inspect.signature(function).parameters)
    return parameters if {"key", "keys"} & set(parameters) else None


class Row(NamedTuple):
    """A call, and what of it is no single sample's."""

    call: Callable[..., Any]
    shared: int = 0
    """Draws that all samples share: the place of stratified times."""
    first: int = 0
    """Draws of a device's whole part of the batch, from a key that the index of its first sample is folded into."""
    draws: bool = True
    """Whether it draws at all."""
    again: bool = False
    """Whether it looks at the same numbers more than once, as a Brownian tree does at its nodes."""


B, D = 3, 2
X = jnp.zeros((B, D))
VP = dj.VariancePreserving()
EPS = dj.EpsPrediction()
TS = jnp.linspace(0.9, 0.1, 4)
EDM, LEVELS = dj.parameterisation.EDMPrediction(1.0, clock="angle"), flow_maps.GridLevels(TS.at[-1].set(0.0))
TO_ZERO = TS.at[-1].set(0.0)
WHOLE = jnp.zeros((B, D), jnp.int32)
QUANTISATION = likelihood.Quantisation(4)
IDENTITY = operators.Matrix(jnp.eye(D))


def half(xt, t):
    """A denoiser."""
    return 0.5 * xt


def one_draw(params, x, c_noise, cond=None, *, key=None):
    """A network whose dropout is one draw for the batch."""
    return params["w"] * x + (0 if key is None else jax.random.normal(key, x.shape))


def init_by_one_draw(key, x, c_noise, cond=None):
    """Its parameters."""
    return {"w": jax.random.normal(key, (1,))}


def two_answers(params, x, c_noise, cond=None, *, key=None):
    """A network that answers with a variance too."""
    y = one_draw(params, x, c_noise, cond, key=key)
    return jnp.concatenate([y, y], axis=-1)


NETWORK = dj.Network(init_by_one_draw, one_draw)
TWO = dj.Network(init_by_one_draw, two_answers)
PARAMS = {"w": jnp.ones(1)}
ANGLE = dj.Diffusion(NETWORK, VP, EDM)
IDS = jnp.array([[3, 4, 5], [6, 7, 1], [8, 1, 0]])
T5 = networks.T5Encoder(vocabulary=10, width=4, depth=1, heads=1, head_channels=4, hidden=4)
T5_PARAMS = jax.tree.map(jnp.ones_like, jax.eval_shape(lambda: networks.init_t5(jax.random.key(0), T5)))


def score_apply(params, x):
    """A score network."""
    return -params["w"] * x


def log_density(x):
    """Of a standard normal, one point or a batch."""
    return -0.5 * jnp.sum(x**2, axis=-1)


def stepper_instances():
    """name -> a stepper, all of the registry and those that need more than noise."""
    pull = jnp.zeros((1, D))
    extra = {
        "cfgpp": samplers.CFGpp(),
        "langevin-corrected": samplers.LangevinCorrected(dj.DDIM(eta=1.0), 2),
        "repaint": inverse.RePaint(jnp.array([True, False]), pull, 3, dj.DDIM(eta=1.0)),
        "renoise": inverse.Renoise(0.5),
        "predictor-corrector-twice": samplers.PredictorCorrector(dj.DDIM(eta=1.0), 2),
    }
    return {name: make() for name, make in ALL_STEPPERS.items()} | extra


def _stepping(stepper):
    return lambda key, index: dj.sample(key, VP, half, X, TS, stepper, index=index)


STEPPING = {name: Row(_stepping(s)) for name, s in stepper_instances().items() if s.stochastic}
"""Stochastic steppers in a run of three steps; the others are never given keys."""


def _times(name):
    make = ALL_TIMES[name]
    shared = int(name in ("stratified", "low-discrepancy"))
    return Row(lambda key, index: make(VP)(key, B, index=index, total=9), shared=shared)


TIMES = {name: _times(name) for name in ALL_TIMES}


def _loss(function, network=NETWORK, member=EPS, **choices):
    return lambda key, index: function(dj.Diffusion(network, VP, member), PARAMS, key, X, index=index, **choices)


def _flow_map_loss(function, **choices):
    diffusion = dj.Diffusion(NETWORK, VP, dj.VPrediction())
    return lambda key, index: function(diffusion, PARAMS, key, X, index=index, **choices)


def _probes(divergence):
    return lambda key, index: divergence.probes(key, X, index)


class _Likelihood(NamedTuple):
    nats: Any
    nfe: Any


def _noisy_likelihood(key, process, denoiser, x, *, index):
    """A stand-in that draws once a sample."""
    return _Likelihood(normal_like(sample_keys(key, index), x).sum(-1), jnp.ones((), int))


def _log_density(key, x, index):
    return _noisy_likelihood(key, None, None, x, index=index).nats


def _path(tolerance):
    def call(key, index):
        path = dj.per_sample_path(key, index, (D,), tolerance=tolerance)
        return path.evaluate(-0.9, -0.6), path.evaluate(-0.6, -0.5)

    return call


IMAGE = jnp.zeros((B, 4, 4, 1))
AUTOENCODER = networks.AutoencoderKL(
    in_channels=1, out_channels=1, channels=(4,), blocks=1, groups=2, latent_channels=2, middle_attention=False
)


def _coder():
    params = jax.eval_shape(AUTOENCODER.init, jax.random.key(0), IMAGE)["params"]
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)


def _latents(key, index):
    return networks.LatentSpace(_coder(), AUTOENCODER).encode(key, IMAGE, index=index)


def _autoencoder_loss(key, index):
    return vae.autoencoder_loss(AUTOENCODER, _coder(), key, IMAGE, index=index)


def _reconstructed(key, index):
    return vae.reconstruct(AUTOENCODER, _coder(), key, IMAGE, index=index)


def _second_time(key):
    network = dj.from_linen(networks.PlainMLP(4, 1))
    params = jax.eval_shape(network.init, jax.random.key(0), X, jnp.zeros(B))
    return networks.with_second_time(network, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params), key, X)


def _perceptron(*shape):
    """A coder whose parameters are one draw and whose dropout is one for the batch."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        y = jnp.zeros((x.shape[0], *shape)) + params["w"]
        return y + (0 if key is None else jax.random.normal(key, y.shape))

    return dj.Network(init_by_one_draw, apply)


IMAGES = jnp.zeros((B, 2, 2, 1))
GAUSSIAN_VAE = vae.VAE(_perceptron(4), _perceptron(D), vae.GaussianLikelihood(), 2)
VAE_PARAMS = {"encoder": PARAMS, "decoder": PARAMS, "likelihood": {"log_std": jnp.zeros(())}}
POSTERIOR = vae.DiagonalGaussian(X, X)
PIXELS = vae.Autoregressive(_perceptron(2, 2, 1), vae.Bernoulli(), (2, 2, 1))
TOP_DOWN = vae.HierarchicalVAE(
    networks.TopDown((2, 2, 1), channels=(2,), blocks=(1,), latents=1), vae.DiscretisedLogistic()
)


def _judge(params, x, c_noise, cond=None, *, key=None):
    return params["w"] * x[:, :1]


JUDGE = dj.Network(init_by_one_draw, _judge)
POINTS_GAN = gan.GAN(_perceptron(D), JUDGE, latents=2, spectral=True)
STEPS_GAN = gan.DenoisingGAN(NETWORK, JUDGE, VP, TO_ZERO, (D,), latents=2)
GAN_PARAMS = {"generator": PARAMS, "discriminator": PARAMS, "power": {}}


def _of_gan(function):
    return Row(lambda key, index: function(STEPS_GAN, GAN_PARAMS, key, X, index=index))


def _of_prior(prior):
    return Row(lambda key, index: prior.sample(sample_keys(key, index), (B, D)))


def _of_likelihood(likelihood, params, y):
    return Row(lambda key, index: likelihood.sample(params, sample_keys(key, index), y))


RESTART = [samplers.Restart(0.2, 0.5, 2, 2)]
ONE_Y = jnp.zeros((1, D))
DAMPED = process.CriticallyDamped()
LANGEVIN = {"steps": 3, "step_size": 0.1}
MINIBATCH = samplers.minibatch_score(log_density, lambda x, y: -0.5 * jnp.sum((y - x) ** 2, axis=-1), 5)
ZEROS = {"m": jnp.zeros(D)}

BY_INDEX = (
    {
        # samplers
        "sample": Row(_stepping(dj.DDIM(eta=1.0))),
        "sample_with_restarts": Row(
            lambda key, index: dj.samplers.sample_with_restarts(
                key, VP, half, X, TS, dj.DDIM(eta=1.0), restarts=RESTART, index=index
            )
        ),
        "annealed_langevin": Row(
            lambda key, index: samplers.annealed_langevin(
                key, VP, half, X, TS, steps_per_level=2, step_size=0.1, index=index
            )
        ),
        "langevin": Row(lambda key, index: samplers.langevin(key, lambda x: -x, X, index=index, **LANGEVIN)),
        "mala": Row(lambda key, index: samplers.mala(key, log_density, X, index=index, **LANGEVIN)),
        "hmc": Row(lambda key, index: samplers.hmc(key, log_density, X, integration_steps=2, index=index, **LANGEVIN)),
        "sgld": Row(
            lambda key, index: samplers.sgld(
                key, MINIBATCH, X, jnp.zeros((5, D)), batch_size=2, index=index, **LANGEVIN
            )
        ),
        "per_sample_path": Row(_path(None)),
        "PerSamplePath.__init__": Row(_path(1e-2), again=True),
        # processes
        **dict.fromkeys(
            ("sample_keys", "normal_like"),
            Row(lambda key, index: process.normal_like(process.sample_keys(key, index), X)),
        ),
        "prior": Row(lambda key, index: dj.prior(key, VP, (B, D), index=index)),
        "linear_prior": Row(lambda key, index: process.linear_prior(key, DAMPED, (B, 2, D), index=index)),
        "simulate": Row(lambda key, index: process.simulate(key, VP, X, TS[::-1], index=index)),
        "LevelTimes.__call__": Row(lambda key, index: losses.LevelTimes(TS)(key, B, index=index)),
        # losses
        "denoising_loss": Row(_loss(dj.denoising_loss, times=dj.UniformTimes(VP), weighting=losses.native), first=1),
        "negative_continuous_elbo": Row(
            _loss(losses.negative_continuous_elbo, times=dj.StratifiedTimes(VP)), shared=1, first=1
        ),
        "negative_discrete_elbo": Row(_loss(losses.negative_discrete_elbo, ts=TS), shared=1, first=1),
        "noise_conditional_loss": Row(_loss(losses.noise_conditional_loss, ts=TS), first=1),
        "noise_conditional_sum": Row(_loss(losses.noise_conditional_sum, ts=TS)),
        "negative_ddpm_elbo": Row(_loss(losses.negative_ddpm_elbo, TWO, ts=TS.at[-1].set(0)), shared=1, first=1),
        "learned_variance_loss": Row(_loss(losses.learned_variance_loss, TWO, ts=TS.at[-1].set(0)), shared=1, first=1),
        "hybrid_loss": Row(
            lambda key, index: losses.hybrid_loss(
                PARAMS, key, X, network=NETWORK, process=DAMPED, times=dj.UniformTimes(DAMPED), index=index
            ),
            first=1,
        ),
        # flow maps
        "consistency_loss": Row(
            _loss(flow_maps.consistency_loss, member=EDM, levels=LEVELS, weighting=flow_maps.unweighted),
            first=1,
            again=True,  # both answers have one dropout key
        ),
        "continuous_consistency_loss": Row(
            _loss(flow_maps.continuous_consistency_loss, member=EDM, times=dj.UniformTimes(VP)), first=1
        ),
        "GridLevels.__call__": Row(lambda key, index: LEVELS(key, B, index=index)),
        "EDMLevels.__call__": Row(lambda key, index: flow_maps.EDMLevels(VP, 4)(key, B, index=index)),
        "ECTLevels.__call__": Row(lambda key, index: flow_maps.ECTLevels(dj.UniformTimes(VP))(key, B, index=index)),
        "progressive_loss": Row(_flow_map_loss(flow_maps.progressive_loss, teacher=half, grid=TO_ZERO), 1, first=1),
        "shortcut_loss": Row(
            _flow_map_loss(flow_maps.shortcut_loss, target_params=PARAMS, finest=4, total=9), 1, first=1
        ),
        # conditions
        "drop_condition": Row(lambda key, index: losses.drop_condition(key, jnp.zeros(B, int), 3, 0.5, index=index)),
        "draw_steps": Row(lambda key, index: losses.draw_steps(key, 4, index, 9), shared=1),
        "implicit_score_matching": Row(
            lambda key, index: losses.implicit_score_matching(PARAMS, key, X, score_apply=score_apply, index=index),
            draws=False,
        ),
        "explicit_score_matching": Row(
            lambda key, index: losses.explicit_score_matching(
                PARAMS, key, X, score_apply=score_apply, true_score=lambda x: -x, index=index
            ),
            draws=False,
        ),
    }
    | {
        function.__name__: Row(
            lambda key, index, function=function: function(
                PARAMS, key, X, score_apply=score_apply, projections=2, index=index
            )
        )
        for function in (losses.sliced_score_matching, losses.sliced_score_matching_vr, losses.finite_difference_sliced)
    }
    | {
        # flow maps
        "SortedPairs.__call__": Row(
            lambda key, index: flow_maps.SortedPairs(dj.UniformTimes(VP))(key, B, index=index, total=9)
        ),
        "UniformPairs.__call__": Row(lambda key, index: flow_maps.UniformPairs(VP)(key, B, index=index, total=9)),
        "PartlyEqual.__call__": Row(
            lambda key, index: flow_maps.PartlyEqual(flow_maps.UniformPairs(VP), 0.5)(key, B, index=index, total=9),
            shared=1,
        ),
        "mean_flow_loss": Row(
            lambda key, index: flow_maps.mean_flow_loss(
                ANGLE, PARAMS, key, X, pairs=flow_maps.UniformPairs(VP), index=index
            ),
            first=1,
        ),
        # likelihood
        "Exact.probes": Row(_probes(likelihood.Exact()), draws=False),
        "Hutchinson.probes": Row(_probes(dj.Hutchinson(2))),
        "HutchPlusPlus.probes": Row(_probes(likelihood.HutchPlusPlus(3))),
        "log_likelihood": Row(
            lambda key, index: dj.log_likelihood(key, VP, half, X, divergence=dj.Hutchinson(2), index=index)
        ),
        "evaluate_continuous_elbo": Row(
            lambda key, index: likelihood.evaluate_continuous_elbo(key, VP, half, X, draws=2, index=index)
        ),
        "evaluate_discrete_elbo": Row(
            lambda key, index: likelihood.evaluate_discrete_elbo(key, VP, half, X, TS, index=index)
        ),
        "bits_per_dim": Row(
            lambda key, index: likelihood.bits_per_dim(
                key, VP, half, WHOLE, quantisation=QUANTISATION, draws=2, likelihood=_noisy_likelihood, index=index
            )
        ),
        "UniformDequantisation.__call__": Row(lambda key, index: likelihood.UniformDequantisation()(key, X, index)),
        "VariationalDequantisation.__call__": Row(
            lambda key, index: likelihood.VariationalDequantisation(ZEROS, lambda p, x: (x + p["m"], x))(key, X, index)
        ),
        "dequantise": Row(
            lambda key, index: likelihood.dequantise(
                key, likelihood.UniformDequantisation(), QUANTISATION, WHOLE, index
            )
        ),
        "dequantisation_loss": Row(
            lambda key, index: likelihood.dequantisation_loss(
                ZEROS,
                key,
                WHOLE,
                apply=lambda p, x: (x + p["m"], x),
                quantisation=QUANTISATION,
                log_density=_log_density,
                index=index,
            )
        ),
        "LatentSpace.encode": Row(_latents),
        # variational autoencoders
        "autoencoder_loss": Row(_autoencoder_loss),
        "reconstruct": Row(_reconstructed),
        "negative_elbo": Row(
            lambda key, index: vae.negative_elbo(GAUSSIAN_VAE, VAE_PARAMS, key, X, index=index), first=2
        ),
        "infer": Row(lambda key, index: vae.infer(GAUSSIAN_VAE, VAE_PARAMS, key, X, index=index)),
        "iwae_bound": Row(lambda key, index: vae.iwae_bound(GAUSSIAN_VAE, VAE_PARAMS, key, X, draws=2, index=index)),
        "generate": Row(lambda key, index: vae.generate(GAUSSIAN_VAE, VAE_PARAMS, key, index)),
        "mutual_information": Row(lambda key, index: vae.mutual_information(key, POSTERIOR, index=index)),
        "aggregate_divergence": Row(
            lambda key, index: vae.aggregate_divergence(key, POSTERIOR, vae.StandardNormal(), index=index)
        ),
        "DiagonalGaussian.sample": _of_prior(POSTERIOR),
        "StandardNormal.sample": _of_prior(vae.StandardNormal()),
        "AutoregressivePrior.sample": _of_prior(vae.AutoregressivePrior(0.5)),
        "GaussianLikelihood.sample": _of_likelihood(vae.GaussianLikelihood(1.0), {}, X),
        "DiscretisedLogistic.sample": _of_likelihood(vae.DiscretisedLogistic(), {}, X),
        "Bernoulli.sample": _of_likelihood(vae.Bernoulli(), {}, X),
        "Autoregressive.sample": _of_likelihood(PIXELS, {"network": PARAMS, "each": {}}, X),
        # texts
        "corrupt_spans": Row(
            lambda key, index: losses.corrupt_spans(key, IDS, IDS > 0, sentinels=jnp.array([9]), index=index)
        ),
        "span_corruption_loss": Row(
            lambda key, index: losses.span_corruption_loss(
                T5_PARAMS, key, IDS, IDS > 0, module=T5, sentinels=jnp.array([9]), index=index
            )
        ),
        # generative adversarial networks
        "discriminator_loss": _of_gan(gan.discriminator_loss),
        "generator_loss": _of_gan(gan.generator_loss),
        "denoising_pairs": Row(
            lambda key, index: gan.denoising_pairs(key, VP, TO_ZERO, lambda xt, t, z: xt + z, X, latents=2, index=index)
        ),
        "generate_samples": Row(lambda key, index: gan.generate_samples(STEPS_GAN, GAN_PARAMS, key, index)),
        "GAN.generate": Row(lambda key, index: POINTS_GAN.generate(GAN_PARAMS, key, index)),
        "GAN.pairs": Row(lambda key, index: POINTS_GAN.pairs(GAN_PARAMS, key, X, index=index)),
        "DenoisingGAN.generate": Row(lambda key, index: STEPS_GAN.generate(GAN_PARAMS, key, index)),
        "DenoisingGAN.pairs": Row(lambda key, index: STEPS_GAN.pairs(GAN_PARAMS, key, X, index=index)),
        # inverse problems
        "inpaint": Row(
            lambda key, index: inverse.inpaint(
                key, VP, half, X, TS, jnp.array([True, False]), ONE_Y, times=2, index=index
            )
        ),
        "diffpir": Row(lambda key, index: inverse.diffpir(key, VP, half, X, TS, IDENTITY, ONE_Y, 0.1, index=index)),
        "sdedit": Row(lambda key, index: inverse.sdedit(key, VP, half, X, TS, dj.DDIM(eta=1.0), index=index)),
        # one place a step to resample from
        "twisted_smc": Row(
            lambda key, index: inverse.twisted_smc(key, VP, half, X, TS, IDENTITY, ONE_Y, 0.1, index=index), shared=3
        ),
    }
)
"""What samples draw by their global index."""


def _times_n(key):
    return dj.sample_n(key, VP, half, (D,), 5, ts=TS, stepper=dj.DDIM(eta=1.0), chunk=2)


WHOLE_BATCH = {
    "Gaussian.sample": lambda key: dj.Gaussian(jnp.zeros(D), jnp.eye(D)).sample(key, 3),
    "GaussianMixture.sample": lambda key: dj.GaussianMixture(jnp.zeros((2, D)), 1.0, jnp.array([0.5, 0.5])).sample(
        key, 3
    ),
    "Empirical.sample": lambda key: dj.analytic.Empirical(jnp.zeros((4, D))).sample(key, 3),
    "MonotoneLogsnr.__init__": process.MonotoneLogsnr,
    "sample_n": _times_n,
    "optimise_grid": lambda key: dj.samplers.optimise_grid(
        key, VP, half, (B, D), dj.DDIM(), TS, reference_steps=3, steps=1
    ),
    "systematic": lambda key: inverse.systematic(key, jnp.zeros(3)),
    "Assignment.__call__": lambda key: losses.Assignment()(key, X, X),
    "OptimalTransport.__call__": lambda key: losses.OptimalTransport()(key, X, X),
    "init_dequantiser": lambda key: likelihood.init_dequantiser(key, (D,), 4),
    "with_second_time": _second_time,
    "sliced_wasserstein": lambda key: metrics.sliced_wasserstein(key, X, X, projections=4),
    "dot_product_test": lambda key: operators.dot_product_test(key, IDENTITY, (D,)),
    "apply_network": lambda key: parameterisation.apply_network(
        dj.Diffusion(NETWORK, VP, EPS), PARAMS, X, 0.5, key=key
    ),
    "apply_hybrid": lambda key: parameterisation.apply_hybrid(
        NETWORK, PARAMS, DAMPED, jnp.zeros((B, 2, D)), 0.5, key=key
    ),
    "mean_flow_residual": lambda key: flow_maps.mean_flow_residual(
        ANGLE, PARAMS, X, X, jnp.full(B, 0.5), jnp.full(B, 0.2), key=key
    ),
    "per_sample_loss": lambda key: losses.per_sample_loss(
        dj.Diffusion(NETWORK, VP, EPS), PARAMS, X, X, jnp.full(B, 0.5), weighting=losses.native, key=key
    ),
    "VAE.init": lambda key: GAUSSIAN_VAE.init(key, X),
    "GAN.init": lambda key: POINTS_GAN.init(key, X),
    "DenoisingGAN.init": lambda key: STEPS_GAN.init(key, X),
    "init_power": lambda key: gan.init_power(key, {"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 2))}),
    "HierarchicalVAE.init": lambda key: TOP_DOWN.init(key, IMAGES),
    "DiffusionChain.init": lambda key: vae.DiffusionChain(dj.Diffusion(NETWORK, VP, EPS), TS, (D,)).init(key, X),
    "init_t5": lambda key: networks.init_t5(key, T5),
    "Autoregressive.init": lambda key: PIXELS.init(key, X, IMAGES),
    "consistency_tangent": lambda key: flow_maps.consistency_tangent(ANGLE, PARAMS, X, X, jnp.full(B, 0.5), key=key),
}
"""What is drawn for a whole batch, or for parameters."""

NOT_JITTED = {"optimise_grid"}
"""What looks at numbers on its way."""

NOT_ALONE = {"init_state", "draw_parameters", "state_from_params", "per_sample_consistency", "Parts.init"}
NOT_ALONE |= {f"{name}.top_down" for name in ("VAE", "HierarchicalVAE", "DiffusionChain")}
NOT_ALONE |= {
    f"{name}.{method}"
    for name in ("GaussianLikelihood", "DiscretisedLogistic", "Bernoulli", "Autoregressive")
    for method in ("init", "log_prob")
} - {"Autoregressive.init"}
"""Tested with the steps that follow them, or with the loss that draws for them; or they draw nothing."""
