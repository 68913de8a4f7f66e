"""Meta Lingua without a GPU, for the tests that run it."""

import pytest


@pytest.fixture
def lingua(monkeypatch):
    """Lingua's modules, on the CPU in its own loop and in ours around it."""
    import lingua_cpu
    import torch

    from lingua_synth.hosts import lingua as host

    modules = lingua_cpu.imported(monkeypatch)
    lingua_cpu.on_cpu(monkeypatch, modules)
    monkeypatch.setattr(host, "gpu", lambda local_rank: torch.device("cpu"))
    return modules
