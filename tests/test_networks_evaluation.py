"""Networks that measure: the classifier and Inception (its parity is in tests/parity); and the plain perceptron."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from nets import perturbed, quick_jit

from diffjax import from_linen, metrics
from diffjax.interop import read_inception, to_params, to_tensors
from diffjax.networks import (
    MLP,
    Classifier,
    InceptionV3,
    PlainMLP,
    classifier_features,
    draw_parameters,
    inception_features,
)

KEY = jax.random.key(0)
CLASSIFIER = Classifier(3, channels=(8, 16), dropout=0.3)
IMAGE = jnp.asarray(np.random.default_rng(5).normal(size=(3, 7, 5, 2)), jnp.float32)
C_NOISE = jnp.array([-1.0, 0.0, 1.0])


@pytest.fixture(scope="module", name="params")
def _params():
    return perturbed(from_linen(CLASSIFIER).init(KEY, IMAGE, C_NOISE))


def test_logits_are_linear_in_the_features(params):
    apply = quick_jit(lambda p, x, c: (from_linen(CLASSIFIER).apply(p, x, c), classifier_features(CLASSIFIER, p, x, c)))
    logits, features = map(np.asarray, apply(params, IMAGE, C_NOISE))
    assert (logits.shape, features.shape) == ((3, 3), (3, 16))
    head = params["logits"]
    np.testing.assert_allclose(logits, features @ np.asarray(head["kernel"]) + head["bias"], rtol=1e-4, atol=1e-5)
    other, _ = apply(params, IMAGE.at[1, 6, 4, 0].add(1.0), C_NOISE)
    assert np.abs(other - logits)[1].max() > 1e-4
    np.testing.assert_array_equal(np.asarray(other)[[0, 2]], logits[[0, 2]])
    renoised, _ = apply(params, IMAGE, C_NOISE.at[1].add(0.3))
    assert np.abs(renoised - logits)[1].max() > 1e-4


def test_classifier_starts_undecided_by_one_draw(monkeypatch):
    module = CLASSIFIER.clone(dtype=jnp.bfloat16)
    monkeypatch.setattr(jax, "jit", None)
    params = draw_parameters(KEY, lambda *args: module.init(*args)["params"], IMAGE)
    monkeypatch.undo()
    assert not np.any(params["logits"]["kernel"])
    y = jax.eval_shape(module.apply, {"params": params}, IMAGE)
    assert (y.shape, y.dtype) == ((3, 3), jnp.float32)


def test_classifier_refuses():
    with pytest.raises(ValueError, match=r"num_classes: .* 0"):
        Classifier(0)
    with pytest.raises(ValueError, match=r"channels: .*\(3,\)"):
        Classifier(2, channels=(3,))
    with pytest.raises(ValueError, match="cond: a classifier takes none"):
        CLASSIFIER.init(KEY, IMAGE, C_NOISE, C_NOISE)
    with pytest.raises(ValueError, match=r"x: images .* \(3, 4\)"):
        CLASSIFIER.init(KEY, jnp.zeros((3, 4)))


@pytest.fixture(scope="module", name="file")
def _file(tmp_path_factory):
    """A file like the published one: all tensors of the features, the last layer and the counters."""
    shapes = jax.eval_shape(InceptionV3().init, KEY, jax.ShapeDtypeStruct((1, 9, 9, 3), jnp.float32))["params"]
    counter = itertools.count(1)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, next(counter), np.float32), shapes)
    tensors = to_tensors(params) | {"fc.weight": np.zeros((1008, 2048), np.float32), "fc.bias": np.zeros(1008, "f4")}
    tensors["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.array(0)
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path, tensors, params


@pytest.mark.slow
def test_inception_reads_a_file_as_published(file):
    path, _, params = file
    found = read_inception(path)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) == 21_820_000  # 21,785,568 weights, and 34,432 statistics
    features = jax.eval_shape(inception_features, found, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    assert (features.shape, features.dtype) == ((2, 2048), jnp.float32)


@pytest.mark.slow
def test_inception_refuses_by_name(file, tmp_path):
    _, tensors, params = file
    path = tmp_path / "bad.safetensors"
    key = "Mixed_7c.branch_pool.bn.running_var"
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if k != key}, path)
    with pytest.raises(ValueError, match=rf"bad.safetensors: no tensor {key}"):
        read_inception(path)
    safetensors.numpy.save_file(tensors | {"Mixed_8a.conv.weight": np.zeros(1, np.float32)}, path)
    with pytest.raises(ValueError, match=r"takes the tensor Mixed_8a\.conv\.weight"):
        read_inception(path)
    with pytest.raises(ValueError, match=r"images: .* \(2, 8, 8, 1\)"):
        inception_features(params, jnp.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="75 pixels"):
        InceptionV3(resize=False).apply({"params": params}, jnp.zeros((2, 8, 8, 3)))


@pytest.mark.slow
def test_features_feed_every_distance(params):
    """Of two halves of one set all distances are small, and of a shifted set large."""
    rng = np.random.default_rng(1)
    features = quick_jit(lambda x: classifier_features(CLASSIFIER, params, x))
    one, two = (np.asarray(features(rng.normal(size=(400, 7, 5, 2)).astype(np.float32))) for _ in range(2))
    far = np.asarray(features(1 + rng.normal(size=(400, 7, 5, 2)).astype(np.float32)))
    frechet = lambda a, b: metrics.frechet_distance(metrics.feature_statistics(a), metrics.feature_statistics(b))
    for distance in (frechet, metrics.kernel_distance):
        assert abs(distance(two, one)) < 0.2 * distance(far, one)
    assert metrics.precision_recall(two, one).precision > 0.8 > metrics.precision_recall(far, one).precision


@pytest.mark.slow
@pytest.mark.parametrize("perceptron", [MLP, PlainMLP])
def test_perceptrons_under_scan(perceptron):
    """Blocks in one array each, computed again in the gradient, give the values and gradients of those written out."""
    make = lambda scan: perceptron(width=8, depth=4, dropout=0.5, scan=scan, remat=scan)
    x = jnp.ones((3, 4))
    shapes = [jax.eval_shape(make(scan).init, KEY, x, C_NOISE)["params"] for scan in (False, True)]
    assert [bool({"blocks__", "layers__"} & set(shape)) for shape in shapes] == [False, True]
    params = perturbed(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes[0]), size=0.5)
    stacked = jax.tree.map(jnp.asarray, to_params(to_tensors(params), shapes[1]))
    loss = lambda p, scan: jnp.sum(make(scan).apply({"params": p}, x, C_NOISE) ** 2)
    both = quick_jit(lambda p, q: [jax.value_and_grad(loss)(p, False), jax.value_and_grad(loss)(q, True)])
    (value, slope), (same, again) = both(params, stacked)
    dropped = quick_jit(lambda p, key: from_linen(make(True)).apply(p, x, C_NOISE, key=key))
    assert np.any(np.asarray(dropped(stacked, KEY)) != dropped(stacked, jax.random.key(1)))
    np.testing.assert_allclose(same, value, rtol=1e-5)
    slope, again = to_tensors(slope), to_tensors(again)
    assert slope.keys() == again.keys()
    for key, expected in slope.items():
        np.testing.assert_allclose(again[key], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=key)
    assert any(key.startswith(("blocks.3", "layers.2")) and np.any(slope[key]) for key in slope)


def test_plain_mlp():
    module = PlainMLP(width=8, depth=2, num_classes=2, dtype=jnp.bfloat16, dropout=0.5)
    network, x, labels = from_linen(module), jnp.ones((3, 4)), jnp.array([0, 1, 2])
    params = perturbed(network.init(KEY, x, C_NOISE, labels), size=0.5)
    assert set(params) == {"conditioning", "first", "layers__0", "out"}
    apply = quick_jit(network.apply)
    y = np.asarray(apply(params, x, jnp.zeros(3), labels))
    assert y.dtype == np.float32
    assert y.std(axis=0).min() > 1e-3  # only the label differs between the samples
    assert np.any(np.asarray(apply(params, x, jnp.zeros(3), labels, key=KEY)) != y)
    answer = lambda p, remat: module.clone(remat=remat, dtype=jnp.float32).apply({"params": p}, x, C_NOISE, labels)
    losses = [lambda p, remat=remat: jnp.sum(answer(p, remat) ** 2) for remat in (False, True)]
    assert ["remat" in str(jax.make_jaxpr(loss)(params)) for loss in losses] == [False, True]
    one = module.clone(depth=1, remat=True)  # its first layer too is computed again
    layer = {name: params[name] for name in ("conditioning", "first", "out")}
    slope = jax.grad(lambda p: jnp.sum(one.apply({"params": p}, x, C_NOISE, labels)))
    assert "remat" in str(jax.make_jaxpr(slope)(layer))
    gradients = quick_jit(lambda p: [jax.grad(loss)(p) for loss in losses])(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *gradients)
    with pytest.raises(ValueError, match=r"depth: .* 0"):
        PlainMLP(depth=0)
    with pytest.raises(ValueError, match=r"depth: .* -1"):
        MLP(depth=-1)
    with pytest.raises(ValueError, match=r"width: .* 5"):
        PlainMLP(width=5)
