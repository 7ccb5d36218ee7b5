#include "patch_embed.h"

#include "gemm.h"

namespace mmkern::MMKERN_ISA {
namespace {

// Walks elements [c, c + n) of patch r in runs along its last dimension, calling
// run(pixel offset, position in [0, n), length).
template <class Run>
MMKERN_INLINE void patch_runs(const PatchGrid& p, int64_t r, int64_t c, int64_t n, const Run& run) {
  int64_t offset = 0;
  int64_t patch = r;
  for (int d = 2; d >= 0; --d) {
    offset += patch % p.grid[d] * p.kernel[d] * p.stride[d];
    patch /= p.grid[d];
  }
  offset += patch * p.batch_stride;

  int64_t at[3];
  int64_t position = c;
  for (int d = 2; d >= 0; --d) {
    at[d] = position % p.kernel[d];
    position /= p.kernel[d];
  }
  int64_t channel = position;
  for (int64_t done = 0; done < n;) {
    const int64_t length = least<int64_t>(p.kernel[2] - at[2], n - done);
    run(offset + channel * p.channel_stride + at[0] * p.stride[0] + at[1] * p.stride[1] +
            at[2] * p.stride[2],
        done, length);
    done += length;
    at[2] = 0;
    if (++at[1] < p.kernel[1]) continue;
    at[1] = 0;
    if (++at[0] < p.kernel[0]) continue;
    at[0] = 0;
    ++channel;
  }
}

// Copies n elements in pieces of Piece, the last of which may overlap the one before.
template <int Piece, class T>
MMKERN_INLINE void copy_pieces(T* to, const T* from, int64_t n) {
  constexpr int64_t kBytes = Piece * sizeof(T);
  for (int64_t i = 0; i + Piece < n; i += Piece) __builtin_memcpy(to + i, from + i, kBytes);
  __builtin_memcpy(to + n - Piece, from + n - Piece, kBytes);
}

// A run of a patch is a few to a few dozen elements, too short to call memcpy for.
template <class T>
MMKERN_INLINE void copy_run(T* to, const T* from, int64_t n) {
  if (n >= 16) return copy_pieces<16>(to, from, n);
  if (n >= 8) return copy_pieces<8>(to, from, n);
  if (n >= 4) return copy_pieces<4>(to, from, n);
  if (n >= 2) return copy_pieces<2>(to, from, n);
  *to = *from;
}

template <class T>
struct PatchRows {
  static constexpr bool kInPlace = false;
  PatchGrid pixels;
  const T* row(int64_t r, int64_t c, int64_t n, T* room) const {
    const T* data = static_cast<const T*>(pixels.data);
    const int64_t step = pixels.stride[2];
    patch_runs(pixels, r, c, n, [&](int64_t offset, int64_t to, int64_t length) MMKERN_BODY {
      const T* from = data + offset;
      if (step == 1) return copy_run(room + to, from, length);
      for (int64_t i = 0; i < length; ++i) room[to + i] = from[i * step];
    });
    return room;
  }
  void prefetch(int64_t, int64_t, int64_t) const {}
};

template <class T>
struct StoreTokens {
  const PatchEmbedArgs& args;

  void prefetch(int64_t i, int64_t rows, int64_t j, int64_t n) const {
    const int64_t cols = args.plan.cols;
    prefetch_to_write(static_cast<const T*>(args.out) + i * cols + j, rows, cols, n);
  }

  void operator()(int64_t i, int64_t rows, int64_t j, int64_t n, const float* sums) const {
    if (args.pos_embed == nullptr) return finish<NoPosition>(i, rows, j, n, sums);
    if (args.pos_is_float32) return finish<float>(i, rows, j, n, sums);
    finish<T>(i, rows, j, n, sums);
  }

 private:
  struct NoPosition {};
  template <class Width>
  static vf position(const NoPosition*, int64_t, Width) {
    return zero();
  }
  template <class P, class Width>
  static vf position(const P* row, int64_t c, Width width) {
    return load(row + c, width);
  }

  template <class P>
  MMKERN_BODY void finish(int64_t i, int64_t rows, int64_t j, int64_t n, const float* sums) const {
    const T* const bias = static_cast<const T*>(args.bias);
    int64_t sample = i / args.tokens, token = i % args.tokens;
    T* to = static_cast<T*>(args.out) + i * args.plan.cols + j;
    for (int64_t r = 0; r < rows; ++r, sums += kTileCols, to += args.plan.cols) {
      const P* const pos = static_cast<const P*>(args.pos_embed) + sample * args.pos_batch_stride +
                           token * args.pos_token_stride + j;
      sweep(n, [&](int64_t c, auto width) MMKERN_BODY {
        vf value = load(sums + c, width);
        if (bias != nullptr) value += load(bias + j + c, width);
        store(to + c, value + position(pos, c, width), width);
      });
      if (++token == args.tokens) token = 0, ++sample;
    }
  }
};

template <class T>
struct StorePatches {
  PatchGrid pixels;
  void prefetch(int64_t, int64_t, int64_t, int64_t) const {}
  void operator()(int64_t i, int64_t rows, int64_t j, int64_t n, const float* sums) const {
    T* const data = static_cast<T*>(pixels.data);
    for (int64_t r = 0; r < rows; ++r, sums += kTileCols) {
      patch_runs(pixels, i + r, j, n,
                 [&](int64_t offset, int64_t from, int64_t length) MMKERN_BODY {
                   sweep(length, [&](int64_t c, auto width) MMKERN_BODY {
                     store(data + offset + c, load(sums + from + c, width), width);
                   });
                 });
    }
  }
};

// body(source of patches)
template <class T, class Body>
MMKERN_INLINE void with_patches(const PatchEmbedArgs& args, const Body& body) {
  if (args.flattened) return body(MatrixRows<T>{args.patches});
  body(PatchRows<T>{args.pixels});
}

}  // namespace

void patch_embed_forward(const PatchEmbedArgs& args, const GemmTask& task, float* scratch) {
  with_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const ByRow<T, MatrixRows<T>> weight{{args.weight}};
    with_patches<T>(args, [&](auto source) {
      const ByRow<T, decltype(source)> patches{source};
      gemm_task<T>(args.plan, task, patches, weight, StoreTokens<T>{args}, scratch);
    });
  });
}

void patch_embed_grad_input(const PatchEmbedArgs& args, const GemmTask& task, float* scratch) {
  with_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const ByRow<T, MatrixRows<T>> grad{{args.grad}};
    const ByDepth<T, MatrixRows<T>> weight{{args.weight}};
    if (args.flattened) {
      const StoreRows<T> store{static_cast<T*>(args.out), args.plan.cols};
      gemm_task<T>(args.plan, task, grad, weight, store, scratch);
    } else {
      gemm_task<T>(args.plan, task, grad, weight, StorePatches<T>{args.pixels}, scratch);
    }
  });
}

void patch_embed_grad_weight(const PatchEmbedArgs& args, const GemmTask& task, float* scratch) {
  with_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const ByDepth<T, MatrixRows<T>> grad{{args.grad}};
    const StoreRows<T> store{static_cast<T*>(args.out), args.plan.cols};
    with_patches<T>(args, [&](auto source) {
      const ByDepth<T, decltype(source)> patches{source};
      gemm_task<T>(args.plan, task, grad, patches, store, scratch);
    });
  });
}

}  // namespace mmkern::MMKERN_ISA
