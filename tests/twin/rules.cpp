// Small kernels that each break one rule on purpose; `clean` breaks none.
#include "export.h"

using namespace AscendC;

constexpr uint32_t kN = 256;

// What most of the kernels here need: a tensor that V has filled, and global memory.
struct Base {
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffer, other;
  LocalTensor<float> x, y;
  GlobalTensor<float> in, out;
  __aicore__ Base(GM_ADDR a, GM_ADDR b) {
    pipe.InitBuffer(buffer, kN * 4);
    pipe.InitBuffer(other, kN * 4);
    x = buffer.Get<float>();
    y = other.Get<float>();
    in.SetGlobalBuffer((__gm__ float*)a, kN);
    out.SetGlobalBuffer((__gm__ float*)b, kN);
    Duplicate(x, 1.0f, kN);
    Duplicate(y, 2.0f, kN);
  }
  template <HardEvent event>
  __aicore__ void Order() {
    SetFlag<event>(0);
    WaitFlag<event>(0);
  }
};

#define RULE(NAME, ...)                                 \
  extern "C" __global__ __aicore__ void NAME(GM_ADDR a, \
                                             GM_ADDR b){__VA_ARGS__} ASCENDC_TWIN_KERNEL(NAME)
// One with a Base `m`.
#define BASED(NAME, ...) RULE(NAME, Base m(a, b); __VA_ARGS__)

BASED(clean, m.Order<HardEvent::V_MTE3>(); DataCopy(m.out, m.x, kN);)

// ---- places ----
BASED(misaligned, Adds(m.x[1], m.y, 1.0f, 8);)
BASED(beyond_tensor, Adds(m.x, m.y, 1.0f, kN + 8);)
BASED(beyond_memory, Duplicate(m.y, 1.0f, 64 * 1024);)
BASED(beyond_global, m.Order<HardEvent::V_MTE3>(); DataCopy(m.out[8], m.x, kN);)
BASED(foreign_pointer, GlobalTensor<float> g; g.SetGlobalBuffer((__gm__ float*)16);
      m.Order<HardEvent::V_MTE3>(); DataCopy(g, m.x, kN);)
BASED(partial_block, m.Order<HardEvent::V_MTE3>(); DataCopy(m.out, m.x, 10);)
RULE(over_capacity, TPipe pipe; TBuf<TPosition::VECCALC> big; pipe.InitBuffer(big, 193 * 1024);)
RULE(over_l0a, TPipe pipe; TBuf<TPosition::A2> big; pipe.InitBuffer(big, 65 * 1024);)
RULE(no_buffer, LocalTensor<float> t; Duplicate(t, 1.0f, 64);)
RULE(empty_buffer, TPipe pipe; TBuf<TPosition::VECCALC> none; pipe.InitBuffer(none, 0);)
RULE(too_many_buffers, TPipe pipe; TBuf<TPosition::VECCALC> small[65];
     for (auto& one : small) pipe.InitBuffer(one, 32);)
RULE(reserved_ub, TPipe pipe; TBuf<TPosition::VECCALC> big; pipe.InitBuffer(big, 185 * 1024);
     LocalTensor<float> t = big.Get<float>(); Duplicate(t, 1.0f, 128);
     Select(t, t[64].ReinterpretCast<uint8_t>(), t, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, 64);)
RULE(static_overlap, LocalTensor<float> p(TPosition::VECCALC, 0, 64);
     LocalTensor<float> q(TPosition::VECCALC, 128, 64); Duplicate(p, 1.0f, 64);)
RULE(static_apart, LocalTensor<float> p(TPosition::VECCALC, 0, 64);
     LocalTensor<float> q(TPosition::VECCALC, 256, 64); Duplicate(p, 1.0f, 64);)
BASED(wrong_position, LocalTensor<float> l(TPosition::A1, 0, 64); Duplicate(l, 1.0f, 64);)
RULE(vector_on_cube, LocalTensor<float> l(TPosition::VECCALC, 0, 64); Duplicate(l, 1.0f, 64);)

// ---- queues ----
#define QUEUE                                        \
  TPipe pipe;                                        \
  TQue<TPosition::VECIN, 1> queue;                   \
  pipe.InitBuffer(queue, 2, kN * 4);                 \
  GlobalTensor<float> in;                            \
  in.SetGlobalBuffer((__gm__ float*)a, kN);          \
  LocalTensor<float> t = queue.AllocTensor<float>(); \
  DataCopy(t, in, kN);
RULE(queue_clean, QUEUE queue.EnQue(t); t = queue.DeQue<float>(); Adds(t, t, 1.0f, kN);
     queue.FreeTensor(t);)
