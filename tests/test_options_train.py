"""Every field of a configuration against the library call that it stands for.

Presets and defaults are written out, the command line sets each field, and a short run with none of them at its default
is the run that the same numbers give by hand. The last test names the check of every field.
"""

import dataclasses
import io
import json
import re
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import perturbed
from PIL import Image

import diffjax as dj
from diffjax import Network, config as c, guidance, losses, networks, process as processes
from diffjax.cli import Draw, main
from diffjax.cli._train import _about
from diffjax.config._diffusion_family import DiffusionFunctions
from diffjax.data import ImageFolder, checkerboard, load_digits, mixture, prefetch, swiss_roll, two_moons
from diffjax.training import Checkpoints, Context, Objective, Snapshots, data_mesh, init_state, make_train_step

# --- defaults and presets ---

DEFAULTS = {
    "name": "digits",
    "steps": 3000,
    "batch_size": 128,
    "seed": 0,
    "ema_decay": 0.999,
    "ema_widths": (),
    "data": {
        "name": "digits",
        "path": None,
        "conditional": True,
        "flip": False,
        "workers": 0,
        "holdout": 0.2,
        "holdout_seed": 0,
        "skip_bad": False,
        "components": None,
        "std": None,
        "noise": None,
        "cells": None,
        "image_size": None,
        "channels": None,
        "text": None,
        "text_encoder": "frozen",
        "text_field": "text",
        "size": None,
        "objects": None,
        "colours": None,
        "sizes": None,
        "jitter": None,
    },
    "process": {
        "name": "cosine",
        "beta_min": None,
        "beta_max": None,
        "shift": None,
        "offset": None,
        "horizon": None,
        "power": None,
        "sigma_min": None,
        "sigma_max": None,
        "rho": None,
        "steps": None,
        "start": None,
        "stop": None,
        "largest": None,
        "width": None,
        "logsnr_min": None,
        "logsnr_max": None,
        "zero_terminal_snr": False,
    },
    "parameterisation": {"name": "v", "data_std": None, "clock": "logsnr"},
    "weighting": {"name": "native", "data_std": None, "gamma": None, "bias": None, "k": None},
    "times": {"name": "stratified", "mean": None, "std": None, "scale": None},
    "teacher": None,
    "family": {
        "name": "diffusion",
        "likelihood": "gaussian",
        "latents": None,
        "width": None,
        "depth": None,
        "blocks": None,
        "levels": None,
        "beta": None,
        "free_bits": None,
        "warm_up": None,
        "kl_weight": None,
        "critic_weight": None,
        "critic_start": None,
        "perceptual": None,
        "perceptual_weight": None,
        "loss": "non_saturating",
        "r1": None,
        "r2": None,
        "gamma_final": None,
        "every": None,
        "updates": None,
        "generator_rate": None,
        "steps": None,
    },
    "loss": {
        "name": "denoising",
        **dict.fromkeys(
            (
                "mean",
                "std",
                "equal",
                "power",
                "offset",
                "finest",
                "fewest",
                "most",
                "warm_up",
                "least",
                "first",
                "teacher_steps",
            )
        ),
        "c": None,
        "epsilon": None,
        "waves": None,
        "noise_levels": None,
        "levels": None,
        "steps": None,
        "share": None,
        "block": None,
        "projections": None,
        "step": None,
    },
    "network": {
        "name": "unet",
        "channels": (32, 64),
        "blocks": 1,
        "attention": (1,),
        "head_channels": 32,
        "width": 128,
        "depth": 3,
        "heads": 4,
        "patch": 2,
        "scan": False,
        "dropout": 0.0,
        "dtype": "float32",
        "remat": False,
        "residual_balance": None,
        "attention_balance": None,
        "skip_balance": None,
        "label_balance": None,
        "rope": None,
        "position_range": None,
        "mlp_ratio": None,
        "norm_epsilon": None,
    },
    "optimiser": {
        "learning_rate": 1e-3,
        "warmup": 200,
        "final": 0.0,
        "clip": 1.0,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.999,
        "beta2_final": None,
        "text_rate": 1.0,
    },
    "guidance": {
        "name": "cfg",
        "scale": 1.5,
        "interval": None,
        "logsnr_start": None,
        "phi": None,
        "parallel": None,
        "norm": None,
        "dropout": 0.1,
    },
    "sampler": {
        "name": "dpmpp2m",
        "steps": 20,
        "grid": "logsnr",
        "clip": None,
        "threshold": "static",
        "eta": None,
        "gamma": None,
        "r1": None,
        "p": None,
        "order": None,
        "points": None,
        "interpolation": None,
        "r": None,
        "s_churn": None,
        "s_min": None,
        "s_max": None,
        "s_noise": None,
        "corrections": None,
        "snr": None,
        "step_size": None,
        "rho": None,
        "data_std": None,
        "width": None,
        "shift": None,
        "quantile": None,
        "largest": None,
    },
}
R3GAN = {
    "optimiser.warmup": 0,
    "optimiser.final": 0.25,
    "optimiser.clip": 10.0,
    "optimiser.beta1": 0.0,
    "optimiser.beta2": 0.9,
    "optimiser.beta2_final": 0.99,
    "family.loss": "relativistic",
    "family.gamma_final": 0.1,
}
PRESETS = {
    "digits": {
        "steps": 1200,
        "batch_size": 64,
        "optimiser.learning_rate": 2e-3,
        "optimiser.warmup": 100,
        "guidance.scale": 1.1,
    },
    "mnist": {
        "name": "mnist",
        "steps": 4000,
        "batch_size": 64,
        "data.name": "mnist",
        "network.channels": (16, 32, 64),
        "network.attention": (2,),
        "guidance.scale": 1.1,
    },
    "cifar10": {
        "name": "cifar10",
        "steps": 200_000,
        "ema_decay": 0.9999,
        "data.name": "cifar10",
        "data.flip": True,
        "network.channels": (128, 256, 256, 256),
        "network.blocks": 2,
        "network.head_channels": 64,
        "network.dropout": 0.1,
        "optimiser.learning_rate": 2e-4,
        "optimiser.warmup": 5000,
        "guidance.scale": 1.1,
        "sampler.steps": 25,
    },
    "toy2d": {
        "name": "toy2d",
        "batch_size": 512,
        "data.name": "mixture",
        "data.conditional": False,
        "network.name": "mlp",
        "optimiser.learning_rate": 2e-3,
        "guidance.dropout": 0.0,
        "guidance.scale": 1.0,
    },
    "shapes": {
        "name": "shapes",
        "batch_size": 32,
        "data.name": "shapes",
        "data.holdout": 0.1,
        "network.channels": (16, 32, 64),
        "network.attention": (1, 2),
        "network.head_channels": 16,
        "optimiser.learning_rate": 2e-3,
        "guidance.scale": 3.0,
    },
    "digit_scenes": {
        "name": "digit_scenes",
        "batch_size": 32,
        "data.name": "digit_scenes",
        "data.holdout": 0.1,
        "network.channels": (16, 32, 64),
        "network.attention": (1, 2),
        "network.head_channels": 16,
        "optimiser.learning_rate": 2e-3,
        "guidance.scale": 3.0,
    },
    "digits_vae": {
        "name": "digits_vae",
        "batch_size": 64,
        "optimiser.learning_rate": 2e-3,
        "optimiser.warmup": 100,
        "family.name": "vae",
        "family.likelihood": "logistic",
        "family.levels": 17,
    },
    "digits_hvae": {
        "name": "digits_hvae",
        "steps": 1200,
        "batch_size": 64,
        "optimiser.learning_rate": 2e-3,
        "optimiser.warmup": 100,
        "family.name": "hierarchical_vae",
        "family.likelihood": "logistic",
        "family.levels": 17,
    },
    "digits_autoencoder": {
        "name": "digits_autoencoder",
        "steps": 1000,
        "batch_size": 64,
        "data.conditional": False,
        "optimiser.learning_rate": 2e-3,
        "optimiser.warmup": 100,
        "family.name": "autoencoder",
    },
    "toy2d_vae": {
        "name": "toy2d_vae",
        "batch_size": 512,
        "data.name": "mixture",
        "data.conditional": False,
        "optimiser.learning_rate": 2e-3,
        "family.name": "vae",
        "family.latents": 2,
        "family.width": 128,
    },
    "digits_gan": {
        "name": "digits_gan",
        "steps": 2000,
        "batch_size": 64,
        "optimiser.learning_rate": 5e-4,
        **R3GAN,
        "family.name": "gan",
        "family.latents": 32,
        "family.width": 16,
        "family.every": 4,
        "family.r1": 0.5,
        "family.r2": 0.5,
    },
    "digits_ddgan": {
        "name": "digits_ddgan",
        "batch_size": 64,
        **R3GAN,
        "family.name": "ddgan",
        "family.latents": 32,
        "family.width": 16,
        "family.every": 4,
        "family.r1": 0.05,
        "family.r2": 0.05,
        "family.generator_rate": 0.1,
    },
    "toy2d_gan": {
        "name": "toy2d_gan",
        "steps": 4000,
        "batch_size": 256,
        "data.name": "mixture",
        "data.conditional": False,
        **R3GAN,
        "family.name": "gan",
        "family.width": 128,
        "family.depth": 3,
        "family.r1": 0.1,
        "family.r2": 0.1,
    },
    "toy2d_ddgan": {
        "name": "toy2d_ddgan",
        "steps": 4000,
        "batch_size": 256,
        "data.name": "mixture",
        "data.conditional": False,
        **R3GAN,
        "family.name": "ddgan",
        "family.width": 128,
        "family.depth": 3,
        "family.r1": 0.1,
        "family.r2": 0.1,
    },
}


