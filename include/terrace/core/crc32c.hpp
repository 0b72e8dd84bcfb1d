#pragma once
#include <cstdint>

#include "terrace/core/bytes.hpp"

namespace terrace {

/// The checksum of everything that Terrace keeps on disk: CRC-32C (Castagnoli, as iSCSI defines it in RFC 3720,
/// B.4: reflected, all ones before and after), so crc32c of "123456789" is 0xe3069283. `before` is the checksum
/// of the bytes that precede `data`: crc32c(b, crc32c(a)) is that of a followed by b. It detects every burst error of
/// up to 32 bits, and any other error with a probability of 1 - 2^-32. O(bytes); uses carry-less multiplication
/// (AVX-512 with VPCLMULQDQ) or the SSE4.2 instruction where the processor has them.
std::uint32_t crc32c(const_bytes data, std::uint32_t before = 0) noexcept;

/// The same by table look-ups, for processors without the instruction. About a tenth of its speed.
std::uint32_t crc32c_portable(const_bytes data, std::uint32_t before = 0) noexcept;

}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/core/crc32c_body.hpp"  // IWYU pragma: export
#endif
