"""A full disk: said at once or at the next save, the checkpoints before are whole, and with room again saving goes on.

    python scripts/chaos/disk_full.py                   mounts a tmpfs of 32 MiB (needs root), unmounts it in the end
    python scripts/chaos/disk_full.py --folder FOLDER   of a small file system that is there already

In order: a run that cannot fit is refused before it starts; one that fits is saved; the disk is filled by something
else, and the save fails in the background; what is there is restored bit for bit; room is made, and saving goes on.

Found, on a tmpfs of 32 MiB, in 7 s: all of it so.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.training import Checkpoints

SIZE = 2**20


def state_of(step):
    """4 MiB that do not compress."""
    return {"w": jax.random.bits(jax.random.key(step), (SIZE,)), "step": jnp.int32(step)}


def failure(action):
    """The error of an action, which must be one line of ours that names the folder."""
    try:
        action()
    except RuntimeError as error:
        check("\n" not in str(error), f"one line: {error}")
        return str(error)
    raise SystemExit("FAILED: nothing was said of the full disk")


def check(condition, what):
    """Prints what holds, or ends."""
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    print(f"  {what}")


def attempt(folder):
    """All of it, in a folder of a file system of about 32 MiB."""
    with Checkpoints(folder / "run", keep=2) as checkpoints:
        said = failure(lambda: checkpoints.check_space({"w": jax.ShapeDtypeStruct((2**22,), jnp.float32)}))
        check("no space for checkpoints" in said, "that refused a run before it started")
        checkpoints.check_space(state_of(1))
        for step in range(1, 6):
            checkpoints.save(step, state_of(step))
        checkpoints.wait()
        check(checkpoints.steps() == [4, 5], "five saves of 4 MiB, two kept")
        ballast = folder / "ballast"
        with ballast.open("wb") as file:
            file.write(b"\0" * (os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - SIZE))
        checkpoints.save(6, state_of(6))
        said = failure(lambda: checkpoints.save(7, state_of(7)))
        check("No space left on device" in said, "that came at the next save")
        check(checkpoints.steps() == [4, 5], "no broken step is listed")
        check({path.name for path in (folder / "run").iterdir()} == {"4", "5", "lock"}, "what was half-written is gone")
        back = checkpoints.restore(state_of(0))
        check(np.array_equal(back["w"], state_of(5)["w"]), "the newest is restored bit for bit")
        ballast.unlink()
        checkpoints.save(8, state_of(8))
        checkpoints.wait()
        check(
            np.array_equal(checkpoints.restore(state_of(0))["w"], state_of(8)["w"]), "with room again, saving goes on"
        )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=None, help="on a small file system; a tmpfs is mounted by default")
    options = parser.parse_args(argv)
    begun = time.monotonic()
    if options.folder is not None:
        attempt(Path(options.folder))
    else:
        folder = tempfile.mkdtemp()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], check=True)
        try:
            attempt(Path(folder))
        finally:
            subprocess.run(["umount", folder], check=True)
            os.rmdir(folder)
    print(f"{time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
