/* What torch is slow at in a layer of 32 channels in bf16, for processors with AMX: batch normalisation with the shortcut
   and the activation behind it, and the gradient of a 3x3 convolution's weight.

   Images are channels last, (n, height, width, 32): a pixel is 64 bytes, one register. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;
typedef __m512i Pixel; /* 32 channels */
typedef __m512 Half;   /* 16 of them in float32 */
enum { C = 32, CHUNK = 512 };

#define INLINE static inline __attribute__((always_inline))

/* ---- batch normalisation, shortcut and activation ---- */

INLINE Pixel at(const bf16 *x, long p) { return _mm512_loadu_si512(x + p * C); }
INLINE Half widen(__m256i x) { return (Half)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }
INLINE void halves(Pixel x, Half h[2]) {
    h[0] = widen(_mm512_castsi512_si256(x)), h[1] = widen(_mm512_extracti64x4_epi64(x, 1));
}
INLINE void put(bf16 *x, long p, Half h[2]) { _mm512_storeu_si512(x + p * C, (__m512i)_mm512_cvtne2ps_pbh(h[1], h[0])); }
INLINE void channels(const float *x, Half h[2]) { h[0] = _mm512_loadu_ps(x), h[1] = _mm512_loadu_ps(x + 16); }

/* x, or slope * x where `sign` is not positive */
INLINE Half leaky(Half x, Half sign, Half slope) {
    return _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(sign, _mm512_setzero_ps(), _CMP_LE_OQ), x, slope);
}

typedef struct {
    const bf16 *dy, *z, *y;
    Half mean[2], inverse[2], gamma[2], beta[2], slope;
} Layer;

/* The gradient behind the activation, and the normalised values. y is null where they give its sign. */
INLINE void behind(const Layer *l, long p, Half g[2], Half x[2]) {
    Half z[2], y[2], dy[2];
    halves(at(l->z, p), z), halves(at(l->dy, p), dy);
    if (l->y) halves(at(l->y, p), y);
    for (int i = 0; i < 2; i++) {
        x[i] = (z[i] - l->mean[i]) * l->inverse[i];
        g[i] = leaky(dy[i], l->y ? y[i] : _mm512_fmadd_ps(x[i], l->gamma[i], l->beta[i]), l->slope);
    }
}

/* Of each channel the sum of u and that of u * v: forward both are z, back the two that `behind` gives. Few numbers are
   added up in float32, the rest in float64, and by the threads in their order. */
INLINE void add_up(const Layer *l, int back, double sums[2 * C], long pixels, int threads) {
    double parts[threads][2 * C];
    memset(parts, 0, sizeof parts);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++)
        for (long p = pixels * part / threads, end = pixels * (part + 1) / threads; p < end;) {
            Half s[4] = {{0}, {0}, {0}, {0}};
            for (long chunk = p + CHUNK < end ? p + CHUNK : end; p < chunk; p++) {
                Half u[2], v[2];
                if (back) behind(l, p, u, v);
                else halves(at(l->z, p), u), v[0] = u[0], v[1] = u[1];
                for (int i = 0; i < 2; i++) s[i] += u[i], s[2 + i] += u[i] * v[i];
            }
            for (int c = 0; c < 2 * C; c++) parts[part][c] += ((float *)s)[c];
        }
    memset(sums, 0, 2 * C * sizeof(double));
    for (int part = 0; part < threads; part++)
        for (int c = 0; c < 2 * C; c++) sums[c] += parts[part][c];
}

/* y = activation((z - mean) / deviation * gamma + beta + shortcut), where shortcut may be null; by the batch's moments,
   the mean and 1 / deviation, which are kept. The running ones are brought up to date. */
void normalise(const bf16 *z, const float *gamma, const float *beta, const bf16 *shortcut, bf16 *y, float *moments,
               float *running_mean, float *running_var, float eps, float momentum, float slope, long pixels, int threads) {
    const Layer l = {.z = z};
    double sums[2 * C];
    float scale[C], shift[C];
    add_up(&l, 0, sums, pixels, threads);
    for (int c = 0; c < C; c++) {
        double mean = sums[c] / pixels, variance = sums[C + c] / pixels - mean * mean;
        variance = variance > 0 ? variance : 0;
        moments[c] = mean, moments[C + c] = 1 / __builtin_sqrt(variance + eps);
        scale[c] = gamma[c] * moments[C + c], shift[c] = beta[c] - moments[c] * scale[c];
        running_mean[c] += momentum * (mean - running_mean[c]);
        running_var[c] += momentum * (variance * pixels / (pixels - 1) - running_var[c]);
    }
    Half k[2], b[2], down = _mm512_set1_ps(slope);
    channels(scale, k), channels(shift, b);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < pixels; p++) {
        Half v[2], s[2] = {{0}, {0}};
        halves(at(z, p), v);
        if (shortcut) halves(at(shortcut, p), s);
        for (int i = 0; i < 2; i++) v[i] = _mm512_fmadd_ps(v[i], k[i], b[i]) + s[i], v[i] = leaky(v[i], v[i], down);
        put(y, p, v);
    }
}

