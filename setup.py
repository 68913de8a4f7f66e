"""Metadata of the package; tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "lingua_synth" / "__init__.py").read_text()).group(1)

CORE = ["numpy>=1.26", "scipy>=1.11", "pyarrow>=15", "omegaconf>=2.3", "pyyaml>=6", "tqdm>=4.66"]
# jinja2 renders chat templates; torch brings it.
TRAIN = ["torch>=2.9", "tiktoken>=0.7", "sentencepiece>=0.2", "jinja2>=3.1"]
REPORT = ["matplotlib>=3.8"]
GENERATE = ["aiohttp>=3.9"]
EXTRAS = {
    "train": TRAIN,
    "report": REPORT,
    "openai": GENERATE,
    "quickstart": TRAIN + REPORT + GENERATE,
    "tracking": ["tensorboard>=2.15"],
    # Near-duplicates and the languages of documents and outputs.
    "filters": ["datasketch>=1.6", "py3langid>=0.4"],
    "slurm": ["submitit>=1.5.3"],
    "docs": ["mkdocs>=1.6", "mkdocstrings[python]>=1.0"],
    "vllm": ["vllm>=0.10"],
    "hf": ["torch>=2.9", "transformers>=4.56", "jinja2>=3.1"],
    # Downstream tasks.
    "eval": ["lm-eval[hf]>=0.4.13"],
    "gpu": ["xformers>=0.0.29", "liger-kernel>=0.8.5"],
    # Meta's package, for the tokenizer.model in it. It asks for some 20 MB of small packages that are not needed here:
    # `pip install --no-deps llama-models` serves as well.
    "llama3": ["llama-models>=0.3"],
    # One version, the one whose ids were compared (lingua_synth/tokens/fast_bpe.py accepts no other).
    "fast": ["gigatoken==0.10.0"],
    "formats": ["zstandard>=0.22", "fsspec>=2024.2", "orjson>=3.9"],
}
EXTRAS["dev"] = sorted(
    {
        *EXTRAS["quickstart"],
        *EXTRAS["formats"],
        *EXTRAS["filters"],
        *EXTRAS["tracking"],
        *EXTRAS["eval"],
        *EXTRAS["slurm"],
        *EXTRAS["docs"],
        # Its StatefulDataLoader carries our torch datasets' state.
        "torchdata>=0.11",
        "pytest>=8",
        # Two processes take the tests' files: most of them wait for one core.
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.8",
        "mypy>=1.13",
        "types-PyYAML",
        "types-tqdm",
    }
)

setup(
    name="lingua-synth",
    version=VERSION,
    description="Studies of synthetic data in LLM pre-training, from documents to scaling laws, on top of Meta Lingua",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["lingua_synth", "lingua_synth.*"]),
    package_data={
        "lingua_synth": [
            "py.typed",
            "generate/recipes/*.yaml",
            "evaluate/*/*.yaml",
            "study/presets/paper/*.yaml",
        ]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["lingua-synth=lingua_synth.cli:entry"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
