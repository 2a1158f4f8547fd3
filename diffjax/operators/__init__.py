"""What is observed of a sample: y = A(x0) + noise, a batch at a time.

x [b, *d] --> Mask, Blur, Downsample, Grey, Matrix, matrix_free --> y [b, *m]      linear: `adjoint` is A'
          --> any callable                                      --> y [b, *m]      by `linearise`, at a point
"""

from diffjax.operators._base import (
    AbstractLinearOperator as AbstractLinearOperator,
    Linearised as Linearised,
    dot_product_test as dot_product_test,
    linearise as linearise,
    transpose as transpose,
)
from diffjax.operators._blur import (
    Blur as Blur,
    edge as edge,
    periodic as periodic,
    reflecting as reflecting,
    zero as zero,
)
from diffjax.operators._linear import Downsample as Downsample, Grey as Grey, Mask as Mask, Matrix as Matrix
from diffjax.operators._matrix_free import MatrixFree as MatrixFree, matrix_free as matrix_free