/* The gradients of z, the shortcut, gamma and beta. y may be null where there was no shortcut, dshortcut always. */
void normalise_back(const bf16 *dy, const bf16 *z, const bf16 *y, const float *gamma, const float *beta,
                    const float *moments, bf16 *dz, bf16 *dshortcut, float *dgamma, float *dbeta, float slope, long pixels,
                    int threads) {
    Layer l = {.dy = dy, .z = z, .y = y, .slope = _mm512_set1_ps(slope)};
    channels(moments, l.mean), channels(moments + C, l.inverse), channels(gamma, l.gamma), channels(beta, l.beta);
    double sums[2 * C];
    float means[2 * C];
    add_up(&l, 1, sums, pixels, threads);
    for (int c = 0; c < C; c++) dbeta[c] = sums[c], dgamma[c] = sums[C + c];
    for (int c = 0; c < 2 * C; c++) means[c] = sums[c] / pixels;
    Half of_g[2], of_product[2];
    channels(means, of_g), channels(means + C, of_product);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long p = 0; p < pixels; p++) {
        Half g[2], x[2];
        behind(&l, p, g, x);
        if (dshortcut) put(dshortcut, p, g);
        for (int i = 0; i < 2; i++) g[i] = l.gamma[i] * l.inverse[i] * (g[i] - of_g[i] - x[i] * of_product[i]);
        put(dz, p, g);
    }
}

/* ---- the gradient of the weight ---- */

/* Whether there are tiles, and this process may use them: Linux wants to be asked. */
int tiles(void) { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0; }

/* A tile has 16 rows of 64 bytes, and a product adds to 16x16 numbers in float32, over 32 pixels p,

       sums[in][out] += x[in][p] * dz[p][out]

   where the left tile lies channel by channel and the right one by pairs of pixels, (p / 2, out, 2). */
enum { LINE = 32, TILE = 16 * 32, STRIP = 8 };

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) Tiles;

static const Tiles EIGHT = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* Of 16x16 numbers of 32 bits rows become columns. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2)
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; k++) {
            r[i + 2 * k] = _mm512_unpacklo_epi64(t[i + k], t[i + k + 2]);
            r[i + 2 * k + 1] = _mm512_unpackhi_epi64(t[i + k], t[i + k + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int k = 0; k < 4; k++) {
            t[i + k] = _mm512_shuffle_i32x4(r[i + k], r[i + k + 4], 0x88);
            t[i + k + 4] = _mm512_shuffle_i32x4(r[i + k], r[i + k + 4], 0xdd);
        }
    for (int k = 0; k < 8; k++) {
        r[k] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0x88);
        r[k + 8] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0xdd);
    }
}

typedef struct {
    bf16 x[3][LINE][2][TILE]; /* by shift (left, none, right), line, half of the channels */
    bf16 dz[LINE][2][TILE];
    float weight[9][2][2][16][16], bias[2][16]; /* in, then out: by half, then the channel there */
} Work;

/* Lines of 32 pixels, each a row of 32 / w images side by side; of images that are not there, zeros. The halves are not
   the first and the last 16 channels, but what comes of interleaving fastest: 0-3, 8-11, ... and 4-7, 12-15, ... */
