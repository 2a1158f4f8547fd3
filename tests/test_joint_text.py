"""A text encoder that is trained with the network: the frozen one's answers, its own gradients, and whole runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, done, refused
from hosts_worker import text_run, text_source

import diffjax as dj
from diffjax import config as c
from diffjax.config._build import _scaled
from diffjax.config._run import begin_from_encoder, fresh_state
from diffjax.config._text_encoder import TEXTS
from diffjax.data import shapes
from diffjax.losses import drop_condition
from diffjax.networks import MLP, Cascade, T5Encoder, Text, UNet, init_t5, normalise_weights, with_text_encoder
from diffjax.training import (
    Checkpoints,
    data_mesh,
    fsdp_layout,
    jit_layout,
    make_ema,
    make_train_step,
    pmap_layout,
    train,
)

KEY = jax.random.key(0)
TINY = T5Encoder(vocabulary=20, width=8, depth=1, heads=2, head_channels=4, hidden=8)
RNG = np.random.default_rng(0)
IDS = RNG.integers(3, 20, (3, 5)).astype(np.int32)
MASK = np.arange(5) < np.array([5, 2, 0])[:, None]
COND = Text(IDS, MASK)
C_NOISE = jnp.array([-1.0, 0.0, 1.0])


def nudged(params):
    """Parameters whose zeros are none, so that each shows in the answer."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    )


NETWORKS = {
    "mlp": (dj.from_linen(MLP(width=8, depth=1, text_width=8)), jax.random.normal(KEY, (3, 4)), COND),
    "unet": (
        dj.from_linen(UNet((8,), attention=(0,), head_channels=4, text_width=8, num_classes=3)),
        jax.random.normal(KEY, (3, 4, 4, 1)),
        Cascade(text=COND, label=np.arange(3, dtype=np.int32)),
    ),
}


def frozen(params, cond):
    """The condition with embeddings, as a frozen encoder makes it."""
    text = cond.text if isinstance(cond, Cascade) else cond
    embedding = TINY.apply({"params": params["text_encoder"]}, jnp.asarray(text.embedding), jnp.asarray(text.mask))
    text = Text(jnp.where(text.mask[..., None], embedding, 0), text.mask)
    return cond._replace(text=text) if isinstance(cond, Cascade) else text


def with_text(cond, text):
    return cond._replace(text=text) if isinstance(cond, Cascade) else text


@pytest.mark.parametrize("name", ["mlp", pytest.param("unet", marks=pytest.mark.slow)])
def test_a_network_with_its_encoder_is_the_network_of_its_embeddings(name):
    network, x, cond = NETWORKS[name]
    joint = with_text_encoder(network, TINY)
    assert joint == with_text_encoder(network, TINY.clone())
    assert hash(joint) == hash(with_text_encoder(network, TINY.clone()))
    assert joint != with_text_encoder(network, TINY.clone(hidden=9))
    params = joint.init(KEY, x, C_NOISE, cond)
    same = network.init(KEY, x, C_NOISE, frozen(params, cond))
    jax.tree.map(np.testing.assert_array_equal, params["denoiser"], same)
    assert jax.tree.structure(params["text_encoder"]) == jax.tree.structure(init_t5(KEY, TINY))
    params = nudged(params)
    apply = jax.jit(joint.apply)
    got = apply(params, x, C_NOISE, cond)
    np.testing.assert_allclose(got, network.apply(params["denoiser"], x, C_NOISE, frozen(params, cond)), atol=1e-5)
    # Ids at padding and more padding change nothing; a text without tokens is the null condition.
    other = np.where(MASK, IDS, RNG.integers(0, 20, IDS.shape).astype(np.int32))
    np.testing.assert_allclose(apply(params, x, C_NOISE, with_text(cond, Text(other, MASK))), got, atol=1e-6)
    longer = Text(np.pad(IDS, ((0, 0), (0, 3))), np.pad(MASK, ((0, 0), (0, 3))))
    np.testing.assert_allclose(apply(params, x, C_NOISE, with_text(cond, longer)), got, atol=1e-5)
    null = with_text(cond, Text(0.0, False))
    dropped = drop_condition(KEY, cond, null, 1.0)
    without = apply(params, x, C_NOISE, dropped)
    np.testing.assert_allclose(without[2], got[2], atol=1e-6)
    assert np.abs(without - got)[:2].max(axis=tuple(range(1, x.ndim))).min() > 1e-3
    # A permutation of the samples permutes the answers; one of the tokens of a text does not.
    rows = np.array([2, 0, 1])
    turned = apply(params, x[rows], C_NOISE[rows], jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], cond))
    np.testing.assert_allclose(turned, got[rows], atol=1e-6)
    assert np.abs(apply(params, x, C_NOISE, with_text(cond, Text(IDS[:, ::-1], MASK))) - got)[0].max() > 1e-3


