"""Data from files: what is read is what was written, what is damaged is named, and archives are not believed.

The real MNIST and CIFAR-10 are looked for in $DIFFJAX_DATA, or in ../shared/data beside the repository.
"""

import dataclasses
import gzip
import io
import os
import re
import struct
import sys
import tarfile
import zipfile
import zlib

import cloudpickle
import numpy as np
import pytest
from PIL import Image
from real_data import DATA, needs_cifar, needs_mnist

from diffjax import config as c
from diffjax.cli import read_known
from diffjax.data import (
    HuggingFace,
    ImageFolder,
    Npz,
    Subset,
    from_arrays,
    from_images,
    from_items,
    load_cifar10,
    load_mnist,
    random_flip,
    uniforms,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 6, 3), np.uint8)
LABELS = np.arange(12) % 3
CLASSES = ("ant", "bee", "cow")


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def image_files():
    """{path: bytes} of IMAGES, a folder a class; the order of the paths is that of (label, index)."""
    return {f"{CLASSES[y]}/{i:02}.png": encoded(IMAGES[i]) for i, y in enumerate(LABELS)}


def write(path, files):
    """A folder of files, or a zip where the path says so."""
    if path.suffix != ".zip":
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


ORDER = np.argsort(LABELS, kind="stable")


@pytest.mark.parametrize("name", ["folder", "a.zip"])
def test_an_image_folder_holds_what_was_written(tmp_path, name):
    extra = {"README.txt": b"words", "ant/.hidden.png": b"", "__MACOSX/ant/00.png": b""}
    folder = ImageFolder(write(tmp_path / name, image_files() | extra))
    assert folder.classes == CLASSES
    np.testing.assert_array_equal(folder.labels, LABELS[ORDER])
    for i, item in enumerate(ORDER):
        image, label = folder[i]
        np.testing.assert_array_equal(image, IMAGES[item])
        assert label == LABELS[item]
    source = cloudpickle.loads(cloudpickle.dumps(from_items(folder)))  # as a worker gets it
    x, y = source(0, 0, 12)
    order = from_arrays(np.arange(12))(0, 0, 12)[0].astype(int)
    np.testing.assert_array_equal(y, folder.labels[order])
    np.testing.assert_allclose(x, IMAGES[ORDER][order] / 127.5 - 1, atol=1e-6)
    assert (x.dtype, y.dtype) == (np.float32, np.int32)
    assert ImageFolder(tmp_path / name).digest() == folder.digest()


def test_images_without_classes_and_within_a_folder(tmp_path):
    files = {f"set/train/{i}.png": encoded(image) for i, image in enumerate(IMAGES[:3])}
    folder = ImageFolder(write(tmp_path, files), under="set/train", channels=1)
    assert (folder.classes, folder.labels, folder[0][1], folder[0][0].shape) == (None, None, None, (6, 6, 1))
    grey = IMAGES[0] @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as pillow documents its mode L
    np.testing.assert_allclose(folder[0][0][..., 0], grey, atol=1.01)
    x, y = from_items(Subset(folder, np.array([2, 2])))(0, 0, 2)
    assert y is None
    np.testing.assert_array_equal(x[0], x[1])


