// One product on the cube core, in every layout and epilogue that a kernel may ask for.
#include "export.h"

using namespace AscendC;

struct Product {
  int32_t m, n, k;
  int32_t b_is_nk;  // 1: B comes as [n, k], 0: as [k, n] and is transposed by LoadData
  int32_t k_step;   // accumulated over slices of k; a multiple of 16
  int32_t bias, relu, nz, add;
};

constexpr int32_t Up(int32_t x, int32_t to) { return (x + to - 1) / to * to; }

// In, C and Out are the types of the operands, of L0C and of the result.
template <typename In, typename C, typename Out>
struct Cube {
  static constexpr int32_t kC0 = 32 / sizeof(In);
  TPipe pipe;
  TBuf<TPosition::A1> a1, b1;
  TBuf<TPosition::C1> bias1;
  TBuf<TPosition::A2> a2;
  TBuf<TPosition::B2> b2;
  TBuf<TPosition::C2> bias2;
  TBuf<TPosition::CO1> c1;

  __aicore__ void Load(const LocalTensor<In>& to, GM_ADDR x, int32_t rows, int32_t columns) {
    GlobalTensor<In> from;
    from.SetGlobalBuffer((__gm__ In*)x);
    InitConstValue(to, InitConstValueParams<In>(1, Up(rows, 16) * Up(columns, 16) * sizeof(In) / 32,
                                                0, In(0)));
    PipeBarrier<PIPE_ALL>();
    DataCopy(to, from, Nd2NzParams(1, rows, columns, 0, columns, Up(rows, 16), 1, 0));
  }

  // L1 has column blocks of `rows` rows; L0A wants, per 16 rows, the blocks along k.
  __aicore__ void LoadA(const LocalTensor<In>& from, int32_t m, int32_t k, int32_t start) {
    const int32_t m1 = Up(m, 16) / 16, blocks = Up(k, kC0) / kC0;
    LoadData2DParams p;
    p.repeatTimes = blocks;
    p.srcStride = m1;
    for (int32_t i = 0; i < m1; ++i) {
      p.startIndex = start / kC0 * m1 + i;
      LoadData(a2.template Get<In>()[i * blocks * 16 * kC0], from, p);
    }
  }

  __aicore__ void LoadB(const LocalTensor<In>& from, int32_t n, int32_t k, int32_t all,
                        int32_t start, bool nk) {
    const int32_t n1 = Up(n, 16) / 16, blocks = Up(k, kC0) / kC0;
    LoadData2DParams p;
    p.repeatTimes = n1;
    for (int32_t i = 0; i < blocks; ++i) {
      if (nk) {  // [n, k] in L1 is already what L0B wants
        p.startIndex = (start / kC0 + i) * n1;
        p.srcStride = 1;
      } else {
        p.startIndex = start / 16 + i;
        p.srcStride = Up(all, 16) / 16;
        p.ifTranspose = true;
      }
      LoadData(b2.template Get<In>()[i * n1 * 16 * kC0], from, p);
    }
  }

  __aicore__ void Run(GM_ADDR out, GM_ADDR a, GM_ADDR b, GM_ADDR bias, const Product& p,
                      QuantMode_t quant) {
    pipe.InitBuffer(a1, Up(p.m, 16) * Up(p.k, 16) * sizeof(In));
    pipe.InitBuffer(b1, Up(p.n, 16) * Up(p.k, 16) * sizeof(In));
    pipe.InitBuffer(bias1, Up(p.n, 16) * 4);
    pipe.InitBuffer(a2, Up(p.m, 16) * Up(p.k_step, 16) * sizeof(In));
    pipe.InitBuffer(b2, Up(p.n, 16) * Up(p.k_step, 16) * sizeof(In));
    pipe.InitBuffer(bias2, Up(p.n, 16) * 4);
    pipe.InitBuffer(c1, Up(p.m, 16) * Up(p.n, 16) * 4);
    LocalTensor<In> left = a1.template Get<In>(), right = b1.template Get<In>();
    Load(left, a, p.m, p.k);
    if (p.b_is_nk)
      Load(right, b, p.n, p.k);
    else
      Load(right, b, p.k, p.n);
    LocalTensor<C> sums = c1.template Get<C>();
    if (p.bias) {
      GlobalTensor<float> from;
      from.SetGlobalBuffer((__gm__ float*)bias);
      LocalTensor<float> row = bias1.template Get<float>();
      DataCopy(row, from, Up(p.n, 16));
      PipeBarrier<PIPE_ALL>();
      DataCopy(bias2.template Get<float>(), row, DataCopyParams(1, Up(p.n, 16) * 4 / 64, 0, 0));
    }
    for (int32_t start = 0; start < p.k; start += p.k_step) {
      const int32_t k = p.k - start < p.k_step ? p.k - start : p.k_step;
      PipeBarrier<PIPE_ALL>();
      LoadA(left, p.m, k, start);
      LoadB(right, p.n, k, p.k, start, p.b_is_nk);
      PipeBarrier<PIPE_ALL>();
      MmadParams mmad;
      mmad.m = p.m;
      mmad.n = p.n;
      mmad.k = k;
      mmad.cmatrixInitVal = start == 0;
      if (p.bias && start == 0) {
        mmad.cmatrixInitVal = false;
        mmad.cmatrixSource = true;
        Mmad(sums, a2.template Get<In>(), b2.template Get<In>(), bias2.template Get<float>(), mmad);
      } else {
        Mmad(sums, a2.template Get<In>(), b2.template Get<In>(), mmad);
      }
      PipeBarrier<PIPE_ALL>();
    }
    Store(out, sums, p, quant);
  }

