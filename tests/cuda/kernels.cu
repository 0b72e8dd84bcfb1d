// One instance of each kernel, for the test beside it, and as the proof that nvcc takes them all.
#include "terrace/cuda/attention.cuh"
#include "terrace/cuda/codecs.cuh"
#include "terrace/cuda/gather.cuh"
#include "terrace/cuda/mass.cuh"
#include "terrace/cuda/merge.cuh"

namespace terrace::cuda {

template result<void> gather<8>(const block_addresses&, const block_addresses&, std::uint32_t, std::size_t,
                                stream_handle, std::uint32_t) noexcept;

template result<void> encode_blocks<fp16, block_encoding::q8_0>(const layer_group&, const block_addresses&,
                                                                const block_addresses&, std::uint32_t,
                                                                stream_handle, std::uint32_t) noexcept;
template result<void> encode_blocks<bf16, block_encoding::q8_0>(const layer_group&, const block_addresses&,
                                                                const block_addresses&, std::uint32_t,
                                                                stream_handle, std::uint32_t) noexcept;
template result<void> encode_blocks<fp16, block_encoding::q4_0>(const layer_group&, const block_addresses&,
                                                                const block_addresses&, std::uint32_t,
                                                                stream_handle, std::uint32_t) noexcept;
template result<void> encode_blocks<float, block_encoding::fp8>(const layer_group&, const block_addresses&,
                                                                const block_addresses&, std::uint32_t,
                                                                stream_handle, std::uint32_t) noexcept;
template result<void> decode_blocks<fp16, block_encoding::q8_0>(const layer_group&, const block_addresses&,
                                                                const block_addresses&, std::uint32_t,
                                                                stream_handle, std::uint32_t*,
                                                                std::uint32_t) noexcept;
template result<void> decode_blocks<bf16, block_encoding::q8_0>(const layer_group&, const block_addresses&,
                                                                const block_addresses&, std::uint32_t,
                                                                stream_handle, std::uint32_t*,
                                                                std::uint32_t) noexcept;
template result<void> decode_blocks<fp16, block_encoding::q4_0>(const layer_group&, const block_addresses&,
                                                                const block_addresses&, std::uint32_t,
                                                                stream_handle, std::uint32_t*,
                                                                std::uint32_t) noexcept;
template result<void> decode_blocks<float, block_encoding::fp8>(const layer_group&, const block_addresses&,
                                                                const block_addresses&, std::uint32_t,
                                                                stream_handle, std::uint32_t*,
                                                                std::uint32_t) noexcept;

template result<void> attend<fp16, 128>(const attention_args&, stream_handle) noexcept;
template result<void> attend<bf16, 256>(const attention_args&, stream_handle) noexcept;
template result<void> attend<fp16, 128, block_encoding::q8_0>(const attention_args&, stream_handle) noexcept;
template result<void> attend<fp16, 64, block_encoding::q4_0>(const attention_args&, stream_handle) noexcept;
template result<void> attend<bf16, 64, block_encoding::fp8>(const attention_args&, stream_handle) noexcept;
template result<void> attend<float, 40>(const attention_args&, stream_handle) noexcept;

template result<void> merge<float>(const split_states&, std::uint32_t, std::uint32_t, const row_states&,
                                   const finished_rows<float>&, stream_handle, bool) noexcept;
template result<void> merge<fp16>(const split_states&, std::uint32_t, std::uint32_t, const row_states&,
                                  const finished_rows<fp16>&, stream_handle, bool) noexcept;

template result<void> block_mass<128>(const attention_args&, const float*, std::uint32_t, float*,
                                      stream_handle) noexcept;

}  // namespace terrace::cuda
