"""Classifiers of the factors of scenes: what a sample shows is read, and compared with its caption.

    Scenes --train_factors--> FactorReader: images --> factors [n, k], canonical; features for the distances of metrics
    FOLDER/weights.safetensors  FOLDER/factors.json: of which scenes       <--save, factor_reader-->

Trained on fresh scenes of all combinations, held out or not: reading is not what is tested.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int, Int32
from tqdm import tqdm

from diffjax._numbers import checked_numbers
from diffjax._typing import Params
from diffjax.data import Scenes
from diffjax.data._digit_scenes import DigitPainter, digit_scenes
from diffjax.data._source import Batch, Part
from diffjax.metrics import Alignment, alignment
from diffjax.networks import FactorClassifier, factor_features, read_factors, split_factors
from diffjax.networks._adapters import from_linen
from diffjax.training import (
    Objective,
    averaged_params,
    init_state,
    load_weights,
    make_ema,
    make_train_step,
    save_weights,
)
from diffjax.training.checkpoint import write_durably

WEIGHTS, ABOUT = "weights.safetensors", "factors.json"
STEPS = 1500
_CHANNELS = (16, 32, 64)
_AT_A_TIME = 250
_SEED = 2**32 + 8
"""Of the scenes that a reader's own error is measured on: no run and no reader is trained on them."""


