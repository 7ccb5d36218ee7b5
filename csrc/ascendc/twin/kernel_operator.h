// The AscendC API on the CPU: with this folder first in the include path, a kernel source for Atlas
// A2 compiles unchanged and runs on the twin. docs/ascend_twin.md says what is modelled and
// checked.
#pragma once

#include "api/block_sync.h"
#include "api/copy_slice.h"
#include "api/gather.h"
#include "api/l0c_copy.h"
#include "api/load3d.h"
#include "api/scalar.h"
#include "api/sort.h"
#include "api/transpose.h"
