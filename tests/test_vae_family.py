"""The families vae, hierarchical_vae and autoencoder on the command line, against the library's own calls."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import call, done, refused
from safetensors.numpy import save_file

from diffjax import config as c, from_linen, interop, likelihood, networks, vae
from diffjax.cli._latents import in_turn, latents_of, pairs_of
from diffjax.cli._train import _more_steps
from diffjax.data import load_digits
from diffjax.likelihood import slerp
from diffjax.training import (
    Checkpoints,
    Context,
    Family,
    data_mesh,
    fsdp_layout,
    jit_layout,
    make_ema,
    make_mesh,
    make_train_step,
    pmap_layout,
    save_weights,
    state_from_params,
)

KEY = jax.random.key(3)
DIGITS = c.Setting((8, 8, 1), None, True, lambda updates: optax.adam(1e-2), 10)
TINY = ["--family.width", "4", "--steps", "6", "--batch-size", "16", "--samples", "20"]
TINY += ["--save-every", "3", "--ema-decay", "0.5", "--devices", "1", "--optimiser.learning-rate", "0.01"]
OWN = {
    "digits_vae": [
        "--family.depth",
        "1",
        "--family.latents",
        "3",
        "--family.free-bits",
        "0.1",
        "--family.warm-up",
        "0.5",
    ],
    "digits_hvae": ["--family.latents", "1", "--family.blocks", "1"],
    "digits_autoencoder": ["--family.latents", "2"],
    "toy2d_vae": ["--family.latents", "1", "--family.beta", "0.5"],
}


SLOW = ("digits_vae", "digits_hvae", "digits_autoencoder")
PARAMS = ["toy2d_vae", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """preset -> folder of its run, tiny, made when it is asked for."""
    from diffjax.cli import main

    made = {}

    def run(preset):
        if preset not in made:
            made[preset] = tmp_path_factory.mktemp("runs") / preset
            assert main(command(preset, made[preset])) == 0
        return made[preset]

    return run


def command(preset, out):
    return ["train", preset, *TINY, *OWN[preset], "--out", str(out)]


def library_model(preset):
    """The model of a run of `runs`, put together by hand."""
    if preset == "toy2d_vae":
        parts = networks.Perceptron((2,), 4, 2), networks.Perceptron((2,), 4, 2)
        return vae.VAE(*map(from_linen, parts), vae.GaussianLikelihood(), 1)
    logistic = vae.DiscretisedLogistic(17)
    if preset == "digits_hvae":
        return vae.HierarchicalVAE(networks.TopDown((8, 8, 1), (4, 8), (1, 1), 1, 2, num_classes=10), logistic)
    encoder = networks.ImageEncoder(3, (4,), num_classes=10)
    decoder = networks.ImageDecoder((8, 8, 1), (4,), 2, num_classes=10)
    return vae.VAE(from_linen(encoder), from_linen(decoder), logistic, 3)


@pytest.mark.parametrize("preset", PARAMS)
def test_a_run_has_samples_reconstructions_and_a_walk(runs, preset):
    folder = runs(preset)
    files = {"samples.png", "reconstructions.png", "walk.png", "results.json", "loss.png", "config.json", "data.json"}
    assert {path.name for path in folder.iterdir()} == files | {"metrics.jsonl", "checkpoints"}
    run, params = c.load_run(folder)
    x, labels = c.build_data(run.config.data).held_out
    order = in_turn(labels, len(x))[:1000]
    x, cond = x[order], None if labels is None else jnp.asarray(labels[order])
    y = run.family.decode(params, run.family.encode(params, jax.random.key(0), jnp.asarray(x), cond), cond)
    results = json.loads((folder / "results.json").read_text())
    error = np.sqrt(np.mean((x - np.asarray(y)) ** 2))
    assert results["reconstruction error of held out, root mean square"] == pytest.approx(error, rel=1e-4)
    assert any(re.match("(Frechet|sliced Wasserstein) distance to held out.*: samples", name) for name in results)


@pytest.mark.parametrize("preset", PARAMS)
def test_samples_are_the_librarys(runs, preset, tmp_path, capfd):
    folder, out = runs(preset), tmp_path / "x.npz"
    done(capfd, "sample", folder, "--n", 11, "--chunk", 8, "--seed", 5, "--temperature", 0.7, "--out", out)
    _, params = c.load_run(folder)
    found = np.load(out)
    key, index = jax.random.key(5), jnp.arange(11)
    if preset == "digits_autoencoder":
        module = networks.AutoencoderKL(1, 1, 2, channels=(4, 8), blocks=1, groups=1, scaling_factor=1.0)
        z = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (4, 4, 2)))(index)
        moments = params["moments"]
        std = jnp.sqrt(moments["square"] - moments["mean"] ** 2)
        space = networks.LatentSpace(params["autoencoder"], module)
        wanted = space.decode(moments["mean"] + std * 0.7 * z)
    else:
        cond = jnp.asarray(found["labels"]) if "labels" in found else None
        wanted = vae.generate(library_model(preset), params, key, index, cond, temperature=0.7)
    np.testing.assert_allclose(found["x"], wanted, rtol=1e-4, atol=1e-5)


def printed(text):
    """name -> value of what `evaluate` prints."""
    lines = (line.rpartition("  ") for line in text.splitlines())
    return {name.strip(): float(value.replace(",", "")) for name, _, value in lines if name}


@pytest.mark.parametrize("preset", PARAMS[:3])
def test_the_bound_that_is_printed_is_negative_elbo(runs, preset, capfd):
    folder = runs(preset)
    found = printed(done(capfd, "evaluate", folder, "--n", 20, "--likelihood", 12, "--seed", 4))
    run, params = c.load_run(folder)
    x, labels = (None if part is None else jnp.asarray(part[:12]) for part in c.build_data(run.config.data).held_out)
    model, key = library_model(preset), jax.random.key(4)
    bounds = {
        "bound": -vae.negative_elbo(model, params, key, x, labels)[1]["per_sample"],
        "IWAE of 100 draws": vae.iwae_bound(model, params, key, x, labels)[0],
    }
    discrete = preset != "toy2d_vae"
    what = (
        "log probability of held out, nats per dimension"
        if discrete
        else "log density of held out, nats per dimension of x"
    )
    for name, nats in bounds.items():
        each = np.asarray(nats, np.float64) / x[0].size
        row = f"lower bound on the {what} ({name})"
        assert found[f"{row}: mean"] == pytest.approx(each.mean(), rel=1e-3)
        assert found[f"{row}: standard error"] == pytest.approx(each.std(ddof=1) / 12**0.5, rel=1e-3)
        bits = f"bits per dimension of held out ({name}): mean"
        assert (bits in found) == discrete
        assert found.get(bits, 0.0) == pytest.approx(-each.mean() / np.log(2) if discrete else 0.0, rel=1e-3)


def test_the_levels_of_digits_are_those_that_a_diffusion_counts():
    """One convention: the probability of whole grey levels, on the grid that `Quantisation` has."""
    x0, _ = load_digits("test")
    whole = np.asarray(likelihood.Quantisation(17).whole(jnp.asarray(x0)))
    np.testing.assert_array_equal(whole, np.rint((x0 + 1) * 8))
    assert set(np.unique(whole)) == set(range(17))
    made = vae.DiscretisedLogistic(c.PRESETS["digits_vae"].family.levels)
    y = jnp.broadcast_to(jnp.array([0.3, -1.0]), (17, 2))
    table = made.log_prob({}, y, jnp.unique(jnp.asarray(x0))[:, None])
    assert float(jnp.sum(jnp.exp(table))) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_an_autoencoder_has_no_likelihood(runs, capfd):
    said = refused(capfd, "evaluate", runs("digits_autoencoder"), "--likelihood", 5)
    assert said == "diffjax: likelihood: this run (family autoencoder) has none, 0 is needed, got 5\n"


@pytest.mark.parametrize("preset", PARAMS)
def test_it_goes_on_where_it_stopped_to_the_same_bits(runs, preset, capfd):
    folder = runs(preset)
    before = leaves_of(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.rollback(3)
    code, out, _ = call(capfd, *command(preset, folder))
    assert code == 0
    assert "from step 3, saved before" in out
    jax.tree.map(np.testing.assert_array_equal, leaves_of(folder), before)


def leaves_of(folder):
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == 6
        return dict(checkpoints.leaves(6, ""))


# --- what each number does ---


def objects(family):
    """What a family of digits is made of: the model, or the module, of its numbers."""
    return family.build(DIGITS) if isinstance(family, c.FAMILIES["vae"].__mro__[1]) else family.module((8, 8, 1))


def built(name, **numbers):
    family = c.construct("family", c.FAMILIES, c.FamilyConfig(name, **numbers))
    return family, objects(family)


def coders(latents=16, channels=(32, 64)):
    """The encoder and the decoder of a vae of digits with a Gaussian likelihood."""
    return from_linen(networks.ImageEncoder(latents, channels)), from_linen(
        networks.ImageDecoder((8, 8, 1), channels, 1)
    )


MODELS = {
    ("vae", "latents"): (5, lambda model: ((model.encoder, model.decoder), model.latents) == (coders(5), (5,))),
    ("vae", "width"): (6, lambda model: (model.encoder, model.decoder) == coders(channels=(6, 12))),
    ("vae", "depth"): (3, lambda model: (model.encoder, model.decoder) == coders(channels=(32, 64, 128))),
    ("hierarchical_vae", "latents"): (5, lambda model: model.network.latents == 5),
    ("hierarchical_vae", "width"): (6, lambda model: model.network.channels == (6, 12)),
    ("hierarchical_vae", "depth"): (3, lambda model: model.network.channels == (32, 64, 128)),
    ("hierarchical_vae", "blocks"): (3, lambda model: model.network.blocks == (3, 3)),
    ("autoencoder", "latents"): (3, lambda module: module.latent_channels == 3),
    ("autoencoder", "width"): (16, lambda module: (module.channels, module.groups) == ((16, 32), 4)),
    ("autoencoder", "depth"): (3, lambda module: module.channels == (32, 64, 128)),
    ("autoencoder", "blocks"): (2, lambda module: module.blocks == 2),
}
"""(family, number) -> another value, and what it changes in the model."""
LOSSES = {
    ("vae", "beta"): 2.5,
    ("vae", "free_bits"): 5.0,
    ("vae", "warm_up"): 0.5,
    ("hierarchical_vae", "beta"): 2.5,
    ("hierarchical_vae", "free_bits"): 30.0,
    ("hierarchical_vae", "warm_up"): 0.5,
    ("autoencoder", "kl_weight"): 3.0,
    ("autoencoder", "critic_weight"): 0.7,
    ("autoencoder", "critic_start"): 0.5,
    ("autoencoder", "perceptual_weight"): 3.0,
}
"""(family, number) -> another value, of those that change the loss."""
LEVELS = {("vae", "levels"): 17, ("hierarchical_vae", "levels"): 17}


def test_each_number_of_a_family_has_a_check():
    rows = {name: row for name, row in c.FAMILIES.items() if "gan" not in name}  # which test_gan_family has
    numbers = {(name, number) for name, row in rows.items() for number in c.numbers_of(row)}
    assert numbers == MODELS.keys() | LOSSES.keys() | LEVELS.keys()


@pytest.mark.parametrize(("name", "number"), list(MODELS))
def test_a_number_is_that_of_the_model(name, number):
    value, holds = MODELS[name, number]
    assert holds(built(name, **{number: value})[1])
    assert not holds(built(name)[1])


@pytest.mark.parametrize("name", ["vae", "hierarchical_vae"])
def test_a_likelihood_is_that_of_its_name_and_levels(name):
    found = {
        key: built(name, likelihood=key[0], levels=key[1])[1].likelihood
        for key in (("gaussian", None), ("logistic", None), ("logistic", 17), ("bernoulli", None))
    }
    wanted = (
        vae.GaussianLikelihood(),
        vae.DiscretisedLogistic(256),
        vae.DiscretisedLogistic(17),
        vae.Bernoulli(low=-1.0),
    )
    assert tuple(found.values()) == wanted
    discrete = [
        c.construct("family", c.FAMILIES, c.FamilyConfig(name, name_of)).make(DIGITS).discrete
        for name_of in ("gaussian", "logistic", "bernoulli")
    ]
    assert discrete == [False, True, True]


X0 = jnp.asarray(load_digits()[0][:8])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """(folder, module, parameters) of a classifier of digits, away from its first values."""
    folder, module = tmp_path_factory.mktemp("classifier"), networks.Classifier(10, channels=(8, 16))
    start = from_linen(module).init(KEY, X0[:1], jnp.zeros(1))
    params = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), start)
    save_weights(folder / "weights.safetensors", params)
    return str(folder), module, params


@pytest.fixture(scope="module")
def made():
    """(name, numbers) -> (family, its params on digits), each once."""
    found = {}

    def make(name, **numbers) -> tuple[Family, dict]:
        key = (name, *sorted(numbers.items()))
        if key not in found:
            small = {"width": 4, "latents": 2} | numbers
            family = c.construct("family", c.FAMILIES, c.FamilyConfig(name, **small)).make(DIGITS)
            found[key] = family, family.init(jax.random.key(1), X0[:1], None)
        return found[key]

    return make


@pytest.mark.parametrize(
    ("name", "number"),
    [pytest.param(*key, marks=[pytest.mark.slow] if key[0] == "hierarchical_vae" else []) for key in LOSSES],
)
def test_a_number_is_that_of_the_loss(made, classifier, name, number):
    """Against the library's call with the same number, which differs from the one without."""
    value = LOSSES[name, number]
    others = {"critic_start": {"critic_weight": 0.7}, "perceptual_weight": {"perceptual": classifier[0]}}
    family, params = made(name, **{number: value}, **others.get(number, {}))
    index = jnp.arange(8) + 3
    context = Context(KEY, 2, index=index, total=8)
    found = jax.jit(lambda p: family.objectives[0].loss_fn(p, (X0, None), context)[0])(params)
    plain = {number: value} if number != "warm_up" else {"beta": 2 / 5}
    if name == "autoencoder":
        module = networks.AutoencoderKL(1, 1, 2, channels=(4, 8), blocks=1, groups=1, scaling_factor=1.0)
        given = {"kl_weight": 1e-6, "critic_weight": 0.0} | plain
        if number == "critic_weight":
            critic = networks.PatchDiscriminator((4, 8))
            given["critic"] = lambda x: critic.apply({"params": params["critic"]}, x)
        loss = lambda p, **given: vae.autoencoder_loss(module, p["autoencoder"], KEY, X0, index=index, **given)[0]
        if number == "critic_start":  # step 2 of 10, with 0.7 from step 5 on
            given = {"kl_weight": 1e-6}
        if number == "perceptual_weight":
            given["perceptual"] = functools.partial(networks.classifier_features, *classifier[1:])
        other = loss(params, kl_weight=1e-6)
        if number == "critic_start":
            late = Context(KEY, 5, index=index, total=8)
            other = family.objectives[0].loss_fn(params, (X0, None), late)[0]
    else:
        gaussian = vae.GaussianLikelihood()
        if name == "vae":
            model, group = vae.VAE(*coders(2, (4, 8)), gaussian, 2), "latent"
        else:
            model = vae.HierarchicalVAE(networks.TopDown((8, 8, 1), (4, 8), (2, 2), 2, 1), gaussian)
            group = "channel"
        loss = lambda p, **given: vae.negative_elbo(model, p, KEY, X0, group=group, index=index, **given)[0]
        given, other = plain, loss(params)
    np.testing.assert_allclose(found, loss(params, **given), rtol=1e-5)
    assert abs(float(found - other)) > 1e-3