def test_gradients_reach_each_weight_of_the_encoder_and_are_finite_without_tokens():
    network, x, cond = NETWORKS["mlp"]
    joint = with_text_encoder(network, TINY)
    params = nudged(joint.init(KEY, x, C_NOISE, cond))
    loss = lambda params, cond: jnp.mean(jnp.sin(joint.apply(params, x, C_NOISE, cond)))
    slope = jax.jit(jax.grad(loss))
    found = slope(params, cond)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    # By finite differences along a direction in the encoder alone.
    ahead = lambda h: (
        params | {"text_encoder": jax.tree.map(lambda p, g: p + h * g, params["text_encoder"], found["text_encoder"])}
    )
    slopes = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(found["text_encoder"]))
    h = 1e-2 / slopes**0.5
    np.testing.assert_allclose(loss(ahead(h), cond) - loss(ahead(-h), cond), 2 * h * slopes, rtol=1e-2)
    nothing = slope(params, Text(IDS, np.zeros_like(MASK)))
    for leaf in jax.tree.leaves(nothing["text_encoder"]):
        np.testing.assert_array_equal(leaf, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nothing))


def test_dropout_of_the_encoder_is_for_training():
    network, x, cond = NETWORKS["mlp"]
    joint = with_text_encoder(network, TINY.clone(dropout=0.5))
    params = nudged(joint.init(KEY, x, C_NOISE, cond))
    plain = with_text_encoder(network, TINY).apply(params, x, C_NOISE, cond)
    np.testing.assert_array_equal(joint.apply(params, x, C_NOISE, cond), plain)
    trained = [joint.apply(params, x, C_NOISE, cond, key=jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(trained[0], trained[1])
    assert np.abs(trained[0] - trained[2])[0].max() > 1e-3
    assert np.abs(trained[0] - plain)[0].max() > 1e-3


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (None, r"cond: a Text\(ids \[b, n\], mask \[b, n\]\) is needed, got NoneType"),
        (Cascade(label=np.arange(3)), r"cond: a Text.* got NoneType"),
        (
            Text(np.zeros((3, 5, 8), np.float32), MASK),
            r"cond: .* takes ids \[b, n\], integers, got float32 \(3, 5, 8\)",
        ),
        (Text(IDS.astype(np.float32), MASK), r"cond: .* integers, got float32 \(3, 5\)"),
        (Text(IDS, MASK[:, :4]), r"cond: mask is a boolean array \(3, 5\), got bool \(3, 4\)"),
        (Text(IDS, MASK.astype(int)), r"cond: mask is a boolean array \(3, 5\), got int"),
    ],
)
def test_what_is_no_text_of_ids_is_named(cond, message):
    network, x, good = NETWORKS["mlp"]
    joint = with_text_encoder(network, TINY)
    params = joint.init(KEY, x, C_NOISE, good)
    for act in (lambda: joint.apply(params, x, C_NOISE, cond), lambda: joint.init(KEY, x, C_NOISE, cond)):
        with pytest.raises(ValueError, match=message):
            act()


def test_parameters_without_a_part_are_refused_by_its_name():
    network, x, cond = NETWORKS["mlp"]
    joint = with_text_encoder(network, TINY)
    params = joint.init(KEY, x, C_NOISE, cond)
    for part, other in (("text_encoder", "denoiser"), ("denoiser", "text_encoder")):
        words = f"params: '{part}' is needed, as init of the network with a text encoder makes it, got {other}$"
        with pytest.raises(ValueError, match=words):
            joint.apply({other: params[other]}, x, C_NOISE, cond)


