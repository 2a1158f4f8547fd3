"""Our convolution is JAX's in value and every derivative; that by the kernel is taken the fast way on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks._convolution import convolution

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = {
    "one": ((2, 4, 5, 3), 1, 1, "SAME"),
    "three": ((2, 16, 16, 3), 3, 1, "SAME"),
    "uneven": ((3, 15, 19, 2), 3, 1, "SAME"),
    "small": ((2, 8, 8, 3), 3, 1, "SAME"),
    "strided": ((2, 16, 16, 3), 3, 2, "SAME"),
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
        found, known = (jax.jit(lambda *a, f=f: answers(f, *a))(*arrays(shape, size)) for f in both(stride, padding))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(known), strict=True):
            assert a.dtype == b.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_many_kernels_and_images_by_vmap():
    x, kernel, v, w = arrays((2, 16, 16, 3), 3, np.float32)
    found, known = (
        jax.jit(jax.vmap(jax.grad(lambda x, kernel, f=f: jnp.sum(f(x, kernel) ** 2), (0, 1))))(
            np.stack([x, v]), np.stack([kernel, w])
        )
        for f in both(1, "SAME")
    )
    for a, b in zip(found, known, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_bfloat16_stays():
    x, kernel, _, _ = arrays((1, 16, 16, 3), 3, jnp.bfloat16)
    ours, _ = both(1, "SAME")
    by_x, by_kernel = jax.jit(jax.grad(lambda x, kernel: jnp.sum(ours(x, kernel)), (0, 1)))(x, kernel)
    assert by_x.dtype == by_kernel.dtype == ours(x, kernel).dtype == jnp.bfloat16


@pytest.mark.parametrize(("side", "loops"), [(16, 1), (8, 0)])
def test_the_gradient_by_the_kernel_goes_image_by_image_where_that_is_fast(side, loops):
    x, kernel, _, _ = arrays((2, side, side, 3), 3, np.float32)
    ours, _ = both(1, "SAME")
    gradient = jax.jit(jax.grad(lambda kernel, x: jnp.sum(ours(x, kernel) ** 2)))
    assert gradient.lower(kernel, x).as_text().count("stablehlo.while") == loops
    by_x = jax.jit(jax.grad(lambda x, kernel: jnp.sum(ours(x, kernel) ** 2)))
    assert "stablehlo.while" not in by_x.lower(x, kernel).as_text()