def test_beta_rises_over_its_share_of_the_training(made):
    family, params = made("vae", warm_up=0.5, beta=2.0)
    beta = jax.jit(lambda step: family.objectives[0].loss_fn(params, (X0, None), Context(KEY, step))[1]["beta"])
    np.testing.assert_allclose([beta(step) for step in (0, 1, 5, 9)], [0.0, 0.4, 2.0, 2.0], rtol=1e-6)


def test_features_are_those_of_the_classifier(made, classifier):
    """With a weight of 1 by default; a run is read, and sampled, without the folder."""
    folder, module, weights = classifier
    family, params = made("autoencoder", perceptual=folder)
    found, aux = family.objectives[0].loss_fn(params, (X0, None), Context(KEY, index=jnp.arange(8)))
    autoencoder = networks.AutoencoderKL(1, 1, 2, channels=(4, 8), blocks=1, groups=1, scaling_factor=1.0)
    features = functools.partial(networks.classifier_features, module, weights)
    loss, terms = vae.autoencoder_loss(autoencoder, params["autoencoder"], KEY, X0, perceptual=features)
    np.testing.assert_allclose(aux["perceptual"], jnp.mean(terms["perceptual"]), rtol=1e-5)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    family, params = made("autoencoder", perceptual="gone")
    assert family.sample(params, KEY, jnp.arange(2)).shape == (2, 8, 8, 1)


