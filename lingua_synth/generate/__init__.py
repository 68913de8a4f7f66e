"""Generation: natural documents in, synthetic documents out, every record traceable and none lost or doubled.

Document ──Recipe.render──> prompt ──engine──> text ──filters──> documents-*.jsonl | filtered | failed, manifest
"""

from lingua_synth.generate.engine import Engine, Failure, Generation, Request, Sampling
from lingua_synth.generate.engines import ENGINES, build_engine
from lingua_synth.generate.recipe import RECIPES, Recipe, load_recipe
from lingua_synth.generate.runner import GenerationSummary, generate
from lingua_synth.generate.verify import verify

__all__ = [
    "ENGINES",
    "RECIPES",
    "Engine",
    "Failure",
    "Generation",
    "GenerationSummary",
    "Recipe",
    "Request",
    "Sampling",
    "build_engine",
    "generate",
    "load_recipe",
    "verify",
]
