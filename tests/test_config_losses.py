"""Each loss by name against the library call that it stands for, and what a run of it keeps and gives back."""

import dataclasses
import inspect
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import perturbed

import diffjax as dj
from diffjax import config as c, losses, networks
from diffjax.cli import main
from diffjax.training import Checkpoints, Context

SMALL = c.NetworkConfig("mlp", width=8, depth=1)
X0 = jnp.asarray(np.random.default_rng(0).integers(-4, 5, (6, 2)) / 4, jnp.float32)  # on nine levels
KEY = jax.random.key(4)
ROWS = {"index": jnp.arange(6), "total": 6}


def configured(name, process="cosine", prediction="v", **numbers):
    return dataclasses.replace(
        c.PRESETS["toy2d"],
        network=SMALL,
        loss=c.LossConfig(name, **numbers),
        process=process if isinstance(process, c.ProcessConfig) else c.ProcessConfig(process),
        parameterisation=c.ParameterisationConfig(prediction),
    )


def params_of(parts):
    """Parameters away from their first values, where the last layers are zero; a schedule stays what it is."""
    params = parts.init(jax.random.key(1), X0[:1], None)
    if not parts.learned:
        return perturbed(params, size=0.3)
    return {name: part if name == "process" else perturbed(part, size=0.3) for name, part in params.items()}


# --- by hand: (diffusion, params, key) -> loss, under the process of the case ---


def _denoising(d, p, key, **choices):
    given = {"times": dj.StratifiedTimes(d.process), "weighting": losses.native}
    return dj.denoising_loss(d, p, key, X0, **given | choices, **ROWS)


def _uncertainty(d, p, key, learned, waves):
    aux = _denoising(d, p, key)[1]
    return losses.uncertainty_loss(d, learned["loss"], aux, uncertainty=losses.Uncertainty(waves))


def _continuous(d, p, key, levels=None):
    decoder = losses.gaussian_decoder if levels is None else losses.LevelDecoder(levels)
    return dj.losses.negative_continuous_elbo(
        d, p, key, X0, times=dj.StratifiedTimes(d.process), reconstruction=decoder, **ROWS
    )


def _discrete(d, p, key, ts, levels=None):
    decoder = losses.gaussian_decoder if levels is None else losses.LevelDecoder(levels)
    return losses.negative_discrete_elbo(d, p, key, X0, ts=ts, reconstruction=decoder, **ROWS)


def _bound(variance):
    def by_hand(d, p, key, ts, levels=None):
        decoder = losses.density_decoder if levels is None else losses.BinDecoder(levels)
        return losses.negative_ddpm_elbo(d, p, key, X0, ts=ts, variance=variance, reconstruction=decoder, **ROWS)

    return by_hand


def _learned_variance(d, p, key, ts, levels=None, share=1e-3):
    decoder = losses.density_decoder if levels is None else losses.BinDecoder(levels)
    return losses.learned_variance_loss(d, p, key, X0, ts=ts, share=share, reconstruction=decoder, **ROWS)


def _score_matching(function, step=None, **numbers):
    """E[ sigma^2 L ] on samples noised as the run noises them."""

    def by_hand(d, p, key):
        t_key, eps_key, loss_key, _ = jax.random.split(key, 4)
        t, correction = dj.StratifiedTimes(d.process)(t_key, 6, **ROWS)
        eps = jnp.stack([jax.random.normal(jax.random.fold_in(eps_key, i), (2,)) for i in range(6)])
        xt, sigma = dj.perturb(d.process, X0, eps, t), d.process.sigma(t)
        score = lambda p, xt: dj.score(d.process, dj.make_denoiser(d, p), xt, t)
        more = {} if step is None else {"step": step * sigma}
        aux = function(p, loss_key, xt, score_apply=score, **numbers, **more)[1]
        return jnp.mean(correction * sigma**2 * aux["per_sample"]), aux

    return by_hand


