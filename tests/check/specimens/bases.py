"""Sound parts that several specimens build on: one small head, and projections as plain matrices."""

import torch
from torch import nn


class Head(nn.Module):
    """One head of attention, of width ``head_size``."""

    def __init__(self, embed_dim, head_size, dropout=0.0):
        super().__init__()
        self.query = nn.Linear(embed_dim, head_size, bias=False)
        self.key = nn.Linear(embed_dim, head_size, bias=False)
        self.value = nn.Linear(embed_dim, head_size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, memory, mask=None):
        q, k, v = self.query(x), self.key(memory), self.value(memory)
        scores = q @ k.transpose(1, 2) * k.size(-1) ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -6e4)
        return self.dropout(scores.softmax(dim=-1)) @ v


class MatrixAttention(nn.Module):
    """The letters of the paper: W_Q, W_K, W_V and W_O (E, E), used as x @ W."""

    def __init__(self, num_hiddens, num_heads, dropout=0.0):
        super().__init__()
        self.h, self.d_k = num_heads, num_hiddens // num_heads
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            W = torch.randn(num_hiddens, num_hiddens) / num_hiddens**0.5
            self.register_parameter(name, nn.Parameter(W))
        self.p = dropout

    def heads(self, X):
        return X.reshape(*X.shape[:2], self.h, self.d_k).swapaxes(1, 2)  # (B, H, T, D)

    def concat(self, X):
        return X.swapaxes(1, 2).reshape(X.size(0), X.size(2), -1)  # (B, T, E)