@dataclass(frozen=True, eq=False)
class FactorReader:
    """Reads the factors of pictures of scenes: `reader(images [n, h, w, c]) -> factors [n, k]`, in canonical form.

    Attributes:
      scenes: whose factors they are.
      classifier: the module.
      params: its parameters.
    """

    scenes: Scenes
    classifier: FactorClassifier
    params: Params

    def __call__(self, images: Float[np.ndarray, "n h w c"]) -> Int32[np.ndarray, "n k"]:
        found = self.scenes.canonical(self._batched(self._read, images))
        return found.astype(np.int32)

    def features(self, images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n d"]:
        """Features [n, d] of images, for `frechet_distance` and the like."""
        return self._batched(self._features, images)

    def alignment(self, images: Float[np.ndarray, "n h w c"], factors: Int[np.ndarray, "n k"]) -> Alignment:
        """How many factors of images are those that their captions name, [n, k] in any order of the objects."""
        return alignment(self(images), self.scenes.canonical(factors))

    @checked_numbers
    def on_real_images(self, n: int = 2000, *, scenes: Scenes | None = None) -> Alignment:
        """The same of n real images, of unseen scenes: 1 less the reader's own error. Digits are other hands'.

        Args:
          n: images.
          scenes: that they are of, such as those of held-out combinations; None: the reader's own.
        """
        return self.alignment(*real_images(self.scenes if scenes is None else scenes, n))

    def save(self, folder: str | Path) -> None:
        """Writes it to a folder, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, self.params)
        write_durably(folder / ABOUT, json.dumps(_about(self.scenes), indent=2) + "\n")

    @cached_property
    def _read(self):
        return jax.jit(partial(read_factors, self.classifier))

    @cached_property
    def _features(self):
        return jax.jit(partial(factor_features, self.classifier))

    def _batched(self, function: Callable[..., Any], images: np.ndarray) -> np.ndarray:
        """By batches of one size, so that one program does."""
        size, found = min(len(images), _AT_A_TIME), []
        for start in range(0, len(images), size):
            rows = np.minimum(np.arange(start, start + size), len(images) - 1)
            found.append(np.asarray(function(self.params, jnp.asarray(images[rows]))))
        return np.concatenate(found)[: len(images)]


def real_images(scenes: Scenes, n: int) -> Batch:
    """n images [n, h, w, c] and their factors [n, k], of scenes and of digits that no reader was trained on."""
    painter = scenes.painter
    if isinstance(painter, DigitPainter):
        scenes = replace(scenes, painter=digit_scenes(size=painter.size, images="test").painter)
    return scenes(_SEED, 0, n)


@checked_numbers
def train_factors(
    scenes: Scenes,
    *,
    steps: int = STEPS,
    batch_size: int = 32,
    learning_rate: float = 6e-3,
    seed: int = 0,
    progress: bool = False,
) -> FactorReader:
    """A reader of the factors of scenes, trained on fresh ones of all combinations.

    The loss is the sum over factors of the cross entropy, by Adam with one cycle of the learning rate. Half a minute
    for pictures of 16 x 16 pixels on two cores.

    Args:
      scenes: by `data.shapes` or `data.digit_scenes`, of any split.
      steps: updates.
      batch_size: scenes of an update.
      learning_rate: the largest.
      seed: of the scenes and the initial parameters.
      progress: whether to show a bar.
    """
    classifier = FactorClassifier(scenes.counts, _CHANNELS)
    network = from_linen(classifier)
    source = _Canonical(replace(scenes, rows=scenes.grammar.every))
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_onecycle_schedule(max(steps, 2), learning_rate))
    )
    objective = Objective(partial(_cross_entropy, network, scenes.counts), tx)
    state = init_state(jax.random.key(seed), network, tx, jnp.asarray(source(seed, 0, 2)[0]))
    step = jax.jit(make_train_step(objective, ema=make_ema(0.99)))
    with tqdm(total=steps, desc="compiling", unit="step", disable=not progress) as bar:
        for i in range(steps):
            state, _ = step(state, source(seed, i, batch_size))
            bar.set_description("factors", refresh=False)
            bar.update()
    return FactorReader(scenes, classifier, averaged_params(state))


@checked_numbers
def factor_reader(
    scenes: Scenes, folder: str | Path, *, report: Callable[[str], None] = lambda text: None, steps: int = STEPS
) -> FactorReader:
    """The reader of a folder; where it holds none of such scenes, one is trained and written to it.

    Args:
      scenes: whose factors are read.
      folder: of `FactorReader.save`.
      report: called with a line before training.
      steps: updates of the training.

    Raises:
      ValueError: the folder's weights are damaged, or there is something else in its place.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: the name of a folder is needed, got {folder}")
    try:
        known = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        known = None
    if known == _about(scenes) and (folder / WEIGHTS).exists():
        classifier = FactorClassifier(scenes.counts, _CHANNELS)
        image = jax.ShapeDtypeStruct((1, *scenes.shape), jnp.float32)
        like = jax.eval_shape(classifier.init, jax.random.key(0), image)["params"]
        try:
            return FactorReader(scenes, classifier, load_weights(folder / WEIGHTS, like))
        except ValueError as error:
            why = str(error).removeprefix("path: ")
            raise ValueError(f"folder: {why}; remove {folder}, and classifiers are trained anew") from None
    report(f"training classifiers of the factors, {steps:,} steps, for {folder} ...")
    reader = train_factors(scenes, steps=steps, progress=True)
    reader.save(folder)
    return reader


class _Canonical:
    """Scenes with their factors in canonical form."""

    def __init__(self, scenes: Scenes):
        self.scenes = scenes

    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        x0, factors = self.scenes(seed, step, size, part=part)
        return x0, self.scenes.canonical(factors)


def _about(scenes: Scenes) -> dict[str, Any]:
    """What scenes look like, whichever of them are drawn."""
    painter = {"painter": type(scenes.painter).__name__, "shape": list(scenes.shape)}
    return painter | {"factors": list(scenes.factors), "counts": list(scenes.counts), "jitter": scenes.jitter}


def _cross_entropy(network, counts, params, batch, context):
    """(sum over factors of the mean loss, {"accuracy"})."""
    x, factors = batch
    each = split_factors(network.apply(params, x, jnp.zeros(len(x)), key=context.key), counts)
    losses = [optax.softmax_cross_entropy_with_integer_labels(part, factors[:, i]) for i, part in enumerate(each)]
    right = jnp.stack([jnp.argmax(part, axis=-1) for part in each], axis=1) == factors
    return jnp.mean(sum(losses)), {"accuracy": jnp.mean(right)}
