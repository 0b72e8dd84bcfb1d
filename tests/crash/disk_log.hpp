#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

/// What a disk was asked to do, and what it may be left with when the power goes.
namespace power_loss {

/// Counts the beginnings and ends of all operations of a run.
using tick = std::uint64_t;
inline constexpr tick never = std::numeric_limits<tick>::max();

/// Files and folders as they lie on a disk, by path relative to their root.
struct image {
  std::map<std::string, std::vector<std::byte>> files;
  std::set<std::string> folders;

  /// Makes them in `root`, which becomes a folder of nothing else.
  void put_into(const std::string& root) const {
    std::filesystem::remove_all(root);
    std::filesystem::create_directories(root);
    for (const std::string& folder : folders) std::filesystem::create_directories(root + "/" + folder);
    for (const auto& [path, bytes] : files) {
      std::ofstream out(root + "/" + path, std::ios::binary);
      out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
  }
};

/// One change, or one promise. What a path leads to is a file's number, which stays when the path changes.
struct operation {
  enum class kind { nothing, write, resize, make_file, make_folder, rename, remove, sync_file, sync_folder };
  kind what = kind::nothing;
  tick begun = 0, ended = never;
  std::size_t file = 0;               ///< of write, resize, make_file, rename, sync_file
  std::string path = {};              ///< of make_*, rename (the new one), remove, sync_folder
  std::string old_path = {};          ///< of rename
  std::uint64_t at = 0;               ///< of write: where; of resize: the new size
  std::vector<std::byte> bytes = {};  ///< of write
  bool forgotten = false;             ///< a sync of it has failed: no later one makes it durable
  bool data_only = false;             ///< of sync_file: fdatasync, which here promises the same

  bool changes_names() const noexcept {
    return what == kind::make_file || what == kind::make_folder || what == kind::rename ||
           what == kind::remove;
  }
};

/// What becomes of changes that no sync has covered. Everything follows from the seed.
class fate {
 public:
  enum class kind { all_lost, all_kept, last_kept, mixed };

  fate(kind k, std::uint64_t seed) : kind_(k), random_(seed) {
    for (unsigned* share : {&data_share_, &names_share_}) *share = static_cast<unsigned>(random_() % 9);
    sector_ = random_() % 2 == 0 ? 512 : 4096;
  }

  /// Whether one change is kept at all; of a write that means: whether any of it may be.
  bool keeps(const operation& o, bool last) {
    switch (kind_) {
      case kind::all_lost:
        return false;
      case kind::all_kept:
        return true;
      case kind::last_kept:
        return last;
      case kind::mixed:
        return random_() % 8 < (o.changes_names() ? names_share_ : data_share_);
    }
    return false;
  }
  /// Of a write that is kept: whether it is torn, and then whether the next sector of it arrives.
  bool tears() { return kind_ == kind::mixed && random_() % 2 == 0; }
  bool keeps_sector() { return random_() % 2 == 0; }
  std::size_t sector() const noexcept { return sector_; }

 private:
  kind kind_;
  std::mt19937_64 random_;
  unsigned data_share_ = 0, names_share_ = 0;  // of eight
  std::size_t sector_ = 512;
};

/// Syncs that a careless program would have left out.
enum class omission { none, fsync_of_files, fdatasync, fsync_of_folders };

/// All operations of a run on a disk that began as `base`, in the order of their beginnings.
struct disk_log {
  image base;
  std::vector<operation> operations;

  /// A disk when the power goes at `crash`: what a sync has covered that ended before, and of the rest what `f` says.
  /// A sync covers what ended before it began; a file's is of its bytes and its size, a folder's of the names in it.
  /// O(bytes written).
  image at(tick crash, fate f, omission without = omission::none) const {
    std::map<std::size_t, tick> covered_files;
    std::map<std::string, tick> covered_folders;
    std::size_t last = operations.size();
    for (std::size_t i = 0; i < operations.size(); ++i) {
      const operation& o = operations[i];
      if (o.begun < crash && o.what != operation::kind::sync_file && o.what != operation::kind::sync_folder)
        last = i;
      if (o.ended >= crash) continue;
      if (o.what == operation::kind::sync_file &&
          without != (o.data_only ? omission::fdatasync : omission::fsync_of_files))
        covered_files[o.file] = o.begun;
      if (o.what == operation::kind::sync_folder && without != omission::fsync_of_folders)
        covered_folders[o.path] = o.begun;
    }

    std::map<std::size_t, std::vector<std::byte>> contents;
    std::map<std::string, std::size_t> names;
    std::set<std::string> folders = base.folders;
    for (const auto& [path, bytes] : base.files) {
      const std::size_t file = names.size();  // as `recorder` numbers them
      names[path] = file;
      contents[file] = bytes;
    }
    for (std::size_t i = 0; i < operations.size() && operations[i].begun < crash; ++i) {
      const operation& o = operations[i];
      const tick covered = o.changes_names() ? covered_folders[parent(o.path)] : covered_files[o.file];
      const bool durable = o.ended < covered && !o.forgotten;
      if (!durable && !f.keeps(o, i == last)) continue;
      switch (o.what) {
        case operation::kind::write:
          apply(contents[o.file], o, durable ? nullptr : &f);
          break;
        case operation::kind::resize:
          contents[o.file].resize(o.at);
          break;
        case operation::kind::make_folder:
          folders.insert(o.path);
          break;
        case operation::kind::rename:
          names.erase(o.old_path);
          names[o.path] = o.file;
          break;
        case operation::kind::make_file:
          names[o.path] = o.file;
          break;
        case operation::kind::remove:
          names.erase(o.path);
          break;
        default:
          break;
      }
    }

    image left;
    const auto reachable = [&](const std::string& path) {
      for (std::string above = parent(path); !above.empty(); above = parent(above))
        if (!folders.contains(above)) return false;
      return true;
    };
    for (const std::string& folder : folders)
      if (reachable(folder)) left.folders.insert(folder);
    for (const auto& [path, file] : names)
      if (reachable(path)) left.files[path] = contents[file];
    return left;
  }

  /// Whether a sync of a folder has failed. No process can do anything about that: file systems then refuse to be
  /// written until they are mounted anew.
  bool names_forgotten() const {
    return std::any_of(operations.begin(), operations.end(),
                       [](const operation& o) { return o.forgotten && o.changes_names(); });
  }

  /// A moment within one of the syncs, of which there is at least one.
  tick within_a_sync(std::uint64_t choice) const {
    std::vector<tick> moments;
    for (const operation& o : operations)
      if (o.what == operation::kind::sync_file || o.what == operation::kind::sync_folder)
        moments.push_back(o.begun + 1);
    return moments[choice % moments.size()];
  }

  /// The folder that a path is in; empty for the root.
  static std::string parent(const std::string& path) {
    const auto slash = path.rfind('/');
    return slash == std::string::npos ? std::string() : path.substr(0, slash);
  }

 private:
  static void apply(std::vector<std::byte>& content, const operation& o, fate* torn) {
    const std::size_t end = o.at + o.bytes.size();
    if (content.size() < end) content.resize(end);
    if (torn == nullptr || !torn->tears()) {
      std::memcpy(content.data() + o.at, o.bytes.data(), o.bytes.size());
      return;
    }
    for (std::size_t from = o.at; from < end;) {
      const std::size_t to = std::min(end, (from / torn->sector() + 1) * torn->sector());
      if (torn->keeps_sector()) std::memcpy(content.data() + from, o.bytes.data() + (from - o.at), to - from);
      from = to;
    }
  }
};

}  // namespace power_loss