UNIFORM = lambda process, n: dj.uniform_grid(process, n)
TO_DATA = lambda process, n: jnp.linspace(process.interval()[1], 0.0, n + 1)
CASES = {
    "denoising": ({}, _denoising),
    "pseudo_huber": ({"c": 0.2}, lambda *a: _denoising(*a, penalty=losses.PseudoHuber(0.2))),
    "assignment": ({}, lambda *a: _denoising(*a, coupling=losses.Assignment())),
    "optimal_transport": ({"epsilon": 0.3}, lambda *a: _denoising(*a, coupling=losses.OptimalTransport(0.3))),
    "uncertainty": ({"waves": 3}, lambda *a, learned: _uncertainty(*a, learned, 3)),
    "ncsn": (
        {"noise_levels": 5},
        lambda d, p, key: losses.noise_conditional_loss(d, p, key, X0, ts=UNIFORM(d.process, 4), **ROWS),
    ),
    "continuous_elbo": ({"levels": 9}, lambda *a: _continuous(*a, levels=9)),
    "discrete_elbo": (
        {"steps": 6, "levels": 9},
        lambda d, *a: _discrete(d, *a, dj.logsnr_grid(d.process, 6), levels=9),
    ),
    "ddpm_bound_large": (
        {"steps": 6, "levels": 9},
        lambda d, *a: _bound(losses.large_variance)(d, *a, TO_DATA(d.process, 6), levels=9),
    ),
    "ddpm_bound_small": (
        {"steps": 6, "levels": 9},
        lambda d, *a: _bound(losses.small_variance)(d, *a, TO_DATA(d.process, 6), levels=9),
    ),
    "ddpm_bound_learned": (
        {"steps": 6, "levels": 9},
        lambda d, *a: _bound(losses.learned_variance)(d, *a, TO_DATA(d.process, 6), levels=9),
    ),
    "learned_variance": (
        {"steps": 6, "levels": 9, "share": 0.02},
        lambda d, *a: _learned_variance(d, *a, TO_DATA(d.process, 6), levels=9, share=0.02),
    ),
    "implicit_score_matching": ({"block": 2}, _score_matching(losses.implicit_score_matching, block=2)),
    "sliced_score_matching": ({"projections": 3}, _score_matching(losses.sliced_score_matching, projections=3)),
    "sliced_score_matching_vr": (
        {"projections": 3},
        _score_matching(losses.sliced_score_matching_vr, projections=3),
    ),
    "finite_difference_sliced": (
        {"projections": 3, "step": 0.05},
        _score_matching(losses.finite_difference_sliced, step=0.05, projections=3),
    ),
}
"""Name -> (a number of its own for each of its numbers, the library's call with these)."""
CHAIN = c.ProcessConfig("cosine_chain", steps=5)
OTHERS = {
    "continuous_elbo of a learned process": ("continuous_elbo", "learned_logsnr", _continuous),
    "discrete_elbo of a learned process": (
        "discrete_elbo",
        "learned_logsnr",
        lambda d, *a: _discrete(d, *a, UNIFORM(d.process, 1000)),
    ),
    "discrete_elbo of a chain": ("discrete_elbo", CHAIN, lambda *a: _discrete(*a, jnp.linspace(1.0, 0.2, 5))),
    "learned_variance of a chain": (
        "learned_variance",
        CHAIN,
        lambda *a: _learned_variance(*a, jnp.linspace(1.0, 0.0, 6)),
    ),
}
SLOW = (
    "optimal_transport",
    "assignment",
    "ddpm_bound_large",
    "ddpm_bound_small",
    "sliced_score_matching",
    "sliced_score_matching_vr",
    "implicit_score_matching",
    "discrete_elbo of a learned process",
    "discrete_elbo of a chain",
    "ddpm_bound_learned",
    "continuous_elbo of a learned process",
    "finite_difference_sliced",
    "learned_variance",
    "pseudo_huber",
    "learned_variance of a chain",
)
"""Those that share all but a line with another case."""


def each_case():
    for name, (numbers, by_hand) in CASES.items():
        marks = pytest.mark.slow if name in SLOW else ()
        yield pytest.param(name, "cosine", numbers, by_hand, id=name, marks=marks)
    for words, (name, process, by_hand) in OTHERS.items():
        yield pytest.param(name, process, {}, by_hand, id=words, marks=pytest.mark.slow if words in SLOW else ())


