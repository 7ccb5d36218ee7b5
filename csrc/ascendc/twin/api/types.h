// Scalar types, qualifiers and enums as the AscendC documentation names them.
#pragma once

#include <cassert>
#include <cstdint>
#include <type_traits>

#include "numbers.h"

#define ASCENDC_TWIN 1
#ifndef __NPU_ARCH__
#define __NPU_ARCH__ 2201
#endif
#define __aicore__
#define __global__
#define __gm__
#define __ubuf__
#define __cbuf__
#define __ca__
#define __cb__
#define __cc__
#define __fbuf__
#define __vector__
#define __cube__
#define __mix__(aic, aiv)
#define __kfc_workspace__
#define __in_pipe__(pipe)
#define __out_pipe__(pipe)
#define __inout_pipe__(pipe)
#define __sync_alias__
#define __sync_noalias__
#define __BLOCK_LOCAL__ thread_local
#define GM_ADDR uint8_t*

enum pipe_t {
  PIPE_S = 0,
  PIPE_V,
  PIPE_M,
  PIPE_MTE1,
  PIPE_MTE2,
  PIPE_MTE3,
  PIPE_ALL,
  PIPE_FIX = 10,
};

enum QuantMode_t {
  NoQuant,
  F322F16,
  F322BF16,
  DEQF16,
  VDEQF16,
  QF322B8_PRE,
  VQF322B8_PRE,
  REQ8,
  VREQ8,
};

using float16_t = half;
using float32_t = float;

