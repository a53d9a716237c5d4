// The cells' maths on the tiles of a convolutional recurrent layer: a function for each cell and direction.
#pragma once

#include "convrecurrent.h"

namespace tbptt {
namespace TBPTT_ISA {

// Where the values of one pixel lie, [H] each unless stated.
template <class T>
struct ForwardLine {
    T* maps;  // [gates][H]: the convolution of x with the biases; then, where `keeps`, what the tape keeps
    const T *h_before, *c_before;
    T* h;       // out =, or null
    T* beside;  // out = c; of the GRU the candidate's recurrent part; or null
    const T* peephole;
};

template <class T>
struct BackwardLine {
    const T* maps;    // [gates][H], of the tape
    const T* beside;  // of the tape
    const T *h_before, *c_before;
    const T *grad_h, *more_grad_h;  // of the loss and of the final state
    const T* carry;                 // what the later step passed back beside the product
    T* carry_out;                   // out =; may be `carry`
    T* dgates;                      // out = [gates][H], what meets W_hh
    T* dgates_x;                    // out = [gates][H], what meets W_ih, where that differs
    const T* peephole;
    T factor;      // of the product and of the carry
    bool initial;  // not a cell, but the initial state: `dgates` is the gradient of its h, `carry_out` of its c
};

// Rows `lines` and `vectors` of units from `unit` on.
template <class T, class Line>
struct CellTile {
    const Line* lines;
    int64_t height;
    const T* product;                   // of row r at r·product_row; whole vectors can be read
    int64_t product_row, product_gate;  // 0 where there is none: the product is zeros
    int64_t unit;
    int vectors;
    int64_t hidden;
    const T* candidate_bias;  // [H]
    int64_t peephole_gate;    // from one gate's peepholes to the next
    bool keeps;               // the gates
    bool known;               // h and c, which are not written again
};

template <class T>
using ForwardTile = CellTile<T, ForwardLine<T>>;
template <class T>
using BackwardTile = CellTile<T, BackwardLine<T>>;

// One vector of units of one row.
template <class T, class Line>
struct CellPlace {
    const Line* line;
    const T* product;
    int64_t unit, count;  // of them in a row of H
};

template <class T, class Line>
TBPTT_INLINE CellPlace<T, Line> place_in(const CellTile<T, Line>& tile, int64_t i) {
    const int64_t row = tile.vectors == 1 ? i : i / tile.vectors, vector = tile.vectors == 1 ? 0 : i % tile.vectors;
    const int64_t unit = tile.unit + vector * lanes<T>;
    return {tile.lines + row, tile.product + row * tile.product_row + (tile.product_row ? vector * lanes<T> : 0), unit,
            tile.hidden - unit};
}

template <class T, template <class> class CellOf>
__attribute__((noinline)) void apply_forward(const ForwardTile<T>& tile) {
    constexpr int N = units_together;
    using Cell = CellOf<VecMath<T, N>>;
    using V = Wide<T, N>;
    constexpr CellShape cell = Cell::shape;
    const int64_t vectors = tile.height * tile.vectors, hidden = tile.hidden;
    for (int64_t first = 0; first < vectors; first += N) {
        CellPlace<T, ForwardLine<T>> at[N];
        // At the end the last vector is taken again: its values have been read before they are written.
        for (int n = 0; n < N; ++n) at[n] = place_in(tile, first + n < vectors ? first + n : vectors - 1);
        const auto read = [&](int n, const T* from) { return load_partial(from + at[n].unit, at[n].count); };
        V in[cell.gates], rec[cell.gates], saved[cell.saved + 1], h{}, c{}, h_before{}, c_before{};
#pragma GCC unroll 4
        for (int g = 0; g < cell.gates; ++g) {
            in[g] = each<T, N>([&](int n) { return read(n, at[n].line->maps + g * hidden); });
            rec[g] = each<T, N>([&](int n) { return load(at[n].product + g * tile.product_gate); });
        }
        if (cell.candidate_apart) {
            rec[cell.gates - 1] = rec[cell.gates - 1] + each<T, N>([&](int n) { return read(n, tile.candidate_bias); });
            h_before = each<T, N>([&](int n) { return read(n, at[n].line->h_before); });
        }
        if (cell.has_c) c_before = each<T, N>([&](int n) { return read(n, at[n].line->c_before); });
        if constexpr (cell.has_c) {
            const bool given = at[0].line->peephole != nullptr;
            V p[3] = {};
            for (int g = 0; g < 3; ++g)
                p[g] = each<T, N>(
                    [&](int n) { return given ? read(n, at[n].line->peephole + g * tile.peephole_gate) : Vec<T>{}; });
            Cell::forward(in, rec, h_before, c_before, saved, h, c, given ? p : nullptr);
        } else {
            Cell::forward(in, rec, h_before, c_before, saved, h, c);
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const ForwardLine<T>& line = *at[n].line;
            const auto write = [&](T* to, Vec<T> value) { store_partial(to + at[n].unit, value, at[n].count); };
            if (!tile.known) write(line.h, h.part[n]);
            if (cell.has_c && !tile.known) write(line.beside, c.part[n]);
            if (!tile.keeps) continue;
            if (cell.candidate_apart) write(line.beside, saved[cell.gates].part[n]);
#pragma GCC unroll 4
            for (int g = 0; g < cell.gates; ++g)
                write(line.maps + g * hidden, cell.saved ? saved[g].part[n] : h.part[n]);
        }
    }
}

// The gradient of the initial state: the same for all cells.
template <class T>
__attribute__((noinline)) void into_initial_state(const CellPlace<T, BackwardLine<T>>& at, bool has_c, bool has_carry) {
    const BackwardLine<T>& line = *at.line;
    Vec<T> h = load(at.product) * line.factor, carry{};
    if (has_carry) carry = load_partial(line.carry + at.unit, at.count) * line.factor;
    if (has_c)
        store_partial(line.carry_out + at.unit, carry, at.count);
    else if (has_carry)
        h += carry;
    store_partial(line.dgates + at.unit, h, at.count);
}

template <class T, template <class> class CellOf>
__attribute__((noinline)) void apply_backward(const BackwardTile<T>& tile) {
    constexpr int N = units_together;
    using Cell = CellOf<VecMath<T, N>>;
    using V = Wide<T, N>;
    constexpr CellShape cell = Cell::shape;
    const int64_t vectors = tile.height * tile.vectors, hidden = tile.hidden;
    for (int64_t next = 0; next < vectors;) {
        CellPlace<T, BackwardLine<T>> at[N];
        int found = 0;
        while (next < vectors && found < N) {
            at[found] = place_in(tile, next++);
            if (at[found].count <= 0) continue;
            if (at[found].line->initial)
                into_initial_state<T>(at[found], cell.has_c, cell.has_carry);
            else
                ++found;
        }
        if (found == 0) return;
        // At the end the last vector is taken again: its values have been read before they are written.
        for (int n = found; n < N; ++n) at[n] = at[found - 1];
        const auto read = [&](int n, const T* from) { return load_partial(from + at[n].unit, at[n].count); };
        V dh = each<T, N>([&](int n) {
            const BackwardLine<T>& line = *at[n].line;
            return load(at[n].product) * line.factor + (read(n, line.grad_h) + read(n, line.more_grad_h));
        });
        V carry{}, saved[cell.saved + 1], h{}, c{}, h_before{}, c_before{}, carry_out{}, dgates[cell.gate_gradients];
        if (cell.has_carry) carry = each<T, N>([&](int n) { return read(n, at[n].line->carry) * at[n].line->factor; });
#pragma GCC unroll 4
        for (int g = 0; g < cell.gates; ++g) {
            const V value = each<T, N>([&](int n) { return read(n, at[n].line->maps + g * hidden); });
            (cell.saved ? saved[g] : h) = value;
        }
        if (cell.candidate_apart) {
            saved[cell.gates] = each<T, N>([&](int n) { return read(n, at[n].line->beside); });
            h_before = each<T, N>([&](int n) { return read(n, at[n].line->h_before); });
        }
        if (cell.has_c) {
            c = each<T, N>([&](int n) { return read(n, at[n].line->beside); });
            c_before = each<T, N>([&](int n) { return read(n, at[n].line->c_before); });
        }
        if constexpr (cell.has_c) {
            const bool given = at[0].line->peephole != nullptr;
            V p[3] = {};
            for (int g = 0; g < 3; ++g)
                p[g] = each<T, N>(
                    [&](int n) { return given ? read(n, at[n].line->peephole + g * tile.peephole_gate) : Vec<T>{}; });
            Cell::backward(saved, h, h_before, c_before, c, dh, carry, dgates, carry_out, given ? p : nullptr);
        } else {
            Cell::backward(saved, h, h_before, c_before, c, dh, carry, dgates, carry_out);
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const BackwardLine<T>& line = *at[n].line;
            const auto write = [&](T* to, Vec<T> value) { store_partial(to + at[n].unit, value, at[n].count); };
            if (cell.has_carry) write(line.carry_out, carry_out.part[n]);
#pragma GCC unroll 4
            for (int g = 0; g < cell.gates; ++g) {
                write(line.dgates + g * hidden, dgates[cell.recurrent_first() + g].part[n]);
                if (cell.candidate_apart) write(line.dgates_x + g * hidden, dgates[(g + 1) % cell.gates].part[n]);
            }
        }
    }
}

template <class T>
using ApplyForward = void (*)(const ForwardTile<T>&);
template <class T>
using ApplyBackward = void (*)(const BackwardTile<T>&);

template <class T>
ApplyForward<T> find_forward(Cell cell) {
    switch (cell) {
        case Cell::rnn_tanh: return apply_forward<T, RnnTanh>;
        case Cell::rnn_relu: return apply_forward<T, RnnRelu>;
        case Cell::gru: return apply_forward<T, Gru>;
        default: return apply_forward<T, Lstm>;
    }
}

template <class T>
ApplyBackward<T> find_backward(Cell cell) {
    switch (cell) {
        case Cell::rnn_tanh: return apply_backward<T, RnnTanh>;
        case Cell::rnn_relu: return apply_backward<T, RnnRelu>;
        case Cell::gru: return apply_backward<T, Gru>;
        default: return apply_backward<T, Lstm>;
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
