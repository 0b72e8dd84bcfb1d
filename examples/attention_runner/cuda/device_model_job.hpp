#pragma once
#include <cstdint>
#include <span>

#include "../llama.hpp"
#include "../plan.hpp"
#include "../run_result.hpp"
#include "../runner_error.hpp"
#include "device_job.hpp"
#include "terrace/execution/context.hpp"

namespace runner {

/// As model_job, with the KV on a CUDA device: the model's layers are computed on the host, except for their
/// attention, which Terrace's kernels compute over a hot tier in device memory and a warm one in pinned RAM. `text`
/// is the context, then the tokens to be scored. device_job.hpp says where it is present, and how it is refused.
#if defined(TERRACE_RUNNER_CUDA)
outcome<run_result> run_model_on_device(llama& model, const run_request& request, const run_plan& plan,
                                        std::span<const std::uint32_t> text, terrace::context& ctx);
#else
inline outcome<run_result> run_model_on_device(llama&, const run_request&, const run_plan&,
                                               std::span<const std::uint32_t>, terrace::context&) {
  return refuse_device();
}
#endif

}  // namespace runner
