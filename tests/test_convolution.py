"""Our convolution is JAX's in value and every derivative; that by the kernel is taken the fast way on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from diffjax.networks import convolution

LAYOUT = ("NHWC", "HWIO", "NHWC")
ONE, TWO = (Mesh(np.array(jax.devices()[:n]), ("data",)) for n in (1, 2))
CASES = {
    "one": ((2, 4, 5, 3), 1, 1, "SAME"),
    "three": ((2, 16, 16, 3), 3, 1, "SAME"),
    "uneven": ((3, 15, 19, 2), 3, 1, "SAME"),
    "small": ((2, 8, 8, 3), 3, 1, "SAME"),
}


def arrays(shape, size, dtype=np.float64):
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, *shape)).astype(dtype)
    kernel, w = rng.normal(size=(2, size, size, shape[-1], 4)).astype(dtype)
    return x, kernel, v, w


def both(stride, padding):
    ours = lambda x, kernel: convolution(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)
    known = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT
    )
    return ours, known


def alone(f):
    """f, compiled for one device that is programmed by itself, where the fast way is taken."""
    return jax.jit(jax.shard_map(f, mesh=ONE, in_specs=P(), out_specs=P(), check_vma=False))


def answers(f, x, kernel, v, w):
    """Value, tangent along (v, w), gradients of the sum of cubes, and the gradient of a derivative of it."""
    cubes = lambda x, kernel: jnp.sum(f(x, kernel) ** 3)
    first = jax.grad(cubes, (0, 1))
    value, tangent = jax.jvp(f, (x, kernel), (v, w))
    slope = lambda x, kernel: jax.jvp(lambda x: cubes(x, kernel), (x,), (v,))[1]
    return value, tangent, first(x, kernel), jax.grad(slope, (0, 1))(x, kernel)


@pytest.mark.parametrize("name", CASES)
def test_is_jax_s_with_all_derivatives(name):
    shape, size, stride, padding = CASES[name]
    with jax.enable_x64(True):
        found, known = (alone(lambda *a, f=f: answers(f, *a))(*arrays(shape, size)) for f in both(stride, padding))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(known), strict=True):
            assert a.dtype == b.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def gradient(f):
    return jax.grad(lambda kernel, x: jnp.sum(f(x, kernel) ** 2))


def close(found, known, digits):
    known = np.asarray(known, np.float32)
    np.testing.assert_allclose(np.asarray(found, np.float32), known, rtol=0, atol=digits * np.abs(known).max())


def test_many_kernels_and_images_by_vmap():
    x, kernel, v, w = arrays((2, 16, 16, 3), 3, np.float32)
    pairs = np.stack([kernel, w]), np.stack([x, v])
    found, known = (alone(jax.vmap(gradient(f)))(*pairs) for f in both(1, "SAME"))
    close(found, known, 1e-5)


def test_blocks_under_scan_and_rematerialised():
    x, kernel, _, _ = arrays((2, 16, 16, 4), 3, np.float32)

    def through(f):
        block = jax.checkpoint(lambda x, kernel: (jnp.tanh(f(x, kernel)), None))
        return jax.grad(lambda kernels, x: jnp.sum(jax.lax.scan(block, x, kernels)[0] ** 2))

    found, known = (alone(through(f))(np.stack([kernel, -kernel]), x) for f in both(1, "SAME"))
    close(found, known, 1e-5)


def test_in_bfloat16_the_sum_over_images_is_not():
    """Ones: a sum kept in bfloat16 stays where one image adds less than its last digit."""
    x, kernel = np.ones((512, 16, 16, 1), jnp.bfloat16), np.ones((3, 3, 1, 1), jnp.bfloat16)
    ours, _ = both(1, "SAME")
    found = alone(jax.grad(lambda kernel, x: jnp.sum(ours(x, kernel).astype(jnp.float32))))(kernel, x)
    assert found.dtype == jnp.bfloat16
    assert float(found[1, 1, 0, 0]) == 512 * 16 * 16


@pytest.mark.parametrize(("side", "loops"), [(16, 1), (8, 0)])
def test_the_gradient_by_the_kernel_goes_image_by_image_where_that_is_fast(side, loops):
    x, kernel, _, _ = arrays((2, side, side, 3), 3, np.float32)
    ours, _ = both(1, "SAME")
    assert alone(gradient(ours)).lower(kernel, x).as_text().count("stablehlo.while") == loops
    by_x = alone(jax.grad(lambda x, kernel: jnp.sum(ours(x, kernel) ** 2)))
    assert "stablehlo.while" not in by_x.lower(x, kernel).as_text()


def test_under_jit_no_device_gathers_the_batch():
    x, kernel, _, _ = arrays((8, 16, 16, 3), 3, np.float32)
    x, kernel = jax.device_put(x, NamedSharding(TWO, P("data"))), jax.device_put(kernel, NamedSharding(TWO, P()))
    ours, _ = both(1, "SAME")
    compiled = jax.jit(gradient(ours)).lower(kernel, x).compile().as_text()
    assert "all-reduce" in compiled
    assert "all-gather" not in compiled


def test_devices_programmed_by_themselves_sum_to_the_whole():
    x, kernel, _, _ = arrays((8, 16, 16, 3), 3, np.float32)
    ours, known = both(1, "SAME")
    one = lambda kernel, x: jax.lax.psum(gradient(ours)(kernel, x), "data")
    split = jax.jit(jax.shard_map(one, mesh=TWO, in_specs=(P(), P("data")), out_specs=P(), check_vma=False))
    assert "stablehlo.while" in split.lower(kernel, x).as_text()
    close(split(kernel, x), gradient(known)(kernel, x), 1e-5)
