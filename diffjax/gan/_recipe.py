"""R3GAN's recipe: relativistic pairs, both penalties, and everything annealed along half a cosine.

    from the first step to the last      gamma 1 -> 0.1 of it      Adam's beta2 0.9 -> 0.99      learning rate 1 -> 1/4

beta1 is 0. Networks have no normalisation layers (`networks.ImageGenerator`, `ImageDiscriminator`).

Source: Huang et al. 2024 (The GAN is dead; long live the GAN! A modern baseline GAN), section 3 and appendix,
arXiv:2501.05441.
"""

from typing import Any, NamedTuple

import optax

from diffjax._arrays import at_once, check
from diffjax._numbers import checked_numbers
from diffjax._typing import Scalar
from diffjax.gan._penalties import check_nonnegative


class R3GAN(NamedTuple):
    """What `r3gan` gives: a schedule for the penalties and an optimiser.

    >>> recipe = r3gan(100, gamma=2.0)
    >>> float(recipe.gamma(0))
    2.0
    >>> state = recipe.tx.init({"w": 0.0})
    >>> round(float(state.hyperparams["b2"]), 3), round(float(state.hyperparams["learning_rate"]), 6)
    (0.9, 0.0002)

    Source: Huang et al. 2024 (R3GAN), arXiv:2501.05441.
    """

    gamma: optax.Schedule
    """`step -> gamma`, for `r1` and `r2` of `training_losses`."""
    tx: optax.GradientTransformation
    """Adam, for the generator and the discriminator each."""


@checked_numbers
def r3gan(
    steps: int,
    *,
    gamma: Scalar = 0.05,
    final_gamma: Scalar | None = None,
    learning_rate: Scalar = 2e-4,
    final_learning_rate: Scalar | None = None,
    beta2: Scalar = 0.9,
    final_beta2: Scalar = 0.99,
) -> R3GAN:
    """The schedules and the optimiser of R3GAN, of optax's parts.

        value(step) = last + (first - last) (1 + cos(pi min(step, steps)/steps))/2

        recipe = gan.r3gan(10_000, gamma=0.1)
        losses = gan.training_losses(model, loss=gan.Relativistic(), r1=recipe.gamma, r2=recipe.gamma)
        objectives = [training.Objective(loss_fn, recipe.tx, name) for name, loss_fn in losses.items()]

    With spectral norm there is a third loss, "power", whose optimiser is that of `training_losses`.

    >>> recipe = r3gan(100, gamma=0.5)
    >>> [round(float(recipe.gamma(step)), 3) for step in (0, 50, 100, 200)]
    [0.5, 0.275, 0.05, 0.05]

    Args:
      steps: over which all are annealed; they stay at the final values.
      gamma: of both penalties at the start, a scalar: 0.05 for 32 x 32 images, 2 for 64 x 64, 150 for 256 x 256.
      final_gamma: a tenth of it by default.
      learning_rate: of both networks at the start.
      final_learning_rate: a quarter of it by default.
      beta2: Adam's decay of the second moment at the start.
      final_beta2: at the end.

    Returns:
      `R3GAN(gamma, tx)`.

    Raises:
      ValueError: steps or learning_rate is not positive, a beta2 is not in [0, 1), or another number is no scalar, not
        finite or negative.

    Source: Huang et al. 2024 (R3GAN), section 3 and appendix, arXiv:2501.05441.
    """
    if steps < 1:
        raise ValueError(f"steps: at least one is needed, got {steps}")
    check_nonnegative("gamma", gamma)
    final_gamma = 0.1 * gamma if final_gamma is None else final_gamma
    check_nonnegative("final_gamma", final_gamma)
    for name, value in (("beta2", beta2), ("final_beta2", final_beta2)):
        with at_once(value):
            check((value >= 0) & (value < 1), f"{name}: a number in [0, 1) is needed, got {value}")
    check_nonnegative("learning_rate", learning_rate)
    check(learning_rate > 0, f"learning_rate: must be positive, got {learning_rate}")
    final_rate = 0.25 * learning_rate if final_learning_rate is None else final_learning_rate
    check_nonnegative("final_learning_rate", final_rate)
    rate = annealed(learning_rate, final_rate, steps)
    return R3GAN(annealed(gamma, final_gamma, steps), adam(rate, annealed(beta2, final_beta2, steps)))


@checked_numbers
def annealed(start: Any, stop: Any, steps: int) -> optax.Schedule:
    """From one scalar to another along half a cosine over `steps` steps, and on at the second."""
    share = optax.cosine_decay_schedule(1.0, steps)
    return lambda step: stop + (start - stop) * share(step)


def adam(learning_rate: Any, beta2: Any) -> optax.GradientTransformation:
    """Adam without a first moment's average (beta1 = 0), whose learning rate and beta2 are scalars or schedules."""
    # beta1 is static, as a Python 0.
    return optax.inject_hyperparams(optax.adam, static_args=("b1",))(learning_rate=learning_rate, b1=0.0, b2=beta2)
