// Runs CUDA kernels on the host: a fibre a thread, so that barriers and warp exchanges work.
// In one order asynchronous copies land at once, in the other as late as their wait allows.
#pragma once
#define HOST_EMULATION
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <utility>
#include <vector>

using std::max;
using std::min;

#define DEVICE inline
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define GLOBAL(name, threads) extern "C" void name
#define GLOBAL_MANY(name, threads, blocks) extern "C" void name
#define DYNAMIC_SHARED(name) unsigned char* name = emu::shared_base()

struct uint2 { uint32_t x, y; } __attribute__((aligned(8)));
struct uint4 { uint32_t x, y, z, w; } __attribute__((aligned(16)));
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
struct dim3 { unsigned x, y, z; };
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

extern "C" void emu_switch(void** save, void* to);
asm(R"(
.globl emu_switch
emu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");

namespace emu {
enum State { READY, SPIN, BLOCK, WARP, WARPGROUP, CLUSTER, DONE };
struct Copy { void* to; const void* from; bool valid; int group; };
struct Fibre {
    void* sp;
    char* stack;
    State state;
    dim3 thread, block;
    int cta, warp, lane, parity, groups;
    std::vector<Copy> copies, stores;
};
struct Slot { char bytes[2][32][64]; };

inline std::vector<Fibre> fibres;
inline std::vector<Slot> slots;
inline std::vector<std::vector<char>> shared;
inline Fibre* current;
inline void* scheduler;
inline bool late;
inline int cluster_size, block_threads;
inline long events;  // what a spinning thread may be waiting for
inline void (*entry)();

inline unsigned char* shared_base() {
    return (unsigned char*)(((uintptr_t)shared[current->cta].data() + 1023) / 1024 * 1024);
}
inline void pause(State why) {
    current->state = why;
    Fibre* self = current;
    emu_switch(&self->sp, scheduler);
}
inline void finish() {
    entry();
    pause(DONE);
    abort();
}
inline void resume(Fibre& f) {
    current = &f;
    threadIdx = f.thread;
    blockIdx = f.block;
    emu_switch(&scheduler, f.sp);
}
// release every group of fibres that has wholly arrived; false if nothing can go on
inline bool release() {
    bool progress = false;
    auto group = [&](size_t from, size_t to, State why) {
        bool all = true, any = false;
        for (size_t i = from; i < to; i++) {
            if (fibres[i].state == why) any = true;
            else if (fibres[i].state != DONE) all = false;
        }
        if (!all || !any) return;
        for (size_t i = from; i < to; i++)
            if (fibres[i].state == why) fibres[i].state = READY;
        progress = true;
    };
    for (size_t c = 0; c < fibres.size(); c += block_threads) {
        group(c, c + block_threads, BLOCK);
        for (size_t w = 0; w < (size_t)block_threads; w += 32)
            group(c + w, c + std::min<size_t>(w + 32, block_threads), WARP);
        for (size_t w = 0; w < (size_t)block_threads; w += 128)
            group(c + w, c + std::min<size_t>(w + 128, block_threads), WARPGROUP);
    }
    group(0, fibres.size(), CLUSTER);
    return progress;
}
// arrivals at barriers on their way through the cluster: late ones come when nothing else goes on
struct Arrival { int cta; void (*land)(void*); void* at; };
inline std::vector<Arrival> flying;
// false if one comes to a block that has ended
inline bool land() {
    std::vector<Arrival> now;
    now.swap(flying);
    for (auto& a : now) {
        bool ended = true;
        for (int t = 0; t < block_threads; t++) ended &= fibres[a.cta * block_threads + t].state == DONE;
        if (ended) { fprintf(stderr, "an arrival at a block that has ended\n"); return false; }
        a.land(a.at);
    }
    return true;
}
inline int run_cluster() {
    flying.clear();
    for (auto& f : fibres) {
        void** top = (void**)(f.stack + (1 << 18) - 64);
        *top = (void*)finish;
        f.sp = top - 6;
        f.state = READY;
        f.parity = f.groups = 0;
        f.copies.clear(), f.stores.clear();
    }
    for (;;) {
        bool running = false, done = true;
        long before = events;
        for (size_t i = 0; i < fibres.size(); i++) {
            Fibre& f = fibres[late ? fibres.size() - 1 - i : i];
            if (f.state == READY) { running = true; resume(f); }
            else if (f.state == SPIN) resume(f);
        }
        for (auto& f : fibres) done &= f.state == DONE;
        if (done) return !land();
        if (!running && events == before && !flying.empty() && !land()) return 1;
        if (!release() && !running && events == before) { fprintf(stderr, "deadlock\n"); return 1; }
    }
}
inline int launch(dim3 grid, dim3 block, int cluster, int bytes, bool deferred, void (*f)()) {
    entry = f;
    late = deferred;
    gridDim = grid;
    blockDim = block;
    cluster_size = cluster;
    block_threads = block.x * block.y * block.z;
    int warps = (block_threads + 31) / 32;
    fibres.assign(cluster * block_threads, Fibre());
    slots.assign(cluster * warps, Slot());
    shared.assign(cluster, std::vector<char>(bytes + 1024, 0x7f));
    for (size_t i = 0; i < fibres.size(); i++) {
        Fibre& f = fibres[i];
        f.stack = (char*)aligned_alloc(64, 1 << 18);
        f.cta = i / block_threads;
        int t = i % block_threads;
        f.thread = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
        f.warp = f.cta * warps + t / 32;
        f.lane = t % 32;
    }
    int status = 0;
    for (unsigned z = 0; z < grid.z && !status; z += cluster)
        for (unsigned y = 0; y < grid.y && !status; y++)
            for (unsigned x = 0; x < grid.x && !status; x++) {
                for (auto& f : fibres) f.block = {x, y, z + f.cta};
                for (auto& s : shared) memset(s.data(), 0x7f, s.size());
                status = run_cluster();
            }
    for (auto& f : fibres) free(f.stack);
    return status;
}
// every lane gives a value; returns what all lanes gave
template <typename T> const T* exchange(const T& mine, T (&all)[32]) {
    static_assert(sizeof(T) <= 64);
    Fibre* self = current;
    Slot& slot = slots[self->warp];
    int p = self->parity ^= 1;
    memcpy(slot.bytes[p][self->lane], &mine, sizeof(T));
    pause(WARP);
    for (int i = 0; i < 32; i++) memcpy(&all[i], slot.bytes[p][i], sizeof(T));
    return all;
}
template <typename... A, size_t... I>
void call(void (*f)(A...), void** args, std::index_sequence<I...>) {
    f(*(std::remove_const_t<A>*)args[I]...);
}
template <typename... A> void call(void (*f)(A...), void** args) {
    call(f, args, std::index_sequence_for<A...>());
}
}  // namespace emu

inline void __syncthreads() { emu::pause(emu::BLOCK); }
inline void __syncwarp(unsigned = ~0u) { emu::pause(emu::WARP); }
inline void __threadfence() {}
template <typename T> T __shfl_sync(unsigned, T v, int from) { T all[32]; return emu::exchange(v, all)[from & 31]; }
template <typename T> T __shfl_xor_sync(unsigned, T v, int mask) { T all[32]; int l = emu::current->lane; return emu::exchange(v, all)[l ^ mask]; }
template <typename T> T __shfl_up_sync(unsigned, T v, int d) { T all[32]; int l = emu::current->lane; emu::exchange(v, all); return l >= d ? all[l - d] : v; }
template <typename T> T __shfl_down_sync(unsigned, T v, int d) { T all[32]; int l = emu::current->lane; emu::exchange(v, all); return l + d < 32 ? all[l + d] : v; }
inline unsigned __ballot_sync(unsigned, bool v) { bool all[32]; emu::exchange(v, all); unsigned r = 0; for (int i = 0; i < 32; i++) r |= (unsigned)all[i] << i; return r; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint64_t)a * b >> 32; }
inline float __uint_as_float(uint32_t v) { float f; memcpy(&f, &v, 4); return f; }
inline float __int_as_float(int v) { return __uint_as_float(v); }
inline uint32_t __float_as_uint(float f) { uint32_t v; memcpy(&v, &f, 4); return v; }
inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
inline long long __double_as_longlong(double f) { long long v; memcpy(&v, &f, 8); return v; }
inline double __longlong_as_double(long long v) { double f; memcpy(&f, &v, 8); return f; }
inline float __expf(float v) { return expf(v); }
inline float exp2_fast(float v) { return exp2f(v); }
inline float reciprocal_fast(float v) { return 1.0f / v; }
inline double sinpi(double v) { return sin(v * 3.14159265358979323846); }
inline double cospi(double v) { return cos(v * 3.14159265358979323846); }
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / sqrt(v); }
template <typename T, typename V> T atomicAdd(T* p, V v) { T old = *p; *p = old + (T)v; return old; }
template <typename T> T atomicMax(T* p, T v) { T old = *p; if (v > old) *p = v; return old; }
template <typename T> T atomicCAS(T* p, T expected, T v) { T old = *p; if (old == expected) *p = v; return old; }