def test_images_are_scaled_and_cut_in_the_middle(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10, 0], wide[:, 20:, 2] = 255, 255  # red, black, blue
    wide[:, 10:20, 1] = 12 * np.arange(10)  # a ramp in the middle
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: what a camera on its side writes
    turned = encoded(np.rot90(wide), "JPEG", exif=exif, quality=100, subsampling=0)
    write(tmp_path, {"a/0.png": encoded(wide), "a/1.jpg": turned})
    folder = ImageFolder(tmp_path, size=5)
    image = folder[0][0]
    assert image.shape == (5, 5, 3)
    assert not image[:, 1:4, [0, 2]].any()
    everything = np.asarray(Image.fromarray(wide).resize((15, 5), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(image.astype(int), everything[:, 5:10], atol=1)
    ramp = 12 * (2 * np.arange(5) + 0.5)
    np.testing.assert_allclose(image[:, 1:4, 1], np.broadcast_to(ramp[1:4], (5, 3)), atol=1.5)
    np.testing.assert_allclose(folder[1][0].astype(int)[:, 1:4], image[:, 1:4], atol=12)
    write(tmp_path, {"a/2.png": encoded(wide[:, :7])})
    unequal = from_items(ImageFolder(tmp_path))
    with pytest.raises(ValueError, match=r"items: .*/a/\d\.\w+ has shape \(10, .*, .*/a/\d\.\w+ \(10, "):
        unequal(0, 0, 6)


@pytest.mark.parametrize("name", ["folder", "a.zip"])
@pytest.mark.parametrize("cut", [0, 20, -40])
def test_a_damaged_image_is_named_with_its_path(tmp_path, name, cut):
    files = image_files()
    files["bee/04.png"] = files["bee/04.png"][:cut]
    folder = ImageFolder(write(tmp_path / name, files))
    with pytest.raises(ValueError, match=rf"{name}/bee/04\.png: image cannot be decoded: "):
        from_items(folder)(0, 0, 12)


def pictures_with_transparency():
    """{name: (file, RGB on white)}: a black pixel that is opaque, one half transparent and two fully, in each form."""
    alpha = np.array([[255, 128], [0, 0]], np.uint8)
    image = np.zeros((2, 2, 4), np.uint8)
    image[..., 3] = alpha
    half = np.array([[0, 127], [255, 255]], np.uint8)
    full = np.array([[0, 0], [255, 255]], np.uint8)
    palette = Image.fromarray(np.array([[0, 0], [1, 1]], np.uint8), "L").convert("P")
    palette.putpalette([0, 0, 0, 0, 9, 0])
    file, gif = io.BytesIO(), io.BytesIO()
    palette.save(file, "PNG", transparency=1)
    palette.save(gif, "GIF", transparency=1)
    key = np.zeros((2, 2, 3), np.uint8)
    key[1] = 7
    return {
        "a.png": (encoded(image), half),
        "b.png": (encoded(image[..., 2:]), half),  # grey and alpha
        "c.png": (file.getvalue(), full),
        "d.gif": (gif.getvalue(), full),
        "e.png": (encoded(key, transparency=(7, 7, 7)), full),
        "f.webp": (encoded(image, "WEBP", lossless=True, exact=True), half),
        "g.tif": (encoded(image, "TIFF"), half),
    }


def test_what_is_transparent_is_laid_on_white(tmp_path):
    pictures = pictures_with_transparency()
    write(tmp_path, {f"x/{name}": file for name, (file, _) in pictures.items()})
    for channels in (1, 3):
        folder = ImageFolder(tmp_path, channels=channels)
        for i, (name, (_, want)) in enumerate(pictures.items()):
            found = folder[i][0]
            assert found.shape == (2, 2, channels)
            np.testing.assert_allclose(found, np.broadcast_to(want[..., None], found.shape), atol=1, err_msg=name)
    (tmp_path / "known.png").write_bytes(pictures["a.png"][0])
    known = read_known(str(tmp_path / "known.png"), (2, 2, 3))
    np.testing.assert_allclose(known[0, ..., 1], pictures["a.png"][1] / 127.5 - 1, atol=1e-2)


def deep(kind):
    """A colour picture of 16 bits a channel, 2 x 1 pixels of 0x1234."""
    if kind == "PPM":
        return b"P6 2 1 65535\n" + b"\x12\x34" * 6
    if kind == "TIFF":
        tags = [(256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140)]
        tags += [(277, 3, 1, 3), (278, 4, 1, 1), (279, 4, 1, 12), (284, 3, 1, 1)]
        entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        return (
            b"II*\0"
            + struct.pack("<IH", 8, 10)
            + entries
            + b"\0" * 4
            + struct.pack("<3H", 16, 16, 16)
            + b"\x34\x12" * 6
        )
    channels = {"RGB": 3, "RGBA": 4, "LA": 2}[kind]
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", 2, 1, 16, {3: 2, 4: 6, 2: 4}[channels], 0, 0, 0)
    pixels = zlib.compress(b"\0" + b"\x12\x34" * 2 * channels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "PPM", "TIFF"])
def test_colours_of_16_bits_are_refused_and_not_cut(tmp_path, kind):
    Image.open(io.BytesIO(deep(kind))).load()  # pillow reads it
    path = write(tmp_path, {f"a/0.{ {'PPM': 'ppm', 'TIFF': 'tif'}.get(kind, 'png') }": deep(kind)})
    message = r"8 bits a channel are needed, got 16; convert it, or give floats in \[-1, 1\] in an \.npz"
    with pytest.raises(ValueError, match=rf"a/0\.\w+: .*{message}"):
        ImageFolder(path)[0]
    raw = {"image": {"bytes": deep(kind), "path": None}}
    with pytest.raises(ValueError, match=f"row 0, column image: .*{message}"):
        HuggingFace(Rows([raw]))[0]


def test_images_of_16_bits_and_huge_ones_are_refused(tmp_path, monkeypatch):
    files = {"a/0.png": encoded(np.full((4, 4), 40_000, np.uint16)), "a/1.png": encoded(IMAGES[0])}
    folder = ImageFolder(write(tmp_path, files))
    with pytest.raises(ValueError, match=r"a/0\.png: .* 8 bits a channel are needed"):
        folder[0]
    monkeypatch.setattr("diffjax.data._pictures._MOST_PIXELS", 35)
    with pytest.raises(ValueError, match=r"a/1\.png: .* 6 x 6 is more than 35 pixels"):
        folder[1]


def test_a_zip_with_a_flipped_bit_is_named(tmp_path):
    path = write(tmp_path / "a.zip", image_files())
    whole = path.read_bytes()
    at = whole.index(b"IDAT", whole.index(b"bee/04.png")) + 20
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"a\.zip/bee/04\.png: cannot be read: Bad CRC-32"):
        from_items(ImageFolder(path))(0, 0, 12)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../a.png", r"'\.\./a\.png' is refused: its path leads out"),
        ("/etc/a.png", "leads out"),
        ("ant/../../a.png", "leads out"),
        ("C:/a.png", "leads out"),
        ("ant\\..\\a.png", "leads out"),
        ("..\\a.png", "leads out"),
        ("\\a.png", "leads out"),
        ("C:\\a.png", "leads out"),
        ("ant\\0.png", r"'ant\\\\0\.png' is refused: 'ant/0\.png' is there, too"),
        ("link", "'link' is refused: it is a link"),
        ("large", "'large' is refused: it holds 5,000 bytes, more than 4,000"),
        ("secret", "'secret' is refused: it is encrypted; unpack it, and give .* again without a password"),
    ],
)
def test_archives_are_not_believed(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("diffjax.data._files.LARGEST", 4000)
    member = zipfile.ZipInfo(name)
    member.external_attr = (0o120777 if name == "link" else 0o100644) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("ant/0.png", encoded(IMAGES[0]))
        archive.writestr(member, b"0" * (5000 if name == "large" else 1))
    if name == "secret":
        whole = bytearray((tmp_path / "a.zip").read_bytes())
        whole[whole.rindex(b"PK\x01\x02") + 8] |= 1  # its flag in the directory
        (tmp_path / "a.zip").write_bytes(whole)
    with pytest.raises(ValueError, match=rf"a\.zip: member .*{message}"):
        ImageFolder(tmp_path / "a.zip")


def patched(path, *, method=None, flags=0, name=None):
    """A zip with the method and flags of its members changed, and a part of their names: (before, after) in bytes."""
    whole = bytearray(path.read_bytes())
    if name is not None:
        whole = bytearray(whole.replace(*name))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = whole.find(signature)
        while start >= 0:
            both = int.from_bytes(whole[start + at : start + at + 2], "little") | flags
            whole[start + at : start + at + 2] = both.to_bytes(2, "little")
            if method is not None:
                whole[start + at + 2 : start + at + 4] = method.to_bytes(2, "little")
            start = whole.find(signature, start + 4)
    path.write_bytes(whole)
    return path


def test_a_zip_made_by_windows_is_the_same_data(tmp_path):
    """Some programs there write backslashes, for folders too."""
    plain = ImageFolder(
        write(tmp_path / "plain.zip", {"set/ant/": b""} | {f"set/{k}": v for k, v in image_files().items()})
    )
    path = write(tmp_path / "windows.zip", {"set/ant/": b""} | {f"set/{k}": v for k, v in image_files().items()})
    for folder in (b"ant", b"bee", b"cow"):
        patched(path, name=(b"set/" + folder + b"/", b"set\\" + folder + b"\\"))
    assert "set\\ant\\" in zipfile.ZipFile(path).namelist()
    windows = cloudpickle.loads(cloudpickle.dumps(ImageFolder(path)))
    assert (windows.names, windows.digest(), windows.left_out) == (plain.names, plain.digest(), {})
    for i in range(12):
        np.testing.assert_array_equal(windows[i][0], plain[i][0])


def test_what_python_cannot_unpack_is_named_with_the_way_on(tmp_path):
    way_on = "unpack it, and give the folder or pack it again"
    for i, (method, name) in enumerate([(9, "Deflate64"), (98, "PPMd"), (1, "Shrink"), (77, "a method of which")]):
        path = patched(write(tmp_path / f"{i}.zip", image_files()), method=method)
        with pytest.raises(
            ValueError, match=rf"{i}\.zip: member 'ant/00\.png' is refused: .*{name}.*{method}\); {way_on}"
        ):
            ImageFolder(path)
    path = patched(write(tmp_path / "u.zip", image_files()), flags=0x800, name=(b"ant/", b"an\xe9/"))
    with pytest.raises(
        ValueError, match=rf"u\.zip .* member b'an\\xe9/00\.png' is said to be UTF-8 and is not; {way_on}"
    ):
        ImageFolder(path)
    for what, change in (("Deflate64", {"method": 9}), ("encrypted", {"flags": 1})):
        np.savez(tmp_path / "a.npz", x=IMAGES, mask=np.ones(3))
        path = patched(tmp_path / "a.npz", **change)
        with pytest.raises(ValueError, match=rf"data\.path: no \.npz .* x at .*a\.npz: it is .*{what}.*; {way_on}"):
            c.build_data(c.DataConfig(name="file", path=str(path)))
        with pytest.raises(ValueError, match=r"known: .*a\.npz cannot be read: "):
            read_known(str(path), (6, 6, 3))


def test_names_that_are_not_utf8_are_names(tmp_path):
    """Of classes and of pictures; what is wrong with one is said of it."""
    path = write(tmp_path / "set", {f"caf\udce9/{i}\udce9.png": encoded(IMAGES[i]) for i in range(3)})
    write(path, {"b/0.png": encoded(IMAGES[3]), "b/1.\udce9": b""})
    folder = ImageFolder(path)
    assert folder.classes == ("b", "caf\udce9")
    assert len(folder.digest()) == 64
    assert folder.left_out == {".\udce9": 1}
    np.testing.assert_array_equal(folder[3][0], IMAGES[2])
    (path / "caf\udce9" / "2\udce9.png").write_bytes(b"cut")
    with pytest.raises(ValueError, match=re.escape("caf\udce9/2\udce9.png") + ": image cannot be decoded"):
        folder[3]
    data = c.build_data(c.DataConfig(name="image_folder", path=str(path), skip_bad=True))
    assert "caf\udce9" in " ".join(data.about)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a.txt": b""}, {}, "path: no image in"),
        ({"a/0.png": b"", "1.png": b""}, {}, r"path: .*/1\.png lies next to folders of images"),
        ({"a/0.png": b""}, {"under": "b"}, "path: no image in .*/b/"),
        ({"a/0.png": b""}, {"size": 0}, "size: .* got 0"),
        ({"a/0.png": b""}, {"channels": 4}, "channels: .* got 4"),
    ],
)
def test_folders_that_are_none_are_named(tmp_path, files, options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(write(tmp_path, files), **options)
    (tmp_path / "b.zip").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"path: .*b\.zip is no zip that can be read"):
        ImageFolder(tmp_path / "b.zip")


