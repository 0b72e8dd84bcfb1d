#pragma once
#include "../model_shape.hpp"
#include "../plan.hpp"
#include "../run_result.hpp"
#include "../runner_error.hpp"
#include "terrace/execution/context.hpp"

namespace runner {

/// As shape_job, on a CUDA device: the hot tier in its memory, the warm one in pinned RAM, and attention by Terrace's
/// kernels over windows of a batch. Without a working device it is refused with status 1. Present only where the
/// toolkit was found: TERRACE_RUNNER_CUDA says so. `threads` are the options of its context.
#if defined(TERRACE_RUNNER_CUDA)
outcome<run_result> run_on_device(const model_shape& shape, const run_request& request, const run_plan& plan,
                                  const terrace::context::options& threads);
#else
inline auto refuse_device() {
  return refuse("--device cuda is not there: the CUDA toolkit was not found when the runner was built");
}
inline outcome<run_result> run_on_device(const model_shape&, const run_request&, const run_plan&,
                                         const terrace::context::options&) {
  return refuse_device();
}
#endif

}  // namespace runner