@pytest.mark.parametrize(("name", "process", "numbers", "by_hand"), [*each_case()])
def test_a_loss_by_name_trains_as_the_library_call_does(name, process, numbers, by_hand):
    """Loss and gradient at parameters that are not the first ones, with every number another than its default."""
    # Of score matching the library is given the score by the denoiser, the run that of the network's noise.
    prediction = "eps" if "score_matching" in name or "sliced" in name else "v"
    parts = c.build(configured(name, process, prediction, **numbers), None)
    params = params_of(parts)
    row = c.LOSSES[name]
    network = (
        parts.diffusion.network if row.channels == 1 else dj.from_linen(networks.MLP(width=8, depth=1, out_channels=4))
    )

    def hand(params, key):
        d = dataclasses.replace(parts.diffusion, network=network)
        if "process" in parts.learned:
            d = dataclasses.replace(d, process=params["process"])
        network_params = params["network"] if parts.learned else params
        more = {"learned": params} if name == "uncertainty" else {}
        return by_hand(d, network_params, key, **more)[0]

    def both(params):
        context = Context(KEY, **ROWS)
        key = jax.random.split(KEY)[1]
        run = jax.value_and_grad(lambda p: parts.loss(p, (X0, None), context)[0])(params)
        return run, jax.value_and_grad(lambda p: hand(p, key))(params)

    run, wanted = jax.jit(both)(params)
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(wanted[1]))
    tolerance = 2e-3 if prediction == "eps" else 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * size), run, wanted)
    if "process" in parts.learned:
        assert all(float(jnp.abs(leaf)) > 0 for leaf in jax.tree.leaves(run[1]["process"]))
    aux = jax.eval_shape(lambda p: parts.loss(p, (X0, None), Context(KEY, **ROWS))[1], params)
    assert aux["t"].shape == aux["per_sample"].shape == (6,)  # what the log of noise levels is made of


@pytest.mark.slow
def test_the_parts_of_a_learned_variance_are_logged():
    parts = c.build(configured("learned_variance", steps=6, levels=9, share=0.02), None)
    context = Context(KEY, **ROWS)
    loss, aux = jax.jit(lambda p: parts.loss(p, (X0, None), context))(params_of(parts))
    np.testing.assert_allclose(aux["simple"] + 0.02 * aux["bound"], loss, rtol=1e-5)


def default(function, name):
    return inspect.signature(function).parameters[name].default


LIBRARY = {
    ("pseudo_huber", "c"): default(losses.PseudoHuber, "c"),
    ("optimal_transport", "epsilon"): default(losses.OptimalTransport, "epsilon"),
    ("uncertainty", "waves"): default(losses.Uncertainty, "waves"),
    ("learned_variance", "share"): default(losses.learned_variance_loss, "share"),
    ("implicit_score_matching", "block"): default(losses.implicit_score_matching, "block"),
    ("sliced_score_matching", "projections"): default(losses.sliced_score_matching, "projections"),
    ("sliced_score_matching_vr", "projections"): default(losses.sliced_score_matching_vr, "projections"),
    ("finite_difference_sliced", "projections"): default(losses.finite_difference_sliced, "projections"),
    ("finite_difference_sliced", "step"): default(losses.finite_difference_sliced, "step"),
    ("ncsn", "noise_levels"): 10,  # Song & Ermon 2019; the library has no default
}


