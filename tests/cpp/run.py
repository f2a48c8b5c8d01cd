"""Build the C++ tests with a sanitizer and run them at every SIMD level that this processor has.

usage: python tests/cpp/run.py [address|thread|none] ...     (default: address)
"""

import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
X86 = platform.machine() in ("x86_64", "AMD64")
LEVELS = {
    "generic": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
BFLOAT16 = [*LEVELS["avx512"], "-mavx512bf16", "-DDAL_LEVEL_AVX512"]
PRODUCTS = {"avx512bf16": BFLOAT16, "amx": [*BFLOAT16, "-mamx-tile", "-mamx-bf16"]}
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Werror",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
    "-pthread",
    "-Icsrc",
]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
    "none": [],
}


def exact(source: Path) -> list[str]:
    return ["-ffp-contract=off"] if source.stem == "exact" else []


def build(folder: Path, sanitizer: str) -> Path:
    levels, products = (LEVELS, PRODUCTS) if X86 else ({"generic": []}, {})
    jobs = [
        (source, name, [*flags, *exact(source), f"-DDAL_LEVEL={name}", f"-DDAL_LEVEL_{name.upper()}"])
        for name, flags in levels.items()
        for source in sorted(ROOT.glob("csrc/kernels/*.cpp"))
    ]
    source = ROOT / "csrc/kernels/bfloat16/products.cpp"
    jobs += [(source, name, [*flags, f"-DDAL_LEVEL={name}"]) for name, flags in products.items()]
    have = ["-ffp-contract=off", *(f"-DDAL_HAVE_{name.upper()}" for name in (*levels, *products))]
    portable = [*sorted(ROOT.glob("csrc/operations/*.cpp")), ROOT / "tests/cpp/test_kernels.cpp"]
    jobs += [(source, "once", have) for source in portable]
    compiler = os.environ.get("CXX", "g++")

    def compile_one(job: tuple[Path, str, list[str]]) -> str:
        source, name, flags = job
        target = str(folder / f"{name}-{source.stem}.o")
        subprocess.run(
            [compiler, *FLAGS, *SANITIZERS[sanitizer], *flags, "-c", str(source), "-o", target],
            cwd=ROOT,
            check=True,
        )
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    program = folder / "test_kernels"
    subprocess.run([compiler, *SANITIZERS[sanitizer], *objects, "-pthread", "-o", str(program)], check=True)
    return program


def main(sanitizers: list[str]) -> int:
    worst = 0
    for sanitizer in sanitizers:
        with tempfile.TemporaryDirectory() as folder:
            program = build(Path(folder), sanitizer)
            for level in (*LEVELS, *PRODUCTS):
                print(f"-- {sanitizer}, {level}", flush=True)
                result = subprocess.run(
                    [str(program)],
                    env={**os.environ, "DAL_NATIVE_SIMD": level},
                    capture_output=True,
                    text=True,
                )
                print(result.stdout, end="", flush=True)
                if "this processor offers" in result.stderr:
                    print(f"skipped: this processor does not have {level}", flush=True)
                    continue
                print(result.stderr, end="", flush=True)
                worst = max(worst, abs(result.returncode))
    return min(worst, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["address"]))
