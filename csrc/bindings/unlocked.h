// The interpreter's lock, given up while kernels run, and daemon threads that want it back after the interpreter's end.
//
// Python up to 3.13 ends such a thread where it asks for the lock, by unwinding its stack (pthread_exit). That must not
// reach the frames of this module: they would drop references without the lock, and the unwinder linked into the module is
// not the one that walks, which ends the process. So the thread waits for the end of the process where it is, as it does
// by itself from Python 3.14 on.
#pragma once

#include <Python.h>

namespace tbptt::python {

// PyEval_RestoreThread that never unwinds.
void restore_thread(PyThreadState* state);

// work(context), for calls that may give up the lock for a while; no frame of `work` may need unwinding.
PyObject* stay_in(PyObject* (*work)(void* context), void* context);

class Unlocked {
   public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    ~Unlocked() { restore_thread(state_); }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

   private:
    PyThreadState* state_;
};

}  // namespace tbptt::python