namespace AscendC {

using ::bfloat16_t;
using ::half;

// Two of them share a byte, the first in its low half; a tensor of them is as long as its bytes.
struct int4b_t {
  uint8_t pair;
};

enum class TPosition : uint8_t {
  GM,
  A1,
  A2,
  B1,
  B2,
  C1,
  C2,
  CO1,
  CO2,
  VECIN,
  VECOUT,
  VECCALC,
  LCM = VECCALC,
  SPM,
  SHM = SPM,
  TSCM,
  C2PIPE2GM,
  C2PIPE2LOCAL,
  MAX,
};
using QuePosition = TPosition;

enum class Hardware : uint8_t { GM, UB, L1, L0A, L0B, L0C, BIAS, FIXBUF, MAX };

enum class HardEvent : uint8_t {
  MTE2_MTE1,
  MTE1_MTE2,
  MTE1_M,
  M_MTE1,
  MTE2_V,
  V_MTE2,
  MTE3_V,
  V_MTE3,
  M_V,
  V_M,
  V_V,
  MTE3_MTE1,
  MTE1_MTE3,
  MTE1_V,
  MTE2_M,
  M_MTE2,
  V_MTE1,
  M_FIX,
  FIX_M,
  MTE3_MTE2,
  MTE2_MTE3,
  S_V,
  V_S,
  S_MTE2,
  MTE2_S,
  S_MTE3,
  MTE3_S,
  MTE2_FIX,
  FIX_MTE2,
  FIX_S,
  M_S,
  FIX_MTE3,
  MTE1_FIX,
  FIX_MTE1,
  FIX_FIX,
  MAX,
};

enum class RoundMode : uint8_t {
  CAST_NONE = 0,
  CAST_RINT,
  CAST_FLOOR,
  CAST_CEIL,
  CAST_ROUND,
  CAST_TRUNC,
  CAST_ODD,
};

enum class CMPMODE : uint8_t { LT = 0, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t {
  VSEL_CMPMASK_SPR = 0,
  VSEL_TENSOR_SCALAR_MODE,
  VSEL_TENSOR_TENSOR_MODE,
};
enum class ReduceOrder : uint8_t {
  ORDER_VALUE_INDEX = 0,
  ORDER_INDEX_VALUE,
  ORDER_ONLY_VALUE,
  ORDER_ONLY_INDEX,
};
enum class ReduceType : uint8_t { SUM, MAX, MIN };
enum class MaskMode : uint8_t { NORMAL = 0, COUNTER };
enum class CacheLine : uint64_t { SINGLE_CACHE_LINE = 0, ENTIRE_DATA_CACHE };
enum class DcciDst : uint64_t { CACHELINE_ALL = 0, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };
enum class CacheMode {
  CACHE_MODE_DISABLE = 0,
  CACHE_MODE_NORMAL = 1,
  CACHE_MODE_LAST = 2,
  CACHE_MODE_PERSISTENT = 4,
};
enum class CacheRwMode { READ = 1, WRITE = 2, RW = 3 };
enum class MemDsbT : uint8_t { ALL = 0, DDR, UB, SEQ };
enum class CO2Layout : uint8_t { NZ = 0, ROW_MAJOR, COLUMN_MAJOR };

constexpr int32_t AIC = 1;
constexpr int32_t AIV = 2;
constexpr uint32_t ONE_BLK_SIZE = 32;
constexpr uint32_t DEFAULT_BLK_NUM = 8;
constexpr uint32_t DEFAULT_REPEAT_STRIDE = 8;
constexpr uint64_t MASK_PLACEHOLDER = 0;
constexpr int32_t DEFAULT_BLK_STRIDE = 1;
constexpr uint32_t ONE_REPEAT_BYTE_SIZE = 256;
constexpr uint32_t BLOCK_CUBE = 16;
constexpr uint32_t CUBE_MAX_SIZE = 256;
constexpr uint32_t TOTAL_UB_SIZE = 192 * 1024;
constexpr uint32_t TOTAL_L1_SIZE = 512 * 1024;
constexpr uint32_t TOTAL_L0A_SIZE = 64 * 1024;
constexpr uint32_t TOTAL_L0B_SIZE = 64 * 1024;
constexpr uint32_t TOTAL_L0C_SIZE = 128 * 1024;

using TEventID = int8_t;
using event_t = int32_t;

template <typename T>
using PrimT = T;

template <typename A, typename B>
struct IsSameType {
  static constexpr bool value = std::is_same<A, B>::value;
};

template <bool condition, typename A, typename B>
struct Conditional {
  using type = std::conditional_t<condition, A, B>;
};

namespace Std {
using std::conditional_t;
using std::enable_if;
using std::is_same;
using std::is_same_v;
}  // namespace Std

template <typename T>
constexpr T CeilDivision(T a, T b) {
  return b == 0 ? a : (a + b - 1) / b;
}
template <typename T, typename U>
constexpr auto DivCeil(T a, U b) {
  return b == 0 ? a : (a + b - 1) / b;
}
template <typename T, typename U>
constexpr auto AlignUp(T a, U b) {
  return b == 0 ? a : (a + b - 1) / b * b;
}

constexpr Hardware GetPhyType(TPosition position) {
  switch (position) {
    case TPosition::GM:
      return Hardware::GM;
    case TPosition::A1:
    case TPosition::B1:
    case TPosition::C1:
    case TPosition::TSCM:
    case TPosition::SPM:
      return Hardware::L1;
    case TPosition::A2:
      return Hardware::L0A;
    case TPosition::B2:
      return Hardware::L0B;
    case TPosition::CO1:
      return Hardware::L0C;
    case TPosition::C2:
      return Hardware::BIAS;
    case TPosition::C2PIPE2GM:
    case TPosition::C2PIPE2LOCAL:
      return Hardware::FIXBUF;
    case TPosition::CO2:
      return Hardware::GM;
    case TPosition::VECIN:
    case TPosition::VECOUT:
    case TPosition::VECCALC:
      return Hardware::UB;
    default:
      return Hardware::MAX;
  }
}

}  // namespace AscendC

// Event ids are plain numbers; the names are those of the documentation.
constexpr int32_t EVENT_ID0 = 0;
constexpr int32_t EVENT_ID1 = 1;
constexpr int32_t EVENT_ID2 = 2;
constexpr int32_t EVENT_ID3 = 3;
constexpr int32_t EVENT_ID4 = 4;
constexpr int32_t EVENT_ID5 = 5;
constexpr int32_t EVENT_ID6 = 6;
constexpr int32_t EVENT_ID7 = 7;