static void lay_out(Work *work, const bf16 *x, const bf16 *dz, int images, int w) {
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    uint16_t left[LINE], right[LINE];
    uint32_t has_left = 0, has_right = 0;
    for (int p = 0; p < LINE; p++) {
        left[p] = p - 1, right[p] = p + 1;
        has_left |= (uint32_t)(p % w > 0) << p, has_right |= (uint32_t)(p % w < w - 1) << p;
    }
    const __m512i to_left = _mm512_loadu_si512(left), to_right = _mm512_loadu_si512(right);
    for (int row = 0; row < w; row++) {
        __m512i pairs[2][16];
        for (int i = 0; i < 16; i++) {
            int image = 2 * i / w;
            size_t at = (((size_t)image * w + row) * w + 2 * i % w) * C;
            Pixel a = {0}, b = {0}, c = {0}, d = {0};
            if (image < images) {
                a = _mm512_loadu_si512(x + at), b = _mm512_loadu_si512(x + at + C);
                c = _mm512_loadu_si512(dz + at), d = _mm512_loadu_si512(dz + at + C);
            }
            pairs[0][i] = _mm512_unpacklo_epi16(a, b), pairs[1][i] = _mm512_unpackhi_epi16(a, b);
            __m512i both[2] = {_mm512_unpacklo_epi16(c, d), _mm512_unpackhi_epi16(c, d)};
            for (int half = 0; half < 2; half++) {
                _mm512_store_si512(work->dz[row][half] + i * 32, both[half]);
                Half *sum = (Half *)work->bias[half];
                *sum = _mm512_dpbf16_ps(*sum, (__m512bh)both[half], (__m512bh)ones);
            }
        }
        for (int half = 0; half < 2; half++) {
            transpose(pairs[half]);
            for (int c = 0; c < 16; c++) {
                __m512i here = pairs[half][c];
                _mm512_store_si512(work->x[0][row][half] + c * 32, _mm512_maskz_permutexvar_epi16(has_left, to_left, here));
                _mm512_store_si512(work->x[1][row][half] + c * 32, here);
                _mm512_store_si512(work->x[2][row][half] + c * 32, _mm512_maskz_permutexvar_epi16(has_right, to_right, here));
            }
        }
    }
}

/* A few lines at a time stay in the first-level cache; meanwhile the next images are fetched. */
static void multiply(Work *work, int w, const char *next_x, const char *next_dz) {
    for (int start = 0; start < w; start += STRIP)
        for (int tap = 0; tap < 9; tap++) {
            int shift = tap / 3, down = tap % 3 - 1, end = start + STRIP < w ? start + STRIP : w;
            float(*sums)[2][16][16] = work->weight[(down + 1) * 3 + shift];
            __asm__ volatile("" ::: "memory"); /* a compiler may not know that tiles are loaded from memory */
            _tile_loadd(0, sums[0][0], 64);
            _tile_loadd(1, sums[0][1], 64);
            _tile_loadd(2, sums[1][0], 64);
            _tile_loadd(3, sums[1][1], 64);
            for (int row = start; row < end; row++) {
                for (int i = 0; i < 4; i++, next_x += 64, next_dz += 64)
                    _mm_prefetch(next_x, _MM_HINT_T1), _mm_prefetch(next_dz, _MM_HINT_T1);
                if (row + down < 0 || row + down >= w) continue;
                _tile_loadd(4, work->x[shift][row + down][0], 64);
                _tile_loadd(6, work->dz[row][0], 64);
                _tile_loadd(7, work->dz[row][1], 64);
                _tile_loadd(5, work->x[shift][row + down][1], 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, sums[0][0], 64);
            _tile_stored(1, sums[0][1], 64);
            _tile_stored(2, sums[1][0], 64);
            _tile_stored(3, sums[1][1], 64);
        }
}

/* The gradients of the weight, (out, 3, 3, in), and of the bias. Images are w by w, a power of two from
   2 to 32. */
void parameter_gradients(const bf16 *x, const bf16 *dz, float *weight, float *bias, int n, int w, int threads) {
    const int beside = LINE / w, groups = (n + beside - 1) / beside;
    const size_t size = (size_t)beside * w * w * C;
    Work *works = aligned_alloc(64, threads * sizeof(Work));
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        Work *work = works + part;
        Tiles before; /* torch's matrix products may set theirs only when they need others than last time */
        _tile_storeconfig(&before);
        _tile_loadconfig(&EIGHT);
        memset(work->weight, 0, sizeof work->weight), memset(work->bias, 0, sizeof work->bias);
        for (int g = (long)groups * part / threads; g < (long)groups * (part + 1) / threads; g++) {
            lay_out(work, x + g * size, dz + g * size, n - g * beside < beside ? n - g * beside : beside, w);
            multiply(work, w, (const char *)(x + (g + 1) * size), (const char *)(dz + (g + 1) * size));
        }
        _tile_loadconfig(&before);
    }
    memset(weight, 0, 9 * C * C * sizeof(float)), memset(bias, 0, C * sizeof(float));
    for (int part = 0; part < threads; part++)
        for (int out = 0; out < C; out++) {
            int half = out / 4 % 2, j = out / 8 * 4 + out % 4; /* see `lay_out` */
            bias[out] += works[part].bias[half][j];
            for (int tap = 0; tap < 9; tap++)
                for (int in = 0; in < C; in++)
                    weight[(out * 9 + tap) * C + in] += works[part].weight[tap][in / 4 % 2][half][in / 8 * 4 + in % 4][j];
        }
    free(works);
}
