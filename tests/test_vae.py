"""Networks of VAEs, and VAEs of networks, in float32 as users run them: shapes, causality, precision, indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import perturbed, quick_jit

from diffjax import Diffusion, EpsPrediction, Network, VariancePreserving, from_linen, networks, vae

KEY = jax.random.key(0)


def zeros(n):
    return jnp.zeros(n)


def images(n, side=8, levels=256):
    """Images on 256 levels of -1 .. 1."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, levels, (n, side, side, 1)) * (2 / (levels - 1)) - 1, jnp.float32)


def points(n):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, 3)), jnp.float32)


def perceptrons(dtype=jnp.float32, **fields):
    encoder = from_linen(networks.Perceptron((4,), width=8, depth=1, dtype=dtype, **fields))
    decoder = from_linen(networks.Perceptron((3,), width=8, depth=1, dtype=dtype, **fields))
    return vae.VAE(encoder, decoder, vae.GaussianLikelihood(), 2)


def of_images(side=8, likelihood=None, **fields):
    likelihood = likelihood or vae.DiscretisedLogistic()
    encoder = from_linen(networks.ImageEncoder(3, channels=(4, 8), **fields))
    decoder = networks.ImageDecoder((side, side, 1), channels=(4, 8), outputs=likelihood.outputs, **fields)
    return vae.VAE(encoder, from_linen(decoder), likelihood, 3)


def hierarchical(side=8, **fields):
    network = networks.TopDown((side, side, 1), channels=(4, 8), blocks=(1, 2), latents=2, **fields)
    return vae.HierarchicalVAE(network, vae.DiscretisedLogistic())


# --- networks ---


def test_a_pixels_numbers_depend_on_pixels_before_it_alone():
    """The Jacobian of a decoder with random weights, two channels, 5 x 4 pixels: strictly lower triangular by pixel,
    with every pixel inside of the receptive field in use, save for the blind spot of masked convolutions."""
    network = networks.MaskedDecoder(width=8, depth=4, outputs=2)
    x, z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4, 2)), jnp.float32), jnp.ones((1, 3))
    params = perturbed(from_linen(network).init(KEY, x, zeros(1), z))
    f = lambda x: network.apply({"params": params}, x, None, z)
    jacobian = np.asarray(quick_jit(jax.jacobian(f))(x)).reshape(20, 4, 20, 2)
    used = np.any(jacobian != 0, axis=(1, 3))
    assert not np.any(np.triu(used)), "a pixel is seen by itself or by one before it"
    assert np.all(np.diag(used, -1)[np.arange(19) % 4 != 3]), "the pixel to the left"
    assert np.all(np.diag(used, -4)), "the pixel above"
    assert used[19, 0]
    row, column = np.indices((5, 4)).reshape(2, 20, 1)
    above, right = row - row.T, column.T - column
    np.testing.assert_array_equal(used, ((above > 0) & (right <= above)) | ((above == 0) & (right < 0)))
    by_z = quick_jit(jax.jacobian(lambda z: network.apply({"params": params}, x, None, z)))(z)
    assert np.all(np.any(np.asarray(by_z) != 0, axis=-1))
    alone = quick_jit(lambda p: network.apply({"params": p}, x))({k: v for k, v in params.items() if "lat" not in k})
    assert alone.shape == (1, 5, 4, 4), "without latents"


def test_masks_are_those_of_the_definition():
    before = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(networks.causal_mask(5, centre=False), before)
    before[2, 2] = 1
    np.testing.assert_array_equal(networks.causal_mask(5, centre=True), before)


def test_encoders_and_decoders_fit_images_of_8_and_28_and_odd_sizes():
    for side in (8, 28, 9):
        encoder = networks.ImageEncoder(3, channels=(4, 4, 8))
        decoder = networks.ImageDecoder((side, side, 2), channels=(4, 4, 8))
        x, z = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32), jax.ShapeDtypeStruct((2, 3), jnp.float32)
        for network, given, shape in ((encoder, x, (2, 6)), (decoder, z, (2, side, side, 2))):
            y, params = jax.eval_shape(lambda key, x, n=network: n.init_with_output(key, x), KEY, given)
            assert y.shape == shape
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_a_label_is_a_condition_of_each_network():
    x, z = images(2), points(2)
    for network, given in (
        (networks.Perceptron((2,), width=4, depth=1, num_classes=3), z),
        (networks.ImageEncoder(3, channels=(4,), num_classes=3), x),
        (networks.ImageDecoder((8, 8, 1), channels=(4,), num_classes=3), z),
    ):
        made = from_linen(network)
        params = perturbed(made.init(KEY, given, zeros(2), jnp.array([0, 1])))
        apply = quick_jit(lambda params, x, labels, made=made: made.apply(params, x, zeros(2), labels))
        one, other = apply(params, given, jnp.array([0, 1])), apply(params, given, jnp.array([3, 1]))
        assert np.all(np.asarray(one[1]) == np.asarray(other[1]))
        assert np.any(np.asarray(one[0]) != np.asarray(other[0]))
        with pytest.raises(ValueError, match="cond: integer labels of shape"):
            made.apply(params, given, zeros(2), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="cond: none is taken without num_classes, got"):
        from_linen(networks.Perceptron((2,))).init(KEY, z, zeros(2), jnp.array([0, 1]))


