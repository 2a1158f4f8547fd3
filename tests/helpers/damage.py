"""Damage to saved files."""


def flip(path, at=None, bit=0):
    """Flips one bit of a file, in the middle unless told where."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 1 << bit
    path.write_bytes(raw)


def array_file(step_folder):
    """The file with most of the arrays in it."""
    files = (path for path in (step_folder / "state").rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)
