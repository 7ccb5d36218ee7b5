"""Builds mmkern._C: host code once, CPU kernels once per instruction set.

MMKERN_NO_EXT=1    install without the extension (every op then runs its PyTorch reference)
MMKERN_SANITIZE=1  build with address and undefined-behaviour sanitizers, in its own build folder
MAX_JOBS           compilers at a time (default: ninja's)
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent.resolve()
NO_EXTENSION = os.environ.get("MMKERN_NO_EXT") == "1"
SANITIZE = os.environ.get("MMKERN_SANITIZE") == "1"

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
X86_ISAS = {
    "baseline": [],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
}

# The address sanitizer finds what the checks left out would; they take a third of the compile time.
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize=null,object-size"]
SANITIZE_FLAGS += ["-fno-omit-frame-pointer", "-g1", "-O1"]
COMMON_FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Not -ffast-math: NaN and inf must survive.
FLOAT_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
KERNEL_FLAGS = ["-O3", *FLOAT_FLAGS, "-fno-exceptions"]


def isas():
    return X86_ISAS if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}


def compiler():
    """The C++ compiler's command, or a one-sentence exit that says what to install."""
    default = "c++" if sys.platform == "darwin" else "g++"
    command = shlex.split(os.environ.get("CXX", default))
    if shutil.which(command[0]) is None:
        sys.exit(
            f"mmkern needs a C++ compiler and {command[0]!r} was not found: install one with "
            "`apt install g++`, `dnf install gcc-c++` or `xcode-select --install`, "
            "or set MMKERN_NO_EXT=1 to install without the CPU kernels."
        )
    return command


def kernel_flags():
    return [*COMMON_FLAGS, *KERNEL_FLAGS, *(SANITIZE_FLAGS if SANITIZE else [])]


def kernel_objects(build_dir):
    """{isa: [object files]} of csrc/cpu/*.cpp under build_dir."""
    sources = sorted(ROOT.glob("csrc/cpu/*.cpp"))
    return {isa: [build_dir / isa / f"{s.stem}.o" for s in sources] for isa in isas()}


def write_ninja_file(build_dir):
    """One rule per instruction set; depfiles make an edited header rebuild what includes it."""
    lines = ["ninja_required_version = 1.5", f"cxx = {shlex.join(compiler())}"]
    lines.append(f"flags = {shlex.join(kernel_flags())}")
    for isa, flags in isas().items():
        lines += [
            f"rule {isa}",
            f"  command = $cxx -MMD -MF $out.d $flags {shlex.join(flags)} -DMMKERN_ISA={isa} "
            "-c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            f"  description = {isa} $in",
        ]
    for isa, objects in kernel_objects(build_dir).items():
        for obj in objects:
            source = str(ROOT / "csrc/cpu" / f"{obj.stem}.cpp").replace(" ", "$ ")
            lines.append(f"build {isa}/{obj.name}: {isa} {source}")
    text = "\n".join(lines) + "\n"
    build_dir.mkdir(parents=True, exist_ok=True)
    ninja_file = build_dir / "build.ninja"
    if not ninja_file.exists() or ninja_file.read_text() != text:
        ninja_file.write_text(text)


def build_kernels(build_dir):
    """Compile csrc/cpu for every instruction set and return the object files."""
    write_ninja_file(build_dir)
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    if subprocess.run([sys.executable, "-m", "ninja", "-C", str(build_dir), *jobs]).returncode:
        sys.exit("mmkern: compiling the CPU kernels failed, see the messages above.")
    return [str(o) for objects in kernel_objects(build_dir).values() for o in objects]


def extension():
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
    except ImportError:
        sys.exit(
            "mmkern is built against the torch that it will run with, and none was found: install "
            "torch>=2.11 first, then `pip install --no-build-isolation .`, or set MMKERN_NO_EXT=1 "
            "to install without the CPU kernels."
        )

    sources = sorted(ROOT.glob("csrc/*.cpp")) + sorted(ROOT.glob("csrc/ops/*.cpp"))
    # Apple's compiler has no OpenMP of its own; without it the kernels run on one thread.
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    sanitize = SANITIZE_FLAGS if SANITIZE else []
    system_headers = [flag for path in include_paths() for flag in ("-isystem", path)]
    defines = [("MMKERN_KERNEL_FLAGS", f'"{" ".join(KERNEL_FLAGS)}"')]
    ext = CppExtension(
        "mmkern._C",
        [str(s.relative_to(ROOT)) for s in sources],
        include_dirs=[str(ROOT / "csrc")],
        define_macros=defines,
        depends=[str(p) for p in ROOT.glob("csrc/**/*") if p.suffix in (".h", ".cpp")],
        # after Python's own -g -O3, which cost time and serve no loop of the host's
        extra_compile_args=["-O2", "-g0", *COMMON_FLAGS, *system_headers, *openmp, *sanitize],
        extra_link_args=[*openmp, *sanitize],
    )

    class Build(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            if SANITIZE:
                self.build_temp += "-sanitize"

        def run(self):
            os.environ["CXX"] = shlex.join(compiler())
            super().run()

        def build_extensions(self):
            ext.extra_objects = build_kernels(ROOT / self.build_temp / "cpu")
            super().build_extensions()

    return {"ext_modules": [ext], "cmdclass": {"build_ext": Build.with_options(use_ninja=True)}}


setup(
    packages=[*find_packages(include=["mmkern", "mmkern.*"]), "mmkern.kernels"]
    + [f"mmkern.kernels.{p}" for p in find_packages("kernels")],
    package_dir={"mmkern.kernels": "kernels"},
    **({} if NO_EXTENSION else extension()),
)
