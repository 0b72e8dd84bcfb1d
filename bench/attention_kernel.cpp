// Host attention compared with its bound on this machine: a plain read of the same bytes for decode, and peak FMA
// throughput for prefill, both measured in the same rounds. One thread, except in the row of two.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "huge_memory.hpp"
#include "report.hpp"
#include "terrace/attention/attend.hpp"
#include "terrace/core/simd.hpp"

namespace {

using namespace terrace;
using bench::seconds;

using bench::huge_memory;
using bench::memory;

memory random_fp16(std::size_t bytes) {
  memory out = huge_memory(bytes);
  std::uint32_t seed = 1;
  for (std::size_t i = 0; i < bytes; i += 2) {
    seed = seed * 1664525u + 1013904223u;
    const fp16 value = to_fp16(static_cast<float>(static_cast<std::int32_t>(seed) >> 8) * 0x1p-22f);
    out[i] = static_cast<std::byte>(value.bits & 255);
    out[i + 1] = static_cast<std::byte>(value.bits >> 8);
  }
  return out;
}

volatile std::uint64_t sink;

// Four streams of vectors, the widest loads there are.
#if TERRACE_X86
TERRACE_TARGET_AVX512 void read_avx512(const std::byte* data, std::size_t bytes) {
  __m512i sum[4] = {};
  for (std::size_t i = 0; i + 256 <= bytes; i += 256)
    for (std::size_t k = 0; k < 4; ++k)
      sum[k] = _mm512_xor_si512(sum[k], _mm512_loadu_si512(data + i + 64 * k));
  std::uint64_t lanes[8];
  _mm512_storeu_si512(lanes,
                      _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3])));
  for (const std::uint64_t lane : lanes) sink = sink + lane;
}
#endif
void plain_read(const std::byte* data, std::size_t bytes) {
#if TERRACE_X86
  if (probe_isa() == isa::avx512) return read_avx512(data, bytes);
#endif
  std::uint64_t sum[8] = {};
  for (std::size_t i = 0; i + 64 <= bytes; i += 64) {
    std::uint64_t line[8];
    std::memcpy(line, data + i, sizeof line);
    for (int k = 0; k < 8; ++k) sum[k] += line[k];
  }
  for (const std::uint64_t s : sum) sink = sink + s;
}

constexpr int fma_rounds = 4'000'000;
volatile float fma_factor = 0.999f;
#if TERRACE_X86
TERRACE_TARGET_AVX512 void fma_avx512() {
  namespace v = simd::avx512;
  v::f32x16 a[12];
  for (auto& x : a) x = v::splat(1.0f);
  const v::f32x16 b = v::splat(fma_factor), c = v::splat(1 - fma_factor);
  for (int i = 0; i < fma_rounds; ++i) {
#if defined(__clang__)
#pragma clang loop unroll(full)
#else
#pragma GCC unroll 12
#endif
    for (auto& x : a) x = v::fma(x, b, c);
  }
  for (auto& x : a) {
    sink = sink + static_cast<std::uint64_t>(v::sum(x));
  }
}
TERRACE_TARGET_AVX2 void fma_avx2() {
  namespace v = simd::avx2;
  v::f32x16 a[6];
  for (auto& x : a) x = v::splat(1.0f);
  const v::f32x16 b = v::splat(fma_factor), c = v::splat(1 - fma_factor);
  for (int i = 0; i < 2 * fma_rounds; ++i) {
#if defined(__clang__)
#pragma clang loop unroll(full)
#else
#pragma GCC unroll 6
#endif
    for (auto& x : a) x = v::fma(x, b, c);
  }
  for (auto& x : a) {
    sink = sink + static_cast<std::uint64_t>(v::sum(x));
  }
}
#endif

// GFLOP/s of FMA alone with the instruction set in use; 0 if it is not known.
double fma_peak() {
#if TERRACE_X86
  const double flops = fma_rounds * 12.0 * 32;
  if (best_isa() == isa::avx512) return flops / seconds(fma_avx512) / 1e9;
  if (best_isa() == isa::avx2) return flops / seconds(fma_avx2) / 1e9;
#endif
  return 0;
}

