# SPDX-License-Identifier: GPL-2.0-or-later
# xterm.js for the console in a notebook: taken from a Python package that carries it as it was released, so that pip
# fetches it, and checked file by file. -DCOREMESH_XTERM_WHEEL=/path (or the environment variable of that name) takes a
# wheel that is already here. Without it the build goes on: a notebook then shows a console as text.

set(XTERM_PACKAGE tinyterminal==0.1.0)
set(XTERM_WHEEL tinyterminal-0.1.0-py3-none-any.whl)
set(XTERM_FILES xterm.js xterm.css addon-fit.js)
# xterm.js 6.0.0, its style sheet, and its addon-fit 0.11.0
set(XTERM_SHA256
    14903579ff54664cd72f8e8699e6961a6272c21863ec1c3b118cdc8af5d4a972
    854a7c0fb70e8b1a083c16797ab827299fb18744f5ad34f227b48337e33293c6
    ba3ea256ce0620a0992a197d6c9baea64823fc93d8da07a9e366ca9943c18527)

set(COREMESH_XTERM_WHEEL "$ENV{COREMESH_XTERM_WHEEL}" CACHE FILEPATH "${XTERM_WHEEL}")
set(wheel "${COREMESH_XTERM_WHEEL}")
if(NOT wheel)
  set(wheel "${CMAKE_BINARY_DIR}/${XTERM_WHEEL}")
  if(NOT EXISTS "${wheel}")
    message(STATUS "Fetching xterm.js in ${XTERM_PACKAGE}")
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -m pip download --quiet --no-deps --only-binary :all: --dest "${CMAKE_BINARY_DIR}"
              "${XTERM_PACKAGE}"
      RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
  endif()
endif()
if(NOT EXISTS "${wheel}")
  message(WARNING "xterm.js could not be fetched with pip: consoles in notebooks will be shown as text. Without a "
                  "network, set COREMESH_XTERM_WHEEL to ${XTERM_WHEEL}.")
  return()
endif()

set(root "${CMAKE_BINARY_DIR}/xterm")
file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${root}")
foreach(name wanted IN ZIP_LISTS XTERM_FILES XTERM_SHA256)
  set(file "${root}/tinyterminal/static/vendor/${name}")
  file(SHA256 "${file}" found)
  if(NOT found STREQUAL wanted)
    message(FATAL_ERROR "${name} in ${wheel} has SHA-256 ${found}, not ${wanted}: remove the wheel, or give another "
                        "copy of ${XTERM_WHEEL}")
  endif()
  install(FILES "${file}" DESTINATION coremesh/cluster/machine/xterm)
endforeach()
