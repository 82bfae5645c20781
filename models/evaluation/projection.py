"""
Vectors to the plane: principal components and exact t-SNE (van der Maaten and Hinton, 2008), for a few thousand points.

Both are deterministic: components have a fixed sign, and t-SNE starts from the components instead of at random.

Shapes: N = points, D = width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PERPLEXITY = 30.0
ITERATIONS = 500
# Early exaggeration and momentum as the authors set them; the learning rate follows N / exaggeration.
EXAGGERATION, EXAGGERATED_ITERATIONS = 12.0, 250
EARLY_MOMENTUM, LATE_MOMENTUM = 0.5, 0.8
BANDWIDTH_BISECTIONS = 50


def principal_components(vectors_ND: Tensor, num_components: int) -> Tensor:
    """
    The centred vectors in their first principal components [N, num_components].

    Each component's sign is such that its largest loading is positive.
    """
    centred_ND = vectors_ND.double() - vectors_ND.double().mean(dim=0)
    _, _, loadings_CD = torch.linalg.svd(centred_ND, full_matrices=False)
    loadings_CD = loadings_CD[:num_components]
    largest_C1 = loadings_CD.gather(1, loadings_CD.abs().argmax(dim=1, keepdim=True))
    components_NC: Tensor = centred_ND @ (loadings_CD * largest_C1.sign()).T
    return components_NC.float()


@torch.no_grad()
def t_sne(vectors_ND: Tensor, *, perplexity: float = PERPLEXITY, iterations: int = ITERATIONS) -> Tensor:
    """
    Exact t-SNE to two dimensions [N, 2], O(N^2) memory and time per iteration.

    Args:
        vectors_ND: points, their first two columns the start (give principal components).
        perplexity: effective number of neighbours; at most (N - 1) / 3 is used.
        iterations: gradient steps.
    """
    N = len(vectors_ND)
    affinity_NN = _joint_affinities(vectors_ND.double(), min(perplexity, max(1.0, (N - 1) / 3)))
    exaggerated_NN = EXAGGERATION * affinity_NN
    plane_N2 = vectors_ND[:, :2].double()
    plane_N2 = plane_N2 / plane_N2[:, 0].std().clamp(min=1e-12) * 1e-4
    velocity_N2 = torch.zeros_like(plane_N2)
    gains_N2 = torch.ones_like(plane_N2)
    learning_rate = max(N / EXAGGERATION / 4, 50.0)
    for iteration in range(iterations):
        early = iteration < EXAGGERATED_ITERATIONS
        gradient_N2 = _gradient(exaggerated_NN if early else affinity_NN, plane_N2)
        same_direction = (gradient_N2 > 0) == (velocity_N2 > 0)
        gains_N2 = torch.where(same_direction, gains_N2 * 0.8, gains_N2 + 0.2).clamp(min=0.01)
        momentum = EARLY_MOMENTUM if early else LATE_MOMENTUM
        velocity_N2 = momentum * velocity_N2 - learning_rate * gains_N2 * gradient_N2
        plane_N2 = plane_N2 + velocity_N2
        plane_N2 = plane_N2 - plane_N2.mean(dim=0)
    return plane_N2.float()


def _joint_affinities(vectors_ND: Tensor, perplexity: float) -> Tensor:
    """Symmetric p_ij summing to 1; each row's bandwidth is bisected until its entropy is ln(perplexity)."""
    N = len(vectors_ND)
    distances_NN = torch.cdist(vectors_ND, vectors_ND).square()
    itself_NN = torch.eye(N, dtype=torch.bool)
    low_N1 = torch.full((N, 1), -50.0, dtype=torch.float64)  # of log precision
    high_N1 = torch.full((N, 1), 50.0, dtype=torch.float64)
    for _ in range(BANDWIDTH_BISECTIONS):
        middle_N1 = (low_N1 + high_N1) / 2
        log_p_NN = torch.log_softmax((-middle_N1.exp() * distances_NN).masked_fill(itself_NN, -torch.inf), dim=1)
        p_NN = log_p_NN.exp()
        entropy_N1 = -(p_NN * log_p_NN.masked_fill(itself_NN, 0.0)).sum(dim=1, keepdim=True)
        too_flat_N1 = entropy_N1 > math.log(perplexity)
        low_N1 = torch.where(too_flat_N1, middle_N1, low_N1)
        high_N1 = torch.where(too_flat_N1, high_N1, middle_N1)
    return (p_NN + p_NN.T) / (2 * N)


def _gradient(affinity_NN: Tensor, plane_N2: Tensor) -> Tensor:
    """4 sum_j (p_ij - q_ij) (y_i - y_j) / (1 + |y_i - y_j|^2)."""
    # Squared distances by one product, and in place: half the time of torch.cdist and a temporary per operation. What
    # the product cancels is far below the 1 that is added.
    squares_N = plane_N2.square().sum(dim=1)
    kernel_NN = torch.addmm(squares_N[:, None] + (1.0 + squares_N), plane_N2, plane_N2.T, alpha=-2.0).reciprocal_()
    kernel_NN.fill_diagonal_(0.0)
    force_NN = torch.sub(affinity_NN, kernel_NN, alpha=1.0 / float(kernel_NN.sum())).mul_(kernel_NN)
    return 4 * (force_NN.sum(dim=1, keepdim=True) * plane_N2 - force_NN @ plane_N2)
