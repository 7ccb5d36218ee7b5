#!/bin/sh
# The CPU kernels on 64-bit ARM, without one: cross-compiled, then the accuracy and edge tests under
# qemu-user. Run by `make arm-check` on Debian; needs apt's g++-aarch64-linux-gnu, qemu-user, unzip and
# ninja, and the arm64 architecture (dpkg --add-architecture arm64; apt-get update).
#
# torch is 2.9.1: its wheel for ARM is the last on PyPI that runs without CUDA's libraries.
set -eu
cd "$(dirname "$0")/.."
dir=$PWD/build/arm
site=$dir/site
python=$dir/root/usr/bin/python3.11
for tool in aarch64-linux-gnu-g++ qemu-aarch64 unzip apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || { echo "arm-check needs $tool, see tests/arm_check.sh" >&2; exit 1; }
done

if [ ! -e "$dir/installed" ]; then
  mkdir -p "$dir/debs" "$dir/root" "$site"
  (cd "$dir/debs" && for name in python3.11-minimal libpython3.11-minimal libpython3.11-stdlib \
    libpython3.11-dev libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 \
    liblzma5 libsqlite3-0 libuuid1; do apt-get download "$name:arm64"; done)
  for deb in "$dir"/debs/*.deb; do dpkg-deb -x "$deb" "$dir/root"; done
  .venv/bin/pip download --quiet --only-binary=:all: --dest "$dir/wheels" --python-version 3.11 \
    --implementation cp --abi cp311 --abi none --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 --platform any \
    torch==2.9.1 numpy rich pytest hypothesis
  for wheel in "$dir"/wheels/*.whl; do unzip -q -o "$wheel" -d "$site"; done
  touch "$dir/installed"
fi

cxx="aarch64-linux-gnu-g++ -std=c++20 -fPIC -fvisibility=hidden -fopenmp"
host="-O1 -DNDEBUG -Icsrc -DTORCH_EXTENSION_NAME=_C -include $dir/flags.h"
for headers in "$site/torch/include" "$site/torch/include/torch/csrc/api/include" \
  "$dir/root/usr/include/python3.11" "$dir/root/usr/include"; do host="$host -isystem $headers"; done
kernel="-O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -fno-exceptions"
echo "#define MMKERN_KERNEL_FLAGS \"$kernel\"" > "$dir/flags.h"
tree=$dir/tree
rm -rf "$tree" "$dir/objects"
mkdir -p "$tree" "$dir/objects"
ls csrc/*.cpp csrc/ops/*.cpp | xargs -P "$(nproc)" -I{} sh -c "$cxx $host"' -include ops/host.h -c {} \
  -o '"$dir/objects"'/host_$(basename {} .cpp).o'
ls csrc/cpu/*.cpp | xargs -P "$(nproc)" -I{} sh -c "$cxx $kernel"' -DMMKERN_ISA=baseline -c {} \
  -o '"$dir/objects"'/$(basename {} .cpp).o'
cp -r mmkern tests pyproject.toml "$tree"
rm -f "$tree"/mmkern/*.so
$cxx -shared "$dir"/objects/*.o -o "$tree/mmkern/_C.cpython-311-aarch64-linux-gnu.so" \
  -L"$site/torch/lib" -lc10 -ltorch_cpu -ltorch -ltorch_python

cd "$tree"
QEMU_LD_PREFIX=$dir/root PYTHONPATH=$tree:$site OMP_NUM_THREADS=1 exec qemu-aarch64 -cpu cortex-a76 \
  "$python" -m pytest tests/test_accuracy.py tests/test_edges.py -q -p no:cacheprovider "$@"
