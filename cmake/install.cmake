# Installs the headers and the CMake package, and nothing else. Nothing has to be built for it.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)  # for the target `install` as well
endif()

# The package is the same for every architecture, so it stands beside other such data.
set(package_directory ${CMAKE_INSTALL_DATADIR}/cmake/terrace)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/terrace-config.cmake.in
                              ${PROJECT_BINARY_DIR}/terrace-config.cmake INSTALL_DESTINATION ${package_directory})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/terrace-config-version.cmake COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)

install(TARGETS terrace EXPORT terrace-targets FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT terrace-targets NAMESPACE terrace:: DESTINATION ${package_directory})
install(FILES ${PROJECT_BINARY_DIR}/terrace-config.cmake ${PROJECT_BINARY_DIR}/terrace-config-version.cmake
              ${PROJECT_SOURCE_DIR}/cmake/terrace-dependencies.cmake
              ${PROJECT_SOURCE_DIR}/cmake/terrace-prebuilt.cmake DESTINATION ${package_directory})
