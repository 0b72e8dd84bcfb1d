#include "terrace/transfer/staging.hpp"

#include <set>

#include "catch.hpp"
#include "terrace/execution/context.hpp"

using namespace terrace;

TEST_CASE("staging hands out a fixed number of aligned buffers, and counts them") {
  context ctx;
  auto s = staging::make(ctx, 3, 5000);
  REQUIRE(s);
  CHECK(s->buffer_bytes() == 8192);
  CHECK(s->bytes() == 3 * 8192);
  std::set<std::byte*> taken;
  while (s->available() != 0) {
    std::byte* buffer = s->take();
    CHECK(reinterpret_cast<std::uintptr_t>(buffer) % ram::alignment == 0);
    buffer[0] = buffer[8191] = std::byte{1};
    taken.insert(buffer);
  }
  CHECK(taken.size() == 3);
  CHECK(s->bytes_in_use() == 3 * 8192);
  for (std::byte* buffer : taken) s->give_back(buffer);
  CHECK(s->bytes_in_use() == 0);
  CHECK(s->available() == 3);
}

TEST_CASE("a cache whose routes need no staging has none") {
  context ctx;
  auto s = staging::make(ctx, 0, 4096);
  REQUIRE(s);
  CHECK(s->available() == 0);
  CHECK(s->bytes() == 0);
}
