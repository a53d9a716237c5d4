# The functions that JAX calls through XLA's typed foreign function interface. XLA accepts a module that was built with headers
# of its own version or of an older one, so those of the first stable version are taken: the module then works beside jaxlib
# 0.6.1 and every later one. They are headers alone, of C and C++17: nothing is linked, and the module loads without jaxlib.
#
# TBPTT_FAST_JAX_INCLUDE names a folder that has xla/ffi/api/ffi.h. Where it is empty, pip fetches the jaxlib that has them
# into the build folder and its headers are unpacked: whatever interpreter and system the module is for, any wheel has them.
if(NOT TBPTT_FAST_JAX)
  return()
endif()
set(TBPTT_FAST_JAX_INCLUDE "" CACHE PATH "Where xla/ffi/api/ffi.h is, of version 0.1; fetched by pip where empty")
set(jaxlib_with_headers 0.6.1)

if(NOT TBPTT_FAST_JAX_INCLUDE)
  set(fetched ${CMAKE_BINARY_DIR}/jaxlib)
  if(NOT EXISTS ${fetched}/jaxlib/include/xla/ffi/api/ffi.h)
    # -I: the environment that pip makes for a build hides pip itself, by a variable that this ignores
    execute_process(
      COMMAND ${Python_EXECUTABLE} -I -m pip download --quiet --disable-pip-version-check --no-deps --dest ${fetched}
        --only-binary :all: --python-version 3.12 --implementation cp --abi cp312 --platform manylinux2014_x86_64
        jaxlib==${jaxlib_with_headers}
      RESULT_VARIABLE failed)
    file(GLOB wheel ${fetched}/jaxlib-*.whl)
    if(failed OR NOT wheel)
      message(FATAL_ERROR "TBPTT_FAST_JAX needs the headers of XLA's foreign function interface, and pip could not fetch "
        "jaxlib ${jaxlib_with_headers}: give their folder as TBPTT_FAST_JAX_INCLUDE (that of jax.ffi.include_dir())")
    endif()
    execute_process(COMMAND ${CMAKE_COMMAND} -E tar xf ${wheel} jaxlib/include/xla/ffi/api WORKING_DIRECTORY ${fetched})
    file(REMOVE ${wheel})
  endif()
  set(headers ${fetched}/jaxlib/include)
else()
  set(headers ${TBPTT_FAST_JAX_INCLUDE})
endif()

file(STRINGS ${headers}/xla/ffi/api/c_api.h minor REGEX "define XLA_FFI_API_MINOR ")
string(REGEX MATCH "[0-9]+$" minor "${minor}")
if(NOT minor EQUAL 1)
  message(WARNING "XLA's headers have version 0.${minor}: older versions of jaxlib than theirs will refuse the module")
endif()
message(STATUS "JAX: XLA's foreign function interface 0.${minor}")

target_sources(_native PRIVATE csrc/bindings/jax/targets.cpp)
target_include_directories(_native SYSTEM PRIVATE ${headers})
set_source_files_properties(csrc/bindings/module.cpp PROPERTIES COMPILE_DEFINITIONS TBPTT_FAST_JAX)
