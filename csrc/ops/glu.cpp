#include "../cpu/glu.h"

#include <vector>

#include "host.h"
#include "strided_rows.h"

namespace mmkern {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor>;

Activation activation_of(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "quick_gelu") return Activation::kQuickGelu;
  if (name == "relu") return Activation::kRelu;
  TORCH_CHECK_VALUE(name == "sigmoid", "mmkern::glu: activation is '", name,
                    "'; wanted 'silu', 'gelu', 'gelu_tanh', 'quick_gelu', 'relu' or 'sigmoid'");
  return Activation::kSigmoid;
}

// What the kernels take: one dtype, unit last stride, and a last dimension to split in two or a
// second tensor of the same shape.
bool fits(const Tensor& gate, const OptionalTensor& up) {
  if (!is_kernel_dtype(gate.scalar_type()) || !has_unit_last_stride(gate)) return false;
  if (!up.has_value()) return gate.dim() > 0 && gate.size(-1) % 2 == 0;
  return up->scalar_type() == gate.scalar_type() && up->sizes() == gate.sizes() &&
         has_unit_last_stride(*up);
}

// The operands as the kernels see them: where all are contiguous, one row of everything.
struct Problem {
  Problem(const Tensor& gate, const OptionalTensor& up, const OptionalTensor& grad,
          std::string_view activation) {
    const bool one_row = up.has_value() && gate.is_contiguous() && up->is_contiguous() &&
                         (!grad.has_value() || grad->is_contiguous());
    args.dtype = kernel_dtype(gate.scalar_type());
    args.activation = activation_of(activation);
    args.columns = one_row ? gate.numel() : up.has_value() ? gate.size(-1) : gate.size(-1) / 2;
    const at::IntArrayRef sizes = one_row ? at::IntArrayRef() : gate.sizes();
    laid_out = lay_out_rows(
        sizes, args.shape,
        {{gate, args.gate}, {up.has_value() ? *up : gate, args.up}, {grad, grad_rows}});
    const int64_t elements = up.has_value() ? gate.numel() : gate.numel() / 2;
    rows = elements == 0 ? 0 : elements / args.columns;
    tasks = rows * at::divup(args.columns, kGluColumns);
  }

  // Moves on the half of a packed tensor that comes second.
  void split(bool gate_first) {
    const void*& second = gate_first ? args.up.data : args.gate.data;
    if (second == nullptr) return;
    const int64_t element_size = args.dtype == DType::kFloat32 ? 4 : 2;
    second = static_cast<const char*>(second) + args.columns * element_size;
  }

  GluArgs args{};
  StridedRows grad_rows{};
  bool laid_out;
  int64_t rows;
  int64_t tasks;
};

// Elements that a task touches per operand.
int64_t task_size(const GluArgs& args) { return std::min(args.columns, kGluColumns); }

Tensor glu(const Tensor& gate, const OptionalTensor& up, std::string_view activation,
           bool gate_first) {
  const auto reference = [&] {
    return call_reference<Tensor>("mmkern::glu", gate, up, activation, gate_first);
  };
  if (!fits(gate, up)) return reference();
  Problem problem(gate, up, std::nullopt, activation);
  if (!problem.laid_out) return reference();
  if (!up.has_value()) problem.split(gate_first);
  std::vector<int64_t> sizes = gate.sizes().vec();
  if (!up.has_value()) sizes.back() /= 2;
  const Tensor out = new_tensor(sizes, gate.options());
  GluArgs& args = problem.args;
  args.out = out.mutable_data_ptr();
  args.stream = larger_than_cache(3 * out.nbytes()) && has_aligned_rows(out);
  const auto kernel = MMKERN_PICK(glu_forward);
  parallel_even(problem.tasks, 3 * task_size(args),
                [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return out;
}

Gradients glu_backward(const Tensor& grad, const Tensor& gate, const OptionalTensor& up,
                       std::string_view activation, bool gate_first) {
  const auto reference = [&] {
    return call_reference<Gradients>("mmkern::glu_backward", grad, gate, up, activation,
                                     gate_first);
  };
  if (!fits(gate, up) || grad.scalar_type() != gate.scalar_type()) return reference();
  const OptionalTensor dy = dense(grad);
  Problem problem(gate, up, dy, activation);
  if (!problem.laid_out) return reference();
  GluGradArgs args{};
  const Tensor first = new_tensor(gate.sizes(), gate.options());
  const Tensor second = up.has_value() ? new_tensor(gate.sizes(), gate.options()) : no_tensor(gate);
  args.grad_gate = first.mutable_data_ptr();
  args.grad_up = second.mutable_data_ptr();
  args.row_stride = problem.args.columns;
  if (!up.has_value()) {
    problem.split(gate_first);
    char* halves[] = {static_cast<char*>(first.mutable_data_ptr()), nullptr};
    halves[1] = halves[0] + problem.args.columns * gate.element_size();
    args.grad_gate = halves[gate_first ? 0 : 1];
    args.grad_up = halves[gate_first ? 1 : 0];
    args.row_stride = 2 * problem.args.columns;
  }
  args.forward = problem.args;
  args.grad = problem.grad_rows;
  args.forward.stream = larger_than_cache(5 * grad.nbytes()) && has_aligned_rows(first) &&
                        has_aligned_rows(second) &&
                        problem.args.columns * gate.element_size() % 64 == 0;
  const auto kernel = MMKERN_PICK(glu_backward);
  parallel_even(problem.tasks, 5 * task_size(problem.args),
                [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {first, second};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmkern, CPU, m) {
  m.impl("glu", &glu);
  m.impl("glu_backward", &glu_backward);
}

}  // namespace mmkern
