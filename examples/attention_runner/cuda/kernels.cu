#include "kernels.cuh"

namespace terrace::cuda {

template result<void> attend<fp16, 64>(const attention_args&, stream_handle) noexcept;
template result<void> attend<fp16, 128>(const attention_args&, stream_handle) noexcept;
template result<void> merge<fp16>(const split_states&, std::uint32_t, std::uint32_t, const row_states&,
                                  const finished_rows<fp16>&, stream_handle, bool) noexcept;

}  // namespace terrace::cuda
