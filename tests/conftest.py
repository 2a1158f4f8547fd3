"""Every test runs on eight CPU devices, in the float32 that users have; `truth/` turns float64 on for itself."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # tests neither read nor fill the user's cache

from jaxtyping import install_import_hook

# Shapes and dtypes of every public signature are checked while tests run. Flax modules check themselves.
_CHECKED = (
    "_arrays",
    "analytic",
    "guidance",
    "inverse",
    "likelihood",
    "losses",
    "metrics",
    "operators",
    "parameterisation",
    "process",
    "samplers",
)
install_import_hook([f"diffjax.{name}" for name in _CHECKED], "beartype.beartype")
