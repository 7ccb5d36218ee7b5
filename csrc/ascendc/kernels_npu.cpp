// The kernels and what starts them, for Ascend's compiler: CANN 8.x through CMakeLists.txt, 9.x by
// bisheng. setup.py does either.
#include "../../kernels/ascendc/attention.cpp"
#include "../../kernels/ascendc/attention_backward.cpp"
#include "../../kernels/ascendc/column_sums.cpp"
#include "../../kernels/ascendc/linear_backward.cpp"
#include "../../kernels/ascendc/mlp.cpp"
#include "../../kernels/ascendc/modulate.cpp"
#include "../../kernels/ascendc/modulate_backward.cpp"
#include "../../kernels/ascendc/patch_embed.cpp"

#define MMKERN_LAUNCH(name, blocks, stream, ...) name<<<blocks, nullptr, stream>>>(__VA_ARGS__)
#include "launchers.h"
