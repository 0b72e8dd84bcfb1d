#pragma once
#include <cstddef>
#include <cstdint>

#include "terrace/core/error.hpp"
#include "terrace/core/layout.hpp"
#include "terrace/core/result.hpp"
#include "terrace/medium/extent.hpp"

namespace terrace {

/// One block on its way from one tier to another: those of the steps read > decode > encode > write that its route
/// needs. The planner fills it in and pins the source; both extents stay reserved until the job has finished.
struct transfer_job {
  std::uint32_t block = 0;
  std::uint8_t from = 0, to = 0;
  const layer_group* group = nullptr;
  extent source;                      ///< its `bytes` are the encoded length
  extent target;                      ///< as large as the codec may need; `bytes` becomes the encoded length
  std::uint32_t source_checksum = 0;  ///< CRC32C of the encoded source, if its tier is checked
  std::uint32_t target_checksum = 0;  ///< likewise of the target; the transfer fills it in
  bool evict = false;                 ///< the source copy goes once the target is in place
  bool probe = false;                 ///< finds out whether a tier that was set aside works again
  bool begun = false;         ///< has left the line for staging; only then can lateness be a tier's fault
  bool working = false;       ///< a load whose source has been read
  bool storing = false;       ///< a store that has not ended and is not overdue
  bool awaited = false;       ///< a storing job whose end the flush under way waits for
  bool overdue = false;       ///< has passed its deadline: nobody waits for it any more
  bool write_failed = false;  ///< it was the target's medium that failed, so the source is as good as it was
  transfer_job* next = nullptr;  ///< belongs to whoever queues it
};

/// Owns the jobs and is told of their progress: the planner. Called on the owner.
class transfer_listener {
 public:
  /// The job's source has been read: what remains of a load is work for the pool, so the next load may read
  /// meanwhile.
  virtual void source_read(transfer_job& job) = 0;
  /// The codec needed only `bytes`: gives back the rest of the job's target before it is written. False: the tier has
  /// been made smaller, and the job no longer has a target.
  virtual bool shrink_target(transfer_job& job, std::size_t bytes) = 0;
  /// The job has passed its deadline and has not ended: `finished` is still to come.
  virtual void overdue(transfer_job& job) = 0;
  /// The job has ended, and nothing of it is still in use.
  virtual void finished(transfer_job& job, result<void> outcome) = 0;

 protected:
  ~transfer_listener() = default;
};

/// Starts transfers. Implemented by `transfer_engine`, which knows the tiers' types, for the planner, which does not.
class transfer_port {
 public:
  virtual ~transfer_port() = default;
  /// Begins `job`, or queues it while staging is in use. Its listener is told of what follows, never from within this
  /// call.
  virtual void start(transfer_job& job) noexcept = 0;
  virtual std::size_t staging_in_use() const noexcept = 0;
  /// Bytes of all staging, in use or not: the part of tier 0's budget that is not slots.
  virtual std::size_t staging_bytes() const noexcept = 0;
};

}  // namespace terrace
