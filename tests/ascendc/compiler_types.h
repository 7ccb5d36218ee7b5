// What Ascend's compiler knows without a declaration and AscendC's public headers therefore lack:
// address-space words, half types, and the enumerations of its built-in functions. Written for
// benchmarks/ascendc_headers.py, which lets a host compiler read the headers; nothing here runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#define __aicore__
#define __host__
#define __global__
#define __gm__
#define __ubuf__
#define __cbuf__
#define __ca__
#define __cb__
#define __cc__
#define __fbuf__
#define __biasbuf__
#define __BLOCK_LOCAL__
#define __inline__ inline
#define __sync_noalias__
#define __sync_alias__
#define __check_sync_alias__
#define __in_pipe__(...)
#define __out_pipe__(...)
#define __inout_pipe__(...)

struct half {
  half() = default;
  half(float) {}
  operator float() const;
};
struct bfloat16_t {
  bfloat16_t() = default;
  bfloat16_t(float) {}
  operator float() const;
};

enum pipe_t {
  PIPE_S,
  PIPE_V,
  PIPE_M,
  PIPE_MTE1,
  PIPE_MTE2,
  PIPE_MTE3,
  PIPE_ALL,
  PIPE_MTE4,
  PIPE_MTE5,
  PIPE_V2,
  PIPE_FIX
};
enum event_t {
  EVENT_ID0,
  EVENT_ID1,
  EVENT_ID2,
  EVENT_ID3,
  EVENT_ID4,
  EVENT_ID5,
  EVENT_ID6,
  EVENT_ID7
};
enum QuantMode_t {
  NoQuant,
  F322F16,
  F322BF16,
  DEQF16,
  VDEQF16,
  REQ8,
  VREQ8,
  QF322B8_PRE,
  VQF322B8_PRE,
  DEQS16,
  VDEQS16,
  QF162B8_PRE,
  VQF162B8_PRE,
  QF162S16_PRE,
  VQF162S16_PRE,
  QF162S4_PRE,
  VQF162S4_PRE,
  REQ4,
  VREQ4
};
enum class cache_line_t { SINGLE_CACHE_LINE, ENTIRE_DATA_CACHE };
enum class dcci_dst_t { CACHELINE_ALL, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };
enum class Order_t { VALUE_INDEX, INDEX_VALUE, ONLY_VALUE, ONLY_INDEX };
enum class mem_t { L0A, L0B, L0C, UB, L1 };
enum pad_t { PAD_NONE };
enum addr_cal_mode_t { inc, dec };
enum mem_dsb_t { DSB_ALL };
enum atomic_type_t { ATOMIC_NONE };
enum atomic_op_t { ATOMIC_SUM };
