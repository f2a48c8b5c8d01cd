"""No object compiled for one SIMD level may hold a symbol that the linker could merge with another level's.

usage: python tests/cpp/symbols.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from run import LEVELS, PRODUCTS, ROOT


def main() -> int:
    shared = []
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in {**LEVELS, **PRODUCTS}.items():
            folder_of = "csrc/kernels/bfloat16" if name in PRODUCTS else "csrc/kernels"
            for source in sorted(ROOT.glob(f"{folder_of}/*.cpp")):
                target = str(Path(folder, f"{name}-{source.stem}.o"))
                subprocess.run(
                    [
                        "g++",
                        "-std=c++17",
                        "-O3",
                        "-fPIC",
                        "-Wno-psabi",
                        "-Icsrc",
                        *flags,
                        f"-DDAL_LEVEL={name}",
                        f"-DDAL_LEVEL_{name.upper()}",
                        "-c",
                        str(source),
                        "-o",
                        target,
                    ],
                    cwd=ROOT,
                    check=True,
                )
                symbols = subprocess.run(
                    ["nm", "-C", target], capture_output=True, text=True, check=True
                ).stdout
                shared += [
                    f"{name}/{source.name}: {line}"
                    for line in symbols.splitlines()
                    if line[17:18] in ("W", "V", "u")
                ]
    print("\n".join(shared) or "no weak symbols")
    return int(bool(shared))


if __name__ == "__main__":
    sys.exit(main())
