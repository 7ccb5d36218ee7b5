"""Builds mmkern._C: host code once, CPU kernels once per instruction set.

MMKERN_NO_EXT=1    install without the extension (every op then runs its PyTorch reference)
MMKERN_SANITIZE=1  build with address and undefined-behaviour sanitizers, in its own build folder
MAX_JOBS           compilers at a time (default: ninja's)
ASCEND_HOME_PATH   CANN, as its set_env.sh says: mmkern._ascendc, the AscendC kernels, is built too
SOC_VERSION        of the NPU, as Ascend910B2 (default: the one that is there)
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
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
# -O2 compiles a tenth faster, and shallow products run at half the speed.
KERNEL_FLAGS = ["-O3", *FLOAT_FLAGS, "-fno-exceptions"]
# Apple's compiler has no OpenMP of its own; without it the kernels run on one thread.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]


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


def sanitize_flags():
    return SANITIZE_FLAGS if SANITIZE else []


def host_flags():
    """Flags of csrc/*.cpp and csrc/ops/*.cpp, which see torch and loop over nothing large."""
    from torch.utils.cpp_extension import include_paths

    headers = [*include_paths(), sysconfig.get_path("include")]
    flags = [f"-I{ROOT / 'csrc'}", *(f for path in headers for f in ("-isystem", path))]
    defines = [f'-DMMKERN_KERNEL_FLAGS="{" ".join(KERNEL_FLAGS)}"', "-DTORCH_EXTENSION_NAME=_C"]
    return [*COMMON_FLAGS, "-O1", "-DNDEBUG", *OPENMP, *flags, *defines, *sanitize_flags()]


def write_ninja_file(build_dir):
    """The compilations as a ninja file; returns the objects.

    Depfiles make an edited header rebuild what includes it. Torch's headers, most of a host file's
    compile time, are compiled once, with host.h in front of every host file.
    """
    lines = ["ninja_required_version = 1.5", f"cxx = {shlex.join(compiler())}"]
    objects = []

    def rule(name, flags, arguments, comment):
        command = f"$cxx -MMD -MF $out.d {shlex.join(flags)} {arguments} $in -o $out"
        lines.extend([f"rule {name}", f"  command = {command}", f"  description = {comment} $in"])
        lines.extend(["  depfile = $out.d", "  deps = gcc"])

    def build(rule, source, out, needs=""):
        path = str(source).replace(" ", "$ ")
        lines.append(f"build {out}: {rule} {path}{needs}")
        if out.endswith(".o"):
            objects.append(build_dir / out)

    rule("headers", host_flags(), "-x c++-header -c", "headers")
    rule("host", host_flags(), "-include host/host.h -c", "host")
    build("headers", build_dir / "host/host.h", "host/host.h.gch")
    for source in sorted([*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/ops/*.cpp")]):
        build("host", source, f"host/{source.stem}.o", needs=" | host/host.h.gch")
    for isa, flags in isas().items():
        kernel_flags = [*COMMON_FLAGS, *KERNEL_FLAGS, *sanitize_flags(), *flags]
        rule(isa, [*kernel_flags, f"-DMMKERN_ISA={isa}"], "-c", isa)
        for source in sorted(ROOT.glob("csrc/cpu/*.cpp")):
            build(isa, source, f"{isa}/{source.stem}.o")
    write_if_changed(build_dir / "host/host.h", '#include "ops/host.h"\n')
    write_if_changed(build_dir / "build.ninja", "\n".join(lines) + "\n")
    return objects


def write_if_changed(path, text):
    """Keep the file's time where nothing changed, so that ninja has nothing to do."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def compile_objects(build_dir):
    """Compile what changed and return the paths of all objects."""
    objects = write_ninja_file(build_dir)
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    if subprocess.run([sys.executable, "-m", "ninja", "-C", str(build_dir), *jobs]).returncode:
        sys.exit("mmkern: compiling the CPU kernels failed, see the messages above.")
    return [str(path) for path in objects]


def cann():
    """(folder, major version) of the CANN that is set up in this shell, or None."""
    home = os.environ.get("ASCEND_HOME_PATH")
    if not home:
        return None
    for path in ("compiler/version.info", "version.info", "ascend_toolkit_install.info"):
        file = Path(home, path)
        match = file.exists() and re.search(r"(?im)^version\s*=\s*\D?(\d+)\.", file.read_text())
        if match:
            return Path(home), int(match[1])
    sys.exit(f"mmkern: ASCEND_HOME_PATH is {home!r}, where no version.info of CANN was found.")


def run(*command):
    if subprocess.run([str(part) for part in command]).returncode:
        sys.exit(f"mmkern: building the AscendC kernels failed in {command[0]}, see above.")


def soc_version():
    """The NPU's name for CANN 8.x."""
    if "SOC_VERSION" in os.environ:
        return os.environ["SOC_VERSION"]
    import torch

    if torch.npu.device_count() == 0:
        sys.exit("mmkern: no NPU is here to ask for its name: set SOC_VERSION, as Ascend910B2.")
    return torch.npu.get_device_name(0)


def build_ascendc(home, major, build_dir):
    """mmkern/_ascendc.so: the AscendC kernels by Ascend's compiler, and their host code."""
    import torch
    import torch_npu
    from torch.utils.cpp_extension import include_paths, library_paths

    source, npu = ROOT / "csrc/ascendc", Path(torch_npu.__file__).parent
    build_dir.mkdir(parents=True, exist_ok=True)
    kernels = "libmmkern_ascendc_kernels.so"
    if major >= 9:
        flags = ["-x", "asc", "--npu-arch=dav-2201", "-shared", "-fPIC", "-std=c++17", "-O2"]
        flags += [f"-DMMKERN_CANN_MAJOR={major}", source / "kernels_npu.cpp"]
        run("bisheng", *flags, "-o", build_dir / kernels)
    else:
        defines = [f"-DASCEND_CANN_PACKAGE_PATH={home}", f"-DSOC_VERSION={soc_version()}"]
        run("cmake", "-S", source, "-B", build_dir, *defines)
        run("cmake", "--build", build_dir)
        found = next((p for p in build_dir.rglob(kernels) if p.parent != build_dir), None)
        if found:
            shutil.copy2(found, build_dir)
    objects = []
    headers = [*include_paths(), npu / "include", npu / "include/third_party/acl/inc"]
    headers += [home / "include"]
    flags = ["-std=c++20", "-fPIC", "-O2", f"-I{ROOT / 'csrc'}"]
    flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    for file in sorted(source.glob("*.cpp")):
        if file.stem in ("kernels_npu", "device_twin"):
            continue
        objects.append(build_dir / f"{file.stem}.o")
        isystem = [f for path in headers for f in ("-isystem", path)]
        run(*compiler(), *flags, *isystem, "-c", file, "-o", objects[-1])
    shutil.copy2(build_dir / kernels, ROOT / "mmkern")
    folders = [*library_paths(), npu / "lib", home / "lib64", ROOT / "mmkern"]
    libraries = [*(f"-L{path}" for path in folders), "-ltorch_npu", "-ltorch", "-ltorch_cpu"]
    libraries += ["-lc10", "-lascendcl", f"-l:{kernels}", "-Wl,-rpath,$ORIGIN"]
    run(*compiler(), "-shared", *objects, *libraries, "-o", ROOT / "mmkern/_ascendc.so")


def extension():
    try:
        from torch.utils.cpp_extension import CppExtension
    except ImportError:
        sys.exit(
            "mmkern is built against the torch that it will run with, and none was found: install "
            "torch>=2.11 first, then `pip install --no-build-isolation .`, or set MMKERN_NO_EXT=1 "
            "to install without the CPU kernels."
        )
    from setuptools.command.build_ext import build_ext

    # Ninja compiles; setuptools links what it compiled.
    ext = CppExtension("mmkern._C", [], extra_link_args=[*OPENMP, *sanitize_flags()])
    ext.depends = [str(p) for p in ROOT.glob("csrc/**/*") if p.suffix in (".h", ".cpp")]

    class Build(build_ext):
        def finalize_options(self):
            super().finalize_options()
            if SANITIZE:
                self.build_temp += "-sanitize"

        def run(self):
            os.environ["CXX"] = shlex.join(compiler())
            super().run()

        def build_extensions(self):
            ext.extra_objects = compile_objects(ROOT / self.build_temp)
            super().build_extensions()
            if cann():
                build_ascendc(*cann(), ROOT / self.build_temp / "ascendc")

    return {"ext_modules": [ext], "cmdclass": {"build_ext": Build}}


setup(
    packages=[*find_packages(include=["mmkern", "mmkern.*"]), "mmkern.kernels"]
    + [f"mmkern.kernels.{p}" for p in find_packages("kernels")],
    package_dir={"mmkern.kernels": "kernels"},
    **({} if NO_EXTENSION else extension()),
)