def test_a_hierarchy_starts_with_standard_normal_priors_that_change_nothing():
    """One block a level, coarsest first, and their number is that of the draws; the rates at the start are those of
    posteriors against N(0, I) at each level."""
    model, x0 = hierarchical(), images(2)
    params = model.init(KEY, x0)
    inference = quick_jit(lambda params: vae.infer(model, params, KEY, x0))(params)
    shapes = [level.z.shape[1:] for level in inference.levels]
    assert shapes == [(4, 4, 2), (4, 4, 2), (8, 8, 2)]
    for level in inference.levels:
        assert np.all(np.asarray(level.prior.mean) == 0)
        assert np.all(np.asarray(level.prior.log_std) == 0)
        exact = vae.StandardNormal().divergence(level.posterior)
        np.testing.assert_allclose(level.rate, exact, rtol=1e-5, atol=1e-6)
    names = {name for name in params["network"] if name.startswith("blocks")}
    assert names == {"blocks__0__0", "blocks__1__0", "blocks__1__1"}
    for name in names:
        kernel = params["network"][name]["prior__2"]["kernel"]
        assert np.all(np.asarray(kernel) == 0)


def test_levels_of_a_hierarchy_depend_on_the_levels_above_alone():
    """The prior of each level by the latents given: the top's on nothing, the next on the top."""
    model, x0 = hierarchical(), images(1)
    params = perturbed(model.init(KEY, x0))
    shapes = [(1, 4, 4, 2), (1, 4, 4, 2), (1, 8, 8, 2)]
    z = [jnp.asarray(np.random.default_rng(i).normal(size=s), jnp.float32) for i, s in enumerate(shapes)]

    @quick_jit
    def means(z):
        levels = vae.infer_at(model, params, tuple(z), x0).levels
        return [(level.prior.mean, level.posterior.mean) for level in levels]

    plain = means(z)
    for moved in range(3):
        changed = means([part + (i == moved) for i, part in enumerate(z)])
        for level in range(3):
            for one, other in zip(plain[level], changed[level], strict=True):
                assert np.any(np.asarray(one) != np.asarray(other)) == (level > moved)


# --- models ---


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_a_loss_and_its_gradient_are_finite_for_any_batch(n):
    model, x0 = perceptrons(), points(n)
    params = model.init(KEY, x0)
    value = quick_jit(jax.value_and_grad(lambda params: vae.negative_elbo(model, params, KEY, x0), has_aux=True))
    (loss, aux), slope = value(params)
    assert aux["per_sample"].shape == (n,)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("make", [perceptrons, of_images, hierarchical])
def test_every_parameter_has_a_gradient(make):
    model = make()
    x0 = points(4) if make is perceptrons else images(4)
    params = perturbed(model.init(KEY, x0), size=0.02)
    slope = quick_jit(jax.grad(lambda params: vae.negative_elbo(model, params, KEY, x0)[0]))(params)
    without = [path for path, leaf in jax.tree_util.tree_leaves_with_path(slope) if not np.any(np.asarray(leaf))]
    assert without == []
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("make", [perceptrons, of_images, hierarchical])
def test_what_a_sample_draws_depends_on_its_global_index_alone(make):
    """Loss, bound and samples of three, and of two of them by their indices."""
    model = make()
    x0 = points(3) if make is perceptrons else images(3)
    params = perturbed(model.init(KEY, x0))

    @quick_jit
    def run(x0, index):
        _, aux = vae.negative_elbo(model, params, KEY, x0, index=index)
        return aux["per_sample"], aux["rates"], vae.generate(model, params, KEY, index)

    whole, part = run(x0, jnp.array([5, 0, 2])), run(x0[1:], jnp.array([0, 2]))
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_allclose(one[1:], other, rtol=1e-4, atol=1e-5)
    again = vae.generate(model, params, KEY, jnp.array([7]))
    assert np.any(np.asarray(again) != np.asarray(whole[2][:1]))