RULE(queue_without_enque, QUEUE Adds(t, t, 1.0f, kN); queue.FreeTensor(t);)
RULE(queue_without_deque, QUEUE queue.EnQue(t); Adds(t, t, 1.0f, kN);)
RULE(queue_deque_empty, QUEUE t = queue.DeQue<float>(); queue.FreeTensor(t);)
RULE(queue_never_freed, QUEUE queue.EnQue(t); t = queue.DeQue<float>();)
RULE(queue_freed_twice, QUEUE queue.EnQue(t); t = queue.DeQue<float>(); queue.FreeTensor(t);
     queue.FreeTensor(t);)
RULE(queue_used_after_free, QUEUE queue.EnQue(t); t = queue.DeQue<float>(); queue.FreeTensor(t);
     Adds(t, t, 1.0f, kN);)
RULE(queue_full, QUEUE queue.AllocTensor<float>(); queue.AllocTensor<float>();)
RULE(queue_too_deep, QUEUE LocalTensor<float> u = queue.AllocTensor<float>(); DataCopy(u, in, kN);
     queue.EnQue(t); queue.EnQue(u); t = queue.DeQue<float>(); u = queue.DeQue<float>();
     queue.FreeTensor(t); queue.FreeTensor(u);)

// ---- events and cross-core flags ----
BASED(event_left_set, SetFlag<HardEvent::V_MTE3>(0);)
BASED(event_not_set, WaitFlag<HardEvent::V_MTE3>(0);)
BASED(event_set_twice, SetFlag<HardEvent::V_MTE3>(0); SetFlag<HardEvent::V_MTE3>(0);
      WaitFlag<HardEvent::V_MTE3>(0);)
BASED(event_id, SetFlag<HardEvent::V_MTE3>(8);)
BASED(event_pipe, m.Order<HardEvent::M_FIX>();)
RULE(cross_left_set, if ASCEND_IS_AIC { CrossCoreSetFlag<2, PIPE_FIX>(3); })
RULE(cross_deadlock, if ASCEND_IS_AIV { CrossCoreWaitFlag(3); })
RULE(
    cross_overflow,
    if ASCEND_IS_AIC {
      for (int i = 0; i < 16; ++i) CrossCoreSetFlag<2, PIPE_FIX>(3);
    } else {
      for (int i = 0; i < 16; ++i) CrossCoreWaitFlag(3);
    })
RULE(
    cross_id,
    if ASCEND_IS_AIC { CrossCoreSetFlag<2, PIPE_FIX>(16); } else { CrossCoreWaitFlag(0); })
RULE(
    cross_clean,
    if ASCEND_IS_AIC { CrossCoreSetFlag<2, PIPE_FIX>(3); } else { CrossCoreWaitFlag(3); })
RULE(sync_missed, if (GetBlockIdx() == 0) SyncAll();)
RULE(sync_clean, SyncAll(); SyncAll();)

RULE(cross_mode, if ASCEND_IS_AIC { CrossCoreSetFlag<3, PIPE_FIX>(3); })
RULE(cross_nobody, CrossCoreSetFlag<2, PIPE_MTE3>(3);)
RULE(cross_pipe, if ASCEND_IS_AIC { CrossCoreSetFlag<2, PIPE_V>(3); })
RULE(polls_in_vain, while (ReadGmByPassDCache(reinterpret_cast<__gm__ int32_t*>(a)) != 7){})
RULE(events_exhausted, TPipe pipe;
     for (int i = 0; i < 9; ++i) pipe.AllocEventID<HardEvent::V_MTE3>();)

// ---- bytes never written ----
RULE(uninitialised, TPipe pipe; TBuf<TPosition::VECCALC> buffer; pipe.InitBuffer(buffer, kN * 4);
     LocalTensor<float> t = buffer.Get<float>(); Adds(t, t, 1.0f, kN);)
BASED(uninitialised_pad, m.Order<HardEvent::V_MTE2>(); TBuf<TPosition::VECCALC> third;
      m.pipe.InitBuffer(third, kN * 4); LocalTensor<float> t = third.Get<float>();
      DataCopyPad(t, m.in, DataCopyExtParams(1, 20, 0, 0, 0),
                  DataCopyPadExtParams<float>(false, 0, 3, 0.0f));
      m.Order<HardEvent::MTE2_V>(); Adds(t, t, 1.0f, 8);)
BASED(output_unwritten, m.Order<HardEvent::V_MTE3>(); DataCopy(m.out, m.x, kN - 8);)
// A 16x16 fractal of which 10 rows were loaded; Mmad reads all of them.
RULE(uninitialised_fractal, TPipe pipe; TBuf<TPosition::A1> l1; TBuf<TPosition::A2> l0a;
     TBuf<TPosition::B2> l0b; TBuf<TPosition::CO1> l0c; pipe.InitBuffer(l1, 1024);
     pipe.InitBuffer(l0a, 512); pipe.InitBuffer(l0b, 512); pipe.InitBuffer(l0c, 1024);
     GlobalTensor<half> g; g.SetGlobalBuffer((__gm__ half*)a);
     DataCopy(l1.Get<half>(), g, Nd2NzParams(1, 10, 16, 0, 16, 16, 1, 0));
     DataCopy(l1.Get<half>()[256], g, Nd2NzParams(1, 16, 16, 0, 16, 16, 1, 0));
     PipeBarrier<PIPE_ALL>(); LoadData2DParams p; p.repeatTimes = 1;
     LoadData(l0a.Get<half>(), l1.Get<half>(), p);
     LoadData(l0b.Get<half>(), l1.Get<half>()[256], p); PipeBarrier<PIPE_ALL>(); MmadParams mmad;
     mmad.m = mmad.n = mmad.k = 16; Mmad(l0c.Get<float>(), l0a.Get<half>(), l0b.Get<half>(), mmad);)

