#include <cblas.h>

// LAPACK routines that libopenblas exports and cblas.h does not declare.
void spotrf_(const char *uplo, const int *n, float *a, const int *lda, int *info);
