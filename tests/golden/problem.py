"""The small problems that the records are numbers of, and the one place that knows how the library is called.

The commands of the records are evaluated with the names of this file. Where a signature changes, change the helper here
that calls it; where no helper stands between, change the text of the commands. The numbers stay.

    process, exact, log_prob         a process, and the exact denoiser and density of data that crowd at four points
    x0, xt                           points of data, and points to denoise
    levels, loss, updates, draw      by the names that a run's config.json has
    loss_of, score_loss              a loss that is called by itself
    labelled, answers                a denoiser of a network with classes, and what a denoiser answers at two times
    first_losses                     the losses of the first steps of a run
    read_log, read_results, ...      what a command has written
"""

import dataclasses
import json
import struct
from functools import partial as partial
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffjax as dj
from diffjax import (
    config,
    guidance as guidance,
    inverse as inverse,
    likelihood,
    losses,
    operators,
    samplers as samplers,
)
from diffjax.training import (
    Context,
    jit_layout,
    make_ema,
    make_power_ema as make_power_ema,
    make_train_step,
    train,
)

KEY = jax.random.key(0)
LABELS = jnp.array([0, 2, 1, 0], jnp.int32)
x0 = jnp.array([[0.9, 0.1], [0.2, -1.1], [-0.8, 0.3], [1.2, -0.2]], jnp.float32)
xt = jnp.array([[1.3, 0.4], [-0.2, -0.9], [-1.1, 0.9], [0.3, 0.2]], jnp.float32)
process = dj.VariancePreserving()
ts = np.linspace(1.0, 0.05, 6)


class Corners(eqx.Module):
    """The exact denoiser of normal distributions of variance 0.1 about the corners of a square, cheap to compile.

    D = (0.1 alpha xt + sigma^2 tanh(alpha xt/v))/v,   v = 0.1 alpha^2 + sigma^2,   each feature N(1, 0.1) or N(-1, 0.1)
    """

    process: Any

    def _numbers(self, xt, t):
        expand = lambda value: jnp.asarray(value).reshape(*jnp.shape(value), *(1,) * (xt.ndim - jnp.ndim(value)))
        alpha, sigma = expand(self.process.alpha(t)), expand(self.process.sigma(t))
        return alpha, sigma, 0.1 * alpha**2 + sigma**2

    def __call__(self, xt, t):
        alpha, sigma, v = self._numbers(xt, t)
        return (0.1 * alpha * xt + sigma**2 * jnp.tanh(alpha * xt / v)) / v

    def log_prob(self, xt, t):
        alpha, _, v = self._numbers(xt, t)
        each = jnp.logaddexp(-((xt - alpha) ** 2) / (2 * v), -((xt + alpha) ** 2) / (2 * v))
        return jnp.sum(each - 0.5 * jnp.log(8 * jnp.pi * v), axis=-1)


exact = Corners(process)
log_prob = jax.tree_util.Partial(Corners.log_prob, exact)
at_a_fifth = jax.tree_util.Partial(lambda x: exact.log_prob(x, 0.2))
score_at_a_fifth = jax.tree_util.Partial(jax.grad(lambda x: jnp.sum(exact.log_prob(x, 0.2))))


# Configurations


def configured(preset="toy2d", **changes):
    """A preset with changes: a name, or names and numbers, for each part; the network a small one unless named."""
    values = dataclasses.asdict(config.PRESETS[preset])
    for part, change in changes.items():
        change = {"name": change} if isinstance(change, str) and part != "name" else change
        values[part] = values[part] | change if isinstance(change, dict) else change
    return config.from_json(json.dumps(values))


SMALL = {"name": "mlp", "width": 8, "depth": 1}


def _built(classes=None, **changes):
    """The objects of a configuration, with the defaults of its loss, and a teacher where that is needed."""
    settings = configured(**{"network": SMALL, "batch_size": len(x0)} | changes)
    teacher = "teacher" if config.LOSSES[settings.loss.name].needs_teacher else None
    settings = dataclasses.replace(config.with_loss_defaults(settings, ()), teacher=teacher)
    return config.build(settings, classes)


