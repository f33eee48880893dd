// A CUDA driver without a GPU, for what asks it through Numba and cuda.bindings: one device, one stream.
//
// Memory is the host's, poisoned when it is taken and when it is freed. The stream is a queue that is worked off only when somebody
// waits for it, so that who changes pinned memory too early, or reads too early, is found out. Launches are handed to a function
// of the process that loaded this library. While a stream is captured, nothing but launches is allowed. What no program may do
// is counted and named on stderr.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef unsigned long long Pointer;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_FAILED = 719, NOT_CAPTURED = 900 };

typedef long (*OnLaunch)(const char *name, const unsigned *grid, const unsigned *block, void **parameters);
typedef void (*OnExecute)(long launch);

static OnLaunch on_launch;
static OnExecute on_execute;
static long faults;
static double now; // seconds of the device's clock

void fake_callbacks(OnLaunch launch, OnExecute execute) {
    on_launch = launch;
    on_execute = execute;
}

long fake_faults(void) { return faults; }

static Result fault(const char *what, Result result) {
    faults++;
    fprintf(stderr, "fake driver: %s\n", what);
    return result;
}

// ---- the stream ----

typedef struct {
    double when;
    int recorded;
} Event;

typedef struct {
    long *launches;
    long count;
} Graph;

typedef struct {
    enum { COPY, LAUNCH, EVENT, GRAPH } kind;
    Pointer target, source;
    size_t size;
    long launch;
    Event *event;
    Graph *graph;
} Work;

static Work *queue;
static long queued, room;
static Graph *capture; // what is being captured, or NULL

static Work *add(int kind) {
    if (queued == room) {
        room = 2 * room + 64;
        queue = realloc(queue, room * sizeof(Work));
    }
    memset(&queue[queued], 0, sizeof(Work));
    queue[queued].kind = kind;
    return &queue[queued++];
}

static void carry_out(const Work *work) {
    switch (work->kind) {
    case COPY:
        memmove((void *)work->target, (void *)work->source, work->size);
        break;
    case LAUNCH:
        on_execute(work->launch);
        break;
    case EVENT:
        work->event->when = now;
        break;
    case GRAPH:
        for (long i = 0; i < work->graph->count; i++)
            on_execute(work->graph->launches[i]);
        break;
    }
    now += 1e-5;
}

static void work_off(void) {
    static int inside;
    if (inside)
        return;
    inside = 1;
    for (long i = 0; i < queued; i++)
        carry_out(&queue[i]);
    queued = 0;
    inside = 0;
}

static Result wait_for_all(void) {
    if (capture)
        return fault("somebody waits for a stream that is being captured", NOT_CAPTURED);
    work_off();
    return SUCCESS;
}

// ---- memory ----

typedef struct {
    Pointer at;
    size_t size;
    int pinned;
} Block;

#define BLOCKS 65536
static const size_t TOTAL = (size_t)80 << 30;
static Block blocks[BLOCKS];
static int block_count;
static size_t used;

static Block *block_of(Pointer p) {
    for (int i = 0; i < block_count; i++)
        if (blocks[i].at && p >= blocks[i].at && p < blocks[i].at + blocks[i].size)
            return &blocks[i];
    return NULL;
}

static int is_inside(Pointer p, size_t size, int pinned) {
    Block *block = block_of(p);
    return block && block->pinned == pinned && p + size <= block->at + block->size;
}

static Result take(Pointer *p, size_t size, int pinned) {
    void *memory;
    int i = 0;
    while (i < block_count && blocks[i].at)
        i++;
    if (!size || i == BLOCKS || posix_memalign(&memory, 256, size))
        return OUT_OF_MEMORY;
    memset(memory, 0xA5, size);
    block_count = i == block_count ? i + 1 : block_count;
    blocks[i] = (Block){(Pointer)memory, size, pinned};
    used += pinned ? 0 : size;
    *p = (Pointer)memory;
    return SUCCESS;
}

static Result give(Pointer p) {
    work_off();
    Block *block = block_of(p);
    if (!block || block->at != p)
        return fault("memory is freed that was not taken", INVALID_VALUE);
    used -= block->pinned ? 0 : block->size;
    memset((void *)p, 0xEE, block->size);
    free((void *)p);
    block->at = 0;
    return SUCCESS;
}

static Result copy(Pointer target, Pointer source, size_t size) {
    Work *work = add(COPY);
    work->target = target;
    work->source = source;
    work->size = size;
    return SUCCESS;
}

static Result check(Pointer p, size_t size) {
    if (capture)
        return fault("a copy while a stream is being captured", NOT_CAPTURED);
    return is_inside(p, size, 0) ? SUCCESS : fault("a copy beyond the memory that was taken", INVALID_VALUE);
}

