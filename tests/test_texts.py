"""Captions of one's own data, and their encoded tokens: what is read is what was written, what is wrong is named."""

import json
import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffjax.data import (
    EncodedTexts,
    HuggingFace,
    ImageFolder,
    Subset,
    digit_scenes,
    from_arrays,
    from_items,
    load_texts,
    prefetch,
    shapes,
    with_texts,
)
from diffjax.data._items import Skipping
from diffjax.networks import Cascade, Text

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 3), np.uint8)
TEXTS = ("a red circle", "", "ein gr\u00fcner Kreis", "a red circle", "\u4e00\u4e2a\u5706", "two  words\n")
TIDY = ("a red circle", "", "ein gr\u00fcner Kreis", "a red circle", "\u4e00\u4e2a\u5706", "two words")


def encoded(texts, dtype=np.float32, tokens=3, width=2):
    """Row i of a caption holds i + 1, so that one sees whose it is; caption i has 1 + i % tokens of them."""
    texts = tuple(dict.fromkeys(text for text in texts if text))
    embedding = np.broadcast_to(1.0 + np.arange(len(texts))[:, None, None], (len(texts), tokens, width))
    mask = np.arange(tokens) <= np.arange(len(texts))[:, None] % tokens
    return EncodedTexts(texts, embedding.astype(dtype), mask, "abc")


def folder_of(path, lines, *, images=IMAGES, under="", raw=None):
    """A folder of images with a metadata.jsonl."""
    (path / under).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / under / f"{i}.png")
    content = "".join(json.dumps(line) + "\n" for line in lines).encode() if raw is None else raw
    (path / under / "metadata.jsonl").write_bytes(content)
    return path


def line(i, text):
    return {"file_name": f"{i}.png", "text": text}


LINES = [line(i, text) for i, text in enumerate(TEXTS)]


# --- the table ---


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_table_comes_back_from_its_file_as_it_was(tmp_path, dtype):
    table = encoded(TIDY, dtype)
    table.save(tmp_path / "texts.npz")
    loaded = load_texts(tmp_path / "texts.npz")
    assert isinstance(loaded.embedding, np.memmap)
    assert len(pickle.dumps(loaded)) < 300  # a worker maps the file itself
    back = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(table)).mask, table.mask)
    assert back.texts == table.texts
    assert back.fingerprint == "abc"
    assert back.shape == (3, 2)
    assert back.embedding.dtype == dtype
    np.testing.assert_array_equal(back.embedding.astype(float), table.embedding.astype(float))
    np.testing.assert_array_equal(back.mask, table.mask)
    assert [file.name for file in tmp_path.iterdir()] == ["texts.npz"]
    text = back(["two words", " ", "a red\tcircle"])
    assert isinstance(text, Text)
    assert text.embedding.dtype == dtype
    assert text.mask.dtype == bool
    np.testing.assert_array_equal(text.mask, [[1, 0, 0], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(text.embedding.astype(float)[:, 0, 0], [4, 0, 1])


def test_captions_that_are_not_there_are_named():
    table = encoded(["one"])
    np.testing.assert_array_equal(table.rows(["one", "", "\n one "]), [0, -1, 0])
    with pytest.raises(ValueError, match=r"texts: 2 of 3 are not encoded, the first 'two'; .* encode-text"):
        table(["two", "one", "three"])
    with pytest.raises(ValueError, match=rf"the first '{'word ' * 12}' \.\.\.; encode"):  # one line, whatever it is
        table(["word " * 1000])
    with pytest.raises(ValueError, match="texts: a list of strings is needed, got 'one'"):
        table("one")
    none = EncodedTexts((), np.zeros((0, 3, 2), np.float32), np.zeros((0, 3), bool))
    assert not none(["", ""]).mask.any()
    # A composed and a decomposed letter are one caption.
    assert encoded(["\u00fc"]).rows(["u\u0308"]).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"texts\[1\]: a string is needed .* got None"),
        (3, "got 3"),
        ("x" * 100_001, r"texts\[1\]: at most 100,000 characters are needed, got 100,001: 'xxx"),
        ("a\0b", r"texts\[1\]: character 1 is NUL; if the file is UTF-16, save it as UTF-8"),
        ("a\ud800", r"texts\[1\]: character 1 is half of a pair of UTF-16"),
    ],
)
def test_captions_that_are_none_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        encoded(["a"]).rows(["a", text])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"texts": ("a", "a")}, "each is needed once"),
        (lambda t: {"texts": ("a", "")}, "none empty"),
        (lambda t: {"texts": ("a",)}, r"of 1 texts are needed, got \[2, 3, 2\] and \[2, 3\]"),
        (lambda t: {"embedding": t.embedding[0]}, r"embedding: \[m, n, k\]"),
        (lambda t: {"mask": t.mask.astype(int)}, "a bool mask"),
        (lambda t: {"embedding": t.embedding.astype(np.float16)}, "bfloat16 or float32, .* got float16"),
    ],
)
def test_tables_whose_parts_do_not_fit_are_named(change, message):
    table = encoded(["a", "b"])
    with pytest.raises(ValueError, match=message):
        EncodedTexts(**{"texts": table.texts, "embedding": table.embedding, "mask": table.mask} | change(table))


