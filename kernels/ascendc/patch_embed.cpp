// Patch embedding: windows of pixels times the weight, + bias + position embedding, as tokens. The
// windows are gathered on the way into L1, so no copy of the pixels in another order is made.
#include "epilogue.h"

namespace mmkern {

// Rows of a are windows of pixels: for each channel, frame and row of a window a run of `width`
// pixels, which L1 holds as whole columns of 16, the last one filled up with zeros. b is loaded
// likewise, so that both have one depth: groups * width rounded up to 16.
template <class T>
struct Windows : Operands<T, false, false> {
  PixelTiling p;

  __aicore__ inline int32_t Groups() const { return p.channels * p.depth * p.height; }
  __aicore__ inline int32_t Run() const { return AlignUp(p.width, 16); }
  __aicore__ inline int32_t GroupsOfChunk() const { return Max(1, kDepthL1 / Run()); }
  __aicore__ inline int32_t Chunks(const LinearTiling&) const {
    return CeilDiv(Groups(), GroupsOfChunk());
  }
  __aicore__ inline int32_t Depth(const LinearTiling&, int32_t chunk) const {
    return Min(GroupsOfChunk(), Groups() - chunk * GroupsOfChunk()) * Run();
  }

  // Where the pixels of window `row` begin.
  __aicore__ inline int64_t Origin(int64_t row) const {
    int64_t column = row % p.columns, line = row / p.columns;
    int64_t y = line % p.rows, frame = line / p.rows % p.frames, batch = line / p.rows / p.frames;
    return batch * p.batch_stride + frame * p.depth * p.frame_stride + y * p.height * p.row_stride +
           column * p.width;
  }
  __aicore__ inline int64_t GroupOffset(int32_t group) const {
    int32_t y = group % p.height, frame = group / p.height % p.depth;
    return group / p.height / p.depth * p.channel_stride + frame * p.frame_stride +
           y * p.row_stride;
  }

  __aicore__ inline void LoadA(LocalTensor<T> dst, const LinearTiling& t, const GemmTile& tile,
                               int32_t chunk) {
    int32_t first = chunk * GroupsOfChunk(), pitch = AlignUp(tile.m, 16);
    int32_t last = first + Depth(t, chunk) / Run();
    for (int32_t row = 0; row < tile.m;) {
      int32_t column = static_cast<int32_t>((tile.row + row) % p.columns);
      int32_t windows = Min(p.columns - column, tile.m - row);
      int64_t origin = Origin(tile.row + row);
      for (int32_t group = first; group < last; ++group) {
        LocalTensor<T> to = dst[(group - first) * Run() * pitch + row * 16];
        GlobalTensor<T> from = this->a[origin + GroupOffset(group)];
        LoadColumns<T>(to, from, windows, p.width, p.width, pitch);
        if (tile.m == 1) LoadColumns<T>(to[16], from, 1, p.width, p.width, pitch);
      }
      row += windows;
    }
  }
  __aicore__ inline void LoadB(LocalTensor<T> dst, const LinearTiling& t, int32_t column,
                               int32_t columns, int32_t chunk) {
    int32_t first = chunk * GroupsOfChunk(), pitch = AlignUp(columns, 16);
    AscendC::Nd2NzParams n;
    n.ndNum = static_cast<uint16_t>(Depth(t, chunk) / Run());
    n.nValue = static_cast<uint16_t>(columns);
    n.dValue = static_cast<uint16_t>(p.width);
    n.srcNdMatrixStride = static_cast<uint16_t>(p.width);
    n.srcDValue = static_cast<uint16_t>(t.b_stride);
    n.dstNzC0Stride = static_cast<uint16_t>(pitch);
    n.dstNzNStride = 1;
    n.dstNzMatrixStride = static_cast<uint16_t>(Run() * pitch);
    AscendC::DataCopy(dst, this->b[column * t.b_stride + static_cast<int64_t>(first) * p.width], n);
  }
};

template <class T>
__aicore__ inline void PatchEmbedCube(Address x, Address weight, Address ring,
                                      const LinearTiling& tiling, const PixelTiling& pixels) {
  if (pixels.flattened) {
    PlainRows<T> source;
    source.Bind(x, weight);
    Gemm<T, PlainRows<T>>(source, ring, tiling).Run();
  } else {
    Windows<T> source;
    source.p = pixels;
    source.Bind(x, weight);
    Gemm<T, Windows<T>>(source, ring, tiling).Run();
  }
}

}  // namespace mmkern

#define MMKERN_PATCH_EMBED(T, name)                                                                \
  MMKERN_MIX_ENTRY mmkern_patch_embed_##name(GM_ADDR x, GM_ADDR weight, GM_ADDR bias, GM_ADDR pos, \
                                             GM_ADDR y, GM_ADDR ring, mmkern::LinearTiling tiling, \
                                             mmkern::PixelTiling pixels) {                         \
    MMKERN_ON_MIX;                                                                                 \
    if ASCEND_IS_AIC {                                                                             \
      mmkern::PatchEmbedCube<T>(x, weight, ring, tiling, pixels);                                  \
    }                                                                                              \
    if ASCEND_IS_AIV {                                                                             \
      mmkern::Epilogue<T>(ring, bias, pos, nullptr, nullptr, y, tiling).Run();                     \
    }                                                                                              \
  }
MMKERN_PATCH_EMBED(half, float16)
MMKERN_PATCH_EMBED(bfloat16_t, bfloat16)
