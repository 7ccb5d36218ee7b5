// How DataCopy, DataCopyPad and Copy are told what to move.
#pragma once

#include "system.h"

namespace AscendC {

struct DataCopyParams {
  DataCopyParams() {}
  DataCopyParams(ascendc_twin::Field16 count, ascendc_twin::Field16 len, ascendc_twin::Field16 src,
                 ascendc_twin::Field16 dst)
      : blockCount(count), blockLen(len), srcStride(src), dstStride(dst) {}
  ascendc_twin::Field16 blockCount = 1;
  ascendc_twin::Field16 blockLen = 0;
  union {
    ascendc_twin::Field16 srcGap = 0;
    ascendc_twin::Field16 srcStride;
  };
  union {
    ascendc_twin::Field16 dstGap = 0;
    ascendc_twin::Field16 dstStride;
  };
};

struct DataCopyEnhancedParams {
  bool isRelu = false;
};

struct DataCopyExtParams {
  DataCopyExtParams() {}
  DataCopyExtParams(ascendc_twin::Field16 count, ascendc_twin::Field32 len,
                    ascendc_twin::Field32 src, ascendc_twin::Field32 dst, uint32_t reserved)
      : blockCount(count), blockLen(len), srcStride(src), dstStride(dst), rsv(reserved) {}
  ascendc_twin::Field16 blockCount = 1;
  ascendc_twin::Field32 blockLen = 0;
  ascendc_twin::Field32 srcStride = 0;
  ascendc_twin::Field32 dstStride = 0;
  uint32_t rsv = 0;
};

struct DataCopyPadParams {
  DataCopyPadParams() {}
  DataCopyPadParams(bool pad, ascendc_twin::Field8 left, ascendc_twin::Field8 right, uint64_t value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
  bool isPad = false;
  ascendc_twin::Field8 leftPadding = 0;
  ascendc_twin::Field8 rightPadding = 0;
  uint64_t paddingValue = 0;
};

template <typename T>
struct DataCopyPadExtParams {
  DataCopyPadExtParams() {}
  DataCopyPadExtParams(bool pad, ascendc_twin::Field8 left, ascendc_twin::Field8 right, T value)
      : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
  bool isPad = false;
  ascendc_twin::Field8 leftPadding = 0;
  ascendc_twin::Field8 rightPadding = 0;
  T paddingValue = T(0);
};

struct Nd2NzParams {
  Nd2NzParams() {}
  Nd2NzParams(ascendc_twin::Field16 nd, ascendc_twin::Field16 n, ascendc_twin::Field16 d,
              ascendc_twin::Field16 src_matrix, ascendc_twin::Field16 src_d,
              ascendc_twin::Field16 c0, ascendc_twin::Field16 dst_n,
              ascendc_twin::Field16 dst_matrix)
      : ndNum(nd),
        nValue(n),
        dValue(d),
        srcNdMatrixStride(src_matrix),
        srcDValue(src_d),
        dstNzC0Stride(c0),
        dstNzNStride(dst_n),
        dstNzMatrixStride(dst_matrix) {}
  ascendc_twin::Field16 ndNum = 0;
  ascendc_twin::Field16 nValue = 0;
  ascendc_twin::Field16 dValue = 0;
  ascendc_twin::Field16 srcNdMatrixStride = 0;
  ascendc_twin::Field16 srcDValue = 0;
  ascendc_twin::Field16 dstNzC0Stride = 0;
  ascendc_twin::Field16 dstNzNStride = 0;
  ascendc_twin::Field16 dstNzMatrixStride = 0;
};

struct CopyRepeatParams {
  CopyRepeatParams() {}
  CopyRepeatParams(ascendc_twin::Field16 dst, ascendc_twin::Field16 src,
                   ascendc_twin::Field16 dst_repeat, ascendc_twin::Field16 src_repeat)
      : dstStride(dst), srcStride(src), dstRepeatSize(dst_repeat), srcRepeatSize(src_repeat) {}
  ascendc_twin::Field16 dstStride = 1;
  ascendc_twin::Field16 srcStride = 1;
  ascendc_twin::Field16 dstRepeatSize = 8;
  ascendc_twin::Field16 srcRepeatSize = 8;
};

}  // namespace AscendC
