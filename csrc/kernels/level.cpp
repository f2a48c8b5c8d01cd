// The table of this level.
#include "kernels/level.hpp"
#include "kernels/simd.hpp"

#define DAL_STRING_(x) #x
#define DAL_STRING(x) DAL_STRING_(x)

namespace dal {
namespace DAL_LEVEL {

const KernelTable table = {
    DAL_STRING(DAL_LEVEL),
    to_double,
    to_float,
    first_nonfinite,
    margin,
    margin_float,
    update_leverage,
    downdated,
    downdated_rows,
    downdated_panels,
    plain_dot,
    subtract_scaled,
    rotate,
    packed_factor_size,
    pack_factor_double,
    pack_factor_float,
    whitened_squares_double,
    whitened_squares_float,
    screen_columns,
    pack_directions,
    screen,
    float_lanes,
    centre,
    project,
    whiten,
    row_squares,
    pair_products,
    pair_spread,
    pair_leverages,
    pair_leverages_screened,
    known_leverages,
    leverages_up,
    pair_weights,
    2 * kLanes<double>,
    outer_shape,
    pack_labels_double,
    pack_labels_float,
    outer_strip_double,
    outer_strip_float,
    add_weighted_rows,
    hessian_vector,
    exponentials,
    softplus_hermite,
    softplus_wide,
    bradley_terry,
};

}  // namespace DAL_LEVEL
}  // namespace dal
