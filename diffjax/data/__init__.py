"""Data: what to learn from, as NumPy arrays on the host.

    arrays: load_digits, load_mnist, load_cifar10, yours --from_arrays, from_images--+
    read as used: ImageFolder, Npz, ArrayRecords, HuggingFace ----------from_items --+--> source(seed, step, size)
    toy densities in the plane, scenes with captions --------------------------------+    -> x0 [size, *d], cond or None

    captions --EncodedTexts--> with_texts(items, encoded), scenes.captioned(encoded): cond is a Text

    source --prefetch--> batches on the device, made ahead by a thread or by worker processes

A source is a pure function with random access: the same seed, step and size give the same batch, always, so that the
step number is the whole position in the data. There is no iterator to save or to resume. `part=(i, n)` gives the i-th
of n equal parts of that batch, for processes that each hold a share; only its own items are read.
"""

from diffjax.data._arrays_source import from_arrays as from_arrays, from_images as from_images
from diffjax.data._cifar10 import load_cifar10 as load_cifar10
from diffjax.data._digit_scenes import digit_scenes as digit_scenes
from diffjax.data._digits import load_digits as load_digits
from diffjax.data._encoded import encoded as encoded
from diffjax.data._hugging_face import HuggingFace as HuggingFace
from diffjax.data._image_folder import ImageFolder as ImageFolder
from diffjax.data._items import Items as Items, Subset as Subset, from_items as from_items
from diffjax.data._mnist import load_mnist as load_mnist
from diffjax.data._npz import Npz as Npz
from diffjax.data._order import random_flip as random_flip, uniforms as uniforms
from diffjax.data._prefetch import Prefetch as Prefetch, WorkerDied as WorkerDied, prefetch as prefetch
from diffjax.data._records import ArrayRecords as ArrayRecords, write_records as write_records
from diffjax.data._scenes import Scene as Scene, Scenes as Scenes
from diffjax.data._shapes import shapes as shapes
from diffjax.data._source import Source as Source, whole as whole
from diffjax.data._texts import EncodedTexts as EncodedTexts, load_texts as load_texts, with_texts as with_texts
from diffjax.data._toys import (
    Checkerboard as Checkerboard,
    Mixture as Mixture,
    checkerboard as checkerboard,
    mixture as mixture,
    swiss_roll as swiss_roll,
    two_moons as two_moons,
)
