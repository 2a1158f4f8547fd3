"""The families gan and ddgan on the command line, against the library's own calls."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import call, done, refused

import diffjax as dj
from diffjax import config as c, from_linen, gan, networks
from diffjax.cli._preview import save_loss
from diffjax.data import load_digits
from diffjax.training import (
    Checkpoints,
    Context,
    data_mesh,
    fsdp_layout,
    jit_layout,
    make_ema,
    make_mesh,
    make_train_step,
    pmap_layout,
    state_from_params,
)
from diffjax.training._log import loss_names

KEY = jax.random.key(3)
DIGITS = c.Setting((8, 8, 1), 10, True, lambda updates: optax.adam(1e-2), 10)
POINTS = c.Setting((2,), None, False, lambda updates: optax.adam(1e-2), 10)
TINY = ["--family.width", "4", "--family.depth", "1", "--family.latents", "3", "--steps", "6", "--batch-size", "16"]
TINY += ["--samples", "20", "--save-every", "3", "--ema-decay", "0.5", "--devices", "1"]
OWN = {
    "toy2d_gan": ["--family.every", "2", "--family.updates", "2"],
    "toy2d_ddgan": ["--family.steps", "2", "--family.loss", "hinge"],
    "digits_gan": [],
    "digits_ddgan": ["--family.steps", "2"],
}
PARAMS = [pytest.param(name, marks=[] if name == "toy2d_gan" else pytest.mark.slow) for name in OWN]


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
    ts = [1.0, 0.5, 0.0]
    if preset == "toy2d_gan":
        parts = networks.Perceptron((2,), 4, 1), networks.Discriminator(4, 1)
        return gan.GAN(*map(from_linen, parts), latents=3)
    if preset == "toy2d_ddgan":
        parts = networks.LatentNetwork(networks.PlainMLP(4, 1), 4), networks.Discriminator(4, 1)
        return gan.DenoisingGAN(*map(from_linen, parts), dj.VariancePreserving(), ts, (2,), 3, spectral=True)
    discriminator = networks.ImageDiscriminator((4,), num_classes=10)
    if preset == "digits_gan":
        generator = networks.ImageGenerator((8, 8, 1), (4,), num_classes=10)
        return gan.GAN(from_linen(generator), from_linen(discriminator), latents=3)
    generator = networks.LatentNetwork(networks.UNet((4,), blocks=1, attention=()), 4, num_classes=10)
    parts = from_linen(generator), from_linen(discriminator)
    return gan.DenoisingGAN(*parts, dj.VariancePreserving(), ts, (8, 8, 1), 3)


@pytest.mark.parametrize("preset", PARAMS)
def test_a_run_has_samples_and_measures(runs, preset):
    folder = runs(preset)
    files = {"samples.png", "results.json", "loss.png", "config.json", "data.json", "metrics.jsonl", "checkpoints"}
    assert {path.name for path in folder.iterdir()} == files
    results = json.loads((folder / "results.json").read_text())
    assert any(re.match("(Frechet|sliced Wasserstein) distance to held out.*: samples", name) for name in results)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"discriminator/loss", "discriminator/accuracy", "discriminator/penalty", "generator/loss"} <= last.keys()
    assert ("power/loss" in last) == (preset == "toy2d_ddgan")
    assert last["skipped"] == 0


def test_losses_of_all_objectives_are_shown(tmp_path, monkeypatch):
    """A discriminator's loss alone says nothing: on the bar and in loss.png each objective has its own."""
    lines = [
        {"step": 5, "loss": 1.0, "discriminator/loss": 1.0, "generator/loss": 3.0, "power/loss": None},
        {"step": 9, "loss": 2.0, "discriminator/loss": 2.0, "generator/loss": 4.0, "power/loss": None},
    ]
    log, drawn = tmp_path / "metrics.jsonl", []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, dpi: drawn.extend(figure.axes))
    for line, names in ((lines, ["discriminator", "generator"]), ([{"step": 5, "loss": 1.0}], ["loss"])):
        log.write_text("".join(json.dumps(one) + "\n" for one in line))
        assert save_loss(tmp_path / "loss.png", log)
        assert [ax.get_ylabel().removesuffix(" loss") for ax in drawn] == names
        for ax, first in zip(drawn, (1.0, 3.0), strict=False):
            np.testing.assert_allclose(ax.lines[0].get_ydata(), [first + i for i in range(len(line))])
        drawn.clear()
    log.write_text("")
    assert not save_loss(tmp_path / "loss.png", log)
    assert loss_names(lines[0]) == ["discriminator/loss", "generator/loss", "power/loss"]
    assert loss_names({"step": 5, "loss": 1.0, "loss_by_level/00": 2.0}) == ["loss"]


