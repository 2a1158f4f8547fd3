"""How far samples are from what was held out, with what the measure says of perfect and of useless samples."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffjax._typing import Cond
from diffjax.cli._draw import Draw
from diffjax.cli._hosts import log
from diffjax.cli._print import is_watched, print_line
from diffjax.config import Data, FactorReader
from diffjax.config._conditions import on_device, take
from diffjax.data import Scenes
from diffjax.metrics import Alignment
from diffjax.process import AbstractGaussianProcess
from diffjax.training import gather_rows, is_main, local_copy

_WIDEST = 1024  # pixels whose covariance is taken as it is: its root costs width^3
_PROJECTIONS = 256
_NEIGHBOUR = 3  # of precision and recall: the paper's


class Features(NamedTuple):
    """What images are compared by: a name for what they are, and images [n, *d] -> numbers [n, k]."""

    name: str
    of: Callable[[np.ndarray], np.ndarray]


def pixels(shape: tuple[int, ...]) -> Features:
    """The pixels of images [*d] as they are, or random projections of them where there are too many.

    A projection is Gaussian with variance 1/k, so that squared lengths are the same in expectation; the same at every
    call, so that results compare.
    """
    width = int(np.prod(shape))
    if width <= _WIDEST:
        return Features("", lambda images: images.reshape(len(images), -1))

    def project(images: np.ndarray) -> np.ndarray:
        rng, found = np.random.default_rng(0), np.zeros((len(images), _PROJECTIONS), np.float32)
        flat = images.reshape(len(images), -1)
        for at in range(0, width, 4096):
            part = flat[:, at : at + 4096]
            found += part @ rng.standard_normal((part.shape[1], _PROJECTIONS), np.float32)
        return found / _PROJECTIONS**0.5

    return Features(f"{_PROJECTIONS} random projections", project)


def measure(
    draw: Draw, data: Data, *, n: int, seed: int, features: Features | None = None
) -> tuple[dict[str, float], np.ndarray, Cond]:
    """Distances of n samples to what is held out, with those of perfect and of useless samples; x and conditions.

    All processes draw; process 0 measures, and the others have no distances. Images are compared by `features`, their
    pixels by default.
    """
    cond = proportional_conditions(data.train[1], n)
    start = time.perf_counter()
    x = draw(n, cond, seed)
    seconds = time.perf_counter() - start
    found = {}
    if is_main() and len(data.shape) == 1:
        found = _measure_plane(x, data)
    elif is_main():
        found = _measure_images(x, data, pixels(data.shape) if features is None else features)
    return {"samples": n, "sampling seconds": seconds, **found}, x, cond


def proportional_conditions(cond: Cond, n: int) -> Cond:
    """n conditions [n, ...]: of labels `proportional_labels`, of others as many of each of these [m, ...] up to one."""
    if cond is None or (isinstance(cond, np.ndarray) and cond.ndim == 1):
        return None if cond is None else proportional_labels(cond, n)
    m = len(jax.tree.leaves(cond)[0])
    return take(cond, np.arange(n) * m // n if n < m else np.arange(n) % m)


def proportional_labels(labels: np.ndarray, n: int) -> np.ndarray:
    """n labels in order, each class as often as in `labels` up to one: the quantiles (i + 1/2)/n.

    >>> proportional_labels(np.array([2, 0, 0, 2, 2, 2]), 3).tolist()
    [0, 2, 2]
    """
    at = (2 * np.arange(n) + 1) * len(labels) // (2 * n)
    return np.sort(np.asarray(labels))[at].astype(np.int32)


def _measure_images(x: np.ndarray, data: Data, features: Features) -> dict[str, float]:
    """Squared Frechet distances, precision and recall of features, and distances to the nearest training image."""
    from diffjax.metrics import feature_statistics, frechet_distance, nearest_distances, precision_recall

    train, held_out = data.train[0], data.held_out[0]
    shuffled = np.random.default_rng(0).permuted(train.reshape(len(train), -1), axis=1).reshape(train.shape)
    of = f" ({features.name})" if features.name else ""
    target = feature_statistics(features.of(held_out))
    rows = {"samples": x, "floor, training images": train, "ceiling, shuffled pixels": shuffled}
    results = {}
    for name, images in _shown(rows, "Frechet distances"):
        key = f"Frechet distance to held out{of}: {name}"
        results[key] = frechet_distance(feature_statistics(features.of(images)), target)
    n = min(map(len, (x, train, held_out)))  # the balls around a set's items shrink as it grows: all have as many
    if n > _NEIGHBOUR:
        reference = features.of(spread(held_out, n))
        rows = {"samples": x, "ceiling, training images": train}  # useless samples' balls are large: recall may be 1
        for name, images in _shown(rows, "precision and recall"):
            found = precision_recall(features.of(spread(images, n)), reference, k=_NEIGHBOUR)
            for what, value in found._asdict().items():
                results[f"{what} (k = {_NEIGHBOUR}, {n} images each){of}: {name}"] = value
    for name, images in _shown({"samples": x, "held out": held_out}, "nearest training images"):
        nearest = nearest_distances(images, train)
        results[f"nearest training image: {name}, median"] = float(np.median(nearest))
        results[f"nearest training image: {name}, least"] = float(np.min(nearest))
    return results


def spread(images: np.ndarray, n: int) -> np.ndarray:
    """n of the images [m, *d], evenly from all: in order of their labels the first ones are of some classes only."""
    return images[np.arange(n) * len(images) // n]


def _shown(rows: dict[str, Any], what: str) -> Iterator[tuple[str, Any]]:
    """The rows one after the other; it is said what is measured of them, and a terminal shows a bar that names each."""
    print_line(f"measuring: {what} ...")
    with tqdm(rows.items(), leave=False, disable=not is_watched()) as bar:
        for name, row in bar:
            bar.set_description(name)
            yield name, row


def _measure_plane(x: np.ndarray, data: Data) -> dict[str, float]:
    """Sliced Wasserstein distances, in units of the data."""
    from diffjax.metrics import sliced_wasserstein

    train, held_out = (jnp.asarray(part[0]) for part in (data.train, data.held_out))
    distance = lambda y: float(sliced_wasserstein(jax.random.key(0), jnp.asarray(y), held_out))
    noise = jax.random.normal(jax.random.key(1), x.shape) * held_out.std(0) + held_out.mean(0)
    rows = {"samples": x, "floor, other data": train[: len(x)], "ceiling, a Gaussian": noise}
    measured = _shown(rows, "sliced Wasserstein distances")
    return {f"sliced Wasserstein distance to held out: {name}": distance(y) for name, y in measured}


def measure_likelihood(
    draw: Draw, data: Data, n: int, seed: int, process: AbstractGaussianProcess | None = None
) -> dict[str, float]:
    """The mean over held-out items of what the family has: their log density, or a bound, by its kind.

    exact   log p(x)
    bound   a lower bound of it, and beside it the tighter ones that the family has
    flow    log p(x) along the flow of a diffusion: an exact trace in the plane, one probe beyond. It is the density of
            slightly noised x: at the lower end that `log_likelihood` takes in float32, which is the process's own or
            logsnr 14 where that comes first. The solver's tolerance, 1e-3, is far below the spread of items

    Of the model as it was trained: neither guidance nor clipping has a part in it. In nats per dimension of x as the
    model sees it (images: in [-1, 1]), higher is better. Nothing is dequantised: the density of images of whole grey
    levels gives no bits per dimension as papers report them. The probability of these levels does, log2(levels) being
    what knowing nothing costs; fewer are better. The standard error is that of the mean over items, with n - 1 in its
    variance.

    Args:
      draw: the family and its params.
      data: of which the first items held out are taken.
      n: how many, from two to all that are held out.
      seed: of probes, and of what else is drawn.
      process: of a diffusion, as it was trained.

    Raises:
      ValueError: the family has no likelihood.
    """
    each = -(-n // jax.process_count())  # a process has as many rows as every other; the surplus repeats the last
    index = np.minimum(np.arange(each) + jax.process_index() * each, n - 1)
    x, cond = on_device(take(data.held_out, index))
    assert draw.family.log_bound is not None
    log(f"compiling the likelihood, then measuring it on {n} held-out items ...")
    size = int(np.prod(data.shape))
    params, key = local_copy(draw.params), jax.random.key(seed)
    what, kind = _kind(draw, process)
    of = " of x in [-1, 1]" if len(data.shape) == 3 else " of x"
    unit = "nats per dimension" + ("" if draw.family.discrete else of)
    results = {}
    for bound, log_bound in {kind: draw.family.log_bound, **draw.family.tighter_bounds}.items():
        found, _ = log_bound(params, key, x, cond, index=jnp.asarray(index))
        nats = gather_rows(np.asarray(found))[:n].astype(np.float64) / size
        results |= _mean(f"{what} of held out, {unit} ({bound})", nats)
        if draw.family.discrete:
            results |= _mean(f"bits per dimension of held out ({bound})", -nats / math.log(2))
    name = f"{what} of held out, {unit} ({kind})"
    if data.log_prob is not None:
        exact = data.log_prob(jnp.asarray(data.held_out[0][:n]))
        results[f"{name}: mean of the exact density"] = float(jnp.mean(exact)) / size
    return results


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name}: mean": float(values.mean()),
        f"{name}: standard error": float(values.std(ddof=1) / len(values) ** 0.5),
    }


def _kind(draw: Draw, process: AbstractGaussianProcess | None) -> tuple[str, str]:
    """What a likelihood is called, and of which kind it is."""
    kind = draw.family.likelihood_kind
    if process is None:
        density = "log probability" if draw.family.discrete else "log density"
        return (density if kind == "exact" else f"lower bound on the {density}"), str(kind)
    from diffjax.likelihood import FLOAT32_LOGSNR

    end = min(FLOAT32_LOGSNR, float(process.logsnr(process.interval()[0])))
    return "log density", f"continuous, at logsnr {end:.3g}"


def measure_alignment(
    draw: Draw, data: Data, reader: Callable[[], FactorReader], x: np.ndarray, seed: int
) -> dict[str, float]:
    """How many factors of samples are those that their captions name, as classifiers read them.

    Of captions that are trained on, and apart of the combinations that are held out: of each kind of factor (size,
    colour, ...), of all factors, and of pictures with all of them right. Beside them what the classifiers read in real
    images of such scenes, whose factors are known (ceiling), and the samples against captions in another order (floor).
    All processes draw; process 0 measures.

    Args:
      draw: of the run.
      data: scenes with captions.
      reader: of their factors; called where there is something to read.
      x: samples [n, *d] of `measure`.
      seed: of the samples of held-out combinations.
    """
    rows: dict[str, tuple[np.ndarray, np.ndarray, Scenes | None]] = {}
    scenes = data.scenes
    if scenes is None or data.factors is None:
        return {}
    rows["alignment"] = x, proportional_conditions(data.factors, len(x)), scenes
    if data.unseen is not None:
        cond, factors = (proportional_conditions(each, len(x)) for each in data.unseen)
        rows["alignment of held-out combinations"] = draw(len(x), cond, seed), factors, scenes.held_out()
    if not is_main():
        return {}
    results, read = {}, reader()
    for what, (images, factors, of) in rows.items():
        other = factors[np.random.default_rng(0).permutation(len(factors))]
        found = {"samples": read.alignment(images, factors), "floor, shuffled captions": read.alignment(images, other)}
        found["ceiling, real images"] = read.on_real_images(scenes=of)
        for name, each in found.items():
            shares = {"factors": each.share, "all": each.all_right} | by_kind(each, scenes.factors)
            results |= {f"{what}, {kind} right: {name}": share for kind, share in shares.items()}
    return results


def by_kind(found: Alignment, names: Sequence[str]) -> dict[str, float]:
    """The shares of each kind of factor, named last in names [k]: that of "colour", of "first colour" and "second".

    >>> by_kind(Alignment(np.array([1.0, 0.5, 0.25]), 0.6, 0.1), ("first digit", "second digit", "relation"))
    {'digit': 0.75, 'relation': 0.25}
    """
    kinds = [name.split()[-1] for name in names]
    return {
        kind: float(np.mean([share for share, of in zip(found.by_factor, kinds, strict=True) if of == kind]))
        for kind in dict.fromkeys(kinds)
    }


def show(results: dict[str, float]) -> None:
    """Prints a line for each result."""
    width = max(map(len, results))
    for name, value in results.items():
        print_line(f"{name:<{width}}  {value:,.4g}" if isinstance(value, float) else f"{name:<{width}}  {value:,}")
