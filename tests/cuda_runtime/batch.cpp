#include "terrace/cuda/batch.hpp"

#include <memory>
#include <vector>

#include "catch.hpp"
#include "decoding.hpp"
#include "terrace/codec/q8_0.hpp"
#include "terrace/cuda/pinned_ram.hpp"
#include "terrace/cuda/vram.hpp"
#include "terrace/policy/lru.hpp"
#include "terrace/testing/scripted.hpp"
#include "terrace/tiered_cache.hpp"

using namespace terrace;

namespace {

constexpr std::size_t block = pattern::block_bytes;
using ladder = tiered_cache<tier<vram>, tier<pinned_ram>, tier<scripted>, lru>;
using encoded_ladder = tiered_cache<tier<vram>, tier<pinned_ram, q8_0>, tier<scripted, q8_0>, lru>;

cudaError_t decode(const layer_group& group, std::uint32_t format, const std::byte* const* encoded,
                   std::byte* const* raw, std::uint32_t count, cudaStream_t stream) {
  fake_cuda::launch(stream, [=] {
    CHECK(format == q8_0::format_id);
    for (std::uint32_t i = 0; i < count; ++i)
      CHECK(q8_0::decode(group, {encoded[i], q8_0::max_encoded_size(group)}, {raw[i], group.block_bytes()}));
  });
  return cudaSuccess;
}

}  // namespace

TEST_CASE("windows hold every token once, in order, while the device lags behind") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    CAPTURE(seed);
    fake_cuda::reset({.seed = seed});
    {
      decoding<ladder> d(seed, 40, 400, {.window_bytes = 3 * block});
      d.add(300);
      d.add(7);
      d.add(170);
      d.assign();
      // Not a thing happens on the device, and the host does a step all the same.
      fake_cuda::drain();
      const std::size_t waits = fake_cuda::now().host_waits;
      fake_cuda::stall(true);
      REQUIRE(d.step(1));
      CHECK(fake_cuda::now().host_waits == waits);
      // What the copies have still to read stays where it is, though all windows are released.
      CHECK(d.pinned_below() > 0);
      fake_cuda::stall(false);
      fake_cuda::drain();
      d.ctx.poll();
      CHECK(d.pinned_below() == 0);
      for (int step = 0; step < 5; ++step) {
        const auto windows = d.step(static_cast<std::uint32_t>(step) % 3 + 1);
        REQUIRE(windows);
        CHECK(*windows > 2);
      }
      fake_cuda::drain();
      CHECK(d.wrong == 0);
    }
    CHECK(fake_cuda::now().device_bytes == 0);
    CHECK(fake_cuda::now().live_events == 0);
    CHECK(fake_cuda::now().pinned_bytes == 0);
  }
}

TEST_CASE("copies of a window that cannot be enqueued are told once, and the next step has them") {
  fake_cuda::reset({.seed = 4});
  decoding<ladder> d(4, 40, 400, {.window_bytes = 8 * block});
  d.add(400);
  d.assign();
  d.ctx.poll();
  fake_cuda::fail_call("cudaMemcpyBatchAsync", cudaErrorUnknown);
  CHECK_FALSE(d.step(1));
  CHECK(d.batch->failure()->code == errc::io_error);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(d.step(1));
  fake_cuda::drain();
  CHECK(d.wrong == 0);
}

TEST_CASE("copies of a window whose end nobody can be told are waited for") {
  fake_cuda::reset({.seed = 4});
  decoding<ladder> d(4, 40, 400, {.window_bytes = 8 * block});
  d.add(400);
  d.assign();
  fake_cuda::drain();
  d.ctx.poll();
  REQUIRE(d.batch->reserve(std::vector<std::uint32_t>{1}, d.device.stream));
  const auto waits = fake_cuda::now().host_waits;
  fake_cuda::fail_call("cudaEventRecord", cudaErrorUnknown);
  CHECK_FALSE(d.batch->next(0, d.device.stream));
  CHECK(d.batch->failure()->code == errc::io_error);
  CHECK(fake_cuda::now().host_waits == waits + 1);
  d.batch->commit(std::vector<std::uint32_t>{0});
  CHECK(d.step(1));
  fake_cuda::drain();
  CHECK(d.wrong == 0);
}

TEST_CASE("more sequences than pages of a window were asked for have room for a page each") {
  fake_cuda::reset({.seed = 3});
  decoding<ladder> d(3, 80, 400, {.sequences = 32, .pages = 4, .window_bytes = 2 * block});
  CHECK(d.batch->limits().pages == 32);
  for (int i = 0; i < 32; ++i) d.add(4);
  d.assign();
  REQUIRE(d.step(1));
  fake_cuda::drain();
  CHECK(d.wrong == 0);
}