def test_the_bar_names_the_losses_of_all_objectives(runs, tmp_path, capfd):
    text = call(capfd, *command("toy2d_gan", tmp_path / "run"))[2]
    assert re.search(r"discriminator loss \d+\.\d{4}, generator loss \d+\.\d{4}, ", text)


def test_a_presets_own_number_is_told_from_the_default_of_the_family(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    text = " ".join(re.sub("[│\n]", " ", call(capfd, "train", "toy2d_ddgan", "--help")[1]).split())
    assert "at data; 0 is none. (default: gan 0.1; ddgan 0.05) (here: 0.1)" in text
    assert "ddgan: how many numbers each step draws for its generator." in text


@pytest.mark.parametrize("preset", PARAMS)
def test_samples_are_the_librarys(runs, preset, tmp_path, capfd):
    folder, out = runs(preset), tmp_path / "x.npz"
    done(capfd, "sample", folder, "--n", 11, "--chunk", 8, "--seed", 5, "--temperature", 0.7, "--out", out)
    _, params = c.load_run(folder)
    found = np.load(out)
    cond = jnp.asarray(found["labels"]) if "labels" in found else None
    assert (cond is not None) == preset.startswith("digits")
    model, index = library_model(preset), jnp.arange(11)
    wanted = gan.generate_samples(model, params, jax.random.key(5), index, cond, temperature=0.7)
    np.testing.assert_allclose(found["x"], wanted, rtol=1e-4, atol=1e-5)
    other = gan.generate_samples(model, params, jax.random.key(5), index, cond)
    assert np.abs(found["x"] - other).max() > 1e-4 * np.abs(other).max()


@pytest.mark.slow
@pytest.mark.parametrize("preset", OWN)
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


def test_it_has_no_likelihood(runs, capfd):
    said = refused(capfd, "evaluate", runs("toy2d_gan"), "--likelihood", 5)
    assert said == "diffjax: likelihood: this run (family gan) has none, 0 is needed, got 5\n"


@pytest.mark.slow
def test_it_is_evaluated(runs, capfd):
    out = done(capfd, "evaluate", runs("toy2d_gan"), "--n", 20)
    assert "sliced Wasserstein distance to held out: samples" in out


# --- what each number does ---


def family_of(name, **numbers):
    return c.construct("family", c.FAMILIES, c.FamilyConfig(name, **numbers))


NAMES = ["gan", pytest.param("ddgan", marks=pytest.mark.slow)]


def built(name, setting=DIGITS, **numbers):
    return family_of(name, **numbers).build(setting)


def image_parts(channels=(32, 64), width=32):
    """(generator of a gan, of a ddgan, discriminator) of digits with labels."""
    unet = networks.UNet(channels, blocks=1, attention=())
    return (
        from_linen(networks.ImageGenerator((8, 8, 1), channels, num_classes=10)),
        from_linen(networks.LatentNetwork(unet, width, num_classes=10)),
        from_linen(networks.ImageDiscriminator(channels, num_classes=10)),
    )


def has(**numbers):
    """Whether the parts are those of these channels."""

    def holds(model):
        of_gan, of_ddgan, discriminator = image_parts(**numbers)
        generator = of_gan if isinstance(model, gan.GAN) else of_ddgan
        return (model.generator, model.discriminator) == (generator, discriminator)

    return holds


MODELS = {
    ("gan", "latents"): (5, lambda model: model.latents == 5),
    ("gan", "width"): (6, has(channels=(6, 12), width=6)),
    ("gan", "depth"): (3, has(channels=(32, 64, 128))),
    ("ddgan", "latents"): (5, lambda model: model.latents == 5),
    ("ddgan", "width"): (6, has(channels=(6, 12), width=6)),
    ("ddgan", "depth"): (3, has(channels=(32, 64, 128))),
    ("ddgan", "steps"): (2, lambda model: model.ts.tolist() == [1.0, 0.5, 0.0]),
}
"""(family, number) -> another value, and what it changes in the model."""
TRAINING = {
    (name, number)
    for name in ("gan", "ddgan")
    for number in ("r1", "r2", "gamma_final", "every", "updates", "generator_rate")
}
"""Of the losses and objectives."""


def test_each_number_of_a_gan_has_a_check():
    numbers = {(name, number) for name in ("gan", "ddgan") for number in c.numbers_of(c.FAMILIES[name])}
    assert numbers == MODELS.keys() | TRAINING


@pytest.mark.parametrize(("name", "number"), list(MODELS))
def test_a_number_is_that_of_the_model(name, number):
    value, holds = MODELS[name, number]
    assert holds(built(name, **{number: value}))
    assert not holds(built(name))
    if number == "steps":
        assert repr(family_of(name, steps=value).make(DIGITS).nfe()) == str(value)


def test_vectors_have_perceptrons():
    made = built("gan", POINTS)
    parts = from_linen(networks.Perceptron((2,), 32, 2)), from_linen(networks.Discriminator(32, 2))
    assert (made.generator, made.discriminator) == parts
    assert built("ddgan", POINTS).generator == from_linen(networks.LatentNetwork(networks.PlainMLP(32, 2), 32))


X0 = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
SMALL = {"width": 4, "depth": 1, "latents": 3}


@pytest.fixture(scope="module")
def made():
    """(name, numbers) -> (family of points, its model, its params), each once."""
    found = {}

    def make(name, **numbers):
        key = (name, *sorted(numbers.items()))
        if key not in found:
            family = family_of(name, **SMALL | numbers)
            whole = family.make(POINTS)
            found[key] = whole, family.build(POINTS), whole.init(jax.random.key(1), X0[:1], None)
        return found[key]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_penalties_are_weighted_and_lazy_as_configured(made, name):
    """Against the library's call at step 4 of 10, where the weights have fallen along a cosine."""
    family, model, params = made(name, r1=0.8, r2=0.3, gamma_final=0.2, every=2)
    fall = 0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * 4 / 10))
    index = jnp.arange(8) + 3
    value = jax.jit(lambda step: family.objectives[0].loss_fn(params, (X0, None), Context(KEY, step, index=index))[0])
    plain = jax.jit(lambda r1, r2: gan.discriminator_loss(model, params, KEY, X0, r1=r1, r2=r2, index=index)[0])
    np.testing.assert_allclose(value(4), plain(2 * fall * 0.8, 2 * fall * 0.3), rtol=1e-5)
    np.testing.assert_allclose(value(5), plain(0.0, 0.0), rtol=1e-5)
    assert abs(float(plain(2 * fall * 0.8, 0.0) - value(4))) > 1e-5
    assert abs(float(plain(0.0, 2 * fall * 0.3) - value(4))) > 1e-5