def test_every_loss_has_a_case_with_all_of_its_numbers_and_the_library_s_defaults():
    assert list(CASES) == [name for name, row in c.LOSSES.items() if not row.flow_map]  # those: test_distill.py
    found = {}
    for name, (numbers, _) in CASES.items():
        own = c.numbers_of(c.LOSSES[name])
        assert set(numbers) == set(own), name
        found |= {(name, number): value for number, (_, value) in own.items() if value is not None}
        assert all(value != own[number][1] for number, value in numbers.items())
    assert found == LIBRARY
    called = {
        "explicit_score_matching",
        "noise_conditional_sum",
        "per_sample_loss",
        "hybrid_loss",
        "span_corruption_loss",
    }
    # The first needs the true score, the second is for evaluation, the third is a part; critically damped Langevin's
    # loss makes a score on positions and velocities, which is no denoiser; the last pretrains text encoders.
    modules = {inspect.getmodule(row) for row in c.LOSSES.values() if not row.flow_map}
    text = "".join(map(inspect.getsource, modules))
    left = {name for name in vars(losses) if name[0] != "_" and name.endswith(("_loss", "_elbo", "_bound", "_sum"))}
    left |= {name for name in vars(losses) if "score_matching" in name and name[0] != "_"}
    assert {name for name in left if f"losses.{name}" not in text} == called


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": c.LossConfig("denoising", c=0.1)}, r"loss\.c: denoising has no such number, got 0\.1"),
        ({"loss": c.LossConfig("ncsn", steps=5)}, r"loss\.steps: ncsn has no such number, got 5"),
        ({"loss": c.LossConfig("denoisin")}, r"loss\.name: one of .* got 'denoisin'; did you mean denoising"),
        ({"loss": c.LossConfig("pseudo_huber", c=-1.0)}, "c: must be positive, got -1"),
        ({"loss": c.LossConfig("uncertainty", waves=0)}, "waves: at least 1 is needed, got 0"),
        ({"loss": c.LossConfig("ncsn", noise_levels=1)}, r"loss\.noise_levels: at least 2, got 1"),
        ({"loss": c.LossConfig("continuous_elbo", levels=1)}, "levels: at least two are needed, got 1"),
        ({"loss": c.LossConfig("discrete_elbo", steps=1)}, r"loss\.steps: at least 2, got 1"),
        ({"loss": c.LossConfig("sliced_score_matching", projections=0)}, r"loss\.projections: at least 1, got 0"),
        ({"loss": c.LossConfig("implicit_score_matching", block=0)}, r"loss\.block: at least 1, got 0"),
        ({"loss": c.LossConfig("finite_difference_sliced", step=0.0)}, r"loss\.step: must be positive"),
        ({"loss": c.LossConfig("learned_variance", share=-1.0)}, r"loss\.share: at least 0, got -1"),
        ({"loss": c.LossConfig("mean_flow", std=-1.0)}, r"loss\.std: must be positive and finite, got -1"),
        ({"loss": c.LossConfig("mean_flow", offset=0.0)}, r"loss\.offset: must be positive and finite, got 0"),
        ({"loss": c.LossConfig("improved_mean_flow", power=-1.0)}, r"loss\.power: at least 0, got -1"),
        ({"loss": c.LossConfig("continuous_consistency", std=0.0)}, r"loss\.std: must be positive and finite, got 0"),
        ({"loss": c.LossConfig("continuous_consistency", c=-1.0)}, r"loss\.c: must be positive and finite, got -1"),
        (
            {"loss": c.LossConfig("continuous_elbo"), "weighting": c.WeightingConfig("min_snr")},
            r"weighting\.name: continuous_elbo has its own, got min_snr",
        ),
        (
            {"loss": c.LossConfig("ncsn"), "times": c.TimesConfig("stratified", mean=1.0)},
            r"times\.mean: ncsn has its own, got 1",
        ),
        (
            {"loss": c.LossConfig("continuous_elbo"), "times": c.TimesConfig("lognormal")},
            r"times\.name: the ELBO is a mean over uniform times, .* got LognormalTimes",
        ),
        (
            {"process": c.ProcessConfig("learned_logsnr")},
            r"process\.name: learned_logsnr is learned, .* one of continuous_elbo, discrete_elbo as loss\.name",
        ),
        (
            {"loss": c.LossConfig("learned_variance"), "parameterisation": c.ParameterisationConfig("eps")},
            r"process\.name: the bound's last step is to the data .* sigma = 0\.0067.* at t = 0; choose linear_chain",
        ),
        (
            {"loss": c.LossConfig("learned_variance", steps=6), "process": CHAIN},
            r"loss\.steps: the process is a chain of 5 steps, got 6",
        ),
    ],
)
def test_a_loss_that_cannot_be_is_refused_before_anything_is_traced(changes, message):
    with pytest.raises(ValueError, match=message):
        c.build(dataclasses.replace(c.PRESETS["toy2d"], network=SMALL, **changes), None)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("discrete_elbo", {"steps": 2, "levels": 2}),
        ("learned_variance", {"steps": 2, "levels": 2, "share": 0.0}),
        ("ncsn", {"noise_levels": 2}),
        ("sliced_score_matching", {"projections": 1}),
    ],
)
def test_the_least_number_of_a_loss_is_taken(name, least):
    parts = c.build(configured(name, **least), None)
    assert {number: getattr(parts.objective, number) for number in least} == least