TEST_CASE("the slots of a layer are told at an address that does not depend on how many tokens there are") {
  fake_cuda::reset({.seed = 3});
  decoding<ladder> d(3, 80, 400, {.sequences = 4, .tokens = 16});
  for (int i = 0; i < 4; ++i) d.add(20);
  d.assign();
  std::optional<cuda::reserved_slots> first;
  for (const std::vector<std::uint32_t>& tokens :
       {std::vector<std::uint32_t>{1, 1, 1, 1}, {1, 0, 2, 0}, {4, 4, 4, 4}, {0, 0, 0, 1}}) {
    auto slots = d.batch->reserve(tokens, d.device.stream);
    REQUIRE(slots);
    if (!first) first = *slots;
    CHECK(slots->most() == *std::ranges::max_element(tokens));
    for (std::uint32_t layer = 0; layer < 2; ++layer) CHECK(slots->mapping(layer) == first->mapping(layer));
    d.batch->commit({std::vector<std::uint32_t>(4, 0)});
    REQUIRE(d.step(1));  // each token's slot is its own
  }
  fake_cuda::drain();
  CHECK(d.wrong == 0);
}

TEST_CASE("a batch that is opened while kernels read what was in its room waits for them") {
  for (std::uint64_t seed = 1; seed < 20; ++seed) {
    fake_cuda::reset({.seed = seed});
    decoding<ladder> d(seed, 60, 400, {.window_bytes = 2 * block});
    d.add(400);  // all of it in tier 0, and below
    REQUIRE(d.ctx.sync_wait(d.cache().flush()));
    d.assign();
    fake_cuda::drain();
    d.ctx.poll();
    fake_cuda::stall(true);
    REQUIRE(d.step(1));
    auto second = cuda::batch::make(d.cache(), {.window_bytes = 8 * block});
    REQUIRE(second);
    std::swap(d.batch, *second);
    d.assign();
    REQUIRE(d.step(1));
    fake_cuda::stall(false);
    fake_cuda::drain();
    CHECK(d.wrong == 0);
  }
}

TEST_CASE("thousands of steps over slots that are used again and again") {
  fake_cuda::reset({.seed = 77});
  decoding<ladder> d(77, 30, 200, {.window_bytes = 2 * block});
  d.add(120);
  d.assign();
  for (int step = 0; step < 1500; ++step) {
    REQUIRE(d.step(1));
    if (d.sequences[0]->length() > 400) {
      fake_cuda::drain();  // the tokens of what was cut are written anew
      REQUIRE(d.sequences[0]->truncate(100));
    }
  }
  fake_cuda::drain();
  CHECK(d.wrong == 0);
}

TEST_CASE("blocks that travel encoded are decoded on the device, or by the host where no kernel is at hand") {
  for (const bool kernel : {true, false}) {
    fake_cuda::reset({.seed = 3});
    decoding<encoded_ladder> d(
        3, 60, 400,
        {.window_bytes = 4 * block, .kernels = {.copy = nullptr, .decode = kernel ? &decode : nullptr}},
        0.01f);
    d.add(500);
    d.assign();
    const auto loads = d.cache().stats().tiers[1].loads;
    for (int step = 0; step < 4; ++step) REQUIRE(d.step(1));
    fake_cuda::drain();
    CHECK(d.wrong == 0);
    // With a kernel nothing has to be brought to tier 0.
    CHECK((d.cache().stats().tiers[1].loads == loads) == kernel);
  }
}

TEST_CASE("a shared prefix crosses the link once") {
  fake_cuda::reset({.seed = 8});
  decoding<ladder> d(8, 40, 400, {.window_bytes = 8 * block});
  d.add(320);
  for (int i = 0; i < 3; ++i) {
    d.sequences.push_back(std::make_unique<sequence>(d.cache().fork(*d.sequences[0])));
    d.tags.push_back(1);
  }
  d.assign();
  const auto before = fake_cuda::now();
  REQUIRE(d.step(1));
  const auto after = fake_cuda::now();
  const std::size_t pieces = after.copies + after.batched_copies - before.copies - before.batched_copies;
  CHECK(pieces < 2 * 20 + 40);  // 20 blocks a layer at most, and the tables
  fake_cuda::drain();
  CHECK(d.wrong == 0);
}

TEST_CASE("blocks that only a disk has are waited for, and those that it loses are named") {
  fake_cuda::reset({.seed = 6});
  decoding<ladder> d(6, 40, 8, {.window_bytes = 2 * block});
  d.add(600);
  d.assign();
  REQUIRE(d.step(1));
  d.script.fail_reads = 2;
  const auto lost = d.step(1);
  CHECK_FALSE(lost);
  CHECK(d.batch->lost().size() >= 1);
  CHECK(d.batch->failure()->code == errc::lost);
  fake_cuda::drain();
  CHECK(d.wrong == 0);
}

