# The libraries that Terrace uses where the consumer has them. The headers ask `__has_include`, so a library whose
# header is there must be linked, and one that is absent must not be an error. This file serves the build tree and the
# installed package alike: what is linked is what the machine of the consumer has, not what the packager's had.

# Links what is found to `target`. BUILD keeps the paths of this machine out of an installed package.
function(terrace_link_dependencies target)
  set(found "")

  # FindThreads refuses to run without C or C++; a project in CUDA alone gets the library by its name.
  if(CMAKE_CXX_COMPILER_LOADED OR CMAKE_C_COMPILER_LOADED)
    find_package(Threads QUIET)
    if(CMAKE_THREAD_LIBS_INIT)
      list(APPEND found ${CMAKE_THREAD_LIBS_INIT})
    endif()
  elseif(UNIX)
    list(APPEND found -lpthread)
  endif()

  foreach(dependency IN ITEMS "LIBURING liburing.h uring" "ZSTD zstd.h zstd" "LZ4 lz4.h lz4")
    separate_arguments(dependency)
    list(GET dependency 0 name)
    list(GET dependency 1 header)
    list(GET dependency 2 library)
    find_path(TERRACE_${name}_INCLUDE_DIR ${header})
    find_library(TERRACE_${name}_LIBRARY ${library})
    mark_as_advanced(TERRACE_${name}_INCLUDE_DIR TERRACE_${name}_LIBRARY)
    if(TERRACE_${name}_INCLUDE_DIR AND TERRACE_${name}_LIBRARY)
      list(APPEND found ${TERRACE_${name}_LIBRARY})
      set(directory ${TERRACE_${name}_INCLUDE_DIR})
      if("BUILD" IN_LIST ARGN)
        set(directory $<BUILD_INTERFACE:${directory}>)
      endif()
      target_include_directories(${target} SYSTEM INTERFACE ${directory})
    endif()
  endforeach()

  foreach(library IN LISTS found)
    if("BUILD" IN_LIST ARGN)
      set(library $<BUILD_INTERFACE:${library}>)
    endif()
    target_link_libraries(${target} INTERFACE ${library})
  endforeach()
endfunction()
