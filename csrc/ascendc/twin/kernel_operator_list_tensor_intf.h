// Lists of tensors are part of the whole here; kernels that use them include this file as well.
#pragma once

#include "kernel_operator.h"