def test_defaults_and_presets_have_the_documented_values():
    assert dataclasses.asdict(c.Config()) == DEFAULTS
    assert list(c.PRESETS) == list(PRESETS)
    for name, preset in c.PRESETS.items():
        assert {path: value for path, _, value in c.differences(c.Config(), preset)} == PRESETS[name]


# --- the command line ---

ODD = c.Config(
    "other",
    7,
    24,
    5,
    0.5,
    (0.05, 0.1),
    "../teacher",
    c.DataConfig(
        "two_moons",
        "a.npz",
        False,
        True,
        3,
        0.3,
        4,
        True,
        components=5,
        std=0.2,
        noise=0.1,
        cells=6,
        image_size=9,
        channels=1,
        text="texts",
        text_encoder="joint",
        text_field="caption",
        size=48,
        objects=1,
        colours=3,
        sizes=2,
        jitter=0.25,
    ),
    c.ProcessConfig(
        "edm",
        -5.5,
        6.5,
        True,
        beta_min=0.3,
        beta_max=9.0,
        shift=-1.5,
        offset=0.2,
        horizon=3.0,
        power=3.5,
        sigma_min=0.05,
        sigma_max=20.0,
        rho=4.0,
        steps=30,
        start=0.001,
        stop=0.03,
        largest=0.95,
        width=12,
    ),
    c.ParameterisationConfig("eps", "angle", data_std=1.5),
    c.WeightingConfig("p2", data_std=0.75, gamma=0.25, bias=-2.0, k=2.5),
    c.TimesConfig("mode", mean=0.7, std=0.4, scale=-0.6),
    c.LossConfig(
        "uncertainty",
        c=0.2,
        epsilon=0.3,
        waves=3,
        noise_levels=5,
        levels=17,
        steps=7,
        share=0.02,
        block=2,
        projections=4,
        step=0.05,
        mean=0.15,
        std=0.95,
        equal=0.35,
        power=0.8,
        offset=0.002,
        finest=16,
        fewest=6,
        most=60,
        warm_up=0.25,
        least=2,
        first=32,
        teacher_steps=4,
    ),
    c.NetworkConfig(
        "dit",
        (16, 48, 80),
        2,
        (0, 2),
        8,
        24,
        5,
        3,
        4,
        True,
        0.35,
        "bfloat16",
        True,
        residual_balance=0.4,
        attention_balance=0.2,
        skip_balance=0.6,
        label_balance=0.7,
        rope=50.0,
        position_range=16,
        mlp_ratio=3.0,
        norm_epsilon=1e-5,
    ),
    c.OptimiserConfig(0.05, 3, 0.15, 0.45, 0.55, 0.7, 0.8, 0.95, 0.6),
    c.GuidanceConfig("projected", 2.5, (-3.0, 4.5), -6.25, 0.65, phi=0.55, parallel=0.35, norm=1.75),
    c.SamplerConfig(
        "ddim",
        11,
        "snr",
        1.25,
        "dynamic",
        eta=0.85,
        gamma=0.75,
        r1=0.35,
        p=1,
        order=6,
        points=2,
        interpolation=0.95,
        r=0.65,
        s_churn=8.0,
        s_min=0.15,
        s_max=12.0,
        s_noise=1.005,
        corrections=3,
        snr=0.12,
        step_size=0.22,
        rho=4.5,
        data_std=0.6,
        width=1.9,
        shift=2.75,
        quantile=0.97,
        largest=1.4,
    ),
    c.FamilyConfig(
        "vae",
        "logistic",
        latents=7,
        width=20,
        depth=3,
        blocks=4,
        levels=15,
        beta=0.45,
        free_bits=0.12,
        warm_up=0.6,
        kl_weight=0.003,
        critic_weight=0.08,
        critic_start=0.15,
        perceptual="a_folder",
        perceptual_weight=2.25,
        loss="hinge",
        r1=0.06,
        r2=0.07,
        gamma_final=0.35,
        every=14,
        updates=11,
        generator_rate=0.21,
        steps=8,
    ),
)
"""A number of its own for every field."""


