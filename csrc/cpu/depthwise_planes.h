// Parts of images in planes, one a channel, and what of the one image meets what of the other in them.
//
// What a part of the target meets is copied into scratch memory in the first-level cache, surrounded by zeros and, where
// steps leave columns out, with the columns of each phase side by side: every vector is then loaded as it lies.
#pragma once

#include "depthwise_walk.h"

namespace tbptt {
namespace TBPTT_ISA {

// to[i] = from[Step·i] for i in `inside`; zeros before it and up to `count`. Up to a vector behind that is overwritten.
template <int Step, class T>
TBPTT_INLINE void copy_padded(const T* from, int64_t step, Range inside, int64_t count, T* __restrict to) {
    for (int64_t i = 0; i < inside.begin; i += lanes<T>) store(to + i, Vec<T>{});
    if (Step == 1)
        for (int64_t i = inside.begin; i < inside.end; i += lanes<T>)
            store(to + i, load_partial(from + i, inside.end - i));
    else
        for (int64_t i = inside.begin; i < inside.end; ++i) to[i] = from[i * (Step > 0 ? Step : step)];
    for (int64_t i = inside.end; i < count; i += lanes<T>) store(to + i, Vec<T>{});
}

// to[i] is element (from + i) of columns whose `step` phases lie `pitch` apart.
template <int Step, class T>
TBPTT_INLINE void zip_phases(const T* columns, int64_t step, int64_t pitch, int64_t from, int64_t count,
                             T* __restrict to) {
    int64_t i = 0;
    const auto one = [&] { to[i] = columns[(from + i) % step * pitch + (from + i) / step], ++i; };
    if (Step == 2) {
        if (from % 2 != 0 && count > 0) one();
        const T *even = columns + (from + i) / 2, *odd = even + pitch;
        for (int64_t k = 0; k < (count - i) / 2; ++k) {
            to[i + 2 * k] = even[k];
            to[i + 2 * k + 1] = odd[k];
        }
        i += (count - i) / 2 * 2;
    }
    while (i < count) one();
}

// How a passage's target is cut into parts, and the scratch memory of a worker: for `depth` planes of the source, and for
// rows of the target that are made phase by phase.
struct PlanesLayout {
    explicit PlanesLayout(const Passage& p, int64_t element)
        : single(p.window == Window::none && p.y.steps.end == 1 && p.y.phases == 1),
          made_rows(p.x.target_step == 1     ? 0
                    : p.window == Window::up ? 2 * p.rows()
                                             : column_rows) {
        constexpr int64_t most = 1024, made = 8192, bytes = 24 << 10;
        const int64_t steps_across = p.x.steps.end - p.x.steps.begin, steps_down = p.y.steps.end - p.y.steps.begin;
        const int64_t reach_down = p.y.farthest - p.y.nearest, reach_across = p.x.farthest - p.x.nearest;
        across = smaller(round_up(steps_across), round_up(smaller(most, made / p.x.target_step)));
        length = across + reach_across / p.x.source_step;
        pitch = round_up(length + 16);
        row = pitch * p.x.source_step;
        const int64_t fit = bytes / (row * p.channels.depth * element) - reach_down - 1;
        down = larger<int64_t>(1, smaller(fit / p.y.source_step / p.rows(), ceil_div(steps_down, p.rows()))) * p.rows();
        plane = row * (p.y.source_step * (down - 1) + reach_down + 1);
        source = plane * p.channels.depth;
        target = made_rows * p.x.target_step * across;
        parts_down = ceil_div(steps_down, down);
        parts_across = ceil_div(steps_across, across);
    }

    static int64_t round_up(int64_t count) { return larger<int64_t>(1, ceil_div(count, 16)) * 16; }

    const bool single;        // one row: tiles have vectors across instead of rows
    const int64_t made_rows;  // of the target at a time; 0 where they are written at once
    int64_t across, down;     // steps of a part
    int64_t length, pitch, row, plane;
    int64_t source, target;  // elements
    int64_t parts_down, parts_across;
};

template <class T>
class Planes {
   public:
    Planes(const Passage& p, const T* source, int threads)
        : p_(p),
          layout_(p, sizeof(T)),
          source_(source),
          list_of_worker_(p.window == Window::none ? p.channels.depth * p.elements() : 0),
          scratch_(threads * (layout_.source + layout_.target)),
          lists_(threads * list_of_worker_) {}

    int64_t plane() const { return layout_.plane; }
    int64_t parts() const { return layout_.parts_down * layout_.parts_across; }
    Range down(int64_t part) const { return piece(p_.y.steps, part / layout_.parts_across, layout_.down); }
    Range across(int64_t part) const { return piece(p_.x.steps, part % layout_.parts_across, layout_.across); }