Result cuMemAlloc_v2(Pointer *p, size_t size) {
    if (used + size > TOTAL)
        return OUT_OF_MEMORY;
    return capture ? fault("memory is taken while a stream is being captured", NOT_CAPTURED) : take(p, size, 0);
}
Result cuMemFree_v2(Pointer p) { return give(p); }
Result cuMemHostAlloc(void **p, size_t size, unsigned flags) { return take((Pointer *)p, size, 1); }
Result cuMemFreeHost(void *p) { return give((Pointer)p); }
Result cuMemGetInfo_v2(size_t *left, size_t *total) {
    *left = TOTAL - used;
    *total = TOTAL;
    return SUCCESS;
}
Result cuMemcpyHtoDAsync_v2(Pointer target, const void *source, size_t size, void *stream) {
    Result result = check(target, size);
    if (result || is_inside((Pointer)source, size, 1))
        return result ? result : copy(target, (Pointer)source, size);
    work_off(); // memory that is not pinned is taken at once
    memcpy((void *)target, source, size);
    return SUCCESS;
}
Result cuMemcpyDtoHAsync_v2(void *target, Pointer source, size_t size, void *stream) {
    Result result = check(source, size);
    return result ? result : copy((Pointer)target, source, size);
}
Result cuMemcpyDtoDAsync_v2(Pointer target, Pointer source, size_t size, void *stream) {
    Result result = check(target, size);
    result = result ? result : check(source, size);
    return result ? result : copy(target, source, size);
}
Result cuMemsetD8Async(Pointer target, unsigned char value, size_t size, void *stream) {
    Result result = check(target, size);
    if (result)
        return result;
    work_off();
    memset((void *)target, value, size);
    return SUCCESS;
}
Result cuMemcpyHtoD_v2(Pointer target, const void *source, size_t size) {
    Result result = cuMemcpyHtoDAsync_v2(target, source, size, NULL);
    return result ? result : wait_for_all();
}
Result cuMemcpyDtoH_v2(void *target, Pointer source, size_t size) {
    Result result = cuMemcpyDtoHAsync_v2(target, source, size, NULL);
    return result ? result : wait_for_all();
}
Result cuMemcpyDtoD_v2(Pointer target, Pointer source, size_t size) {
    return cuMemcpyDtoDAsync_v2(target, source, size, NULL);
}
Result cuPointerGetAttribute(void *value, int attribute, Pointer p) {
    Block *block = block_of(p);
    if (!block || attribute != 2) // CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        return INVALID_VALUE;
    *(int *)value = block->pinned ? 1 : 2;
    return SUCCESS;
}

// ---- device and context ----

static void *const CONTEXT = (void *)0x1234;
static void *contexts[64];
static int depth;

Result cuInit(unsigned flags) { return SUCCESS; }
Result cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int number) { return *device = number, SUCCESS; }
Result cuDeviceGetName(char *name, int size, int device) { return snprintf(name, size, "Fake GPU"), SUCCESS; }
Result cuDeviceGetUuid_v2(char *id, int device) { return memset(id, 7, 16), SUCCESS; }
Result cuDeviceTotalMem_v2(size_t *size, int device) { return *size = TOTAL, SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    static const int known[][2] = {{1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535},
                                   {8, 49152}, {10, 32}, {16, 132}, {75, 9}, {76, 0}}; // sizes, multiprocessors, sm_90
    *value = 1;
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == attribute)
            *value = known[i][1];
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) { return *context = CONTEXT, SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, SUCCESS; }
Result cuCtxGetCurrent(void **context) { return *context = depth ? contexts[depth - 1] : NULL, SUCCESS; }
Result cuCtxSetCurrent(void *context) {
    depth += depth == 0;
    contexts[depth - 1] = context;
    return SUCCESS;
}
Result cuCtxPushCurrent_v2(void *context) { return contexts[depth++] = context, SUCCESS; }
Result cuCtxPopCurrent_v2(void **context) {
    void *top = depth ? contexts[--depth] : NULL;
    if (context)
        *context = top;
    return SUCCESS;
}
Result cuCtxGetDevice(int *device) { return *device = 0, SUCCESS; }
Result cuCtxSynchronize(void) { return wait_for_all(); }

// ---- streams, events, graphs ----

