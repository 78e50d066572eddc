// Types, conversions and the few instructions that the kernels need; no headers.
#ifndef HOST_EMULATION
#define DEVICE __device__ __forceinline__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define GLOBAL(name, threads) extern "C" __global__ void __launch_bounds__(threads) name
// so many blocks a multiprocessor
#define GLOBAL_MANY(name, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;
typedef long long i64;

struct __align__(2) half_t { u16 bits; };
struct __align__(2) bfloat_t { u16 bits; };

#ifndef HOST_EMULATION
DEVICE float to_float(half_t v) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits)); return f; }
DEVICE float to_float(bfloat_t v) { return __uint_as_float((u32)v.bits << 16); }
DEVICE half_t to_half(float f) { half_t v; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(v.bits) : "f"(f)); return v; }
DEVICE bfloat_t to_bfloat(float f) { bfloat_t v; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(v.bits) : "f"(f)); return v; }
DEVICE half_t to_half(double f) { half_t v; asm("cvt.rn.f16.f64 %0, %1;" : "=h"(v.bits) : "d"(f)); return v; }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define HOPPER(text) ""
#else
#define HOPPER(text) text
#endif
// the predecessor's results are complete and visible after this
DEVICE void wait_predecessor() { asm volatile(HOPPER("griddepcontrol.wait;") ::: "memory"); }
// the successor may start now; it waits by itself before it reads
DEVICE void release_successor() { asm volatile(HOPPER("griddepcontrol.launch_dependents;") ::: "memory"); }
DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE void copy_async16(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
// an address in shared memory
typedef u32 shared_place;
DEVICE shared_place place_of(const void* p) { return shared_address(p); }
DEVICE void copy_async16(shared_place to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
DEVICE void load_matrix4(u32 (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
DEVICE void load_matrix4_transposed(u32 (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
// four matrices of 8 x 8: a lane has two neighbours of one row, and the place of another row
DEVICE void store_matrix4(void* p, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
                 :: "r"(shared_address(p)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
#define MMA_FLOAT(name, shape_types)                                                              \
    DEVICE void name(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {                          \
        asm("mma.sync.aligned." shape_types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                      \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                      \
    }
MMA_FLOAT(mma_half, "m16n8k16.row.col.f32.f16.f16.f32")
MMA_FLOAT(mma_bfloat, "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA_FLOAT(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
DEVICE void mma_int8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE u32 round_tf32(u32 bits) { u32 r; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(bits))); return r; }
DEVICE u32 pack_half(float low, float high) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
DEVICE u32 pack_bfloat(float low, float high) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }
// `bytes` and the address are multiples of 16
DEVICE void prefetch_l2(const void* p, u32 bytes) {
    asm volatile(HOPPER("cp.async.bulk.prefetch.L2.global [%0], %1;") :: "l"(p), "r"(bytes) : "memory");
}
// shared memory written by ordinary copies becomes visible to the matrix units
DEVICE void fence_matrix_units() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void group_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }
// the compiler must not move uses of a matrix unit's register across this
DEVICE void pin(float& v) { asm volatile("" : "+f"(v) :: "memory"); }
DEVICE void pin(int& v) { asm volatile("" : "+r"(v) :: "memory"); }
// what the matrix units take for a tile: rows of 128 bytes in the 128-byte swizzle, k contiguous,
// eight rows to 1024 bytes
typedef u64 matrix_place;
DEVICE matrix_place matrix_at(shared_place p) {
    return (u64)(p & 0x3ffff) >> 4 | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
DEVICE matrix_place matrix_step(matrix_place from, int bytes) { return from + (bytes >> 4); }
// subnormals count as zero here: without this each costs four more instructions
DEVICE float exp2_fast(float v) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }
DEVICE float reciprocal_fast(float v) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }
DEVICE float propagating_max(float a, float b) { float r; asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
DEVICE float propagating_min(float a, float b) { float r; asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
// transfers of whole boxes, and barriers in shared memory that count their bytes
struct __align__(64) tensor_map { u64 opaque[16]; };
DEVICE void barrier_init(u64* b, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(shared_address(b)), "r"(arrivals) : "memory");
}
DEVICE void barrier_publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_expect(u64* b, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(shared_address(b)), "r"(bytes) : "memory");
}
// in the block `rank` of the cluster; it must not have ended when the arrival comes
DEVICE void barrier_arrive(u64* b, u32 rank) {
    asm volatile("{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [a];\n}" :: "r"(shared_address(b)), "r"(rank) : "memory");
}
// in this block
DEVICE void barrier_arrive(u64* b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(b)) : "memory"); }
DEVICE void barrier_wait(u64* b, u32 parity) {
    asm volatile("{\n.reg .pred p;\nAGAIN:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra DONE;\nbra AGAIN;\nDONE:\n}" :: "r"(shared_address(b)), "r"(parity) : "memory");
}
// a box at column x, row y of the map to the same place in every block of `blocks`
template <int BLOCKS> DEVICE void load_box(void* to, const tensor_map* map, int x, int y, u64* b) {
    if (BLOCKS == 1)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                     :: "r"(shared_address(to)), "l"(map), "r"(x), "r"(y), "r"(shared_address(b)) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                     " [%0], [%1, {%2, %3}], [%4], %5;"
                     :: "r"(shared_address(to)), "l"(map), "r"(x), "r"(y), "r"(shared_address(b)),
                        "h"((u16)((1 << BLOCKS) - 1)) : "memory");
}
// of the matrix z, w
DEVICE void load_box(void* to, const tensor_map* map, int x, int y, int z, int w, u64* b) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
                 :: "r"(shared_address(to)), "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(shared_address(b)) : "memory");
}
// a box to column x, row y; what lies outside of the matrix is left out
DEVICE void store_box(const tensor_map* map, int x, int y, const void* from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
                 :: "l"(map), "r"(shared_address(from)), "r"(x), "r"(y) : "memory");
}
DEVICE void boxes_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// the shared memory of boxes that this thread stores may be written again
DEVICE void boxes_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
// the threads of one warpgroup; others have other numbers, from 1 on
DEVICE void group_sync(int number) { asm volatile("bar.sync %0, 128;" :: "r"(number) : "memory"); }
DEVICE void prefetch_map(const tensor_map* map) { asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory"); }
template <int N> DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N)); }
template <int N> DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N)); }
DEVICE u32 cluster_rank() { u32 r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
DEVICE void cluster_sync() { asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// all blocks have arrived; says nothing about memory
DEVICE void cluster_leave() { asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory"); }
DEVICE float4 cluster_load(const float* mine, u32 rank) {
    u32 a; float4 v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(shared_address(mine)), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(a) : "memory");
    return v;
}
#endif

DEVICE float to_float(float v) { return v; }

// registers hold float for the 16-bit types and the type itself for all others
template <typename T> struct compute { typedef T type; };
template <> struct compute<half_t> { typedef float type; };
template <> struct compute<bfloat_t> { typedef float type; };

template <typename T> DEVICE typename compute<T>::type widen(T v) { return v; }
template <> DEVICE float widen<half_t>(half_t v) { return to_float(v); }
template <> DEVICE float widen<bfloat_t>(bfloat_t v) { return to_float(v); }

template <typename T> struct narrow_to { template <typename S> static DEVICE T of(S v) { return (T)v; } };
template <> struct narrow_to<half_t> {
    static DEVICE half_t of(double v) { return to_half(v); }
    template <typename S> static DEVICE half_t of(S v) { return to_half((float)v); }
};
// float64 to float32, rounded to odd, so that a second rounding gives what one would
DEVICE float round_odd(double v) {
    float f = (float)v;
    if (v != v || (double)f == v) return f;
    u32 bits = __float_as_uint(f);
    if (fabs((double)f) > fabs(v)) bits--;
    return __uint_as_float(bits | 1);
}
template <> struct narrow_to<bfloat_t> {
    static DEVICE bfloat_t of(double v) { return to_bfloat(round_odd(v)); }
    template <typename S> static DEVICE bfloat_t of(S v) { return to_bfloat((float)v); }
};
template <> struct narrow_to<bool> { template <typename S> static DEVICE bool of(S v) { return v != 0; } };
template <typename T, typename S> DEVICE T narrow(S v) { return narrow_to<T>::of(v); }

// N elements of T moved in pieces of at most 16 bytes
template <typename T, int N> struct __align__(sizeof(T) * N < 16 ? sizeof(T) * N : 16) pack { T at[N]; };
template <int BYTES> struct word;
template <> struct word<1> { typedef unsigned char type; };
template <> struct word<2> { typedef u16 type; };
template <> struct word<4> { typedef u32 type; };
template <> struct word<8> { typedef uint2 type; };
template <> struct word<16> { typedef uint4 type; };

template <typename T, int N> DEVICE pack<T, N> load_pack(const T* from) {
    constexpr int bytes = sizeof(T) * N, piece = bytes < 16 ? bytes : 16;
    typedef typename word<piece>::type W;
    pack<T, N> p;
#pragma unroll
    for (int i = 0; i < bytes / piece; i++) ((W*)&p)[i] = ((const W*)from)[i];
    return p;
}
template <typename T, int N> DEVICE void store_pack(T* to, const pack<T, N>& p) {
    constexpr int bytes = sizeof(T) * N, piece = bytes < 16 ? bytes : 16;
    typedef typename word<piece>::type W;
#pragma unroll
    for (int i = 0; i < bytes / piece; i++) ((W*)to)[i] = ((const W*)&p)[i];
}

struct dims { int rank; u32 size[8], magic[8], shift[8]; };
struct strides { i64 step[8]; };
DEVICE u32 divide(u32 n, u32 magic, u32 shift) { return (__umulhi(n, magic) + n) >> shift; }

DEVICE float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