  __aicore__ void Store(GM_ADDR out, const LocalTensor<C>& sums, const Product& p,
                        QuantMode_t quant) {
    GlobalTensor<Out> to;
    to.SetGlobalBuffer((__gm__ Out*)out);
    FixpipeParamsV220 fix;
    fix.mSize = p.m;
    fix.srcStride = Up(p.m, 16);
    fix.quantPre = quant;
    fix.reluEn = p.relu;
    if (p.add) SetAtomicAdd<Out>();
    if (p.nz) {
      fix.nSize = Up(p.n, 16);
      fix.dstStride = p.m * 16 * sizeof(Out) / 32;
      Fixpipe<Out, C, CFG_NZ>(to, sums, fix);
    } else {
      fix.nSize = p.n;
      fix.dstStride = p.n;
      Fixpipe<Out, C, CFG_ROW_MAJOR>(to, sums, fix);
    }
    SetAtomicNone();
  }
};

#define PRODUCT(ID, IN, C, OUT, QUANT)                                                      \
  extern "C" __global__ __aicore__ void ID(GM_ADDR out, GM_ADDR a, GM_ADDR b, GM_ADDR bias, \
                                           Product p) {                                     \
    Cube<IN, C, OUT> cube;                                                                  \
    cube.Run(out, a, b, bias, p, QUANT);                                                    \
  }                                                                                         \
  ASCENDC_TWIN_KERNEL(ID)

PRODUCT(half_float, half, float, float, NoQuant)
PRODUCT(half_half, half, float, half, F322F16)
PRODUCT(bfloat16_bfloat16, bfloat16_t, float, bfloat16_t, F322BF16)
PRODUCT(bfloat16_float, bfloat16_t, float, float, NoQuant)
PRODUCT(float_float, float, float, float, NoQuant)

// A 16x16 square in L1, transposed into L0B by LoadDataWithTranspose: C = A B.
extern "C" __global__ __aicore__ void square(GM_ADDR out, GM_ADDR a, GM_ADDR b) {
  Cube<half, float, float> cube;
  cube.pipe.InitBuffer(cube.a1, 512);
  cube.pipe.InitBuffer(cube.b1, 512);
  cube.pipe.InitBuffer(cube.a2, 512);
  cube.pipe.InitBuffer(cube.b2, 512);
  cube.pipe.InitBuffer(cube.c1, 1024);
  LocalTensor<half> left = cube.a1.Get<half>(), right = cube.b1.Get<half>();
  cube.Load(left, a, 16, 16);
  cube.Load(right, b, 16, 16);
  PipeBarrier<PIPE_ALL>();
  cube.LoadA(left, 16, 16, 0);
  LoadDataWithTranspose(cube.b2.Get<half>(), right, LoadData2dTransposeParams(0, 1, 1, 0, 0));
  PipeBarrier<PIPE_ALL>();
  MmadParams mmad;
  mmad.m = mmad.n = mmad.k = 16;
  Mmad(cube.c1.Get<float>(), cube.a2.Get<half>(), cube.b2.Get<half>(), mmad);
  PipeBarrier<PIPE_ALL>();
  Product p{16, 16, 16};
  cube.Store(out, cube.c1.Get<float>(), p, NoQuant);
}
ASCENDC_TWIN_KERNEL(square)
