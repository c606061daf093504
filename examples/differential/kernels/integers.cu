// Integer arithmetic, exact. Every kernel here: thread i reads in[4i .. 4i + 4] and writes `WORDS` words from out[WORDS·i].
#include "common/types.cuh"

#define OP1(text) asm volatile(text ";" : "=r"(r) : "r"(a)); *o++ = r;
#define OP2(text) asm volatile(text ";" : "=r"(r) : "r"(a), "r"(b)); *o++ = r;
#define OP3(text) asm volatile(text ";" : "=r"(r) : "r"(a), "r"(b), "r"(c)); *o++ = r;
#define WIDE(text) asm volatile(text ";" : "=l"(w) : "l"(x), "l"(y)); *o++ = (u32)w; *o++ = (u32)(w >> 32);
#define BEGIN(words)                                                     \
    int i = blockIdx.x * blockDim.x + threadIdx.x;                       \
    if (i >= n) return;                                                  \
    u32 a = in[4 * i], b = in[4 * i + 1], c = in[4 * i + 2], d = in[4 * i + 3], r; \
    u32* o = out + (words) * i;

extern "C" __global__ void __launch_bounds__(256) integer_arithmetic(const u32* in, u32* out, int n) {
    BEGIN(24)
    OP2("add.u32 %0, %1, %2")
    OP2("sub.u32 %0, %1, %2")
    OP2("mul.lo.u32 %0, %1, %2")
    OP2("mul.hi.u32 %0, %1, %2")
    OP2("mul.hi.s32 %0, %1, %2")
    OP3("mad.lo.s32 %0, %1, %2, %3")
    OP3("mad.hi.u32 %0, %1, %2, %3")
    OP3("mad.hi.s32 %0, %1, %2, %3")
    OP3("sad.u32 %0, %1, %2, %3")
    OP3("sad.s32 %0, %1, %2, %3")
    OP2("min.s32 %0, %1, %2")
    OP2("max.s32 %0, %1, %2")
    OP2("min.u32 %0, %1, %2")
    OP2("max.u32 %0, %1, %2")
    OP1("abs.s32 %0, %1")
    OP1("neg.s32 %0, %1")
    OP2("add.sat.s32 %0, %1, %2")
    OP2("sub.sat.s32 %0, %1, %2")
    OP3("dp4a.s32.s32 %0, %1, %2, %3")
    OP3("dp4a.u32.u32 %0, %1, %2, %3")
    *o++ = a / (b | 1);
    *o++ = a % (b | 1);
    // −2³¹ ÷ −1 has no value.
    int divisor = (int)(d | 1) == -1 ? 3 : (int)(d | 1);
    *o++ = (u32)((int)c / divisor);
    *o++ = (u32)((int)c % divisor);
}

extern "C" __global__ void __launch_bounds__(256) integer_bits(const u32* in, u32* out, int n) {
    BEGIN(24)
    OP2("and.b32 %0, %1, %2")
    OP2("or.b32 %0, %1, %2")
    OP2("xor.b32 %0, %1, %2")
    OP1("not.b32 %0, %1")
    OP3("lop3.b32 %0, %1, %2, %3, 0x96")
    OP3("lop3.b32 %0, %1, %2, %3, 0xe8")
    OP1("brev.b32 %0, %1")
    OP1("clz.b32 %0, %1")
    OP1("popc.b32 %0, %1")
    OP1("bfind.u32 %0, %1")
    OP1("bfind.s32 %0, %1")
    OP1("bfind.shiftamt.u32 %0, %1")
    OP3("shf.l.wrap.b32 %0, %1, %2, %3")
    OP3("shf.l.clamp.b32 %0, %1, %2, %3")
    OP3("shf.r.wrap.b32 %0, %1, %2, %3")
    OP3("shf.r.clamp.b32 %0, %1, %2, %3")
    b = c & 63;  // amounts past the word's end too
    OP2("shl.b32 %0, %1, %2")
    OP2("shr.u32 %0, %1, %2")
    OP2("shr.s32 %0, %1, %2")
    c = d & 63;
    OP3("bfe.u32 %0, %1, %2, %3")
    OP3("bfe.s32 %0, %1, %2, %3")
    asm volatile("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(d), "r"(a), "r"(b), "r"(c));
    *o++ = r;
    b = in[4 * i + 1];
    c = in[4 * i + 2] & 0x7777;
    OP3("prmt.b32 %0, %1, %2, %3")
    c = in[4 * i + 2];
    OP3("prmt.b32 %0, %1, %2, %3")
}

extern "C" __global__ void __launch_bounds__(256) integer_wide(const u32* in, u32* out, int n) {
    BEGIN(44)
    u64 x = (u64)b << 32 | a, y = (u64)d << 32 | c, w;
    WIDE("add.u64 %0, %1, %2")
    WIDE("sub.u64 %0, %1, %2")
    WIDE("mul.lo.u64 %0, %1, %2")
    WIDE("mul.hi.u64 %0, %1, %2")
    WIDE("mul.hi.s64 %0, %1, %2")
    WIDE("min.s64 %0, %1, %2")
    WIDE("max.u64 %0, %1, %2")
    WIDE("and.b64 %0, %1, %2")
    WIDE("xor.b64 %0, %1, %2")
    w = x / (y | 1);
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    w = x % (y >> 40 | 1);
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    w = (u64)((i64)x / ((i64)y >> 24 & 0xfffff | 1));
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    asm volatile("mul.wide.u32 %0, %1, %2;" : "=l"(w) : "r"(a), "r"(c));
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    asm volatile("mul.wide.s32 %0, %1, %2;" : "=l"(w) : "r"(a), "r"(c));
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    asm volatile("mad.wide.s32 %0, %1, %2, %3;" : "=l"(w) : "r"(a), "r"(c), "l"(y));
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    u32 amount = c & 127;
    asm volatile("shl.b64 %0, %1, %2;" : "=l"(w) : "l"(x), "r"(amount));
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    asm volatile("shr.u64 %0, %1, %2;" : "=l"(w) : "l"(x), "r"(amount));
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    asm volatile("shr.s64 %0, %1, %2;" : "=l"(w) : "l"(x), "r"(amount));
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    asm volatile("popc.b64 %0, %1;" : "=r"(r) : "l"(x));
    *o++ = r;
    asm volatile("clz.b64 %0, %1;" : "=r"(r) : "l"(x));
    *o++ = r;
    asm volatile("brev.b64 %0, %1;" : "=l"(w) : "l"(x));
    *o++ = (u32)w, *o++ = (u32)(w >> 32);
    *o++ = (u32)(((i64)x < (i64)y) | (x < y) << 1 | (x <= y) << 2 | (x == y) << 3);
    *o++ = (u32)(((int)a < (int)b) | (a < b) << 1 | ((int)a >= (int)c) << 2 | (a != d) << 3);
    *o++ = (u32)(signed char)a + (u32)(u8)b;
    *o++ = (u32)(short)c ^ (u32)(u16)d;
}
