"""Captions to conditions: spans hidden with exact frequencies, a loss with its closed form, caches that never mix."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import covers, done, refused
from test_texts import IMAGES, LINES, TIDY, folder_of

from diffjax import losses
from diffjax.config import TextEncoder, load_text_encoder, make_text_encoder, store_text_encoder
from diffjax.config._text_encoder import pretrain
from diffjax.config._whitening import fit_whitening
from diffjax.data import EncodedTexts, digit_scenes, load_texts, shapes
from diffjax.interop import (
    count_tokens,
    load_module,
    module_from_config,
    save_pretrained,
    t5_config,
    tokenize,
    train_tokenizer,
    vocabulary_of,
)
from diffjax.networks import T5_SIZES, T5Encoder, init_t5, sized_t5

pytest.importorskip("tokenizers")
KEY = jax.random.key(0)
TINY = T5Encoder(vocabulary=20, width=8, depth=1, heads=2, head_channels=4, hidden=8)
CAPTIONS = ["a red circle", "a small blue square", "a red square above a blue circle", "", "a red circle"]


# --- span corruption ---


@pytest.mark.parametrize(("share", "length"), [(0.15, 3.0), (0.4, 1.5)])
def test_spans_are_hidden_as_often_and_are_as_long_as_they_should_be(share, length):
    b, n = 1000, 200
    ids = jnp.broadcast_to(jnp.arange(3, n + 3), (b, n))
    mask = jnp.arange(n) < 190
    sentinels = jnp.array([1000, 1001, 1002])
    hide = jax.jit(
        lambda key, ids, mask: losses.corrupt_spans(key, ids, mask, sentinels=sentinels, share=share, length=length)
    )
    given, hidden = (np.asarray(x) for x in hide(KEY, ids, jnp.broadcast_to(mask, (b, n))))
    assert not hidden[:, 190:].any()
    inside = hidden[:, :190]
    # A mean over b n/(2 length) independent spans or so.
    error = 5 * np.sqrt(share * 2 * length / inside.size)
    np.testing.assert_allclose(inside.mean(), share, atol=error)
    for place in (0, 100, 189):  # stationary: at every place
        np.testing.assert_allclose(inside[:, place].mean(), share, atol=5 * np.sqrt(share / b))
    ends = inside[:, :-1] & ~inside[:, 1:]
    # P(a span ends after a token) = 1/length, so that lengths are geometric with this mean.
    np.testing.assert_allclose(ends.sum() / inside[:, :-1].sum(), 1 / length, rtol=0.05)
    np.testing.assert_array_equal(given[~hidden], np.broadcast_to(ids, (b, n))[~hidden])
    first = np.argmax(hidden, axis=1)
    rows = np.flatnonzero(hidden.any(axis=1))
    np.testing.assert_array_equal(given[rows, first[rows]], 1000)
    number = np.cumsum(hidden & ~np.pad(hidden, ((0, 0), (1, 0)))[:, :-1], axis=1) - 1
    np.testing.assert_array_equal(given[hidden], 1000 + number[hidden] % 3)


def test_the_loss_is_the_mean_over_hidden_tokens_of_their_log_probability():
    params = init_t5(KEY, TINY)
    ids = jax.random.randint(KEY, (6, 9), 3, 17)
    mask = jnp.arange(9) < jnp.array([9, 9, 5, 3, 0, 7])[:, None]
    fields = {"sentinels": jnp.array([17, 18, 19]), "share": 0.4, "length": 1.5}
    loss, aux = losses.span_corruption_loss(params, KEY, ids, mask, module=TINY, **fields)
    given, hidden = losses.corrupt_spans(KEY, ids, mask, **fields)
    h = np.asarray(TINY.apply({"params": params}, given, mask), np.float64)
    logits = h @ np.asarray(params["shared"]["embedding"], np.float64).T / np.sqrt(8)
    logits[..., 17:] = -np.inf
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = [-log_p[i, j, ids[i, j]] for i, j in np.argwhere(hidden)]
    np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-5)
    right = [np.argmax(log_p[i, j]) == ids[i, j] for i, j in np.argwhere(hidden)]
    np.testing.assert_allclose(aux["accuracy"], np.mean(right), atol=1e-6)
    nothing, _ = losses.span_corruption_loss(params, KEY, ids, jnp.zeros_like(mask), module=TINY, **fields)
    assert nothing == 0


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"share": 0.0}, r"share: a number in \(0, 1\) is needed, got 0\.0"),
        ({"share": 1.0}, r"share: .* got 1\.0"),
        ({"length": 0.5}, r"length: at least 1, .* got 0\.5"),
        ({"share": 0.8, "length": 3.0}, r"length: at least 1, and share/\(1 - share\), is needed, got 3"),
    ],
)
def test_spans_that_cannot_be_are_named(numbers, message):
    with pytest.raises(ValueError, match=message):
        losses.corrupt_spans(KEY, jnp.ones((2, 3), int), jnp.ones((2, 3), bool), sentinels=jnp.array([5]), **numbers)


@pytest.mark.slow
def test_an_encoder_learns_what_is_certain():
    """Each token follows from any other: a trained encoder is right but where it sees none (a twentieth)."""
    start = np.random.default_rng(0).integers(3, 6, 100)
    ids = np.concatenate([start[:, None] + 3 * np.arange(8), np.ones((100, 1))], axis=1).astype(np.int32)
    seen = []
    given = {"sentinels": (27, 28), "steps": 200, "report": lambda *what: seen.append(what)}
    module = sized_t5(30, "tiny")
    params = pretrain(KEY, module, init_t5(KEY, module), ids, np.ones_like(ids, bool), **given)
    assert [step for step, *_ in seen] == [20 * i for i in range(1, 11)]
    assert seen[0][2] < 0.5
    assert seen[-1][2] > 0.8
    assert jax.tree.structure(params) == jax.tree.structure(init_t5(KEY, module))


# --- sizes, tokenizers ---


def test_sizes_are_t5s_and_start_as_it_does():
    for name, fields in T5_SIZES.items():
        module = sized_t5(100, name)
        assert {field: getattr(module, field) for field in fields} == fields
    default = T5Encoder(100)
    assert t5_config(sized_t5(100, "small")) == t5_config(default)
    with pytest.raises(ValueError, match="size: one of tiny, mini, midi, small is needed, got 'large'"):
        sized_t5(100, "large")
    module = sized_t5(100, "midi")
    params = init_t5(KEY, module)
    layer = params["encoder"]["block__"]["layer__0"]["SelfAttention"]
    np.testing.assert_allclose(np.std(params["shared"]["embedding"]), 1, rtol=0.05)
    np.testing.assert_allclose(np.std(layer["k"]["kernel"]), 128**-0.5, rtol=0.05)
    np.testing.assert_allclose(np.std(layer["q"]["kernel"]), (128 * 16) ** -0.5, rtol=0.05)


def test_an_encoder_is_read_back_from_the_folder_it_was_written_to(tmp_path):
    module = sized_t5(30, "tiny")
    params = init_t5(KEY, module)
    save_pretrained(tmp_path, params, t5_config(module))
    loaded = load_module(tmp_path)
    assert loaded.module == module == module_from_config(t5_config(module))
    for mine, other in zip(jax.tree.leaves(params), jax.tree.leaves(loaded.params), strict=True):
        np.testing.assert_array_equal(mine, other)
    with pytest.raises(ValueError, match="module: an activation of transformers is needed"):
        t5_config(module.clone(activation=jnp.tanh))
    with pytest.raises(ValueError, match=r"module: .*T5 of transformers has no whitening.*clone\(whitened=False\)"):
        t5_config(module.clone(whitened=True))


def test_words_of_a_grammar_become_single_tokens(tmp_path):
    path = tmp_path / "tokenizer.json"
    texts = shapes("all").texts
    train_tokenizer(texts, path, vocabulary=256)
    first = path.read_bytes()
    train_tokenizer(texts, path, vocabulary=256)
    assert path.read_bytes() == first
    vocabulary = vocabulary_of(tmp_path)
    assert vocabulary.size <= 256
    assert vocabulary.sentinels == tuple(range(3, 13))
    assert (vocabulary.unknown, vocabulary.added) == (2, 1)
    words = np.array([len(text.split()) for text in texts])
    np.testing.assert_array_equal(count_tokens(path, texts), words + 1)
    ids, mask = tokenize(path, ["a red circle \u4e00 above", "a red circle above"], 8)
    assert (ids[0] == 2).sum() == 1
    np.testing.assert_array_equal(mask.sum(axis=1), [7, 5])
    assert ids[1, 4] == 1
    with pytest.raises(ValueError, match="texts: at least one that is not empty"):
        train_tokenizer(["", " "], path)


# --- the folder of an encoder ---


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "encoder"
    make_text_encoder(folder, CAPTIONS, size="tiny", seed=3, dtype="float32")
    return folder


def test_a_text_is_encoded_as_the_encoder_says(folder):
    encoder = load_text_encoder(folder)
    again = make_text_encoder(folder, ["other texts change nothing"], size="tiny", seed=3, dtype="float32")
    assert again.fingerprint == encoder.fingerprint
    assert encoder.shape == (8, 32)
    ids, mask = encoder.ids(CAPTIONS)
    np.testing.assert_array_equal(mask.sum(axis=1), [4, 5, 8, 0, 4])
    text = encoder(CAPTIONS)
    want = encoder.module.apply({"params": encoder.params}, ids, mask)
    np.testing.assert_allclose(text.embedding, np.where(mask[..., None], want, 0), atol=1e-6)
    np.testing.assert_array_equal(text.mask, mask)
    assert text.embedding.dtype == np.float32
    # Each text alone, with more padding, and among many others: the same.
    np.testing.assert_allclose(encoder([CAPTIONS[1]]).embedding[0], text.embedding[1], atol=1e-6)
    longer = TextEncoder(encoder.tokenizer, encoder.module, encoder.params, 12, "float32")
    np.testing.assert_allclose(longer(CAPTIONS).embedding[:, :8], text.embedding, atol=1e-5)
    many = encoder(CAPTIONS * 30)
    assert many.embedding.shape == (150, 8, 32)
    np.testing.assert_array_equal(many.embedding[-5:], text.embedding)
    np.testing.assert_array_equal(encoder(["  a red\tcircle"]).embedding, text.embedding[:1])
    assert encoder([]).embedding.shape == (0, 8, 32)
    half = TextEncoder(encoder.tokenizer, encoder.module, encoder.params, 8)(CAPTIONS)
    assert half.embedding.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half.embedding, text.embedding.astype(jnp.bfloat16))


def test_a_table_belongs_to_its_encoder(folder, tmp_path):
    encoder = load_text_encoder(folder)
    table = encoder.encode(CAPTIONS)
    assert table.texts == (CAPTIONS[0], CAPTIONS[1], CAPTIONS[2])
    np.testing.assert_array_equal(table(CAPTIONS).embedding, encoder(CAPTIONS).embedding)
    np.testing.assert_array_equal(table(CAPTIONS).mask, encoder(CAPTIONS).mask)
    marked = EncodedTexts(table.texts, table.embedding + 1, table.mask, table.fingerprint)
    more = encoder.encode([CAPTIONS[0], "a blue circle"], marked)
    assert more.texts == (*table.texts, "a blue circle")
    np.testing.assert_array_equal(more.embedding[:3], marked.embedding)  # not encoded again
    np.testing.assert_array_equal(more.embedding[3], encoder(["a blue circle"]).embedding[0])
    others = [
        TextEncoder(encoder.tokenizer, encoder.module, encoder.params, 9, "float32"),
        TextEncoder(encoder.tokenizer, encoder.module, encoder.params, 8, "bfloat16"),
        TextEncoder(encoder.tokenizer, encoder.module, jax.tree.map(lambda p: 2 * p, encoder.params), 8, "float32"),
    ]
    train_tokenizer(["another text"], tmp_path / "tokenizer.json")
    others.append(TextEncoder(tmp_path / "tokenizer.json", encoder.module, encoder.params, 8, "float32"))
    assert len({each.fingerprint for each in (encoder, *others)}) == 5
    for other in others:
        assert other.encode(["a blue circle"], marked).texts == ("a blue circle",)


def test_whitened_tokens_have_unit_covariance(folder, tmp_path):
    """Over the tokens they are fitted on; features that hardly vary stay small, and padding stays 0."""
    draw = np.random.default_rng(0)
    raw = draw.normal(size=(50, 6, 5)) @ draw.normal(size=(5, 5)) + 3.0
    raw[..., 4] = 2.0  # one feature that is the same in all
    mask = np.arange(6) < draw.integers(1, 7, 50)[:, None]
    raw[~mask] = 1e6  # not looked at
    mean, matrix = fit_whitening(raw, mask)
    white = (raw[mask] - mean) @ matrix
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.diag([1, 1, 1, 1, 0.0]), atol=1e-4)
    np.testing.assert_array_equal(matrix, matrix.T)
    thin = raw * np.array([1, 1, 1, 1e-5, 1])  # below the least eigenvalue, which is 1e-4 of the largest
    mean, matrix = fit_whitening(thin, mask)
    largest = np.linalg.eigvalsh(np.cov(thin[mask].T, bias=True))[-1]
    assert np.linalg.eigvalsh(matrix)[-1] == pytest.approx(100 / largest**0.5, rel=1e-4)
    for value in (-7.7, 0.0):  # all alike: nothing blown up
        mean, matrix = fit_whitening(np.full((2, 3, 4), value), np.ones((2, 3), bool))
        assert np.isfinite(matrix).all()
        assert np.abs((np.full(4, value, np.float32) * (1 + 1e-6) - mean) @ matrix).max() < 0.1

    plain = load_text_encoder(folder)
    given = {"size": "tiny", "seed": 3, "dtype": "float32"}
    encoder = make_text_encoder(tmp_path / "white", CAPTIONS, whiten=True, **given)
    raw, white = plain(CAPTIONS), encoder(CAPTIONS)
    mean, matrix = fit_whitening(plain(CAPTIONS[:3]).embedding, raw.mask[:3])
    np.testing.assert_array_equal(white.mask, raw.mask)
    want = np.where(raw.mask[..., None], (raw.embedding - mean) @ matrix, 0)
    np.testing.assert_allclose(white.embedding, want, atol=1e-3)
    assert np.abs(white.embedding - raw.embedding).max() > 1
    assert encoder.fingerprint != plain.fingerprint
    assert load_text_encoder(tmp_path / "white").fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(load_text_encoder(tmp_path / "white")(CAPTIONS).embedding, white.embedding)
    stored = store_text_encoder(tmp_path / "copy", encoder)
    assert stored.fingerprint == load_text_encoder(tmp_path / "copy").fingerprint == encoder.fingerprint
    for whiten, at in ((False, tmp_path / "white"), (True, folder)):
        with pytest.raises(ValueError, match=f"whiten: .* holds an encoder with whiten {not whiten}, not {whiten}"):
            make_text_encoder(at, CAPTIONS, whiten=whiten, **given)
    (tmp_path / "white" / "whitening.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"text: .*white has no whitening: path: .* cannot be read"):
        load_text_encoder(tmp_path / "white")
    (tmp_path / "white" / "whitening.safetensors").unlink()
    with pytest.raises(ValueError, match=r"text: .*white has no whitening: .*no such file"):
        load_text_encoder(tmp_path / "white")


def test_weights_of_t5_are_read_where_they_are(tmp_path):
    module = sized_t5(200, "tiny").clone(gated=True)
    params = init_t5(KEY, module)
    save_pretrained(tmp_path / "t5", params, t5_config(module))
    train_tokenizer(CAPTIONS, tmp_path / "t5" / "tokenizer.json")
    encoder = make_text_encoder(tmp_path / "out", CAPTIONS, encoder=str(tmp_path / "t5"), length=5)
    assert not (tmp_path / "out" / "encoder").exists()
    assert load_text_encoder(tmp_path / "out").fingerprint == encoder.fingerprint
    ids, mask = tokenize(tmp_path / "t5", CAPTIONS[:3], 5)
    want = module.apply({"params": params}, ids, mask)
    got = encoder(CAPTIONS[:3]).embedding.astype(np.float32)
    np.testing.assert_allclose(got, np.where(mask[..., None], want, 0), rtol=2**-8, atol=1e-3)
    white = make_text_encoder(tmp_path / "white", CAPTIONS, encoder=str(tmp_path / "t5"), whiten=True, dtype="float32")
    assert not (tmp_path / "white" / "encoder").exists()
    tokens = load_text_encoder(tmp_path / "white")(CAPTIONS[:3])
    np.testing.assert_allclose(tokens.embedding[tokens.mask].mean(axis=0), 0, atol=1e-3)
    assert load_text_encoder(tmp_path / "white").fingerprint == white.fingerprint
    with pytest.raises(ValueError, match=r"weights: .* holds an encoder with weights .*t5, not"):
        make_text_encoder(tmp_path / "out", CAPTIONS, encoder=str(tmp_path / "other"), length=5)


def test_folders_and_arguments_that_do_not_fit_are_named(folder, tmp_path):
    encoder = load_text_encoder(folder)
    parts = encoder.tokenizer, encoder.module, encoder.params
    for make, message in (
        (lambda: TextEncoder(*parts, 1), "length: more than 1 tokens are needed, at most 4096, got 1"),
        (lambda: TextEncoder(*parts, 4097), "length: more than 1 tokens are needed, at most 4096, got 4097"),
        (lambda: TextEncoder(*parts, 8, "float16"), "dtype: one of float32, bfloat16 is needed, got 'float16'"),
        (lambda: TextEncoder(parts[0], TINY, parts[2], 8), r"tokenizer: .* has \d+ ids, the encoder is for 20"),
        (
            lambda: make_text_encoder(folder, CAPTIONS, size="mini", seed=3, dtype="float32"),
            "size: .* holds an encoder",
        ),
        (lambda: make_text_encoder(folder, CAPTIONS, size="tiny", seed=3), "dtype: .* float32, not bfloat16"),
        (lambda: make_text_encoder(tmp_path / "a", [""]), "texts: at least one"),
        (lambda: make_text_encoder(tmp_path / "a", CAPTIONS, encoder="t5"), "encoder: random, pretrained or a folder"),
        (lambda: make_text_encoder(tmp_path / "a", CAPTIONS, encoder=""), "encoder: random, pretrained or a folder"),
        (lambda: make_text_encoder(tmp_path / "a", CAPTIONS, tokenizer="none"), "tokenizer: no file none"),
        (lambda: load_text_encoder(tmp_path), r"text: .* holds no encoded texts \(there is no encode\.json"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    (tmp_path / "encode.json").write_text("{}")
    with pytest.raises(ValueError, match=r"text: .*encode\.json is damaged"):
        load_text_encoder(tmp_path)
    (tmp_path / "encode.json").write_text((folder / "encode.json").read_text())
    with pytest.raises(ValueError, match=r"text: .* has no encoder"):
        load_text_encoder(tmp_path)


def test_what_cannot_be_made_leaves_nothing_behind(folder, tmp_path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if "extra_id" not in each["content"]]
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {name: i for name, i in vocabulary.items() if "extra_id" not in name}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "broken.json").write_text('{"version":')
    out, plain = tmp_path / "out", tmp_path / "plain"
    for options, message in (
        ({"length": 1}, "length: more than 1 tokens are needed, at most 4096, got 1"),
        ({"length": 5000}, "length: more than 1 tokens are needed, at most 4096, got 5000"),
        ({"length": 0, "tokenizer": folder}, "length: more than 1 tokens are needed, at most 4096, got 0"),
        ({"tokenizer": tmp_path / "broken.json"}, r"tokenizer: .*broken\.json is not a tokenizer\.json"),
        ({"tokenizer": plain, "encoder": "pretrained"}, r"tokenizer: .*plain/tokenizer\.json has no <extra_id_0>"),
    ):
        with pytest.raises(ValueError, match=message):
            make_text_encoder(out, CAPTIONS, size="tiny", **options)
        assert not out.exists()
    with pytest.raises(ValueError, match=r"folder: .*broken\.json/out cannot be made: Not a directory"):
        make_text_encoder(tmp_path / "broken.json" / "out", CAPTIONS, size="tiny")


def test_a_folder_keeps_its_tokenizer(folder, tmp_path):
    same = {"size": "tiny", "seed": 3, "dtype": "float32"}
    train_tokenizer(["another vocabulary"], tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer: .* holds an encoder with another than .*; name another folder"):
        make_text_encoder(folder, CAPTIONS, tokenizer=tmp_path, **same)
    found = make_text_encoder(folder, CAPTIONS, tokenizer=folder / "tokenizer.json", **same)
    assert found.fingerprint == load_text_encoder(folder).fingerprint


def test_an_encoder_that_overflows_is_named(folder):
    encoder = load_text_encoder(folder)
    last = lambda path, leaf: leaf * np.float32(3.4e38) if path[1].key == "final_layer_norm" else leaf
    largest = jax.tree_util.tree_map_with_path(last, encoder.params)
    with pytest.raises(ValueError, match="texts: the encoder has values that are not finite for 'a red circle'"):
        dataclasses.replace(encoder, params=largest)(CAPTIONS)


def test_a_damaged_tokenizer_is_of_its_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"text: .*copy has no encoder: .*tokenizer\.json is not a tokenizer\.json"):
        load_text_encoder(tmp_path / "copy")


# --- the command line ---


def test_damage_of_the_folder_is_named_with_what_helps(capfd, tmp_path):
    (tmp_path / "c.txt").write_text("a cat\na dog\n")
    out = tmp_path / "out"
    line = ["encode-text", tmp_path / "c.txt", "--out", out, "--size", "tiny"]
    done(capfd, *line)
    whole = (out / "texts.npz").read_bytes()
    (out / "texts.npz").write_bytes(whole[:-50])
    said = refused(capfd, *line)
    assert said.startswith(f"diffjax: out: {out / 'texts.npz'} holds no encoded texts")
    assert "write it anew by encode-text, once it is removed" in said
    (out / "texts.npz").unlink()  # as it says
    assert "2 captions were new" in done(capfd, *line)
    assert load_texts(out / "texts.npz").texts == ("a cat", "a dog")
    (out / "encode.json").write_text("{")
    said = refused(capfd, *line)
    assert said.startswith(f"diffjax: out: {out / 'encode.json'} is damaged")
    assert f"remove {out}, and write it anew by encode-text" in said
    (tmp_path / "empty").mkdir()
    said = refused(capfd, "encode-text", tmp_path / "empty", "--out", tmp_path / "b")
    assert said.startswith(f"diffjax: captions: no image in {tmp_path / 'empty'}")
    said = refused(capfd, *line[:3], tmp_path / "c.txt" / "out")
    assert said.startswith("diffjax: out: ")


def all_digit_captions():
    return [text for n in (1, 2) for text in digit_scenes("all", objects=n).texts]


@pytest.mark.slow
@covers("encode-text", "captions", "out", "vocabulary", "encoder", "size", "steps", "length", "dtype", "whiten", "seed")
def test_captions_of_a_grammar_are_encoded_once(capfd, tmp_path):
    out = tmp_path / "texts"
    line = ["encode-text", "digit_scenes", "--out", out, "--size", "tiny", "--vocabulary", "80", "--dtype", "float32"]
    line += ["--encoder", "pretrained", "--steps", "20", "--seed", "5", "--length", "6", "--whiten"]
    said = done(capfd, *line)
    assert "450 captions, 450 different" in said
    assert "450 captions were new" in said
    tokens = count_tokens(out / "tokenizer.json", want_texts := all_digit_captions())
    cut = f"cut: {np.sum(tokens > 6)} captions have more than 6 tokens, the longest {tokens.max()}; they lose their end"
    assert cut in said
    assert said.count("nats a hidden token") == 10
    table = load_texts(out / "texts.npz")
    want = make_text_encoder(
        tmp_path / "same",
        table.texts,
        size="tiny",
        vocabulary=80,
        encoder="pretrained",
        steps=20,
        seed=5,
        length=6,
        dtype="float32",
        whiten=True,
    )
    assert table.fingerprint == want.fingerprint
    assert set(table.texts) == set(want_texts)
    np.testing.assert_array_equal(table.embedding[:40], want(table.texts[:40]).embedding)
    before = (out / "texts.npz").stat().st_mtime_ns
    assert "0 captions were new" in done(capfd, *line)
    assert (out / "texts.npz").stat().st_mtime_ns == before
    (tmp_path / "more.txt").write_text("an \u00fcber seven\n\na two above a nine\n", encoding="utf-8")
    said = done(capfd, "encode-text", tmp_path / "more.txt", *line[2:])
    assert "2 captions, 2 different" in said
    assert "1 captions were new" in said
    assert "unknown: 1 captions have characters without a token, the first 'an \u00fcber seven'" in said
    assert len(load_texts(out / "texts.npz").texts) == 451
    assert "seed: " in refused(capfd, *line, "--seed", "6")


@covers("encode-text", "field", "tokenizer")
def test_captions_of_files_are_encoded(capfd, tmp_path):
    images = folder_of(tmp_path / "images", [{**each, "caption": each["text"]} for each in LINES])
    said = done(capfd, "encode-text", images, "--out", tmp_path / "a", "--size", "tiny", "--field", "caption")
    assert "6 captions, 4 different, 1 empty (no condition)" in said
    table = load_texts(tmp_path / "a" / "texts.npz")
    assert set(table.texts) == set(TIDY) - {""}
    tokenizer = tmp_path / "a" / "tokenizer.json"
    line = ["encode-text", images / "metadata.jsonl", "--out", tmp_path / "b", "--size", "tiny"]
    done(capfd, *line, "--tokenizer", tokenizer)
    other = load_texts(tmp_path / "b" / "texts.npz")
    assert other.fingerprint == table.fingerprint
    np.testing.assert_array_equal(other(TIDY).embedding, table(TIDY).embedding)
    for i, (source, message) in enumerate(
        (
            (tmp_path / "absent", "captions: shapes, digit_scenes, a file or a folder is needed"),
            (images / "0.png", "captions: .* byte 0x89 is no UTF-8"),
            ("", "captions: shapes, digit_scenes, a file or a folder is needed, got ''"),
        )
    ):
        assert re.search(message, refused(capfd, "encode-text", source, "--out", tmp_path / f"c{i}"))
    (tmp_path / "empty.txt").write_text(" \n")
    assert "holds none that is not empty" in refused(
        capfd, "encode-text", tmp_path / "empty.txt", "--out", tmp_path / "c"
    )
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"file_name": "0.png"}))
    assert 'line 1: there is no "text"' in refused(capfd, "encode-text", bad, "--out", tmp_path / "c").replace("'", '"')
    assert "vocabulary: at least 1" in refused(
        capfd, "encode-text", "shapes", "--out", tmp_path / "c", "--vocabulary", "0"
    )
    assert "out: the name of a folder" in refused(capfd, "encode-text", "shapes", "--out", bad)
    assert not (tmp_path / "c").exists()
    assert len(IMAGES) == 6