def test_links_are_followed_and_cycles_named(tmp_path):
    write(tmp_path / "else" / "bee", {"1.png": encoded(IMAGES[1])})
    path = write(tmp_path / "set", {"ant/0.png": encoded(IMAGES[0])})
    (path / "bee").symlink_to(tmp_path / "else" / "bee")
    (path / "ant" / "2.png").symlink_to(tmp_path / "else" / "bee" / "1.png")
    (path / "ant" / "3.png").symlink_to(tmp_path / "nowhere.png")
    (path / "ant" / "4.png").symlink_to("4.png")
    folder = ImageFolder(path)
    assert folder.names == ["ant/0.png", "ant/2.png", "bee/1.png"]
    assert (folder.classes, folder.left_out) == (("ant", "bee"), {"links to nowhere": 2})
    np.testing.assert_array_equal(folder[2][0], IMAGES[1])
    (tmp_path / "else" / "bee" / "back").symlink_to(path)
    with pytest.raises(ValueError, match=r"path: .*/set/bee/back is a link back to .*/set, which it is in; remove"):
        ImageFolder(path)


def test_classes_that_are_numbers_are_in_their_order_and_what_is_left_out_is_counted(tmp_path):
    names = [str(i) for i in range(12)]
    files = {f"{name}/0.png": encoded(IMAGES[int(name)]) for name in names}
    files |= {"0/a.heic": b"", "0/b.HEIC": b"", "1/notes": b"", "1/.hidden": b"", "1/__MACOSX/a.txt": b""}
    folder = ImageFolder(write(tmp_path, files))
    assert folder.classes == tuple(names)
    assert folder.left_out == {".heic": 2, "without a suffix": 1}
    for item in range(12):
        np.testing.assert_array_equal(folder[item][0], IMAGES[folder.labels[item]])
    data = c.build_data(c.DataConfig("image_folder", str(tmp_path), holdout=0.25))
    counts = np.bincount(data.train[1], minlength=12)
    each = ", ".join(f"{i} = {i}: {n}" for i, n in enumerate(counts[: 1 + np.flatnonzero(counts)[-1]]))
    assert data.about == (
        "data: 9 items to train on, 3 held out",
        f"classes (label = name: items to train on): {each}",
        "left out: 2 .heic, 1 without a suffix",
    )


