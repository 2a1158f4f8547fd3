"""How fast each source is, in images a second, and what a step waits for data.

    python benchmarks/data.py [--data FOLDER] [--seconds 3] [--workers 2]

1. sources: batches of 128 one after another, in this process, a second of the clock and of its CPU time (which a busy
   machine changes less). MNIST (idx) and CIFAR-10 (a zip of JPEG files) are looked for in FOLDER (by default
   $DIFFJAX_DATA, or ../shared/data beside the repository); arrays and records are made up.
2. prefetch: the JPEG files through a thread and through worker processes, after the first batch.
3. overlap: a step of 30 ms that only sleeps, with batches that take as long to read: seconds a step, one after the
   other and by `prefetch`.

Workers and ArrayRecord files need the extra `data`: `pip install ".[data]"` in diffjax's folder.

Two minutes on two idle CPU cores. Results: benchmarks/RESULTS.md.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from diffjax import data

SIZE = 128


def rate(batches, seconds):
    """Images a second of an iterator after its first batch: by the clock, and by this process's own time."""
    next(batches)
    count, start, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        count += len(next(batches)[0])
    return count / (time.perf_counter() - start), count / (time.process_time() - used)


def stream(source):
    step = 0
    while True:
        yield source(0, step, SIZE)
        step += 1


def sources(folder, scratch):
    """{name: source}, of what there is."""
    images = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    labels = np.arange(10_000) % 10
    np.savez(scratch / "images.npz", x=images, y=labels)
    found = {
        "arrays in memory, float32": data.from_arrays(images / np.float32(127.5) - 1, labels),
        "arrays in memory, bytes": data.from_images(images, labels),
        "the same, flipped at random": data.from_images(images, labels, augment=data.random_flip),
        "npz, mapped": data.from_items(data.Npz(scratch / "images.npz", y="y")),
    }
    try:
        data.write_records(scratch / "images.array_record", zip(images, labels, strict=True))
        found["ArrayRecord"] = data.from_items(data.ArrayRecords(scratch / "images.array_record"))
    except ImportError as missing:
        print(f"ArrayRecord: left out, {missing}")
    if (folder / "mnist").is_dir():
        found["MNIST, 28 x 28"] = data.from_images(*data.load_mnist(folder / "mnist", "test"))
    if (folder / "cifar10.zip").is_file():
        start = time.perf_counter()
        inside = data.ImageFolder(folder / "cifar10.zip", under="cifar10/train")
        print(f"  {'listing a zip of 60,000 files':34} {time.perf_counter() - start:8.2f} s")
        found["JPEG files in a zip"] = data.from_items(inside)
        larger = data.ImageFolder(folder / "cifar10.zip", under="cifar10/train", size=64)
        found["the same, scaled to 64 x 64"] = data.from_items(larger)
    return found


def overlap(seconds=0.03, steps=50):
    def source(seed, step, size):
        time.sleep(seconds)
        return np.zeros((size, 1), np.float32), None

    start = time.perf_counter()
    for step in range(steps):
        source(0, step, SIZE)
        time.sleep(seconds)
    alone = (time.perf_counter() - start) / steps
    with data.prefetch(source, 0, 0, SIZE, stop=steps) as batches:
        start = time.perf_counter()
        for _ in batches:
            time.sleep(seconds)
        return alone, (time.perf_counter() - start) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    beside = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DIFFJAX_DATA", beside)))
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, batches of {SIZE}; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        found = sources(options.data, Path(scratch))
        for name, source in found.items():
            clock, own = rate(stream(source), options.seconds)
            print(f"  {name:34} {clock:10,.0f} images/s, {own:10,.0f} a CPU second", flush=True)
        for workers in range(options.workers + 1) if "JPEG files in a zip" in found else ():
            start = time.perf_counter()
            with data.prefetch(found["JPEG files in a zip"], 0, 0, SIZE, workers=workers) as batches:
                next(batches)
                first = time.perf_counter() - start
                through, _ = rate(batches, options.seconds)
            name = f"JPEG files, {workers} workers" if workers else "JPEG files, a thread"
            print(f"  {name:34} {through:10,.0f} images/s   first batch after {first:.1f} s", flush=True)
    alone, ahead = overlap()
    print(f"  step and batch of 30 ms each: {1e3 * alone:.0f} ms in turn, {1e3 * ahead:.0f} ms by prefetch")


if __name__ == "__main__":
    main()
