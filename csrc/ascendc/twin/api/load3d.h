// LoadData that unfolds the windows of a convolution (LoadData3DParamsV2), without padding.
#pragma once

#include "load.h"

namespace AscendC {

template <typename T>
struct LoadData3DParamsV2 {
  LoadData3DParamsV2() {}
  uint8_t padList[4] = {0, 0, 0, 0};
  ascendc_twin::Field16 l1H = 0;
  ascendc_twin::Field16 l1W = 0;
  ascendc_twin::Field16 channelSize = 0;
  ascendc_twin::Field16 kExtension = 0;
  ascendc_twin::Field16 mExtension = 0;
  ascendc_twin::Field16 kStartPt = 0;
  ascendc_twin::Field16 mStartPt = 0;
  ascendc_twin::Field8 strideW = 1;
  ascendc_twin::Field8 strideH = 1;
  ascendc_twin::Field8 filterW = 1;
  ascendc_twin::Field8 filterH = 1;
  ascendc_twin::Field8 dilationFilterW = 1;
  ascendc_twin::Field8 dilationFilterH = 1;
  bool enTranspose = false;
  bool enSmallK = false;
  T padValue{};
  bool filterSizeW = false;
  bool filterSizeH = false;
  bool fMatrixCtrl = false;
};

}  // namespace AscendC

namespace ascendc_twin {

// Where an element of the unfolded matrix lies in the feature map [C1, H, W, C0].
struct Window {
  uint32_t c0, width, height, filter_w, filter_h, stride_w, stride_h, step_w, step_h, out_w;

  uint64_t Offset(uint32_t row, uint32_t column) const {
    const uint32_t tap = column / c0 % (filter_w * filter_h);
    const uint32_t block = column / c0 / (filter_w * filter_h);
    const uint64_t h = row / out_w * stride_h + tap / filter_w * step_h;
    const uint64_t w = row % out_w * stride_w + tap % filter_w * step_w;
    return ((block * uint64_t(height) + h) * width + w) * c0 + column % c0;
  }
};

template <typename T>
bool CheckWindow(Instruction& instruction, const AscendC::LoadData3DParamsV2<T>& p, bool turns,
                 Window& window) {
  const uint32_t taps_w = (p.filterW - 1) * p.dilationFilterW + 1;
  const uint32_t taps_h = (p.filterH - 1) * p.dilationFilterH + 1;
  const bool padded = p.padList[0] || p.padList[1] || p.padList[2] || p.padList[3];
  if (padded || p.filterSizeW || p.filterSizeH || p.fMatrixCtrl || p.enSmallK ||
      (turns && sizeof(T) == 1)) {
    instruction.Refuse("unsupported", "this LoadData3DParamsV2 is not modelled");
    return false;
  }
  constexpr uint32_t c0 = kBlock / sizeof(T);
  if (p.strideW == 0 || p.strideH == 0 || p.l1W < taps_w || p.l1H < taps_h || p.channelSize % c0 ||
      p.kStartPt % c0 || p.mStartPt % 16) {
    instruction.Refuse("field-range", "the window does not fit its feature map");
    return false;
  }
  const uint32_t out_w = (p.l1W - taps_w) / p.strideW + 1;
  const uint32_t out_h = (p.l1H - taps_h) / p.strideH + 1;
  if (p.mStartPt + p.mExtension > (out_w * out_h + 15) / 16 * 16 ||
      p.kStartPt + p.kExtension > uint32_t(p.channelSize) * p.filterW * p.filterH) {
    instruction.Refuse("field-range", "the extensions pass the unfolded matrix");
    return false;
  }
  window = {c0,
            p.l1W,
            p.l1H,
            p.filterW,
            p.filterH,
            p.strideW,
            p.strideH,
            p.dilationFilterW,
            p.dilationFilterH,
            out_w};
  return true;
}

}  // namespace ascendc_twin

namespace AscendC {

// Into L0A as it is or transposed, into L0B always transposed.
template <typename T>
void LoadData(const LocalTensor<T>& dst, const LocalTensor<T>& src,
              const LoadData3DParamsV2<T>& params, Loc loc = Loc::Here()) {
  using namespace ascendc_twin;
  Instruction instruction(kMte1, "LoadData(3D)", loc);
  const Operand from = Use(instruction, src, "src", {Hardware::L1});
  const Operand to = Use(instruction, dst, "dst", {Hardware::L0A, Hardware::L0B}, kFractal);
  const bool b = GetPhyType(dst.position()) == Hardware::L0B;
  Window window;
  if (params.mExtension == 0 || params.kExtension == 0) return;
  if (!CheckWindow(instruction, params, b || params.enTranspose, window)) return;
  const uint32_t rows = params.mExtension, columns = params.kExtension;
  const uint32_t first_row = params.mStartPt, first_column = params.kStartPt;
  const bool turned = params.enTranspose && !b;
  constexpr uint32_t c0 = kBlock / sizeof(T);
  const uint64_t bytes = uint64_t(rows) * columns * sizeof(T);
  Count(instruction, b ? "L1->L0B" : "L1->L0A", bytes);
  CountElements(instruction, bytes / sizeof(T));
  const auto place = [=](uint32_t row, uint32_t column) -> uint64_t {
    if (b) {
      const uint64_t across = (columns + 15) / 16;
      return (row / c0 * across + column / 16) * 16 * c0 + column % 16 * c0 + row % c0;
    }
    const uint32_t y = turned ? column : row, x = turned ? row : column;
    const uint64_t across = ((turned ? rows : columns) + c0 - 1) / c0;
    return (y / 16 * across + x / c0) * 16 * c0 + y % 16 * c0 + x % c0;
  };
  RunMove(instruction, to, from, bytes / (b ? 128.0 : 256.0), [=](auto&& move) {
    for (uint32_t row = 0; row < rows; ++row)
      for (uint32_t column = 0; column < columns; ++column)
        move(place(row, column) * sizeof(T),
             window.Offset(first_row + row, first_column + column) * sizeof(T), sizeof(T));
  });
}

}  // namespace AscendC
