// The selective scan, token by token along the visiting order; `selective_scan/cpu.py` has the contract.
//
// A task is one sample and BLOCK of its channels, over all tokens. It works through CHUNK tokens at a time: rows are
// read at the visited token's index into tiles that stay in the cache, then the recurrence runs over the tile for
// PAIR states at a time, whose values for all the block's channels are in registers. The forward pass leaves the
// state at each chunk's start; the backward pass goes through the chunks from the last, computes one chunk's states
// again, and runs the adjoint through it (`selective_scan/xla.py` has the equations). What is summed over channels
// (dB, dC) leaves a task as a partial sum; these are added in the blocks' order at the end, so that a result never
// depends on the number of threads.

#pragma once

#include <algorithm>
#include <memory>

#include "parallel.h"
#include "vectors.h"

constexpr int CHUNK = ZIGMA_CHUNK;
constexpr int BLOCK = ZIGMA_BLOCK;
constexpr int PAIR = 2;
constexpr int GROUP = W == 16 ? 4 : W == 8 ? 2 : 2;  // vectors of channels whose states are in registers
constexpr int VECTORS = BLOCK / W;
static_assert(VECTORS % GROUP == 0);
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

template <typename T>
struct ScanArrays {
  int64_t b, L, d, n, segments;
  const int32_t* tokens;             // (L,)
  const T *u, *dt, *z;               // (b, L, d); z may be null
  const float *B, *C;                // (b, L, n)
  const float *A, *D, *dt_bias;      // (d, n), (d,), (d,)
  int64_t chunks() const { return (L / segments + CHUNK - 1) / CHUNK; }  // of a segment
};

typedef V Row[VECTORS];  // of one token: the block's channels

struct Tiles {
  Row u[CHUNK], x[CHUNK], delta[CHUNK], du[CHUNK], z[CHUNK], y[CHUNK], dy[CHUNK], dx[CHUNK], ddelta[CHUNK];
  V h[CHUNK + 1][PAIR][GROUP], a[CHUNK][PAIR][GROUP];
};

