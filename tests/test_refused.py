"""Public functions refuse samples of another dtype or shape, and answers that would broadcast, in clear words.

The checks of types that other tests run under would raise first, so the tables of `helpers/refused.py` are walked in a
process without them.
"""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=550, check=False
    )


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_what_does_not_fit_is_refused_by_name(share):
    walk = run(str(HERE / "helpers" / "refused.py"), str(share))
    assert walk.returncode == 0, walk.stdout + walk.stderr
    tried = int(walk.stderr.rsplit(" calls tried")[0].split()[-1])
    assert tried > 1000 / share  # the walk has not become an empty one


CALLS = """
import jax, jax.numpy as jnp, numpy as np, diffjax as dj
from diffjax import flow_maps, gan
p, d, ts, key = dj.Cosine(), lambda x, t: 0.5 * x, np.array([0.9, 0.5, 0.1]), jax.random.key(0)
x = jnp.ones((2, 4))
right = dj.sample(key, p, d, x, ts, dj.DDIM())

# what fits: NumPy's arrays, one feature, lower precision, jit, vmap and grad
assert (dj.sample(key, p, d, np.ones((2, 4)), ts, dj.DDIM()) == right).all()
assert (dj.sample(key, p, d, np.ones((2, 4), np.float32), ts, dj.DDIM()) == right).all()
assert (dj.sample(None, p, d, x, ts, dj.DDIM()) == right).all()  # nothing is drawn
assert (dj.sample(jax.random.PRNGKey(0), p, d, x, ts, dj.DDIM()) == right).all()
assert dj.sample(key, p, d, x[:, 0], ts, dj.DDIM()).shape == (2,)
for dtype in (jnp.bfloat16, jnp.float16):
    assert dj.sample(key, p, d, x.astype(dtype), ts, dj.DDIM()).dtype == dtype
each = jax.jit(jax.vmap(lambda x: dj.sample(key, p, d, x[None], ts, dj.DDIM())[0]))(x)
assert jnp.allclose(each, right)
slope = jax.grad(lambda x: dj.sample(key, p, d, x, ts, dj.DDIM()).sum())(x)
assert jnp.isfinite(slope).all()
told = dj.Network(None, lambda params, x, c_noise, cond, *, key=None: x * c_noise[:, None])
for clock in ("logsnr", "angle"):
    denoiser = dj.make_denoiser(dj.Diffusion(told, dj.Rectified(), dj.VPrediction(clock=clock)), {})
    assert all((denoiser(x, int(t)) == denoiser(x, t)).all() for t in (0.0, 1.0))
normal = dj.exact_flow_map(dj.GaussianMixture([[0.0]], 1.0), p)
assert jnp.allclose(normal.move(x[:, :1], 1, 0), x[:, :1], atol=1e-5)  # times that are Python's whole numbers
assert (dj.Gaussian([0, 1], 1).mean == jnp.array([0.0, 1.0])).all()

# what does not: the message names the argument, inside jit too
def refused(words, call, *args):
    try:
        call(*args)
    except ValueError as error:
        assert str(error).startswith(words), (words, str(error))
    else:
        raise AssertionError(words)

for run in (dj.sample, jax.jit(dj.sample, static_argnums=2)):
    refused("xt: floating-point numbers are needed, got dtype int32", run, key, p, d, x.astype(int), ts, dj.DDIM())
    refused("xt: a batch axis is needed", run, key, p, d, x[0, 0], ts, dj.DDIM())
refused("t: times are floating-point numbers in [0, 1], got dtype int32", dj.perturb, p, x, x, jnp.array([10, 20]))
refused("t: a scalar or shape (2,), one a sample", dj.perturb, p, x, x, jnp.ones((2, 1)))
refused("t: a scalar or shape (2,), one a sample", dj.perturb, p, x, x, jnp.ones(4))
for bad in (float("nan"), 1.5, -0.1, jnp.array([0.5, 1.5]), np.float32("nan")):
    outside = "t: times lie in [0, 1], data to noise, got "
    refused(outside, dj.perturb, p, x, x, bad)
    refused(outside, dj.score, p, d, x, bad)
    refused(outside, dj.Gaussian(jnp.zeros(4), 1.0).denoise, p, x, bad)
    refused("s" + outside[1:], dj.posterior_mean_std, p, x, x, bad, 0.9)
assert jnp.isnan(jax.jit(lambda t: dj.perturb(p, x, x, t))(jnp.nan)).all()  # a value that is traced is not looked at
for bad in ([0.5, 0.5], "half", None, True):
    refused("t: a number, or an array of one a sample, is needed, got ", dj.perturb, p, x, x, bad)
assert jnp.allclose(dj.likelihood.slerp(x, 2 * x, 1.5), 2.5)  # beyond b: a weight is no time
noisy = lambda index: dj.sample(key, p, d, x, ts, dj.DDIM(eta=1.0), index=index)
assert (noisy([1, 0]) == noisy(None)[::-1]).all()
for bad in (jnp.ones(2), [0.0, 1.0], np.array([True, False])):
    refused("index: global indices are whole numbers, got dtype ", noisy, bad)
langevin = lambda step_size: dj.samplers.langevin(key, jnp.negative, x, steps=2, step_size=step_size)
refused("step_size: a number or an array of shape (2,) is needed, got [0.1, 0.2]", langevin, [0.1, 0.2])
for bad in (0, [0], [[0], [1, 2]]):
    refused("index: one global index a sample is needed, shape (2,), got ", noisy, bad)
Grey, Matrix, Mask = dj.operators.Grey, dj.operators.Matrix, dj.operators.Mask
for bad in (2, [], [[1.0, 2.0]]):
    refused("weights: one number a colour, shape [c], is needed, got shape ", Grey, bad)
for what, operator in {"weights": Grey, "matrix": Matrix}.items():
    for bad in ("words", [[1.0], [1.0, 2.0]], [["a"]], None, [[float("nan")]], True):
        refused(what + ": ", operator, bad)
for bad in ("words", [[1.0], [1.0, 0.0]], None):
    refused("mask: an array of 0 (hidden) and 1 (observed) is needed, got ", Mask, bad)
fill = lambda y, mask=[1, 0, 0, 0]: dj.inverse.inpaint(key, p, d, x, ts, mask, y)
assert (fill([[3, 2, 2, 2]])[:, 0] == 3).all()
for bad in ([[1.0], [1.0, 2.0]], [["a"]], [1.0] * 4, None):
    refused("y: ", fill, bad)
refused("mask: ", fill, x, "words")
refused("diffusion: a function of", dj.process.SDE, p.alpha, 0.3)
refused("shape: positive whole numbers, at least 1, are needed", dj.prior, key, p, ())
refused("shape: positive whole numbers, at least 1, are needed", dj.prior, key, p, (0, 2))
refused("shape: ", dj.prior, key, p, (2.0, 2))
for bad in (0, 0.5, None, "0", jax.random.split(key), jnp.arange(2)):
    refused("key: one key is needed", dj.prior, bad, p, (2, 2))
    refused("key: one key is needed", dj.sample, bad, p, d, x, ts, dj.DDIM(eta=1.0))
refused("mean: must be finite", dj.Gaussian, jnp.array([jnp.nan]), 1.0)
refused("covariance: must be finite", dj.Gaussian, jnp.zeros(2), jnp.inf)
refused("covariance: must be positive", dj.Gaussian, jnp.zeros(2), jnp.nan)
refused("data: must be finite", dj.analytic.Empirical, [[float("nan")]])
student = dj.Diffusion(dj.Network(None, lambda params, x, c, cond=None, *, key=None: x), p, v := dj.VPrediction())
consistent = lambda levels, teacher: flow_maps.consistency_loss(
    student, {}, key, x, levels=levels, teacher=teacher, weighting=flow_maps.unweighted
)
refused("levels: a callable is needed, such as GridLevels(ts)", consistent, ts, None)
refused("teacher: a denoiser D(xt, t) is needed, got float", consistent, flow_maps.EDMLevels(p, 3), 0.5)
network = dj.Network(None, None)
made = "from_linen, from_nnx and from_equinox make one"
made = "Diffusion(network, process, parameterisation) is needed, got"
aux = {"t": jnp.ones(2), "per_sample": jnp.ones(2)}
refused(f"diffusion: {made} Network", dj.make_denoiser, network, {})
refused(f"diffusion: {made} NoneType", dj.parameterisation.apply_network, None, {}, x, 0.5)
grid_losses = dj.losses.negative_discrete_elbo, dj.losses.negative_ddpm_elbo, dj.losses.noise_conditional_sum
for loss in (dj.denoising_loss, dj.losses.negative_continuous_elbo, *grid_losses):
    own = {"times": None, "weighting": None} if loss is dj.denoising_loss else {"ts": ts}
    own = {"times": None} if loss is dj.losses.negative_continuous_elbo else own
    refused(f"diffusion: {made} Cosine", lambda: loss(p, {}, key, x, **own))
refused(f"diffusion: {made} Cosine", lambda: dj.losses.uncertainty_loss(p, {}, aux, uncertainty=None))
needed = "stepper: a sampling method such as DDIM() is needed, got"
refused(f"{needed} the class DDIM", dj.sample, None, p, d, x, ts, dj.DDIM)
class Silent(dj.DDIM):
    def step(self, denoiser, x, at, state):
        return x + dj.process.normal_like(at.keys, x), state
silent = "keys: one a sample, (2,), is needed, got none (a stepper that draws must declare stochastic = True)"
refused(silent, dj.sample, key, p, d, x, ts, Silent())
refused("keys: one a sample, (2,), is needed, got (3,)", dj.process.normal_like, jax.random.split(key, 3), x)
refused(f"{needed} NoneType", lambda: dj.sample_n(key, p, d, (4,), 2, ts=ts, stepper=None))
made = "from_linen, from_nnx and from_equinox make one"
refused(f"network: Network is needed ({made}), got MLP", dj.Diffusion, dj.networks.MLP(8), p, v)
refused("process: AbstractGaussianProcess is needed, got VPrediction", dj.Diffusion, network, v, p)
refused("parameterisation: AbstractParameterisation is needed, got Cosine", dj.Diffusion, network, p, p)
model = gan.GAN(network, network, 2)
for call in (gan.training_losses, *(gan.discriminator_loss, gan.generator_loss, gan.generate_samples)):
    given = () if call is gan.training_losses else ({}, key, np.arange(2) if call is gan.generate_samples else x)
    refused("gan: GAN(generator, discriminator, latents) is needed, got Network", call, network, *given)
    if call is not gan.generate_samples:
        for bad in ("hinge", gan.Hinge):
            refused(f"loss: a loss of logits is needed, such as NonSaturating() or Hinge(), got {bad!r}",
                lambda: call(model, *given, loss=bad))
for name in ("r1", "r2"):
    refused(f"{name}: a number is needed, got a function; of a schedule give {name}=schedule(step)",
        lambda: gan.discriminator_loss(model, {}, key, x, **{name: gan.r3gan(10).gamma}))
refused("gamma: a number is needed, got a function; of a schedule give gamma=schedule(step)",
    lambda: gan.gradient_penalty(lambda x: x[:, :1], x, gan.r3gan(10).gamma))
for bad in (5, None, jnp.array(5)):
    refused("index: global indices [n] are needed, such as jnp.arange(n), got ",
        gan.generate_samples, model, {}, key, bad)
for bad in ([[0], [1, 2]], jnp.ones((1, 2), int)):
    refused("index: one global index a sample is needed, shape (2,), got ", gan.generate_samples, model, {}, key, bad)
refused("generator: a Network is needed (from_linen makes one), got MLP", gan.GAN, dj.networks.MLP(8), network, 2)
refused("discriminator: a Network is needed (from_linen makes one), got Cosine", gan.GAN, network, p, 2)
refused("latents: at least one is needed, got 0", gan.GAN, network, network, 0)
for bad in ([], np.arange(0), jnp.zeros(0, int)):
    refused("index: at least one global index is needed, got none", gan.generate_samples, model, {}, key, bad)
    vae = dj.vae.VAE(network, network, dj.vae.Bernoulli(), 2)
    refused("index: at least one global index is needed, got none", dj.vae.generate, vae, {}, key, bad)
refused("temperature: one number is needed, got an array of shape (3,)",
    lambda: gan.generate_samples(model, {}, key, np.arange(2), temperature=np.ones(3)))
refused("temperature: a number is needed, got str",
    lambda: gan.generate_samples(model, {}, key, np.arange(2), temperature="hot"))
refused("temperature: one number is needed, got an array of shape (3,)", gan.LatentAncestral, 2, np.ones(3))
for bad, got in (("0.1", "str"), (None, "NoneType")):
    needed = f": a number is needed, got {got}"
    refused("gamma" + needed, lambda: gan.gradient_penalty(lambda x: x[:, :1], x, bad))
    refused("r1" + needed, lambda: gan.discriminator_loss(model, {}, key, x, r1=bad))
    refused("r2" + needed, lambda: gan.training_losses(model, r2=bad))
    for name in ("gamma", "learning_rate", "beta2"):
        refused(name + needed, lambda: gan.r3gan(10, **{name: bad}))
    refused("step_size" + needed, gan.DiracGAN(0.5).update_matrix, bad)
    refused("step_size" + needed, gan.DiracGAN(0.5).spectral_radius, bad)
refused("r1: one number is needed, got an array of shape (4,)", lambda: gan.training_losses(model, r1=x[0]))
for name in ("gamma", "final_gamma", "learning_rate", "final_learning_rate", "beta2", "final_beta2"):
    refused(f"{name}: one number is needed, got an array of shape (4,)", lambda: gan.r3gan(10, **{name: x[0]}))
for bad in (1.5, jnp.array(2.0), jnp.arange(2), True):
    refused("step: ", lambda: gan.lazy(lambda: jnp.ones(2), bad, every=2))
for step in (4, np.int64(4), jnp.array(4, jnp.uint32)):
    assert gan.lazy(lambda: jnp.ones(2), step, every=4).tolist() == [4.0, 4.0]
refused("step_size: one number is needed, got an array of shape (4,)", gan.DiracGAN(0.5).update_matrix, x[0])
for bad in (None, {}, {"k": jnp.ones(3)}):
    refused("power: a vector of shape (2,) is needed for k; make them by init_power",
        gan.spectral_norm, {"k": jnp.ones((3, 2))}, bad)
refused("spectral: True or False is needed, got 'no'", gan.GAN, network, network, 2, "no")
refused("spectral: True or False is needed, got 1", gan.DenoisingGAN, network, network, p, [1.0, 0.0], (4,), 2, 1)
assert gan.GAN(network, network, 2, np.bool_(True)).spectral
for bad in (model, None, {}):
    refused("denoiser: a generator G(xt, t, z) is needed by LatentAncestral, such as DenoisingGAN.conditioned(params)",
        dj.sample, key, p, bad, x, [1.0, 0.0], gan.LatentAncestral(2))
    refused("generator: a generator G(xt, t, z) is needed, such as DenoisingGAN.conditioned(params)",
        lambda: gan.denoising_pairs(key, p, [1.0, 0.0], bad, x, latents=1))
of = lambda name, model: f"params: {name!r} is needed, as init of the {model} makes it, got nothing"
u, images, nets = dj.losses.Uncertainty(), jnp.ones((2, 8, 8, 1)), dj.networks
refused(of("weights", "Uncertainty"), u, {}, jnp.ones(2))
refused("params: 'bias' is needed, as init of the Uncertainty makes it, got weights", u, {"weights": x[0]}, x[0])
refused(of("body", "Classifier"), nets.classifier_features, nets.Classifier(3, channels=(4,)), {}, images)
refused(of("body", "Classifier"), nets.classifier_of, {})
refused(of("in", "Classifier"), nets.classifier_of, {"body": {}})
refused(of("kernel", "Classifier"), nets.classifier_of, {"body": {"in": {"kernel": images}, "halve__1": {}}})
refused(of("logits", "Classifier").replace("nothing", "body"), nets.classifier_of, {"body": {"in": {"kernel": images}}})
refused(of("body", "FactorClassifier"), nets.factor_features, nets.FactorClassifier((2, 3), channels=(4,)), {}, images)
for rest in ({}, {"hidden": []}):
    part, got = ("out", "hidden") if rest else ("hidden", "nothing")
    refused(f"params: {part!r} is needed, as init of the dequantiser makes it, got {got}",
        dj.likelihood.apply_dequantiser, rest, x)
steps = lambda process: gan.DenoisingGAN(network, network, process, [1.0, 0.0], (4,), 2)
refused("process: a Gaussian process is needed, got VPrediction", steps, v)
for bad in (0, jnp.arange(3)):
    refused("index: one global index a sample is needed, shape (2,), got ",
        lambda: gan.denoising_pairs(key, p, [1.0, 0.0], lambda xt, t, z: xt, x, latents=1, index=bad))
"""


def test_what_fits_passes_and_values_times_keys_and_shapes_are_checked():
    done = run("-W", "ignore", "-c", CALLS)
    assert done.returncode == 0, done.stderr


def test_denoisers_are_called_by_predict_alone():
    """So that no answer goes unchecked, whatever is added."""
    names = {"denoiser", "good", "bad", "inside", "outside"}
    direct = []
    for path in sorted((HERE.parent / "diffjax").rglob("*.py")):
        if {"cli", "config"} & {*path.parts}:  # whose `denoiser(labels)` makes one
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) in names:
                direct.append(f"{path.name}: {ast.unparse(node)}")
    inside = ["_denoiser.py: denoiser(xt, t)", "_interval.py: inside(xt)", "_interval.py: outside(xt)"]
    assert [call for call in direct if call not in inside] == [], "call parameterisation._denoiser.predict"