def test_ncsn_trains_at_as_many_levels_as_it_says(monkeypatch):
    used = []
    monkeypatch.setattr(losses, "noise_conditional_loss", lambda *a, ts, **k: used.append(ts) or (jnp.zeros(()), {}))
    parts = c.build(configured("ncsn", noise_levels=5), None)
    parts.loss(params_of(parts), (X0, None), Context(KEY, **ROWS))
    np.testing.assert_allclose(used[0], UNIFORM(parts.process, 4))


def test_score_matching_is_refused_on_pictures(tmp_path, capfd):
    out = tmp_path / "run"
    assert main(["train", "digits", "--loss.name", "sliced_score_matching", "--out", str(out)]) == 2
    said = "loss.name: sliced_score_matching differentiates the score in x and is for vectors [d], got samples of shape"
    assert said in capfd.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["unet", "adm", "edm2", "dit", "uvit", "mlp"])
def test_a_learned_variance_has_a_network_of_twice_the_channels(name):
    """Whose denoiser sees the first half; equal configurations are equal networks."""
    config = c.NetworkConfig(name, channels=(8, 16), head_channels=8, width=16, heads=2)
    wide, again = (c.build_network(config, None, 2) for _ in range(2))
    assert wide == again
    assert hash(wide) == hash(again)
    images = jnp.zeros((2, 8, 8, 3))
    params = jax.eval_shape(wide.init, KEY, images, jnp.zeros(2))
    for network, channels in ((wide, 6), (losses.prediction_only(wide), 3)):
        y = jax.eval_shape(network.apply, params, images, jnp.zeros(2))
        assert y.shape == (2, 8, 8, channels)


def test_bounds_in_discrete_time_take_the_steps_of_a_chain():
    chain = c.build(configured("learned_variance", CHAIN), None)
    plain = c.build(configured("learned_variance"), None)
    for parts, n in ((chain, 5), (plain, 1000)):
        ts = parts.objective._times(parts.process)
        last = float(parts.process.interval()[1])
        np.testing.assert_allclose(ts, np.linspace(last, 0.0, n + 1), atol=1e-6)
    assert float(chain.process.interval()[1]) == 1.0


def test_a_denoiser_of_a_learned_variance_is_that_of_the_prediction():
    parts = c.build(configured("learned_variance"), None)
    params, t = params_of(parts), jnp.asarray(0.4)
    module = dj.from_linen(networks.MLP(width=8, depth=1, out_channels=4))
    first = dj.Network(module.init, lambda *args, **given: module.apply(*args, **given)[..., :2])
    wanted = dj.make_denoiser(dataclasses.replace(parts.diffusion, network=first), params)(X0, t)
    np.testing.assert_array_equal(parts.denoiser(params)(X0, t), wanted)


@pytest.mark.slow
def test_weight_decay_and_forced_normalisation_are_for_the_network_alone():
    """Of a run that learns its schedule: with no gradient only the network's parameters move."""
    optimiser = c.OptimiserConfig(weight_decay=0.5, warmup=0)
    config = dataclasses.replace(configured("continuous_elbo", "learned_logsnr"), optimiser=optimiser)
    parts = c.build(config, None)
    params = params_of(parts)
    updates, _ = parts.tx.update(jax.tree.map(jnp.zeros_like, params), parts.tx.init(params), params)
    assert not any(float(leaf) for leaf in jax.tree.leaves(updates["process"]))
    assert any(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(updates["network"]))
    edm2 = c.NetworkConfig("edm2", channels=(8,), attention=(), head_channels=8)
    parts = c.build(dataclasses.replace(configured("uncertainty"), network=edm2), None)
    images = jnp.zeros((1, 8, 8, 1))
    params = jax.eval_shape(lambda: parts.init(KEY, images, None))
    assert set(params) == {"network", "loss"}
    shapes = jax.eval_shape(lambda p: parts.tx.update(p, parts.tx.init(p), p)[0], params)
    assert jax.tree.structure(shapes) == jax.tree.structure(params)