// the instructions of the prelude
struct half_t;
struct bfloat_t;
#define EMULATED_INSTRUCTIONS                                                                     \
    inline float to_float(half_t v) { _Float16 h; memcpy(&h, &v, 2); return (float)h; }           \
    inline float to_float(bfloat_t v) { return __uint_as_float((u32)v.bits << 16); }              \
    template <typename F> half_t cast_half(F f) { _Float16 h = (_Float16)f; half_t v; memcpy(&v, &h, 2); return v; } \
    inline half_t to_half(float f) { return cast_half(f); }                                       \
    inline half_t to_half(double f) { return cast_half(f); }                                      \
    inline bfloat_t to_bfloat(float f) {                                                          \
        u32 b = __float_as_uint(f);                                                               \
        if (f != f) return {0x7fff};                                                              \
        return {(u16)((b + 0x7fff + (b >> 16 & 1)) >> 16)};                                       \
    }                                                                                             \
    inline void wait_predecessor() {}                                                             \
    inline void release_successor() {}                                                            \
    inline void copy_now(const emu::Copy& c) {                                                    \
        if (c.valid) memcpy(c.to, c.from, 16); else memset(c.to, 0, 16);                          \
    }                                                                                             \
    inline void copy_async16(void* to, const void* from, bool valid) {                            \
        if (((uintptr_t)to | (uintptr_t)from) & 15) { fprintf(stderr, "misaligned copy\n"); abort(); } \
        emu::Copy c = {to, from, valid, emu::current->groups};                                    \
        if (emu::late) emu::current->copies.push_back(c); else copy_now(c);                       \
    }                                                                                             \
    inline void copy_commit() { emu::current->groups++; }                                         \
    template <int N> void copy_wait() {                                                           \
        auto& all = emu::current->copies;                                                         \
        std::vector<emu::Copy> left;                                                              \
        for (auto& c : all)                                                                       \
            if (c.group < emu::current->groups - N) copy_now(c); else left.push_back(c);          \
        all.swap(left);                                                                           \
    }                                                                                             \
    inline void load_matrix4(u32 (&r)[4], const void* p) {                                        \
        const void* all[32];                                                                      \
        int l = emu::current->lane;                                                               \
        emu::exchange(p, all);                                                                    \
        for (int i = 0; i < 4; i++) memcpy(&r[i], (const char*)all[i * 8 + l / 4] + l % 4 * 4, 4); \
    }                                                                                             \
    inline void load_matrix4_transposed(u32 (&r)[4], const void* p) {                             \
        const void* all[32];                                                                      \
        int l = emu::current->lane;                                                               \
        emu::exchange(p, all);                                                                    \
        for (int i = 0; i < 4; i++)                                                               \
            for (int e = 0; e < 2; e++)                                                           \
                memcpy((char*)&r[i] + 2 * e, (const char*)all[i * 8 + l % 4 * 2 + e] + l / 4 * 2, 2); \
    }                                                                                             \
    template <typename C, typename E, typename F>                                                 \
    void mma_any(C (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, F value) {                         \
        struct R { u32 a[4], b[2]; } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}}, all[32];        \
        emu::exchange(mine, all);                                                                 \
        int g = emu::current->lane / 4, t = emu::current->lane % 4, n = 4 / sizeof(E);            \
        for (int i = 0; i < 4; i++) {                                                             \
            int high = i / 2, col = t * 2 + i % 2;                                                \
            for (int part = 0; part < 2; part++)                                                  \
                for (int k = 0; k < 4; k++)                                                       \
                    for (int e = 0; e < n; e++)                                                   \
                        c[i] += value(((const E*)&all[g * 4 + k].a[part * 2 + high])[e]) *        \
                                value(((const E*)&all[col * 4 + k].b[part])[e]);                  \
        }                                                                                         \
    }                                                                                             \
    inline void mma_half(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {                      \
        mma_any<float, half_t>(c, a, b0, b1, [](half_t v) { return to_float(v); });               \
    }                                                                                             \
    inline void mma_bfloat(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {                    \
        mma_any<float, bfloat_t>(c, a, b0, b1, [](bfloat_t v) { return to_float(v); });           \
    }                                                                                             \
    inline void mma_tf32(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {                      \
        mma_any<float, float>(c, a, b0, b1, [](float v) { return __uint_as_float(__float_as_uint(v) & ~0x1fffu); }); \
    }                                                                                             \
    inline void mma_int8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {                        \
        mma_any<int, signed char>(c, a, b0, b1, [](signed char v) { return (int)v; });            \
    }                                                                                             \
    inline void prefetch_l2(const void*) {}                                                       \
    inline void prefetch_l2(const void* p, u32 bytes) {                                           \
        if (((uintptr_t)p | bytes) & 15) { fprintf(stderr, "misaligned prefetch\n"); abort(); }   \
    }                                                                                             \
    typedef unsigned char* shared_place;                                                          \
    inline shared_place place_of(const void* p) { return (unsigned char*)p; }                     \
    typedef const unsigned char* matrix_place;                                                    \
    inline matrix_place matrix_at(shared_place p) { return p; }                                   \
    inline matrix_place matrix_step(matrix_place from, int bytes) { return from + bytes; }        \
    inline void fence_matrix_units() {}                                                           \
    template <typename V> void pin(V&) {}                                                         \
    inline void group_begin() {}                                                                  \
    inline void group_commit() {}                                                                 \
    template <int N> void group_wait() {}                                                         \
    template <typename E> E swizzled_at(const unsigned char* tile, int row, int k) {              \
        uintptr_t at = (uintptr_t)tile + row * 128 + k * sizeof(E);                               \
        return *(const E*)(at ^ ((at >> 3) & 0x70));                                              \
    }                                                                                             \
    template <typename T> struct compute;                                                         \
    template <typename T> typename compute<T>::type widen(T v);                                   \
    template <typename C, typename E, int N>                                                      \
    void emulated_group(C (&c)[N / 8][4], const unsigned char* a, const unsigned char* b, int add) { \
        int lane = emu::current->lane, warp = threadIdx.x / 32 % 4;                               \
        for (int j = 0; j < N / 8; j++)                                                           \
            for (int i = 0; i < 4; i++) {                                                         \
                if (!add) c[j][i] = 0;                                                            \
                int row = warp * 16 + lane / 4 + i / 2 * 8, col = j * 8 + lane % 4 * 2 + i % 2;   \
                for (int k = 0; k < 32 / (int)sizeof(E); k++)                                     \
                    c[j][i] += (C)widen(swizzled_at<E>(a, row, k)) * (C)widen(swizzled_at<E>(b, col, k)); \
            }                                                                                     \
    }                                                                                             \
    template <typename E, int N>                                                                  \
    void emulated_registers(float (&c)[N / 8][4], const u32 (&a)[4], const unsigned char* b, int add) { \
        struct R { u32 a[4]; } mine = {{a[0], a[1], a[2], a[3]}}, all[32];                        \
        emu::exchange(mine, all);                                                                 \
        int lane = emu::current->lane;                                                            \
        for (int j = 0; j < N / 8; j++)                                                           \
            for (int i = 0; i < 4; i++) {                                                         \
                int col = j * 8 + lane % 4 * 2 + i % 2;                                           \
                if (!add) c[j][i] = 0;                                                            \
                for (int k = 0; k < 16; k++) {                                                    \
                    const R& from = all[lane / 4 * 4 + k % 8 / 2];                                \
                    c[j][i] += (float)widen(((const E*)&from.a[i / 2 + k / 8 * 2])[k % 2]) *      \
                               (float)widen(swizzled_at<E>(b, k, col));                           \
                }                                                                                 \
            }                                                                                     \
    }                                                                                             \
    inline u32 round_tf32(u32 b) { return (b + 0x1000u) & ~0x1fffu; }                             \
    inline u32 pack_half(float low, float high) { return (u32)to_half(high).bits << 16 | to_half(low).bits; } \
    inline u32 pack_bfloat(float low, float high) { return (u32)to_bfloat(high).bits << 16 | to_bfloat(low).bits; } \
    struct tensor_map { u64 at, rows, columns, pitch, item, box_rows, box_columns, rest[9]; };    \
    struct arrivals { int16_t count, pending; int32_t bytes : 24; u32 phase : 8; };               \
    inline u64* peer(u64* b, u32 rank) {                                                          \
        size_t offset = (unsigned char*)b - emu::shared_base();                                   \
        int self = emu::current->cta;                                                             \
        emu::current->cta = rank;                                                                 \
        unsigned char* base = emu::shared_base();                                                 \
        emu::current->cta = self;                                                                 \
        return (u64*)(base + offset);                                                             \
    }                                                                                             \
    inline void settle(u64* b) {                                                                  \
        arrivals& x = *(arrivals*)b;                                                              \
        emu::events++;                                                                            \
        if (x.pending == 0 && x.bytes == 0) { x.phase ^= 1; x.pending = x.count; }                \
    }                                                                                             \
    inline void barrier_init(u64* b, u32 n) { *(arrivals*)b = {(int16_t)n, (int16_t)n, 0, 0}; }   \
    inline void barrier_publish() {}                                                              \
    inline void barrier_expect(u64* b, u32 bytes) {                                               \
        ((arrivals*)b)->bytes += bytes; ((arrivals*)b)->pending--; settle(b);                     \
    }                                                                                             \
    inline void barrier_arrive(u64* b) { ((arrivals*)b)->pending--; settle(b); }                  \
    inline void barrier_arrive(u64* b, u32 rank) {                                                \
        auto arrive = [](void* at) { barrier_arrive((u64*)at); };                                 \
        if (emu::late) emu::flying.push_back({(int)rank, arrive, peer(b, rank)});                 \
        else barrier_arrive(peer(b, rank));                                                       \
    }                                                                                             \
    inline void barrier_wait(u64* b, u32 parity) {                                                \
        while (((arrivals*)b)->phase == parity) emu::pause(emu::SPIN);                            \
    }                                                                                             \
    template <int BLOCKS> void load_box(void* to, const tensor_map* m, int x, int y, u64* b) {    \
        for (int r = 0; r < BLOCKS; r++) {                                                        \
            char* base = (char*)(BLOCKS > 1 ? (void*)peer((u64*)to, r) : to);                     \
            for (u64 i = 0; i < m->box_rows; i++)                                                 \
                for (u64 j = 0; j < m->box_columns; j++) {                                        \
                    uintptr_t p = (uintptr_t)base + i * 128 + j * m->item;                        \
                    void* q = (void*)(p ^ ((p >> 3) & 0x70));                                     \
                    if (y + i < m->rows && x + j < m->columns)                                    \
                        memcpy(q, (char*)m->at + ((y + i) * m->pitch + x + j) * m->item, m->item); \
                    else memset(q, 0, m->item);                                                   \
                }                                                                                 \
            u64* p = BLOCKS > 1 ? peer(b, r) : b;                                                 \
            ((arrivals*)p)->bytes -= m->box_rows * m->box_columns * m->item;                      \
            settle(p);                                                                            \
        }                                                                                         \
    }                                                                                             \
    inline void load_box(void* to, const tensor_map* m, int x, int y, int z, int w, u64* b) {     \
        tensor_map one = *m;                                                                      \
        one.at += (z * one.rest[0] + w * one.rest[1]) * one.item;                                 \
        load_box<1>(to, &one, x, y, b);                                                           \
    }                                                                                             \
    inline void store_box(const tensor_map* m, int x, int y, const void* from) {                  \
        for (u64 i = 0; i < m->box_rows && y + i < m->rows; i++)                                  \
            for (u64 j = 0; j < m->box_columns && x + j < m->columns; j += 16 / m->item) {        \
                uintptr_t p = (uintptr_t)from + i * 128 + j * m->item;                            \
                emu::Copy c = {(char*)m->at + ((y + i) * m->pitch + x + j) * m->item,             \
                               (void*)(p ^ ((p >> 3) & 0x70)), true, 0};                          \
                if (emu::late) emu::current->stores.push_back(c); else copy_now(c);               \
            }                                                                                     \
    }                                                                                             \
    inline void boxes_commit() {}                                                                 \
    inline void boxes_read() {                                                                    \
        for (auto& c : emu::current->stores) copy_now(c);                                         \
        emu::current->stores.clear();                                                             \
    }                                                                                             \
    inline void store_matrix4(void* p, const u32 (&r)[4]) {                                       \
        void* all[32];                                                                            \
        int l = emu::current->lane;                                                               \
        emu::exchange(p, all);                                                                    \
        for (int i = 0; i < 4; i++) memcpy((char*)all[i * 8 + l / 4] + l % 4 * 4, &r[i], 4);      \
    }                                                                                             \
    inline void group_sync(int) { emu::pause(emu::WARPGROUP); }                                   \
    inline void prefetch_map(const tensor_map*) {}                                                \
    template <int N> void more_registers() {}                                                     \
    template <int N> void fewer_registers() {}                                                    \
    inline u32 cluster_rank() { return emu::current->cta; }                                       \
    inline void cluster_sync() { emu::pause(emu::CLUSTER); }  /* at the start: nothing is on its way */ \
    inline void cluster_leave() { emu::pause(emu::CLUSTER); }                                     \
    inline float4 cluster_load(const float* mine, u32 rank) {                                     \
        size_t offset = (const unsigned char*)mine - emu::shared_base();                          \
        int self = emu::current->cta;                                                             \
        emu::current->cta = rank;                                                                 \
        const unsigned char* base = emu::shared_base();                                           \
        emu::current->cta = self;                                                                 \
        float4 v; memcpy(&v, base + offset, 16); return v;                                        \
    }