def leaves(config, path=""):
    """{path: value} of all fields."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = dataclasses.is_dataclass(value)
        found |= leaves(value, f"{path}{field.name}.") if inner else {path + field.name: value}
    return found


def words(config, start):
    """A configuration as options of `diffjax train`, those where it differs from another."""
    found = []
    for path, _, value in c.differences(start, config):
        group, _, last = path.replace("_", "-").rpartition(".")
        option = f"--{group}.no-{last}" if value is False and group else f"--{path.replace('_', '-')}"
        values = [] if isinstance(value, bool) else value if isinstance(value, tuple) else [value]
        found += [option, *map(str, values)]
    return found


def test_each_option_of_train_sets_its_field(monkeypatch):
    parsed = []
    monkeypatch.setattr("diffjax.cli.run_train", lambda options, argv: parsed.append(options.config))
    preset = c.PRESETS["digits"]
    assert all(value != leaves(ODD)[path] for path, value in leaves(preset).items())
    assert main(["train", "digits", *words(ODD, preset)]) == 0
    assert main(["train", "digits"]) == 0
    assert parsed == [ODD, preset]


# --- a run ---


def test_a_run_equals_the_same_run_by_library_calls(tmp_path, monkeypatch, capsys):
    """Four updates through the command line, and the same by hand: parameters, averages and losses of every step.

    Of eps, so that the process is what is left of it within logsnr 10 .. -10.
    """
    monkeypatch.chdir(tmp_path)
    read = []

    def fetching(*args, workers, **options):
        read.append(workers)
        return prefetch(*args, **options)

    monkeypatch.setattr("diffjax.training._loop.prefetch", fetching)
    monkeypatch.setattr("diffjax.cli._train._finish", lambda *args, **more: None)  # no samples
    config = c.Config(
        name="other",
        steps=4,
        batch_size=12,
        seed=5,
        ema_decay=0.3,
        ema_widths=(0.1,),
        data=c.DataConfig("mixture", workers=2),
        process=c.ProcessConfig("variance_preserving", beta_max=10.0),
        parameterisation=c.ParameterisationConfig("eps", data_std=0.8, clock="angle"),
        weighting=c.WeightingConfig("min_snr", gamma=2.0),
        times=c.TimesConfig("lognormal", mean=-0.5),
        network=c.NetworkConfig("mlp", width=8, depth=2, dropout=0.3),
        optimiser=c.OptimiserConfig(learning_rate=0.1, warmup=0, final=0.3, clip=0.5, weight_decay=0.2),
        guidance=c.GuidanceConfig(dropout=0.4),
        sampler=c.SamplerConfig(steps=2),
    )
    options = ["--layout", "jit", "--devices", "1", "--log-every", "1"]
    assert main(["train", "toy2d", *words(config, c.PRESETS["toy2d"]), *options]) == 0
    out = Path("runs/other")
    assert c.from_json((out / "config.json").read_text()) == config
    assert read == [2]
    assert "eps: trained and sampled within logsnr -5.04 .. 10, for in the samples" in capsys.readouterr().out

    network = dj.from_linen(networks.MLP(width=8, depth=2, dropout=0.3, num_classes=8))
    last = -5.05 - np.log(-np.expm1(-5.05))
    process = processes.Clipped(dj.VariancePreserving(0.1, 10.0), 10.0, last)

    def loss(params, batch, context):
        x0, labels = batch
        hide, draw = jax.random.split(context.key)
        return dj.denoising_loss(
            dj.Diffusion(network, process, dj.EpsPrediction(0.8, clock="angle")),
            params,
            draw,
            x0,
            losses.drop_condition(hide, labels, 8, 0.4, index=context.index),
            times=processes.LognormalTimes(process, -0.5, 1.2),
            weighting=losses.MinSNR(2.0),
            index=context.index,
            total=context.total,
        )

    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 0, 4, 0.03)
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(schedule, weight_decay=0.2))
    source = mixture(components=8, std=0.1)
    fresh = init_state(jax.random.key(5), network, tx, jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32))
    step = jax.jit(make_train_step(Objective(loss, tx), ema=lambda step, params, ema: ema))
    mix = lambda keep, old, new: jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, old, new)
    state, decayed, powered, logged = fresh, fresh.params, fresh.params, []
    for n in range(4):
        state, metrics = step(state, jax.tree.map(jnp.asarray, source(5, n, 12)))
        logged.append(float(metrics["loss"]))
        decayed = mix(min(0.3, (1 + n) / (10 + n)), decayed, state.params)  # three steps of warm-up
        powered = mix((1 - 1 / (n + 1)) ** (6.9372 + 1), powered, state.params)  # of a profile of width 0.1
    with Checkpoints(out / "checkpoints", read_only=True) as checkpoints:
        tx = c.build(config, 8).tx
        cond = jnp.zeros(1, jnp.int32)
        names = ("decay", Snapshots.name(0.1))
        like = init_state(jax.random.key(0), network, tx, jnp.zeros((1, 2)), cond, averages=names)
        found = checkpoints.restore(like)
    assert found.step == 4
    close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), a, b)
    close(found.params, state.params)
    close(found.ema["decay"], decayed)
    close(found.ema[names[1]], powered)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["loss"] for line in lines], logged, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, decayed)
    assert max(jax.tree.leaves(moved)) > 0.005  # the average is not the parameters themselves


def test_samples_use_the_configured_sampler_grid_and_guidance_scale():
    config = c.Config(
        data=c.DataConfig("mixture"),
        process=c.ProcessConfig("rectified"),
        network=c.NetworkConfig("mlp", width=8, depth=1),
        guidance=c.GuidanceConfig(scale=2.5),
        sampler=c.SamplerConfig("ddim", steps=3, grid="quadratic", eta=0.7),
    )
    data = c.build_data(config.data)
    parts = c.build(config, data.classes)
    labels, mesh = jnp.arange(6) % 8, data_mesh(jax.devices()[:1])
    params = perturbed(
        parts.diffusion.network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1), labels[:1]), size=0.5
    )
    drawn = Draw(c.diffusion_family(config, data.samples, parts), params, mesh=mesh)(6, labels, 3)
    network = dj.from_linen(networks.MLP(width=8, depth=1, num_classes=8))
    process = dj.Rectified()
    denoiser = dj.make_denoiser(dj.Diffusion(network, process, dj.VPrediction()), params, labels)
    by_hand = lambda scale: dj.sample_n(
        jax.random.key(3),
        process,
        dj.classifier_free(denoiser, 8, scale),
        (2,),
        6,
        ts=processes.quadratic_grid(process, 3),
        stepper=dj.DDIM(eta=0.7),
        mesh=mesh,
    )
    np.testing.assert_allclose(drawn, by_hand(2.5), rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(drawn - by_hand(1.5))) > 0.01


def test_guidance_is_put_together_as_by_hand():
    """A rule with a number of its own, in an interval, from a level on, then a threshold; CFG++; a weaker denoiser."""
    process, labels, t = dj.Rectified(), jnp.arange(4) % 3, jnp.asarray([0.2, 0.45, 0.6, 0.9])
    config = c.Config(
        process=c.ProcessConfig("rectified"),
        network=c.NetworkConfig("mlp", width=8, depth=1),
        guidance=c.GuidanceConfig("projected", 3.0, (-1.0, 2.0), -3.0, norm=0.4),
        sampler=c.SamplerConfig(steps=2, clip=0.6, threshold="dynamic", quantile=0.5),
    )
    parts, params, worse = c.build(config, 3), jnp.asarray([0.9, -0.4]), jnp.asarray([0.4, 0.3])
    wave = lambda params, x, c_noise, cond, *, key=None: params * x + params * jnp.sin(x + cond[:, None])
    network = Network(lambda *_: params, wave)  # cheaper than one of layers
    parts = parts._replace(diffusion=dataclasses.replace(parts.diffusion, network=network))
    xt = jnp.asarray(2 * np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    told = lambda params: dj.make_denoiser(parts.diffusion, params, labels)
    plain, rule = told(params), guidance.Projected(norm=0.4)
    samples = c.Samples((2,), 3)

    def found(config, **more):
        built = c.rebuild_sampling(config, parts)
        return DiffusionFunctions(config, samples, built).sampled_denoiser(params, labels, **more)

    def by_hand(guided):
        inside = guidance.within_interval(process, guided, plain, -1.0, 2.0)
        started = guidance.zero_init(process, inside, -3.0)
        return guidance.dynamic_threshold(started, 0.5, 0.6)(xt, t)

    one = dj.classifier_free(plain, 3, 3.0, rule=rule)
    wanted = by_hand(one)
    np.testing.assert_allclose(found(config)(xt, t), wanted, rtol=1e-5, atol=1e-6)
    away = by_hand(guidance.extrapolate(plain, told(worse), 3.0, rule=rule))
    np.testing.assert_allclose(found(config, autoguidance=lambda _: told(worse))(xt, t), away, rtol=1e-5, atol=1e-6)
    for name, numbers in (("interval", {}), ("logsnr_start", {}), ("name", {"norm": None})):  # each is seen
        simpler = dataclasses.replace(config.guidance, **numbers, **{name: getattr(c.GuidanceConfig(), name)})
        other = found(dataclasses.replace(config, guidance=simpler))(xt, t)
        assert np.abs(other - wanted).max() > 1e-3, name
    for scale in (0.8, 1.0):  # at 1, too, CFG++ needs the pair
        chosen = dataclasses.replace(
            config, guidance=c.GuidanceConfig("rescaled", scale), sampler=c.SamplerConfig("cfgpp", steps=2)
        )
        pair = guidance.Guided(guidance.OnePass(plain, 3), jnp.asarray(scale), guidance.Rescaled())
        got = found(chosen).with_base(xt, t)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, pair.with_base(xt, t))
    for refused, message in (
        ({"sampler": c.SamplerConfig("cfgpp", clip=1.0)}, r"sampler\.clip: cannot be used with cfgpp, .* got 1\.0"),
        (
            {"sampler": c.SamplerConfig("cfgpp"), "guidance": c.GuidanceConfig(interval=(0.0, 1.0))},
            r"guidance\.interval: cannot be used with cfgpp, which needs cond and uncond apart, got \(0\.0, 1\.0\)",
        ),
        (
            {"sampler": c.SamplerConfig("cfgpp"), "guidance": c.GuidanceConfig(logsnr_start=0.0)},
            r"guidance\.logsnr_start: cannot be used with cfgpp",
        ),
        (
            {"sampler": c.SamplerConfig(threshold="dynamic")},
            r"sampler\.threshold: dynamic needs the range of the data, --sampler\.clip",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            found(dataclasses.replace(config, **{"guidance": c.GuidanceConfig()} | refused))


@pytest.mark.parametrize("conditional", [pytest.param(True, marks=pytest.mark.slow), False])
def test_samples_are_clipped_where_the_data_are_known_to_end_or_where_it_is_asked_for(conditional):
    """Guidance comes first; the configuration's number wins over the data's; 0 is off."""
    mlp, labels = c.NetworkConfig("mlp", width=8, depth=1), jnp.arange(6) % 3 if conditional else None
    config = c.Config(network=mlp, guidance=c.GuidanceConfig(scale=2.5), sampler=c.SamplerConfig(steps=2))
    parts = c.build(config, 3 if conditional else None)
    xt, t, mesh = 4 * jax.random.normal(jax.random.key(1), (6, 2)), jnp.asarray(0.4), data_mesh(jax.devices()[:1])
    cond = None if labels is None else labels[:1]
    params = perturbed(parts.diffusion.network.init(jax.random.key(0), xt[:1], jnp.zeros(1), cond), size=0.5)
    plain = dj.make_denoiser(
        dj.Diffusion(parts.diffusion.network, dj.Cosine(), parts.diffusion.parameterisation),
        params,
        labels,
    )
    x0, wanted = (of(xt, t) for of in (plain, dj.classifier_free(plain, 3, 2.5) if conditional else plain))
    cases = [(True, None, 1), (False, None, 0), (True, 0.0, 0), (False, 0.3, 0.3)]
    for pictures, configured, bound in cases:
        data = c.Data(lambda *_: (xt, labels), (xt, labels), (xt, labels), parts.null, None, pictures=pictures)
        chosen = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, clip=configured))
        own = DiffusionFunctions(chosen, data.samples, parts)
        by_hand = np.clip(wanted, -bound, bound) if bound else wanted
        np.testing.assert_allclose(own.sampled_denoiser(params, labels)(xt, t), by_hand, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own.denoiser(params, labels)(xt, t), x0, rtol=1e-5, atol=1e-6)
    assert np.abs(wanted).max() > 2
    draw = Draw(c.diffusion_family(chosen, data.samples, parts), params, mesh=mesh)
    assert np.abs(draw(6, labels, 3)).max() == np.float32(0.3)


def test_a_bound_of_samples_is_a_finite_number_from_0_on():
    for value in (-1.0, np.inf, np.nan):
        config = c.Config(sampler=c.SamplerConfig(clip=value))
        with pytest.raises(ValueError, match=r"sampler\.clip: a finite number, 0 for off, got"):
            c.check_config(config)


def test_a_run_of_eps_says_where_it_is_trained_and_why():
    """Of vectors, also what keeps samples in their range; of other predictions nothing."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (9, 2)).astype(np.float32)
    x[4, 1] = -2.75
    data = {pictures: c.Data(None, (x, None), (x, None), None, None, pictures=pictures) for pictures in (False, True)}
    toy = c.PRESETS["toy2d"]

    def about(name, pictures=False, **numbers):
        sampler = dataclasses.replace(toy.sampler, clip=numbers.pop("clip", None))
        process = c.ProcessConfig(**numbers)
        chosen = c.ParameterisationConfig(name)
        config = dataclasses.replace(toy, sampler=sampler, process=process, parameterisation=chosen)
        return _about(config, data[pictures], c.build(config, None))

    told = "trained and sampled within logsnr -10 .. 10, for in the samples its errors are e^(-logsnr/2) times as large"
    ((line,), (score,), (own,)) = about("eps"), about("score"), about("eps", logsnr_min=-6.0, logsnr_max=12.0)
    assert line.startswith(f"eps: {told}, 148 times at -10; --process.logsnr-min and --process.logsnr-max change that")
    assert line.endswith("; samples are clipped to 2.75, the largest number of the data (--sampler.clip 0: not)")
    assert score.startswith(f"score: {told}")
    assert "within logsnr -6 .. 12" in own
    assert "clip" not in about("eps", pictures=True)[0] + about("eps", clip=0.0)[0]
    assert [about(name) for name in ("x0", "v", "velocity", "edm")] == 4 * [[]]
    for name, pictures, clip, bound in (
        ("eps", False, None, 2.75),
        ("score", True, None, 1.0),
        ("v", False, None, 0),
        ("v", True, None, 1.0),
        ("eps", False, 0.0, 0),
        ("eps", True, 3.0, 3.0),
    ):
        sampler = dataclasses.replace(toy.sampler, clip=clip)
        config = dataclasses.replace(toy, sampler=sampler, parameterisation=c.ParameterisationConfig(name))
        parts = c.build(config, None)
        assert (
            c.samples_bound(config, data[pictures], parts)
            == c.samples_bound(config, data[pictures].samples, parts)
            == bound
        )


