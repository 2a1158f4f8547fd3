"""What a run is conditioned on, as trees of arrays: labels, numbers, a text, a text and a label; or nothing.

    labels    int [b], the null label is the number of classes
    numbers   float [b, k + 1]: those of the data, and a 1 that says that they are there; the null is 0 everywhere
    text      Text(embedding [b, n, k], mask [b, n]), the null has no token
    both      Cascade(text=Text, label=int [b]), the null has neither

The embedding of a text is the ids [b, n] of its tokens where the encoder is trained with the network. The null is the
condition of `losses.drop_condition` and `guidance.classifier_free`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from diffjax._arrays import check
from diffjax._typing import Cascade, Cond, Text
from diffjax.interop import t5_config
from diffjax.networks import T5Encoder

_ALWAYS = ("classes", "names")


class Samples(NamedTuple):
    """All that a run needs to know of its data to draw samples; it is stored with the run."""

    shape: tuple[int, ...]
    """Of one sample."""
    classes: int | None
    """How many the network is conditioned on; None where it is not conditioned on labels."""
    names: tuple[str, ...] | None = None
    """Of the classes, label by label, where they have names."""
    pictures: bool = False
    """Whether they are images, whose numbers are known to lie in [-1, 1]."""
    largest: float = 0.0
    """The largest number of the data, its sign left out; 0 where that is not known."""
    numbers: int | None = None
    """How many the network is conditioned on, as a vector; None where it is not."""
    text: tuple[int, int] | None = None
    """Tokens of a caption and features of a token; None where the network is not conditioned on a text."""
    encoder: str | None = None
    """Fingerprint of the encoder of the captions."""
    trained_encoder: T5Encoder | None = None
    """That encoder, where it is trained with the network."""

    def record(self) -> dict[str, Any]:
        """The fields as JSON has them; conditions that there are not are left out."""
        fields = self._asdict()
        if self.trained_encoder is not None:
            config = t5_config(self.trained_encoder.clone(whitened=False))
            fields["trained_encoder"] = config | {"whitened": self.trained_encoder.whitened}
        return {name: value for name, value in fields.items() if value is not None or name in _ALWAYS}

    @property
    def conditional(self) -> bool:
        """True if the network is conditioned on anything."""
        return any(given is not None for given in (self.classes, self.numbers, self.text))

    @property
    def null(self) -> Cond:
        """The null condition, a tree of numbers that broadcast to one sample's; None if unconditional."""
        return null_condition(self.classes, self.numbers, self.text is not None)

    def example(self) -> tuple[Array, Cond]:
        """(x0 [1, *d], cond [1, ...] or None): what a model takes, by its shapes."""
        cond = jax.tree.map(lambda leaf: leaf[None], self.unconditional())
        if self.classes is not None and isinstance(cond, Array):
            cond = jnp.zeros(1, jnp.int32)
        return jnp.zeros((1, *self.shape), jnp.float32), cond

    def unconditional(self) -> Cond:
        """The null condition of one sample, without a batch axis; None if unconditional."""
        if self.numbers is not None:
            return jnp.zeros(self.numbers + 1)
        label = None if self.classes is None else jnp.asarray(self.classes, jnp.int32)
        if self.text is None:
            return label
        text = jax.tree.map(jnp.asarray, self.without_tokens())
        return text if label is None else Cascade(text=text, label=label)

    def without_tokens(self, *rows: int) -> Text:
        """The text [*rows, ...] that has no token, in NumPy."""
        assert self.text is not None
        ids = self.trained_encoder is not None
        shape, dtype = (self.text[:1], np.int32) if ids else (self.text, np.float32)
        return Text(np.zeros((*rows, *shape), dtype), np.zeros((*rows, self.text[0]), bool))

    def condition(self, given: Any) -> Cond:
        """A condition [b, ...] that the network takes: labels, numbers [b, k], a `Text` or a `Cascade` of both.

        Raises:
          ValueError: it is of another kind, shape or range.
        """
        if self.text is not None and self.classes is not None:
            if not isinstance(given, Cascade):
                raise ValueError(f"cond: a Cascade with text and label is needed, got {type(given).__name__}")
            return Cascade(text=self._text(given.text), label=_labels(given.label, self.classes))
        if self.text is not None:
            return self._text(given)
        if self.numbers is not None:
            return with_presence(_numbers(given, self.numbers))
        if self.classes is None:
            raise ValueError("labels: the network of this run is unconditional, none are needed, got some")
        return _labels(given, self.classes)

    def _text(self, given: Any) -> Text:
        assert self.text is not None
        k = self.text[1]
        joint = self.trained_encoder is not None
        made = "Text(*load_text_encoder(FOLDER).ids(texts))" if joint else "load_text_encoder(FOLDER)(texts)"
        if not isinstance(given, Text):
            raise ValueError(f"cond: a Text is needed, of {made}, got {type(given).__name__}")
        embedding, mask = jnp.asarray(given.embedding), jnp.asarray(given.mask)
        if joint and (embedding.ndim != 2 or not jnp.issubdtype(embedding.dtype, jnp.integer)):
            raise ValueError(
                f"cond: ids [b, n] are needed, of {made}, for the encoder is in the run, got {embedding.dtype}"
                f"{embedding.shape}"
            )
        if self.trained_encoder is not None:
            most = self.trained_encoder.vocabulary - 1
            inside = (embedding >= 0) & (embedding <= most)
            check(inside, f"cond: ids from 0 to {most} are needed, of {made}, got {embedding}")
        if not joint and (embedding.ndim != 3 or embedding.shape[-1] != k):
            raise ValueError(f"cond: embedding [b, n, {k}] is needed, of {made}, got {embedding.shape}")
        if mask.dtype != jnp.bool_ or mask.shape != embedding.shape[:2]:
            raise ValueError(f"cond: mask [b, n] of booleans is needed, got {mask.dtype}{mask.shape}")
        return Text(embedding, mask)