// ---- races ----
BASED(race_write_read, DataCopy(m.out, m.x, kN);)
BASED(race_read_write, m.Order<HardEvent::V_MTE3>(); DataCopy(m.out, m.x, kN);
      Duplicate(m.x, 3.0f, kN);)
BASED(race_write_write, DataCopy(m.x, m.in, kN);)
BASED(race_wrong_pair, m.Order<HardEvent::MTE2_MTE3>(); DataCopy(m.out, m.x, kN);)
BASED(race_global, m.Order<HardEvent::V_MTE3>(); DataCopy(m.out, m.x, kN);
      DataCopy(m.y, m.out, kN);)
BASED(two_writers, m.Order<HardEvent::V_MTE3>(); DataCopy(m.out, m.x, kN);)
BASED(two_adders, m.Order<HardEvent::V_MTE3>(); SetAtomicAdd<float>(); DataCopy(m.out, m.x, kN);
      SetAtomicNone();)
BASED(atomic_left_on, m.Order<HardEvent::V_MTE3>(); DataCopy(m.out, m.x, kN);
      SetAtomicAdd<float>();)
BASED(atomic_of_another_type, m.Order<HardEvent::V_MTE3>(); SetAtomicAdd<half>();
      DataCopy(m.out, m.x, kN); SetAtomicNone();)
BASED(scalar_writes, m.out.SetValue(0, 1.0f);)
RULE(shared_line, GlobalTensor<float> g; g.SetGlobalBuffer((__gm__ float*)b);
     g.SetValue(GetBlockIdx(), 1.0f);)
RULE(two_posters, WriteGmByPassDCache<float>(reinterpret_cast<__gm__ float*>(b), 1.0f);)
RULE(
    posters_in_turn, __gm__ float* turn = reinterpret_cast<__gm__ float*>(b);
    while (ReadGmByPassDCache(turn) != GetBlockIdx()) {
    } WriteGmByPassDCache<float>(turn, GetBlockIdx() + 1.0f);)
BASED(stale_line, m.out.GetValue(0); m.Order<HardEvent::V_MTE3>(); DataCopy(m.out, m.x, kN);
      m.Order<HardEvent::MTE3_S>(); m.out.GetValue(0);)

// ---- parameters and types ----
BASED(repeat_cut, Adds(m.x, m.x, 1.0f, uint64_t(1), 260, UnaryRepeatParams(1, 1, 0, 0));)
BASED(stride_cut, Adds(m.x, m.x, 1.0f, uint64_t(8), 1, UnaryRepeatParams(1, 1, 256, 8));)
BASED(blocks_of_pad, m.Order<HardEvent::V_MTE3>();
      DataCopyPad(m.out, m.x, DataCopyExtParams(4096, 4, 0, 0, 0));)
BASED(mask_too_wide, Adds(m.x, m.x, 1.0f, uint64_t(65), 1, UnaryRepeatParams());)
BASED(wrong_type, Exp(m.x.ReinterpretCast<int32_t>(), m.x.ReinterpretCast<int32_t>(), 8);)
BASED(wrong_round, Cast(m.x.ReinterpretCast<int32_t>(), m.y, RoundMode::CAST_NONE, 8);)
BASED(overflow, Muls(m.x, m.x, 1e30f, kN); Mul(m.x, m.x, m.x, kN);)
BASED(divides_by_zero, Muls(m.y, m.y, 0.0f, kN); Div(m.x, m.x, m.y, kN);)
BASED(partial_overlap, Adds(m.x[8], m.x, 1.0f, 64);)
RULE(wrong_quant, LocalTensor<float> c(TPosition::CO1, 0, 256); GlobalTensor<half> g;
     g.SetGlobalBuffer((__gm__ half*)b); Fixpipe(g, c, FixpipeParamsV220(16, 16, 16, 16, false));)
BASED(not_modelled, uint16_t n[4] = {8, 8, 8, 8}; MrgSortSrcList<float> queues(m.x, m.x, m.x, m.x);
      MrgSort(m.y, queues, MrgSort4Info(n, true, 15, 1));)
RULE(assertion, ascendc_assert(GetBlockNum() == 7, "seven");)
BASED(too_long, for (int i = 0; i < 200; ++i) Adds(m.x, m.x, 1.0f, 8);)