struct job {
  const char* name;
  std::uint32_t group, dim, tokens, queries;
  std::uint32_t kv_heads = 8;
  std::uint32_t latent_v_dim = 0;  // not 0: MLA
  element type = element::fp16;
};

// A context of blocks at `data`, or of the same blocks encoded. The bits of their fp16 numbers are valid bf16 numbers
// as well.
class attention {
 public:
  attention(const job& j, const std::byte* data, std::size_t bytes,
            attention_arithmetic arithmetic = attention_arithmetic::floating, isa set = best_isa())
      : data_(data), set_(set) {
    group_.tokens = j.tokens;
    group_.k = {.heads = j.kv_heads, .dim = j.dim, .type = j.type};
    if (j.latent_v_dim == 0) group_.v = group_.k;
    group_.latent_v_dim = j.latent_v_dim;
    block_ = group_.block_bytes();
    blocks_ = j.queries == 1 && j.latent_v_dim == 0 ? bytes / block_ : 4;
    const attention_shape shape{.q_heads = j.kv_heads * j.group,
                                .kv_heads = j.kv_heads,
                                .dim = j.dim,
                                .scale = 0,
                                .keep = {},
                                .arithmetic = arithmetic};
    std::vector<float> q(std::size_t{j.queries} * shape.q_heads * j.dim);
    for (std::size_t i = 0; i < q.size(); ++i)
      q[i] = to_float(
          to_bf16(static_cast<float>(i * 2654435761u % 2001) * 1e-3f - 1.0f));  // as a model's may be
    if (!tile_.load(shape, std::span<const float>(q), tokens())) std::exit(1);
  }

  template <codec C>
  void encode_as() {
    const std::size_t bytes = C::max_encoded_size(group_);
    encoded_ = huge_memory(blocks_ * bytes);
    for (std::size_t b = 0; b < blocks_; ++b)
      if (!C::encode(group_, {data_ + b * block_, block_}, {encoded_.get() + b * bytes, bytes})) std::exit(1);
    data_ = encoded_.get();
    block_ = bytes;
    encoding_ = static_cast<block_encoding>(C::format_id);
  }

  std::size_t tokens() const { return blocks_ * group_.tokens; }
  std::size_t bytes() const { return blocks_ * block_; }
  // Of the first `heads` KV heads.
  double flops(std::uint32_t heads) const {
    return 2.0 * (group_.k.dim + group_.v_dim()) * static_cast<double>(tokens()) * heads *
           tile_.shape().group() * tile_.size();
  }
  double run(std::uint32_t heads) {
    if (!state_.reset(tile_.rows(), group_.v_dim())) std::exit(1);
    return seconds([&] { attend_heads(0, heads); });
  }
  // Each thread takes half of the heads.
  double run_in_two_threads(std::uint32_t heads) {
    if (!state_.reset(tile_.rows(), group_.v_dim())) std::exit(1);
    return seconds([&] {
      std::thread other([&] { attend_heads(heads / 2, heads); });
      attend_heads(0, heads / 2);
      other.join();
    });
  }
  block_view view(std::size_t b) const {
    return {&group_, data_ + b * block_, 0, b * group_.tokens, group_.tokens, encoding_};
  }
  double read() const {
    return seconds([&] { plain_read(data_, bytes()); });
  }

 private:
  // In the order of a stream: one head goes through all blocks.
  void attend_heads(std::uint32_t first, std::uint32_t end) {
    for (std::uint32_t h = first; h < end; ++h)
      for (std::size_t b = 0; b < blocks_; ++b) {
        const block_view next = view(b + 1);
        attend(tile_, view(b), state_, h, 0, tile_.size(), set_, b + 1 < blocks_ ? &next : nullptr);
      }
  }

