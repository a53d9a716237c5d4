// Bands of an image whose channels lie together, walked from left to right: what of the one image meets what of the other.
#pragma once

#include "depthwise_walk.h"

namespace tbptt {
namespace TBPTT_ISA {

// An image as tiles see it: pixel (y, x) lies at origin + y·row + x·pixel, and `plane` further for each of the `depth`
// channels that meet one of the target.
template <class T>
struct PixelView {
    T* image;
    int64_t origin, row, pixel;
    int64_t depth = 1, plane = 0;

    int64_t at(int64_t y, int64_t x) const { return origin + y * row + x * pixel; }
};

// tile(tiling, fit, window, target) for the windows of a band, whose rows begin with step `first`. Without `Ragged` such
// tiles count as clipped.
template <bool Ragged, class M, int Rows, int Columns, class T, class To, class Tile>
TBPTT_INLINE void walk_windows(Tiling<M, Rows, Columns> tiling, const Passage& p, int64_t first,
                               const PixelView<const T>& source, const PixelView<To>& target, Tile tile) {
    constexpr int in_rows = M::window(Rows), in_columns = M::window(Columns);
    constexpr int out_rows = M::outputs(Rows), out_columns = M::outputs(Columns);
    int64_t in_column[in_columns], out_column[out_columns];
    for (int i = 0; i < in_columns; ++i) in_column[i] = i * source.pixel;
    for (int i = 0; i < out_columns; ++i) out_column[i] = i * target.pixel;
    const int64_t in_y = p.y.source_step * first + p.y.nearest, out_y = p.y.target_step * first + p.y.target_first;
    Patch<const T> from{source.image, 0, source.row, in_column, existing(in_y, in_rows, p.y.source), 0};
    Patch<To> to{target.image, 0, target.row, out_column, existing(out_y, out_rows, p.y.target), 0};
    const bool all_rows = from.rows == all_bits(in_rows), all_made = to.rows == all_bits(out_rows);
    for (int64_t x = p.x.steps.begin; x < p.x.steps.end; x += Columns) {
        const int64_t in_x = p.x.source_step * x + p.x.nearest, out_x = p.x.target_step * x + p.x.target_first;
        from.first = source.at(in_y, in_x);
        to.first = target.at(out_y, out_x);
        from.columns = existing(in_x, in_columns, p.x.source);
        to.columns = existing(out_x, out_columns, p.x.target);
        const bool made = all_made && to.columns == all_bits(out_columns);
        if (made && all_rows && from.columns == all_bits(in_columns))
            tile(tiling, FitConstant<Fit::whole>{}, from, to);
        else if (made || !Ragged)
            tile(tiling, FitConstant<Fit::clipped>{}, from, to);
        else if constexpr (Ragged)
            tile(tiling, FitConstant<Fit::ragged>{}, from, to);
    }
}

// What the columns of one band meet in the general case.
class MeetingList {
   public:
    MeetingList(const Passage& p, Meeting* list) : p_(p), list_(list) {}

    // The rows of the band: `rows` steps from `first` on.
    void set_rows(int64_t phase, int64_t first, int rows) {
        down_ = p_.y.elements_of(phase);
        across_ = {0, -1};
        first_ = first;
        rows_ = rows;
    }

    template <class T>
    void set_columns(Range across, const PixelView<const T>& source) {
        if (across.begin == across_.begin && across.end == across_.end) return;
        across_ = across;
        count_ = 0;
        whole_ = rows_ == column_rows;
        for (int64_t d = 0; d < source.depth; ++d)
            for (int64_t i = down_.begin; i < down_.end; ++i) {
                const Element& y = p_.y.element(i);
                unsigned rows = 0;
                for (int row = 0; row < rows_; ++row) {
                    const int64_t at = p_.y.source_step * (first_ + row) + y.offset;
                    rows |= static_cast<unsigned>(at >= 0 && at < p_.y.source) << row;
                }
                whole_ = whole_ && rows == all_bits(rows_);
                for (int64_t j = across.begin; rows != 0 && j < across.end; ++j) {
                    const Element& x = p_.x.element(j);
                    list_[count_++] = {d * source.plane + y.offset * source.row + x.offset * source.pixel,
                                       (d * p_.kernel_height + y.index) * p_.kernel_width + x.index, rows};
                }
            }
    }

    Meetings meetings() const { return {list_, count_}; }
    bool whole() const { return whole_; }

   private:
    const Passage& p_;
    Meeting* const list_;
    Range down_{0, 0}, across_{0, -1};
    int64_t first_ = 0, count_ = 0;
    int rows_ = 0;
    bool whole_ = false;
};

// column(fit, source, meetings, target) for the columns of a band in the general case; `list` is scratch for all meetings.
template <class T, class To, class Column>
TBPTT_INLINE void walk_columns(const Passage& p, int64_t first, const PixelView<const T>& source,
                               const PixelView<To>& target, Meeting* list, Column column) {
    const int64_t none = 0;
    MeetingList meetings(p, list);
    for (int64_t phase_y = 0; phase_y < p.y.phases; ++phase_y) {
        const int64_t rows = smaller<int64_t>(column_rows, p.y.steps_of(phase_y) - first);
        if (rows <= 0) continue;
        for (int64_t phase_x = 0; phase_x < p.x.phases; ++phase_x) {
            meetings.set_rows(phase_y, first, static_cast<int>(rows));
            for (int64_t x = 0; x < p.x.steps_of(phase_x); ++x) {
                meetings.set_columns(p.x.elements_inside(phase_x, x), source);
                const Patch<const T> from{source.image,
                                          source.at(p.y.source_step * first, p.x.source_step * x),
                                          p.y.source_step * source.row,
                                          nullptr,
                                          0,
                                          0};
                const Patch<To> to{target.image,
                                   target.at(phase_y + p.y.target_step * first, phase_x + p.x.target_step * x),
                                   p.y.target_step * target.row,
                                   &none,
                                   all_bits(static_cast<int>(rows)),
                                   1};
                if (meetings.whole())
                    column(FitConstant<Fit::whole>{}, from, meetings.meetings(), to);
                else
                    column(FitConstant<Fit::clipped>{}, from, meetings.meetings(), to);
            }
        }
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