def test_a_classifier_that_is_read_within_a_trace_is_of_values(classifier):
    """A loss reads it once, in its first trace, and every later one uses the same."""
    folder, module, weights = classifier
    read = []
    jax.eval_shape(lambda: read.append(interop.read_classifier(folder)))
    assert read[0][0] == module
    jax.tree.map(np.testing.assert_array_equal, read[0][1], dict(weights))


def test_what_is_no_classifier_is_refused(classifier, tmp_path):
    """Before anything is trained, when the data are looked at."""
    family = lambda folder: c.construct("family", c.FAMILIES, c.FamilyConfig("autoencoder", perceptual=str(folder)))
    check = lambda folder: family(folder).check_data(np.asarray(X0))
    check(classifier[0])
    with pytest.raises(ValueError, match=r"family.perceptual: a folder that scripts"):
        check(tmp_path / "none")
    save_weights(tmp_path / "weights.safetensors", {"dense": {"kernel": jnp.ones((2, 2))}})
    with pytest.raises(ValueError, match=r"family.perceptual: .*weights.safetensors holds no classifier"):
        check(tmp_path)
    save_file({"body": np.ones(2), "body/in/kernel": np.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"family.perceptual: .*weights.safetensors holds no classifier"):
        check(tmp_path)
    other = dict(classifier[2]) | {"logits": {"bias": jnp.ones(10), "kernel": jnp.ones((15, 10))}}
    save_weights(tmp_path / "weights.safetensors", other)
    with pytest.raises(ValueError, match=r"an array of shape \(15, 10\) in place of \(16, 10\)"):
        interop.read_classifier(tmp_path)
    coloured = networks.Classifier(10, channels=(8,)).init(KEY, jnp.zeros((1, 8, 8, 3)))["params"]
    save_weights(tmp_path / "weights.safetensors", coloured)
    with pytest.raises(ValueError, match=r"family.perceptual: the classifier .* 3 channels, the data have 1"):
        check(tmp_path)


def test_the_critic_is_trained_by_its_own_loss_alone(made):
    family, params = made("autoencoder", critic_weight=0.5)
    assert [objective.of for objective in family.objectives] == ["autoencoder", "moments", "critic"]
    assert len(made("autoencoder")[0].objectives) == 2
    assert "critic" not in made("autoencoder")[1]
    critic, index = networks.PatchDiscriminator((4, 8)), jnp.arange(8)
    found, aux = family.objectives[2].loss_fn(params, (X0, None), Context(KEY, index=index))
    module = networks.AutoencoderKL(1, 1, 2, channels=(4, 8), blocks=1, groups=1, scaling_factor=1.0)
    y = vae.reconstruct(module, params["autoencoder"], KEY, X0, index=index)
    wanted = vae.critic_loss(lambda x: critic.apply({"params": params["critic"]}, x), X0, y)
    np.testing.assert_allclose((found, aux["accuracy"]), (wanted[0], wanted[1]["accuracy"]), rtol=1e-5)


# --- training ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("vae", {"free_bits": 0.5, "likelihood": "logistic", "levels": 17}),
        ("hierarchical_vae", {"blocks": 1}),
        ("autoencoder", {"critic_weight": 0.2}),
    ],
)
def test_jit_pmap_and_fsdp_train_alike(made, name, numbers):
    """Free bits too, whose mean is over the whole batch.

    By gradient descent: Adam would divide the rounding of a gradient that is 0 by its size.
    """
    family, params = made(name, **numbers)
    ema, found = make_ema(0.5), []
    objectives = [objective._replace(tx=optax.sgd(0.01)) for objective in family.objectives]
    fresh = lambda: state_from_params(jax.random.key(2), jax.tree.map(jnp.array, params), objectives)
    for layout in (
        jit_layout(make_train_step(objectives, ema=ema), data_mesh(jax.devices()[:1])),
        pmap_layout(make_train_step(objectives, ema=ema, axis_name="data"), jax.devices()[:2]),
        fsdp_layout(make_train_step(objectives, ema=ema), make_mesh(fsdp=2, devices=jax.devices()[:2]), min_size=16),
    ):
        state = layout.put_state(fresh())
        for _ in range(2):
            state, _ = layout.step(state, layout.put_batch((np.asarray(X0), None)))
        found.append(layout.get_state(state).params)
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[0], other)
    changes = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), found[0], params)
    assert max(jax.tree.leaves(changes)) > 1e-3