# --- the whitening as a layer ---


def test_a_whitened_encoder_takes_the_mean_from_its_features_and_multiplies_by_the_matrix():
    white = TINY.clone(whitened=True)
    params = nudged(init_t5(KEY, white))
    assert {name: leaf.shape for name, leaf in params["whitening"].items()} == {"mean": (8,), "matrix": (8, 8)}
    ids, mask = jnp.asarray(IDS), jnp.asarray(MASK)
    plain = {name: part for name, part in params.items() if name != "whitening"}
    for dtype in (jnp.float32, jnp.bfloat16):  # computed in float32 after an encoder in half precision, too
        h = np.asarray(TINY.clone(dtype=dtype).apply({"params": plain}, ids, mask))
        got = white.clone(dtype=dtype).apply({"params": params}, ids, mask)
        assert got.dtype == jnp.float32
        want = (h - np.asarray(params["whitening"]["mean"])) @ np.asarray(params["whitening"]["matrix"])
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    joint = with_text_encoder(NETWORKS["mlp"][0], white)
    network = nudged(joint.init(KEY, NETWORKS["mlp"][1], C_NOISE, COND))
    loss = lambda params: jnp.mean(jnp.sin(joint.apply(params, NETWORKS["mlp"][1], C_NOISE, COND)))
    slope = jax.jit(jax.grad(loss))(network)["text_encoder"]["whitening"]
    assert all(np.abs(leaf).max() > 0 for leaf in slope.values())


def test_a_whitening_that_is_left_out_or_missing_is_refused():
    white = TINY.clone(whitened=True)
    there, none = ({"params": init_t5(KEY, module)} for module in (white, TINY))
    with pytest.raises(ValueError, match=r"params: a whitening is there, .* use module\.clone\(whitened=True\)"):
        TINY.apply(there, jnp.asarray(IDS))
    with pytest.raises(ValueError, match=r"params: there is no whitening, .* use module\.clone\(whitened=False\)"):
        white.apply(none, jnp.asarray(IDS))


def test_what_is_no_network_or_encoder_is_named():
    with pytest.raises(ValueError, match=r"network: a Network .* is needed, got MLP"):
        with_text_encoder(MLP(), TINY)
    with pytest.raises(ValueError, match="encoder: a T5Encoder is needed, got MLP"):
        with_text_encoder(NETWORKS["mlp"][0], MLP())


# --- runs, by the library ---

SAMPLES = c.Samples((4,), None, text=(5, 8), encoder="a", trained_encoder=TINY)
NETWORK = c.NetworkConfig("mlp", width=8, depth=1)