@pytest.mark.parametrize("name", ["gan", "ddgan"])
def test_updates_are_of_the_discriminator(made, name):
    objectives = made(name, updates=3)[0].objectives
    assert [(objective.of, objective.times) for objective in objectives] == [("discriminator", 3), ("generator", 1)]


@pytest.mark.parametrize("name", ["gan", "ddgan"])
def test_the_generator_has_a_learning_rate_of_its_own(made, name):
    """Of the part that is weight decay, too; the discriminator keeps the optimiser's."""
    optimiser = c.OptimiserConfig(0.02, warmup=0, weight_decay=0.3)
    setting = POINTS._replace(optimiser=lambda updates: c.build_optimiser(optimiser, 10, updates=updates))
    params = {"w": jnp.array([2.0, -1.0])}
    slope = {"w": jnp.array([0.3, 0.1])}

    def moves(**numbers):
        objectives = family_of(name, **SMALL, **numbers).make(setting).objectives
        return [o.tx.update(slope, o.tx.init(params), params)[0]["w"] for o in objectives]

    plain, scaled = moves(), moves(generator_rate=0.25)
    np.testing.assert_array_equal(plain[0], plain[1])
    np.testing.assert_array_equal(scaled[0], plain[0])
    np.testing.assert_allclose(scaled[1], 0.25 * plain[1], rtol=1e-6)