@pytest.mark.parametrize("worst", [2**32, 2**31, -(2**31) - 1])
def test_labels_beyond_32_bits_are_refused(tmp_path, worst):
    labels = np.array([0, worst])
    rows = Rows([{"image": Image.fromarray(image), "label": int(y)} for image, y in zip(IMAGES, labels, strict=False)])
    np.savez(tmp_path / "a.npz", x=IMAGES[:2], y=labels)
    for make in (
        lambda: from_arrays(IMAGES[:2], labels),
        lambda: from_images(IMAGES[:2], labels.astype(np.uint64) if worst > 0 else labels),
        lambda: from_items(HuggingFace(rows, cond="label"))(0, 0, 2),
        lambda: Npz(tmp_path / "a.npz", y="y"),
    ):
        with pytest.raises(ValueError, match=rf"cond: whole numbers of 32 bits are needed .* got {worst}"):
            make()
    for name, arrays in {"x": (np.array([1e39, 1]),), "cond": (np.ones(2), np.array([1e39, 1]))}.items():
        with pytest.raises(ValueError, match=rf"{name}: 1e\+39 is beyond float32"):
            from_arrays(*arrays)


def test_images_are_bytes_or_floats():
    for dtype in (np.uint16, np.int64, bool):
        with pytest.raises(ValueError, match=rf"x: bytes \(uint8\), or floats in \[-1, 1\], .* got {np.dtype(dtype)}"):
            from_images(IMAGES.astype(dtype))


