// One product on the cube core, in every layout and epilogue that a kernel may ask for.
#include "export.h"

using namespace AscendC;

struct Product {
  int32_t m, n, k;
  int32_t b_is_nk;  // 1: B comes as [n, k], 0: as [k, n] and is transposed by LoadData
  int32_t k_step;   // accumulated over slices of k; a multiple of 16
  int32_t bias;     // 1: an operand of Mmad, 2: what the bias table has already
  int32_t relu, nz, add;
  int32_t how;      // scales: 1 one, 2 a tensor in L1; 3 and 4 the same by DataCopy's registers
  int32_t unfolds;  // 1: [k, n] goes to L0B by LoadData3DParamsV2
  uint64_t scale;

  __aicore__ bool HasTensor() const { return how == 2 || how == 4; }
};

constexpr int32_t Up(int32_t x, int32_t to) { return (x + to - 1) / to * to; }

// In, C and Out are the types of the operands, of L0C and of the result.
template <typename In, typename C, typename Out>
struct Cube {
  static constexpr int32_t kC0 = 32 / sizeof(In);
  TPipe pipe;
  TBuf<TPosition::A1> a1, b1;
  TBuf<TPosition::C1> bias1, scales1;
  TBuf<TPosition::C2PIPE2GM> scales2;
  TBuf<TPosition::A2> a2;
  TBuf<TPosition::B2> b2;
  TBuf<TPosition::C2> bias2;
  TBuf<TPosition::CO1> c1;

  __aicore__ void Load(const LocalTensor<In>& to, GM_ADDR x, int32_t rows, int32_t columns) {
    GlobalTensor<In> from;
    from.SetGlobalBuffer((__gm__ In*)x);
    Fill(to,
         InitConstValueParams<In>(1, Up(rows, 16) * Up(columns, kC0) * sizeof(In) / 32, 0, In(0)));
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
    pipe.InitBuffer(scales1, 1024);
    pipe.InitBuffer(scales2, 1024);
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
      if (p.unfolds)
        Unfold(right, p.n, k, start, p.k);
      else
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
        if (p.bias == 1)
          Mmad(sums, a2.template Get<In>(), b2.template Get<In>(), bias2.template Get<float>(),
               mmad);
        else
          Mmad(sums, a2.template Get<In>(), b2.template Get<In>(), mmad);
      } else {
        Mmad(sums, a2.template Get<In>(), b2.template Get<In>(), mmad);
      }
      PipeBarrier<PIPE_ALL>();
    }
    if (p.HasTensor()) {
      GlobalTensor<uint64_t> from;
      from.SetGlobalBuffer((__gm__ uint64_t*)bias);
      DataCopy(scales1.template Get<uint64_t>(), from, 128);
      PipeBarrier<PIPE_ALL>();
    }
    if (p.how > 2)
      StoreByRegisters(out, sums, p, quant);
    else
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
    fix.deqScalar = p.scale;
    if (p.add) SetAtomicAdd<Out>();
    if (p.nz) {
      fix.nSize = Up(p.n, 16);
      fix.dstStride = p.m * 16 * sizeof(Out) / 32;
      Fixpipe<Out, C, CFG_NZ>(to, sums, fix);
    } else {
      fix.nSize = p.n;
      fix.dstStride = p.n;
      if (p.how == 2)
        Fixpipe<Out, C, CFG_ROW_MAJOR>(to, sums, scales1.template Get<uint64_t>(), fix);
      else
        Fixpipe<Out, C, CFG_ROW_MAJOR>(to, sums, fix);
    }
    SetAtomicNone();
  }

  __aicore__ void StoreByRegisters(GM_ADDR out, const LocalTensor<C>& sums, const Product& p,
                                   QuantMode_t quant) {
    GlobalTensor<Out> to;
    to.SetGlobalBuffer((__gm__ Out*)out);
    if (p.how == 4) {
      LocalTensor<uint64_t> scales = scales2.template Get<uint64_t>();
      DataCopy(scales, scales1.template Get<uint64_t>(), DataCopyParams(1, 1024 / 128, 0, 0));
      PipeBarrier<PIPE_FIX>();
      SetFixPipeConfig(scales);
    }
    SetFixpipePreQuantFlag(p.scale);
    DataCopyCO12DstParams params;
    params.mSize = p.m;
    params.nSize = p.n;
    params.srcStride = Up(p.m, 16);
    params.dstStride = p.nz ? p.m : p.n;
    params.quantPre = quant;
    params.reluPre = p.relu;
    params.nz2ndEn = !p.nz;
    SetFixpipeNz2ndFlag(1, 0, 0);
    DataCopy(to, sums, params);
  }

  // [k, n] in L1 is a feature map of k pixels and n channels.
  __aicore__ void Unfold(const LocalTensor<In>& from, int32_t n, int32_t k, int32_t start,
                         int32_t all) {
    LoadData3DParamsV2<In> p;
    p.l1H = Up(all, 16);
    p.l1W = 1;
    p.channelSize = Up(n, kC0);
    p.kExtension = Up(n, kC0);
    p.mExtension = Up(k, 16);
    p.mStartPt = start;
    LoadData(b2.template Get<In>(), from, p);
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
PRODUCT(int8_int32, int8_t, int32_t, int32_t, NoQuant)
PRODUCT(int8_half, int8_t, int32_t, half, p.HasTensor() ? VDEQF16 : DEQF16)
PRODUCT(int8_int8, int8_t, int32_t, int8_t, p.HasTensor() ? VREQ8 : REQ8)
PRODUCT(half_int8, half, float, int8_t, p.HasTensor() ? VQF322B8_PRE : QF322B8_PRE)
PRODUCT(half_uint8, half, float, uint8_t, p.HasTensor() ? VQF322B8_PRE : QF322B8_PRE)

// A matrix in L1 through LoadData3DParamsV2 and a product with ones: C = X^T, or C = X.
extern "C" __global__ __aicore__ void unfolded(GM_ADDR out, GM_ADDR x, GM_ADDR one, int32_t turn) {
  Cube<half, float, float> cube;
  cube.pipe.InitBuffer(cube.a1, 32 * 32 * 2);
  cube.pipe.InitBuffer(cube.b1, 32 * 32 * 2);
  cube.pipe.InitBuffer(cube.a2, 32 * 32 * 2);
  cube.pipe.InitBuffer(cube.b2, 32 * 32 * 2);
  cube.pipe.InitBuffer(cube.c1, 32 * 32 * 4);
  LocalTensor<half> left = cube.a1.Get<half>(), right = cube.b1.Get<half>();
  cube.Load(left, x, 32, 32);
  cube.Load(right, one, 32, 32);
  PipeBarrier<PIPE_ALL>();
  LoadData3DParamsV2<half> p;
  p.l1H = 8;
  p.l1W = 4;
  p.channelSize = p.kExtension = p.mExtension = 32;
  p.enTranspose = turn == 1;
  LoadData(cube.a2.Get<half>(), left, p);
  cube.LoadB(right, 32, 32, 32, 0, true);
  PipeBarrier<PIPE_ALL>();
  MmadParams mmad;
  mmad.m = mmad.n = mmad.k = 32;
  Mmad(cube.c1.Get<float>(), cube.a2.Get<half>(), cube.b2.Get<half>(), mmad);
  PipeBarrier<PIPE_ALL>();
  Product product{32, 32, 32};
  cube.Store(out, cube.c1.Get<float>(), product, NoQuant);
}
ASCENDC_TWIN_KERNEL(unfolded)

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
