// What the engine calls of libcuda, without a GPU: device memory is host memory, streams run at
// once, and a "cubin" is the path of a kernel that emulator.h has compiled for the host ("nothing"
// for one that does nothing). Captured work is kept and replayed. Calls are counted for tests.
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

using Emulate = int (*)(void**, unsigned*, int, int, int);
struct Node { std::function<int(void**)> run; std::vector<std::vector<char>> values; std::vector<void*> pointers; void** arguments; };
using Work = std::vector<Node>;
struct Stream { Work* captured = nullptr; };
struct Config { unsigned grid[3], block[3], shared; Stream* stream; struct Attribute { int id, pad; unsigned value[16]; }* attributes; unsigned count; };
struct Event { double milliseconds; };

static std::mutex lock;
static std::map<std::string, long> counts;
static std::map<void*, size_t> allocated;
static std::map<void*, std::string> names;
static std::map<void*, int (*)(unsigned*)> sizes;  // of a kernel's arguments
static std::vector<std::string> launched;
static std::vector<std::pair<size_t, size_t>> gaps;
static bool sanitize;
static thread_local bool current;  // whether the thread has a context
#define NEEDS_CONTEXT if (!current) return 201
static size_t in_use;

static void count(const char* what) { counts[what]++; }
static int put(Stream* s, std::function<int()> work) {
    if (!s || !s->captured) return work();
    s->captured->push_back({[=](void**) { return work(); }, {}, {}, nullptr});
    return 0;
}

extern "C" {
long emulated_count(const char* what) { std::lock_guard<std::mutex> g(lock); return counts[what]; }
size_t emulated_in_use() { return in_use; }
// Names of the kernels that have run since the last call; valid until the next one.
const char* emulated_launched() {
    static std::string text;
    std::lock_guard<std::mutex> g(lock);
    text.clear();
    for (auto& name : launched) text += name + " ";
    launched.clear();
    return text.c_str();
}
void emulated_sanitize(bool on) { sanitize = on; }
// Parts of the next allocation that nothing may touch.
void emulated_gap(size_t start, size_t size) { gaps.push_back({start, size}); }

int cuInit(unsigned) { return 0; }
int cuGetErrorString(int status, const char** text) { *text = status == 900 ? "not while capturing" : status == 201 ? "invalid device context" : "failed"; return 0; }
int cuDeviceGetCount(int* n) { *n = 1; return 0; }
int cuDeviceGet(int* d, int) { *d = 0; return 0; }
int cuDeviceGetName(char* name, int, int) { strcpy(name, "emulated H100"); return 0; }
int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
int cuDeviceGetAttribute(int* v, int which, int) {
    *v = which == 16 ? 132 : which == 38 ? 50 << 20 : which == 75 ? 9 : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void** c, int) { *c = (void*)1; return 0; }
int cuCtxSetCurrent(void* c) { current = c; return 0; }

int cuMemAlloc_v2(void** p, size_t n) { NEEDS_CONTEXT;
    std::lock_guard<std::mutex> g(lock);
    count("allocate");
    *p = aligned_alloc(256, (n + 511) / 256 * 256);
    memset(*p, 0xcd, n);
    allocated[*p] = n;
    in_use += n;
    auto poison = (void (*)(void*, size_t))dlsym(RTLD_DEFAULT, "__asan_poison_memory_region");
    for (auto& [start, size] : gaps)
        if (poison) poison((char*)*p + start, size);
    gaps.clear();
    return *p ? 0 : 2;
}
int cuMemFree_v2(void* p) { NEEDS_CONTEXT;
    std::lock_guard<std::mutex> g(lock);
    if (!allocated.count(p)) return 1;
    size_t size = allocated[p];
    in_use -= size;
    allocated.erase(p);
    auto poison = (void (*)(void*, size_t))dlsym(RTLD_DEFAULT, "__asan_poison_memory_region");
    if (!sanitize || !poison) free(p);
    else poison(p, size);  // what is used later would be another's memory
    return 0;
}
int cuMemGetInfo_v2(size_t* unused, size_t* all) { *all = size_t(80) << 30; *unused = *all - in_use; return 0; }
int cuMemHostAlloc(void** p, size_t n, unsigned) { NEEDS_CONTEXT; count("pin"); *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096); return 0; }
int cuMemFreeHost(void* p) { free(p); return 0; }

static int copy(void* to, const void* from, size_t n, Stream* s) {
    count("copy");
    return put(s, [=] { memcpy(to, from, n); return 0; });
}
int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t n, Stream* s) { NEEDS_CONTEXT; count("to_device"); return copy(to, from, n, s); }
int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t n, Stream* s) { NEEDS_CONTEXT; count("to_host"); return copy(to, from, n, s); }
int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t n, Stream* s) { NEEDS_CONTEXT; return copy(to, from, n, s); }
int cuMemsetD8Async(void* to, unsigned char v, size_t n, Stream* s) { NEEDS_CONTEXT; return put(s, [=] { memset(to, v, n); return 0; }); }

