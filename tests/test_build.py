"""What the build promises about its object files."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OBJECTS = sorted(ROOT.glob("build/temp*/cpu/*/*.o"))


@pytest.mark.skipif(not OBJECTS, reason="the extension was not built in this source tree")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_kernel_objects_define_symbols_of_their_own_isa_only(path):
    """Else the linker could merge a function and run its AVX-512 copy on an old CPU."""
    isa = path.parent.name
    listing = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
    # Upper case letters (and u) are the kinds that the linker sees; U is a reference, not a symbol.
    symbols = re.findall(r"^[0-9a-f]+ ([A-TV-Zuvw]) (\S+)$", listing, re.MULTILINE)
    namespace = f"6mmkern{len(isa)}{isa}"
    assert symbols, f"{path} defines nothing"
    assert [name for _, name in symbols if namespace not in name] == []