Result cuStreamCreate(void **stream, unsigned flags) { return *stream = malloc(8), SUCCESS; }
Result cuStreamDestroy_v2(void *stream) { return SUCCESS; }
Result cuStreamSynchronize(void *stream) { return wait_for_all(); }
Result cuStreamGetCtx(void *stream, void **context) { return *context = CONTEXT, SUCCESS; }
Result cuStreamGetDevice(void *stream, int *device) { return *device = 0, SUCCESS; }
Result cuStreamIsCapturing(void *stream, int *status) { return *status = capture != NULL, SUCCESS; }
Result cuStreamBeginCapture_v2(void *stream, int mode) {
    if (capture || !stream)
        return fault("a capture within a capture, or of the default stream", NOT_CAPTURED);
    capture = calloc(1, sizeof(Graph));
    return SUCCESS;
}
Result cuStreamEndCapture(void *stream, void **graph) {
    *graph = capture;
    capture = NULL;
    return *graph ? SUCCESS : INVALID_VALUE;
}
Result cuGraphInstantiateWithFlags(void **executable, Graph *graph, unsigned long long flags) {
    Graph *made = malloc(sizeof(Graph));
    *made = *graph;
    *executable = made;
    return SUCCESS;
}
Result cuGraphDestroy(void *graph) { return SUCCESS; }
Result cuGraphExecDestroy(void *executable) { return work_off(), SUCCESS; }
Result cuGraphLaunch(Graph *executable, void *stream) {
    add(GRAPH)->graph = executable;
    return capture ? fault("a graph is launched while a stream is being captured", NOT_CAPTURED) : SUCCESS;
}
Result cuEventCreate(void **event, unsigned flags) { return *event = calloc(1, sizeof(Event)), SUCCESS; }
Result cuEventDestroy_v2(void *event) { return work_off(), SUCCESS; }
Result cuEventRecord(Event *event, void *stream) {
    if (capture)
        return fault("an event in a stream that is being captured", NOT_CAPTURED);
    event->recorded = 1;
    add(EVENT)->event = event;
    return SUCCESS;
}
Result cuEventSynchronize(void *event) { return wait_for_all(); }
Result cuEventElapsedTime_v2(float *milliseconds, Event *first, Event *last) {
    if (!first->recorded || !last->recorded || queued)
        return fault("the time between events that have not happened yet", NOT_READY);
    *milliseconds = 1000 * (last->when - first->when);
    return SUCCESS;
}

// ---- code ----

Result cuModuleLoadData(void **module, const void *code) {
    *module = malloc(8);
    return memcmp(code, "\177ELF", 4) ? fault("code that is no ELF file", INVALID_VALUE) : SUCCESS;
}
Result cuModuleGetFunction(void **function, void *module, const char *name) { return *function = strdup(name), SUCCESS; }
Result cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
    return *blocks = 4, SUCCESS;
}

Result cuLibraryLoadData(void **library, const void *code, void *a, void *b, unsigned m, void *c, void *d, unsigned n) {
    *library = malloc(8);
    return memcmp(code, "\177ELF", 4) ? fault("code that is no ELF file", INVALID_VALUE) : SUCCESS;
}
Result cuLibraryUnload(void *library) { return SUCCESS; }
Result cuLibraryGetKernel(void **kernel, void *library, const char *name) { return *kernel = strdup(name), SUCCESS; }
Result cuKernelGetFunction(void **function, void *kernel) { return *function = kernel, SUCCESS; }
Result cuKernelGetLibrary(void **library, void *kernel) { return *library = malloc(8), SUCCESS; }
Result cuFuncGetAttribute(int *value, int attribute, void *function) { return *value = attribute ? 0 : 1024, SUCCESS; }
Result cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) {
    return cuFuncGetAttribute(value, attribute, kernel);
}

typedef struct {
    unsigned grid[3], block[3], shared;
    void *stream;
} Launch; // the beginning of CUlaunchConfig

Result cuLaunchKernelEx(const Launch *launch, void *function, void **parameters, void **extra) {
    const unsigned *grid = launch->grid;
    if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535 || !launch->stream)
        return fault("a grid that no GPU has, or a launch on the default stream", INVALID_VALUE);
    long number = on_launch(function, grid, launch->block, parameters);
    if (number < 0)
        return fault("a launch was refused", LAUNCH_FAILED);
    if (capture) {
        capture->launches = realloc(capture->launches, (capture->count + 1) * sizeof(long));
        capture->launches[capture->count++] = number;
    } else {
        add(LAUNCH)->launch = number;
    }
    return SUCCESS;
}
Result cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *stream, void **parameters, void **extra) {
    const Launch launch = {{x, y, z}, {bx, by, bz}, shared, stream};
    return cuLaunchKernelEx(&launch, function, parameters, extra);
}

Result cuGetErrorName(Result result, const char **text) { return *text = "CUDA_ERROR", SUCCESS; }
Result cuGetErrorString(Result result, const char **text) { return *text = "an error of the fake driver", SUCCESS; }

Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    static void *self;
    char variant[256];
    self = self ? self : dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    *function = NULL;
    for (int i = 0; i < 3 && !*function; i++) {
        snprintf(variant, sizeof variant, "%s%s", name, (const char *[]){"_v2", "", "WithFlags"}[i]);
        *function = dlsym(self, variant);
    }
    if (status)
        *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
