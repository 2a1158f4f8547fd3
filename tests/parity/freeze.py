"""Writes the fixtures of the parity tests: outputs of the torch originals, float64, on weights made from their names.

    python tests/parity/freeze.py [family ...]        default: every torch_<family>.py beside this file

Needs the extra `parity` (torch on CPU, diffusers, transformers). Each torch_<family>.py has

    CASES: dict[str, dict]                        name -> configuration, a dict that JSON can hold
    reference(name, config) -> (shapes, outputs)  torch's {key: shape} and {name of an output: float64 array}
"""

import importlib
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
LIMIT = 30_000  # bytes


def main():
    sys.path.insert(0, str(HERE))
    import tools

    families = sys.argv[1:] or sorted(path.stem.removeprefix("torch_") for path in HERE.glob("torch_*.py"))
    for family in families:
        module = importlib.import_module(f"torch_{family}")
        for name, config in module.CASES.items():
            tools.save_fixture(name, config, *module.reference(name, config))
            size = (tools.FIXTURES / f"{name}.npz").stat().st_size
            print(f"{family}: {name}, {size} bytes" + (" TOO LARGE" if size > LIMIT else ""))


if __name__ == "__main__":
    main()
