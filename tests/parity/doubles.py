"""torch networks that compute in float64 also where they ask for float32: waves, positions, norms' statistics."""

import contextlib
from unittest import mock

import tools


@contextlib.contextmanager
def doubles():
    """Within it, `torch.float32` and `tensor.float()` mean float64, and so does the default dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch, "float32", torch.float64),
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def fill(network):
    """The network in evaluation mode with our weights, and {key: shape}."""
    import torch

    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(value) for key, value in tools.weights(shapes).items()})
    return network.eval(), shapes