def test_labels_are_dropped_with_the_configured_probability():
    """Each sample's loss is the one with its label or the one without any: the share without is `guidance.dropout`."""
    config = c.Config(data=c.DataConfig("mixture"), network=c.NetworkConfig("mlp", width=8, depth=1))
    n = 512
    x0, labels = jax.tree.map(jnp.asarray, c.build_data(config.data).source(0, 0, n))
    built = lambda share, classes=8: c.build(
        dataclasses.replace(config, guidance=c.GuidanceConfig(dropout=share)), classes
    )
    params = built(0.0).diffusion.network.init(jax.random.key(0), x0[:1], jnp.zeros(1), labels[:1])
    params = perturbed(params, size=0.5)  # a fresh network is 0 whatever the label

    def each(share):
        parts = built(share)
        assert parts.null == 8
        context = Context(jax.random.key(1), index=jnp.arange(n), total=n)
        loss = lambda cond: parts.loss(params, (x0, cond), context)
        return jax.jit(lambda cond: loss(cond)[1]["per_sample"])

    labelled, unlabelled = map(each(0.0), (labels, jnp.full(n, 8, jnp.int32)))
    clear = np.abs(labelled - unlabelled) > 1e-3 * unlabelled
    assert clear.mean() > 0.9
    for share in (0.3, 1.0):
        found = each(share)(labels)
        dropped = np.isclose(found, unlabelled, rtol=1e-4)
        np.testing.assert_allclose(found[~dropped], labelled[~dropped], rtol=1e-4)
        assert abs(dropped[clear].mean() - share) < 5 * np.sqrt(share * (1 - share) / clear.sum()) + 1e-9
    parts = built(0.3, None)  # unconditional: there is no label to drop
    params = jax.eval_shape(parts.diffusion.network.init, jax.random.key(0), x0[:1], jnp.zeros(1))
    jax.eval_shape(lambda params: parts.loss(params, (x0, None), Context(jax.random.key(1))), params)