  layer_group group_;
  query_tile tile_;
  partial_state state_;
  const std::byte* data_;
  memory encoded_;
  std::size_t block_ = 0, blocks_ = 0;
  block_encoding encoding_ = block_encoding::raw;
  isa set_;
};

// Bound by memory: compared with a read of the same bytes.
void decode(bench::report& out, const job& j, const std::byte* data, std::size_t bytes,
            std::optional<double> goal = {}, isa set = best_isa(),
            attention_arithmetic arithmetic = attention_arithmetic::floating) {
  attention raw(j, data, bytes, arithmetic, set);
  const double gigabytes = static_cast<double>(raw.bytes()) / 1e9;
  out.compare(
      {j.name, "GB/s", "plain read", bench::better::larger, goal},
      [&] { return gigabytes / raw.run(j.kv_heads); }, [&] { return gigabytes / raw.read(); });
}

// Whether two threads that need nothing but a core run at the same time.
bool two_cores_are_free() {
  const auto spin = [] {
    std::uint64_t x = 3;
    for (int i = 0; i < 20'000'000; ++i) x = x * 6364136223846793005u + 1;
    sink = x;
  };
  const double one = seconds(spin);
  const double two = seconds([&] {
    std::thread other(spin);
    spin();
    other.join();
  });
  return two < 1.3 * one;
}

// Two threads, each with half of the heads, compared with one.
void two_threads(bench::report& out, const job& j, const std::byte* data, std::size_t bytes) {
  if (!out.wanted(j.name)) return;
  if (!two_cores_are_free())
    return out.note(std::string("skipped: ") + j.name + ": fewer than two cores are free");
  attention raw(j, data, bytes);
  const double gigabytes = static_cast<double>(raw.bytes()) / 1e9;
  out.compare(
      {j.name, "GB/s", "one thread", bench::better::larger, 1.8},
      [&] { return gigabytes / raw.run_in_two_threads(j.kv_heads); },
      [&] { return gigabytes / raw.run(j.kv_heads); });
}

// Bound by arithmetic: compared with the peak of FMA.
void many_rows(bench::report& out, const job& j, const std::byte* data, std::size_t bytes,
               attention_arithmetic arithmetic = attention_arithmetic::floating) {
  attention raw(j, data, bytes, arithmetic);
  out.compare(
      {j.name, "GFLOP/s", "FMA peak"}, [&] { return raw.flops(1) / raw.run(1) / 1e9; }, fma_peak);
}

// Encoded blocks read in place, compared with the same tokens as fp16. That is no limit: fewer bytes may well be
// faster.
template <codec C>
void in_place(bench::report& out, const job& j, const std::byte* data, std::size_t bytes,
              attention_arithmetic arithmetic = attention_arithmetic::floating,
              std::optional<double> goal = {}, isa set = best_isa()) {
  const bool integers = arithmetic == attention_arithmetic::integer;
  const std::string name =
      std::string(j.name) + ", " + std::string(C::name) + (integers ? " in integers" : "");
  if (!out.wanted(name)) return;
  attention raw(j, data, bytes, attention_arithmetic::floating, set);
  attention encoded(j, data, bytes, arithmetic, set);
  encoded.encode_as<C>();
  const double tokens = static_cast<double>(raw.tokens()) / 1e9;
  out.compare(
      {name, "ns/token", "fp16 blocks", bench::better::smaller, goal},
      [&] { return encoded.run(j.kv_heads) / tokens / j.kv_heads; },
      [&] { return raw.run(j.kv_heads) / tokens / j.kv_heads; });
}
template <codec... C>
void each_in_place(bench::report& out, const job& j, const std::byte* data, std::size_t bytes) {
  (in_place<C>(out, j, data, bytes), ...);
  in_place<q8_0>(out, j, data, bytes, attention_arithmetic::integer, 1.6);
  in_place<q4_0>(out, j, data, bytes, attention_arithmetic::integer, 2.2);
}

