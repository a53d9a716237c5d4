from collections.abc import Iterable
from typing import Any, SupportsIndex

from numpy.typing import NDArray

class Tape:
    @property
    def nbytes(self) -> int: ...
    @property
    def memory(self) -> NDArray[Any]: ...

def rnn_forward(
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    nonlinearity: str,
    is_init: Any,
    training: bool,
) -> tuple[NDArray[Any], NDArray[Any], Tape | None]: ...
def gru_forward(
    x: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, is_init: Any, training: bool
) -> tuple[NDArray[Any], NDArray[Any], Tape | None]: ...
def lstm_forward(
    x: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, is_init: Any, training: bool
) -> tuple[NDArray[Any], tuple[NDArray[Any], NDArray[Any]], Tape | None]: ...
def rnn_backward(
    tape: Any, grad_out: Any, grad_hx: Any, truncation: Any, carry_scale: Any
) -> tuple[Any, Any, Any, Any, Any, Any]: ...
def gru_backward(
    tape: Any, grad_out: Any, grad_hx: Any, truncation: Any, carry_scale: Any
) -> tuple[Any, Any, Any, Any, Any, Any]: ...
def lstm_backward(
    tape: Any, grad_out: Any, grad_hx: Any, truncation: Any, carry_scale: Any
) -> tuple[Any, Any, Any, Any, Any, Any]: ...
def lag_norms(
    tape: Any, grad_out: Any, max_lag: SupportsIndex, sums: bool
) -> tuple[NDArray[Any], NDArray[Any] | None]: ...
def borrow_arrays(*tensors: Any) -> list[Any]: ...

class ConvTape:
    @property
    def nbytes(self) -> int: ...
    @property
    def memory(self) -> NDArray[Any]: ...

def convrnn_forward(
    nonlinearity: str,
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    peephole: Any,
    is_init: Any,
    dilation: Any,
    layout: str,
    algo: str,
    training: bool,
    recompute: bool,
) -> tuple[NDArray[Any], Any, ConvTape | None]: ...
def convrecurrent_forward(
    cell: str,
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    peephole: Any,
    is_init: Any,
    dilation: Any,
    layout: str,
    algo: str,
    training: bool,
    recompute: bool,
) -> tuple[NDArray[Any], Any, ConvTape | None]: ...
def convrecurrent_backward(
    cell: str, tape: Any, grad_out: Any, grad_hx: Any, truncation: Any, carry_scale: Any
) -> tuple[Any, Any, Any, Any, Any, Any, Any]: ...
def restore_conv_tape(
    cell: str,
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    peephole: Any,
    is_init: Any,
    dilation: Any,
    layout: str,
    algo: str,
    recompute: bool,
    out: Any,
    memory: Any,
) -> ConvTape: ...
def restore_tape(
    cell: str,
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    has_b_ih: bool,
    has_b_hh: bool,
    is_init: Any,
    memory: Any,
) -> Tape: ...
def linear(x: Any, w: Any, b: Any, activation: str | None) -> NDArray[Any]: ...
def linear_backward(
    grad_out: Any, x: Any, w: Any, y: Any, activation: str | None, needs: Iterable[str]
) -> tuple[Any, Any, Any]: ...

class PackedConv2d:
    @property
    def w(self) -> NDArray[Any]: ...
    @property
    def nbytes(self) -> int: ...

