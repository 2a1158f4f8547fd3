"""Processes that are made of more than numbers: DDPM's chains by their betas, and a learned schedule by its key."""

import jax

from diffjax.process import (
    DiscreteChain,
    MonotoneLogsnr,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    zero_terminal_snr as without_signal,
)


def linear_chain(
    *, steps: int = 1000, start: float = 1e-4, stop: float = 0.02, zero_terminal_snr: bool = False
) -> DiscreteChain:
    """DDPM's chain with betas that are equally spaced (Ho et al. 2020, section 4).

    Args:
      steps: K, the number of steps of the chain.
      start: the first beta, in (0, 1).
      stop: the last beta, in (0, 1).
      zero_terminal_snr: whether the betas are changed to end without signal.
    """
    betas = linear_betas(steps, start, stop)
    return DiscreteChain(without_signal(betas) if zero_terminal_snr else betas)


def scaled_linear_chain(
    *, steps: int = 1000, start: float = 0.00085, stop: float = 0.012, zero_terminal_snr: bool = False
) -> DiscreteChain:
    """A chain with betas whose square roots are equally spaced (Rombach et al. 2022).

    Args:
      steps: K, the number of steps of the chain.
      start: the first beta, in (0, 1).
      stop: the last beta, in (0, 1).
      zero_terminal_snr: whether the betas are changed to end without signal.
    """
    betas = scaled_linear_betas(steps, start, stop)
    return DiscreteChain(without_signal(betas) if zero_terminal_snr else betas)


def cosine_chain(*, steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> DiscreteChain:
    """The chain of improved DDPM, whose alpha is a cosine (Nichol & Dhariwal 2021, eq. 17).

    Args:
      steps: K, the number of steps of the chain.
      offset: the paper's s, added to the angle of the cosine so that the first betas are not too small.
      largest: upper limit of the betas, in (0, 1).
    """
    return DiscreteChain(cosine_betas(steps, offset, largest))


def monotone_logsnr(*, logsnr_max: float = 13.3, logsnr_min: float = -5.0, width: int = 1024) -> MonotoneLogsnr:
    """A learned logsnr: a monotone network between two learned end points (Kingma et al. 2021, appendix H).

    Args:
      logsnr_max: at t = 0.
      logsnr_min: at t = 1; less.
      width: features of the hidden layer of that network; its initial weights do not depend on --seed.
    """
    return MonotoneLogsnr(jax.random.key(0), logsnr_max, logsnr_min, width)