def seen(tx, count, beta2_final):
    """By update, so many with a gradient of 1: how far Adam moves a number, [count]; with an annealed beta2, that."""

    def one(state, _):
        update, state = tx.update({"w": jnp.ones(())}, state, {"w": jnp.zeros(())})
        return state, -update["w"] if beta2_final is None else state[1].hyperparams["b2"]

    return np.asarray(jax.jit(lambda: jax.lax.scan(one, tx.init({"w": jnp.zeros(())}), length=count)[1])())


@pytest.mark.parametrize(("beta2_final", "first"), [(None, [0, 2.5e-4, 5e-4, 7.5e-4, 1e-3]), (0.5, [0.999, 0.98679])])
def test_schedules_of_several_updates_a_step_are_those_of_the_step(beta2_final, first):
    """Those of the discriminator's optimiser end with the run, not after a third of it."""
    optimiser = c.OptimiserConfig(warmup=4, final=0.1, beta1=0.0, beta2_final=beta2_final)
    config = c.Config(optimiser=optimiser, steps=10, family=c.FamilyConfig("gan", updates=3, **SMALL))
    made = c.build_run(config, c.Samples((2,), None)).family
    found, of_generator = (seen(made.objectives[i].tx, n, beta2_final) for i, n in ((0, 30), (1, 10)))
    np.testing.assert_allclose(found, np.repeat(of_generator, 3), rtol=1e-4)
    np.testing.assert_allclose(of_generator[: len(first)], first, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_that_of_its_name(made, name):
    losses = {"non_saturating": gan.NonSaturating(), "hinge": gan.Hinge(), "relativistic": gan.Relativistic()}
    context, seen = Context(KEY, index=jnp.arange(8)), []
    for word, loss in losses.items():
        family, model, params = made(name, loss=word, r1=0.0)
        assert model.spectral == (word == "hinge")
        assert [objective.of for objective in family.objectives][2:] == ["power"] * (word == "hinge")
        for objective, function in zip(family.objectives, (gan.discriminator_loss, gan.generator_loss), strict=False):
            found, wanted = jax.jit(
                lambda p, objective=objective, function=function, loss=loss, model=model: (
                    objective.loss_fn(p, (X0, None), context)[0],
                    function(model, p, KEY, X0, loss=loss, index=context.index)[0],
                )
            )(params)
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
            seen.append(float(found))
    assert len({round(value, 4) for value in seen}) == 6


# --- training ---


@pytest.mark.parametrize("loss", ["relativistic", "hinge"])
@pytest.mark.parametrize("digits", [False, True])
@pytest.mark.parametrize("name", ["gan", "ddgan"])
@pytest.mark.slow
def test_layouts_train_alike_and_go_on_to_the_same_bits(name, digits, loss):
    """jit, pmap and FSDP, by gradient descent: Adam would divide the rounding of a gradient that is 0 by its size."""
    family = family_of(name, width=8, depth=1, latents=3, loss=loss, r2=0.1, every=2)
    whole = family.make(DIGITS if digits else POINTS)
    x0, labels = (part[:8] for part in load_digits()) if digits else (np.asarray(X0), None)
    cond = None if labels is None else np.asarray(labels)
    params = whole.init(KEY, jnp.asarray(x0[:1]), None if cond is None else jnp.asarray(cond[:1]))
    ema, found = make_ema(0.5), []
    objectives = [o if o.of == "power" else o._replace(tx=optax.sgd(0.01)) for o in whole.objectives]
    assert len(objectives) == (3 if loss == "hinge" else 2)
    fresh = lambda: state_from_params(jax.random.key(2), jax.tree.map(jnp.array, params), objectives)
    step = make_train_step(objectives, ema=ema)
    for layout in (
        jit_layout(step, data_mesh(jax.devices()[:1])),
        pmap_layout(make_train_step(objectives, ema=ema, axis_name="data"), jax.devices()[:2]),
        fsdp_layout(step, make_mesh(fsdp=2, devices=jax.devices()[:2]), min_size=16),
    ):
        batch = lambda layout=layout: layout.put_batch((x0, cond))
        state, _ = layout.step(layout.put_state(fresh()), batch())
        saved = jax.tree.map(jnp.array, layout.get_state(state))
        whole, restarted = (layout.get_state(layout.step(s, batch())[0]) for s in (state, layout.put_state(saved)))
        plain = lambda state: state._replace(key=jax.random.key_data(state.key))
        jax.tree.map(np.testing.assert_array_equal, plain(whole), plain(restarted))
        found.append(whole.params)
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[0], other)
    changes = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), found[0], params)
    assert max(jax.tree.leaves(changes)) > 1e-4


