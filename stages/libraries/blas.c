/* A share of the columns of Y = X W, by OpenBLAS with one thread: the caller has the threads. */
#include <cblas.h>
#include <dlpack/dlpack.h>
#include <tvm/ffi/c_api.h>

__attribute__((constructor)) static void one_thread(void) { scipy_openblas_set_num_threads(1); }

static float* data(const DLTensor* t) { return (float*)((char*)t->data + t->byte_offset); }

__attribute__((visibility("default"))) int __tvm_ffi_tapml_blas_dense(void* self,
                                                                      const TVMFFIAny* args,
                                                                      int32_t count,
                                                                      TVMFFIAny* result) {
  (void)self;
  (void)count;
  const DLTensor *x = args[0].v_ptr, *w = args[1].v_ptr, *y = args[2].v_ptr;
  const int64_t transposed = args[3].v_int64, share = args[4].v_int64, shares = args[5].v_int64;
  const int64_t m = x->shape[0], k = x->shape[1], n = y->shape[1];
  const int64_t first = n * share / shares, last = n * (share + 1) / shares;
  if (m && last > first) {
    scipy_cblas_sgemm(CblasRowMajor, CblasNoTrans, transposed ? CblasTrans : CblasNoTrans, (int)m,
                      (int)(last - first), (int)k, 1.0f, data(x), (int)k,
                      data(w) + first * (transposed ? k : 1), (int)(transposed ? k : n), 0.0f,
                      data(y) + first, (int)n);
  }
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return 0;
}