# --- the optimiser ---


def by_adam(params, gradients, config, steps):
    """Parameters [steps, 5] after each update of Adam with everything around it, in NumPy."""
    warm, m, v, after = min(config.warmup, steps // 2), 0.0, 0.0, []
    for n, gradient in enumerate(gradients):
        gradient = gradient * min(1.0, config.clip / np.linalg.norm(gradient))
        last = config.beta2 if config.beta2_final is None else config.beta2_final
        b1, b2 = config.beta1, last + (config.beta2 - last) * 0.5 * (1 + np.cos(np.pi * n / steps))
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        move = (m / (1 - b1 ** (n + 1))) / (np.sqrt(v / (1 - b2 ** (n + 1))) + 1e-8)
        cosine = 0.5 * (1 + np.cos(np.pi * (n - warm) / (steps - warm)))
        rate = n / warm if n < warm else config.final + (1 - config.final) * cosine
        params = params - config.learning_rate * rate * (move + config.weight_decay * params)
        after.append(params)
    return np.array(after)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (c.OptimiserConfig(), 8),  # the warm-up is half the run at most
        (ODD.optimiser, 9),
        (c.OptimiserConfig(learning_rate=0.05, warmup=0, clip=3.0), 4),
        (c.OptimiserConfig(learning_rate=0.05, warmup=0, clip=3.0, beta1=0.0, beta2=0.8), 4),
        (c.OptimiserConfig(), 1),
    ],
)
def test_the_optimiser_is_adam_with_clipping_warm_up_decay_and_cosine(config, steps):
    rng = np.random.default_rng(0)
    start = rng.normal(size=5)
    gradients = rng.normal(size=(steps, 5)) * rng.uniform(0.05, 5, (steps, 1))  # norms below and above the clip
    tree = lambda flat: {"a": jnp.asarray(flat[:2], jnp.float32), "b": jnp.asarray(flat[2:], jnp.float32)}
    tx, params, found = c.build_optimiser(config, steps), tree(start), []
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(tree(gradient), state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.concatenate([params["a"], params["b"]]))
    np.testing.assert_allclose(
        np.array(found) - start, by_adam(start, gradients, config, steps) - start, rtol=1e-4, atol=1e-6
    )


