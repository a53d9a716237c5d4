// Which kind of walk takes a pass. `Kernels` has those of a direction, a cell and a type:
//     using Walk, Pass; static constexpr int gates;     the kernels' parameters, the cell's part, the product's gates
//     template <class Shapes> using ShapeOf             the direction's shape of a pair
//     using Tiles                                       see `WalkTiles`
//     cluster<Shape>(), slices<Shape>(), grid<Shape>(), tiles()
#pragma once

#include "recurrent_cluster.h"
#include "recurrent_slices.h"
#include "recurrent_tiles.h"

namespace tbptt {
namespace cuda {

// Whether a cluster of blocks of so many units takes the walk.
template <class T, int UnitTiles, class Kernels>
bool launch_in_cluster(typename Kernels::Walk& p, std::int64_t rows, const Call& call) {
    using Shape = ClusterShape<UnitTiles>;
    const auto kernel = Kernels::template cluster<Shape>();
    Grid grid;
    if (!plan_cluster<T, Shape, Kernels::gates, Kernels::Pass::left>(reinterpret_cast<const void*>(kernel), p.product,
                                                                     rows, grid))
        return false;
    launch(kernel, grid, call.stream, p);
    return true;
}

// Whether clusters that share the depth take it.
template <class T, class Shapes, class Kernels>
bool launch_in_slices(typename Kernels::Walk& p, std::int64_t rows, const Call& call) {
    using Shape = typename Kernels::template ShapeOf<Shapes>;
    const auto kernel = Kernels::template slices<Shape>();
    Grid grid;
    if (!plan_slices<T, Shape, Kernels::gates>(reinterpret_cast<const void*>(kernel), p.product, rows, grid))
        return false;
    launch(kernel, grid, call.stream, p);
    return true;
}

// Few: whether there are at most `most_rows_of_few` rows.
template <class T, bool Few, class Kernels>
void launch_walk(typename Kernels::Walk& p, std::int64_t rows, const Call& call) {
    if (launch_in_cluster<T, 2, Kernels>(p, rows, call)) return;
    if constexpr (is_narrow<T>)  // twice as many units fit
        if (launch_in_cluster<T, 4, Kernels>(p, rows, call)) return;
    if constexpr (sizeof(T) <= sizeof(float))
        if (launch_in_slices<T, SliceShapes<Few>, Kernels>(p, rows, call)) return;
    using Shape = typename Kernels::template ShapeOf<Shapes<T, Few>>;
    const auto kernel = Kernels::template grid<Shape>();
    const Grid grid = plan_walk<T, Shape, Kernels::gates>(reinterpret_cast<const void*>(kernel), p.product, rows);
    if (launch_in_tiles<typename Kernels::Tiles::Tile, typename Kernels::Pass, Kernels::gates>(Kernels::tiles(), p,
                                                                                               rows, call))
        return;
    launch(kernel, grid, call.stream, p);
}

// Of a direction's kernels, those of the products that the call asks for: KernelsOf<Exact>.
template <class T, template <bool> class KernelsOf, class Walk>
void launch_walk(Walk& p, std::int64_t rows, const Call& call) {
    const auto with = [&](auto exact) {
        using Kernels = KernelsOf<decltype(exact)::value>;
        rows <= most_rows_of_few ? launch_walk<T, true, Kernels>(p, rows, call)
                                 : launch_walk<T, false, Kernels>(p, rows, call);
    };
    if constexpr (is_single<T>)
        call.exact ? with(std::true_type{}) : with(std::false_type{});
    else
        with(std::true_type{});
}

}  // namespace cuda
}  // namespace tbptt