def conv1d(
    x: Any,
    w: Any,
    b: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: SupportsIndex,
    activation: str | None,
    layout: str,
) -> NDArray[Any]: ...
def conv1d_backward(
    grad_out: Any,
    x: Any,
    w: Any,
    y: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: SupportsIndex,
    activation: str | None,
    layout: str,
    needs: Iterable[str],
) -> tuple[Any, Any, Any]: ...
def conv2d(
    x: Any,
    w: Any,
    b: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: SupportsIndex,
    activation: str | None,
    layout: str,
    algo: str,
) -> NDArray[Any]: ...
def conv2d_backward(
    grad_out: Any,
    x: Any,
    w: Any,
    y: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: SupportsIndex,
    activation: str | None,
    layout: str,
    algo: str,
    needs: Iterable[str],
) -> tuple[Any, Any, Any]: ...
def conv_transpose2d(
    x: Any,
    w: Any,
    b: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: SupportsIndex,
    activation: str | None,
    layout: str,
    algo: str,
) -> NDArray[Any]: ...
def conv_transpose2d_backward(
    grad_out: Any,
    x: Any,
    w: Any,
    y: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: SupportsIndex,
    activation: str | None,
    layout: str,
    algo: str,
    needs: Iterable[str],
) -> tuple[Any, Any, Any]: ...
def embedding(ids: Any, w: Any) -> NDArray[Any]: ...
def embedding_backward(grad_out: Any, ids: Any, num_embeddings: SupportsIndex) -> NDArray[Any]: ...
def softmax_cross_entropy(
    logits: Any, targets: Any, weights: Any, ignore_index: SupportsIndex, reduction: str
) -> tuple[Any, NDArray[Any]]: ...
def mse_loss(
    prediction: Any, target: Any, weights: Any, reduction: str
) -> tuple[Any, NDArray[Any]]: ...
def global_norm(arrays: Any, clip_value: float | None) -> float: ...
def sgd_step(
    params: Any,
    grads: Any,
    momentum: Any,
    lr: float,
    mu: float,
    dampening: float,
    nesterov: bool,
    velocity: bool,
    weight_decay: float,
    maximize: bool,
    max_norm: float | None,
    clip_value: float | None,
    non_finite: str,
    norm: float | None,
) -> tuple[float, bool]: ...
def rmsprop_step(
    params: Any,
    grads: Any,
    square_avg: Any,
    momentum: Any,
    grad_avg: Any,
    lr: float,
    alpha: float,
    eps: float,
    mu: float,
    weight_decay: float,
    maximize: bool,
    max_norm: float | None,
    clip_value: float | None,
    non_finite: str,
    norm: float | None,
) -> tuple[float, bool]: ...
def adam_step(
    params: Any,
    grads: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    max_exp_avg_sq: Any,
    step: SupportsIndex,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    max_norm: float | None,
    clip_value: float | None,
    non_finite: str,
    norm: float | None,
) -> tuple[float, bool]: ...
def l1_loss(
    prediction: Any, target: Any, weights: Any, reduction: str
) -> tuple[Any, NDArray[Any]]: ...
def hinge_loss(
    prediction: Any, target: Any, weights: Any, reduction: str
) -> tuple[Any, NDArray[Any]]: ...
def huber_loss(
    prediction: Any, target: Any, delta: float, weights: Any, reduction: str
) -> tuple[Any, NDArray[Any]]: ...
def pack_conv2d(w: Any) -> PackedConv2d: ...
def relu(x: Any) -> NDArray[Any]: ...
def activation_backward(grad_out: Any, y: Any, activation: str) -> NDArray[Any]: ...
def softmax(x: Any) -> NDArray[Any]: ...
def softmax_backward(grad_out: Any, y: Any) -> NDArray[Any]: ...
def max_pool2d(
    x: Any, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, layout: str
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def max_pool2d_backward(
    grad_out: Any, indices: Any, input_shape: Any, layout: str
) -> NDArray[Any]: ...
def avg_pool2d(
    x: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    layout: str,
) -> NDArray[Any]: ...
def avg_pool2d_backward(
    grad_out: Any,
    input_shape: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    layout: str,
) -> NDArray[Any]: ...
def global_avg_pool2d(x: Any, layout: str) -> NDArray[Any]: ...
def global_avg_pool2d_backward(grad_out: Any, input_shape: Any, layout: str) -> NDArray[Any]: ...
def exp(x: Any) -> NDArray[Any]: ...
def tanh(x: Any) -> NDArray[Any]: ...
def sigmoid(x: Any) -> NDArray[Any]: ...
def set_num_threads(n: SupportsIndex) -> None: ...
def get_num_threads() -> int: ...
def set_isa(name: str) -> None: ...
def active_isa() -> str: ...
def available_isas() -> tuple[str, ...]: ...
def build_info() -> dict[str, Any]: ...
def memory_in_use() -> int: ...
def memory_cached() -> int: ...
def memory_peak() -> int: ...
def reset_memory_peak() -> None: ...
def empty_cache() -> None: ...
def fma_peak(threads: int, seconds: float) -> float: ...
def memory_bandwidth(threads: int, seconds: float) -> float: ...
def cgroup_cpus(cpu_max: str) -> int | None: ...
def batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    layout: str,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], Any, Any]: ...
def batch_norm_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    mean: Any,
    inv_std: Any,
    training: bool,
    layout: str,
    needs: Iterable[str],
) -> tuple[Any, Any, Any]: ...
def layer_norm(
    x: Any, weight: Any, bias: Any, eps: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
def layer_norm_backward(
    grad_out: Any, x: Any, weight: Any, mean: Any, inv_std: Any, needs: Iterable[str]
) -> tuple[Any, Any, Any]: ...
def dropout(x: Any, p: float, key: SupportsIndex) -> NDArray[Any]: ...
def dropout_backward(grad_out: Any, p: float, key: SupportsIndex) -> NDArray[Any]: ...

# where it was built with its functions for JAX
def jax_targets() -> dict[str, Any]: ...
def jax_convolution(
    op: str,
    rank: int,
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: SupportsIndex,
    layout: str,
    activation: str | None,
) -> tuple[tuple[int, ...], tuple[int, ...], int]: ...
def jax_convrecurrent(
    op: str,
    cell: str,
    x: tuple[int, ...],
    w_ih: tuple[int, ...],
    w_hh: tuple[int, ...],
    dilation: Any,
    layout: str,
    algo: str,
    recompute: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]: ...