def moved(params, size=0.3):
    """Parameters away from their first values, where the last layers are zero and see nothing."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + size * rng.normal(size=leaf.shape), leaf.dtype), params)


def _params(network, classes=None, features=2):
    cond = None if classes is None else LABELS
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros((len(x0), features)), jnp.zeros(len(x0)), cond)
    return moved(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))


# Losses


def _with_gradient(function, params):
    value, gradient = jax.value_and_grad(function)(params)
    along = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(params), strict=True))
    return [value, optax.tree.norm(gradient), along]


def loss(*, conditional=False, **changes):
    """The loss that a run with these names trains on: of the small network, at the points `x0`."""
    classes = 3 if conditional else None
    parts = _built(classes, **changes)
    batch = (x0, LABELS if conditional else None)
    params = _params(parts.diffusion.network, classes)
    if parts.learned:
        fresh = parts.init(KEY, x0, LABELS if conditional else None)
        params = {name: params if name == "network" else moved(part, 0.1) for name, part in fresh.items()}
    if parts.objective.flow_map:
        params = moved(parts.init(KEY, x0, batch[1]), 0.1)
    context = Context(KEY, ema={"decay": moved(params, 0.1)}, index=jnp.arange(len(x0)), total=len(x0))
    return _with_gradient(lambda p: parts.loss(p, batch, context)[0], params)


def loss_of(
    function, *, process, parameterisation=None, features=2, data=x0, change=lambda network: network, **choices
):
    """A loss that is called by itself, of the small network and what else is given."""
    network = _built().diffusion.network
    params = _params(network, features=features)
    if parameterisation is None:  # a loss of another process than a Gaussian one
        run = partial(function, network=change(network), process=process)
    else:
        run = partial(function, dj.Diffusion(change(network), process, parameterisation))
    return _with_gradient(lambda p: run(p, KEY, data, **choices)[0], params)


def with_variance(network):
    """A network that answers twice the channels: its own answer, and one for the variance."""

    def apply(*args, **kwargs):
        y = network.apply(*args, **kwargs)
        return jnp.concatenate([y, 0.5 * y[..., ::-1]], axis=-1)

    return dj.Network(network.init, apply)


def score_loss(function, **choices):
    """A loss of a score network, here tanh(x A) B."""
    a, b = [[0.7, -0.3, 0.2], [0.4, 0.9, -0.5]], [[0.3, -0.6], [0.8, 0.1], [-1.0, 0.5]]
    params = {"a": jnp.array(a), "b": jnp.array(b)}
    score_apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    return _with_gradient(lambda p: function(p, KEY, x0, score_apply=score_apply, **choices)[0], params)


def own_uncertainty():
    """The loss with weights that are learned beside the network, at weights that are not zero."""
    u, diffusion = losses.Uncertainty(2), dj.Diffusion(_built().diffusion.network, process, dj.VPrediction())
    params = {"network": _params(diffusion.network), "loss": moved(u.init())}

    def function(p):
        times = dj.StratifiedTimes(process)
        _, aux = dj.denoising_loss(diffusion, p["network"], KEY, x0, times=times, weighting=losses.EDMWeighting())
        return losses.uncertainty_loss(diffusion, p["loss"], aux, uncertainty=u)[0]

    return _with_gradient(function, params)


def dequantisation():
    """What trains the noise that whole numbers are dequantised by, against a density that is known."""
    data = jnp.array([[0, 7], [3, 4]])
    params = moved(likelihood.init_dequantiser(KEY, (2,), width=4))
    choices: dict[str, Any] = {"apply": likelihood.apply_dequantiser, "quantisation": dj.likelihood.Quantisation(8)}
    choices["log_density"] = lambda key, x, index: exact.log_prob(x, 0.1)
    return _with_gradient(lambda p: likelihood.dequantisation_loss(p, KEY, data, **choices)[0], params)


# Processes, grids, optimisers


def levels(name, times=(0.1, 0.5, 0.9)):
    """alpha, sigma and logsnr of a process at three times."""
    of, t = _built(process=name, loss="continuous_elbo").process, jnp.array(times)  # a bound trains any process
    return [of.alpha(t), of.sigma(t), of.logsnr(t)]


def grid(name, process="cosine", steps=5):
    """The times of a grid."""
    return _built(process=process, sampler={"grid": name, "steps": steps}).ts


def updates(**numbers):
    """What three gradients, one of them long, make of four parameters."""
    tx = _built(optimiser=numbers, steps=4).tx
    params = {"a": jnp.array([0.5, -0.2]), "b": jnp.array([1.0, 0.3])}
    state = tx.init(params)
    for factor in (1.0, 40.0, -0.1):
        gradients = {"a": factor * jnp.array([0.3, 0.01]), "b": factor * jnp.array([-0.05, 0.2])}
        change, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, change)
    return params


def averages(average):
    """A parameter's average after each of four steps."""
    ema, kept = {"a": jnp.ones(1)}, []
    for step, value in enumerate((2.0, -1.0, 0.5, 3.0)):
        ema = average(jnp.asarray(step), {"a": jnp.full(1, value)}, ema)
        kept.append(ema["a"])
    return kept


# Samples and denoisers