// What processors without AVX-512, or without AVX2, do.
void other_sets(bench::report& out, const std::byte* data, std::size_t bytes) {
  for (const isa set : {isa::avx2, isa::portable}) {
    if (set >= best_isa()) continue;
    const std::string fp16_name = "decode GQA 4, fp16, " + std::string(name(set));
    const std::string encoded_name = "decode GQA 4, " + std::string(name(set));
    decode(out, {fp16_name.c_str(), 4, 128, 256, 1}, data, bytes, {}, set);
    in_place<q8_0>(out, {encoded_name.c_str(), 4, 128, 256, 1}, data, bytes, attention_arithmetic::integer,
                   {}, set);
    in_place<q4_0>(out, {encoded_name.c_str(), 4, 128, 256, 1}, data, bytes, attention_arithmetic::integer,
                   {}, set);
  }
}

// In products of bf16, where the processor has them.
void in_bf16(bench::report& out, const std::byte* data, std::size_t bytes) {
  if (best_isa() != isa::avx512 || !has_bf16_products())
    return out.note("skipped: this processor has no products of bf16");
  const auto with = [](const char* name, std::uint32_t group, std::uint32_t dim, std::uint32_t queries) {
    return job{name, group, dim, 256, queries, 8, 0, element::bf16};
  };
  decode(out, with("decode GQA 4, dim 128, in bf16", 4, 128, 1), data, bytes, 0.9, best_isa(),
         attention_arithmetic::bf16);
  for (const job& j :
       {with("decode GQA 8, dim 128, in bf16", 8, 128, 1), with("decode MHA, dim 128, in bf16", 1, 128, 1)})
    decode(out, j, data, bytes, {}, best_isa(), attention_arithmetic::bf16);
  for (const job& j : {with("prefill 512 x GQA 2, dim 64, in bf16", 2, 64, 512),
                       with("prefill 512 x GQA 4, dim 128, in bf16", 4, 128, 512)})
    many_rows(out, j, data, bytes, attention_arithmetic::bf16);
}

}  // namespace

int main(int argc, char** argv) {
  bench::report out("attention_kernel", argc, argv);
  constexpr std::size_t bytes = 256_MiB;
  const memory data = random_fp16(bytes);
  out.note("instruction set " + std::string(name(best_isa())));
  for (const job& j :
       {job{"decode GQA 4, dim 128, fp16", 4, 128, 256, 1},
        job{"decode GQA 8, dim 128, fp16", 8, 128, 256, 1}, job{"decode MHA, dim 128, fp16", 1, 128, 256, 1},
        job{"decode GQA 2, dim 64, fp16", 2, 64, 256, 1},
        job{"decode GQA 4, dim 128, 16-token", 4, 128, 16, 1}})
    decode(out, j, data.get(), bytes);
  decode(out, {"decode GQA 4, dim 128, bf16", 4, 128, 256, 1, 8, 0, element::bf16}, data.get(), bytes, 0.9);
  two_threads(out, {"decode GQA 4, dim 128, two threads", 4, 128, 256, 1}, data.get(), bytes);
  other_sets(out, data.get(), bytes / 8);
  for (const job& j :
       {job{"decode MHA, dim 128", 1, 128, 256, 1}, job{"decode GQA 4, dim 128", 4, 128, 256, 1},
        job{"decode GQA 8, dim 128", 8, 128, 256, 1}})
    each_in_place<fp8, q8_0, q4_0>(out, j, data.get(), bytes);
  for (const job& j : {job{"prefill 512 x GQA 2, dim 64", 2, 64, 256, 512},
                       job{"prefill 512 x GQA 4, dim 128", 4, 128, 256, 512},
                       job{"prefill 512 x GQA 4, dim 80", 4, 80, 256, 512},
                       job{"decode MLA, 128 heads, 576 / 512", 128, 576, 256, 1, 1, 512}})
    many_rows(out, j, data.get(), bytes);
  in_bf16(out, data.get(), bytes);
  return out.finish();
}