def test_a_run_with_its_encoder_is_recorded_and_refuses_embeddings(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(SAMPLES.record()))
    assert c.read_samples(tmp_path) == SAMPLES
    for bad in ({"trained_encoder": {}}, {"trained_encoder": 3}, {"trained_encoder": {"d_model": 9}}, {"text": [5, 9]}):
        (tmp_path / "data.json").write_text(json.dumps(SAMPLES.record() | bad))
        with pytest.raises(ValueError, match=r"data\.json does not describe the samples"):
            c.read_samples(tmp_path)
    # With a whitening, too; one that is lost would leave it out without a word.
    for trained in (SAMPLES.trained_encoder, SAMPLES.trained_encoder.clone(whitened=True)):
        samples = SAMPLES._replace(trained_encoder=trained)
        (tmp_path / "data.json").write_text(json.dumps(samples.record()))
        assert c.read_samples(tmp_path) == samples
    record = SAMPLES.record()
    before = {name: value for name, value in record["trained_encoder"].items() if name != "whitened"}
    for odd in ({}, *({"whitened": value} for value in (None, 1, 0.0, "true", []))):
        (tmp_path / "data.json").write_text(json.dumps(record | {"trained_encoder": before | odd}))
        with pytest.raises(ValueError, match=r"data\.json does not describe the samples"):
            c.read_samples(tmp_path)
    assert SAMPLES.null == Text(0.0, False)
    _, example = SAMPLES.example()
    assert (example.embedding.shape, example.embedding.dtype) == ((1, 5), jnp.int32)
    cond = SAMPLES.condition(COND)
    np.testing.assert_array_equal(cond.embedding, IDS)
    for given, message in (
        (
            Text(np.zeros((3, 5, 8), np.float32), MASK),
            r"cond: ids \[b, n\] are needed, .*\.ids\(texts\)\), for the enc",
        ),
        ([1], r"cond: a Text is needed, of Text\(\*load_text_encoder\(FOLDER\)\.ids\(texts\)\), got list"),
        (Text(IDS + 18, MASK), r"cond: ids from 0 to 19 are needed, of Text\(\*load_text_encoder"),
        (Text(IDS - 4, MASK), r"cond: ids from 0 to 19 are needed, of Text\(\*load_text_encoder"),
        (Text(IDS, MASK[:2]), r"cond: mask \[b, n\] of booleans is needed, got bool\(2, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            SAMPLES.condition(given)


def trained_for(config, samples, cond, encoder, steps=3):
    """(state after so many updates, losses) of a run on one batch, on one device."""
    run = c.build_run(config, samples)
    assert run.parts is not None
    step = make_train_step(run.parts.training_objective(), ema=make_ema(0.5))
    layout, state = jit_layout(step, data_mesh(jax.devices()[:1])), fresh_state(run)
    if encoder is not None:
        state = state._replace(params=state.params | {"text_encoder": encoder})
    state, losses = layout.put_state(state), []
    for i in range(steps):
        x0 = np.random.default_rng(i).normal(size=(3, 4)).astype(np.float32)
        state, metrics = layout.step(state, layout.put_batch((x0, cond)))
        losses.append(float(metrics["loss"]))
    return jax.device_get(layout.get_state(state)._replace(key=None)), losses


def test_updates_of_the_encoder_alone_are_scaled():
    updates = {"network": {"text_encoder": {"a": jnp.ones(2)}, "denoiser": jnp.ones(3)}, "process": jnp.ones(1)}
    tx = _scaled("text_encoder", 0.25)
    got, _ = tx.update(updates, tx.init(updates))
    want = {"network": {"text_encoder": {"a": jnp.full(2, 0.25)}, "denoiser": jnp.ones(3)}, "process": jnp.ones(1)}
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.slow
def test_an_encoder_whose_learning_rate_is_0_is_the_frozen_one():
    """The same losses and the same network, update for update; with a rate the encoder moves, and its average."""
    encoder = init_t5(jax.random.key(5), TINY)
    optimiser = c.OptimiserConfig(0.02, warmup=0, clip=1e9)
    config = c.Config(network=NETWORK, optimiser=optimiser, guidance=c.GuidanceConfig(dropout=0.3))
    fixed, losses = trained_for(
        config, SAMPLES._replace(trained_encoder=None), frozen({"text_encoder": encoder}, COND), None
    )
    still = c.Config(network=NETWORK, optimiser=c.OptimiserConfig(0.02, warmup=0, clip=1e9, text_rate=0.0))
    still = c.Config(**vars(still) | {"guidance": config.guidance})
    state, same = trained_for(still, SAMPLES, COND, encoder)
    np.testing.assert_allclose(same, losses, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state.params["text_encoder"], jax.device_get(encoder))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
    jax.tree.map(close, state.params["denoiser"], fixed.params)
    jax.tree.map(close, state.ema["denoiser"], fixed.ema)
    moved, others = trained_for(config, SAMPLES, COND, encoder)
    np.testing.assert_allclose(others[0], losses[0], rtol=1e-5)
    distance = lambda tree: max(map(lambda a, b: np.abs(a - b).max(), jax.tree.leaves(tree), jax.tree.leaves(encoder)))
    assert distance(moved.params["text_encoder"]) > 0.005
    assert distance(moved.ema["text_encoder"]) > 0.002
    half = c.Config(**vars(config) | {"optimiser": c.OptimiserConfig(0.02, warmup=0, clip=1e9, text_rate=0.5)})
    slow, _ = trained_for(half, SAMPLES, COND, encoder, steps=1)
    fast, _ = trained_for(config, SAMPLES, COND, encoder, steps=1)
    step = lambda state: jax.tree.map(lambda a, b: a - b, state.params["text_encoder"], jax.device_get(encoder))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, atol=1e-6), step(slow), step(fast))


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize("joint", [False, True], ids=["frozen", "joint"])
def test_texts_are_trained_on_alike_in_every_layout_and_a_cut_run_resumes_bitwise(joint, tmp_path):
    """Embeddings of a frozen encoder, or ids of one that is trained: on one device, on eight by jit, pmap and fsdp."""
    run, source = text_run(joint), text_source(joint)
    assert run.parts is not None
    make = lambda **more: make_train_step(run.parts.training_objective(), ema=make_ema(0.5), **more)
    layouts = {
        "one": jit_layout(make(), data_mesh(jax.devices()[:1])),
        "jit": jit_layout(make()),
        "fsdp": fsdp_layout(make(), min_size=16),
        "pmap": pmap_layout(make(axis_name="data")),
    }
    options = {"batch_size": 16, "seed": 3, "progress": False}
    found = {}
    for name, layout in layouts.items():
        with Checkpoints(tmp_path / name) as checkpoints:
            more = {"checkpoints": checkpoints, "save_every": 2, "log": tmp_path / f"{name}.jsonl", "log_every": 1}
            found[name] = train(fresh_state(run), layout, source, steps=4, **options, **more)
            checkpoints.rollback(2)
            state = checkpoints.restore(fresh_state(run))
            again = train(state, layout, source, steps=4, **options)
        jax.tree.map(np.testing.assert_array_equal, again._replace(key=None), found[name]._replace(key=None))
        lines = [json.loads(line)["loss"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        found[name] = lines, jax.device_get(found[name].params)
    for name in ("jit", "fsdp", "pmap"):
        np.testing.assert_allclose(found[name][0], found["one"][0], rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found[name][1], found["one"][1])


def test_options_of_an_encoder_that_is_not_trained_are_refused():
    run = lambda samples, **optimiser: c.build_run(
        c.Config(network=NETWORK, optimiser=c.OptimiserConfig(**optimiser)), samples
    )
    for samples in (SAMPLES._replace(trained_encoder=None), c.Samples((4,), None)):
        with pytest.raises(ValueError, match=r"optimiser\.text_rate: no text encoder is trained, got 0\.5"):
            run(samples, text_rate=0.5)
    with pytest.raises(ValueError, match=r"optimiser\.text_rate: a finite number, not below 0, got -1"):
        run(SAMPLES, text_rate=-1.0)
    with pytest.raises(ValueError, match=r"data\.text_encoder: joint starts with the encoder of --data\.text"):
        c.build_data(c.DataConfig("shapes", text_encoder="joint"))


# --- runs, by the command line ---

SMALL = ["--network.name", "mlp", "--network.width", "16", "--network.depth", "1", "--batch-size", "16", "--steps", "8"]
SMALL += ["--sampler.steps", "3", "--samples", "16", "--optimiser.learning-rate", "0.02"]
SCENES = ["train", "shapes", *SMALL, "--data.size", "6", "--data.objects", "1"]


@pytest.fixture(name="texts", scope="module")
def _texts(tmp_path_factory):
    pytest.importorskip("tokenizers")
    folder, prompts = tmp_path_factory.mktemp("text") / "texts", shapes("all", objects=1).texts
    encoder = c.make_text_encoder(folder, prompts, size="tiny")
    encoder.encode(prompts).save(folder / TEXTS)
    return folder


def test_data_of_a_joint_run_are_the_ids_of_their_captions(texts, tmp_path):
    encoder = c.load_text_encoder(texts)
    options = {"size": 6, "objects": 1, "text": str(texts)}
    data = c.build_data(c.DataConfig("shapes", text_encoder="joint", **options))
    plain = c.build_data(c.DataConfig("shapes", **options))
    assert data.samples.trained_encoder == encoder.module
    assert data.samples._replace(trained_encoder=None) == plain.samples
    (x0, cond), (same, embedded) = data.source(0, 0, 8), plain.source(0, 0, 8)
    np.testing.assert_array_equal(x0, same)
    np.testing.assert_array_equal(cond.mask, embedded.mask)
    again = shapes(size=6, objects=1, holdout=0.2)
    ids, _ = encoder.ids(again.captions(again.draw(0, 0, 8).factors))
    np.testing.assert_array_equal(cond.embedding, ids)
    white = c.make_text_encoder(tmp_path / "white", again.texts, size="tiny", whiten=True)
    white.encode(again.texts).save(tmp_path / "white" / TEXTS)
    # Whitened features stay so: their whitening is a layer of the encoder that is trained.
    config = c.DataConfig("shapes", text_encoder="joint", **options | {"text": str(tmp_path / "white")})
    samples = c.build_data(config).samples
    assert samples.trained_encoder == encoder.module.clone(whitened=True)
    run = c.build_run(c.Config(network=NETWORK, data=config), samples)
    params = begin_from_encoder(run, fresh_state(run)).params
    given = ["a red circle in the middle", ""]
    found = frozen_by(samples.trained_encoder, params, Text(*white.ids(given)))
    np.testing.assert_allclose(found.embedding, white(given).embedding.astype(np.float32), rtol=2**-7, atol=1e-3)
    # A run begins with the encoder of the folder, which must be the one that the data were read with.
    run = c.build_run(
        c.Config(network=NETWORK, data=c.DataConfig("shapes", text_encoder="joint", **options)), data.samples
    )
    state = begin_from_encoder(run, fresh_state(run))
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, tree["text_encoder"], jax.tree.map(jnp.asarray, encoder.params))
    table = encoder.encode(["a red circle in the middle"])
    other = c.make_text_encoder(tmp_path / "other", table.texts, size="tiny", seed=2)
    table.save(tmp_path / "other" / TEXTS)
    with pytest.raises(ValueError, match=r"data\.text: .*texts\.npz is of another encoder than that of"):
        c.build_data(c.DataConfig("shapes", text_encoder="joint", **options | {"text": str(tmp_path / "other")}))
    changed = run._replace(samples=run.samples._replace(encoder=other.fingerprint))
    with pytest.raises(ValueError, match=r"data\.text: .* holds another encoder than before"):
        begin_from_encoder(changed, fresh_state(changed))


TRAINED = {
    "mlp": ((4,), {"network": NETWORK}),
    "whitened": ((4,), {"network": NETWORK}),
    "learned": (
        (4,),
        {"network": NETWORK, "process": c.ProcessConfig("learned_logsnr"), "loss": c.LossConfig("continuous_elbo")},
    ),
    "edm2": (
        (4, 4, 1),
        {"network": c.NetworkConfig("edm2", channels=(8,), blocks=1, attention=(0,), head_channels=8)},
    ),
}


@pytest.mark.parametrize(
    "name", ["learned", "whitened", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mlp", "edm2"))]
)
def test_the_encoder_that_a_run_trained_is_given_back(name, texts, tmp_path):
    """Of a run whose averaged encoder is another than that of the folder it began from."""
    shape, options = TRAINED[name]
    out, folder = tmp_path / "run", tmp_path / "given"
    if name == "whitened":
        captions, texts = shapes("all", objects=1).texts, tmp_path / "white"
        c.make_text_encoder(texts, captions, size="tiny", whiten=True)
    encoder = c.load_text_encoder(texts)
    module = encoder.module.clone(whitened=name == "whitened")
    samples = c.Samples(shape, None, text=encoder.shape, encoder=encoder.fingerprint, trained_encoder=module)
    data = c.DataConfig("shapes", text=str(texts), text_encoder="joint")
    config = c.Config(data=data, **options)
    state = fresh_state(c.build_run(config, samples))
    network = state.ema["network"] if name == "learned" else state.ema
    out.mkdir()
    (out / "config.json").write_text(c.to_json(config))
    (out / "data.json").write_text(json.dumps(samples.record()))
    with Checkpoints(out / "checkpoints") as checkpoints:
        checkpoints.save(0, state)
    found = c.trained_text_encoder(out)
    assert found.trainable()[0] == module
    jax.tree.map(np.testing.assert_array_equal, found.trainable()[1], network["text_encoder"])
    assert found.fingerprint != encoder.fingerprint
    stored = c.store_text_encoder(folder, found)
    again = c.load_text_encoder(folder)
    assert again.fingerprint == stored.fingerprint == found.fingerprint
    given = ["a red circle in the middle", ""]
    want = frozen_by(module, network, Text(*encoder.ids(given)))
    np.testing.assert_allclose(again(given).embedding.astype(np.float32), want.embedding, rtol=2**-6, atol=1e-2)
    np.testing.assert_array_equal(again.ids(given)[0], encoder.ids(given)[0])
    assert c.store_text_encoder(folder, found).tokenizer == folder / "tokenizer.json"
    longer = c.trained_text_encoder(out, texts=texts, length=12, dtype="float32")
    assert (longer.length, longer.dtype) == (12, "float32")
    with pytest.raises(ValueError, match=r"encoder: .*given holds the encoder \w{12}, not \w{12}; name another folder"):
        c.store_text_encoder(folder, longer)
    with pytest.raises(ValueError, match=r"texts: .*run began from the encoder \w{12}, and .*given holds \w{12}"):
        c.trained_text_encoder(out, texts=folder)
    with pytest.raises(ValueError, match=r"texts: the encoder that .*run began from is needed for its tokenizer, but"):
        c.trained_text_encoder(out, texts=tmp_path)
    (out / "data.json").write_text(json.dumps(samples._replace(trained_encoder=None).record()))
    with pytest.raises(
        ValueError, match=r"run: .*run trained no text encoder; name a run of --data\.text-encoder joint"
    ):
        c.trained_text_encoder(out)


@pytest.mark.slow
def test_a_normalised_network_and_a_learned_process_are_trained_with_an_encoder(tmp_path):
    """EDM2's kernels are normalised after each update, the encoder's weights are not; a cut run resumes bitwise."""
    shape, options = TRAINED["edm2"]
    config = c.Config(**TRAINED["learned"][1] | options, optimiser=c.OptimiserConfig(learning_rate=0.05, warmup=0))
    run = c.build_run(config, SAMPLES._replace(shape=shape))
    objective = make_train_step(run.parts.training_objective(), ema=make_ema(0.5))
    layout, begin = jit_layout(objective, data_mesh(jax.devices()[:1])), fresh_state(run)
    x0 = np.random.default_rng(0).normal(size=(4, 3, *shape)).astype(np.float32)

    def advance(state, steps, save=lambda step, state: None):
        state = layout.put_state(state)
        for step in steps:
            save(step, state)
            state, _ = layout.step(state, layout.put_batch((x0[step], COND)))
        return jax.device_get(layout.get_state(state)._replace(key=None))

    with Checkpoints(tmp_path) as checkpoints:
        whole = advance(begin, range(4), lambda step, state: step == 2 and checkpoints.save(2, layout.get_state(state)))
        cut = advance(checkpoints.restore(fresh_state(run)), range(2, 4))
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
    network, first = whole.params["network"], fresh_state(run).params["network"]
    same = normalise_weights(network["denoiser"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), network["denoiser"], same)
    assert changed_most(network["text_encoder"], first["text_encoder"]) > 1e-2
    assert changed_most(network["text_encoder"], normalise_weights(network["text_encoder"])) > 1e-2
    assert changed_most(whole.params["process"], fresh_state(run).params["process"]) > 1e-3


def changed_most(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), a, b)))


