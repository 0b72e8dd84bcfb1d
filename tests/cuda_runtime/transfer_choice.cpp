#include "terrace/cuda/transfer_choice.hpp"

#include "catch.hpp"

using terrace::cuda::transfer_choice;
using terrace::cuda::transfer_method;

TEST_CASE("a piece belongs to the nearest power of two, and the ends take the rest") {
  CHECK(transfer_choice::size_class(0) == 0);
  CHECK(transfer_choice::size_class(1) == 0);
  CHECK(transfer_choice::size_class(4096) == 0);
  CHECK(transfer_choice::size_class(6144) == 0);
  CHECK(transfer_choice::size_class(6145) == 1);
  CHECK(transfer_choice::size_class(2 << 20) == 9);
  CHECK(transfer_choice::size_class(std::size_t{1} << 40) == transfer_choice::sizes - 1);
  CHECK(transfer_choice::count_class(0) == 0);
  CHECK(transfer_choice::count_class(1) == 0);
  CHECK(transfer_choice::count_class(4) == 1);
  CHECK(transfer_choice::count_class(4096) == 6);
  CHECK(transfer_choice::count_class(1u << 30) == transfer_choice::counts - 1);
  for (std::size_t s = 0; s < transfer_choice::sizes; ++s)
    CHECK(transfer_choice::size_class(transfer_choice::bytes_of(s)) == s);
  for (std::size_t c = 0; c < transfer_choice::counts; ++c)
    CHECK(transfer_choice::count_class(transfer_choice::count_of(c)) == c);
}

TEST_CASE("a table says what was put into it, and can be a constant") {
  static constexpr transfer_choice fixed = transfer_choice::always(transfer_method::kernel);
  static_assert(fixed.pick(1, 1) == transfer_method::kernel &&
                fixed.pick(1 << 30, 1 << 20) == transfer_method::kernel);
  transfer_choice c;
  CHECK(c.pick(2 << 20, 64) == transfer_method::copies);
  CHECK(c.pick(8 << 10, 1) == transfer_method::copies);
  CHECK(c.pick(8 << 10, 64) == transfer_method::batched);
  c.set(transfer_choice::size_class(8 << 10), transfer_choice::count_class(64), transfer_method::kernel);
  CHECK(c.pick(8 << 10, 64) == transfer_method::kernel);
  CHECK(c.pick(16 << 10, 64) == transfer_method::batched);
  CHECK(!(c == transfer_choice{}));
}
