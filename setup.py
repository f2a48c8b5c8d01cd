"""The extensions of dal-native: `_kernels` (C++, pybind11), `_linalg` and `_dlpack` (Cython); no metadata."""

import os
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pybind11
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Never -ffast-math: it links a start-up routine that flushes subnormals for the whole process.
COMMON = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wno-psabi", "-Wno-unknown-pragmas"]
# What must give the same bits at every SIMD level is compiled once, without contraction into FMA.
PORTABLE = ["-ffp-contract=off"]
LEVELS = {
    "generic": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
# Products in bfloat16: one file, for two instruction sets beyond the levels.
PRODUCTS = {
    "avx512bf16": [*LEVELS["avx512"], "-mavx512bf16", "-DDAL_LEVEL_AVX512"],
    "amx": [*LEVELS["avx512"], "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DDAL_LEVEL_AVX512"],
}
SANITIZE = [
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
]
PRODUCT_SOURCE = "csrc/kernels/bfloat16/products.cpp"
X86 = platform.machine().lower() in ("x86_64", "amd64")

PROBE = """
#include <thread>
#include <string_view>
typedef double v __attribute__((vector_size(32)));
typedef float f __attribute__((vector_size(16)));
int main() {
  f a = {1, 2, 3, 4};
  v b = __builtin_convertvector(a, v);
  if constexpr (sizeof(v) == 32) return b[0] == 1.0 ? 0 : 1;
}
"""


class BuildExtensions(build_ext):
    """Compile each file of csrc/kernels once per SIMD level, everything else once."""

    def build_extensions(self):
        self.refuse_unsupported_compiler()
        super().build_extensions()

    def refuse_unsupported_compiler(self):
        need = "dal-native needs a C++17 compiler with vector extensions: GCC >= 9 or Clang >= 12"
        if self.compiler.compiler_type != "unix":
            raise SystemExit(f"{need}; the {self.compiler.compiler_type!r} compiler is not supported")
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.cpp")
            probe.write_text(PROBE)
            command = [
                *self.compiler.compiler_so_cxx,
                "-std=c++17",
                "-Wno-psabi",
                "-c",
                str(probe),
                "-o",
                f"{probe}.o",
            ]
            try:
                result = subprocess.run(command, capture_output=True, text=True)
            except OSError as error:
                raise SystemExit(f"{need}; running {command[0]!r} failed: {error}") from None
            if result.returncode:
                raise SystemExit(
                    f"{need}; {command[0]!r} could not compile a test file:\n{result.stderr[-2000:]}"
                )

    def build_extension(self, ext):
        if ext.name != "dal_native._kernels":
            return super().build_extension(ext)
        ext.extra_objects = self.compile_kernels(ext)
        ext.depends = [*ext.depends, *ext.extra_objects]  # link again whenever an object is newer
        ext.sources = []
        ext.language = "c++"
        return super().build_extension(ext)

    def compile_kernels(self, ext):
        """All object files of the C++ module, compiled side by side."""
        sanitize = SANITIZE if os.environ.get("DAL_NATIVE_SANITIZE") == "1" else []
        levels, products = (LEVELS, PRODUCTS) if X86 else ({"generic": []}, {})
        jobs = [(source, "once", [*PORTABLE, *macros([*levels, *products])]) for source in portable_sources()]
        jobs += [
            (source, name, [*flags, *exact(source), f"-DDAL_LEVEL={name}", f"-DDAL_LEVEL_{name.upper()}"])
            for name, flags in levels.items()
            for source in kernel_sources()
        ]
        jobs += [(PRODUCT_SOURCE, name, [*flags, f"-DDAL_LEVEL={name}"]) for name, flags in products.items()]

        def compile_one(job):
            source, folder, flags = job
            return self.compiler.compile(
                [source],
                output_dir=str(Path(self.build_temp, folder)),
                include_dirs=ext.include_dirs,
                extra_postargs=[*COMMON, *WARNINGS, "-isystem", pybind11.get_include(), *flags, *sanitize],
                depends=ext.depends,
            )[0]

        ext.extra_link_args = ["-pthread", *[flag for flag in sanitize if flag.startswith("-fsanitize")]]
        with ThreadPoolExecutor(self.parallel or os.cpu_count() or 1) as pool:
            return list(pool.map(compile_one, jobs))


def exact(source):
    """What decides finalists has the same bits at every level: no contraction there either."""
    return PORTABLE if Path(source).stem == "exact" else []


def macros(levels):
    return [f"-DDAL_HAVE_{name.upper()}" for name in levels]


def kernel_sources():
    return sorted(str(p) for p in Path("csrc/kernels").glob("*.cpp"))


def portable_sources():
    return sorted(str(p) for folder in ("operations", "bindings") for p in Path("csrc", folder).glob("*.cpp"))


def headers():
    return sorted(str(p) for p in Path("csrc").rglob("*.hpp"))


def check_cuda_switch():
    """DAL_NATIVE_CUDA is reserved for the CUDA backend; asking for it today fails loudly."""
    switch = os.environ.get("DAL_NATIVE_CUDA", "off")
    if switch not in ("auto", "on", "off"):
        raise SystemExit(f"DAL_NATIVE_CUDA is {switch!r}; expected 'auto', 'on' or 'off'")
    if switch == "on":
        raise SystemExit("DAL_NATIVE_CUDA=on: the CUDA backend is not available yet; use 'off' or 'auto'")


def extensions():
    kernels = Extension(
        "dal_native._kernels",
        sources=[*kernel_sources(), PRODUCT_SOURCE, *portable_sources()],
        depends=headers(),
        include_dirs=["csrc"],
        language="c++",
    )
    linalg = Extension(
        "dal_native._linalg",
        sources=["dal_native/_linalg.pyx"],
        include_dirs=[numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=["-O3"],
    )
    dlpack = Extension("dal_native._dlpack", sources=["dal_native/_dlpack.pyx"], extra_compile_args=["-O3"])
    cython = cythonize([linalg, dlpack], language_level=3, build_dir="build/cython", quiet=True)
    return [kernels, *cython]


check_cuda_switch()
setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