# --- refused ---


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("toy2d_gan", ["--family.width", 5], "family.width: an even number is needed, got 5"),
        ("toy2d_gan", ["--family.latents", 0], "family.latents: at least 1, got 0"),
        ("toy2d_gan", ["--family.every", 0], "family.every: at least 1, got 0"),
        ("toy2d_gan", ["--family.updates", 0], "family.updates: at least 1, got 0"),
        (
            "toy2d_gan",
            ["--family.updates", 7, "--layout", "jit"],
            "family.updates: 256 samples cannot be taken in 7 eq",
        ),
        (
            "toy2d_gan",
            ["--family.updates", 7, "--layout", "pmap"],
            "family.updates: 32 samples a device cannot be taken",
        ),
        (
            "toy2d_gan",
            ["--family.updates", 128, "--accumulate", 4, "--layout", "jit"],
            "accumulate: 2 samples, those of each of 128 updates, cannot be taken in 4 equal",
        ),
        (
            "toy2d_gan",
            ["--family.updates", 16, "--accumulate", 4, "--layout", "pmap"],
            "accumulate: 2 samples a device, those of each of 16 updates, cannot be taken in 4 equal",
        ),
        ("toy2d_gan", ["--family.r1", -1], "family.r1: a finite number, not below 0, got -1"),
        ("toy2d_gan", ["--family.gamma-final", 2], "family.gamma_final: a number in [0, 1], got 2"),
        ("toy2d_gan", ["--family.steps", 2], "family.steps: gan has no such number, got 2"),
        ("toy2d_ddgan", ["--family.steps", 9], "family.steps: 1 to 8, got 9"),
        ("toy2d_ddgan", ["--family.beta", 1], "family.beta: ddgan has no such number, got 1.0"),
        ("toy2d_ddgan", ["--process.name", "edm"], "process.name: family ddgan has no use for it, got edm"),
        (
            "digits_gan",
            ["--family.likelihood", "logistic"],
            "family.likelihood: gan has no such option, got logistic; it belongs to vae, hier",
        ),
        (
            "digits_vae",
            ["--family.loss", "hinge"],
            "family.loss: vae has no such option, got hinge; it belongs to gan, dd",
        ),
        ("digits", ["--optimiser.beta2", 1], "optimiser.beta2: a number in [0, 1), got 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(preset, options, message, tmp_path, capfd):
    out = tmp_path / "none"
    said = refused(capfd, "train", preset, "--out", out, *options)
    assert said.startswith(f"diffjax: {message}")
    assert not out.exists()


@pytest.mark.parametrize(
    ("preset", "words"), [("toy2d_gan", "1 network evaluation"), ("toy2d_ddgan", "2 network evaluations")]
)
def test_another_number_of_steps_is_refused_with_that_of_the_run(runs, capfd, preset, words):
    for command in ("sample", "evaluate"):
        said = f"family {preset[6:]} has no such option, as its samples always take {words}; it has temperature\n"
        assert refused(capfd, command, runs(preset), "--steps", 2) == f"diffjax: steps: {said}"


@pytest.mark.parametrize("temperature", [-1.0, 1e39])  # infinite in float32
def test_a_temperature_that_is_none_is_refused(runs, capfd, temperature):
    said = refused(capfd, "sample", runs("toy2d_gan"), "--temperature", temperature)
    assert said == f"diffjax: temperature: a finite number, not below 0, got {temperature}\n"
