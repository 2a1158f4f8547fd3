"""Posterior samplers that own a loop (the guided denoisers of `diffjax.guidance` work with any sampler).

known pixels         --> inpaint (replacement, RePaint)      RePaint is a stepper of `sample`
y = A x0 + noise     --> diffpir                             guidance.proximal and the stepper Renoise
                     --> twisted_smc --> particles, weights  exact as particles grow
a picture            --> sdedit
"""

from diffjax.inverse._diffpir import Renoise as Renoise, diffpir as diffpir
from diffjax.inverse._inpaint import RePaint as RePaint, inpaint as inpaint
from diffjax.inverse._sdedit import sdedit as sdedit
from diffjax.inverse._smc import (
    Particles as Particles,
    effective_sample_size as effective_sample_size,
    systematic as systematic,
    twisted_smc as twisted_smc,
)
