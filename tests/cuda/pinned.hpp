#pragma once
// Memory that host and device see, and the arguments of the kernels in it.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "catch.hpp"
#include "cuda_emulated/paged_kv.hpp"
#include "terrace/cuda/attention.hpp"

/// An array in pinned memory, which kernels read and write where it is. Not managed memory: that needs page faults of
/// the device, which not every virtual machine passes on.
template <class T>
class pinned {
 public:
  explicit pinned(std::size_t count) : count_(count) {
    void* p = nullptr;
    REQUIRE(cudaMallocHost(&p, count * sizeof(T) + 1) == cudaSuccess);
    data_.reset(static_cast<T*>(p));
  }
  explicit pinned(const std::vector<T>& from) : pinned(from.size()) {
    if (count_ != 0) std::memcpy(data(), from.data(), count_ * sizeof(T));
  }
  T* data() const { return data_.get(); }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) const { return data_.get()[i]; }

 private:
  struct freed {
    void operator()(T* p) const { static_cast<void>(cudaFreeHost(p)); }
  };
  std::size_t count_;
  std::unique_ptr<T, freed> data_;
};

/// Waits for the device, which must have nothing to complain of.
inline void finish_device() { REQUIRE(cudaDeviceSynchronize() == cudaSuccess); }

/// What a paged_kv has, in pinned memory.
template <class KV>
struct pinned_kv {
  pinned_kv(KV& kv, std::uint32_t split_blocks)
      : args(kv.args(split_blocks)),
        block_bytes(terrace::encoded_bytes(kv.group.plane_bytes(kv.group.k), kv.group.k.type, KV::stored_as) +
                    terrace::encoded_bytes(kv.group.plane_bytes(kv.group.v), kv.group.k.type, KV::stored_as)),
        blocks(kv.pointers.size() * block_bytes),
        pointers(kv.pointers.size()),
        indptr(kv.indptr),
        last_page_len(kv.last_page_len),
        query_indptr(kv.query_indptr),
        first_position(kv.first_position),
        query_position(kv.query_position),
        queries(kv.queries),
        scalars(kv.scalars),
        outputs(kv.outputs) {
    for (std::size_t i = 0; i < pointers.size(); ++i) {
      pointers[i] = blocks.data() + i * block_bytes;
      std::memcpy(pointers[i], kv.pointers[i], block_bytes);
    }
    args.table.blocks.pointers = pointers.data();
    args.table.indptr = indptr.data();
    args.table.last_page_len = last_page_len.data();
    args.table.first_position = first_position.data();
    args.queries.values = queries.data();
    args.queries.indptr = query_indptr.data();
    args.queries.first_position = query_position.data();
    args.out.rows = scalars.data();
    args.out.o = outputs.data();
  }
  /// The results where the paged_kv looks for them.
  void copy_results(KV& kv) const {
    std::memcpy(kv.scalars.data(), scalars.data(), scalars.size() * sizeof(terrace::softmax_row));
    std::memcpy(kv.outputs.data(), outputs.data(), outputs.size() * sizeof(float));
  }

  terrace::cuda::attention_args args;
  std::size_t block_bytes;
  pinned<std::byte> blocks;
  pinned<void*> pointers;
  pinned<std::int32_t> indptr, last_page_len, query_indptr;
  pinned<std::int64_t> first_position, query_position;
  pinned<typename KV::element_type> queries;
  pinned<terrace::softmax_row> scalars;
  pinned<float> outputs;
};
