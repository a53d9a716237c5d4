# The functions that JAX calls through XLA's typed foreign function interface. XLA accepts a module that was built with headers
# of its own version or of an older one, so those of the first stable version are taken: the module then works beside jaxlib
# 0.6.1 and every later one. It is a header of C: nothing is linked, and the module loads without jaxlib.
#
# TBPTT_FAST_JAX_INCLUDE names a folder that has xla/ffi/api/c_api.h. Where it is empty, pip fetches the jaxlib that has them
# into the build folder and its headers are unpacked: whatever interpreter and system the module is for, any wheel has them.
if(NOT TBPTT_FAST_JAX)
  return()
endif()
set(TBPTT_FAST_JAX_INCLUDE "" CACHE PATH "Where xla/ffi/api/c_api.h is, of version 0.1; fetched by pip where empty")
set(jaxlib_with_headers 0.6.1)

if(NOT TBPTT_FAST_JAX_INCLUDE)
  set(fetched ${CMAKE_BINARY_DIR}/jaxlib)
  if(NOT EXISTS ${fetched}/jaxlib/include/xla/ffi/api/c_api.h)
    # -I: the environment that pip makes for a build hides pip itself, by a variable that this ignores. Others have none.
    find_program(TBPTT_FAST_PIP NAMES pip3 pip DOC "Fetches XLA's headers where the interpreter has no pip")
    mark_as_advanced(TBPTT_FAST_PIP)
    set(arguments download --quiet --disable-pip-version-check --no-deps --dest ${fetched} --only-binary :all:
      --python-version 3.12 --implementation cp --abi cp312 --platform manylinux2014_x86_64
      jaxlib==${jaxlib_with_headers})
    execute_process(COMMAND ${Python_EXECUTABLE} -I -m pip ${arguments} RESULT_VARIABLE failed ERROR_VARIABLE reason)
    if(failed AND TBPTT_FAST_PIP)
      execute_process(COMMAND ${TBPTT_FAST_PIP} ${arguments} RESULT_VARIABLE failed ERROR_VARIABLE reason)
    endif()
    file(GLOB wheel ${fetched}/jaxlib-*.whl)
    if(failed OR NOT wheel)
      message(FATAL_ERROR "TBPTT_FAST_JAX needs the headers of XLA's foreign function interface, and pip could not fetch "
        "jaxlib ${jaxlib_with_headers}: give their folder as TBPTT_FAST_JAX_INCLUDE (that of jax.ffi.include_dir()).\n${reason}")
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

# The functions of a module, and the source that registers them.
function(tbptt_jax_functions module functions registration)
  target_sources(${module} PRIVATE ${functions})
  target_include_directories(${module} SYSTEM PRIVATE ${headers})
  set_source_files_properties(${functions} PROPERTIES COMPILE_OPTIONS -Os)  # they only call kernels
  set_source_files_properties(${registration} PROPERTIES COMPILE_DEFINITIONS TBPTT_FAST_JAX)
endfunction()
tbptt_jax_functions(_native csrc/bindings/jax/targets.cpp csrc/bindings/module.cpp)