def test_files_that_hold_no_table_are_named(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    (tmp_path / "cut.npz").write_bytes(b"PK")
    about = np.frombuffer(json.dumps({"texts": ["a"], "fingerprint": ""}).encode(), np.uint8)
    np.savez(tmp_path / "part.npz", about=about, embedding=np.ones((1, 3, 2)), mask=np.ones((1, 3), bool))
    for name in ("other", "cut", "part", "absent"):
        with pytest.raises(ValueError, match=f"path: .*{name}.npz holds no encoded texts: .* encode-text"):
            load_texts(tmp_path / f"{name}.npz")


def test_damaged_tables_are_named_with_what_helps(tmp_path):
    """encode-text would only add to a file that is there: it must be removed first."""
    path = tmp_path / "texts.npz"
    encoded(["a", "b"]).save(path)
    with np.load(path) as arrays:
        parts = dict(arrays)
    record = json.loads(parts["about"].tobytes())
    for change, message in (
        ({"texts": [1, 2]}, r"texts\[0\]: a string is needed"),
        ({"texts": "ab"}, "texts or fingerprint"),
        ({"texts": ["a", " b  c"]}, "texts or fingerprint"),  # no caption would ever be found there
        ({"fingerprint": None}, "texts or fingerprint"),
        ({"dtype": "bfloat16"}, "embedding: bfloat16 is needed, got float32"),
    ):
        about = np.frombuffer(json.dumps(record | change).encode(), np.uint8)
        np.savez(path, **parts | {"about": about})
        with pytest.raises(ValueError, match=f"{message}.*; write it anew by encode-text, once it is removed"):
            load_texts(path)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match="it is no regular file"):
        load_texts(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match=r"write it anew by encode-text$"):
        load_texts(tmp_path / "absent.npz")


# --- captions of images ---


@pytest.mark.parametrize("name", ["folder", "a.zip"])
def test_a_folder_of_images_has_its_captions(tmp_path, name):
    path = folder_of(tmp_path / "folder", LINES)
    if name == "a.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in path.iterdir():
                archive.write(file, file.name)
        path = tmp_path / name
    folder = ImageFolder(path, text="text")
    assert folder.texts == TIDY
    assert folder.left_out == {}
    assert ImageFolder(path).texts is None
    assert ImageFolder(path).left_out == {".jsonl": 1}
    assert folder.digest() != ImageFolder(path).digest()
    table = encoded(TIDY)
    items = with_texts(folder, table)
    image, text = items[4]
    np.testing.assert_array_equal(image, IMAGES[4])
    np.testing.assert_array_equal(text.embedding, table.embedding[2])
    assert items.describe(4) == folder.describe(4)
    source = from_items(items)
    x0, cond = source(0, 0, 6)
    assert isinstance(cond, Text)
    assert cond.embedding.shape == (6, 3, 2)
    order = [int(np.flatnonzero((np.float32(IMAGES) / 127.5 - 1 == x).all((1, 2, 3)))[0]) for x in x0]
    np.testing.assert_array_equal(cond.embedding, table([TIDY[i] for i in order]).embedding)
    np.testing.assert_array_equal(cond.mask, table([TIDY[i] for i in order]).mask)
    assert not cond.mask[order.index(1)].any()
    part = source(0, 0, 6, part=(1, 2))[1]
    np.testing.assert_array_equal(part.embedding, cond.embedding[3:])
    with prefetch(source, 0, 0, 6) as batches:
        device, text = next(iter(batches))
        np.testing.assert_array_equal(text.mask, cond.mask)
        np.testing.assert_array_equal(device, x0)


