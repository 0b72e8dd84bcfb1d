#pragma once
#include <functional>
#include <utility>

#include "cuda_emulated/emulator.hpp"
#include "fake/fake_runtime.hpp"

/// Emulated kernels run when the fake runtime's streams come to them: for a program that includes this once.
struct kernels_on_fake_streams {
  kernels_on_fake_streams() {
    emulator::submit() = [](terrace::cuda::stream_handle stream, std::function<void()> work) {
      fake_cuda::launch(stream, std::move(work));
    };
  }
};
inline const kernels_on_fake_streams submitting;
