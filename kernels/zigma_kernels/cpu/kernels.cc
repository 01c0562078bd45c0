// The ops as XLA calls them.

#include <utility>

#include "conv.h"
#include "scan.h"

namespace ffi = xla::ffi;

template <ffi::DataType type>
struct Native;
template <>
struct Native<ffi::F32> {
  typedef float type;
};
template <>
struct Native<ffi::BF16> {
  typedef bfloat16 type;
};

template <ffi::DataType type>
using Rows = ffi::Buffer<type, 3>;
template <ffi::DataType type>
using RowsOut = ffi::Result<ffi::Buffer<type, 3>>;
template <ffi::DataType type>
using Past = ffi::Buffer<type, 4>;
using Tokens = ffi::Buffer<ffi::S32, 1>;
using Floats = ffi::Buffer<ffi::F32>;
using FloatsOut = ffi::Result<ffi::Buffer<ffi::F32>>;

template <typename T, typename B>
static const T* rows(B& buffer) {
  return reinterpret_cast<const T*>(buffer.typed_data());
}
template <typename T, typename B>
static T* rows_out(B& buffer) {
  return reinterpret_cast<T*>(buffer->typed_data());
}

template <ffi::DataType type>
static ScanArrays<typename Native<type>::type> arrays(Tokens& tokens, Rows<type>& u, Rows<type>& dt, Rows<type>& z,
                                                      Floats& B, Floats& C, Floats& A, Floats& D, Floats& dt_bias,
                                                      int64_t segments, bool gated) {
  typedef typename Native<type>::type T;
  auto sizes = u.dimensions();
  return {sizes[0], sizes[1], sizes[2], A.dimensions()[1], segments, tokens.typed_data(), rows<T>(u), rows<T>(dt),
          gated ? rows<T>(z) : nullptr, B.typed_data(), C.typed_data(), A.typed_data(), D.typed_data(),
          dt_bias.typed_data()};
}

template <ffi::DataType type>
static ffi::Error scan_forward_call(ffi::ThreadPool pool, bool gated, bool saving, Tokens tokens, Rows<type> u, Rows<type> dt,
                          Rows<type> z, Floats B, Floats C, Floats A, Floats D, Floats dt_bias, Floats state,
                          RowsOut<type> y, FloatsOut final, FloatsOut starts) {
  typedef typename Native<type>::type T;
  auto s = arrays<type>(tokens, u, dt, z, B, C, A, D, dt_bias, state.dimensions()[1], gated);
  scan_forward(pool, s, state.typed_data(), rows_out<T>(y), final->typed_data(),
               saving ? starts->typed_data() : nullptr);
  return ffi::Error::Success();
}

template <ffi::DataType type>
static ffi::Error scan_backward_call(ffi::ThreadPool pool, bool gated, Tokens tokens, Rows<type> u, Rows<type> dt,
                                     Rows<type> z, Floats B, Floats C, Floats A, Floats D, Floats dt_bias, Floats starts, Rows<type> dy,
                           Floats dfinal, RowsOut<type> du, RowsOut<type> ddt, RowsOut<type> dz, FloatsOut dB,
                           FloatsOut dC, FloatsOut dA, FloatsOut dD, FloatsOut ddt_bias, FloatsOut dstate,
                           FloatsOut dB_parts, FloatsOut dC_parts) {
  typedef typename Native<type>::type T;
  auto s = arrays<type>(tokens, u, dt, z, B, C, A, D, dt_bias, dfinal.dimensions()[1], gated);
  ScanGradients<T> r{starts.typed_data(), rows<T>(dy), dfinal.typed_data(), rows_out<T>(du), rows_out<T>(ddt),
                     rows_out<T>(dz), dB->typed_data(), dC->typed_data(), dA->typed_data(), dD->typed_data(),
                     ddt_bias->typed_data(), dstate->typed_data(), dB_parts->typed_data(), dC_parts->typed_data()};
  scan_backward(pool, s, r);
  return ffi::Error::Success();
}

