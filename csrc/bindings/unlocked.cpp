// Compiled without exceptions: POSIX's cleanup handlers are then a list that the thread's end looks into before it enters a
// frame, and no destructors, which would be part of the unwinding.
#include "unlocked.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#if defined(__EXCEPTIONS)
#error "csrc/bindings/unlocked.cpp must be compiled with -fno-exceptions"
#endif
#endif

namespace tbptt::python {

#if defined(__unix__) || defined(__APPLE__)

namespace {

void stay(void*) {
    for (;;) pause();
}

}  // namespace

void restore_thread(PyThreadState* state) {
    pthread_cleanup_push(&stay, nullptr);
    PyEval_RestoreThread(state);
    pthread_cleanup_pop(0);
}

PyObject* stay_in(PyObject* (*work)(void* context), void* context) {
    PyObject* result;
    pthread_cleanup_push(&stay, nullptr);
    result = work(context);
    pthread_cleanup_pop(0);
    return result;
}

#else

void restore_thread(PyThreadState* state) { PyEval_RestoreThread(state); }

PyObject* stay_in(PyObject* (*work)(void* context), void* context) { return work(context); }

#endif

}  // namespace tbptt::python