    // Copies the planes of a group that the part meets.
    void fill(const Worker& worker, int64_t n, int64_t group, int64_t part) const {
        const Range steps = down(part);
        const int64_t first = p_.y.source_step * steps.begin + p_.y.nearest;
        const int64_t rows = p_.y.source_step * (steps.end - steps.begin - 1) + p_.y.farthest - p_.y.nearest + 1;
        const int64_t left = p_.x.source_step * across(part).begin + p_.x.nearest, size = p_.y.source * p_.x.source;
        const T* plane = source_ + (n * p_.channels.source() + group * p_.channels.depth) * size;
        T* to = planes(worker);
        for (int64_t d = 0; d < p_.channels.depth; ++d, plane += size, to += layout_.plane)
            for (int64_t phase = 0; phase < p_.x.source_step; ++phase)
                copy_rows(plane, first, rows, left + phase, to + phase * layout_.pitch);
    }

    // tile(tiling, fit, window, target, lane, count) or column(fit, source, meetings, target, lane, count) for all vectors of
    // a part, in one plane of the target; `count` are the lanes that exist.
    template <class To, class Tile, class Column>
    void walk(const Worker& worker, int64_t part, To* plane, Tile tile, Column column) const {
        if (p_.window == Window::none)
            layout_.single ? walk_row(worker, part, plane, column) : walk_columns(worker, part, plane, column);
        else
            with_tiling<1>(p_.window, [&](auto tiling) { walk_windows(tiling, worker, part, plane, tile); });
    }

   private:
    static Range piece(Range all, int64_t index, int64_t size) {
        const int64_t begin = all.begin + index * size;
        return {begin, smaller(begin + size, all.end)};
    }

    T* planes(const Worker& worker) const { return scratch_ + worker.index * (layout_.source + layout_.target); }
    T* made(const Worker& worker) const { return planes(worker) + layout_.source; }

    // One phase of the columns from `left` on, of the rows from `first` on.
    void copy_rows(const T* plane, int64_t first, int64_t rows, int64_t left, T* to) const {
        const int64_t step = p_.x.source_step, width = p_.x.source;
        const int64_t begin = left < 0 ? ceil_div(-left, step) : 0,
                      end = left < width ? ceil_div(width - left, step) : 0;
        const Range all{smaller(begin, layout_.length), larger(begin, smaller(end, layout_.length))};
        for (int64_t y = first; y < first + rows; ++y, to += layout_.row) {
            const Range inside = y >= 0 && y < p_.y.source ? all : Range{0, 0};
            const T* from = plane + y * width + left;
            step == 1   ? copy_padded<1>(from, step, inside, layout_.length, to)
            : step == 2 ? copy_padded<2>(from, step, inside, layout_.length, to)
                        : copy_padded<0>(from, step, inside, layout_.length, to);
        }
    }

    template <class M, int Rows, int Columns, class To, class Tile>
    void walk_windows(Tiling<M, Rows, Columns> tiling, const Worker& worker, int64_t part, To* plane, Tile tile) const {
        constexpr int in_columns = M::window(1), out_columns = M::outputs(1), out_rows = M::outputs(Rows);
        int64_t in_column[in_columns], out_column[out_columns];
        for (int i = 0; i < in_columns; ++i) in_column[i] = column_of(i);
        for (int i = 0; i < out_columns; ++i) out_column[i] = i * layout_.across;
        const Range steps = down(part), all = across(part);
        Patch<const T> from{planes(worker), 0, layout_.row, in_column, 0, all_bits(in_columns)};
        Patch<To> to{plane, 0, p_.x.target, out_column, 0, all_bits(out_columns)};
        if (layout_.made_rows > 0) to.image = made(worker), to.row = out_columns * layout_.across;
        for (int64_t t = steps.begin; t < steps.end; t += Rows) {
            const int count = static_cast<int>(smaller<int64_t>(Rows, steps.end - t));
            const int64_t y = p_.y.target_step * t + p_.y.target_first;
            from.rows = all_bits(M::window(count));
            to.rows = existing(y, M::outputs(count), p_.y.target);
            for (int64_t x = all.begin; x < all.end; x += lanes<T>) {
                from.first = p_.y.source_step * (t - steps.begin) * layout_.row + x - all.begin;
                to.first = layout_.made_rows > 0 ? x - all.begin : y * p_.x.target + x;
                if (to.rows == all_bits(out_rows))
                    tile(tiling, FitConstant<Fit::whole>{}, from, to, all.end - x);
                else
                    tile(tiling, FitConstant<std::is_const<To>::value ? Fit::ragged : Fit::clipped>{}, from, to,
                         all.end - x);
            }
            if (layout_.made_rows > 0)
                for (int i = 0; i < out_rows; ++i)
                    if (to.rows >> i & 1) zip_row(worker, i, all, plane + (y + i) * p_.x.target);
        }
    }