def test_captions_stay_with_their_items_whatever_is_left_out(tmp_path):
    path = folder_of(tmp_path, [line(i, f"number {i}") for i in range(6)])
    (path / "2.png").write_bytes(b"no picture")
    folder = ImageFolder(path, text="text")
    table = encoded([f"number {i}" for i in range(6)])
    some = with_texts(Subset(folder, np.array([5, 2, 3])), table)
    assert some[2][1].embedding[0, 0] == 4
    skipping = with_texts(Skipping(Subset(folder, np.array([5, 2, 3]))), table)
    with pytest.warns(UserWarning, match="skipped"):
        x0, cond = from_items(skipping)(0, 0, 3)
    for image, text in zip(x0, cond.embedding, strict=True):
        np.testing.assert_allclose(image, IMAGES[int(text[0, 0]) - 1] / 127.5 - 1, atol=1e-6)


def test_a_label_and_a_text(tmp_path):
    for name in ("cat", "dog"):
        folder_of(tmp_path, [line(i, f"{name} {i}") for i in range(2)], images=IMAGES[:2], under=name)
    folder = ImageFolder(tmp_path, text="text")
    assert folder.texts == ("cat 0", "cat 1", "dog 0", "dog 1")
    table = encoded(folder.texts)
    _, cond = from_items(with_texts(folder, table, labels=True))(0, 0, 4)
    assert isinstance(cond, Cascade)
    assert cond.label.dtype == np.int32
    np.testing.assert_array_equal(cond.label, cond.text.embedding[:, 0, 0] > 2)
    assert cond.low_resolution is None
    with pytest.raises(ValueError, match="labels: the items have none"):
        with_texts(ImageFolder(folder_of(tmp_path / "flat", LINES), text="text"), encoded(TIDY), labels=True)


def test_metadata_of_several_folders_and_of_the_one_above(tmp_path):
    folder_of(tmp_path, [line(i, f"train {i}") for i in range(2)], images=IMAGES[:2], under="set/train")
    folder_of(tmp_path, [], images=IMAGES[:2], under="set/test")
    (tmp_path / "set/test/metadata.jsonl").unlink()
    above = [{"file_name": f"test/{i}.png", "text": f"test {i}"} for i in range(2)]
    above += [{"file_name": "test\\0.png", "text": "test 0"}, {"file_name": "gone.png", "text": "x"}]
    (tmp_path / "set/metadata.jsonl").write_text("".join(json.dumps(each) + "\r\n" for each in above))
    assert ImageFolder(tmp_path, under="set/train", text="text").texts == ("train 0", "train 1")
    test = ImageFolder(tmp_path, under="set/test", text="text")
    assert test.texts == ("test 0", "test 1")
    assert test.left_out == {"lines of metadata.jsonl without an image": 3}


def test_accented_names_are_found_however_they_are_written(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "u\u0308.png")
    raw = b"\xef\xbb\xbf" + json.dumps({"file_name": "./\u00fc.png", "text": "\u00fc"}, ensure_ascii=False).encode()
    (tmp_path / "metadata.jsonl").write_bytes(raw + b"\n\n")
    assert ImageFolder(tmp_path, text="text").texts == ("\u00fc",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, r"no metadata\.jsonl in .*\"file_name\": \"0\.png\", \"text\": \"a caption\""),
        (LINES[:4], r"2 of 6 images have no line in metadata\.jsonl, the first .*/4\.png; .* empty text"),
        ([*LINES[:5], {"file_name": "5.png", "caption": "a"}], r"line 6: there is no 'text', but 'caption'"),
        ([*LINES[:5], line(5, None)], r"line 6: text: a string is needed \(an empty one for no caption\), got None"),
        ([*LINES[:5], line(5, ["a", "b"])], r"line 6: text: a string is needed .*, got \['a', 'b'\]"),
        ([*LINES, line(0, "another")], r"line 7: 0\.png had another caption in .*, line 1"),
        ([*LINES, {"text": "a"}], "line 7: a file_name is needed, got None"),
        ([*LINES, {"file_name": "../0.png", "text": "a"}], r"line 7: file_name leads out of its folder: '\.\./0\.png'"),
        ([*LINES, [1]], r"line 7: an object is needed, got \[1\]"),
        (b'{"file_name": "0.png", "text": "a"}\n{"file', "line 2: it is no JSON"),
        ('{"file_name": "0.png", "text": "gr\u00fcn"}\n'.encode("latin-1"), "line 1: byte 0xfc is no UTF-8"),
        (json.dumps(LINES[0]).encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        (json.dumps(LINES[0]).encode("utf-32"), "it is UTF-32; save it as UTF-8"),
        ([line(0, "a\ud800")], "line 1: text: character 1 is half of a pair"),
        ([line(0, "a\0b")], "line 1: text: character 1 is NUL; if the file is UTF-16, save it as UTF-8"),
        ([line(0, "word " * 30_000)], "line 1: text: at most 100,000 characters are needed, got 150,000"),
    ],
)
def test_metadata_that_is_wrong_is_named(tmp_path, lines, message):
    raw = lines if isinstance(lines, bytes) else None
    path = folder_of(tmp_path, [] if lines is None or raw else lines, raw=raw)
    if lines is None:
        (path / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=f"text: .*{message}"):
        ImageFolder(path, text="text")


