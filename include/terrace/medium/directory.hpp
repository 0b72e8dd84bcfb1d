#pragma once
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "terrace/execution/context.hpp"
#include "terrace/execution/thread_pool.hpp"
#include "terrace/medium/disk_format.hpp"
#include "terrace/medium/extent_table.hpp"
#include "terrace/medium/file_io.hpp"
#include "terrace/medium/medium.hpp"
#include "terrace/medium/store_sync.hpp"

namespace terrace {
inline namespace TERRACE_EX {

/// Plain files under a directory: for the tier that nobody waits for, on a hard disk or a network file system. One
/// file per extent, written and read from front to back: that is what a disk with a head reads ahead and what a file
/// server caches. It needs no room in advance and no rewriting of neighbours, and releasing an extent gives its room
/// back to everybody. Blocks of a megabyte and more suit it best.
///
/// A file appears under its name only when it is complete and the file system has taken all of it: it is written
/// under a temporary name, synchronised (a full server may say so only then), and renamed. Files are private to the
/// user (0600), in a folder of the medium's own (0700) that is made under the directory; so nobody else's file is
/// ever touched, and several caches may share one directory. Files and folder are removed at the end, unless `keep`
/// is set: then the folder `kv-store` is a store in the format of docs/on-disk-format.md, whose labelled extents a
/// later cache finds again. An existing folder is made private; that of another user is refused. A killed process
/// cleans nothing up: its folder `terrace-XXXXXX` stays, with the KV in it, until somebody removes it. No later cache
/// does, because it may be in use on another machine: the locks of network file systems do not always tell.
///
/// System calls block, so threads of its own make them: two for transfers and one that removes files. A transfer that
/// is asked to stop before a thread has reached it is not carried out.
class directory {
 public:
  static constexpr std::string_view name = "directory";
  static constexpr reach addressable = reach::nobody;
  static constexpr bool persistent = true;
  static constexpr std::size_t alignment = 1;  // through the page cache: any buffer, any length
  static constexpr std::size_t granularity = std::size_t{1} << 20;

  struct options {
    std::size_t capacity = 0;      ///< bytes of all files together; 0: no such tier
    std::string path = {};         ///< created if missing, its parent is not; empty: $TMPDIR or /tmp
    bool keep = false;             ///< make a store in `path`, or continue the one that is there
    store_contents contents = {};  ///< of the store; tiered_cache::open fills it in
  };

  /// Space is not claimed: a full disk says so in the write that it refuses. While a file is replaced both versions
  /// exist, so the disk needs a few extents more than `capacity`.
  static result<std::unique_ptr<directory>> open(context& ctx, options o);

  directory(directory&&) = delete;
  ~directory();

  /// O(1) amortised. Allocates only where more extents are alive than ever before.
  std::optional<extent> reserve(std::size_t bytes);
  /// The file is removed in the background. Its number is not used again before it is gone.
  void release(extent e) noexcept;
  auto read(extent e, mutable_bytes into) noexcept {
    return transfer{{this, &file_of(e), into.data(), into.size(), true}};
  }
  auto write(extent e, const_bytes from) noexcept {
    return transfer{{this, &file_of(e), const_cast<std::byte*>(from.data()), from.size(), false}};
  }
  /// Only a limit: files take no room before they are written, and give it back when they are removed. Errors:
  /// unavailable for a store, whose capacity is fixed.
  result<void> resize(std::size_t capacity) noexcept;
  std::size_t capacity() const noexcept { return capacity_; }
  /// In whole units of 4 KiB, as file systems allocate.
  std::size_t used() const noexcept { return used_; }

  // --- As a store; see persistent_medium.

  bool keeps() const noexcept { return sync_.has_value(); }
  auto sync() noexcept { return sync_->start(); }
  bool label(extent e, extent_header h);
  void unlabel(extent e) noexcept { table_.erase(e.node); }
  template <class Visitor>
  void scan(Visitor visitor) {
    for (const extent_header& h : std::exchange(found_, {})) {
      const extent at{.offset = 0, .bytes = h.encoded, .node = static_cast<std::uint32_t>(h.place)};
      table_.adopt(at.node, h);
      if (!visitor(at, h)) release(at);
    }
  }

  /// The folder that holds the files.
  const std::string& folder() const noexcept { return folder_path_; }

 private:
  static constexpr std::size_t file_unit = 4096;
  static constexpr std::size_t rounded(std::size_t bytes) noexcept { return align_up(bytes, file_unit); }

  // What is known of one file; as a task it removes the file.
  struct file : task {
    file(directory* d, std::uint32_t n) noexcept : task(&remove), owner(d), number(n) {}
    static void remove(task* self) noexcept {
      file& f = *static_cast<file*>(self);
      ::unlinkat(f.owner->folder_, file_name(f.number).data(), 0);
      f.exists = false;
      f.owner->put_back(f);
    }
    directory* owner;
    std::uint32_t number;
    bool exists = false;    // under its final name
    std::size_t bytes = 0;  // its size, where it exists
    file* next_free = nullptr;
  };

  struct request {
    directory* medium;
    file* where;
    std::byte* data;
    std::size_t size;
    bool reading;
    result<void> perform() const noexcept {
      return reading ? medium->read_file(*where, {data, size}) : medium->write_file(*where, {data, size});
    }
  };

  // First on a thread of the pool, then back on the owner.
  template <class R>
  struct operation : task {
    using operation_state_concept = ex::operation_state_t;
    operation(const request& asked, R r) noexcept : task(&step), what(asked), receiver(std::move(r)) {}

    void start() noexcept { what.medium->pool_.submit(*this); }
    static void step(task* self) noexcept {
      auto& o = *static_cast<operation*>(self);
      if (!std::exchange(o.performed, true)) {
        o.stopped = ex::get_stop_token(ex::get_env(o.receiver)).stop_requested();
        if (!o.stopped) o.outcome = o.what.perform();
        return o.what.medium->send_home(o);
      }
      if (o.stopped) return ex::set_stopped(std::move(o.receiver));
      if (!o.outcome) return ex::set_error(std::move(o.receiver), error(o.outcome.error()));
      ex::set_value(std::move(o.receiver));
    }
    request what;
    R receiver;
    result<void> outcome;
    bool performed = false, stopped = false;
  };
  struct transfer {
    using sender_concept = ex::sender_t;
    template <class Self, class... E>
    static consteval auto get_completion_signatures() {
      return ex::completion_signatures<ex::set_value_t(), ex::set_error_t(error), ex::set_stopped_t()>{};
    }
    template <class R>
    operation<R> connect(R receiver) const noexcept {
      return {what, std::move(receiver)};
    }
    request what;
  };

  directory(context& ctx, std::size_t capacity)
      : context_(ctx), capacity_(capacity / file_unit * file_unit) {}

  result<void> open_folder(std::string path);
  // The folder of a store, its index, and the files that the index has headers for; the others belong to nobody.
  result<void> open_store(const options& o);

  // Headers come latest first: of several for one file the first is valid.
  void take_files();
  void remove_strays();
  result<void> give_up(const char* sentence, int why);

  void send_home(task& performed) noexcept { context_.post(performed); }

  using name_type = std::array<char, 16>;
  static name_type file_name(std::uint32_t number, const char* suffix = "") noexcept;

  static constexpr const char* unreadable = "a file of a directory tier cannot be read, or ends too soon";
  static constexpr const char* unwritable = "a file of a directory tier cannot be written";

  // Below: on a thread of the pool. A file has one transfer at a time, so its record needs no lock.

  result<void> read_file(const file& f, mutable_bytes into) const noexcept;

  result<void> write_file(file& f, const_bytes from) const noexcept;

  // Copies what a shorter write does not replace.
  result<void> copy_rest(const file& f, int target, std::size_t from) const noexcept;

  file& file_of(extent e) noexcept;
  bool is_known(std::uint32_t number) const noexcept;

  // Free records are a stack that threads only push on, and that the owner takes as a whole.
  void put_back(file& f) noexcept;
  file& free_file();

  context& context_;
  std::size_t capacity_;
  std::size_t used_ = 0;
  std::string path_, folder_path_;
  bool made_path_ = false;
  int folder_ = -1;
  std::deque<file> files_;                              // by number; they stay where they are
  std::unordered_map<std::uint32_t, file> high_files_;  // found, their numbers far beyond the others'
  file* free_ = nullptr;
  std::atomic<file*> removed_{nullptr};

  // Only for a store.
  extent_table table_;
  std::vector<extent_header> found_;  // and not yet scanned
  std::optional<store_sync> sync_;

  // The last members: their threads use the others. Transfers do not wait until thousands of files are removed.
  thread_pool pool_{2}, remover_{1};
};
static_assert(resizable_medium<directory> && persistent_medium<directory>);

}  // namespace TERRACE_EX
}  // namespace terrace

#if !defined(TERRACE_PREBUILT)
#include "terrace/medium/directory_body.hpp"  // IWYU pragma: export
#endif