template <ffi::DataType type>
static ConvArrays<typename Native<type>::type> arrays(Tokens& tokens, Rows<type>& x, Floats& weight, Floats& bias,
                                                      Past<type>& past, bool silu) {
  typedef typename Native<type>::type T;
  auto sizes = x.dimensions();
  return {sizes[0], sizes[1], sizes[2], weight.dimensions()[0], past.dimensions()[1], silu, tokens.typed_data(),
          rows<T>(x), weight.typed_data(), bias.typed_data(), rows<T>(past)};
}

template <ffi::DataType type>
static ffi::Error conv_forward_call(ffi::ThreadPool pool, bool silu, Tokens tokens, Rows<type> x, Floats weight,
                                    Floats bias, Past<type> past, RowsOut<type> y) {
  auto s = arrays<type>(tokens, x, weight, bias, past, silu);
  conv_forward(pool, s, rows_out<typename Native<type>::type>(y));
  return ffi::Error::Success();
}

template <ffi::DataType type>
static ffi::Error conv_backward_call(ffi::ThreadPool pool, bool silu, Tokens tokens, Rows<type> x, Floats weight,
                                     Floats bias, Past<type> past, Rows<type> dy, RowsOut<type> dx,
                                     FloatsOut dweight, FloatsOut dbias, ffi::Result<Past<type>> dpast) {
  typedef typename Native<type>::type T;
  auto s = arrays<type>(tokens, x, weight, bias, past, silu);
  conv_backward(pool, s, rows<T>(dy), rows_out<T>(dx), dweight->typed_data(), dbias->typed_data(),
                rows_out<T>(dpast));
  return ffi::Error::Success();
}

#define ZIGMA_KERNELS(name, type)                                                                            \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(selective_scan_forward_##name, (scan_forward_call<type>), ffi::Ffi::Bind()   \
    .Ctx<ffi::ThreadPool>()                                                                                  \
    .Attr<bool>("gated")                                                                                     \
    .Attr<bool>("saving")                                                                                    \
    .Arg<Tokens>().Arg<Rows<type>>().Arg<Rows<type>>().Arg<Rows<type>>()                                     \
    .Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()                                                 \
    .Arg<Floats>().Arg<Floats>()                                                                             \
    .Ret<Rows<type>>().Ret<Floats>().Ret<Floats>());                                                         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(selective_scan_backward_##name, (scan_backward_call<type>), ffi::Ffi::Bind() \
    .Ctx<ffi::ThreadPool>()                                                                                  \
    .Attr<bool>("gated")                                                                                     \
    .Arg<Tokens>().Arg<Rows<type>>().Arg<Rows<type>>().Arg<Rows<type>>()                                     \
    .Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()                                                 \
    .Arg<Floats>().Arg<Floats>().Arg<Rows<type>>().Arg<Floats>()                                             \
    .Ret<Rows<type>>().Ret<Rows<type>>().Ret<Rows<type>>().Ret<Floats>()                                     \
    .Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>()                                                 \
    .Ret<Floats>().Ret<Floats>().Ret<Floats>());                                                             \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(causal_conv_forward_##name, (conv_forward_call<type>), ffi::Ffi::Bind()      \
    .Ctx<ffi::ThreadPool>()                                                                                  \
    .Attr<bool>("silu")                                                                                      \
    .Arg<Tokens>().Arg<Rows<type>>().Arg<Floats>().Arg<Floats>()                                             \
    .Arg<Past<type>>()                                                                             \
    .Ret<Rows<type>>());                                                                                     \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(causal_conv_backward_##name, (conv_backward_call<type>), ffi::Ffi::Bind()    \
    .Ctx<ffi::ThreadPool>()                                                                                  \
    .Attr<bool>("silu")                                                                                      \
    .Arg<Tokens>().Arg<Rows<type>>().Arg<Floats>().Arg<Floats>()                                             \
    .Arg<Past<type>>().Arg<Rows<type>>()                                                           \
    .Ret<Rows<type>>().Ret<Floats>().Ret<Floats>().Ret<Past<type>>())

ZIGMA_KERNELS(float32, ffi::F32);
ZIGMA_KERNELS(bfloat16, ffi::BF16);