def test_moments_follow_the_latents_and_unit_latents_agree(made):
    """With the autoencoder fixed they end where `with_unit_latents` is, on one batch."""
    family, params = made("autoencoder")
    follow = family.objectives[1]
    loss = jax.jit(jax.grad(lambda m: follow.loss_fn(params | {"moments": m}, (X0, None), Context(KEY))[0]))
    moments, state = params["moments"], follow.tx.init(params["moments"])
    for _ in range(300):
        updates, state = follow.tx.update(loss(moments), state)
        moments = optax.apply_updates(moments, updates)
    run = c.Run(
        c.Config(family=c.FamilyConfig("autoencoder", width=4, latents=2)), c.Samples((8, 8, 1), None), family, None
    )
    module, weights = c.trained_autoencoder(run, params | {"moments": moments})
    exact = vae.with_unit_latents(module, weights, X0)
    assert module.scaling_factor == pytest.approx(exact.scaling_factor, rel=1e-4)
    assert module.shift_factor == pytest.approx(exact.shift_factor, abs=1e-4)
    z = family.encode(params | {"moments": moments}, KEY, X0, None)
    space = networks.LatentSpace(weights, exact)
    np.testing.assert_allclose(z, space.encode(KEY, X0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        family.decode(params | {"moments": moments}, z, None), space.decode(z), rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_an_autoencoder_becomes_a_folder_of_diffusers(runs, tmp_path):
    """As the docstring of its family has it."""
    run, params = c.load_run(runs("digits_autoencoder"))
    module, weights = c.trained_autoencoder(run, params)
    module = vae.with_unit_latents(module, weights, jnp.asarray(c.build_data(run.config.data).train[0]))
    interop.save_pretrained(tmp_path, weights, interop.autoencoder_config(module))
    again = interop.load_module(tmp_path)
    assert again.module == module
    jax.tree.map(np.testing.assert_array_equal, dict(again.params), dict(params["autoencoder"]))
    other = c.load_run(runs("toy2d_vae"))
    with pytest.raises(ValueError, match="run: one of the family autoencoder is needed, got vae"):
        c.trained_autoencoder(*other)


def test_what_is_a_share_of_the_steps_is_said_where_these_become_more():
    """A warm-up that was over begins again, for it is a share of a longer training."""
    of = lambda steps, **numbers: c.Config(family=c.FamilyConfig("vae", **numbers), steps=steps)
    plain = "9 steps become 20: from here the learning rate is that of a run of 20 steps"
    assert _more_steps(of(9), of(20)) == plain
    warm = plain.replace("learning rate is that", "learning rate and family.warm_up are those")
    assert _more_steps(of(9, warm_up=0.5), of(20, warm_up=0.5)) == warm


# --- the walk ---


def test_a_walk_is_between_two_items_of_each_class(made):
    """Along great circles of the latents, decoded for the label of the class."""
    seen = []

    def decode(params, z, cond):
        seen.append((z, cond))
        return z[0][:, None] + cond[:, None, None]

    x = np.arange(8, dtype=np.float32)[:, None] + np.array([[1.0, 2.0]], np.float32)
    labels = np.array([1, 0, 1, 2, 0, 1, 0, 0], np.int32)
    encode = lambda params, key, x0, cond, index: (x0, 2 * x0**2)
    family = Family(None, (), None, encode=encode, decode=decode)
    draw = type("Drawn", (), {"family": family, "params": {}})()
    data = type("Held", (), {"held_out": (x, labels)})()
    found = latents_of(draw, data, seed=0)
    order = in_turn(labels, 8)
    assert order.tolist() == [1, 0, 3, 4, 2, 6, 5, 7]
    assert pairs_of(labels[order], 8).tolist() == [[0, 3], [1, 4]]  # class 2 has one item
    np.testing.assert_array_equal(found.items, x[order])
    assert found.walk.shape == (2, 10, 1, 2)
    for row, (first, last) in enumerate([(1, 4), (0, 2)]):
        middle = slerp(jnp.asarray(x[[first]]), jnp.asarray(x[[last]]), jnp.asarray(4 / 9))[0] + labels[first]
        np.testing.assert_allclose(found.walk[row, 4, 0], middle, rtol=1e-5)
        np.testing.assert_allclose(found.walk[row, 0, 0], x[first] + labels[first], rtol=1e-5)
        np.testing.assert_allclose(found.walk[row, 9, 0], x[last] + labels[last], rtol=1e-5)
    assert pairs_of(None, 5).tolist() == [[0, 1], [2, 3]]
    assert pairs_of(None, 1).shape == pairs_of(np.array([0, 1]), 2).shape == (0, 2)


def test_items_are_encoded_some_at_a_time_and_a_single_one_makes_no_walk(made):
    """What is drawn for an item comes from its place among all; held out may be one item, or one of each class."""
    sizes = []

    def encode(params, key, x0, cond, *, index):
        sizes.append(len(x0))
        return x0 + index[:, None]

    family = Family(None, (), None, encode=encode, decode=lambda params, z, cond: z)
    draw = type("Drawn", (), {"family": family, "params": {}})()
    held = lambda x, labels=None: type("Held", (), {"held_out": (x, labels)})()
    x = np.random.default_rng(0).normal(size=(203, 2)).astype(np.float32)
    found = latents_of(draw, held(x), seed=0)
    assert sizes == [68, 68, 68]  # one program for all parts
    np.testing.assert_allclose(found.reconstructions, (x + np.arange(203)[:, None])[:50], rtol=1e-6)
    assert found.error == pytest.approx(np.sqrt(np.mean(np.arange(203.0) ** 2)), rel=1e-5)
    np.testing.assert_allclose(found.walk[9, 9], x[19] + 19, rtol=1e-6)
    for n, labels in ((1, None), (2, np.array([1, 0]))):
        found = latents_of(draw, held(x[:n], labels), seed=0)
        assert (found.walk.shape, found.reconstructions.shape) == ((0, 10, 2), (n, 2))


@pytest.mark.parametrize("name", ["vae", "autoencoder"])
def test_the_latents_of_an_item_are_those_of_its_index(made, name):
    family, params = made(name)
    index = jnp.arange(8) + 3
    first = jax.tree.leaves(family.encode(params, KEY, X0, None, index=index))
    again = jax.tree.leaves(family.encode(params, KEY, X0[::-1], None, index=index[::-1]))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_allclose(one, other[::-1], rtol=1e-4, atol=1e-5)


# --- refused ---


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("digits_vae", ["--family.latents", 65], "family.latents: at most the 64 numbers of a sample, got 65"),
        ("toy2d_vae", ["--family.latents", 3], "family.latents: at most the 2 numbers of a sample, got 3"),
        ("digits_autoencoder", ["--family.latents", 5], "family.latents: at most 4, for no more latents than pixels"),
        ("digits_vae", ["--family.latents", 0], "family.latents: at least 1, got 0"),
        ("digits_hvae", ["--family.blocks", 0], "family.blocks: at least 1, got 0"),
        ("digits_vae", ["--family.beta", -1], "family.beta: a finite number, not below 0, got -1"),
        ("digits_vae", ["--family.warm-up", 2], "family.warm_up: a number in [0, 1], got 2"),
        ("digits_vae", ["--family.levels", 16], "family.levels: must lie on 16 levels spread evenly from -1 to 1, got"),
        ("toy2d_vae", ["--family.levels", 16], "family.levels: gaussian has none, got 16"),
        ("toy2d_vae", ["--family.likelihood", "logistic"], "family.levels: must lie on 256 levels"),
        ("toy2d_vae", ["--family.likelihood", "bernoulli"], "family.likelihood: bernoulli needs data that are -1 or 1"),
        (
            "toy2d_vae",
            ["--family.name", "hierarchical_vae"],
            "family.name: hierarchical_vae is for images, got samples",
        ),
        ("digits_autoencoder", ["--family.depth", 5], "family.depth: sides must be multiples of 2^(depth - 1) = 16"),
        ("digits_autoencoder", ["--data.conditional"], "data.conditional: autoencoder takes no labels, got 10 classes"),
        ("digits_autoencoder", ["--family.beta", 1], "family.beta: autoencoder has no such number, got 1.0"),
        ("digits_autoencoder", ["--family.critic-start", 0.5], "family.critic_start: there is no critic, got 0.5"),
        ("digits_autoencoder", ["--family.perceptual-weight", 2], "family.perceptual_weight: there are no features"),
        ("digits_vae", ["--family.likelihood", "gaussian", "--family.levels", 17], "family.levels: gaussian has none"),
        ("digits_vae", ["--family.name", "autoencoder", "--family.levels", 17], "family.levels: autoencoder has no"),
        (
            "digits",
            ["--family.likelihood", "logistic"],
            "family.likelihood: diffusion has no such option, got logistic",
        ),
        ("digits", ["--family.latents", 4], "family.latents: diffusion has no such number, got 4"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(preset, options, message, tmp_path, capfd):
    out = tmp_path / "none"
    said = refused(capfd, "train", preset, "--out", out, *options)
    assert said.startswith(f"diffjax: {message}")
    assert not out.exists()


@pytest.mark.parametrize(
    ("preset", "changes", "family"),
    [
        ("digits_vae", {"likelihood": "gaussian"}, c.FamilyConfig("vae")),
        ("digits_vae", {"name": "hierarchical_vae"}, c.FamilyConfig("hierarchical_vae", "logistic", levels=17)),
        ("digits_vae", {"name": "autoencoder"}, c.FamilyConfig("autoencoder")),
        ("toy2d_vae", {"name": "diffusion"}, c.FamilyConfig()),
        ("toy2d_vae", {"width": 5}, c.FamilyConfig("vae", latents=2, width=5)),
    ],
)
def test_a_presets_numbers_that_another_choice_does_not_take_are_left_out(preset, changes, family):
    """Of another family or likelihood; the command line has no word to take a number back."""
    start = c.PRESETS[preset]
    config = dataclasses.replace(start, family=dataclasses.replace(start.family, **changes))
    assert c.with_family_defaults(config, {f"family.{name}" for name in changes}).family == family


def test_bernoulli_is_refused_for_grey_digits(tmp_path, capfd):
    options = ["--family.name", "vae", "--family.likelihood", "bernoulli", "--data.name", "digits"]
    said = refused(capfd, "train", "toy2d_vae", "--out", tmp_path / "none", *options)
    assert "family.likelihood: bernoulli needs data that are -1 or 1, got" in said
    assert "grey images: logistic" in said


def test_a_temperature_below_0_is_refused(runs, capfd):
    said = refused(capfd, "sample", runs("toy2d_vae"), "--temperature", -1)
    assert said == "diffjax: temperature: a finite number, not below 0, got -1.0\n"
