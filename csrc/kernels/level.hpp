// The functions of one SIMD level, declared in that level's own namespace; table.hpp says what each does.
#pragma once

#include "kernels/table.hpp"

#if !defined(DAL_LEVEL)
#error "compile with -DDAL_LEVEL=generic|avx2|avx512"
#endif

namespace dal {
namespace DAL_LEVEL {

void to_double(const void* from, Storage storage, int64_t count, double* to);
void to_float(const void* from, Storage storage, int64_t count, float* to);
int64_t first_nonfinite(const void* rows, Storage storage, int64_t n, int64_t d);
void margin(const void* rows, Storage storage, int64_t n, int64_t d, const double* reward, double* out,
            double* square);
void margin_float(const void* rows, Storage storage, int64_t n, int64_t d, const float* reward, float* out,
                  float* square);
void update_leverage(const void* rows, Storage storage, int64_t n, int64_t d, const double* direction,
                     double coefficient, double* leverage);
double downdated(const double* x, int64_t d, const double* directions, const double* coefficients, int64_t count,
                 double h);

void downdated_rows(const double* rows, int64_t n, int64_t d, const double* directions, const double* coefficients,
                    int64_t count, double* h);
double plain_dot(const double* x, const double* y, int64_t d);
void subtract_scaled(const double* x, double scale, int64_t count, double* z);
void rotate(double c, double s, int64_t count, double* x, double* y);

void downdated_panels(const double* rows, int64_t n, int64_t d, const double* packed, const double* coefficients,
                      int64_t panels, double* h);
int64_t packed_factor_size(int64_t d, bool single);
void pack_factor_double(const double* w, int64_t d, double* packed);
void pack_factor_float(const double* w, int64_t d, double scale, float* packed);
void whitened_squares_double(const double* rows, int64_t n, int64_t d, const double* packed, double* square);
void whitened_squares_float(const float* rows, int64_t n, int64_t d, const float* packed, double* square);

int64_t screen_columns(int64_t wanted);
void pack_directions(const float* directions, int64_t columns, int64_t d, float* packed);
void screen(const float* rows, int64_t n, int64_t d, const float* packed, int64_t columns, const float* coefficient,
            int64_t margin_column, double* combined, double* margin, double* square);

int64_t float_lanes();
void centre(const void* rows, const void* middle, Storage storage, int64_t n, int64_t d, const float* direction,
            int64_t stride, float* out, float* margin, float* square);
void project(const float* rows, int64_t n, int64_t stride, int64_t depth, const float* directions, int64_t columns,
             float* out);
void whiten(const float* rows, int64_t n, int64_t stride, int64_t d, const float* packed, int64_t out_stride, float* out);
void row_squares(const float* rows, int64_t n, int64_t stride, int64_t columns, const float* sign, const float* before,
                 float* signed_out, float* out);
void pair_products(const float* rows, int64_t count, int64_t stride, int64_t plain, int64_t columns, const float* sign,
                   int64_t a0, int64_t a1, float* out);
void pair_spread(const float* value, int64_t count, float sign, int64_t a0, int64_t a1, float* out);
bool pair_leverages(int64_t count, const float* product, const float* square, const float* margin, const float* error,
                    const PairScale& scale, double* leverage);
bool pair_leverages_screened(int64_t count, const float* product, const float* square, const float* margin,
                             const PairScale& scale, double* leverage);
void known_leverages(int64_t count, const float* known, double factor, double* leverage);
void leverages_up(int64_t count, const double* leverage, float* out);
double pair_weights(int64_t count, const double* leverage, const float* margin, const float* norm,
                  const PairScale& scale, const WeightSteps& steps, float* bound);

OuterShape outer_shape(bool single);
void pack_labels_double(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight, int64_t pitch,
                        double* left, double* right);
void pack_labels_float(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight, int64_t pitch,
                       float* left, float* right);
void outer_strip_double(const double* left, const double* right, int64_t depth, int64_t pitch, int64_t panels, double* out,
                        int64_t stride);
void outer_strip_float(const float* left, const float* right, int64_t depth, int64_t pitch, int64_t panels, double* out,
                       int64_t stride);

void add_weighted_rows(const void* rows, Storage storage, int64_t d, const int64_t* row, int64_t count,
                       const double* weight, const int64_t* cell, int64_t first, int64_t last, double* out);
void hessian_vector(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight, const double* vector,
                    double* out);

void exponentials(double* x, int64_t count);

void softplus_hermite(const double* mean, const double* sd, int64_t count, const double* node, const double* weight,
                      int64_t nodes, double* out, int64_t stride);
void softplus_wide(const double* mean, const double* sd, const double* tail, int64_t count, const double* node,
                   const double* rests, int64_t nodes, double* out, int64_t stride);

double bradley_terry(const void* rows, Storage storage, int64_t n, int64_t d, const double* choice,
                     const double* reward, const double* rationality, const double* sample_weight, double* gradient,
                     double* rationality_gradient);

}  // namespace DAL_LEVEL
}  // namespace dal
