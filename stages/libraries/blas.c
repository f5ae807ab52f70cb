/* A share of the columns of Y = X W, by OpenBLAS with one thread: the caller has the threads. */
#include <cblas.h>
#include <stdint.h>

__attribute__((constructor)) static void one_thread(void) { scipy_openblas_set_num_threads(1); }

__attribute__((visibility("default"))) void tapml_blas_dense(const float* x, const float* w, float* y,
                                                            int64_t m, int64_t k, int64_t n,
                                                            int64_t transposed, int64_t share,
                                                            int64_t shares) {
  const int64_t first = n * share / shares, last = n * (share + 1) / shares;
  if (m && last > first) {
    scipy_cblas_sgemm(CblasRowMajor, CblasNoTrans, transposed ? CblasTrans : CblasNoTrans, (int)m,
                      (int)(last - first), (int)k, 1.0f, x, (int)k,
                      w + first * (transposed ? k : 1), (int)(transposed ? k : n), 0.0f,
                      y + first, (int)n);
  }
}
