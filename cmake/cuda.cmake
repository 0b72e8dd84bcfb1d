# CUDA without CMake's CUDA language: enabling it costs every fresh configuration many seconds, and fails where there
# is no toolkit. nvcc compiles objects; the host's compiler links them into programs.

set(terrace_has_cuda FALSE)
if(TERRACE_CUDA)
  find_program(TERRACE_NVCC nvcc HINTS ENV CUDAToolkit_ROOT ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(TERRACE_NVCC)
    # Behind the links that distributions put before it, nvcc stands beside its headers and libraries.
    file(REAL_PATH ${TERRACE_NVCC} toolkit)
    cmake_path(GET toolkit PARENT_PATH toolkit)
    cmake_path(GET toolkit PARENT_PATH toolkit)
    find_path(TERRACE_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${toolkit}/include)
    find_library(TERRACE_CUDART_LIBRARY NAMES cudart_static cudart HINTS ${toolkit}/lib64 ${toolkit}/lib)
  endif()
  if(TERRACE_NVCC AND TERRACE_CUDA_INCLUDE_DIR AND TERRACE_CUDART_LIBRARY)
    set(terrace_has_cuda TRUE)
  elseif(NOT TERRACE_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "terrace: TERRACE_CUDA is ON, and no toolkit is found; set CUDAToolkit_ROOT to its folder")
  endif()
endif()

if(terrace_has_cuda)
  # The PTX of sm_80 runs on whatever is newer; where there is a device, its own code is better.
  set(architecture sm_80)
  if(EXISTS /dev/nvidiactl)
    set(architecture native)
  endif()
  set(TERRACE_CUDA_ARCHITECTURE ${architecture} CACHE STRING "What nvcc compiles for: the value of its -arch")
  set(terrace_nvcc_flags -std=c++20 -O2 -arch=${TERRACE_CUDA_ARCHITECTURE} --extended-lambda
                         --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra,-Wconversion,-Wshadow
                         -ccbin ${CMAKE_CXX_COMPILER})
  if(TERRACE_WERROR)
    list(APPEND terrace_nvcc_flags -Werror all-warnings)
  endif()
endif()

# Compiles one .cu file; `object` gets the path of what it makes. Where no device says what to compile for, kernels are
# compiled for Hopper as well: what ptxas thinks of them there is worth knowing.
function(terrace_add_cuda_object source object)
  cmake_path(RELATIVE_PATH source BASE_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE name)
  set(more "")
  if(TERRACE_CUDA_ARCHITECTURE STREQUAL "sm_80" AND name MATCHES "^(tests|bench)/cuda/")
    set(more -gencode arch=compute_90,code=sm_90)
  endif()
  set(made ${PROJECT_BINARY_DIR}/cuda/${name}.o)
  cmake_path(GET made PARENT_PATH folder)
  file(MAKE_DIRECTORY ${folder})
  add_custom_command(
    OUTPUT ${made}
    COMMAND ${TERRACE_NVCC} ${terrace_nvcc_flags} ${more} -DTERRACE_CHECKED -I${PROJECT_SOURCE_DIR}/include
            -I${PROJECT_SOURCE_DIR}/tests -MD -MF ${made}.d -c ${source} -o ${made}
    DEPENDS ${source}
    DEPFILE ${made}.d
    COMMENT "Building CUDA object ${name}.o"
    VERBATIM)
  set(${object} ${made} PARENT_SCOPE)
endfunction()

# Lets a host program call the CUDA runtime.
function(terrace_link_cuda target)
  target_include_directories(${target} SYSTEM PRIVATE ${TERRACE_CUDA_INCLUDE_DIR})
  target_link_libraries(${target} PRIVATE ${TERRACE_CUDART_LIBRARY} ${CMAKE_DL_LIBS} rt)
endfunction()