_CLASSES = 3
_conditional = dj.Diffusion(_built(_CLASSES).diffusion.network, process, dj.VPrediction())
labelled = dj.make_denoiser(_conditional, _params(_conditional.network, _CLASSES), LABELS)
other = dj.exact_denoiser(dj.Gaussian(jnp.array([0.2, -0.3]), jnp.array([0.6, 0.3])), process)
operator, y = operators.Matrix(jnp.array([[1.0, 0.5]])), jnp.array([[0.6]])
mask, known = jnp.array([True, False]), jnp.array([[0.8, 0.0]])
fixed = {"t0": 0.05, "controller": diffrax.StepTo(jnp.linspace(0.05, 1.0, 9))}
clipped = dj.process.Clipped(process, 6.0, -6.0)
to_class = jax.tree_util.Partial(lambda xt, t: -0.5 * jnp.sum((xt - jnp.array([1.0, -0.5])) ** 2, axis=-1) / (0.3 + t))


def draw(sampler="dpmpp2m", *, process="variance_preserving", grid=None, steps=6, eta=None):
    """Samples by a method of a configuration, on its grid, or on `ts`: there the last step is not to the data itself,
    before which some methods multiply rounding by a thousand.
    """
    named = {"name": sampler, "grid": grid or "uniform", "steps": steps, "eta": eta}
    parts = _built(3, process=process, sampler=named)
    denoiser = Corners(parts.process)
    if isinstance(parts.stepper, dj.Jump):
        denoiser = _flow_map
    if isinstance(parts.stepper, samplers.CFGpp):
        denoiser = guidance.extrapolate(denoiser, _half, 0.6)
    return draw_by(parts.stepper, denoiser, ts=parts.ts if grid else ts, process=parts.process)


def _half(xt, t):
    return 0.5 * xt


def _flow_map(xt, t, s):
    return jnp.tanh((0.5 + 0.3 * t - 0.2 * s) * xt)


def guide(name, scale=2.5, t=0.4):
    """A guidance rule of a configuration, on two estimates of x0."""
    return _built(3, guidance=name).rule(x0, 0.3 * xt, jnp.asarray(scale), xt, jnp.asarray(t))


def threshold(name, bound=0.5):
    """A threshold of a configuration, on data."""
    settings = config.SamplerConfig(threshold=name)
    made = config.construct("sampler", config.THRESHOLDS, settings, field="threshold")
    return made(lambda xt, t: x0, bound=bound)(xt, 0.4)


def draw_by(stepper, denoiser=exact, *, ts=ts, process=process, sample=dj.sample, **choices):
    """Samples by a stepper and a denoiser."""
    noise = dj.prior(jax.random.key(1), process, x0.shape)
    return sample(KEY, process, denoiser, noise, ts, stepper, **choices)


def answers(denoiser, times=(0.7, 0.3)):
    """What a denoiser answers for `xt` at two times."""
    return [denoiser(xt, jnp.asarray(t)) for t in times]


# Runs


def first_losses(preset, steps=4, **changes):
    """The losses of the first steps of a preset, each after the updates of those before."""
    settings = configured(preset, steps=steps, **changes)
    data = config.build_data(settings.data)
    run = config.build_run(settings, data.samples)
    state = config.fresh_state(run)
    layout = jit_layout(make_train_step(run.family.objectives, ema=make_ema(settings.ema_decay)))
    log = Path(f"{preset}.jsonl")
    choices: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed, "log": log, "log_every": 1}
    train(state, layout, data.source, steps=steps, progress=False, **choices)
    return read_log(log, "loss")


def read_log(path, *names):
    """The metrics of those names, of each line of a run's log."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [[line[name] for line in lines] for name in names]


def read_results(path):
    """The distances that training ends with."""
    return [value for name, value in json.loads(Path(path).read_text()).items() if "distance" in name]


def read_samples(path):
    """The samples of an .npz."""
    with np.load(path) as file:
        return file["x"]


def write_files(folder):
    """What commands read: a known point and its mask, MNIST's files and CIFAR-10's, of a few pictures each."""
    np.savez(folder / "known.npz", x=np.array([0.8, 0.0]))
    np.savez(folder / "mask.npz", mask=np.array([1, 0]))
    pictures = lambda n, size: (np.arange(n * size) * np.arange(1, n * size + 1) // 7 % 256).astype(np.uint8)
    (folder / "mnist").mkdir()
    for part, n in (("train", 24), ("t10k", 8)):
        images, labels = pictures(n, 784).tobytes(), bytes(i % 10 for i in range(n))
        (folder / "mnist" / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, n, 28, 28) + images)
        (folder / "mnist" / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + labels)
    (folder / "cifar10").mkdir()
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images = pictures(48, 3072).reshape(6, 8, 3072)[i]
        records = [bytes([j]) + image.tobytes() for j, image in enumerate(images)]
        (folder / "cifar10" / f"{name}.bin").write_bytes(b"".join(records))
