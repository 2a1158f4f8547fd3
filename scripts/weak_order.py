"""How good are the stochastic samplers? The error of the output's variance, and the order at which it falls.

    python scripts/weak_order.py [--out runs/weak_order] [--steps 64 128 256] [--methods SEEDS Heun ...]

Gaussian data of variance 0.25 with its exact denoiser, `EDM()` and its uniform grid: sigma from 80 to 0.002,
without a last denoise (which changes the figures by 0.002 percent). A step is then affine, and its matrices carry the
variance exactly (`tests/helpers/weak.py`): nothing is drawn. Writes `errors.csv`. One minute on two CPU cores, and

                                      evaluations  order   16 steps  128 steps   fitted  amid noise
    DDPM, small variance                        1      1    -47.60%   -8.8951%     0.93        0.99
    DDPM, large variance                        1      1    103.09%    8.6881%     1.06        1.00
    DPM-2 ancestral                             2      2     36.17%    0.4652%     2.02        2.00
    DPM++ 2S ancestral                          2      2    -17.99%   -0.4373%     1.94        2.00
    DPM++ SDE                                   2      2    -10.93%   -0.1488%     2.17        2.03
    SDE-DPM++ 2M                                1      2     30.31%    0.4763%     2.04        2.00
    SDE-DPM++ 3M                                1      2     25.34%    0.2237%     1.92        2.01
    SEEDS-2                                     2      2     -7.76%   -0.1532%     1.99        2.00
    SEEDS-3                                     3      2      0.20%    0.0405%     1.68        1.98
    exponential Adams 2                         1      2     98.56%    0.8161%     2.08        2.00
    exponential Adams 3                         1      2      2.58%    0.0728%     1.28        2.02
    SA-Solver, 2 and corrector                  1      2     98.06%    0.2472%     2.56        2.11
    reverse SDE, Euler-Maruyama                 1      1     16.27%    0.2115%     1.99        1.10
    reverse SDE, Heun                           2      2     -7.21%   -0.0758%     2.14        2.02
    reverse SDE, ShARK                          2      2     -4.65%   -0.0183%     2.55        1.78
    reverse SDE, SEA                            1      1    -74.08%  -15.2307%     0.92        0.99
    reverse SDE, SRA1                           2      2      8.63%    0.0027%     1.59        1.97

The small variance of DDPM is Euler ancestral and DDIM(eta=1).
Orders are fitted at 64 to 256 steps of that grid, and at four times as many of sigma from 3 to 0.1, where it ends amid
the noise: on the first, Euler-Maruyama hides that it is of weak order 1, for the leading error of a Gaussian's variance
is a difference between the ends in v'/v^2, which is 0 at the data; and small errors change sign.
k-diffusion's own algorithms, written out in `tests/truth/test_stochastic.py`, give the same figures to rounding.
"""

import argparse
import csv
import pathlib
import sys

import diffrax
import jax
import numpy as np
from tqdm import tqdm

import diffjax as dj
from diffjax import samplers

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "helpers"))
from weak import fitted, marginal_variance, output_variance, output_variance_by_diffrax

DATA_VARIANCE = 0.25


def methods():
    """Name: (a stepper or a solver of diffrax, evaluations a step, declared weak order)."""
    steppers = {
        "DDPM, small variance": dj.DDPM(0.0),
        "DDPM, large variance": dj.DDPM(1.0),
        "DPM-2 ancestral": samplers.DPM2Ancestral(),
        "DPM++ 2S ancestral": samplers.DPMpp2SAncestral(),
        "DPM++ SDE": samplers.DPMppSDE(),
        "SDE-DPM++ 2M": samplers.SDEDPMpp2M(),
        "SDE-DPM++ 3M": samplers.SDEDPMpp3M(),
        "SEEDS-2": samplers.SEEDS2(),
        "SEEDS-3": samplers.SEEDS3(),
        "exponential Adams 2": samplers.ExponentialAdams(dj.X0Prediction(), 2, eta=1.0),
        "exponential Adams 3": samplers.ExponentialAdams(dj.X0Prediction(), 3, eta=1.0),
        "SA-Solver, 2 and corrector": samplers.ExponentialAdams(dj.X0Prediction(), 3, True, eta=1.0),
    }
    solvers = {
        "reverse SDE, Euler-Maruyama": (diffrax.Euler(), 1, 1),
        "reverse SDE, Heun": (diffrax.Heun(), 2, 2),
        "reverse SDE, ShARK": (diffrax.ShARK(), 2, 2),
        "reverse SDE, SEA": (diffrax.SEA(), 1, 1),
        "reverse SDE, SRA1": (diffrax.SRA1(), 2, 2),
    }
    return {name: (s, s.evaluations_per_step, s.order) for name, s in steppers.items()} | solvers


def error(method, process, ts):
    """The relative error of the variance at ts[-1]."""
    by = output_variance_by_diffrax if isinstance(method, diffrax.AbstractSolver) else output_variance
    return by(method, process, DATA_VARIANCE, ts) / marginal_variance(process, DATA_VARIANCE, ts[-1]) - 1


def study(out, steps, names):
    process = dj.EDM()
    short = dj.EDM(0.1, 3.0)
    rows = []
    wanted = {name: row for name, row in methods().items() if any(part in name for part in names)}
    for name, (method, evaluations, order) in tqdm(wanted.items(), leave=False):
        at_16, at_128, *errors = (error(method, process, np.linspace(1, 0, n + 1)) for n in (16, 128, *steps))
        amid = [error(method, short, np.linspace(1, 0, 4 * n + 1)) for n in steps]
        rows.append((name, evaluations, order, 100 * at_16, 100 * at_128, fitted(steps, errors), fitted(steps, amid)))
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "errors.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "evaluations a step", "weak order", "16 steps", "128 steps", "fitted", "amid noise"])
        writer.writerows(rows)
    print(f"{'':30} evaluations  order   16 steps  128 steps   fitted  amid noise")
    for name, evaluations, order, at_16, at_128, at_data, amid in rows:
        print(f"{name:30}{evaluations:12}{order:7}{at_16:10.2f}%{at_128:10.4f}%{at_data:9.2f}{amid:12.2f}")
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/weak_order"))
    parser.add_argument("--steps", type=int, nargs="+", default=[64, 128, 256], help="at which orders are fitted")
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of the names of those wanted")
    given = parser.parse_args(arguments)
    with jax.enable_x64(True):
        return study(given.out, given.steps, given.methods)


if __name__ == "__main__":
    main()
