"""`lingua-synth report`: a runs table in, one self-contained page with figures and fits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lingua_synth.config import parse_args
from lingua_synth.files import what_is_there
from lingua_synth.mixture.pool import parse_tokens
from lingua_synth.report.claims import Margins
from lingua_synth.report.claims_section import PaperQuestions, validate_questions
from lingua_synth.report.evidence import Evidence
from lingua_synth.report.page import write_report
from lingua_synth.report.tokenizers import tokenizer_section
from lingua_synth.scaling.command import TableArgs, cleaning_lines, read_runs, read_table
from lingua_synth.scaling.natural import base_mixture
from lingua_synth.scaling.runs import Runs
from lingua_synth.scaling.stored import read_fits


@dataclass
class ReportArgs(TableArgs):
    """Draw every figure a runs table allows and write one self-contained HTML page."""

    out: str = ""
    """Folder for report.html and figures/ (PNG, SVG and the numbers drawn as CSV); made when absent."""
    base: str | None = None
    """Mixture the others are compared with; null takes natural text alone."""
    title: str = "Synthetic text in pre-training"
    """Heading of the page."""
    analysis: str = ""
    """Folder that `lingua-synth analyze` wrote: figures of corpora and tokens. Its training corpora are called as the
    table's sources: ratio_hq is train.hq."""
    evaluations: dict[str, str] = field(default_factory=dict)
    """Evaluated models: evaluations.MIXTURE=FOLDER of an evaluation, of a run, or of runs; for losses by token."""
    noise: float | None = None
    """Standard deviation of ln loss of one run (0.003 is 0.3 %), where it is known; null: as the runs show it."""
    fits: str = ""
    """Folder (or fits.json) that `lingua-synth fit` wrote for the same runs; empty: the laws are fitted here."""
    n: str = ""
    """Model size to recommend a mixture for: a size of the table by name, or parameters as n_definition counts them
    (858M); empty: the largest trained."""
    tokens: str = ""
    """Training tokens to recommend for, e.g. 50B; empty: the largest budget trained."""
    kinds: dict[str, str] = field(default_factory=dict)
    """What a synthetic source is, where its name does not say it: kinds.SOURCE=hq, qa, textbook or other."""
    generators: dict[str, str] = field(default_factory=dict)
    """Who wrote a source that is not named KIND-GENERATOR: generators.SOURCE=llama3-8b."""
    generation_hours: dict[str, float] = field(default_factory=dict)
    """GPU-hours to write a billion tokens: generation_hours.SOURCE=120; draws losses against that cost."""
    to_tokens: str = ""
    """Where extrapolated losses end, e.g. 8T; empty: 40 times the largest budget."""
    to_parameters: str = ""
    """The same for model sizes, e.g. 400B; empty: 133 times the largest."""
    margins: dict[str, float] = field(default_factory=dict)
    """Smallest differences that count in the paper's claims: margins.loss=0.003 (0.3 %), and notable, same, trend,
    generator, ratio."""


def main(argv: Sequence[str]) -> int | None:
    """Read the table, fit the laws, write the page; prints where it is and what could not be fitted."""
    from lingua_synth.analysis.models import Trained, read_checkpoints
    from lingua_synth.analysis.results import read_analysis
    from lingua_synth.report.corpora import trained_sections
    from lingua_synth.scaling import fit_study

    args = parse_args(ReportArgs, argv, prog="lingua-synth report")
    if not args.runs or not args.out:
        missing = "runs=FILE.csv" if not args.runs else "out=FOLDER"
        raise ValueError(f"report needs {missing}; `lingua-synth report --help` lists the keys")
    if not Path(args.runs).exists():
        raise ValueError(f"no runs table {args.runs}; {what_is_there(args.runs)}")
    if args.bootstraps < 0:
        raise ValueError(f"bootstraps is a number of resamples, 0 or more; got {args.bootstraps}")
    analysis = read_analysis(args.analysis) if args.analysis else None
    runs, cleaned = read_runs(args)
    base_mixture(runs, args.base)  # a wrong name is refused before anything is fitted
    questions = questions_of(args, runs)
    fits = None
    if args.fits:
        fits = read_fits(args.fits, runs)
        if fits.target != args.target or fits.n_definition != args.n_definition:
            raise ValueError(
                f"the fits in {args.fits} are of {fits.target} with N {fits.n_definition}; the report is asked for "
                f"{args.target} with N {args.n_definition}: give target= and n_definition= alike, or leave fits= out"
            )
    elif len(runs):
        fits = fit_study(
            runs,
            target=args.target,
            n_definition=args.n_definition,
            num_bootstraps=args.bootstraps,
            seed=args.seed,
        )
    trained = Trained(runs=runs, checkpoints=read_checkpoints(args.evaluations), base=args.base)
    sections = trained_sections(analysis, trained, target=args.target, n_definition=args.n_definition, noise=args.noise)
    if args.tokenizer and (section := tokenizer_section(read_table(args), args.tokenizer, args.target, args.base)):
        sections.insert(0, section)
    path = write_report(
        args.out,
        runs,
        fits,
        title=args.title,
        target=args.target,
        base=args.base,
        sections_after=sections,
        questions=questions,
    )
    for line in cleaning_lines(runs, cleaned):
        print(line)
    print(f"{path}: {len(runs)} runs, {len(runs.mixtures)} mixtures")
    if fits is not None:
        unclear = [mixture for mixture, entry in fits.joint.items() if not entry.identifiable]
        if unclear:
            print(f"joint law not identifiable for {', '.join(unclear)}; the page says why")
    return 0


def questions_of(args: ReportArgs, runs: Runs) -> PaperQuestions:
    """What the keys ask, held against the table; ValueError names the key that is wrong."""
    margins = dict(args.margins)
    unknown = sorted(set(margins) - set(Margins.__dataclass_fields__))
    if unknown:
        raise ValueError(f"no margins.{unknown[0]}; there is {', '.join(Margins.__dataclass_fields__)}")
    questions = PaperQuestions(
        parameters=_size_of(args, runs),
        tokens=float(parse_tokens(args.tokens)) if args.tokens else None,
        roles=dict(args.kinds),
        generators=dict(args.generators),
        generation_hours=dict(args.generation_hours),
        to_tokens=float(parse_tokens(args.to_tokens)) if args.to_tokens else None,
        to_parameters=float(parse_tokens(args.to_parameters)) if args.to_parameters else None,
        margins=Margins(**margins),
        noise=args.noise,
    )
    if len(runs):
        evidence = Evidence.of(
            runs, None, args.base, args.target, args.n_definition, questions.roles, questions.generators
        )
        validate_questions(questions, evidence)
    return questions


def _size_of(args: ReportArgs, runs: Runs) -> float | None:
    """N of `n=`: of a size of the table by name, else a count."""
    if not args.n:
        return None
    if len(runs) and args.n in runs["size"]:
        return float(runs.N(args.n_definition)[runs["size"] == args.n].mean())
    return float(parse_tokens(args.n))