# --- a run ---


def states(folder, config):
    """The newest state of a run."""
    samples = c.Samples((2,), None, None, False, 1.0)
    like = c.fresh_state(c.build_run(config, samples))
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(like)


@pytest.mark.slow
def test_a_run_that_learns_its_schedule_is_saved_resumed_sampled_measured_and_loaded(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    argv = ["train", "toy2d", "--loss.name", "continuous_elbo", "--process.name", "learned_logsnr", "--steps", "4"]
    argv += ["--network.width", "8", "--network.depth", "1", "--batch-size", "8", "--samples", "8", "--devices", "1"]
    argv += [
        "--optimiser.warmup",
        "0",
        "--optimiser.learning-rate",
        "0.1",
        "--sampler.steps",
        "2",
        "--ema-decay",
        "0.5",
    ]
    argv += ["--save-every", "2", "--out", "run", "--layout", "jit"]
    assert main(argv) == 0
    config = c.from_json((tmp_path / "run" / "config.json").read_text())
    whole = states(tmp_path / "run", config)
    whole = whole._replace(ema=jax.device_get(whole.ema))  # off the eight devices
    learned = whole.ema["process"]
    assert abs(float(learned.logsnr_max) - 13.3) > 0.05
    assert abs(float(learned.logsnr_min) + 5.0) > 0.05

    assert main(["sample", "run", "--n", "5", "--out", "drawn.npz"]) == 0
    run = dj.load("run")
    assert eqx.tree_equal(jax.device_get(run.process), learned)
    assert eqx.tree_equal(jax.device_get(run.params), whole.ema["network"])
    np.testing.assert_allclose(run.ts, dj.logsnr_grid(learned, 2), rtol=1e-5)
    network = dj.from_linen(networks.MLP(width=8, depth=1))
    denoiser = dj.make_denoiser(dj.Diffusion(network, learned, dj.VPrediction()), whole.ema["network"])
    ts, stepper = dj.logsnr_grid(learned, 2), dj.DPMpp2M()
    by_hand = dj.sample_n(jax.random.key(0), learned, denoiser, (2,), 5, ts=ts, stepper=stepper)
    np.testing.assert_allclose(np.load("drawn.npz")["x"], by_hand, rtol=1e-4, atol=1e-5)
    capfd.readouterr()
    assert main(["evaluate", "run", "--n", "8", "--steps", "2"]) == 0
    printed = capfd.readouterr().out
    of_training = json.loads((tmp_path / "run" / "results.json").read_text())
    key = "sliced Wasserstein distance to held out: samples"
    assert f"{of_training[key]:,.4g}" in printed

    assert main(["checkpoint", "rollback", "run", "--step", "2"]) == 0
    monkeypatch.setattr("diffjax.cli._train._finish", lambda *args, **more: None)
    assert main(argv) == 0
    resumed = states(tmp_path / "run", config)
    raw = lambda state: jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))
    jax.tree.map(np.testing.assert_array_equal, raw(resumed), raw(whole))


def test_what_is_learned_beside_a_network_does_not_reach_its_denoiser():
    config = configured("uncertainty")
    parts = c.build(config, None)
    params = params_of(parts)
    assert set(params) == {"network", "loss"}
    found, network = c.trained_parts(config, parts, params)
    assert eqx.tree_equal(network, params["network"])
    assert eqx.tree_equal(found.process, parts.process)
    assert c.trained_parts(config, found, network)[1] is network  # again: nothing is left to do
    for name in ("linear_chain", "monotone_logsnr"):
        config = configured("continuous_elbo", name)
        parts = c.build(config, None)
        assert parts.learned == (("process",) if name == "monotone_logsnr" else ())