# --- the data ---

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
LABELS = np.arange(12) % 3


def pairs(data):
    """{image: label} of what is trained on and of what is held out."""
    return [
        dict(zip([image.tobytes() for image in x], y.tolist(), strict=True)) for x, y in (data.train, data.held_out)
    ]


def items(images, chosen):
    """The same of some images as they were written."""
    x = (images[chosen] / np.float32(127.5) - 1).astype(np.float32)
    return dict(zip([image.tobytes() for image in x], LABELS[chosen].tolist(), strict=True))


def _idx(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder, **parts):
    folder.mkdir()
    for name, chosen in parts.items():
        (folder / f"{name}-images-idx3-ubyte").write_bytes(_idx(IMAGES[chosen, ..., 0]))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(_idx(LABELS[chosen]))
    return folder


def write_cifar(folder):
    folder.mkdir()
    records = [bytes([y]) + x.transpose(2, 0, 1).tobytes() for x, y in zip(IMAGES, LABELS, strict=True)]
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (folder / f"{name}.bin").write_bytes(records[2 * i] + records[2 * i + 1])
    return folder


def write_folders(folder, shape=slice(None)):
    for i, label in enumerate(LABELS):
        path = folder / "abc"[label] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.fromarray(IMAGES[i, shape]).save(file, "PNG")
        path.write_bytes(file.getvalue())
    return folder


