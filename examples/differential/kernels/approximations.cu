// Functions that hardware approximates: the two sides agree to a bound. Thread i reads in[4i], in[4i + 1], normals of
// about 3, and writes two words.
#include "common/types.cuh"

#define KERNEL(name, make_a, body)                                                                             \
    extern "C" __global__ void __launch_bounds__(256) name(const u32* in, u32* out, int n) {                    \
        int i = blockIdx.x * 256 + threadIdx.x;                                                                 \
        float x = __uint_as_float(in[4 * i]), y = __uint_as_float(in[4 * i + 1]), r;                             \
        float a = make_a;                                                                                       \
        body;                                                                                                   \
        out[2 * i] = __float_as_uint(r);                                                                        \
        a = y * (make_a);                                                                                       \
        a = (make_a) < 0.0f ? a : fabsf(a) + 0.001f;                                                            \
        body;                                                                                                   \
        out[2 * i + 1] = __float_as_uint(r);                                                                    \
    }
#define APPROX(op) asm volatile(op " %0, %1;" : "=f"(r) : "f"(a))

KERNEL(ex2_approx, x, APPROX("ex2.approx.f32"))
KERNEL(ex2_approx_ftz, x, APPROX("ex2.approx.ftz.f32"))
KERNEL(lg2_approx, fabsf(x) + 1e-6f, APPROX("lg2.approx.f32"))
KERNEL(sin_approx, fminf(fmaxf(x, -3.0f), 3.0f), a = fminf(fmaxf(a, -3.14f), 3.14f); APPROX("sin.approx.f32"))
KERNEL(cos_approx, fminf(fmaxf(x, -3.0f), 3.0f), a = fminf(fmaxf(a, -3.14f), 3.14f); APPROX("cos.approx.f32"))
KERNEL(rsqrt_approx, fabsf(x) + 1e-6f, APPROX("rsqrt.approx.f32"))
KERNEL(rcp_approx, fabsf(x) + 1e-6f, APPROX("rcp.approx.f32"))
KERNEL(sqrt_approx, fabsf(x), APPROX("sqrt.approx.f32"))
KERNEL(tanh_approx, x, APPROX("tanh.approx.f32"))
KERNEL(div_approx, x, asm volatile("div.approx.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(fabsf(y) + 0.01f)))
KERNEL(div_full, x, asm volatile("div.full.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(fabsf(y) + 0.01f)))
KERNEL(library_exp, x, r = expf(a))
KERNEL(library_log, fabsf(x) + 1e-6f, r = logf(a))
KERNEL(library_sin, x, r = sinf(a))
KERNEL(library_tanh, x, r = tanhf(a))
KERNEL(library_erf, x, r = erff(a))
KERNEL(library_pow, fabsf(x) + 1e-3f, r = powf(a, 1.5f))
