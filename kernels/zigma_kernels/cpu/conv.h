// The causal convolution along the visiting order; `causal_conv/cpu.py` has the contract.
//
// A task is one sample and BLOCK of its channels, CHUNK tokens at a time, as in the scan. The backward pass computes
// what went into the activation again.

#pragma once

#include <algorithm>

#include "parallel.h"
#include "scan.h"
#include "vectors.h"

constexpr int MOST_TAPS = 4;

template <typename T>
struct ConvArrays {
  int64_t b, L, d, taps, segments;
  bool silu;
  const int32_t* tokens;       // (L,)
  const T* x;                  // (b, L, d)
  const float *weight, *bias;  // (taps, d), (d,)
  const T* past;               // (b, segments, taps - 1, d)
  int64_t length() const { return L / segments; }
  int64_t chunks() const { return (length() + CHUNK - 1) / CHUNK; }
};

struct ConvTiles {  // rows from taps - 1 tokens before the chunk on; of the gradient, as many tokens after it
  Row x[CHUNK + MOST_TAPS - 1], gradient[CHUNK + MOST_TAPS - 1];
};

template <typename T>
class ConvTask {
 public:
  ConvTask(const ConvArrays<T>& arrays, int64_t index)
      : s(arrays), sample(index % arrays.b), first(index / arrays.b * BLOCK),
        tiles(new (std::align_val_t(64)) ConvTiles()) {
    for (int v = 0; v < VECTORS && count(v); ++v) {
      for (int64_t k = 0; k < s.taps; ++k) weight[k][v] = load(s.weight + k * s.d + first + v * W, count(v));
      bias[v] = load(s.bias + first + v * W, count(v));
    }
  }
  ~ConvTask() { ::operator delete(tiles, std::align_val_t(64)); }
  ConvTask(const ConvTask&) = delete;

  int count(int v) const { return int(std::clamp<int64_t>(s.d - first - v * W, 0, W)); }

  // Where the chunk's i-th token lies in an array of rows.
  int64_t at(int i) const { return (sample * s.L + s.tokens[segment * s.length() + start + i]) * s.d + first; }
  // Where what precedes the segment lies in an array shaped as `past`.
  int64_t past_at(int64_t k) const { return ((sample * s.segments + segment) * (s.taps - 1) + k) * s.d + first; }

  void open(int64_t of_segment, int64_t chunk) {
    segment = of_segment, start = chunk * CHUNK;
    size = int(std::min<int64_t>(CHUNK, s.length() - start));
    int before = int(s.taps) - 1;
    for (int i = 0; i < before + size; ++i) {
      int64_t token = start + i - before;
      const T* from = token < 0 ? s.past + past_at(token + before) : s.x + at(i - before);
      for (int v = 0; v < VECTORS && count(v); ++v) tiles->x[i][v] = load(from + v * W, count(v));
    }
  }

  // What goes into the activation.
  V linear(int i, int v) const {
    V y = bias[v];
    for (int k = 0; k < s.taps; ++k) y += weight[k][v] * tiles->x[i + k][v];
    return y;
  }

  const ConvArrays<T>& s;
  const int64_t sample, first;
  int64_t segment = 0, start = 0;
  int size = 0;
  Row weight[MOST_TAPS] = {}, bias = {};
  ConvTiles* tiles;
};

template <typename T>
void conv_forward(xla::ffi::ThreadPool& pool, const ConvArrays<T>& s, T* y) {
  int64_t blocks = (s.d + BLOCK - 1) / BLOCK;
  parallel(pool, s.b * blocks, [&](int64_t index) {
    ConvTask<T> task(s, index);
    for (int64_t segment = 0; segment < s.segments; ++segment) {
      for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
        task.open(segment, chunk);
        for (int i = 0; i < task.size; ++i) {
          T* to = y + task.at(i);
          for (int v = 0; v < VECTORS && task.count(v); ++v) {
            V out = task.linear(i, v);
            if (s.silu) out *= sigmoid(out);
            store(to + v * W, out, task.count(v));
          }
        }
      }
    }
  });
}

template <typename T>
void conv_backward(xla::ffi::ThreadPool& pool, const ConvArrays<T>& s, const T* dy, T* dx, float* dweight,
                   float* dbias, T* dpast) {
  int64_t blocks = (s.d + BLOCK - 1) / BLOCK, before = s.taps - 1;
  parallel(pool, s.b * blocks, [&](int64_t index) {
    ConvTask<T> task(s, index);
    Row* g = task.tiles->gradient;
    Row of_weight[MOST_TAPS] = {}, of_bias = {};
    auto of_input = [&](int64_t i, int v) {  // the gradient of the chunk's i-th token, or of one before the segment
      V sum = {};
      for (int64_t k = std::max<int64_t>(0, -i); k < s.taps; ++k) sum += task.weight[before - k][v] * g[i + k][v];
      return sum;
    };
    for (int64_t segment = 0; segment < s.segments; ++segment) {
      for (int64_t chunk = s.chunks() - 1; chunk >= 0; --chunk) {
        task.open(segment, chunk);
        for (int64_t k = 0; k < before; ++k) {  // tokens after the chunk: the first of the chunk that was done before
          for (int v = 0; v < VECTORS; ++v) g[task.size + k][v] = chunk == s.chunks() - 1 ? V{} : g[k][v];
        }
        for (int v = 0; v < VECTORS && task.count(v); ++v) {
          V sums[MOST_TAPS] = {}, sum = {};
          for (int i = 0; i < task.size; ++i) {
            V d = load(dy + task.at(i) + v * W, task.count(v));
            if (s.silu) {
              V y = task.linear(i, v), gate = sigmoid(y);
              d = d * gate * (splat(1.f) + y * (splat(1.f) - gate));
            }
            g[i][v] = d;
            sum += d;
            for (int k = 0; k < s.taps; ++k) sums[k] += d * task.tiles->x[i + k][v];
          }
          of_bias[v] += sum;
          for (int k = 0; k < s.taps; ++k) of_weight[k][v] += sums[k];
        }
        for (int i = 0; i < task.size; ++i) {
          for (int v = 0; v < VECTORS && task.count(v); ++v) store(dx + task.at(i) + v * W, of_input(i, v), task.count(v));
        }
      }
      for (int64_t k = 0; k < before; ++k) {
        for (int v = 0; v < VECTORS && task.count(v); ++v) {
          store(dpast + task.past_at(k) + v * W, of_input(k - before, v), task.count(v));
        }
      }
    }
    for (int v = 0; v < VECTORS && task.count(v); ++v) {
      int64_t to = task.first + v * W;
      store(dbias + task.sample * s.d + to, of_bias[v], task.count(v));
      for (int64_t k = 0; k < s.taps; ++k) {
        store(dweight + (task.sample * s.taps + k) * s.d + to, of_weight[k][v], task.count(v));
      }
    }
  });
}