class Counted:
    """Items that remember which were read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.read.append(index)
        return np.full((2, 2, 1), index, np.uint8), index % 2


def test_a_part_reads_its_own_items_alone():
    whole, parts = Counted(), [Counted() for _ in range(3)]
    x, y = from_items(whole)(0, 3, 12)
    assert len(whole.read) == 12
    pairs = [from_items(items)(0, 3, 12, part=(i, 3)) for i, items in enumerate(parts)]
    assert [items.read for items in parts] == [whole.read[0:4], whole.read[4:8], whole.read[8:12]]
    np.testing.assert_array_equal(np.concatenate([pair[0] for pair in pairs]), x)
    np.testing.assert_array_equal(np.concatenate([pair[1] for pair in pairs]), y)
    with pytest.raises(ValueError, match="items: at least one"):
        from_items(Subset(whole, np.zeros(0, int)))


def test_flips_belong_to_seed_and_position():
    """Each image or its mirror image, one half of each, anew in each epoch; whatever batch or part it is in."""
    plain, flipped = from_images(IMAGES), from_images(IMAGES, augment=random_flip)
    x, y = plain(5, 0, 600)[0], flipped(5, 0, 600)[0]
    same = np.all(x == y, axis=(1, 2, 3))
    np.testing.assert_array_equal(y[~same], x[~same][:, :, ::-1])
    assert abs(same.sum() - 300) < 4 * np.sqrt(600 / 4)
    for size in (12, 200):
        np.testing.assert_array_equal(np.concatenate([flipped(5, n, size)[0] for n in range(600 // size)]), y)
    np.testing.assert_array_equal(flipped(5, 1, 200, part=(1, 2))[0], y[300:400])
    epochs = same.reshape(50, 12)
    assert len({tuple(epoch) for epoch in epochs}) > 45
    assert np.any(flipped(6, 0, 600)[0] != y)


def test_uniforms_are_uniform_and_independent_between_streams():
    positions = np.arange(2**62, 2**62 + 20_000)
    u, v = uniforms(3, positions), uniforms(3, positions, stream=1)
    counts, _, _ = np.histogram2d(u, v, bins=10, range=[[0, 1], [0, 1]])
    assert np.sum((counts - 200) ** 2 / 200) < 99 + 5 * np.sqrt(2 * 99)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(20_000)
    np.testing.assert_array_equal(uniforms(3, positions[::-7]), u[::-7])


# --- MNIST ---


def idx(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_files_are_read(tmp_path, end):
    pack = gzip.compress if end else bytes
    (tmp_path / f"train-images-idx3-ubyte{end}").write_bytes(pack(idx(IMAGES[..., 0])))
    (tmp_path / f"train-labels.idx1-ubyte{end}").write_bytes(pack(idx(LABELS)))
    x, y = load_mnist(tmp_path)
    np.testing.assert_array_equal(x, IMAGES[..., :1])
    np.testing.assert_array_equal(y, LABELS)
    assert (x.dtype, y.dtype) == (np.uint8, np.int32)
    with pytest.raises(ValueError, match=r"path: no t10k-images-idx3-ubyte\[\.gz\]"):
        load_mnist(tmp_path, "test")
    with pytest.raises(ValueError, match=r"split: .* 'valid'"):
        load_mnist(tmp_path, "valid")


GOOD = idx(IMAGES[..., 0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD[:-1], r"declares 432 bytes, but holds 431"),
        (GOOD + b"0", r"declares 432 bytes, but holds more"),
        (GOOD[:7], r"is no idx file of rank 3"),
        (idx(IMAGES), r"is no idx file of rank 3: .* 0x804"),
        (struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), r"is no idx file of rank 3"),
        (idx(IMAGES[:5, ..., 0]), r"holds 5 images but 12 labels for train"),
    ],
)
def test_mnist_files_that_are_wrong_are_named(tmp_path, data, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    with pytest.raises(ValueError, match=message):
        load_mnist(tmp_path)


def test_gzipped_files_that_are_cut_or_no_gzip_are_named(tmp_path):
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    for data in (gzip.compress(GOOD)[:-20], b"nothing"):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(data)
        with pytest.raises(ValueError, match=r"images-idx3-ubyte\.gz is no idx file of rank 3"):
            load_mnist(tmp_path)


@needs_mnist
def test_the_real_mnist():
    """Its test part: the published counts of digits, and the mean of its pixels that everybody normalises by."""
    x, y = load_mnist(DATA / "mnist", "test")
    assert x.shape == (10_000, 28, 28, 1)
    assert np.bincount(y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert y[:5].tolist() == [7, 2, 1, 0, 4]
    assert x.mean() / 255 == pytest.approx(0.1325, abs=1e-4)


@needs_mnist
def test_the_mnist_preset_finds_its_data():
    data = c.build_data(c.DataConfig(name="mnist", path=str(DATA / "mnist"), holdout=0.1))
    assert (data.shape, data.classes) == ((28, 28, 1), 10)
    both = len(data.train[0]), len(data.held_out[0])
    assert both in ((9000, 1000), (60_000, 10_000))  # the test part alone, or all of it
    x, y = data.source(0, 0, 128)
    assert (x.min(), x.max(), x.dtype, y.dtype) == (-1, 1, np.float32, np.int32)


# --- CIFAR-10 ---


def cifar_files(labels=LABELS):
    """Six files of two records, and the images in them, channels last."""
    images = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
    records = [bytes([y]) + image.transpose(2, 0, 1).tobytes() for y, image in zip(labels, images, strict=True)]
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return {name: records[2 * i] + records[2 * i + 1] for i, name in enumerate(names)}, images


def tarred(path, files, **changes):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(changes.get("prefix", "cifar-10-batches-bin/") + name)
            member.size = len(data)
            if name == changes.get("link"):
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            archive.addfile(member, io.BytesIO(data))
    return path


def test_cifar10_is_read_from_a_folder_and_from_its_archive(tmp_path):
    files, images = cifar_files()
    write(tmp_path / "plain", files)
    write(tmp_path / "within", {f"cifar-10-batches-bin/{name}": data for name, data in files.items()})
    for path in (tmp_path / "plain", tmp_path / "within", tarred(tmp_path / "a.tar.gz", files)):
        x, y = load_cifar10(path)
        np.testing.assert_array_equal(x, images[:10])
        np.testing.assert_array_equal(y, LABELS[:10])
        np.testing.assert_array_equal(load_cifar10(path, "test")[0], images[10:])
        data = c.build_data(c.DataConfig(name="cifar10", path=str(path), flip=True))
        assert (data.shape, data.classes, len(data.train[0]), len(data.held_out[0])) == ((32, 32, 3), 3, 10, 2)


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ({"data_batch_2.bin": b"0" * 3072}, {}, r"data_batch_2\.bin'? holds 3072 bytes"),
        ({"data_batch_2.bin": bytes([10]) * 3073}, {}, r"data_batch_2\.bin holds label 10"),
        ({}, {"link": "data_batch_2.bin"}, r"data_batch_2\.bin' is refused: it is a link"),
        ({}, {"prefix": "../"}, r"data_batch_1\.bin' is refused: .* leads out"),
        ({}, {"prefix": "/tmp/"}, r"data_batch_1\.bin' is refused: .* leads out"),
        ({}, {"prefix": "a_"}, r"no data_batch_1\.bin in .* binary version"),
    ],
)
def test_cifar10_that_is_wrong_is_named(tmp_path, files, changes, message):
    with pytest.raises(ValueError, match=message):
        load_cifar10(tarred(tmp_path / "a.tar.gz", cifar_files()[0] | files, **changes))
    (tmp_path / "b.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"path: .*b\.tar\.gz"):
        load_cifar10(tmp_path / "b.tar.gz")
    with pytest.raises(ValueError, match=r"no data_batch_1\.bin in"):
        load_cifar10(tmp_path)


@needs_cifar
@pytest.mark.slow
def test_the_real_cifar10():
    """50,000 and 10,000 images in ten classes; the mean colour that everybody normalises by, within 5 errors."""
    data = c.build_data(c.DataConfig(name="cifar10", path=str(DATA / "cifar10.zip"), flip=True))
    train = data.source.items
    assert train.classes[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(train.labels).tolist() == [5000] * 10
    x, y = data.held_out
    assert x.shape == (10_000, 32, 32, 3)
    assert np.bincount(y).tolist() == [1000] * 10
    mean = (data.source(0, 0, 1000)[0].mean(axis=(1, 2)) + 1) / 2
    away = mean.mean(axis=0) - np.array([0.4914, 0.4822, 0.4465])
    assert np.all(np.abs(away) < 5 * mean.std(axis=0) / np.sqrt(1000))


# --- npz, tables ---


@pytest.mark.parametrize("kind", ["mapped", "compressed", "fortran"])
def test_an_npz_is_mapped_where_it_can_be(tmp_path, kind):
    images = np.asfortranarray(IMAGES) if kind == "fortran" else IMAGES
    (np.savez_compressed if kind == "compressed" else np.savez)(tmp_path / "a.npz", pad=np.ones(3), x=images, y=LABELS)
    items = Npz(tmp_path / "a.npz", y="y")
    assert isinstance(items.arrays[0], np.memmap) == (kind != "compressed")
    np.testing.assert_array_equal(items.arrays[0], IMAGES)
    sent = cloudpickle.dumps(from_items(items))
    assert len(sent) < 1000  # a worker maps the file itself
    want = from_images(IMAGES, LABELS)(1, 2, 5)
    for got in (from_items(items)(1, 2, 5), cloudpickle.loads(sent)(1, 2, 5)):
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(items[3][0], IMAGES[3])


def test_an_npz_that_is_wrong_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=IMAGES, y=LABELS[:5], objects=np.array([{}, 1]), one=np.ones(()))
    whole = path.read_bytes()
    for name in ("z", "objects"):
        with pytest.raises(ValueError, match=rf"path: no \.npz with an array {name} at"):
            Npz(path, name)
    for arrays in ({"y": "y"}, {"x": "one"}):
        with pytest.raises(ValueError, match=r"path: .* needs items along a leading axis"):
            Npz(path, **arrays)
    with pytest.raises(ValueError, match=r"no \.npz with an array z at .*: it holds x, y, objects, one$"):
        Npz(path, "z")
    np.save(tmp_path / "a.npy", IMAGES)
    remedy = r"it is an \.npy of one array; write np\.savez\(path, x=np\.load\(\.\.\.\)\)$"
    with pytest.raises(ValueError, match=rf"path: no \.npz with an array x at .*a\.npy: {remedy}"):
        Npz(tmp_path / "a.npy")
    header = whole.index(b"(12, 6, 6, 3)")
    path.write_bytes(whole[:header] + b"(99, 6, 6, 3)" + whole[header + 13 :])
    with pytest.raises(ValueError, match=r"its header says uint8\[99, 6, 6, 3\], but it holds"):
        Npz(path)


def test_a_mapped_file_that_is_written_over_is_named_and_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"

    def over(x):
        np.savez(path, x=x)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))  # file systems tell time coarsely

    def readers():
        np.savez(path, x=IMAGES)
        items = Npz(path)
        held = c.build_data(c.DataConfig("file", str(path)))
        sent = cloudpickle.dumps(from_items(items))
        return (
            lambda: from_items(items)(0, 0, 4),
            lambda: items[0],
            lambda: cloudpickle.loads(sent),
            lambda: held.source(0, 0, 4),
            lambda: held.held_out,
        )

    for i in range(5):
        for x, what in (
            (IMAGES[::-1], "was written again"),
            (IMAGES[:2], r"has \d+ bytes, and had \d+"),
            (None, "is gone"),
        ):
            read = readers()[i]
            path.unlink() if x is None else over(x)
            with pytest.raises(ValueError, match=rf"path: .*a\.npz has changed while it was read: it {what}; "):
                read()
    item = (np.savez(path, x=IMAGES), Npz(path)[0][0])[1]
    over(IMAGES[::-1])
    np.testing.assert_array_equal(item, IMAGES[0])  # a copy
    np.savez_compressed(path, x=IMAGES)
    items = Npz(path)
    path.unlink()
    np.testing.assert_array_equal(items[1][0], IMAGES[1])  # read whole before
    np.savez(path, x=np.ones((4, 2)))
    monkeypatch.setattr("diffjax.data._parts.check_unchanged", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # while its values are looked at, piece by piece
        c.build_data(c.DataConfig("file", str(path)))


class Table:
    """What `datasets.Dataset` looks like from here."""

    column_names = ("image", "label")
    features = {}  # noqa: RUF012

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == 5:
            raise OSError("cannot identify image file")
        return {"image": Image.fromarray(IMAGES[index]), "label": int(LABELS[index])}


class Rows(Table):
    """A table of rows of one's own."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_rows_of_a_table_are_items():
    items = HuggingFace(Table(), cond="label")
    image, label = items[4]
    np.testing.assert_array_equal(image, IMAGES[4])
    assert label == LABELS[4]
    assert from_items(Subset(items, np.arange(5)))(0, 0, 5)[1].dtype == np.int32
    assert HuggingFace(Table(), size=3, channels=1)[0][0].shape == (3, 3, 1)
    with pytest.raises(ValueError, match="row 5, column image: cannot identify"):
        from_items(items)(0, 0, 12)
    with pytest.raises(ValueError, match=r"columns among .* got 'picture'"):
        HuggingFace(Table(), "picture")