# --- rows of a table, records, arrays ---


class Table:
    """What `datasets.Dataset` looks like from here."""

    column_names = ("image", "label", "text")
    features = {}  # noqa: RUF012

    def __init__(self, texts=TEXTS):
        self.texts = texts

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == "text":
            return self.texts
        return {"image": Image.fromarray(IMAGES[index]), "label": index % 2, "text": self.texts[index]}


def test_a_column_of_a_table_holds_captions():
    items = HuggingFace(Table(), cond="label", text="text")
    assert items.texts == TIDY
    assert HuggingFace(Table()).texts is None
    _, cond = from_items(with_texts(items, encoded(TIDY), labels=True))(0, 0, 6)
    assert cond.text.mask.shape == (6, 3)
    with pytest.raises(ValueError, match=r"columns among .* got 'caption'"):
        HuggingFace(Table(), text="caption")
    with pytest.raises(ValueError, match=r"text: row 1, column text: a string is needed .* got None"):
        _ = HuggingFace(Table(["a", None, *TEXTS[2:]]), text="text").texts


def test_records_hold_captions(tmp_path):
    pytest.importorskip("array_record", reason="the extra `data` is not installed")
    from diffjax.data import ArrayRecords, write_records

    path = tmp_path / "a.array_record"
    write_records(path, ((image, i) for i, image in enumerate(IMAGES)), TEXTS)
    records = ArrayRecords(path)
    assert records.texts == TIDY
    np.testing.assert_array_equal(records[3][0], IMAGES[3])
    assert records[3][1] == 3
    _, cond = from_items(with_texts(records, encoded(TIDY), labels=True))(0, 0, 6)
    np.testing.assert_array_equal(cond.text.mask, encoded(TIDY)([TIDY[i] for i in cond.label]).mask)
    plain = tmp_path / "b.array_record"
    write_records(plain, [(IMAGES[0], None)])
    assert ArrayRecords(plain).texts is None
    with pytest.raises(ValueError, match="ArrayRecords has no captions"):
        with_texts(ArrayRecords(plain), encoded(TIDY))
    with pytest.raises(ValueError, match="zip"):
        write_records(tmp_path / "c.array_record", [(IMAGES[0], None)], TEXTS)
    write_records(tmp_path / "d.array_record", [(IMAGES[0], None)], ["a"])
    with pytest.raises(ValueError, match=r"record 1 of .* a string is needed .* got None"):
        _ = ArrayRecords([tmp_path / "d.array_record", plain]).texts


def test_captions_of_arrays_are_given():
    items = from_arrays(np.arange(6.0)).items
    x0, cond = from_items(with_texts(items, encoded(TIDY), TEXTS))(0, 0, 6)
    np.testing.assert_array_equal(cond.mask, encoded(TIDY)([TIDY[int(i)] for i in x0]).mask)
    with pytest.raises(ValueError, match="texts: one an item is needed, 6, got 2"):
        with_texts(items, encoded(TIDY), TEXTS[:2])
    with pytest.raises(ValueError, match="texts: Arrays has no captions; give them"):
        with_texts(items, encoded(TIDY))
    with pytest.raises(ValueError, match="texts: 1 of 6 are not encoded, the first 'two words'"):
        with_texts(items, encoded(TIDY[:5]), TEXTS)


@pytest.mark.parametrize("make", [shapes, digit_scenes])
def test_scenes_come_with_their_captions(make):
    scenes = make(objects=1, size=16)
    table = encoded(scenes.texts, tokens=5)
    x0, cond = scenes.captioned(table)(0, 3, 8, part=(1, 2))
    images, factors = scenes(0, 3, 8)
    np.testing.assert_array_equal(x0, images[4:])
    np.testing.assert_array_equal(cond.embedding, table(scenes.captions(factors[4:])).embedding)
    assert cond.mask.any(axis=1).all()
    with pytest.raises(ValueError, match=r"are not encoded, the first 'an? "):
        make("test", objects=1).captioned(table)
