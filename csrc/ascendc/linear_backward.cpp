#include "linear_backward.h"

namespace mmkern::ascendc {
namespace {

LinearTiling describe(const Tensor& a, bool turned, const Tensor& b) {
  LinearTiling t{};
  t.m = a.size(turned ? 1 : 0);
  t.n = static_cast<int32_t>(b.size(1));
  t.k = static_cast<int32_t>(b.size(0));
  t.a_stride = row_stride(a);
  t.b_stride = row_stride(b);
  t.turned = turned;
  choose_tiles(t);
  return t;
}

void run(const LinearTiling& t, const Tensor& a, const Tensor& b, const OptionalTensor& z,
         const Tensor& activated, const Tensor& y) {
  const Tensor ring = ring_of(t, a);
  const uint32_t blocks = blocks_of(t);
  const bool bfloat16 = is_bfloat16(a);
  submit(
      {"linear_backward",
       a.device(),
       true,
       blocks,
       {input(a), input(b), input(z), output(activated), output(y), workspace(ring)}},
      [=](void* stream, uint8_t** p) { launch_linear_backward(bfloat16, blocks, stream, p, t); });
}

// Of column_sums: a tile of a group of rows is 32 KiB in a half type.
constexpr int32_t kSumColumns = 512, kSumRows = 32;

}  // namespace

Tensor product(const Tensor& a, bool turned, const Tensor& b) {
  const LinearTiling t = describe(a, turned, b);
  const Tensor y = at::empty({t.m, t.n}, a.options());
  run(t, a, b, {}, no_tensor(a), y);
  return y;
}

std::tuple<Tensor, Tensor> product_through_activation(const Tensor& a, const Tensor& b,
                                                      const Tensor& z, int32_t activation,
                                                      bool activated) {
  LinearTiling t = describe(a, false, b);
  t.activation = activation;
  t.saves = activated;
  t.gradient = true;
  const Tensor y = at::empty({t.m, t.n}, a.options()), saved = empty_like_if(activated, y);
  run(t, a, b, z, saved, y);
  return {saved, y};
}

Tensor column_sums(const Tensor& x) {
  ColumnTiling t{};
  t.rows = x.size(0);
  t.cols = x.size(1);
  t.stride = row_stride(x);
  t.tile = static_cast<int32_t>(std::min<int64_t>(kSumColumns, align_up(t.cols, 16)));
  const int64_t strips = ceil_div(t.cols, t.tile);
  const int64_t most = ceil_div(t.rows, kSumRows);
  const int64_t wanted = std::clamp<int64_t>(chip().vector_cores / strips, 1, most);
  t.chunk = ceil_div(t.rows, wanted);
  t.group = static_cast<int32_t>(std::min<int64_t>(kSumRows, t.chunk));
  const int64_t chunks = ceil_div(t.rows, t.chunk);
  const Tensor sums = at::empty({chunks, t.cols}, x.options().dtype(at::kFloat));
  const auto blocks =
      static_cast<uint32_t>(std::min<int64_t>(chip().vector_cores, chunks * strips));
  const bool bfloat16 = is_bfloat16(x);
  submit({"column_sums", x.device(), false, blocks, {input(x), output(sums)}},
         [=](void* stream, uint8_t** p) { launch_column_sums(bfloat16, blocks, stream, p, t); });
  return chunks == 1 ? sums.squeeze(0) : sums.sum(0);
}

}  // namespace mmkern::ascendc
