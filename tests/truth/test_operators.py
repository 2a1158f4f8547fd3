"""Operators against sums written out in NumPy, and their adjoints against transposed matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import operators

KEY = jax.random.key
KERNEL = np.array([[0.1, 0.2, 0.0], [0.3, -0.1, 0.5]])
BEYOND = {"zero": "constant", "periodic": "wrap", "reflecting": "reflect", "edge": "edge"}
IMAGE = (4, 6, 3)

ALL = {
    "mask": (lambda: operators.Mask(jnp.arange(24).reshape(4, 6, 1) % 3 == 0), IMAGE),
    "downsample": (lambda: operators.Downsample((2, 3)), IMAGE),
    "downsample-vector": (lambda: operators.Downsample((4,)), (8,)),
    "grey": (operators.Grey, IMAGE),
    "matrix": (lambda: operators.Matrix(jnp.arange(48.0).reshape(2, 24) % 5), (4, 6)),
    "blur-vector": (lambda: operators.Blur(jnp.array([0.2, 0.5, 0.3, 0.1]), boundary=operators.zero), (7,)),
    **{
        f"blur-{name}": (
            lambda name=name: operators.Blur(jnp.asarray(KERNEL), boundary=getattr(operators, name)),
            IMAGE,
        )
        for name in BEYOND
    },
    "matrix-free": (lambda: operators.matrix_free(lambda x: 2 * x[:, 1:], _padded, (5,)), (5,)),
    "function": (lambda: lambda x: jnp.cumsum(x, axis=1)[:, ::2], (5,)),
}


def _padded(y):
    return jnp.concatenate([jnp.zeros_like(y[:, :1]), 2 * y], axis=1)


QUICK = ("mask", "blur-zero", "matrix-free")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ALL])
def test_adjoints_are_transposes(name):
    """Of a batch, also inside jit and vmap; the dot-product test agrees; the derivative of a linear map is itself."""
    make, shape = ALL[name]
    operator, size = make(), int(np.prod(shape))
    plain = not isinstance(operator, operators.AbstractLinearOperator)
    adjoint = functools.partial(operators.transpose, operator) if plain else operator.adjoint

    @jax.jit
    def run(x, y):
        columns = operator(jnp.eye(size).reshape(size, *shape))
        near = operators.linearise(operator, x)
        back = adjoint(y, shape)
        each = jax.vmap(lambda y: adjoint(y[None], shape)[0])(y)
        return columns, near.value, near.push(x), back, near.pull(y), each

    x = jax.random.normal(KEY(0), (3, *shape))
    y = jax.random.normal(KEY(1), jax.eval_shape(operator, x).shape)
    columns, *forward, back, pulled, each = run(x, y)
    A = np.asarray(columns).reshape(size, -1).T
    for found in forward:
        np.testing.assert_allclose(found.reshape(3, -1), np.asarray(x).reshape(3, -1) @ A.T, atol=1e-12)
    for found in (back, pulled, each):
        np.testing.assert_allclose(found.reshape(3, -1), np.asarray(y).reshape(3, -1) @ A, atol=1e-12)
    products = operators.dot_product_test(KEY(1), operator, shape)
    np.testing.assert_allclose(*products, rtol=1e-12)
    assert operator(x.astype(jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize(
    "name", ["periodic", *(pytest.param(n, marks=pytest.mark.slow) for n in BEYOND if n != "periodic")]
)
def test_blur_is_the_convolution(name):
    """y_i = sum_k kernel_k x_(i + c - k) with c = (size - 1)//2, beyond the border as NumPy pads."""
    operator = ALL[f"blur-{name}"][0]()
    x = np.random.default_rng(0).normal(size=(2, *IMAGE))
    far = np.pad(x, ((0, 0), (5, 5), (5, 5), (0, 0)), mode=BEYOND[name]) if name != "reflecting" else None
    if far is None:  # a mirror once, as far as the kernel reaches
        far = np.pad(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"), ((0, 0), (4, 4), (4, 4), (0, 0)))
    expected = np.zeros_like(x)
    for k in np.ndindex(KERNEL.shape):
        at = [5 + (s - 1) // 2 - i for s, i in zip(KERNEL.shape, k, strict=True)]
        expected += KERNEL[k] * far[:, at[0] : at[0] + 4, at[1] : at[1] + 6]
    np.testing.assert_allclose(operator(jnp.asarray(x)), expected, atol=1e-12)


def test_masks_averages_and_grey():
    x = np.random.default_rng(0).normal(size=(2, *IMAGE))
    mask = (np.arange(24).reshape(4, 6, 1) % 3 == 0).astype(float)
    np.testing.assert_array_equal(ALL["mask"][0]()(jnp.asarray(x)), x * mask)
    blocks = np.stack([[x[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean((1, 2)) for j in range(2)] for i in range(2)])
    np.testing.assert_allclose(operators.Downsample((2, 3))(jnp.asarray(x)), np.moveaxis(blocks, 2, 0), atol=1e-12)
    grey = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    np.testing.assert_allclose(operators.Grey()(jnp.asarray(x)), grey, atol=1e-7)


def test_an_operator_that_is_not_linear_has_its_derivative():
    """A(x) = x_1^3 x_2: the gradient in closed form."""
    x, u, v = jnp.array([[2.0, 3.0]]), jnp.array([[0.1, -0.2]]), jnp.array([[0.5]])
    near = operators.linearise(lambda x: x[:, :1] ** 3 * x[:, 1:], x)
    slope = np.array([3 * 4 * 3.0, 8.0])
    np.testing.assert_allclose(near.value, [[24.0]])
    np.testing.assert_allclose(near.push(u), [[slope @ u[0]]])
    np.testing.assert_allclose(near.pull(v), [0.5 * slope])


def test_bad_operators():
    x = jnp.ones((2, *IMAGE))
    with pytest.raises(ValueError, match=r"mask: shape \(4, 6, 3\), that of one sample, is needed .* got \(4, 5, 3\)"):
        operators.Mask(jnp.ones((4, 5, 3)))(x)
    with pytest.raises(ValueError, match=r"mask: shape \(4, 6, 3\).* got \(4, 6\)"):
        operators.Mask(jnp.ones((4, 6)))(x)
    with pytest.raises(ValueError, match=r"mask: only 0 .* got \[0.5\]"):
        operators.Mask(jnp.full((4, 6, 3), 0.5))
    with pytest.raises(ValueError, match=r"factors: \(3, 3\) must divide .*\(4, 6, 3\)"):
        operators.Downsample((3, 3))(x)
    with pytest.raises(ValueError, match=r"factors: positive integers.*\(0,\)"):
        operators.Downsample((0,))
    with pytest.raises(ValueError, match=r"kernel: no larger than .* got shape \(5, 1\)"):
        operators.Blur(jnp.ones((5, 1)), boundary=operators.zero)(x)
    with pytest.raises(ValueError, match=r"weights: one for each .* got \(3,\)"):
        operators.Grey()(x[..., :1])
    with pytest.raises(ValueError, match=r"matrix: 72 columns are needed .*, got shape \(2, 5\)"):
        operators.Matrix(jnp.ones((2, 5)))(x)
    with pytest.raises(ValueError, match=r"y: shape \(2, 4, 6, 1\) is needed.* got \(2, 4, 6, 3\)"):
        operators.Grey().adjoint(x, IMAGE)
    with pytest.raises(ValueError, match=r"operator: .* is not linear"):
        operators.transpose(lambda x: x**2, x, IMAGE)


def test_a_wrong_adjoint_is_refused_with_both_products():
    """Scaled, shifted or of another shape; the message holds the two numbers, which differ."""
    wrong = functools.partial(operators.matrix_free, lambda x: 2 * x[:, 1:], shape=(5,))
    with pytest.raises(ValueError, match=r"^adjoint: <A x, y> = (-?[\d.]+) but <x, A' y> = (-?[\d.]+)[^\n]*$"):
        wrong(lambda y: _padded(y) / 2)
    with pytest.raises(ValueError, match="adjoint: <A x, y>"):
        wrong(lambda y: _padded(y)[:, ::-1])
    with pytest.raises(ValueError, match=r"adjoint: shape \(1, 5\) is needed for A' y, that of x, got \(1, 4\)"):
        wrong(lambda y: 2 * y)
