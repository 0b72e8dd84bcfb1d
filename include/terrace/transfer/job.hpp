#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/medium/extent.hpp"

namespace terrace {

/// One block on its way from one tier to another: read > decode > encode > write, as far as the route needs
/// it. The planner fills it in and pins the source; both extents stay reserved until the job has finished.
struct transfer_job {
  std::uint32_t block = 0;
  std::uint8_t from = 0, to = 0;
  const layer_group* group = nullptr;
  extent source;                      ///< its `bytes` are the encoded length
  extent target;                      ///< as large as the codec may need; `bytes` becomes the encoded length
  std::uint32_t source_checksum = 0;  ///< CRC32C of the encoded source, where its tier is checked
  std::uint32_t target_checksum = 0;  ///< likewise of the target; the transfer fills it in
  bool evict = false;                 ///< the source goes when the target is in place
  bool probe = false;                 ///< finds out whether a tier that was set aside works again
  bool begun = false;         ///< has left the line for staging; only then it may be late for a tier's fault
  bool working = false;       ///< a load whose source has been read
  bool storing = false;       ///< a store that has not ended and is not overdue
  bool awaited = false;       ///< of these: the flush under way waits for its end
  bool overdue = false;       ///< has passed its deadline: nobody waits for it any more
  bool write_failed = false;  ///< it was the target's medium that failed, so the source is as good as it was
  transfer_job* next = nullptr;  ///< belongs to whoever queues it
};

/// Starts transfers. Implemented by `transfer_engine`, which knows the tiers' types; used by the planner,
/// which does not.
class transfer_port {
 public:
  virtual ~transfer_port() = default;
  /// Begins `job`, or queues it while staging is in use. Where its source was read and work is left, it calls
  /// planner::source_read(job); it ends with planner::finished(job, result). Both on the owner, never from within this
  /// call.
  virtual void start(transfer_job& job) noexcept = 0;
  virtual std::size_t staging_in_use() const noexcept = 0;
  /// Bytes of all staging, in use or not: what tier 0's budget has besides its slots.
  virtual std::size_t staging_bytes() const noexcept = 0;
};

}  // namespace terrace
