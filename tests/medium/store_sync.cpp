// Syncs of a kept store that fail: the first one says why, the later ones that it is for good.
#include "terrace/medium/store_sync.hpp"

#include <cerrno>

#include "catch.hpp"
#include "terrace/execution/sync_wait.hpp"

using namespace terrace;

TEST_CASE("after a sync that failed a store makes nothing durable, and says so") {
  context ctx{{.codec_threads = 0}};
  extent_table table;
  constexpr int not_open = -1;
  store_sync sync(ctx, table, not_open);
  const auto first = ctx.sync_wait(sync.start());
  REQUIRE_FALSE(first);
  CHECK(first.error().code == errc::io_error);
  CHECK(first.error().system == EBADF);
  for (int again = 0; again < 2; ++again) {
    const auto later = ctx.sync_wait(sync.start());
    REQUIRE_FALSE(later);
    CHECK(later.error().code == errc::unavailable);
    CHECK(later.error().system == EBADF);
  }
}