int cuStreamCreate(Stream** s, unsigned) { NEEDS_CONTEXT; *s = new Stream; return 0; }
int cuStreamDestroy_v2(Stream* s) { delete s; return 0; }
int cuStreamSynchronize(Stream* s) { count("synchronize"); return s && s->captured ? 900 : 0; }
int cuStreamQuery(Stream*) { count("query"); return 0; }
int cuStreamWaitEvent(Stream*, Event*, unsigned) { count("wait"); return 0; }
int cuEventCreate(Event** e, unsigned) { NEEDS_CONTEXT; *e = new Event; return 0; }
int cuEventDestroy_v2(Event* e) { delete e; return 0; }
int cuEventRecord(Event* e, Stream*) { NEEDS_CONTEXT;
    using namespace std::chrono;
    count("record");
    e->milliseconds = duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
    return 0;
}
int cuEventRecordWithFlags(Event* e, Stream* s, unsigned) { return put(s, [=] { return cuEventRecord(e, s); }); }
int cuEventElapsedTime(float* ms, Event* a, Event* b) { *ms = float(b->milliseconds - a->milliseconds); return 0; }

int cuStreamBeginCapture_v2(Stream* s, int) { s->captured = new Work; return 0; }
int cuStreamEndCapture(Stream* s, Work** graph) { *graph = s->captured; s->captured = nullptr; return 0; }
int cuGraphGetNodes(Work* graph, void*, size_t* n) { *n = graph->size(); return 0; }
int cuGraphInstantiateWithFlags(Work** executable, Work* graph, unsigned long long) { count("instantiate"); *executable = new Work(*graph); return 0; }
int cuGraphDestroy(Work* graph) { delete graph; return 0; }
int cuGraphExecDestroy(Work* graph) { delete graph; return 0; }
int cuGraphLaunch(Work* graph, Stream*) { NEEDS_CONTEXT;
    count("graph");
    for (auto& node : *graph)
        if (int status = node.run(node.arguments)) return status;
    return 0;
}
// A node is its number, from one.
int cuStreamGetCaptureInfo_v3(Stream* s, int* status, uint64_t* id, Work** graph, void*** nodes, void** edges, size_t* n) {
    static void* last[1];
    last[0] = (void*)s->captured->size();
    *nodes = last;
    *n = 1;
    return 0;
}
struct Parameters { void* function; unsigned grid[3], block[3], shared; void **arguments, **extra, *kernel, *context; };
int cuGraphExecKernelNodeSetParams_v2(Work* executable, void* node, const Parameters* p) {
    count("update");
    Node& changed = (*executable)[(size_t)node - 1];
    std::lock_guard<std::mutex> g(lock);
    if (!sizes.count(p->function)) return 0;  // it does nothing
    unsigned each[64];
    int n = sizes[p->function](each);
    changed.values.clear();
    changed.pointers.clear();
    for (int i = 0; i < n; i++)  // the values are copied, as the driver does
        changed.values.emplace_back((char*)p->arguments[i], (char*)p->arguments[i] + each[i]);
    for (auto& value : changed.values) changed.pointers.push_back(value.data());
    changed.arguments = changed.pointers.data();
    return 0;
}

int cuModuleLoadData(void** module, const char* image) { NEEDS_CONTEXT;
    count("load");
    *module = strcmp(image, "nothing") ? dlopen(image, RTLD_NOW | RTLD_LOCAL) : (void*)1;
    return *module ? 0 : 200;
}
int cuModuleGetFunction(void** f, void* module, const char* name) {
    *f = module == (void*)1 ? module : dlsym(module, "emulate");
    std::lock_guard<std::mutex> g(lock);
    names[*f] = name;
    if (module != (void*)1) sizes[*f] = (int (*)(unsigned*))dlsym(module, "argument_sizes");
    return *f ? 0 : 500;
}
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuLaunchKernelEx(const Config* c, void* f, void** arguments, void**) { NEEDS_CONTEXT;
    count("launch");
    if (f == (void*)1) return put(c->stream, [] { return 0; });
    int cluster = 1;
    for (unsigned i = 0; i < c->count; i++)
        if (c->attributes[i].id == 4) cluster = c->attributes[i].value[2];
    Config at = *c;
    std::function<int(void**)> run = [=](void** given) {
        std::lock_guard<std::mutex> g(lock);
        launched.push_back(names[f]);
        unsigned size[6] = {at.grid[0], at.grid[1], at.grid[2], at.block[0], at.block[1], at.block[2]};
        return ((Emulate)f)(given, size, cluster, at.shared, 0) ? 719 : 0;
    };
    if (!c->stream->captured) return run(arguments);
    c->stream->captured->push_back({run, {}, {}, arguments});
    return 0;
}
// what emulator.h wants to know of a matrix, in place of what the hardware does
int cuTensorMapEncodeTiled(uint64_t* map, int type, unsigned rank, uint64_t at, const uint64_t* sizes,
                           const uint64_t* pitch, const unsigned* box, const unsigned*, int, int, int, int) {
    uint64_t item = type == 0 ? 1 : type == 7 ? 4 : 2;
    uint64_t words[10] = {at, sizes[1], sizes[0], pitch[0] / item, item, box[1], box[0]};
    for (unsigned i = 2; i < rank; i++) words[5 + i] = pitch[i - 1] / item;
    memcpy(map, words, sizeof words);
    return 0;
}
}