    template <class To, class Column>
    void walk_columns(const Worker& worker, int64_t part, To* plane, Column column) const {
        const int64_t none = 0, step = p_.y.target_step;
        const Range steps = down(part), all = across(part);
        for (int64_t phase_y = 0; phase_y < p_.y.phases; ++phase_y)
            for (int64_t t = steps.begin; t < smaller(steps.end, p_.y.steps_of(phase_y)); t += column_rows) {
                const int64_t end = smaller(t + column_rows, smaller(steps.end, p_.y.steps_of(phase_y)));
                const int rows = static_cast<int>(end - t);
                const int64_t y = phase_y + step * t, first = p_.y.source_step * (t - steps.begin) * layout_.row;
                for (int64_t phase_x = 0; phase_x < p_.x.phases; ++phase_x) {
                    const Meetings meetings = meetings_of(worker, phase_y, phase_x);
                    const int64_t last = smaller(all.end, p_.x.steps_of(phase_x));
                    Patch<const T> from{planes(worker), 0, p_.y.source_step * layout_.row, nullptr, 0, 0};
                    Patch<To> to{plane, 0, step * p_.x.target, &none, all_bits(rows), 1};
                    if (layout_.made_rows > 0) to.image = made(worker), to.row = p_.x.target_step * layout_.across;
                    for (int64_t x = all.begin; x < last; x += lanes<T>) {
                        from.first = first + x - all.begin;
                        to.first =
                            layout_.made_rows > 0 ? phase_x * layout_.across + x - all.begin : y * p_.x.target + x;
                        hand_out(rows, from, meetings, to, last - x, column);
                    }
                }
                if (layout_.made_rows > 0)
                    for (int i = 0; i < rows; ++i) zip_row(worker, i, all, plane + (y + step * i) * p_.x.target);
            }
    }

    template <class To, class Column>
    void walk_row(const Worker& worker, int64_t part, To* plane, Column column) const {
        const int64_t none = 0;
        const Range all = across(part);
        for (int64_t phase = 0; phase < p_.x.phases; ++phase) {
            const Meetings meetings = meetings_of(worker, 0, phase);
            const int64_t end = smaller(all.end, p_.x.steps_of(phase));
            Patch<const T> from{planes(worker), 0, lanes<T>, nullptr, 0, 0};
            Patch<To> to{plane, 0, lanes<T>, &none, 0, 1};
            if (layout_.made_rows > 0) to.image = made(worker);
            for (int64_t x = all.begin; x < end;) {
                const int64_t whole = (end - x) / lanes<T>;
                const int rows = static_cast<int>(larger<int64_t>(1, smaller<int64_t>(whole, column_rows)));
                from.first = x - all.begin;
                to.first = layout_.made_rows > 0 ? phase * layout_.across + x - all.begin : x;
                to.rows = all_bits(rows);
                hand_out(rows, from, meetings, to, end - x, column);
                x += rows * lanes<T>;
            }
        }
        if (layout_.made_rows > 0) zip_row(worker, 0, all, plane);
    }

    template <class To, class Column>
    static void hand_out(int rows, const Patch<const T>& from, Meetings meetings, const Patch<To>& to, int64_t count,
                         Column column) {
        if (rows == column_rows)
            column(FitConstant<Fit::whole>{}, from, meetings, to, count);
        else
            column(FitConstant<Fit::clipped>{}, from, meetings, to, count);
    }

    // Where the column lies in scratch memory that is so far from a step's first.
    int64_t column_of(int64_t offset) const {
        return offset % p_.x.source_step * layout_.pitch + offset / p_.x.source_step;
    }

    Meetings meetings_of(const Worker& worker, int64_t phase_y, int64_t phase_x) const {
        Meeting* list = lists_ + worker.index * list_of_worker_;
        const Range down = p_.y.elements_of(phase_y), across = p_.x.elements_of(phase_x);
        int64_t count = 0;
        for (int64_t d = 0; d < p_.channels.depth; ++d)
            for (int64_t i = down.begin; i < down.end; ++i)
                for (int64_t j = across.begin; j < across.end; ++j) {
                    const Element &y = p_.y.element(i), &x = p_.x.element(j);
                    list[count++] = {d * layout_.plane + (y.offset - p_.y.nearest) * layout_.row +
                                         column_of(x.offset - p_.x.nearest),
                                     (d * p_.kernel_height + y.index) * p_.kernel_width + x.index,
                                     all_bits(column_rows)};
                }
        return {list, count};
    }

    // Row `i` of what was made, of all phases, to the target's row.
    void zip_row(const Worker&, int64_t, Range, const T*) const {}  // nothing is made of a constant target
    void zip_row(const Worker& worker, int64_t i, Range all, T* to) const {
        const int64_t step = p_.x.target_step, first = step * all.begin + p_.x.target_first;
        const Range columns = p_.x.targets(all);
        const T* from = made(worker) + i * step * layout_.across;
        const int64_t skipped = columns.begin - first, count = columns.end - columns.begin;
        if (step == 2)
            zip_phases<2>(from, step, layout_.across, skipped, count, to + columns.begin);
        else
            zip_phases<0>(from, step, layout_.across, skipped, count, to + columns.begin);
    }

    const Passage& p_;
    const PlanesLayout layout_;
    const T* source_;
    const int64_t list_of_worker_;
    Buffer<T> scratch_;
    Buffer<Meeting> lists_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
