"""Data: what to learn from, as NumPy arrays on the host.

    arrays (digits, your own) -- from_arrays --+
                                               +--> source(seed, step, size) -> (x0 [size, *d], cond [size] or None)
    toy densities in the plane ----------------+

A source is a pure function with random access: the same seed, step and size give the same batch, always, so that the
step number is the whole position in the data. There is no iterator to save or to resume. `part=(i, n)` gives the i-th
of n equal parts of that batch, for processes that each hold a share.
"""

from diffjax.data._arrays_source import from_arrays as from_arrays
from diffjax.data._digits import digits as digits
from diffjax.data._source import Source as Source, whole as whole
from diffjax.data._toys import (
    Checkerboard as Checkerboard,
    Mixture as Mixture,
    checkerboard as checkerboard,
    mixture as mixture,
    swiss_roll as swiss_roll,
    two_moons as two_moons,
)
