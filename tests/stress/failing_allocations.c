// Allocations that fail when asked to: loaded before the C library's own, by LD_PRELOAD. Only those count whose caller lies
// in the watched module, which has the C++ runtime in it.
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

static char *first, *last;              // the module's code
static atomic_long calls, from, until;  // those numbered from ... until - 1 fail

void watch(char* begin, char* end) {
    first = begin;
    last = end;
}

// From now on counting starts at zero.
void fail(long begin, long end) {
    atomic_store(&from, begin);
    atomic_store(&until, end);
    atomic_store(&calls, 0);
}

long counted(void) { return atomic_load(&calls); }

static int fails(void* caller) {
    if ((char*)caller < first || (char*)caller >= last) return 0;
    const long number = atomic_fetch_add(&calls, 1);
    return number >= atomic_load(&from) && number < atomic_load(&until);
}

#define UNLESS_IT_FAILS(otherwise)                 \
    if (fails(__builtin_return_address(0))) {      \
        errno = ENOMEM;                            \
        return NULL;                               \
    }                                              \
    return otherwise

void* malloc(size_t size) { UNLESS_IT_FAILS(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) { UNLESS_IT_FAILS(__libc_calloc(count, size)); }
void* realloc(void* block, size_t size) { UNLESS_IT_FAILS(__libc_realloc(block, size)); }
void* aligned_alloc(size_t alignment, size_t size) { UNLESS_IT_FAILS(__libc_memalign(alignment, size)); }
void* memalign(size_t alignment, size_t size) { UNLESS_IT_FAILS(__libc_memalign(alignment, size)); }

int posix_memalign(void** block, size_t alignment, size_t size) {
    if (fails(__builtin_return_address(0))) return ENOMEM;
    *block = __libc_memalign(alignment, size);
    return *block ? 0 : ENOMEM;
}
