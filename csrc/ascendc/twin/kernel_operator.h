// The AscendC API on the CPU: with this folder first in the include path, a kernel source for Atlas
// A2 compiles unchanged and runs on the twin. docs/ascend_twin.md says what is modelled and
// checked.
#pragma once

#include "api/convert.h"
#include "api/cube.h"
#include "api/fixpipe.h"
#include "api/reduce.h"
#include "api/select.h"