namespace {

// The pages of a window as FlashInfer's paged_kv_t takes them: two pools, three strides in elements, and the arrays.
struct flashinfer_pages {
  flashinfer_pages(const cuda::window& w, const layer_group& g, std::uint32_t layer_in_block)
      : k_data(reinterpret_cast<const fp16*>(static_cast<const std::byte*>(w.pages()) +
                                             g.k_offset(layer_in_block))),
        v_data(reinterpret_cast<const fp16*>(static_cast<const std::byte*>(w.pages()) +
                                             g.v_offset(layer_in_block))),
        stride_page(cuda::batch::page_stride / sizeof(fp16)),
        stride_n(g.token_stride(g.k) / sizeof(fp16)),
        stride_h(g.head_stride(g.k) / sizeof(fp16)),
        indptr(w.indptr()),
        indices(w.indices()),
        last_page_len(w.last_page_len()) {}

  std::size_t offset(std::int32_t page, std::uint32_t head, std::uint32_t entry,
                     std::uint32_t feature) const {
    return std::size_t(indices[page]) * stride_page + head * stride_h + entry * stride_n + feature;
  }

  const fp16 *k_data, *v_data;
  std::size_t stride_page, stride_n, stride_h;
  const std::int32_t *indptr, *indices, *last_page_len;
};

}  // namespace

TEST_CASE("a window is what FlashInfer's paged kernels take") {
  fake_cuda::reset({.seed = 12});
  decoding<ladder> d(12, 200, 200);
  d.add(40);
  d.add(25);
  d.assign();
  auto slots = d.batch->reserve(std::vector<std::uint32_t>{1, 1}, d.device.stream);
  REQUIRE(slots);
  d.write_new(*slots, 1, {1, 1});
  const std::uint32_t lengths[] = {41, 26};
  int elements = 0, wrong = 0;
  {
    auto w = d.batch->next(1, d.device.stream);
    REQUIRE(w);
    CHECK(w->last());
    fake_cuda::launch(d.device.stream, [&, pages = flashinfer_pages(*w, d.cache().layout().groups[0], 0)] {
      for (std::uint32_t s = 0; s < 2; ++s) {
        const std::int32_t first = pages.indptr[s], end = pages.indptr[s + 1];
        wrong +=
            std::uint32_t(end - first - 1) * 16 + std::uint32_t(pages.last_page_len[s]) == lengths[s] ? 0 : 1;
        for (std::uint32_t t = 0; t < lengths[s]; ++t)
          for (std::uint32_t f = 0; f < 64; ++f, ++elements) {
            const std::size_t at = pages.offset(first + std::int32_t(t / 16), 0, t % 16, f);
            if (pages.k_data[at] != pattern::element_at(s + 1, 1, false, 0, t, f)) ++wrong;
            if (pages.v_data[at] != pattern::element_at(s + 1, 1, true, 0, t, f)) ++wrong;
          }
      }
    });
  }
  CHECK_FALSE(d.batch->next(1, d.device.stream));
  CHECK_FALSE(d.batch->failure());
  d.batch->commit(std::vector<std::uint32_t>{1, 1});
  fake_cuda::drain();
  CHECK(elements == 67 * 64);
  CHECK(wrong == 0);
}

TEST_CASE("what a batch on a device refuses") {
  fake_cuda::reset();
  context ctx{{.codec_threads = 0}};
  medium_script script;
  SECTION("a cache on the host") {
    using on_host = tiered_cache<tier<ram>, tier<scripted>, lru>;
    auto cache = on_host::open(ctx, pattern::layout(), {.capacity = 40 * block},
                               {.capacity = 40 * block, .script = &script});
    REQUIRE(cache);
    CHECK(cuda::batch::make(*cache, {}).error().code == errc::invalid_argument);
  }
  SECTION("more than there is room for") {
    engine e;
    auto cache = ladder::open(ctx, pattern::layout(), {.capacity = 24 * block, .stream = e.stream},
                              {.capacity = 40 * block}, {.capacity = 40 * block, .script = &script});
    REQUIRE(cache);
    CHECK(cuda::batch::make(*cache, {.window_bytes = 24 * block}).error().code == errc::out_of_capacity);
    auto batch = cuda::batch::make(*cache, {.sequences = 2, .tokens = 4, .window_bytes = block});
    REQUIRE(batch);
    sequence s = cache->make_sequence();
    sequence* const all[] = {&s};
    REQUIRE((*batch)->assign(all));
    CHECK((*batch)->reserve(std::vector<std::uint32_t>{5}, e.stream).error().code == errc::invalid_argument);
    CHECK((*batch)->reserve(std::vector<std::uint32_t>{1, 1}, e.stream).error().code ==
          errc::invalid_argument);
    fake_cuda::fail_call("cudaMemcpyAsync", cudaErrorUnknown);
    CHECK((*batch)->reserve(std::vector<std::uint32_t>{1}, e.stream).error().code == errc::io_error);
    CHECK((*batch)->reserve(std::vector<std::uint32_t>{1}, e.stream));
    CHECK_FALSE((*batch)->next(7, e.stream));
    CHECK((*batch)->failure()->code == errc::invalid_argument);
    (*batch)->commit(std::vector<std::uint32_t>{1});
    CHECK(s.length() == 1);
  }
}