struct Buffer {  // of vectors, 0 at first
  explicit Buffer(size_t count) : store_(new (std::align_val_t(64)) V[count]()) {}
  ~Buffer() { ::operator delete[](store_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  V* get() { return store_; }

 private:
  V* store_;
};

// What a task does beside its passes: which channels are its own, and where rows lie.
template <typename T>
class Task {
 public:
  Task(const ScanArrays<T>& arrays, int64_t index)
      : s(arrays), sample(index % arrays.b), first(index / arrays.b * BLOCK),
        states((arrays.n + PAIR - 1) / PAIR * PAIR),
        A(states * VECTORS), h(states * VECTORS), BC(2 * CHUNK * states / W + 2),
        tiles(new (std::align_val_t(64)) Tiles()) {
    float lanes[BLOCK];
    for (int64_t n = 0; n < s.n; ++n) {
      for (int j = 0; j < BLOCK; ++j) lanes[j] = first + j < s.d ? s.A[(first + j) * s.n + n] * LOG2_E : 0.f;
      for (int v = 0; v < VECTORS; ++v) A.get()[n * VECTORS + v] = load(lanes + v * W);
    }
    for (int v = 0; v < VECTORS; ++v) {
      D[v] = load(s.D + first + v * W * (count(v) > 0), count(v));
      dt_bias[v] = load(s.dt_bias + first + v * W * (count(v) > 0), count(v));
    }
    B = reinterpret_cast<float*>(BC.get());
    C = B + CHUNK * states;
  }
  ~Task() { ::operator delete(tiles, std::align_val_t(64)); }
  Task(const Task&) = delete;

  int count(int v) const { return int(std::clamp<int64_t>(s.d - first - v * W, 0, W)); }

  int64_t row(int i) const { return sample * s.L + s.tokens[start + i]; }

  // (b, segments, d, n), one segment of it, to or from vectors [n][VECTORS].
  void read_state(const float* from, int64_t segment, V* to) const {
    float lanes[BLOCK];
    for (int64_t n = 0; n < s.n; ++n) {
      for (int j = 0; j < BLOCK; ++j) lanes[j] = first + j < s.d ? from[state_at(segment, j) + n] : 0.f;
      for (int v = 0; v < VECTORS; ++v) to[n * VECTORS + v] = load(lanes + v * W);
    }
  }
  void write_state(float* to, int64_t segment, const V* from) const {
    float lanes[BLOCK];
    for (int64_t n = 0; n < s.n; ++n) {
      for (int v = 0; v < VECTORS; ++v) store(lanes + v * W, from[n * VECTORS + v]);
      for (int j = 0; j < BLOCK && first + j < s.d; ++j) to[state_at(segment, j) + n] = lanes[j];
    }
  }

  // The state at a chunk's start, (b, segments * chunks, n, d).
  void save(float* starts, int64_t chunk) {
    for (int64_t n = 0; n < s.n; ++n) {
      for (int v = 0; v < VECTORS && count(v); ++v) store(start_at(starts, chunk, n, v), h.get()[n * VECTORS + v], count(v));
    }
  }
  void restore(const float* starts, int64_t chunk) {
    for (int64_t n = 0; n < s.n; ++n) {
      for (int v = 0; v < VECTORS && count(v); ++v) h.get()[n * VECTORS + v] = load(start_at(starts, chunk, n, v), count(v));
    }
  }

  // Turns to a chunk's tokens: their rows, step sizes, inputs, B and C.
  void open(int64_t segment, int64_t chunk) {
    int64_t length = s.L / s.segments;
    start = segment * length + chunk * CHUNK;
    size = int(std::min<int64_t>(CHUNK, length - chunk * CHUNK));
    Tiles& t = *tiles;
    for (int i = 0; i < size; ++i) {
      int64_t at = row(i) * s.d + first;
      for (int v = 0; v < VECTORS; ++v) {
        int some = count(v);
        if (!some) continue;  // these stay 0
        t.u[i][v] = load(s.u + at + v * W, some);
        t.x[i][v] = load(s.dt + at + v * W, some) + dt_bias[v];
        if (s.z) t.z[i][v] = load(s.z + at + v * W, some);
        t.delta[i][v] = softplus(t.x[i][v]);
        t.du[i][v] = t.delta[i][v] * t.u[i][v];
      }
      for (int64_t n = 0; n < s.n; ++n) {
        B[i * states + n] = s.B[row(i) * s.n + n];
        C[i * states + n] = s.C[row(i) * s.n + n];
      }
    }
  }

  const ScanArrays<T>& s;
  const int64_t sample, first, states;  // states: n, and zeros up to a multiple of PAIR
  int64_t start = 0;
  int size = 0;
  Buffer A, h, BC;  // A times log2(e), h: [states][VECTORS]
  float *B, *C;     // of the chunk, [CHUNK][states]
  Row D, dt_bias;
  Tiles* tiles;

 private:
  int64_t state_at(int64_t segment, int j) const { return ((sample * s.segments + segment) * s.d + first + j) * s.n; }
  template <typename F>
  F* start_at(F* starts, int64_t chunk, int64_t n, int v) const {
    return starts + ((sample * s.segments * s.chunks() + chunk) * s.n + n) * s.d + first + v * W;
  }
};

// The recurrence over the chunk for states n … n + PAIR - 1 and the vectors v … v + GROUP - 1. Adds C . h to the
// tile's y if OUTPUT; keeps states and decays in the tile if KEEP.
template <bool OUTPUT, bool KEEP, typename T>
static inline void advance(Task<T>& task, int64_t n, int v) {
  Tiles& t = *task.tiles;
  V A[PAIR][GROUP], h[PAIR][GROUP];
  V* state = task.h.get() + n * VECTORS + v;
#pragma GCC unroll 8
  for (int p = 0; p < PAIR; ++p) {
#pragma GCC unroll 8
    for (int g = 0; g < GROUP; ++g) {
      A[p][g] = task.A.get()[(n + p) * VECTORS + v + g];
      h[p][g] = state[p * VECTORS + g];
      if (KEEP) t.h[0][p][g] = h[p][g];
    }
  }
  const float *B = task.B + n, *C = task.C + n;
  for (int i = 0; i < task.size; ++i, B += task.states, C += task.states) {
#pragma GCC unroll 8
    for (int g = 0; g < GROUP; ++g) {
      V delta = t.delta[i][v + g], du = t.du[i][v + g];
      V y = OUTPUT && n ? t.y[i][v + g] : V{};
#pragma GCC unroll 8
      for (int p = 0; p < PAIR; ++p) {
        V a = exp2(delta * A[p][g]);
        h[p][g] = a * h[p][g] + du * splat(B[p]);
        if (OUTPUT) y += h[p][g] * splat(C[p]);
        if (KEEP) t.a[i][p][g] = a;
        if (KEEP) t.h[i + 1][p][g] = h[p][g];
      }
      if (OUTPUT) t.y[i][v + g] = y;
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < PAIR; ++p) {
#pragma GCC unroll 8
    for (int g = 0; g < GROUP; ++g) state[p * VECTORS + g] = h[p][g];
  }
}

// y, and the states after the last token; if `starts` is given, those at the chunks' starts.
template <typename T>
void scan_forward(xla::ffi::ThreadPool& pool, const ScanArrays<T>& s, const float* state, T* y, float* final,
                  float* starts) {
  int64_t blocks = (s.d + BLOCK - 1) / BLOCK;
  parallel(pool, s.b * blocks, [&](int64_t index) {
    Task<T> task(s, index);
    Tiles& t = *task.tiles;
    for (int64_t segment = 0; segment < s.segments; ++segment) {
      task.read_state(state, segment, task.h.get());
      for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
        if (starts) task.save(starts, segment * s.chunks() + chunk);
        task.open(segment, chunk);
        for (int v = 0; v < VECTORS && task.count(v); v += GROUP) {
          for (int64_t n = 0; n < task.states; n += PAIR) advance<true, false>(task, n, v);
        }
        for (int i = 0; i < task.size; ++i) {
          T* to = y + task.row(i) * s.d + task.first;
          for (int v = 0; v < VECTORS && task.count(v); ++v) {
            V out = t.y[i][v] + task.D[v] * t.u[i][v];
            if (s.z) out = out * t.z[i][v] * sigmoid(t.z[i][v]);
            store(to + v * W, out, task.count(v));
          }
        }
      }
      task.write_state(final, segment, task.h.get());
    }
  });
}

template <typename T>
struct ScanGradients {
  const float* starts;
  const T* dy;                     // (b, L, d)
  const float* dfinal;             // (b, segments, d, n)
  T *du, *ddt, *dz;                // (b, L, d)
  float *dB, *dC;                  // (b, L, n)
  float *dA, *dD, *ddt_bias;       // (b, d, n), (b, d), (b, d)
  float* dstate;                   // (b, segments, d, n)
  float *dB_parts, *dC_parts;      // (blocks, b, L, n)
};

// The adjoint over the chunk, whose states and decays the tile holds, backwards; g: the gradient of the state after
// the chunk, in the end of that before it. Leaves sums over the vectors' lanes and over the vectors of dB and dC's
// terms in `sums`, [CHUNK][2][states], where those of the vectors before are if v > 0.
template <typename T>
static inline void adjoint(Task<T>& task, int64_t n, int v, V* gradient, V* dA, V* sums) {
  Tiles& t = *task.tiles;
  V g_[PAIR][GROUP], dA_[PAIR][GROUP];
  const V* A = task.A.get() + n * VECTORS + v;
#pragma GCC unroll 8
  for (int p = 0; p < PAIR; ++p) {
#pragma GCC unroll 8
    for (int g = 0; g < GROUP; ++g) {
      g_[p][g] = gradient[(n + p) * VECTORS + v + g];
      dA_[p][g] = V{};
    }
  }
  for (int i = task.size - 1; i >= 0; --i) {
    V sum_B[PAIR] = {}, sum_C[PAIR] = {};
#pragma GCC unroll 8
    for (int g = 0; g < GROUP; ++g) {
      V delta = t.delta[i][v + g], du = t.du[i][v + g], dy = t.dy[i][v + g];
      V dx = n ? t.dx[i][v + g] : V{}, ddelta = n ? t.ddelta[i][v + g] : V{};
#pragma GCC unroll 8
      for (int p = 0; p < PAIR; ++p) {
        V dh = g_[p][g] + dy * splat(task.C[i * task.states + n + p]);
        sum_C[p] += t.h[i + 1][p][g] * dy;
        sum_B[p] += dh * du;
        dx += dh * splat(task.B[i * task.states + n + p]);
        g_[p][g] = t.a[i][p][g] * dh;
        V da = g_[p][g] * t.h[i][p][g];
        ddelta += da * A[p * VECTORS + g];
        dA_[p][g] += da * delta;
      }
      t.dx[i][v + g] = dx;
      t.ddelta[i][v + g] = ddelta;
    }
    V* to = sums + i * 2 * task.states + n;
#pragma GCC unroll 8
    for (int p = 0; p < PAIR; ++p) {
      to[p] = v ? to[p] + sum_B[p] : sum_B[p];
      to[task.states + p] = v ? to[task.states + p] + sum_C[p] : sum_C[p];
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < PAIR; ++p) {
#pragma GCC unroll 8
    for (int g = 0; g < GROUP; ++g) {
      gradient[(n + p) * VECTORS + v + g] = g_[p][g];
      dA[(n + p) * VECTORS + v + g] += dA_[p][g];
    }
  }
}

template <typename T>
void scan_backward(xla::ffi::ThreadPool& pool, const ScanArrays<T>& s, const ScanGradients<T>& r) {
  int64_t blocks = (s.d + BLOCK - 1) / BLOCK, rows = s.b * s.L;
  parallel(pool, s.b * blocks, [&](int64_t index) {
    Task<T> task(s, index);
    Tiles& t = *task.tiles;
    Buffer gradient(task.states * VECTORS), dA(task.states * VECTORS), sums(CHUNK * 2 * task.states);
    Row dD = {}, ddt_bias = {};
    int64_t block = index / s.b;
    for (int64_t segment = 0; segment < s.segments; ++segment) {
      task.read_state(r.dfinal, segment, gradient.get());
      for (int64_t chunk = s.chunks() - 1; chunk >= 0; --chunk) {
        task.restore(r.starts, segment * s.chunks() + chunk);
        task.open(segment, chunk);
        for (int i = 0; i < task.size; ++i) {
          const T* from = r.dy + task.row(i) * s.d + task.first;
          for (int v = 0; v < VECTORS && task.count(v); ++v) {
            V dy = load(from + v * W, task.count(v));
            t.dy[i][v] = s.z ? dy * t.z[i][v] * sigmoid(t.z[i][v]) : dy;
          }
        }
        for (int v = 0; v < VECTORS && task.count(v); v += GROUP) {
          for (int64_t n = 0; n < task.states; n += PAIR) {
            s.z ? advance<true, true>(task, n, v) : advance<false, true>(task, n, v);
            adjoint(task, n, v, gradient.get(), dA.get(), sums.get());
          }
        }
        for (int i = 0; i < task.size; ++i) {
          int64_t at = task.row(i) * s.d + task.first;
          for (int v = 0; v < VECTORS && task.count(v); ++v) {
            int some = task.count(v);
            V u = t.u[i][v], dx = t.dx[i][v], dy = t.dy[i][v];
            V ddt = (t.ddelta[i][v] * splat(LN_2) + u * dx) * sigmoid(t.x[i][v]);
            dD[v] += dy * u;
            ddt_bias[v] += ddt;
            if (s.z) {  // first of all: du may lie where dy does
              V z = t.z[i][v], gate = sigmoid(z), y = t.y[i][v] + task.D[v] * u;
              V out = load(r.dy + at + v * W, some);
              store(r.dz + at + v * W, out * y * gate * (splat(1.f) + z * (splat(1.f) - gate)), some);
            }
            store(r.du + at + v * W, t.delta[i][v] * dx + task.D[v] * dy, some);
            store(r.ddt + at + v * W, ddt, some);
          }
          const V* of_token = sums.get() + i * 2 * task.states;
          int64_t to = (block * rows + task.row(i)) * s.n;
          for (int64_t n = 0; n < s.n; ++n) {
            r.dB_parts[to + n] = sum(of_token[n]);
            r.dC_parts[to + n] = sum(of_token[task.states + n]);
          }
        }
      }
      task.write_state(r.dstate, segment, gradient.get());
    }
    for (int v = 0; v < VECTORS && task.count(v); ++v) {
      store(r.dD + task.sample * s.d + task.first + v * W, dD[v], task.count(v));
      store(r.ddt_bias + task.sample * s.d + task.first + v * W, ddt_bias[v], task.count(v));
    }
    float lanes[BLOCK];
    for (int64_t n = 0; n < s.n; ++n) {
      for (int v = 0; v < VECTORS; ++v) store(lanes + v * W, dA.get()[n * VECTORS + v]);
      for (int j = 0; j < BLOCK && task.first + j < s.d; ++j) {
        r.dA[(task.sample * s.d + task.first + j) * s.n + n] = lanes[j];
      }
    }
  });
  constexpr int64_t SOME = 4096;
  int64_t all = rows * s.n;
  parallel(pool, (all + SOME - 1) / SOME, [&](int64_t index) {
    int64_t begin = index * SOME, end = std::min(all, begin + SOME);
    for (auto [parts, total] : {std::pair(r.dB_parts, r.dB), std::pair(r.dC_parts, r.dC)}) {
      std::copy(parts + begin, parts + end, total + begin);
      for (int64_t block = 1; block < blocks; ++block) {
        for (int64_t i = begin; i < end; ++i) total[i] += parts[block * all + i];
      }
    }
  });
}