def test_array_records_are_read_and_checked(tmp_path):
    pytest.importorskip("array_record", reason="the extra `data` is not installed")
    from diffjax.data import ArrayRecords, write_records

    path = tmp_path / "a.array_record"
    write_records(path, zip(IMAGES, LABELS, strict=True))
    want = from_images(IMAGES, LABELS)(0, 0, 12)
    got = cloudpickle.loads(cloudpickle.dumps(from_items(ArrayRecords(path))))(0, 0, 12)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    write_records(tmp_path / "b.array_record", [(image, None) for image in IMAGES[:2]])
    both = ArrayRecords([path, tmp_path / "b.array_record"])
    assert (len(both), both[13][1]) == (14, None)
    np.testing.assert_array_equal(both[13][0], IMAGES[1])
    own = ArrayRecords(path, decode=lambda record: (np.array([len(record)], np.float32), None))
    assert own[0][0].shape == (1,)
    for record in (b"", b"x" * 200, np.array([{}]).dumps()):
        with pytest.raises(ValueError, match=r".+"):
            ArrayRecords(path).decode(record)
    write_records(tmp_path / "c.array_record", [(np.asfortranarray(IMAGES[0]), None)])
    np.testing.assert_array_equal(ArrayRecords(tmp_path / "c.array_record")[0][0], IMAGES[0])
    whole = path.read_bytes()
    at = whole.index(IMAGES[7].tobytes()[:20]) if IMAGES[7].tobytes()[:20] in whole else len(whole) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"a\.array_record"):
        from_items(ArrayRecords(path))(0, 0, 12)
    with pytest.raises(ValueError, match="no such file"):
        ArrayRecords(tmp_path / "absent")