def test_it_computes_in_low_precision_and_in_float64():
    for dtype in (jnp.bfloat16, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            single, wide = perceptrons().init(KEY, points(4)), jnp.promote_types(dtype, jnp.float32)
            params = jax.tree.map(lambda leaf, wide=wide: leaf.astype(wide), single)
            value = lambda params, x0, model: vae.negative_elbo(model, params, KEY, x0)
            loss, aux = quick_jit(value, static_argnums=2)(params, points(4).astype(dtype), perceptrons(dtype))
            assert loss.dtype == aux["per_sample"].dtype == wide
            _, exact = quick_jit(value, static_argnums=2)(single, points(4), perceptrons())
            np.testing.assert_allclose(aux["rate"], exact["rate"], rtol=0.05 if dtype == jnp.bfloat16 else 1e-4)


def test_vmap_over_keys_is_one_after_the_other_and_values_compile_once():
    model, x0 = perceptrons(), points(4)
    params = model.init(KEY, x0)
    keys, traced = jax.random.split(KEY, 3), []

    def loss(params, key, beta, free_bits):
        traced.append(1)
        return vae.negative_elbo(model, params, key, x0, beta=beta, free_bits=free_bits)[0]

    many = quick_jit(jax.vmap(loss, (None, 0, None, None)))(params, keys, 0.5, 0.1)
    one = quick_jit(loss)
    np.testing.assert_allclose([one(params, key, 0.5, 0.1) for key in keys], many, rtol=1e-5)
    one(params, keys[0], 1.0, 0.0)
    assert len(traced) == 2


def test_levels_have_one_edge_between_them_in_any_precision():
    """Probabilities sum to 1 in float32 where scales are least, and in bfloat16, which knows 17 levels; what lies on no
    level is NaN within jit."""
    for levels, dtype in ((256, jnp.float32), (17, jnp.float32), (17, jnp.bfloat16)):
        likelihood, values = vae.DiscretisedLogistic(levels), np.linspace(-1, 1, levels, dtype=np.float32)[:, None]
        of = quick_jit(lambda x0, y, own=likelihood: own.log_prob({}, jnp.broadcast_to(y, (len(x0), 2)), x0))
        for k in (3, levels // 2, levels - 2):  # a location on an edge
            for log_scale in (-15.0, -3.0, 0.0):
                y = jnp.array([-1 + (2 * k + 1) / (levels - 1), log_scale])
                nats = of(jnp.asarray(values, dtype), y)
                assert nats.dtype == jnp.float32
                assert float(jnp.exp(nats).sum()) == pytest.approx(1, abs=1e-5)
    off = of(jnp.array([[-1.0], [0.03], [1.125]]), y)
    assert np.isnan(off).tolist() == [False, True, True]
    loss = lambda y: likelihood.log_prob({}, jnp.broadcast_to(y, (17, 2)), jnp.asarray(values)).sum()
    assert np.all(np.isfinite(quick_jit(jax.grad(loss))(y)))


def test_another_fixed_scale_compiles_nothing_anew():
    traced = []
    network = from_linen(networks.Perceptron((2,), depth=0))

    def decode(params, z, c_noise, cond=None, *, key=None):
        traced.append(1)
        return z

    decoder = Network(lambda key, z, c_noise, cond=None: {}, decode)
    models = [vae.VAE(network, decoder, vae.GaussianLikelihood(std), 1) for std in (0.5, 2.0)]
    x0 = points(4)[:, :1]
    params = models[0].init(KEY, x0)
    traced.clear()
    first, second = (vae.iwae_bound(model, params, KEY, x0, draws=2)[0] for model in models)
    assert len(traced) == 1
    assert np.all(np.asarray(first) != np.asarray(second))


def test_numbers_that_are_known_are_looked_at_within_jit_too():
    """Where losses are called: a weight of Python's is a value there, and only what is traced passes."""
    model, x0, ones = perceptrons(), points(2), jnp.ones(2)
    params = model.init(KEY, x0)
    hierarchy = lambda variance: vae.LinearHierarchy(jnp.eye(2), jnp.eye(2), jnp.eye(2), variance)
    calls = {
        "beta: at least 0": lambda value: vae.negative_elbo(model, params, KEY, x0, beta=value)[0],
        "free_bits: at least 0": lambda value: vae.negative_elbo(model, params, KEY, x0, free_bits=value)[0],
        "temperature: a finite": lambda value: vae.generate(model, params, KEY, jnp.arange(2), temperature=value),
        "std: must be positive": lambda value: vae.GaussianLikelihood(value).log_prob({}, x0, x0),
        "correlation: must lie": lambda value: vae.least_rate(3, value),
        "ramp: a share in": lambda value: vae.cyclic_warm_up(3, period=3, ramp=value),
        "variance: beta times": lambda value: vae.rates_at_optimum(ones, value),
        "variance: must be": lambda value: hierarchy(value).data_covariance(),
        "beta: must be": lambda value: vae.optimal_linear_vae(ones, jnp.eye(2), 1, variance=1.0, beta=value).weight,
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(lambda call=call: call(-1.0))
        jax.eval_shape(call, -1.0)


def test_dropout_is_on_in_training_and_off_in_bounds():
    model, x0 = perceptrons(dropout=0.5), points(4)
    params = model.init(KEY, x0)
    loss = quick_jit(lambda params, key: vae.negative_elbo(model, params, key, x0)[1]["rate"])
    assert np.any(np.asarray(loss(params, KEY)) != np.asarray(loss(params, jax.random.key(1))))
    still = quick_jit(lambda params, key: vae.infer(model, params, key, x0).rates)
    np.testing.assert_array_equal(still(params, KEY), still(params, jax.random.key(1)))


def test_an_autoregressive_vae_trains_its_decoder_and_draws_pixel_after_pixel():
    """A drawn image's own probability is that of its pixels: what was drawn first does not change after."""
    network = from_linen(networks.MaskedDecoder(width=4, depth=1, outputs=2))
    likelihood = vae.Autoregressive(network, vae.DiscretisedLogistic(), (4, 4, 1))
    encoder = from_linen(networks.ImageEncoder(2, channels=(4,)))
    decoder = from_linen(networks.Perceptron((6,), width=4, depth=1))
    model, x0 = vae.VAE(encoder, decoder, likelihood, 2), images(3, 4)
    params = model.init(KEY, x0)
    value = quick_jit(jax.value_and_grad(lambda params: vae.negative_elbo(model, params, KEY, x0)[0]))
    loss, slope = value(params)
    assert np.isfinite(loss)
    assert np.any(np.asarray(slope["likelihood"]["network"]["in"]["kernel"]))
    draw = lambda noise: quick_jit(lambda p: vae.generate(model, p, KEY, jnp.arange(2), noise=noise))(params)
    drawn = draw(True)
    place = (np.asarray(drawn) + 1) * 127.5
    np.testing.assert_allclose(place, np.round(place), atol=1e-3)
    assert drawn.shape == (2, 4, 4, 1)
    mean = np.asarray(draw(False))
    y = quick_jit(lambda params: model.decoder.apply(params["decoder"], jnp.zeros((2, 2)), zeros(2)))(params)
    numbers = quick_jit(lambda p, x, y: network.apply(p["likelihood"]["network"], x, zeros(2), y))
    filled = quick_jit(lambda p, y: likelihood.mean(p["likelihood"], y))(params, y)
    np.testing.assert_allclose(filled, np.clip(numbers(params, filled, y)[..., :1], -1, 1), atol=1e-5)
    assert mean.shape == (2, 4, 4, 1)


def test_bad_fields_are_refused_by_name():
    for make, words in (
        (lambda: networks.TopDown((8, 8, 1), latents=0), "latents: at least one latent a level is needed, got 0"),
        (lambda: networks.TopDown((8, 8, 1), blocks=(1,)), "blocks: a number for each of the 2 resolutions"),
        (lambda: networks.TopDown((8, 8, 1), blocks=(0, 0)), "blocks: a number for each of the 2 resolutions"),
        (lambda: networks.TopDown((8, 8)), r"shape: \(height, width, channels\) is needed"),
        (lambda: networks.ImageEncoder(0), "latents: at least one latent is needed, got 0"),
        (lambda: networks.ImageDecoder((8, 8, 1), outputs=0), "outputs: at least 1 is needed, got 0"),
        (lambda: networks.Perceptron(()), "shape: positive sizes of one sample's y are needed"),
        (lambda: networks.Perceptron((2,), dropout=1.0), "dropout: a probability in"),
        (lambda: networks.MaskedDecoder(kernel=4), "kernel: an odd side of at least 3 is needed, got 4"),
        (lambda: vae.DiscretisedLogistic(1), "levels: at least two are needed, got 1"),
        (lambda: vae.Bernoulli(1.0, 0.0), "high: must be more than low = 1.0, got 0.0"),
        (lambda: vae.Autoregressive(from_linen(networks.MaskedDecoder()), vae.Bernoulli(), (2, 2)), "shape: "),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    network = networks.TopDown((8, 8, 1), channels=(4,), blocks=(1,))
    with pytest.raises(ValueError, match=r"x: images of shape \(n, 8, 8, 1\) are needed, got \(2, 4, 4, 1\)"):
        vae.HierarchicalVAE(network, vae.DiscretisedLogistic()).init(KEY, images(2, 4))


# --- parameters without a part ---

CHAIN = vae.DiffusionChain(
    Diffusion(from_linen(networks.MLP(width=4, depth=1)), VariancePreserving(), EpsPrediction()),
    [1.0, 0.5, 0.01],
    (3,),
)
PIXEL_BY_PIXEL = vae.Autoregressive(
    from_linen(networks.MaskedDecoder(width=4, depth=1, outputs=1)), vae.GaussianLikelihood(), (2, 2, 1)
)
PARTIAL = {  # model -> data, latents, the parts that its top-down pass needs with data and without
    "plain": (perceptrons(), points(2), (jnp.ones((2, 2)),), {"encoder", "decoder"}, {"decoder"}),
    "hierarchy": (hierarchical(), images(2), None, {"network"}, {"network"}),
    "chain": (CHAIN, points(2), (jnp.ones((2, 3)),) * 3, {"network"}, {"network"}),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_params_that_lack_a_part_are_refused_by_its_name(name):
    """By every function that takes them; a part that one does not need may be missing."""
    model, x0, z, with_data, without = PARTIAL[name]
    params = jax.eval_shape(model.init, KEY, x0)
    z = z or jax.eval_shape(lambda p: tuple(level.z for level in vae.infer(model, p, KEY, x0).levels), params)
    calls = {
        "negative_elbo": (lambda p, z: vae.negative_elbo(model, p, KEY, x0), with_data),
        "iwae_bound": (lambda p, z: vae.iwae_bound(model, p, KEY, x0, draws=2), with_data),
        "infer": (lambda p, z: vae.infer(model, p, KEY, x0).log_weight, with_data),
        "infer_at": (lambda p, z: vae.infer_at(model, p, z, x0).log_weight, with_data),
        "generate": (lambda p, z: vae.generate(model, p, KEY, jnp.arange(2)), without),
        "generate, mean": (lambda p, z: vae.generate(model, p, KEY, jnp.arange(2), noise=False), without),
        "decode": (lambda p, z: vae.decode(model, p, z), without),
    }
    for call, needed in calls.values():
        jax.eval_shape(call, params, z)
        for part in params:
            rest = {other: params[other] for other in params if other != part}
            if part in needed | {"likelihood"}:
                words = f"(?m)params: '{part}' is needed, as init of the VAE makes it, got {', '.join(rest)}$"
                with pytest.raises(ValueError, match=words):
                    jax.eval_shape(call, rest, z)
            else:
                jax.eval_shape(call, rest, z)
        with pytest.raises(ValueError, match=r"(?m)params: '\w+' is needed, as init of the VAE makes it, got nothing$"):
            jax.eval_shape(call, {}, z)
        for other, got in (({}, "nothing"), (None, "NoneType")):
            with pytest.raises(ValueError, match=rf"(?m)is needed, as init of the VAE makes it, got {got}$"):
                jax.eval_shape(call, other, z)


@pytest.mark.parametrize("likelihood", [vae.GaussianLikelihood(), PIXEL_BY_PIXEL], ids=["gaussian", "pixel_by_pixel"])
def test_a_likelihood_without_its_parameters_is_refused_by_their_name(likelihood):
    x0 = images(2, 2)
    y = x0 if likelihood.outputs else jnp.ones((2, 3))
    keys = jax.random.split(KEY, 2)
    params = jax.eval_shape(likelihood.init, KEY, y, x0)
    for call in (
        lambda p: likelihood.log_prob(p, y, x0),
        lambda p: likelihood.sample(p, keys, y),
        *((lambda p: likelihood.mean(p, y),) if "network" in params else ()),
    ):
        jax.eval_shape(call, params)
        for part in params:
            rest = {other: params[other] for other in params if other != part}
            got = ", ".join(rest) or "nothing"
            words = f"(?m)params: '{part}' is needed, as init of the likelihood makes it, got {got}$"
            with pytest.raises(ValueError, match=words):
                jax.eval_shape(call, rest)
