# SPDX-License-Identifier: GPL-2.0-or-later
# Unicorn, built from the source distribution of its Python package: headers, configuration and library then
# come from one pinned, hash-checked archive. -DCOREMESH_UNICORN_SDIST=/path/unicorn-2.1.4.tar.gz (or the
# environment variable of that name) takes an archive that is already here, checked in the same way.

if(CMAKE_SCRIPT_MODE_FILE)
  # Run by the build below, after the engine's configuration: cmake -DBUILD=FOLDER -P unicorn.cmake
  set(configuration "")
  if(EXISTS "${BUILD}/config-host.h")
    file(STRINGS "${BUILD}/config-host.h" configuration REGEX "CONFIG_POSIX")
  endif()
  if(NOT configuration)
    message(FATAL_ERROR "The engine's configure script failed: the reason is in its words above, and in "
                        "${BUILD}/config.log. Mend that, remove ${BUILD} and build again.")
  endif()
  return()
endif()

set(UNICORN_VERSION 2.1.4)
set(UNICORN_SHA256 00567a70e323f749b419cd86bee4f9115beab7ebba32194581c090cbb7c59cff)
set(UNICORN_TARGETS x86)

set(COREMESH_UNICORN_SDIST "$ENV{COREMESH_UNICORN_SDIST}" CACHE FILEPATH "unicorn-${UNICORN_VERSION}.tar.gz")
set(archive "${COREMESH_UNICORN_SDIST}")
if(NOT archive)
  set(archive "${CMAKE_BINARY_DIR}/unicorn-${UNICORN_VERSION}.tar.gz")
  if(NOT EXISTS "${archive}")
    message(STATUS "Fetching the source of unicorn ${UNICORN_VERSION}")
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -m pip download --quiet --no-deps --no-binary unicorn
              --dest "${CMAKE_BINARY_DIR}" "unicorn==${UNICORN_VERSION}"
      RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR "unicorn ${UNICORN_VERSION} could not be fetched with pip. Without a network, set "
                          "COREMESH_UNICORN_SDIST to its source archive.")
    endif()
  endif()
endif()
file(SHA256 "${archive}" found)
if(NOT found STREQUAL UNICORN_SHA256)
  message(FATAL_ERROR "${archive} has SHA-256 ${found}, not ${UNICORN_SHA256}: remove it, or give the archive "
                      "of unicorn ${UNICORN_VERSION}")
endif()

set(UNICORN_ROOT "${CMAKE_BINARY_DIR}/unicorn-${UNICORN_VERSION}")
set(UNICORN_SOURCE "${UNICORN_ROOT}/src")
if(NOT EXISTS "${UNICORN_SOURCE}/CMakeLists.txt")
  file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${CMAKE_BINARY_DIR}")
endif()

if(CMAKE_BINARY_DIR MATCHES "[ \t:]")
  message(FATAL_ERROR "The engine cannot be built in ${CMAKE_BINARY_DIR}: its configure script takes no path with "
                      "spaces or colons. Move the source tree to a path without.")
endif()

# A build of its own: its options, compiler flags and tests are not ours. Its configure script stops where there is
# no pkg-config, although it never asks it for anything. Its CMake file does not notice, goes on with an empty
# configuration, and the compiler then reports missing declarations: so name a program that knows no package, and
# look at the result before anything is compiled.
include(ExternalProject)
set(UNICORN_BUILD "${CMAKE_BINARY_DIR}/unicorn-build")
set(UNICORN_LIBRARIES "${UNICORN_BUILD}/libunicorn.a")
if(CMAKE_GENERATOR MATCHES "Make")
  set(build_unicorn "$(MAKE)")
else()
  set(build_unicorn "${CMAKE_COMMAND}" --build <BINARY_DIR>)
endif()
ExternalProject_Add(
  unicorn_library
  SOURCE_DIR "${UNICORN_SOURCE}"
  BINARY_DIR "${UNICORN_BUILD}"
  CONFIGURE_COMMAND
    "${CMAKE_COMMAND}" -E env PKG_CONFIG=false
    "${CMAKE_COMMAND}" -S <SOURCE_DIR> -B <BINARY_DIR> -G ${CMAKE_GENERATOR}
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON
    -DCMAKE_C_COMPILER=${CMAKE_C_COMPILER} -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
    -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}
    -DUNICORN_ARCH=${UNICORN_TARGETS} -DBUILD_SHARED_LIBS=OFF -DUNICORN_BUILD_TESTS=OFF -DUNICORN_INSTALL=OFF
    -DUNICORN_FUZZ=OFF
  COMMAND "${CMAKE_COMMAND}" -DBUILD=<BINARY_DIR> -P "${CMAKE_CURRENT_LIST_FILE}"
  BUILD_COMMAND ${build_unicorn}
  INSTALL_COMMAND ""
  BUILD_BYPRODUCTS "${UNICORN_BUILD}/libunicorn.a" "${UNICORN_BUILD}/libunicorn-common.a"
                   "${UNICORN_BUILD}/libx86_64-softmmu.a")

set(UNICORN_INCLUDES
    "${UNICORN_BUILD}" "${UNICORN_SOURCE}/glib_compat"
    "${UNICORN_SOURCE}/qemu" "${UNICORN_SOURCE}/qemu/include" "${UNICORN_SOURCE}/include"
    "${UNICORN_SOURCE}/qemu/tcg" "${UNICORN_SOURCE}/qemu/tcg/i386")
set(UNICORN_INCLUDES_x86_64 "${UNICORN_BUILD}/x86_64-softmmu" "${UNICORN_SOURCE}/qemu/target/i386")