# --- a configuration's folders ---


@pytest.mark.parametrize("name", ["folder", "a.zip"])
def test_a_configuration_finds_the_parts_of_an_image_folder(tmp_path, name):
    files = image_files()
    parted = {f"set/train/{key}": data for key, data in files.items()}
    parted |= {f"set/val/{key}": data for key, data in files.items() if key[-6:-4] > "05"}
    path = write(tmp_path / name, parted)
    config = c.DataConfig(name="image_folder", path=str(path), image_size=4, flip=True)
    data = c.build_data(config)
    assert (data.shape, data.classes, len(data.train[0]), len(data.held_out[0])) == ((4, 4, 3), 3, 12, 6)
    np.testing.assert_array_equal(np.bincount(data.train[1]), [4, 4, 4])
    assert cloudpickle.loads(cloudpickle.dumps(data.source))(0, 0, 6)[0].shape == (6, 4, 4, 3)
    assert data.about[2:] == ()
    beside = {"set/test/ant/0.png": files["ant/00.png"], "set/x.png": files["ant/00.png"], "set/val/bee/a.txt": b""}
    beside |= {f"set/test/{kind}/0.png": files["ant/00.png"] for kind in ("bee", "cow")}
    more = c.build_data(dataclasses.replace(config, path=str(write(tmp_path / f"more_{name}", parted | beside))))
    assert more.about[0] == "data: 12 items to train on, 3 held out"
    assert more.about[2] == "left out: 6 images of the folder val, 1 images in no folder"
    untold = c.build_data(c.DataConfig(name="image_folder", path=str(path), conditional=False))
    assert (untold.classes, untold.source(0, 0, 6, part=(1, 2))[1], untold.shape) == (None, None, (6, 6, 3))
    alone = write(tmp_path / f"alone_{name}", {f"set/{key}": data for key, data in files.items()})
    data = c.build_data(c.DataConfig(name="image_folder", path=str(alone), holdout=0.25))
    assert (data.classes, len(data.train[0]), len(data.held_out[0])) == (3, 9, 3)
    both = np.concatenate([data.train[0], data.held_out[0]])
    np.testing.assert_allclose(np.sort(both.ravel()), np.sort(IMAGES.ravel()) / 127.5 - 1, atol=1e-6)


def test_data_for_measures_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("diffjax.data._parts._IN_MEMORY", 5 * IMAGES[0].size)
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    data = c.build_data(c.DataConfig(name="file", path=str(tmp_path / "a.npz"), holdout=0.5))
    assert (len(data.train[0]), len(data.train[1]), len(data.held_out[0])) == (5, 5, 5)
    seen = {image.tobytes() for image in data.source(0, 0, 6)[0]}
    assert len(seen) == 6
    assert {image.tobytes() for image in data.train[0]} < seen


def test_records_say_what_they_need(tmp_path, monkeypatch):
    from diffjax.data import ArrayRecords, write_records

    for module in ("grain.sources", "array_record.python.array_record_module"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "a.array_record").write_bytes(b"")
    for call in (lambda: ArrayRecords(tmp_path / "a.array_record"), lambda: write_records(tmp_path / "b", [])):
        with pytest.raises(ImportError, match=r"needs Grain and array_record: pip install '\.\[data\]'"):
            call()
    with pytest.raises(ValueError, match=r"path: .*none: no such file"):
        ArrayRecords(tmp_path / "none")
