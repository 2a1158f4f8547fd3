"""Families: a model of another kind, put into the table, is trained, drawn and measured by the same commands.

The other kind here is probabilistic PCA, x = mean + W z + s eps with z in one dimension, all of it in closed form.
"""

import dataclasses
import json
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, covers, done, refused
from nets import perturbed

import diffjax as dj
from diffjax import config as c
from diffjax.cli import Draw
from diffjax.data import mixture
from diffjax.training import Checkpoints, Family, Objective, check_options, data_mesh

CENTRE = 0.25
"""A parameter that nothing trains."""


def normals(key, index, shape):
    """Normal numbers [b, *shape], those of sample i from its own key."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(index)


def log_density(params, key, x0, cond, *, index=None):
    """N(x; centre + mean, W W^T + s^2 I), by its covariance."""
    weight, scale = params["weight"], jnp.exp(params["log_scale"])
    covariance = weight @ weight.T + scale**2 * jnp.eye(x0.shape[1])
    mean = params["centre"] + params["mean"]
    nats = jax.scipy.stats.multivariate_normal.logpdf(x0, mean, covariance)
    return nats, jnp.zeros_like(nats)


def draw(params, key, index, cond, *, temperature=None):
    z, eps = normals(jax.random.fold_in(key, 0), index, (1,)), normals(jax.random.fold_in(key, 1), index, (2,))
    noise = z @ params["weight"].T + jnp.exp(params["log_scale"]) * eps
    return params["centre"] + params["mean"] + (1.0 if temperature is None else temperature) * noise


def encode(params, key, x0, cond, *, index=None):
    """The posterior mean of z."""
    weight, scale = params["weight"], jnp.exp(params["log_scale"])
    inner = weight.T @ weight + scale**2 * jnp.eye(1)
    return (x0 - params["centre"] - params["mean"]) @ weight @ jnp.linalg.inv(inner)


def decode(params, z, cond):
    return params["centre"] + params["mean"] + z @ params["weight"].T


@dataclasses.dataclass(frozen=True)
class PPCA(c.AbstractFamily):
    """Probabilistic PCA with one latent."""

    def make(self, setting):
        dims = setting.shape[0]
        start = {"mean": jnp.zeros(dims), "weight": jnp.full((dims, 1), 0.1), "log_scale": jnp.zeros(())}

        def loss(params, batch, context):
            return -jnp.mean(log_density(params, context.key, *batch)[0]), {}

        return Family(
            init=lambda key, x0, cond: start | {"centre": jnp.full(dims, CENTRE)},
            objectives=(Objective(loss, setting.tx, ("mean", "weight", "log_scale")),),
            sample=jax.jit(draw),
            options=frozenset({"temperature"}),
            nfe=lambda *, temperature=None: 1,
            log_bound=log_density,
            likelihood_kind="exact",
            encode=encode,
            decode=decode,
        )


@pytest.fixture(scope="module")
def ppca(tmp_path_factory):
    """The table with the other family, and the folder of its run, cut once and continued."""
    folder = tmp_path_factory.mktemp("runs") / "ppca"
    argv = ["train", "toy2d", "--family.name", "ppca", "--steps", "300", "--batch-size", "128", "--ema-decay", "0.9"]
    argv += ["--optimiser.learning-rate", "0.05", "--samples", "64", "--sample-every", "200", "--save-every", "100"]
    argv += ["--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(c.FAMILIES, "ppca", PPCA)
        patch.setitem(c.FamilyConfig.__annotations__, "name", Literal["diffusion", "ppca"])
        from diffjax.cli import main

        assert main(argv) == 0
        yield folder, argv


def held_out(n):
    return mixture()(2**32 + 1, 0, 4000)[0][:n].astype(np.float64)


def test_training_reaches_the_closed_form_and_writes_what_a_run_has(ppca):
    """Tipping & Bishop 1999, eqs. 7 and 8: of isotropic data nothing is left for W."""
    folder, _ = ppca
    names = {"config.json", "data.json", "checkpoints", "metrics.jsonl", "loss.png", "samples.png", "results.json"}
    assert {path.name for path in folder.iterdir()} == names | {"samples", "reconstructions.png", "walk.png"}
    assert json.loads((folder / "config.json").read_text())["family"]["name"] == "ppca"
    config = c.from_json((folder / "config.json").read_text())
    assert (config.network, config.guidance) == (c.NetworkConfig(), c.GuidanceConfig())  # no word of the preset's
    run, params = c.load_run(folder)
    assert run.parts is None
    np.testing.assert_array_equal(params["centre"], np.full(2, CENTRE, np.float32))
    data = mixture()(0, 0, 100_000)[0].astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(data.T))
    best = -0.5 * (2 * np.log(2 * np.pi) + np.sum(np.log(values)) + 2)
    found = log_density(params, None, jnp.asarray(data, jnp.float32), None)[0].mean()
    assert best - 0.02 < found < best + 1e-3


@covers("sample", "temperature")
def test_its_samples_are_its_own_whatever_the_chunk(ppca, tmp_path, capfd):
    folder, _ = ppca
    out = tmp_path / "x.npz"
    said = done(capfd, "sample", folder, "--n", 11, "--chunk", 8, "--seed", 5, "--temperature", 0.5, "--out", out)
    assert "drawing 11 samples" in said
    _, params = c.load_run(folder)
    wanted = draw(params, jax.random.key(5), jnp.arange(11), None, temperature=0.5)
    np.testing.assert_allclose(np.load(out)["x"], wanted, rtol=1e-5, atol=1e-6)
    done(capfd, "sample", folder, "--n", 3)  # a picture, at temperature 1


@covers("evaluate", "temperature")
def test_its_likelihood_is_printed_with_its_kind(ppca, capfd):
    folder, _ = ppca
    said = done(capfd, "evaluate", folder, "--n", 64, "--likelihood", 40, "--temperature", 0)
    found = {}
    for line in said.splitlines():
        name, _, value = line.rpartition("  ")
        if name:
            found[name.strip()] = float(value.replace(",", ""))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), c.load_run(folder)[1])
    covariance = params["weight"] @ params["weight"].T + np.exp(2 * params["log_scale"]) * np.eye(2)
    off = held_out(40) - CENTRE - params["mean"]
    square = np.einsum("bi,ij,bj->b", off, np.linalg.inv(covariance), off)
    nats = -0.5 * (2 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + square) / 2
    name = "log density of held out, nats per dimension of x (exact)"
    assert found[f"{name}: mean"] == pytest.approx(nats.mean(), rel=1e-3)
    assert found[f"{name}: standard error"] == pytest.approx(nats.std(ddof=1) / 40**0.5, rel=1e-3)
    apart = np.abs(held_out(4000) - np.asarray(CENTRE + params["mean"])).mean()  # all samples are the mean
    assert found["sliced Wasserstein distance to held out: samples"] > 0.5 * apart


def test_it_goes_on_where_it_stopped_to_the_same_bits(ppca, capfd):
    folder, argv = ppca
    before = leaves_of(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.rollback(200)
    code, out, _ = call(capfd, *argv)
    assert code == 0
    assert "from step 200, saved before; 7 parameters" in out
    jax.tree.map(np.testing.assert_array_equal, leaves_of(folder), before)


def leaves_of(folder):
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == 300
        return dict(checkpoints.leaves(300, ""))


def test_what_a_family_does_not_have_is_refused_by_name(ppca, toy_run, tmp_path, capfd):
    folder, argv = ppca
    none = "family ppca has no such option; it has temperature\n"
    fixed = "family ppca has no such option, as its samples always take 1 network evaluation; it has temperature\n"
    for option, name in (
        (["--steps", 5], "steps"),
        (["--sampler.name", "ddim"], "sampler.name"),
        (["--guidance", 2], "guidance.scale"),
        (["--autoguidance", toy_run], "autoguidance"),
    ):
        for command in ("sample", "evaluate"):
            assert refused(capfd, command, folder, *option) == f"diffjax: {name}: {fixed if name == 'steps' else none}"
    for option, name in ((["--ts", 1, 0], "ts"), (["--known", "a.npz", "--mask", "b.npz"], "known")):
        assert refused(capfd, "sample", folder, *option) == f"diffjax: {name}: {none}"
    said = refused(capfd, "evaluate", toy_run, "--temperature", 0.5)
    has = "autoguidance, guidance, known, sampler, steps, ts"
    assert said == f"diffjax: temperature: family diffusion has no such option; it has {has}\n"
    other = [*argv[:-1], str(tmp_path / "none")]
    for option, path in ((["--network.width", 5], "network.width"), (["--sampler.steps", 5], "sampler.steps")):
        said = refused(capfd, *other, *option)
        assert said == f"diffjax: {path}: family ppca has no use for it, got 5; leave it out\n"
    assert "family.name" in refused(capfd, *other[:2], "--family.name", "pca", *other[4:])
    said = refused(capfd, "distill", folder, "--out", tmp_path / "none")
    assert f"run: the teacher must be a denoiser, got the family ppca, {folder}" in said
    with pytest.raises(ValueError, match=r"run: .* is of the family ppca, which has no denoiser; take .*load_run"):
        dj.load(folder)
    with pytest.raises(ValueError, match="teacher: family ppca learns from none, got x"):
        c.build_run(c.Config(family=c.FamilyConfig("ppca"), teacher="x"), c.Samples((2,), None))
    assert not (tmp_path / "none").exists()


def test_latents_of_another_family_are_as_it_says(ppca):
    """The mean of z given decode(z) is z shrunk by w^2/(w^2 + s^2)."""
    run, params = c.load_run(ppca[0])
    z = jnp.array([[1.0], [-2.0]])
    w, s = float(np.sum(np.square(params["weight"]))), float(np.exp(2 * params["log_scale"]))
    found = run.family.encode(params, None, run.family.decode(params, z, None), None)
    np.testing.assert_allclose(found, z * w / (w + s), rtol=1e-4)


def test_an_option_that_a_family_does_not_name():
    family = Family(None, (), None, frozenset({"steps", "sampler"}))
    check_options("toy", family, ["steps", "sampler.eta"])
    with pytest.raises(ValueError, match=r"^guidance\.scale: family toy has no such option; it has sampler, steps$"):
        check_options("toy", family, ["steps", "guidance.scale"])
    for steps, words in ((1, "1 network evaluation"), (4, "4 network evaluations")):
        whole = f"^steps: family gan has no such option, as its samples always take {words}; it has none$"
        with pytest.raises(ValueError, match=whole):
            check_options("gan", Family(None, (), None, nfe=lambda steps=steps: steps), ["steps"])


def test_chunks_cover_each_index_once_over_the_devices():
    """Sample i sees index i and its own label, whatever else is in its chunk; a surplus is cut off."""
    seen = []

    def sample(params, key, index, cond):
        seen.append((len(index), index.sharding.num_devices))
        return jnp.stack([index, cond], axis=1).astype(jnp.float32)

    family, mesh = Family(None, (), sample), data_mesh(jax.devices()[:4])
    for n, chunk, sizes in ((3, 256, [4]), (20, 8, [8, 8, 8]), (21, 20, [12, 12]), (5, 1, [4, 4])):
        seen.clear()
        x = Draw(family, {}, chunk=chunk, mesh=mesh)(n, 10 * np.arange(n, dtype=np.int32), 0, silent=True)
        np.testing.assert_array_equal(x, np.stack([np.arange(n), 10 * np.arange(n)], axis=1))
        assert seen == [(size, 4) for size in sizes]


SMALL = c.Config(
    data=c.DataConfig("mixture"),
    network=c.NetworkConfig("mlp", width=8, depth=1),
    guidance=c.GuidanceConfig(scale=2.5),
    sampler=c.SamplerConfig("ddim", steps=3, eta=0.7),
)


@pytest.fixture(scope="module")
def diffusion():
    """The family of a diffusion, its params, its denoiser for labels of four samples, and these."""
    run, labels = c.build_run(SMALL, c.Samples((2,), 3)), jnp.arange(4) % 3
    params = perturbed(run.family.init(jax.random.key(0), jnp.zeros((1, 2)), labels[:1]), size=0.5)
    return run.family, params, dj.make_denoiser(run.parts.diffusion, params, labels), labels


def test_samples_of_a_diffusion_are_the_librarys_whatever_the_index(diffusion):
    family, params, denoiser, labels = diffusion
    key, ts = jax.random.key(3), dj.logsnr_grid(dj.Cosine(), 3)
    guided = dj.classifier_free(denoiser, 3, 2.5)
    by_hand = dj.sample_n(key, dj.Cosine(), guided, (2,), 4, ts=ts, stepper=dj.DDIM(eta=0.7))
    whole = family.sample(params, key, jnp.arange(4), labels)
    np.testing.assert_array_equal(whole, by_hand)
    some = family.sample(params, key, jnp.array([3, 1]), labels[jnp.array([3, 1])])
    np.testing.assert_allclose(some, whole[jnp.array([3, 1])], rtol=1e-5, atol=1e-6)
    jitted = jax.jit(lambda params: family.sample(params, key, jnp.arange(4), labels))(params)
    np.testing.assert_allclose(jitted, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_likelihood_and_latents_of_a_diffusion_are_those_of_its_flow(diffusion):
    """Without guidance, which its samples have."""
    family, params, denoiser, labels = diffusion
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    t, key = jnp.asarray(0.4), jax.random.key(3)
    np.testing.assert_array_equal(family.denoiser(params, labels)(x0, t), denoiser(x0, t))
    assert family.likelihood_kind == "flow"
    nats, error = family.log_bound(params, key, x0, labels)
    wanted = dj.log_likelihood(key, dj.Cosine(), denoiser, x0, controller=dj.likelihood.adaptive(1e-3)).nats
    np.testing.assert_allclose(nats, wanted, rtol=1e-5)
    np.testing.assert_array_equal(error, np.zeros(4))
    z = family.encode(params, key, x0, labels)
    np.testing.assert_allclose(z, dj.likelihood.flow_encode(dj.Cosine(), denoiser, x0).latent, rtol=1e-5)
    np.testing.assert_allclose(family.decode(params, z, labels), x0, atol=5e-3)


def test_evaluations_of_a_diffusion_are_counted_and_what_does_not_fit_is_refused():
    nfe = c.build_run(SMALL, c.Samples((2,), 3)).family.nfe
    plain = c.build_run(dataclasses.replace(SMALL, guidance=c.GuidanceConfig(scale=1.0)), c.Samples((2,), None)).family
    heun = c.OtherSampler(name="heun")
    assert (nfe(), nfe(steps=5), nfe(guidance=c.OtherGuidance(scale=1.0))) == (2 * 4, 2 * 6, 4)
    assert (nfe(sampler=heun), plain.nfe(sampler=heun, steps=2)) == (2 * 7, 5)
    assert (plain.nfe(), plain.nfe(autoguidance=lambda cond: None), plain.nfe(ts=np.array([0.9, 0.1]))) == (4, 8, 2)
    known = c.Inpainting(jnp.array([True, False]), jnp.zeros((1, 2)), 4)
    assert plain.nfe(known=known) == 3 * 4 + 1
    with pytest.raises(ValueError, match=r"guidance.scale: this run knows no classes, got 2.0"):
        plain.nfe(guidance=c.OtherGuidance(scale=2.0))
    with pytest.raises(ValueError, match=r"sampler.steps: at least 1, got 0"):
        plain.nfe(steps=0)


def test_a_flow_map_of_one_time_has_no_likelihood_and_jumps():
    maps = {
        name: c.build_run(
            c.with_loss_defaults(c.Config(network=SMALL.network, loss=c.LossConfig(name)), ()),
            c.Samples((2,), None),
        ).family
        for name in ("consistency", "mean_flow")
    }
    assert [family.log_bound is None for family in maps.values()] == [True, False]
    assert maps["consistency"].likelihood_kind is maps["consistency"].encode is maps["consistency"].decode is None
    with pytest.raises(ValueError, match="sampler: consistency is not sampled by jump on 3 steps of angle"):
        maps["consistency"].nfe(steps=3, sampler=c.OtherSampler(gamma=0.0))
    with pytest.raises(ValueError, match="guidance: this run is a flow map, which has its guidance built in"):
        maps["mean_flow"].nfe(guidance=c.OtherGuidance(scale=2.0))