def test_files_are_read_as_their_name_says(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    grey = IMAGES[..., :1]
    read = lambda name, path, **options: c.build_data(c.DataConfig(name, str(path), **options))
    whole, first, last = np.arange(12), np.arange(10), np.arange(10, 12)
    for data in (read("file", tmp_path / "a.npz"), read("image_folder", write_folders(tmp_path / "folders"))):
        train, held_out = pairs(data)
        assert train | held_out == items(IMAGES, whole)
        assert (len(train), len(held_out), data.classes) == (10, 2, 3)  # a fifth is 2.4
    assert pairs(read("cifar10", write_cifar(tmp_path / "cifar"))) == [items(IMAGES, first), items(IMAGES, last)]
    both = write_mnist(tmp_path / "both", train=first, t10k=last)
    assert pairs(read("mnist", both)) == [items(grey, first), items(grey, last)]
    train, held_out = pairs(read("mnist", write_mnist(tmp_path / "alone", t10k=whole), holdout=0.5))
    assert (train | held_out, len(held_out)) == (items(grey, whole), 6)


def test_pictures_are_what_is_known_to_lie_in_its_range(tmp_path):
    """All images, of bytes, or floats in [-1, 1]; not vectors, nor floats that may be latents."""
    floats = RNG.uniform(-1, 1, (12, 4, 4, 3))
    beyond, below = (np.where(np.arange(floats.size).reshape(floats.shape) == 7, end, floats) for end in (1.01, -1.01))
    arrays = {
        "bytes": (IMAGES[..., :2], True),
        "floats": (floats, True),
        "grey": (floats[..., :1], True),
        "beyond": (beyond, False),
        "below": (below, False),
        "latents": (floats[..., [0, 0, 1, 2]], False),
        "vectors": (floats[:, 0, 0], False),
        "rows": (floats[:, 0], False),
    }
    read = lambda name, path=None: c.build_data(c.DataConfig(name, None if path is None else str(path))).pictures
    for name, (x, pictures) in arrays.items():
        np.savez(tmp_path / f"{name}.npz", x=x)
        assert read("file", tmp_path / f"{name}.npz") is pictures, name
    assert read("image_folder", write_folders(tmp_path / "folders"))
    assert read("cifar10", write_cifar(tmp_path / "cifar"))
    assert read("mnist", write_mnist(tmp_path / "mnist", train=np.arange(12)))
    assert read("digits")
    assert not any(map(read, c.TOYS))


def test_images_are_scaled_to_the_size_of_the_configuration(tmp_path):
    path = write_folders(tmp_path / "a", slice(0, 20))
    data = c.build_data(c.DataConfig("image_folder", str(path), image_size=8))
    assert data.shape == (8, 8, 3)
    by_hand = np.array([ImageFolder(path, size=8)[i][0] for i in range(12)]) / np.float32(127.5) - 1
    assert {image.tobytes() for image in by_hand} == set().union(*pairs(data))
    assert c.build_data(c.DataConfig("image_folder", str(path))).shape == (20, 32, 3)


def test_images_have_the_channels_of_the_configuration(tmp_path):
    path = write_folders(tmp_path / "a")
    grey = [np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in IMAGES]
    for channels, images in ((None, IMAGES), (3, IMAGES), (1, np.array(grey))):
        train, held_out = pairs(c.build_data(c.DataConfig("image_folder", str(path), channels=channels)))
        assert train | held_out == items(images, np.arange(12))


def test_a_share_is_held_out_by_its_seed(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    found = {}
    for share, seed in ((0.25, 0), (0.25, 1), (0.5, 0), (0.25, 0)):
        config = c.DataConfig("file", str(tmp_path / "a.npz"), holdout=share, holdout_seed=seed)
        train, held_out = pairs(c.build_data(config))
        assert train | held_out == items(IMAGES, np.arange(12))
        assert len(held_out) == 12 * share == 12 - len(train)
        assert found.setdefault((share, seed), held_out) == held_out
    assert found[0.25, 0] != found[0.25, 1]
    data = c.build_data(c.DataConfig("digits", holdout=0.4, holdout_seed=3))
    for part, split in ((data.train, "train"), (data.held_out, "test")):
        jax.tree.map(np.testing.assert_array_equal, part, load_digits(split, holdout=0.4, seed=3))


def test_digits_are_split_and_flipped_as_configured():
    data, flipped = (c.build_data(c.DataConfig("digits", flip=flip)) for flip in (False, True))
    assert (data.shape, data.classes, data.log_prob) == ((8, 8, 1), 10, None)
    for part, split in (("train", "train"), ("held_out", "test")):
        for of in (data, flipped):
            jax.tree.map(np.testing.assert_array_equal, getattr(of, part), load_digits(split, holdout=0.2, seed=0))
    assert len(data.train[0]) + len(data.held_out[0]) == 1797
    (x, y), (mirrored, z) = data.source(1, 2, 64), flipped.source(1, 2, 64)
    np.testing.assert_array_equal(y, z)
    turned = np.any(x != mirrored, axis=(1, 2, 3))
    np.testing.assert_array_equal(mirrored, np.where(turned[:, None, None, None], x[:, :, ::-1], x))
    assert 10 < turned.sum() < 54
    known = {image.tobytes() for image in data.train[0]}
    assert {image.tobytes() for image in x} <= known
    assert np.any(data.source(2, 2, 64)[0] != x)  # another seed, another order


TOYS = {
    "mixture": (
        lambda components=8, std=0.1: mixture(components=components, std=std),
        8,
        {"components": 5, "std": 0.3},
    ),
    "two_moons": (lambda noise=0.05: two_moons(noise=noise), 2, {"noise": 0.2}),
    "checkerboard": (lambda cells=4: checkerboard(cells=cells), None, {"cells": 6}),
    "swiss_roll": (lambda noise=0.3: swiss_roll(noise=noise), None, {"noise": 0.1}),
}


def test_a_toy_is_its_density_and_is_measured_on_draws_of_other_seeds():
    assert list(TOYS) == list(c.TOYS)
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    for name, (make, classes, odd) in TOYS.items():
        toy, data = make(), c.build_data(c.DataConfig(name))
        assert (data.shape, data.classes) == ((2,), classes)
        same(data.source(3, 5, 64), toy(3, 5, 64))
        # The seeds of what is measured against are beyond those of runs, 0 .. 2^32 - 1.
        same(data.train, toy(2**32, 0, 4000))
        same(data.held_out, toy(2**32 + 1, 0, 4000))
        points = [{point.tobytes() for point in part[0]} for part in (data.train, data.held_out, toy(0, 0, 4000))]
        assert len(set.union(*points)) == 12_000
        assert (data.log_prob is None) == (name in ("two_moons", "swiss_roll"))
        if data.log_prob is not None:
            same(data.log_prob(data.train[0]), toy.log_prob(data.train[0]))
        for number, value in odd.items():
            assert c.numbers_of(c.DATA[name]).keys() == odd.keys()
            changed = c.build_data(c.DataConfig(name, **{number: value}))
            same(changed.source(3, 5, 64), make(**{number: value})(3, 5, 64))
            assert np.any(changed.source(3, 5, 64)[0] != data.source(3, 5, 64)[0])
            with pytest.raises(ValueError, match=rf"data\.{number}: digits has no such number, got {value}"):
                c.build_data(c.DataConfig(**{number: value}))
        plain = c.build_data(c.DataConfig(name, conditional=False))
        assert (plain.classes, plain.source(3, 5, 64)[1], plain.train[1], plain.held_out[1]) == (None,) * 4
        same(plain.source(3, 5, 64)[0], toy(3, 5, 64)[0])


def test_an_unconditional_network_gets_no_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    for config in (c.DataConfig("digits"), c.DataConfig("file", str(tmp_path / "a.npz"))):
        data, plain = (
            c.build_data(dataclasses.replace(config, conditional=conditional)) for conditional in (True, False)
        )
        assert (plain.classes, plain.source(0, 0, 4)[1], plain.train[1], plain.held_out[1]) == (None,) * 4
        np.testing.assert_array_equal(plain.source(0, 0, 4)[0], data.source(0, 0, 4)[0])
        assert data.classes == 1 + max(data.train[1].max(), data.held_out[1].max())


# --- completeness ---

RUN, SAMPLES = (
    "test_a_run_equals_the_same_run_by_library_calls",
    "test_samples_use_the_configured_sampler_grid_and_guidance_scale",
)
GUIDED = "test_guidance_is_put_together_as_by_hand"
NETWORK = "test_a_network_is_the_module_of_its_name_with_its_numbers"
OPTIMISER = "test_the_optimiser_is_adam_with_clipping_warm_up_decay_and_cosine"
CHECKS = {
    **dict.fromkeys(("name", "steps", "batch_size", "seed", "ema_decay", "ema_widths", "data.workers"), RUN),
    "teacher": "test_a_student_has_its_teacher_s_configuration_but_for_what_distilling_changes",
    "family.name": "test_training_reaches_the_closed_form_and_writes_what_a_run_has",
    "family.likelihood": "test_a_likelihood_is_that_of_its_name_and_levels",
    "family.perceptual": "test_features_are_those_of_the_classifier",
    "family.loss": "test_a_loss_is_that_of_its_name",
    "data.name": "test_a_toy_is_its_density_and_is_measured_on_draws_of_other_seeds",
    "data.path": "test_files_are_read_as_their_name_says",
    "data.conditional": "test_an_unconditional_network_gets_no_labels",
    "data.image_size": "test_images_are_scaled_to_the_size_of_the_configuration",
    **dict.fromkeys(("data.text", "data.text_field"), "test_images_with_captions_and_classes_have_both"),
    "data.text_encoder": "test_data_of_a_joint_run_are_the_ids_of_their_captions",
    "data.channels": "test_images_have_the_channels_of_the_configuration",
    "data.skip_bad": "test_an_item_that_is_skipped_gives_way_to_the_next_and_the_rest_stay",
    "data.flip": "test_digits_are_split_and_flipped_as_configured",
    "data.holdout": "test_a_share_is_held_out_by_its_seed",
    "data.holdout_seed": "test_a_share_is_held_out_by_its_seed",
    "guidance.dropout": "test_labels_are_dropped_with_the_configured_probability",
    **dict.fromkeys(("guidance.scale", "sampler.steps"), SAMPLES),
    "sampler.name": "test_a_sampler_takes_the_steps_of_its_name",
    "sampler.grid": "test_a_grid_has_the_times_of_its_name",
    "sampler.clip": "test_samples_are_clipped_where_the_data_are_known_to_end_or_where_it_is_asked_for",
    "sampler.threshold": "test_a_threshold_is_the_formula_of_its_name",
    "guidance.name": "test_a_guidance_rule_is_the_formula_of_its_name",
    **dict.fromkeys(("guidance.interval", "guidance.logsnr_start"), GUIDED),
}
GROUPS = {
    "process": "test_a_process_has_the_alpha_and_sigma_of_its_name",
    "parameterisation": "test_a_prediction_has_the_coefficients_of_its_name",
    "weighting": "test_a_weighting_is_the_function_of_its_name",
    "times": "test_times_have_the_distribution_of_their_name",
    "loss": "test_a_loss_by_name_trains_as_the_library_call_does",
    "network": NETWORK,
    "optimiser": OPTIMISER,
    "the numbers of sampler": "test_each_number_of_a_sampler_is_that_of_its_class",
    "the numbers of grids": "test_a_grid_has_the_times_of_its_name",
    "the numbers of toys": "test_a_toy_is_its_density_and_is_measured_on_draws_of_other_seeds",
}
"""Of groups whose tests see by themselves that each of their fields has a value of its own there."""
FILES = (
    "test_options_train.py",
    "test_config_losses.py",
    "test_registry_names.py",
    "test_config_networks.py",
    "test_data_identity.py",
    "test_distill.py",
    "test_family.py",
    "test_vae_family.py",
    "test_conditions.py",
    "test_gan_family.py",
    "test_joint_text.py",
)


def test_every_field_has_its_check():
    """A new field needs a test that it does what it says: name it here."""
    tables = {"sampler": (c.STEPPERS, c.GRIDS, c.THRESHOLDS), "guidance": (c.GUIDANCES,), "data": (c.DATA,)}
    tables["family"] = (c.FAMILIES,)  # whose numbers have a completeness test in test_vae_family
    numbers = {
        f"{group}.{name}"
        for group, of in tables.items()
        for table in of
        for row in table.values()
        for name in c.numbers_of(row)
    } - set(CHECKS)
    left = {path for path in leaves(c.Config()) if path.partition(".")[0] not in GROUPS} - numbers
    assert left == set(CHECKS)
    here = Path(__file__).parent
    text = "".join((here / name).read_text() for name in FILES)
    assert {*CHECKS.values(), *GROUPS.values()} <= set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
