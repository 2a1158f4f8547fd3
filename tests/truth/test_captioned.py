"""Guidance by texts where p(x | text) is known: a mixture of Gaussians whose components have captions.

A component is a colour and a shape; a caption names one of them, both, or nothing, and p(x | caption) is the mixture of
the components that it fits. A "network" that takes a `Text` answers exactly.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_guidance import RULES

import diffjax as dj
from diffjax import config as c, guidance, samplers
from diffjax.networks import Cascade, Text, pooled

KEY = jax.random.key
PROCESS = dj.VariancePreserving
WORDS = ("red", "blue", "circle", "square")
COMPONENTS = ("red circle", "red square", "blue circle", "blue square")
HAS = np.array([[word in name.split() for word in WORDS] for name in COMPONENTS])
MEANS = np.array([[1.5, 0.3, -0.2], [-0.8, 1.4, 0.6], [0.2, -1.1, 0.9], [-0.6, -0.9, -1.2]])
VARIANCES, WEIGHTS = np.array([0.1, 0.2, 0.15, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
CAPTIONS = ("red circle", "blue", "square", "square blue", "")
FITS = np.array([[all(word in name for word in caption.split()) for name in COMPONENTS] for caption in CAPTIONS])


def of(fits):
    """p(x | caption) for a caption that fits these components."""
    return dj.GaussianMixture(jnp.asarray(MEANS[fits]), jnp.asarray(VARIANCES[fits]), jnp.asarray(WEIGHTS[fits]))


def text(captions=CAPTIONS, length=3):
    """Texts whose embedding [b, length, 4] is one-hot, with rubbish at padding."""
    embedding, mask = np.full((len(captions), length, len(WORDS)), 7.0), np.zeros((len(captions), length), bool)
    for row, caption in enumerate(captions):
        for place, word in enumerate(caption.split()):
            embedding[row, place], mask[row, place] = np.eye(len(WORDS))[WORDS.index(word)], True
    return Text(jnp.asarray(embedding), jnp.asarray(mask))


def answers(fits, x, c_noise):
    """E[x0 | xt] of the components [b, k] that fit; the network sees xt itself, and logsnr = -8 c_noise."""
    alpha2 = jax.nn.sigmoid(-8 * c_noise)[:, None]
    variances = alpha2 * VARIANCES + 1 - alpha2  # [b, k]
    error = x[:, None] - jnp.sqrt(alpha2)[..., None] * MEANS
    logs = np.log(WEIGHTS) - jnp.sum(error**2, axis=2) / (2 * variances) - 1.5 * jnp.log(variances)
    share = jax.nn.softmax(jnp.where(fits, logs, -jnp.inf), axis=1)
    each = MEANS + (jnp.sqrt(alpha2) * VARIANCES / variances)[..., None] * error
    return jnp.sum(share[..., None] * each, axis=1)


def fitting(condition):
    """[b, k]: what a text fits, from its tokens."""
    said = jnp.max(jnp.where(condition.mask[..., None], condition.embedding, 0), axis=1) > 0.5  # [b, words]
    return jnp.all(~said[:, None] | HAS, axis=2)


def exact_network(condition, fits=fitting):
    network = dj.Network(
        init=lambda *args: (), apply=lambda params, x, c_noise, cond, *, key=None: answers(fits(cond), x, c_noise)
    )
    return dj.make_denoiser(dj.Diffusion(network, PROCESS(), dj.X0Prediction()), (), condition)


NULL = Text(0.0, False)
XT = 1.5 * np.random.default_rng(0).normal(size=(5, 3))
TIMES = np.array([0.1, 0.3, 0.5, 0.7, 0.9])


def field(scale, rule, t, fits=FITS):
    """The guided denoiser, sample by sample, of exact densities."""
    whole = dj.exact_denoiser(of(np.ones(4, bool)), PROCESS())
    each = [guidance.extrapolate(dj.exact_denoiser(of(row), PROCESS()), whole, scale, rule=rule) for row in fits]

    @eqx.filter_jit
    def answer(each, x, t):
        return jnp.concatenate(
            [guided(x[i : i + 1], t if t.ndim == 0 else t[i : i + 1]) for i, guided in enumerate(each)]
        )

    return np.asarray(answer(each, jnp.asarray(XT), t))


@pytest.mark.parametrize("t", [0.35, pytest.param(TIMES, marks=pytest.mark.slow)], ids=["one", "each"])
def test_a_text_of_the_exact_network_conditions_exactly(t):
    """Scale 1 is E[x0 | xt, text], scale 0 and a text without tokens E[x0 | xt]; padding and the order of words do not
    matter to this network, nor who else is in the batch."""
    t, whole = jnp.asarray(t), dj.exact_denoiser(of(np.ones(4, bool)), PROCESS())
    one, none, plain = (
        eqx.filter_jit(dj.classifier_free(exact_network(text()), NULL, s))(jnp.asarray(XT), t) for s in (1, 0, 1)
    )
    np.testing.assert_allclose(one, field(1.0, guidance.Linear(), t), rtol=1e-9, atol=1e-9)
    unconditional = whole(jnp.asarray(XT), t)
    np.testing.assert_allclose(none, unconditional, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one[4], unconditional[4], rtol=1e-9, atol=1e-9)
    assert np.abs(one - unconditional)[:4].max(axis=1).min() > 1e-3
    longer = exact_network(text(length=6))(jnp.asarray(XT), t)
    np.testing.assert_allclose(longer, plain, rtol=1e-12)
    turned = exact_network(text([" ".join(reversed(caption.split())) for caption in CAPTIONS]))(jnp.asarray(XT), t)
    np.testing.assert_allclose(turned, plain, rtol=1e-12)
    rows = np.array([3, 0, 4, 1, 2])
    shuffled = exact_network(text([CAPTIONS[i] for i in rows]))(jnp.asarray(XT[rows]), t if t.ndim == 0 else t[rows])
    np.testing.assert_allclose(shuffled, plain[rows], rtol=1e-12)


def test_the_guided_score_of_a_text_is_the_combination():
    """w grad log p(xt | text) + (1 - w) grad log p(xt), by differentiating the log densities."""
    t, scale = jnp.asarray(0.35), 3.0
    got = dj.score(PROCESS(), dj.classifier_free(exact_network(text()), NULL, scale), jnp.asarray(XT), t)
    slope = jax.grad(lambda x, data: data.log_prob(PROCESS(), x[None], t)[0])
    parts = [of(each) for each in FITS], of(np.ones(4, bool)), jnp.asarray(XT)
    slopes = eqx.filter_jit(
        lambda each, whole, x: [(slope(row, one), slope(row, whole)) for row, one in zip(x, each, strict=True)]
    )
    for i, (conditional, unconditional) in enumerate(slopes(*parts)):
        want = scale * conditional + (1 - scale) * unconditional
        np.testing.assert_allclose(got[i], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", [name if name == "projected" else pytest.param(name, marks=pytest.mark.slow) for name in RULES]
)
def test_every_rule_with_texts_is_its_field_of_exact_densities(name):
    t, rule = jnp.asarray(0.35), RULES[name]()
    guided = dj.classifier_free(exact_network(text()), NULL, jnp.full(5, 4.0), rule=rule)
    np.testing.assert_allclose(eqx.filter_jit(guided)(jnp.asarray(XT), t), field(4.0, rule, t), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_text_and_a_label_are_dropped_together():
    """The colour as a text, the shape as a label: the null of both is p(x)."""
    colours, labels = ["red", "blue", "", "red", ""], np.array([0, 1, 1, 2, 2])
    fits = lambda cond: (
        fitting(cond.text)
        & jnp.where(cond.label[:, None] < 2, jnp.asarray(HAS[:, 2:].T)[jnp.minimum(cond.label, 1)], True)
    )
    cond, null = Cascade(text=text(colours), label=jnp.asarray(labels)), Cascade(text=NULL, label=2)
    guided = dj.classifier_free(exact_network(cond, fits), null, 3.0)
    named = [f"{colour} {('circle', 'square', '')[label]}" for colour, label in zip(colours, labels, strict=True)]
    want = np.array([[all(word in name for word in each.split()) for name in COMPONENTS] for each in named])
    t = jnp.asarray(0.35)
    np.testing.assert_allclose(guided(jnp.asarray(XT), t), field(3.0, guidance.Linear(), t, want), rtol=1e-9, atol=1e-9)
    dropped = dj.losses.drop_condition(KEY(0), cond, null, 1.0)
    np.testing.assert_allclose(
        exact_network(dropped, fits)(jnp.asarray(XT), t),
        dj.classifier_free(exact_network(cond, fits), null, 0.0)(jnp.asarray(XT), t),
        rtol=1e-12,
    )


def test_captions_through_a_tokenizer_and_an_encoder_reach_the_exact_field(tmp_path):
    """What encodes a prompt and what encodes the captions tell the captions apart, and know the empty one as null."""
    pytest.importorskip("tokenizers")
    encoder = c.make_text_encoder(tmp_path / "texts", CAPTIONS, size="tiny")
    known = pooled(encoder(CAPTIONS[:4]), jnp.float64)  # [4, width]

    def fits(cond):
        mask = jnp.any(cond.mask, axis=1)
        padded = Text(cond.embedding, cond.mask | ~mask[:, None])
        distance = jnp.sum((pooled(padded, jnp.float64)[:, None] - known) ** 2, axis=2)
        return jnp.where(mask[:, None], jnp.asarray(FITS)[jnp.argmin(distance, axis=1)], True)

    table = encoder.encode(CAPTIONS)
    for cond in (encoder(CAPTIONS), table(CAPTIONS), encoder([f" {caption}\n" for caption in CAPTIONS])):
        cond = jax.tree.map(jnp.asarray, cond)
        guided = dj.classifier_free(exact_network(cond, fits), NULL, 3.0)
        t = jnp.asarray(0.35)
        np.testing.assert_allclose(guided(jnp.asarray(XT), t), field(3.0, guidance.Linear(), t), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_samples_at_scale_1_are_of_the_density_of_their_text_and_guidance_trades():
    """At scale 1 the shares, means and variances of p(x | text). At larger scales more of p(text | x), less spread."""
    n, blocks = 4000, ("red circle", "blue", "")
    cond = jax.tree.map(lambda leaf: jnp.repeat(leaf, n, axis=0), text(blocks))
    ts = dj.logsnr_grid(PROCESS(), 60)
    draw = lambda scale, method, **more: np.asarray(
        dj.sample_n(
            KEY(3),
            PROCESS(),
            dj.classifier_free(exact_network(cond), NULL, scale),
            (3,),
            3 * n,
            ts=ts,
            stepper=method,
            chunk=3 * n,
            **more,
        )
    ).reshape(3, n, 3)
    for method in (dj.DPMpp2M(), samplers.SDEDPMpp2M()):
        drawn = draw(1.0, method)
        for x, block in zip(drawn, blocks, strict=True):
            fits = np.array([all(word in name for word in block.split()) for name in COMPONENTS])
            weights = WEIGHTS * fits / np.sum(WEIGHTS[fits])
            logs = -np.sum((x[:, None] - MEANS) ** 2, axis=2) / (2 * VARIANCES) - 1.5 * np.log(VARIANCES)
            nearest = np.argmax(logs + np.log(WEIGHTS), axis=1)
            shares = np.bincount(nearest, minlength=4) / n
            # Components overlap a little: a share errs by that, and by 5 standard errors.
            np.testing.assert_allclose(shares, weights, atol=5 * np.sqrt(0.25 / n) + 0.01)
            mean = weights @ MEANS
            spread = weights @ (VARIANCES[:, None] + MEANS**2) - mean**2
            np.testing.assert_allclose(x.mean(axis=0), mean, atol=5 * np.sqrt(spread.max() / n) + 0.01)
            np.testing.assert_allclose(x.var(axis=0), spread, rtol=0.12)
    found = []
    for scale in (1.0, 2.0, 4.0):
        x = draw(scale, dj.DPMpp2M())[1]  # "blue"
        logs = -np.sum((x[:, None] - MEANS) ** 2, axis=2) / (2 * VARIANCES) - 1.5 * np.log(VARIANCES) + np.log(WEIGHTS)
        share = np.exp(logs - logs.max(axis=1, keepdims=True))
        right = share[:, 2:].sum(axis=1) / share.sum(axis=1)
        spread = np.mean([x[np.argmax(logs, axis=1) == k].var(axis=0).sum() for k in (2, 3)])
        found.append((right.mean(), spread))
    (first, second, third) = found
    assert first[0] < second[0] < third[0]
    assert first[1] > second[1] > third[1]
