"""The Eulerian identity in coordinates where it is regular, for losses that differentiate a map along the flow.

    d/dt X(xt, t, s) = dX/dx v + dX/dt = 0

Every process is one flow on the line and on the circle (`diffjax.process.Line`, `Circle`). In these coordinates, z at
the clock c, the network's answer y becomes the average velocity u(z, c_t, c_s), and the identity a target for it:

    line      u = u_data - (tau_t - tau_s) du/dtau                                                 MeanFlow's
    circle    u = cos(D) u_data + (1 - cos(D)) u - sin(D) (z + du/dphi),   D = phi_t - phi_s       sCM's

u_data is the flow's velocity, or one of which it is the conditional mean, and d/dc the derivative along the flow,
du/dz u_data + du/dc. No derivative of alpha or sigma is needed. eps and score predictions have no such target, nor has
v-prediction where alpha^2 + sigma^2 is not 1, nor the velocity in t where the angle runs unevenly in t or the scale
grows much faster than it: their answers have infinite or very large derivatives at an end. An x0 that is not the exact
one has a velocity that grows as 1/sigma near the data, so that `X0Prediction` wants times away from t = 0.

Source: Geng et al. 2025 (MeanFlow, arXiv 2505.13447), eq. 6; Lu & Song 2024 (sCM, arXiv 2410.11081), eq. 6.
"""

import jax
import jax.numpy as jnp

from diffjax._arrays import answered, as_samples, check_time, expand, is_concrete
from diffjax._typing import Cond, Key, Params, Sample, Time
from diffjax.parameterisation import ScorePrediction, apply_network, recover
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.parameterisation._linear import EpsPrediction, VelocityPrediction, VPrediction
from diffjax.process import Circle, Line
from diffjax.process._flow_step import between_ends
from diffjax.samplers import on_grid

Coordinates = Line | Circle


def average_velocity(
    diffusion: Diffusion,
    params: Params,
    coordinates: Coordinates,
    z: Sample,
    t: Time,
    s: Time | None,
    cond: Cond = None,
    *,
    key: Key | None = None,
) -> Sample:
    """u(z, c_t, c_s), [b, *d]: the network's average velocity in the coordinates, for z [b, *d] and t, s [] or [b].

    Without s the network is given t alone. `key` is the network's, for dropout.
    """
    process = diffusion.process
    xt = expand(coordinates.scale(process, t), z) * z
    y = answered("network", apply_network(diffusion, params, xt.astype(z.dtype), t, cond, s=s, key=key), xt.shape)
    return coordinates.velocity(coordinates.clock(process, t), *recover(diffusion.parameterisation, process, y, xt, t))


def velocity_and_derivative(
    diffusion: Diffusion,
    params: Params,
    coordinates: Coordinates,
    z: Sample,
    t: Time,
    s: Time | None,
    tangent: Sample,
    cond: Cond = None,
    *,
    key: Key | None = None,
) -> tuple[Sample, Sample]:
    """(u, du/dc), both [b, *d]: the average velocity, and its derivative along (tangent, 1) in (z, c_t), s held.

    Args:
      diffusion: what the network is; see `check_eulerian`.
      params: its parameters.
      coordinates: `Line(data_std)` or `Circle(data_std)`.
      z: states xt/scale, [b, *d].
      t: [b].
      s: [b], or None for a network that is given t alone.
      tangent: dz/dc, [b, *d]: the velocity that carries z.
      cond: conditions.
      key: the network's, for dropout.
    """
    z = as_samples("z", z)
    tangent = as_samples("tangent", tangent, z.shape)
    check_time(t, z)
    t = between_ends(diffusion.process, t)
    # In t the clock's derivative may be huge (sigma = sqrt(t)); by the clock everything has a bounded one.
    rate = jax.jvp(lambda time: coordinates.clock(diffusion.process, time), (t,), (jnp.ones_like(t),))[1]
    u = lambda z, t: average_velocity(diffusion, params, coordinates, z, t, s, cond, key=key)
    return jax.jvp(u, (z, t), (tangent, 1 / rate))


def eulerian_target(
    coordinates: Coordinates, gap: Time, z: Sample, data: Sample, u: Sample, derivative: Sample
) -> Sample:
    """The average velocity [b, *d] that the identity asks for; at the exact map it is u itself.

    Args:
      coordinates: `Line` or `Circle`.
      gap: c_t - c_s, [] or [b].
      z: [b, *d].
      data: the velocity that carries z, [b, *d].
      u: the map's average velocity, [b, *d].
      derivative: du/dc along the velocity, [b, *d].
    """
    gap = expand(gap, z)
    if isinstance(coordinates, Line):
        return data - gap * derivative
    cos, sin = jnp.cos(gap), jnp.sin(gap)
    return cos * data + (1 - cos) * u - sin * (z + derivative)


def check_eulerian(diffusion: Diffusion) -> None:
    """Raises `ValueError` where a network's answer, or its clock, has no bounded derivative along the flow."""
    p, process = diffusion.parameterisation, diffusion.process
    remedy = "take EDMPrediction, which is defined everywhere"
    if isinstance(p, EpsPrediction | ScorePrediction):
        raise ValueError(f"parameterisation: {type(p).__name__} says nothing of x0 at t = 1; {remedy}")
    if isinstance(p, VPrediction | VelocityPrediction):
        unit, slope, growth = on_grid(_rates, process, p.data_std)
        v_diverges = (abs(unit - 1) >= 1e-3).any()
        velocity_diverges = ~((slope > 0.1) & (slope < 10) & (abs(growth) < 10 * slope)).all()
        name = type(process).__name__
        if isinstance(p, VPrediction) and is_concrete(v_diverges) and v_diverges:
            raise ValueError(f"parameterisation: v diverges on {name}, where alpha^2 + sigma^2 is not 1; {remedy}")
        if isinstance(p, VelocityPrediction) and is_concrete(velocity_diverges) and velocity_diverges:
            raise ValueError(f"parameterisation: the velocity in t of {name} vanishes or diverges at an end; {remedy}")
    if p.clock != "angle":
        raise ValueError(
            f"clock: a loss that differentiates in time needs a network given the angle, whose derivative is bounded: "
            f'{type(p).__name__}(..., clock="angle"), got {p.clock!r}'
        )


def _rates(process, data_std):
    """alpha^2 + sigma^2 between the ends, then angle' and (log scale)' also at them, of the circle; each [9].

    They are what a velocity in t consists of: y = scale' z + scale angle' u, with u the velocity on the circle.
    """
    t, circle = jnp.linspace(0.01, 0.99, 9), Circle(data_std)
    both = lambda t: (circle.clock(process, t), jnp.log(circle.scale(process, t)))
    slope, growth = jax.vmap(jax.jacfwd(both))(between_ends(process, jnp.linspace(0.0, 1.0, 9)))
    return process.alpha(t) ** 2 + process.sigma(t) ** 2, slope, growth
