# For other Cython modules: `from dal_native._linalg cimport lower_cholesky`. Matrices are row-major, (d, d).
# BLAS runs inside: hold dal_native._dispatch.single_threaded_blas around calls whose bits must not depend on threads.

cdef int lower_cholesky(double* a, int d) noexcept nogil
cdef int lower_inverse(double* factor, int d) noexcept nogil
cdef void lower_solve(const double* factor, double* b, int d, int k, bint transposed) noexcept nogil
cdef double lower_log_det(const double* factor, int d) noexcept nogil
cdef int lower_update(double* factor, double* x, int d) noexcept nogil