def null_condition(classes: int | None, numbers: int | None = None, text: bool = False) -> Cond:
    """The null condition of a network with so many classes or numbers, or a text; None if unconditional."""
    if text:
        null = Text(0.0, False)
        return null if classes is None else Cascade(text=null, label=classes)
    return 0.0 if numbers is not None else classes


def with_presence(numbers: ArrayLike) -> Any:
    """Numbers [b, k] with a 1 after them, [b, k + 1], in which the null condition, 0 everywhere, differs from all."""
    xp = np if isinstance(numbers, np.ndarray) else jnp
    numbers = xp.asarray(numbers, xp.float32)
    return xp.concatenate([numbers, xp.ones((len(numbers), 1), xp.float32)], axis=1)


def take(cond: Cond, rows: Any) -> Cond:
    """Rows [b] of conditions [n, ...]; None of none."""
    return jax.tree.map(lambda leaf: leaf[rows], cond)


def on_device(tree: Cond) -> Cond:
    """A tree of arrays [n, ...] as JAX's."""
    return jax.tree.map(jnp.asarray, tree)


def _labels(labels: Any, classes: int) -> Array:
    needed = f"labels: whole numbers [b] from 0 to {classes}, the null label, are needed, got {labels}"
    if labels is None or isinstance(labels, tuple):
        raise ValueError(needed)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
        raise ValueError(needed)
    check((labels >= 0) & (labels <= classes), needed)
    return labels


def _numbers(given: Any, numbers: int) -> Array:
    if isinstance(given, tuple) and not all(isinstance(each, float | int) for each in given):
        raise ValueError(f"cond: numbers [b, {numbers}] are needed, got {type(given).__name__}")
    found = jnp.asarray(given, jnp.float32)
    if found.ndim != 2 or found.shape[1] != numbers:
        raise ValueError(f"cond: numbers [b, {numbers}] are needed, got shape {found.shape}")
    check(jnp.isfinite(found), f"cond: finite numbers are needed, got {given}")
    return found
