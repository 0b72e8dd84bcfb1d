#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "../plan.hpp"
#include "terrace/execution/context.hpp"
#include "terrace/kv_store.hpp"

namespace runner {

/// Opens the ladder that the plan names, with the hot tier in device memory and the warm one in pinned RAM.
/// "resident" is any of them with nothing below the hot tier. `stream` is the one that writes and reads blocks.
terrace::result<std::shared_ptr<terrace::kv_store>> open_device_ladder(terrace::context& ctx,
                                                                       const run_plan& plan,
                                                                       std::size_t policy,
                                                                       cudaStream_t stream);

}  // namespace runner
