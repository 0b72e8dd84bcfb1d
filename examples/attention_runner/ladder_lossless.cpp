#include "open_ladder.hpp"

template terrace::result<std::unique_ptr<runner::ladder>> runner::open_tiers<runner::lossless_tiers>(
    terrace::context&, const runner::run_plan&, std::size_t);