@pytest.mark.slow
def test_a_run_with_its_encoder_is_cut_resumed_sampled_and_distilled(texts, tmp_path, capfd):
    line = [*SCENES, "--data.text", texts, "--data.text-encoder", "joint", "--guidance.dropout", "0.2"]
    assert call(capfd, *line, "--out", tmp_path / "whole", "--save-every", "3")[0] == 0
    whole = dj.load(tmp_path / "whole")
    with Checkpoints(tmp_path / "whole" / "checkpoints") as checkpoints:
        checkpoints.rollback(6)
    assert "from step 6, saved before" in call(capfd, *line, "--out", tmp_path / "whole")[1]
    jax.tree.map(np.testing.assert_array_equal, whole.params, dj.load(tmp_path / "whole").params)
    encoder = c.load_text_encoder(texts)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), whole.params["text_encoder"], encoder.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    prompts, out = ["a red circle in the middle", "a blue square in the middle"], tmp_path / "x.npz"
    done(capfd, "sample", tmp_path / "whole", "--text", *prompts, "--n", 4, "--guidance", "2", "--out", out)
    run, params = c.load_run(tmp_path / "whole")
    named = Text(*encoder.ids([prompts[0], prompts[0], prompts[1], prompts[1]]))
    draw = lambda cond: run.family.sample(params, KEY, jnp.arange(4), cond, guidance=c.OtherGuidance(scale=2.0))
    np.testing.assert_allclose(np.load(out)["x"], draw(named), atol=2e-5)
    # The denoiser, and a student that begins with all of its teacher.
    xt = jax.random.normal(KEY, (4, 6, 6, 3))
    embedded = frozen_by(encoder.module, whole.params, named)
    inner = c.build_network(whole_config(tmp_path / "whole").network, None, text_width=encoder.module.width)
    diffusion = dj.Diffusion(inner, whole.process, whole.diffusion.parameterisation)
    want = dj.make_denoiser(diffusion, whole.params["denoiser"], embedded)(xt, 0.5)
    np.testing.assert_allclose(whole.denoiser(named)(xt, 0.5), want, atol=1e-5)
    distill = ["distill", tmp_path / "whole", "--loss.name", "consistency", "--steps", "1", "--updates", "5"]
    assert call(capfd, *distill, "--out", tmp_path / "student")[0] == 0
    done(capfd, "sample", tmp_path / "student", "--text", *prompts, "--n", 4, "--out", tmp_path / "x.png")
    # Its encoder is given back to a folder, for prompts and for another run.
    given = tmp_path / "given"
    encode = ["encode-text", tmp_path / "prompts.txt", "--out", given, "--encoder", tmp_path / "whole"]
    (tmp_path / "prompts.txt").write_text("\n".join(shapes("all", objects=1).texts))
    assert "captions were new" in done(capfd, *encode)
    back = c.load_text_encoder(given)
    jax.tree.map(np.testing.assert_array_equal, back.params, whole.params["text_encoder"])
    assert (back.length, back.dtype) == (encoder.length, encoder.dtype)
    want = frozen_by(encoder.module, whole.params, named)
    np.testing.assert_array_equal(back([prompts[0], prompts[0], prompts[1], prompts[1]]).mask, want.mask)
    np.testing.assert_allclose(
        back([prompts[0], prompts[0], prompts[1], prompts[1]]).embedding, want.embedding, rtol=2**-7, atol=1e-3
    )
    assert "; 0 captions were new" in done(capfd, *encode)
    assert call(capfd, *SCENES, "--data.text", given, "--out", tmp_path / "next")[0] == 0
    assert c.read_samples(tmp_path / "next").encoder == back.fingerprint
    done(capfd, "sample", tmp_path / "next", "--text", *prompts, "--n", 4, "--out", tmp_path / "next.png")
    other = ["--optimiser.text-rate", "0.5"]
    assert "optimiser.text_rate 1.0, not 0.5" in refused(capfd, *line, *other, "--out", tmp_path / "whole")
    assert "data.text_encoder joint, not frozen" in refused(
        capfd, *SCENES, "--guidance.dropout", "0.2", "--data.text", texts, "--out", tmp_path / "whole"
    )


def frozen_by(module, params, text):
    embedding = module.apply({"params": params["text_encoder"]}, jnp.asarray(text.embedding), jnp.asarray(text.mask))
    return Text(jnp.where(text.mask[..., None], embedding, 0), text.mask)


def whole_config(folder):
    return c.from_json((folder / "config.json").read_text())
